package hatest

import (
	"flag"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

var calmHours = flag.Int64("hours", 50, "how many simulated hours TestNoFalseFailover lasts")

// calmPiece is how many hours one history of TestNoFalseFailover lasts.
const calmPiece = 250

// TestNoFalseFailover has two hosts run for a long time, with nothing wrong but
// messages that are late, up to warntime: nothing may be ordered that is for
// trouble. Storage has nothing to say, so it is left out as soon as it is at rest.
// Each piece has a seed of its own, from -first on; every fifth has fence agents.
func TestNoFalseFailover(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(2000)) // hardly any memory lives
	var next atomic.Int64
	var running sync.WaitGroup
	pieces := (*calmHours + calmPiece - 1) / calmPiece
	began := time.Now()
	for range min(int64(runtime.GOMAXPROCS(0)), pieces) {
		running.Go(func() {
			mem := &Memory{}
			for k := next.Add(1) - 1; k < pieces; k = next.Add(1) - 1 {
				cfg := DefaultConfig()
				cfg.Seed = *simFirst + uint64(k)
				run := func(f func()) { f() }
				if k%5 == 4 {
					cfg.Arbiter = ha.ArbiterFence
					run = inBubble(t)
				}
				run(func() {
					if err := calm(cfg, mem, min(calmPiece, *calmHours-k*calmPiece)); err != nil {
						t.Errorf("piece %d, seed %d, %s: %v", k, cfg.Seed, cfg.Arbiter, err)
					}
				})
			}
		})
	}
	running.Wait()
	t.Logf("%d hours in %.1f s", *calmHours, time.Since(began).Seconds())
}

// calm is one piece.
func calm(cfg Config, mem *Memory, hours int64) error {
	w := newWorld(cfg, mem)
	defer w.End()
	for _, h := range w.Hosts {
		h.Boot()
	}
	if !w.RunUntil(comesUp, w.settled) {
		w.stuck("after the first start", comesUp)
		return w.failure
	}
	w.Run(20_000)
	// From now on a heartbeat may be so late that the silence before it is
	// almost warntime.
	w.cfg.Tick = 1000
	w.cfg.Jitter = int64(cfg.Timing.Warntime-cfg.Timing.Keepalive)*millisecond - 100*millisecond
	w.resting = func(h *Host, o *ha.Order) {
		switch o.Kind {
		case ha.Renew, ha.Observe, ha.TellLease, ha.SendBeat, ha.Note, ha.Persist:
		default:
			w.fail("%s: %s, although nothing is wrong", h.name, orderText(o))
		}
	}
	for range hours * 60 {
		if w.Run(60_000); w.failure != nil {
			break
		}
	}
	return w.failure
}
