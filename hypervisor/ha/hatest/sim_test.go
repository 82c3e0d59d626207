package hatest

import (
	"flag"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	simSeeds = flag.Int("seeds", 0, "how many histories TestSim runs; 0: so many that every pair of faults occurs")
	simFirst = flag.Uint64("first", 1, "the first of them")
	simSeed  = flag.Uint64("seed", 0, "the only history TestSim runs, with all of its trace; 0: -seeds of them")
)

// inBubble has a history run in a synctest bubble of its own.
func inBubble(t *testing.T) func(func()) {
	return func(f func()) { synctest.Test(t, func(*testing.T) { f() }) }
}

// maxSimFailures is after how many failures TestSim gives up.
const maxSimFailures = 5

// TestSim runs random histories; see the package's documentation.
// go test ./hypervisor/ha/hatest -run 'TestSim$' -seed=4711 replays one.
func TestSim(t *testing.T) {
	first, n := *simFirst, uint64(*simSeeds)
	if n == 0 {
		n = everyPair
		if testing.Short() {
			n /= 4
		}
	}
	if *simSeed != 0 {
		first, n = *simSeed, 1
		TraceLines = 1 << 20 // all of it
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // little memory lives long
	var next, failed atomic.Uint64
	var running sync.WaitGroup
	var mu sync.Mutex
	total := NewSimulator(nil)
	began := time.Now()
	workers := min(runtime.GOMAXPROCS(0), int(n))
	for range workers {
		running.Go(func() {
			sim := NewSimulator(inBubble(t))
			for failed.Load() < maxSimFailures {
				k := next.Add(1) - 1
				if k >= n {
					break
				}
				if err := sim.Run(first + k); err != nil {
					failed.Add(1)
					t.Errorf("history %d: %v", first+k, err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.Coverage.Add(sim.Coverage)
			total.Events += sim.Events
			total.Seconds += sim.Seconds
			total.Starts += sim.Starts
			total.Records += sim.Records
			total.Splits += sim.Splits
			total.Sweeps += sim.Sweeps
			total.Shots += sim.Shots
			total.Lost += sim.Lost
		})
	}
	running.Wait()
	if failed.Load() >= maxSimFailures {
		t.Fatal("too many failures")
	}
	if n == 1 {
		return
	}
	seen, of, missing, rarest := total.Coverage.Pairs()
	t.Logf("%d histories of %d events and %d s, %d starts of VMs, %d records acknowledged, %d split brains and %d leftover marks ended by hand, %d fence shots, %d KiB lost as declared; %.1f ms each on one of %d cores; %d of %d pairs of faults, each %d times or more",
		n, total.Events/int(n), total.Seconds/int64(n), total.Starts, total.Records, total.Splits, total.Sweeps, total.Shots, total.Lost>>10,
		float64(time.Since(began).Milliseconds())*float64(workers)/float64(n), workers, seen, of, rarest)
	if len(missing) > 0 && n >= everyPair {
		t.Errorf("these pairs of faults never occurred: %v", missing)
	}
}
