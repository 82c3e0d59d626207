package meta

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// TestMoveOfflineCrash stops the move of internal metadata at each write and
// sync. Whoever looks at the device then finds the old metadata at the old place, to
// be moved again, or new metadata that has every bit of the old or asks for a
// full sync.
func TestMoveOfflineCrash(t *testing.T) {
	const old = 64 << 20
	for _, tt := range []struct {
		name string
		grow int64
	}{{"far away", 64 << 20}, {"overlapping", 16 << 10}, {"one block", 4096}, {"a larger bitmap", 256 << 20}} {
		t.Run(tt.name, func(t *testing.T) {
			done := false
			for step := 0; !done; step++ {
				for k := range 3 {
					done = crashMove(t, old, old+tt.grow, step, []float64{0, 0.5, 1}[k], uint64(step*3+k))
				}
				if step > 1000 {
					t.Fatal("the move does not end")
				}
			}
		})
	}
}

func crashMove(t *testing.T, old, size int64, step int, keep float64, seed uint64) (done bool) {
	t.Helper()
	at := fmt.Sprintf("step %d, keep %v", step, keep)
	from, to := mustLayout(t, old), mustLayout(t, size)
	d := newMemDevice(old)
	if err := Create(d, from, CreateOptions{DeviceUUID: 7}); err != nil {
		t.Fatal(err)
	}
	sb, _, err := Load(d, from)
	if err != nil {
		t.Fatal(err)
	}
	bm := NewBitmap(from.Usable)
	bm.Set(3, 17)
	bm.Set(9000, 9001)
	sb.LASize, sb.Flags, sb.UUIDs.Current = from.Usable, sb.Flags|MDFConsistent|MDFWasUpToDate, 42
	page := make([]byte, BlockSize)
	for p := range bm.Pages() {
		bm.EncodePage(p, page)
		if _, err := d.WriteAt(page, from.Bitmap+int64(p)*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := storeSuperblock(d, from, sb); err != nil {
		t.Fatal(err)
	}
	d.size, d.left, d.tear = size, step, 512*int(seed%8)
	err = MoveOffline(d, from, to)
	done = err == nil
	if err != nil && !errors.Is(err, errPower) {
		t.Fatalf("%s: %v", at, err)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	c := d.crash(func() bool { return rng.Float64() < keep })
	if _, _, err := ReadSuperblock(c, to); errors.Is(err, ErrNoMetadata) {
		if done {
			t.Fatalf("%s: moved, but: %v", at, err)
		}
		if err := MoveOffline(c, from, to); err != nil {
			t.Fatalf("%s: the old metadata is gone as well: %v", at, err)
		}
	} else if _, _, err := ReadSuperblock(c, from); done && err == nil {
		t.Fatalf("%s: the old superblock is still there", at)
	}
	if _, err := ApplyAL(c, to); err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	got, gotBM, err := Load(c, to)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	if got.UUIDs != sb.UUIDs || got.LASize != sb.LASize || got.DeviceUUID != 7 {
		t.Fatalf("%s: %+v, want %+v", at, got, sb)
	}
	if got.Flags&MDFFullSync == 0 {
		if gotBM.Weight() != bm.Weight() || gotBM.Count(3, 17) != 15 || gotBM.Count(9000, 9001) != 2 {
			t.Fatalf("%s: bits are lost or new: %d, want %d", at, gotBM.Weight(), bm.Weight())
		}
	} else if done {
		t.Fatalf("%s: moved, but a full sync is asked for", at)
	}
	return done
}

func mustLayout(t *testing.T, size int64) Layout {
	t.Helper()
	l, err := NewLayout(Internal, 0, size, 0, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestMoved says what a larger device means for each placement.
func TestMoved(t *testing.T) {
	const gib = 1 << 30
	for _, tt := range []struct {
		name       string
		p          Placement
		data, meta int64
		grown      int64
		moved      bool
		usable     drbd.Sector
	}{
		{"internal", Internal, gib, 0, 2 * gib, true, 4194304 - 8 - 64 - 128},
		{"internal, not grown", Internal, gib, 0, gib, false, 2097016},
		{"indexed", Indexed, gib, 128 << 20, 2 * gib, false, 4194304},
		{"flexible", FlexExternal, gib, 1 << 20, 2 * gib, false, 4194304},
		{"flexible, no room for the bits", FlexExternal, gib, 1 << 20, 1 << 40, false, (2048 - 72) * 32768},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := NewLayout(tt.p, 0, tt.data, tt.meta, 1, 8)
			if err != nil {
				t.Fatal(err)
			}
			to, moved, err := l.Moved(tt.grown, 4*tt.meta)
			if err != nil || moved != tt.moved || to.Usable != tt.usable {
				t.Errorf("moved %t, usable %d, %v; want %t, %d", moved, to.Usable, err, tt.moved, tt.usable)
			}
		})
	}
}
