package hatest

import (
	"flag"
	"syscall"
	"testing"
	"time"
)

var (
	hunt = flag.Duration("hunt", 0, "how long TestHunt simulates, in time of a processor")
	from = flag.Uint64("from", 1, "the first seed of TestHunt")
)

// TestHunt simulates histories until one fails or -hunt is over; it is what
// replication/repltest/selftest runs with a bug planted. Without -hunt it is one
// history.
func TestHunt(t *testing.T) {
	sim := NewSimulator(inBubble(t))
	for seed := *from; ; seed++ {
		if err := sim.Run(seed); err != nil {
			t.Fatalf("history %d: %v", seed, err)
		}
		if processorTime(t) >= *hunt {
			t.Logf("%d histories, nothing found", seed)
			return
		}
	}
}

// processorTime is what this process has used of a processor: others may be busy.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
