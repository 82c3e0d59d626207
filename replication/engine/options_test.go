package engine

import (
	"slices"
	"testing"
)

// TestActivityLogChangesInUse gives the log of a Primary other slots, over real
// files; after a crash it can be replayed, and bounds what is synced.
func TestActivityLogChangesInUse(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	c.write(0, pattern(1, 8192))
	for _, extents := range []int{2000, 67, 3000} {
		cfg := a.cfg
		cfg.Volumes = slices.Clone(cfg.Volumes)
		cfg.Volumes[0].Options.ALExtents = extents
		if err := a.Reconfigure(cfg); err != nil {
			t.Fatalf("al-extents %d: %v", extents, err)
		}
		c.write(4<<20, pattern(uint64(extents), 8192))
	}
	a.crash()
	a.up()
	a.await("the resync of what the log names", inSync)
	b.await("the same", inSync)
	assertEqualDisks(t, a, b)
}
