package ha

import (
	"strings"
	"testing"
)

func failsafeConfig() Config {
	cfg := testConfig(ArbiterEtcd)
	cfg.Services[0].Failsafe = true
	return cfg
}

// TestBehaviourWithoutArbiter has the rows of the behaviour table in which the peer's own
// durable word takes the arbiter's place: it has left in good order, or has promised
// to stand back while the arbiter is away.
func TestBehaviourWithoutArbiter(t *testing.T) {
	plain, failsafe := testConfig(ArbiterEtcd), failsafeConfig()
	fence := testConfig(ArbiterFence)
	back := func(w *world, a, b *host) {
		w.arb.up = true
		w.until("b counts again", 40000, func() bool { return len(w.arb.records["r0"].InSync) == 2 && w.pair("r0").connected })
		w.run(5000)
		w.expect("web", "a")
	}
	for _, tt := range []struct {
		name string
		cfg  Config
		do   func(t *testing.T, w *world, a, b *host)
	}{
		{"W dies, then B leaves in good order: A goes on, and W hears of it", plain, func(t *testing.T, w *world, a, b *host) {
			w.arb.up = false
			w.run(30000)
			acked := w.acked["web"]
			b.leave()
			w.run(60000)
			w.expect("web", "a")
			if w.acked["web"] < acked+1000 {
				t.Errorf("%d writes in a minute", w.acked["web"]-acked)
			}
			w.arb.up = true
			w.until("the record names a alone", 5000, func() bool { return w.arb.records["r0"].Sole() && w.arb.records["r0"].Owner == "a" })
			b.join()
			back(w, a, b)
		}},
		{"W dies, B leaves in good order, A dies, W is back: B refuses", plain, func(t *testing.T, w *world, a, b *host) {
			w.arb.up = false
			w.run(30000)
			b.leave()
			w.run(5000)
			a.off()
			w.arb.up = true
			b.join()
			w.run(120000)
			w.expect("web", "")
			if r := w.arb.records["r0"]; !r.Counts("b") {
				t.Fatalf("the record was brought up to date, so this shows nothing: %+v", r)
			}
			if st := b.status("web"); !strings.Contains(st.Why, "Outdated") || !strings.Contains(st.Advice, "--force") {
				t.Errorf("b says %q, advises %q", st.Why, st.Advice)
			}
			a.on()
			w.until("it runs again, once both have met", 60000, func() bool { return w.runsOn("web") != "" })
			w.run(10000)
		}},
		{"W dies, then the link is cut, failsafe: A goes on, B keeps its promise", failsafe, func(t *testing.T, w *world, a, b *host) {
			w.arb.up = false
			w.run(10000)
			acked := w.acked["web"]
			if st := a.status("web"); !strings.Contains(st.Protection, "failsafe: it runs on whatever becomes of b") {
				t.Errorf("protection %q", st.Protection)
			}
			w.setLink("a", "b", false)
			w.run(500)
			if w.acked["web"] <= acked+1 {
				t.Error("a did not write on at once")
			}
			w.run(60000)
			w.expect("web", "a")
			// Now b sees W first, which still counts both.
			w.setLink("a", "W", false)
			w.arb.up = true
			w.run(60000)
			w.expect("web", "a")
			if r := w.arb.records["r0"]; r.Owner != "a" {
				t.Errorf("b took it: %+v", r)
			}
			w.setLink("a", "W", true)
			w.until("the record names a alone", 5000, func() bool { return w.arb.records["r0"].Sole() })
			w.setLink("a", "b", true)
			back(w, a, b)
		}},
		{"W dies, then B dies, failsafe: A goes on", failsafe, func(t *testing.T, w *world, a, b *host) {
			w.arb.up = false
			w.run(10000)
			b.off()
			w.run(60000)
			w.expect("web", "a")
			b.on()
			w.run(30000)
			w.expect("web", "a")
			back(w, a, b)
		}},
		{"W dies, then A dies, failsafe: B keeps its promise until A is back", failsafe, func(t *testing.T, w *world, a, b *host) {
			w.arb.up = false
			w.run(10000)
			a.off()
			w.run(10000)
			b.off()
			b.on()
			w.arb.up = true
			w.run(120000)
			w.expect("web", "")
			if st := b.status("web"); !strings.Contains(st.Why, "promised a not to take over") {
				t.Errorf("b says %q", st.Why)
			}
			a.on()
			w.until("it runs again, once both have met", 60000, func() bool { return w.runsOn("web") != "" })
			w.run(10000)
		}},
		{"W is back, failsafe: B may take over again", failsafe, func(t *testing.T, w *world, a, b *host) {
			w.arb.up = false
			w.run(10000)
			w.arb.up = true
			w.run(5000)
			a.off()
			w.until("b takes over", 15000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"A alone loses W, failsafe: B is not asked, and takes over", failsafe, func(t *testing.T, w *world, a, b *host) {
			w.setLink("a", "W", false)
			w.run(30000)
			if b.core.resources[0].st.StandsBack {
				t.Error("b has promised to stand back although it reaches the arbiter")
			}
			a.off()
			w.until("b takes over", 15000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"the files differ, failsafe: B is not asked", failsafe, func(t *testing.T, w *world, a, b *host) {
			cfg := failsafeConfig()
			cfg.Self, cfg.Services[0].Hash = "b", "2"
			b.step(Event{Kind: Reconfigured, Config: &cfg})
			w.run(3000)
			w.arb.up = false
			w.run(30000)
			if a.core.resources[0].st.AsksPeer {
				t.Error("b was asked, and nobody knows whether its file agrees")
			}
		}},
		{"fence: B leaves in good order: A goes on without a shot", fence, func(t *testing.T, w *world, a, b *host) {
			b.leave()
			b.killHA()
			w.run(60000)
			w.expect("web", "a")
			if a.fences != 0 {
				t.Errorf("%d shots", a.fences)
			}
			b.join()
			b.startHA()
			w.until("b counts again", 40000, func() bool { return len(a.arb.records["r0"].InSync) == 2 })
			w.expect("web", "a")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := started(t, tt.cfg).of(t)
			tt.do(t, w, w.host("a"), w.host("b"))
		})
	}
}
