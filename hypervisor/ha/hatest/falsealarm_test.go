package hatest

import (
	"flag"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

var calmHours = flag.Int64("hours", 50, "how many simulated hours TestNoFalseFailover lasts")

// TestNoFalseFailover has two hosts run for a long time, with nothing wrong but
// messages that are late, up to warntime: nothing may be ordered that is for
// trouble. Storage has nothing to say, so it is left out as soon as it is at rest.
func TestNoFalseFailover(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(2000)) // hardly any memory lives
	workers := int64(runtime.GOMAXPROCS(0))
	var running sync.WaitGroup
	began := time.Now()
	for i := range workers {
		running.Go(func() {
			cfg := DefaultConfig()
			cfg.Seed = uint64(i) + 1
			w := newWorld(cfg, &Memory{})
			for _, h := range w.Hosts {
				h.Boot()
			}
			if !w.RunUntil(comesUp, w.settled) {
				w.stuck("after the first start", comesUp)
				t.Error(w.failure)
				return
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
			for range *calmHours * 3600 / workers / 60 {
				if w.Run(60_000); w.failure != nil {
					t.Error(w.failure)
					return
				}
			}
		})
	}
	running.Wait()
	t.Logf("%d hours in %.1f s", *calmHours, time.Since(began).Seconds())
}
