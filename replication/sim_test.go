package replication_test

import (
	"flag"
	"fmt"
	"testing"

	"github.com/pollux-project/pollux/replication/repltest"
)

var (
	simSeeds = flag.Int("seeds", 200, "how many histories TestSim runs")
	simSeed  = flag.Uint64("seed", 0, "the only history TestSim runs; 0: -seeds from 1 on")
)

// TestSim runs random histories of two nodes; see package repltest.
// go test ./replication -run TestSim -seed=4711 replays one.
func TestSim(t *testing.T) {
	first, n := uint64(1), *simSeeds
	if *simSeed != 0 {
		first, n = *simSeed, 1
		repltest.RingLines = 1 << 20 // all of it
	}
	failed := 0
	for seed := first; seed < first+uint64(n); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			if err := repltest.Simulate(seed); err != nil {
				failed++
				t.Errorf("history %d: %v", seed, err)
			}
		})
		if failed >= 10 {
			t.Fatal("too many failures")
		}
	}
}
