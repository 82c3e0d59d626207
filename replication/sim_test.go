package replication_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/replication/repltest"
)

var (
	simSeeds    = flag.Int("seeds", 200, "how many histories TestSim runs")
	simFirst    = flag.Uint64("first", 1, "the first of them")
	simSeed     = flag.Uint64("seed", 0, "the only history TestSim runs; 0: -seeds of them")
	simProgress = flag.Bool("progress", false, "TestSim says how far it is")
)

// maxSimFailures is after how many failures TestSim gives up.
const maxSimFailures = 10

// TestSim runs random histories of two nodes; see package repltest.
// go test ./replication -run 'TestSim$' -seed=4711 replays one.
func TestSim(t *testing.T) {
	first, n := *simFirst, uint64(*simSeeds)
	if *simSeed != 0 {
		first, n = *simSeed, 1
		repltest.RingLines = 1 << 20 // all of it
	}
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // little memory lives long
	var next, failed, events atomic.Uint64
	began := time.Now()
	workers := min(runtime.GOMAXPROCS(0), int(n))
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			sim := repltest.NewSimulator()
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
			events.Add(uint64(sim.Events))
		})
	}
	done := make(chan struct{})
	go func() { running.Wait(); close(done) }()
	progress(done, &next, n, began)
	if failed.Load() >= maxSimFailures {
		t.Error("too many failures")
	}
	if s := time.Since(began).Seconds(); n > 1 {
		ran := min(next.Load(), n)
		t.Logf("%d histories of %d events, %.0f a second on each of %d cores", ran, events.Load()/ran, float64(ran)/s/float64(workers), workers)
	}
}

// progress returns when done is closed. Until then it says every 10 seconds how
// far the histories are, if that is wanted.
func progress(done <-chan struct{}, next *atomic.Uint64, n uint64, began time.Time) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if !*simProgress {
				continue
			}
			ran := min(next.Load(), n)
			rate := float64(ran) / time.Since(began).Seconds()
			left := time.Duration(float64(n-ran) / rate * float64(time.Second))
			fmt.Fprintf(os.Stderr, "%d of %d histories, %.0f a second, %v left\n", ran, n, rate, left.Round(time.Second))
		}
	}
}

// BenchmarkHistory is one history after the other on one core. It holds the
// claim that a core runs 200 of 1,000 events a second; what other processes take
// of the core does not count.
func BenchmarkHistory(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	sim := repltest.NewSimulator()
	seed := uint64(0)
	began := cpuTime(b)
	for b.Loop() {
		seed++
		if err := sim.Run(seed); err != nil {
			b.Errorf("history %d: %v", seed, err)
		}
	}
	rate := float64(sim.Events) / (cpuTime(b) - began).Seconds()
	b.ReportMetric(rate/1000, "histories-of-1000-events/s")
	b.ReportMetric(float64(sim.Events)/float64(seed), "events/history")
	if rate < 200_000 && seed > 100 {
		b.Errorf("%.0f histories of 1,000 events a second on one core, want 200", rate/1000)
	}
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
