package daemon

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestLimitFor(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ want, live, other, limit int64 }{
		{28 * mib, 10 * mib, 4 * mib, 28 * mib},
		{28 * mib, 22 * mib, 4 * mib, 28 * mib},
		{28 * mib, 22 * mib, 4*mib + 1, 29 * mib},
		{28 * mib, 40 * mib, 4 * mib, 46 * mib},
	} {
		if got := limitFor(c.want, c.live, c.other); got != c.limit {
			t.Errorf("%d allowed, %d live, %d beside: limit %d, want %d", c.want, c.live, c.other, got, c.limit)
		}
	}
}

// With more in use than the node may hold, collections come only as something was
// allocated, and the limit returns to what it was.
func TestLimitAboveLiveHeap(t *testing.T) {
	if os.Getenv("GOMEMLIMIT") != "" {
		t.Fatal("GOMEMLIMIT is set: the test needs the limit for itself")
	}
	percent, limit := debug.SetGCPercent(gcPercent), debug.SetMemoryLimit(math.MaxInt64)
	defer debug.SetMemoryLimit(limit)
	defer debug.SetGCPercent(percent)
	defer goLimit.allow(math.MaxInt64 / 2)
	tuneMemory(0, 0)
	used := make([]byte, 64<<20)
	// Finalizers run some time after a collection: nothing tells when, so it is looked for.
	await := func(what string, ok func(limit int64) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			runtime.GC()
			if got := debug.SetMemoryLimit(-1); ok(got) {
				return
			} else if time.Now().After(end) {
				t.Fatalf("%s: limit %d", what, got)
			}
		}
	}
	await("64 MiB in use", func(limit int64) bool { return limit >= int64(len(used))+gcRoomBytes })
	runtime.KeepAlive(used)
	used = nil
	await("nothing in use", func(limit int64) bool { return limit < 64<<20 }) // other tests may have left something
}
