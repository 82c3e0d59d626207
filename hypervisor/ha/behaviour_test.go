package ha

import (
	"strings"
	"testing"
)

// TestBehaviour has a row for each row of the behaviour table in docs/failover.md; those
// in which the peer's word takes the arbiter's place are in TestBehaviourWithoutArbiter.
// The world checks at each moment that there are not two writers, and not two guests
// for longer than it takes to kill one.
func TestBehaviour(t *testing.T) {
	pieces := func(w *world) (a, b *host) { return w.host("a"), w.host("b") }
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, w *world)
	}{
		{"B dies: A asks, is the sole writer, goes on", func(t *testing.T, w *world) {
			a, b := pieces(w)
			acked := w.acked["web"]
			b.off()
			pause := w.until("a writes on", 1000, func() bool { return w.runsOn("web") == "a" && w.acked["web"] > acked })
			if pause > 500 {
				t.Errorf("the pause was %d ms", pause)
			}
			w.run(30000)
			w.expect("web", "a")
			if r := w.arb.records["r0"]; !r.Sole() || a.vms["web"].inc == "" {
				t.Errorf("record %+v", r)
			}
			b.on()
			w.until("b counts again", 10000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
			w.run(5000)
			w.expect("web", "a")
		}},
		{"A dies: B waits for lease and margin, takes over", func(t *testing.T, w *world) {
			a, b := pieces(w)
			a.off()
			took := w.until("web runs on b", 12000, func() bool { return w.runsOn("web") == "b" })
			if took < 4000 {
				t.Errorf("it took %d ms only: the lease had not ended", took)
			}
			w.until("addresses", 1000, func() bool { return b.vms["web"].ips })
			w.run(5000)
			a.on()
			w.until("a counts again", 30000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
			w.run(20000)
			w.expect("web", "b") // no failback by itself
		}},
		{"A-B link cut, both see W: A goes on, B is outdated", func(t *testing.T, w *world) {
			acked := w.acked["web"]
			w.setLink("a", "b", false)
			pause := w.until("a writes on", 1000, func() bool { return w.acked["web"] > acked+1 })
			if pause > 500 {
				t.Errorf("the pause was %d ms", pause)
			}
			w.run(60000)
			w.expect("web", "a")
			w.setLink("a", "b", true)
			w.until("b counts again", 10000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
			w.expect("web", "a")
		}},
		{"link cut, A goes on alone, A dies later: B refuses and says what is missing", func(t *testing.T, w *world) {
			a, b := pieces(w)
			w.setLink("a", "b", false)
			w.run(10000)
			a.off()
			w.run(120000)
			w.expect("web", "")
			st := b.status("web")
			for _, want := range []string{"stale", "connected last", "2 min"} {
				if !strings.Contains(st.Why, want) {
					t.Errorf("b says %q, want %q", st.Why, want)
				}
			}
			if !strings.Contains(st.Advice, "--force") || st.State != StateBlocked {
				t.Errorf("b advises %q, %s", st.Advice, st.State)
			}
			w.setLink("a", "b", true)
			a.on()
			w.until("a is back with the data", 40000, func() bool { return w.runsOn("web") == "a" })
		}},
		{"A loses B and W: it freezes, kills the guest at the lease's end, B takes over", func(t *testing.T, w *world) {
			a, _ := pieces(w)
			acked := w.acked["web"]
			w.setLink("a", "W", false)
			w.setLink("a", "w", false)
			w.setLink("a", "b", false)
			w.run(1000)
			if w.acked["web"] > acked {
				t.Error("a wrote on")
			}
			ended := w.until("a kills it", 7000, func() bool { return !a.vms["web"].running }) + 1000
			if ended < 3000 {
				t.Errorf("killed after %d ms, before the lease's end", ended)
			}
			w.until("b takes over", 8000, func() bool { return w.runsOn("web") == "b" })
			for _, l := range []string{"b", "W", "w"} {
				w.setLink("a", l, true)
			}
			w.until("a counts again", 30000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
			w.expect("web", "b")
		}},
		{"A loses B and W, and the guest can't be killed: watchdog", func(t *testing.T, w *world) {
			a, _ := pieces(w)
			a.noKill = true
			w.setLink("a", "W", false)
			w.setLink("a", "b", false)
			w.until("a resets itself", 8000, func() bool { return !a.alive })
			w.until("b takes over", 10000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"B loses A and W: A goes on after W grants it", func(t *testing.T, w *world) {
			acked := w.acked["web"]
			w.setLink("a", "b", false)
			w.setLink("b", "W", false)
			w.run(500)
			if w.acked["web"] <= acked+1 {
				t.Error("a did not write on within 500 ms")
			}
			w.run(60000)
			w.expect("web", "a")
		}},
		{"W dies: I/O goes on, and an alarm says what is not protected", func(t *testing.T, w *world) {
			w.arb.up = false
			w.run(60000)
			w.expect("web", "a")
			for _, h := range w.hosts[:2] {
				if !strings.Contains(h.alarms(), "no arbitration, no automatic failover") {
					t.Errorf("%s: alarms %q", h.name, h.alarms())
				}
			}
			w.arb.up = true
			w.run(5000)
			w.expect("web", "a")
			if a := w.hosts[0].alarms(); a != "" {
				t.Errorf("alarms that stand: %q", a)
			}
		}},
		{"polluxha on A dies: I/O goes on, B does not take over", func(t *testing.T, w *world) {
			a, _ := pieces(w)
			inc := a.vms["web"].inc
			a.killHA()
			w.run(60000)
			w.expect("web", "a")
			a.startHA()
			w.run(10000)
			w.expect("web", "a")
			if a.vms["web"].inc != inc {
				t.Error("the guest was started anew")
			}
		}},
		{"polluxha on A dies, then the link is cut: B takes over, after A's polluxd had time to kill the guest", func(t *testing.T, w *world) {
			a, _ := pieces(w)
			a.killHA()
			w.run(60000)
			w.setLink("a", "b", false)
			w.after(w.cfg.Timing.TTL/3-100, func() { a.endVM("web") }) // polluxd's lease guard
			took := w.until("b takes over", 15000, func() bool { return w.runsOn("web") == "b" })
			if took < w.cfg.Timing.TTL/3 {
				t.Errorf("b had it after %d ms", took)
			}
			w.setLink("a", "b", true)
			a.startHA()
			w.until("a counts again", 30000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
			w.expect("web", "b")
		}},
		{"W dies, then the link is cut: A freezes, B refuses", func(t *testing.T, w *world) {
			a, b := pieces(w)
			w.arb.up = false
			w.run(30000)
			acked := w.acked["web"]
			w.setLink("a", "b", false)
			w.run(60000)
			w.expect("web", "")
			if w.acked["web"] != acked || a.vms["web"].running {
				t.Error("a wrote on")
			}
			if !strings.Contains(b.status("web").Why, "arbiter") {
				t.Errorf("b says %q", b.status("web").Why)
			}
			w.arb.up = true
			w.until("one of them runs it", 20000, func() bool { return w.runsOn("web") != "" })
			w.run(10000)
		}},
		{"W dies, then B dies: A freezes; the operator has it go on", func(t *testing.T, w *world) {
			a, b := pieces(w)
			w.arb.up = false
			w.run(30000)
			b.off()
			w.run(4000)
			w.expect("web", "")
			a.step(Event{Kind: Commanded, Command: Command{ID: 7, Verb: ResumeSoleVerb, Service: "web"}})
			if got := a.answers[len(a.answers)-1]; !got.Done || !got.Asks || !strings.Contains(got.Err, "whether b still runs it") || !strings.Contains(got.Err, "type the name of the resource") {
				t.Errorf("without the name: %+v", got)
			}
			w.run(5000) // by now the guest is killed
			a.step(Event{Kind: Commanded, Command: Command{ID: 8, Verb: ResumeSoleVerb, Service: "web", Confirm: "web"}})
			w.until("it goes on", 5000, func() bool { return w.runsOn("web") == "a" })
			if term := w.pair("r0").of("a").term; term%1000 != 998 {
				t.Errorf("term %d is no operator's", term)
			}
			if !w.noted("the operator says that b is down, and answers for") {
				t.Error("nothing for the audit log")
			}
			w.run(30000)
			w.expect("web", "a")
			w.arb.up = true
			w.until("the arbiter is told", 5000, func() bool { return w.arb.records["r0"].Sole() })
			b.on()
			w.until("b counts again", 30000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
			w.expect("web", "a")
		}},
		{"both lose power, B returns first: it refuses until A is back", func(t *testing.T, w *world) {
			a, b := pieces(w)
			w.setLink("a", "b", false) // A was the sole writer
			w.run(10000)
			a.off()
			b.off()
			w.setLink("a", "b", true)
			w.run(30000)
			b.on()
			w.run(120000)
			w.expect("web", "")
			if !strings.Contains(b.status("web").Why, "stale") {
				t.Errorf("b says %q", b.status("web").Why)
			}
			a.on()
			w.until("a runs it", 40000, func() bool { return w.runsOn("web") == "a" })
		}},
		{"both lose power, A returns first, B is dead: W confirms A", func(t *testing.T, w *world) {
			a, b := pieces(w)
			b.off()
			w.run(10000)
			a.off()
			w.run(30000)
			a.on()
			w.until("a runs it", 40000, func() bool { return w.runsOn("web") == "a" })
		}},
		{"both lose power at once and return: it starts once, where it is preferred", func(t *testing.T, w *world) {
			a, b := pieces(w)
			a.off()
			b.off()
			w.run(30000)
			b.on()
			w.run(3000)
			a.on()
			w.until("web runs", 60000, func() bool { return w.runsOn("web") != "" })
			w.expect("web", "a")
			w.run(10000)
		}},
		{"A is stopped for 30 s and wakes: no write, no second guest", func(t *testing.T, w *world) {
			a, _ := pieces(w)
			a.sleep()
			w.until("b takes over", 15000, func() bool { return w.runsOn("web") == "b" })
			w.run(20000)
			a.wake()
			w.until("the old guest is gone", 500, func() bool { return !a.vms["web"].running })
			w.until("a counts again", 30000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
			w.expect("web", "b")
		}},
		{"W answers twice, and with an old grant: nothing happens", func(t *testing.T, w *world) {
			a, _ := pieces(w)
			old := w.arb.records["r0"]
			old.Term, old.Owner, old.InSync = 1, "b", []string{"b"}
			for id := OrderID(0); id < a.core.lastID+2; id += 3 {
				a.step(Event{Kind: ClaimDone, Order: id, Outcome: Granted, Record: old})
			}
			w.setLink("a", "b", false)
			w.run(5)
			a.step(Event{Kind: ClaimDone, Order: a.core.resources[0].claiming, Outcome: Granted, Record: old})
			w.run(20000)
			w.expect("web", "a")
		}},
		{"W is restored from an old backup: it is not believed, and filled again", func(t *testing.T, w *world) {
			_, b := pieces(w)
			backup := w.arb.records["r0"]
			w.setLink("a", "b", false)
			w.run(3000)
			w.setLink("a", "b", true)
			w.run(5000) // terms have gone on
			if w.arb.records["r0"].Term <= backup.Term {
				t.Fatal("the term did not grow")
			}
			now := w.arb.records["r0"].Term
			w.arb.records["r0"] = backup
			w.until("it is filled again", 10000, func() bool { return w.arb.records["r0"].Term > now })
			w.expect("web", "a")
			w.run(3000)
			if b.alarms() != "" {
				t.Errorf("alarms %q", b.alarms())
			}
		}},
		{"W is restored from an old backup and the link is cut: stopped, safe", func(t *testing.T, w *world) {
			backup := w.arb.records["r0"]
			w.setLink("a", "b", false)
			w.run(3000)
			w.setLink("a", "b", true)
			w.run(5000)
			w.setLink("a", "b", false)
			w.arb.records["r0"] = backup
			w.run(60000)
			if at := w.runsOn("web"); at == "b" {
				t.Error("b took over under a record that is not believed")
			}
			if al := w.host("b").alarms(); !strings.Contains(al, "restored from a backup") {
				t.Errorf("alarms %q", al)
			}
			w.setLink("a", "b", true)
			w.until("it is filled again", 30000, func() bool { return w.arb.records["r0"].Term > backup.Term+2 && w.runsOn("web") != "" })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.do(t, started(t, testConfig(ArbiterEtcd)).of(t)) })
	}
}

func (w *world) of(t *testing.T) *world { w.t = t; return w }

func (w *world) expect(service, host string) {
	w.t.Helper()
	if at := w.runsOn(service); at != host {
		w.t.Errorf("%d: %s runs on %q, want %q\n%s", w.now, service, at, host, w.describe())
	}
}

func (h *host) status(service string) ServiceStatus {
	for _, s := range h.core.Snapshot().Services {
		if s.Name == service {
			return s
		}
	}
	return ServiceStatus{}
}

func (h *host) alarms() string {
	text := ""
	for _, a := range h.core.Snapshot().Alarms {
		text += a.Text + "\n"
	}
	return text
}
