package meta

import (
	"fmt"
	"slices"
	"testing"
)

// A power failure while the applied log is initialised may tear any of its
// blocks, since they are written together: the next start must not need them.
func TestApplyALTornRing(t *testing.T) {
	image := sample(t, "m06-v08-al-hot")
	l := layoutFor(t, image, Internal, 0)
	want := image.crash(func() bool { return true })
	if _, err := ApplyAL(want, l); err != nil {
		t.Fatal(err)
	}
	marked := image.crash(func() bool { return true })
	sb, l, err := ReadSuperblock(marked, l)
	if err != nil {
		t.Fatal(err)
	}
	hot, err := Replay(l.ALBlocks, ReadRing(marked, l))
	if err != nil || len(hot) == 0 {
		t.Fatalf("hot extents %v, %v", hot, err)
	}
	if _, err := markExtents(marked, l, hot); err != nil {
		t.Fatal(err)
	}
	sb.Flags |= MDFALClean
	if err := storeSuperblock(marked, l, sb); err != nil {
		t.Fatal(err)
	}
	for _, torn := range [][]int{{}, {0}, {0, 1}, {1, 3, 5}, {0, 1, 2, 3, 4, 5, 6, 7}} {
		t.Run(fmt.Sprint(torn), func(t *testing.T) {
			d := marked.crash(func() bool { return true })
			for k := range l.ALBlocks {
				if slices.Contains(torn, k) {
					if _, err := d.WriteAt(make([]byte, 512), l.RingBlock(k)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := ApplyAL(d, l); err != nil {
				t.Fatal(err)
			}
			mustEqualDevices(t, want, d)
		})
	}
}
