package blocktest_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/blocktest"
)

func TestMemConformance(t *testing.T) {
	blocktest.Conformance(t, func(*testing.T) blockdev.Device { return blocktest.NewMem(2 << 20) })
}

func TestMemSectionConformance(t *testing.T) {
	blocktest.Conformance(t, func(t *testing.T) blockdev.Device {
		return closeBoth{blockdev.Section(blocktest.NewMem(4<<20), 1<<20, 2<<20)}
	})
}

// closeBoth makes a section end as a Device does.
type closeBoth struct{ blockdev.Device }

func (c closeBoth) Close() error {
	type unwrapper interface{ Base() blockdev.Device }
	return c.Device.(unwrapper).Base().Close()
}

func fill(b byte) []byte { return bytes.Repeat([]byte{b}, 512) }

func mustWrite(t *testing.T, m *blocktest.Mem, b byte, off int64) {
	t.Helper()
	if _, err := m.WriteAt(fill(b), off); err != nil {
		t.Fatal(err)
	}
}

func TestCrashClone(t *testing.T) {
	m := blocktest.NewMem(4096)
	mustWrite(t, m, 1, 0)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, m, 2, 512)
	mustWrite(t, m, 3, 512)
	if err := m.WriteFUA(fill(9), 1024); err != nil {
		t.Fatal(err)
	}
	seen := make(map[byte]bool)
	for seed := range uint64(64) {
		c := m.CrashClone(rand.New(rand.NewPCG(seed, 0)))
		b := c.Bytes()
		if b[0] != 1 || b[1024] != 9 {
			t.Fatalf("durable data is lost: %d %d", b[0], b[1024])
		}
		if !bytes.Equal(b[512:1024], fill(b[512])) {
			t.Fatal("torn sector")
		}
		seen[b[512]] = true
	}
	if !seen[0] || !seen[2] || !seen[3] || len(seen) != 3 {
		t.Errorf("sector 1 was left as %v, want each of 0, 2, 3", seen)
	}
	one := m.CrashClone(rand.New(rand.NewPCG(7, 7))).Bytes()
	two := m.CrashClone(rand.New(rand.NewPCG(7, 7))).Bytes()
	if !bytes.Equal(one, two) {
		t.Error("one seed, two crashes")
	}
}

func TestFaults(t *testing.T) {
	m := blocktest.NewMem(8192)
	m.Inject(blocktest.Fault{Kind: blocktest.Write, After: 1, Times: 1})
	mustWrite(t, m, 1, 0)
	if _, err := m.WriteAt(fill(2), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("second write: %v", err)
	}
	mustWrite(t, m, 3, 0)

	m.Inject(blocktest.Fault{Kind: blocktest.Read, Off: 4096, Length: 512, Err: unix.ENODATA})
	p := make([]byte, 512)
	if _, err := m.ReadAt(p, 0); err != nil {
		t.Errorf("read elsewhere: %v", err)
	}
	for range 2 {
		if _, err := m.ReadAt(p, 4096); !errors.Is(err, unix.ENODATA) {
			t.Errorf("bad sector: %v", err)
		}
	}

	m.Inject(blocktest.Fault{Kind: blocktest.Write, Times: 1, Torn: true})
	big := bytes.Repeat([]byte{7}, 1536)
	if n, err := m.WriteAt(big, 2048); err == nil || n != 768 {
		t.Errorf("torn write: %d, %v", n, err)
	}
	if b := m.Bytes(); b[2048+767] != 7 || b[2048+768] != 0 {
		t.Error("not torn in the middle")
	}
}

// A retried sync must be found out.
func TestFailedSyncLosesData(t *testing.T) {
	m := blocktest.NewMem(4096)
	mustWrite(t, m, 5, 0)
	m.Inject(blocktest.Fault{Kind: blocktest.Sync, Times: 1})
	if err := m.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	if m.Bytes()[0] != 5 || m.Durable()[0] != 0 {
		t.Error("want the data readable and not durable")
	}
}

func TestTearSector(t *testing.T) {
	m := blocktest.NewMem(1024)
	if err := m.WriteFUA(fill(1), 512); err != nil {
		t.Fatal(err)
	}
	m.TearSector(1, rand.New(rand.NewPCG(1, 1)))
	b := m.Bytes()
	if !bytes.Equal(b[512:768], fill(1)[:256]) || bytes.Equal(b[768:], fill(1)[:256]) {
		t.Error("want the first half old and the second not")
	}
}

func TestReopen(t *testing.T) {
	m := blocktest.NewMem(1024)
	mustWrite(t, m, 4, 0)
	n := m.Reopen()
	if _, err := m.WriteAt(fill(1), 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("write by the dead process: %v", err)
	}
	if n.Bytes()[0] != 4 || n.Unsynced() != 1 {
		t.Error("the page cache did not survive the process")
	}
}
