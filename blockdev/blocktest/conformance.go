package blocktest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev"
)

// Conformance checks what every Device owes its users. open returns a fresh
// device of at least 1 MiB with arbitrary contents; the suite closes it.
func Conformance(t *testing.T, open func(t *testing.T) blockdev.Device) {
	t.Helper()
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, dev blockdev.Device)
	}{
		{"Geometry", testGeometry},
		{"Random", testRandom},
		{"Zero", testZero},
		{"Bounds", testBounds},
		{"Neighbours", testNeighbours},
		{"Close", testClose},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := open(t)
			defer func() {
				if err := dev.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			tt.run(t, dev)
		})
	}
}

func testGeometry(t *testing.T, dev blockdev.Device) {
	bs := dev.BlockSize()
	if bs != 512 && bs != 4096 {
		t.Errorf("block size %d", bs)
	}
	if dev.Size() < 1<<20 || dev.Size()%int64(bs) != 0 {
		t.Errorf("size %d is no multiple of %d", dev.Size(), bs)
	}
	if err := dev.Sync(); err != nil {
		t.Error(err)
	}
}

// testRandom compares reads with a plain copy after writes of all shapes:
// unaligned offsets, lengths and buffers included.
func testRandom(t *testing.T, dev blockdev.Device) {
	const size = 1 << 20
	rng := rand.New(rand.NewPCG(1, 2))
	twin := make([]byte, size)
	if _, err := dev.ReadAt(twin, 0); err != nil {
		t.Fatal(err)
	}
	space := blockdev.AlignedBuffer(size + 4096)
	pick := func() (off, n, skew int) {
		off, n, skew = rng.IntN(size), 1+rng.IntN(9000), rng.IntN(4096)
		switch rng.IntN(4) {
		case 0: // whole blocks, aligned
			off, n, skew = off&^4095, (n+4095)&^4095, 0
		case 1: // whole sectors
			off, n, skew = off&^511, (n+511)&^511, skew&^511
		case 2: // long
			n = 1 + rng.IntN(size)
		}
		return off, min(n, size-off), skew
	}
	for i := range 600 {
		off, n, skew := pick()
		p := space[skew : skew+n]
		switch rng.IntN(6) {
		case 0, 1:
			for j := range p {
				p[j] = byte(rng.Uint32())
			}
			copy(twin[off:], p)
			if _, err := dev.WriteAt(p, int64(off)); err != nil {
				t.Fatalf("write %d+%d: %v", off, n, err)
			}
		case 2:
			for j := range p {
				p[j] = byte(i)
			}
			copy(twin[off:], p)
			if err := dev.WriteFUA(p, int64(off)); err != nil {
				t.Fatalf("durable write %d+%d: %v", off, n, err)
			}
		case 3:
			clear(twin[off : off+n])
			if err := dev.Zero(int64(off), int64(n), rng.IntN(2) == 0); err != nil {
				t.Fatalf("zero %d+%d: %v", off, n, err)
			}
		default:
			if got, err := dev.ReadAt(p, int64(off)); err != nil || got != n {
				t.Fatalf("read %d+%d: %d, %v", off, n, got, err)
			}
			if !bytes.Equal(p, twin[off:off+n]) {
				t.Fatalf("step %d: read %d+%d differs at %d", i, off, n, off+firstDifference(p, twin[off:off+n]))
			}
		}
	}
	got := make([]byte, size)
	if _, err := dev.ReadAt(got, 0); err != nil || !bytes.Equal(got, twin) {
		t.Errorf("in the end: %v, first difference at %d", err, firstDifference(got, twin))
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func testZero(t *testing.T, dev blockdev.Device) {
	for _, mayUnmap := range []bool{true, false} {
		full := bytes.Repeat([]byte{0xa5}, 256<<10)
		for _, r := range []struct{ off, n int }{{0, 256 << 10}, {4096, 8192}, {512, 512}, {513, 100}, {4000, 9000}, {100, 0}} {
			if _, err := dev.WriteAt(full, 0); err != nil {
				t.Fatal(err)
			}
			if err := dev.Zero(int64(r.off), int64(r.n), mayUnmap); err != nil {
				t.Fatalf("zero %d+%d: %v", r.off, r.n, err)
			}
			got := make([]byte, len(full))
			if _, err := dev.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			want := bytes.Clone(full)
			clear(want[r.off : r.off+r.n])
			if !bytes.Equal(got, want) {
				t.Errorf("zero %d+%d unmap=%v: differs at %d", r.off, r.n, mayUnmap, firstDifference(got, want))
			}
		}
	}
}

func testBounds(t *testing.T, dev blockdev.Device) {
	p := make([]byte, 1024)
	for _, off := range []int64{dev.Size() - 512, dev.Size(), dev.Size() + 1, 1 << 62, -1, -512} {
		if _, err := dev.ReadAt(p, off); err == nil {
			t.Errorf("read at %d of %d bytes succeeded", off, dev.Size())
		}
		if _, err := dev.WriteAt(p, off); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("write at %d of %d bytes: %v", off, dev.Size(), err)
		}
		if err := dev.WriteFUA(p, off); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("durable write at %d of %d bytes: %v", off, dev.Size(), err)
		}
		if err := dev.Zero(off, 1024, true); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("zero at %d of %d bytes: %v", off, dev.Size(), err)
		}
	}
	if _, err := dev.WriteAt(nil, dev.Size()); err != nil {
		t.Errorf("empty write at the end: %v", err)
	}
	if _, err := dev.WriteAt(p, dev.Size()-1024); err != nil {
		t.Errorf("last sectors: %v", err)
	}
}

// testNeighbours writes the sectors of one block from many goroutines at once:
// none may be lost to another's read-modify-write.
func testNeighbours(t *testing.T, dev blockdev.Device) {
	const part = 256
	var group sync.WaitGroup
	for i := range 4096 / part {
		group.Go(func() {
			p := bytes.Repeat([]byte{byte(i)}, part)
			for range 30 {
				if _, err := dev.WriteAt(p, int64(i*part)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	got := make([]byte, 4096)
	if _, err := dev.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if b != byte(i/part) {
			t.Fatalf("byte %d is %d, a neighbour's write was lost", i, b)
		}
	}
}

func testClose(t *testing.T, dev blockdev.Device) {
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	if _, err := dev.ReadAt(p, 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, err := dev.WriteAt(p, 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if err := dev.Sync(); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("sync: %v", err)
	}
}
