package ha

import (
	"slices"
	"strings"
	"testing"
)

// started is a cluster in which web runs on a, and both copies count.
func started(t *testing.T, cfg Config) *world {
	t.Helper()
	w := newWorld(t, cfg)
	for _, h := range w.hosts {
		h.on()
	}
	w.until("web runs on a", 15000, func() bool { return w.runsOn("web") == "a" && w.host("a").vms["web"].ips })
	w.run(3000)
	if r := w.host("a").arb.records["r0"]; r.Owner != "a" || len(r.InSync) != 2 {
		t.Fatalf("record %+v", r)
	}
	return w
}

func withTwo(cfg Config) Config {
	cfg.Services = slices.Clone(cfg.Services)
	cfg.Resources = append(cfg.Resources, Resource{Name: "r1", Nodes: [2]string{"a", "b"}, Protocol: "C"})
	cfg.Services[0].Resources = []string{"r0", "r1"}
	return cfg
}

// commanded gives an operator's command and returns the last answer.
func (h *host) commanded(cmd Command) Order {
	cmd.ID = uint64(len(h.answers)) + 100
	h.step(Event{Kind: Commanded, Command: cmd})
	h.w.run(10)
	return h.lastAnswer()
}

func (h *host) lastAnswer() Order {
	if len(h.answers) == 0 {
		return Order{}
	}
	return h.answers[len(h.answers)-1]
}

func (w *world) noted(part string) bool {
	return slices.ContainsFunc(w.notes, func(n string) bool { return strings.Contains(n, part) })
}

// TestScenes are the stories beside the behaviour table.
func TestScenes(t *testing.T) {
	etcd, fence, manual := testConfig(ArbiterEtcd), testConfig(ArbiterFence), testConfig(ArbiterManual)
	for _, tt := range []struct {
		name string
		cfg  Config
		do   func(t *testing.T, w *world, a, b *host)
	}{
		{"nothing happens for an hour", etcd, func(t *testing.T, w *world, a, b *host) {
			inc := a.vms["web"].inc
			w.run(3600_000)
			w.expect("web", "a")
			if a.vms["web"].inc != inc || w.arb.records["r0"].Term != 1 {
				t.Error("something did happen")
			}
		}},
		{"planned move: the storage is handed over within 500 ms", etcd, func(t *testing.T, w *world, a, b *host) {
			a.commanded(Command{Verb: MoveVerb, Service: "web", Node: "b"})
			w.until("stopped", 1000, func() bool { return !a.vms["web"].running })
			took := w.until("promoted there", 1000, func() bool { s := w.pair("r0").of("b"); return s.role == Primary && s.inc != "" })
			if took > 500 {
				t.Errorf("the hand-over took %d ms", took)
			}
			w.until("it runs on b", 1000, func() bool { return w.runsOn("web") == "b" })
			w.run(1000)
			if got := a.lastAnswer(); !got.Done || got.Err != "" {
				t.Errorf("answer %+v", got)
			}
			if a.vms["web"].ips || !b.vms["web"].ips {
				t.Error("the addresses are not where the guest is")
			}
			w.run(60_000)
			w.expect("web", "b") // failback is manual
			if st := b.status("web"); !strings.Contains(st.Advice, "vm move web --to a") {
				t.Errorf("advice %q", st.Advice)
			}
		}},
		{"a move back at once waits for nobody", withTwo(etcd), func(t *testing.T, w *world, a, b *host) {
			for _, to := range []string{"b", "a", "b"} {
				a.commanded(Command{Verb: MoveVerb, Service: "web", Node: to})
				took := w.until("it runs on "+to, 8000, func() bool { return w.runsOn("web") == to })
				if took > 1500 {
					t.Errorf("the move to %s took %d ms", to, took)
				}
			}
			b.commanded(Command{Verb: EvacuateVerb, Node: "b"})
			if took := w.until("it runs on a", 8000, func() bool { return w.runsOn("web") == "a" }); took > 1500 {
				t.Errorf("the evacuation took %d ms", took)
			}
		}},
		{"planned move of two resources", withTwo(etcd), func(t *testing.T, w *world, a, b *host) {
			a.commanded(Command{Verb: MoveVerb, Service: "web"})
			w.until("it runs on b", 2000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"a move to a node that is not in sync waits", etcd, func(t *testing.T, w *world, a, b *host) {
			w.setLink("a", "b", false)
			w.run(2000)
			w.setLink("a", "w", true)
			b.commanded(Command{Verb: MoveVerb, Service: "web", Node: "b", NoWait: true})
			w.run(8000)
			w.expect("web", "a")
			w.setLink("a", "b", true)
			w.until("it runs on b", 20000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"both resources are taken over, or none", withTwo(etcd), func(t *testing.T, w *world, a, b *host) {
			r := w.arb.records["r1"]
			a.off()
			w.run(100)
			r.InSync = []string{"a"}
			w.arb.records["r1"] = r
			w.run(60_000)
			w.expect("web", "")
			if rec := w.arb.records["r0"]; rec.Owner != "a" {
				t.Errorf("r0 was taken: %+v", rec)
			}
			if !strings.Contains(b.status("web").Why, "r1") {
				t.Errorf("b says %q", b.status("web").Why)
			}
		}},
		{"stop is remembered, also by a reboot", etcd, func(t *testing.T, w *world, a, b *host) {
			b.commanded(Command{Verb: StopVerb, Service: "web"})
			w.until("it is stopped", 2000, func() bool { return !a.vms["web"].running })
			w.run(1000)
			if got := b.lastAnswer(); !got.Done || got.Err != "" {
				t.Errorf("answer %+v", got)
			}
			if !w.arb.records["r0"].Released || a.vms["web"].ips {
				t.Errorf("record %+v", w.arb.records["r0"])
			}
			a.off()
			b.off()
			a.on()
			b.on()
			w.run(60_000)
			w.expect("web", "")
			if st := b.status("web"); st.Target != TargetStopped || st.State != StateStopped || st.Why != "" {
				t.Errorf("status %+v", st)
			}
			b.commanded(Command{Verb: StartVerb, Service: "web", Node: "b"})
			w.until("it runs on b", 15000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"kill does not ask the guest", etcd, func(t *testing.T, w *world, a, b *host) {
			a.commanded(Command{Verb: KillVerb, Service: "web"})
			if took := w.until("it is gone", 1000, func() bool { return !a.vms["web"].running }); took > 100 {
				t.Errorf("took %d ms", took)
			}
			w.run(30_000)
			w.expect("web", "")
		}},
		{"restart is a new incarnation on the same node", etcd, func(t *testing.T, w *world, a, b *host) {
			inc := a.vms["web"].inc
			b.commanded(Command{Verb: RestartVerb, Service: "web"})
			w.until("it was started anew", 3000, func() bool {
				if v := a.vms["web"]; v.running && v.inc != inc {
					return true
				}
				if i := slices.IndexFunc(b.answers, func(o Order) bool { return o.Done }); i >= 0 {
					t.Fatalf("answered before it runs again: %+v", b.answers[i])
				}
				return false
			})
			w.run(10_000)
			w.expect("web", "a")
			if got := b.lastAnswer(); !got.Done || got.Err != "" {
				t.Errorf("answer %+v", got)
			}
		}},
		{"a restart of a guest that can't be ended fails", etcd, func(t *testing.T, w *world, a, b *host) {
			inc := a.vms["web"].inc
			a.noKill = true
			a.commanded(Command{Verb: RestartVerb, Service: "web"})
			w.until("it is answered", 90_000, func() bool { return len(a.answers) > 0 && a.lastAnswer().Done })
			if got := a.lastAnswer(); !strings.Contains(got.Err, "can't be ended: it does not die") {
				t.Errorf("answer %+v", got)
			}
			w.expect("web", "a")
			a.noKill = false
			w.until("it is started anew", 5000, func() bool { v := a.vms["web"]; return v.running && v.inc != inc })
		}},
		{"a restart of a guest that does not come up fails", etcd, func(t *testing.T, w *world, a, b *host) {
			b.noStart, a.noStart = "no such kernel", "no such kernel"
			a.commanded(Command{Verb: RestartVerb, Service: "web"})
			w.until("it is answered", 120_000, func() bool { return len(a.answers) > 0 && a.lastAnswer().Done })
			if got := a.lastAnswer(); !strings.Contains(got.Err, "no such kernel") {
				t.Errorf("answer %+v", got)
			}
		}},
		{"disabled: nobody starts it, nobody stops it", etcd, func(t *testing.T, w *world, a, b *host) {
			b.commanded(Command{Verb: DisableVerb, Service: "web"})
			w.run(2000)
			w.expect("web", "a")
			b.off() // its terms are cared for nevertheless
			w.run(2000)
			w.expect("web", "a")
			b.on()
			w.run(5000)
			a.endVM("web")
			w.run(30_000)
			w.expect("web", "")
			b.commanded(Command{Verb: EnableVerb, Service: "web"})
			w.until("it runs", 15_000, func() bool { return w.runsOn("web") == "a" })
		}},
		{"a guest that dies is started again, later each time, then on the other node", etcd, func(t *testing.T, w *world, a, b *host) {
			var gaps []Tick
			for range 3 {
				a.endVM("web")
				gaps = append(gaps, w.until("it runs again", 20_000, func() bool { return w.runsOn("web") == "a" }))
			}
			if gaps[0] < 1000 || gaps[1] < 2000 || gaps[2] < 4000 {
				t.Errorf("restarted after %v ms", gaps)
			}
			a.endVM("web")
			w.until("it moved", 20_000, func() bool { return w.runsOn("web") == "b" })
			for range 4 {
				b.endVM("web")
				w.run(15_000)
			}
			w.expect("web", "")
			if st := b.status("web"); st.State != StateFailed || !strings.Contains(st.Advice, "vm start web") {
				t.Errorf("status %+v", st)
			}
			a.commanded(Command{Verb: StartVerb, Service: "web"})
			w.until("it runs again", 20_000, func() bool { return w.runsOn("web") != "" })
		}},
		{"a guest whose monitor fails is started again", etcd, func(t *testing.T, w *world, a, b *host) {
			inc := a.vms["web"].inc
			a.vms["web"].failed = true
			a.reportVM("web")
			w.until("it was started anew", 5000, func() bool { v := a.vms["web"]; return v.running && v.inc != inc && !v.failed })
			if !w.noted("web: it is stopped: its monitor says that it does not serve: no answer") || !w.noted("does not serve: no answer (1 of 3)") || w.noted("by itself") {
				t.Errorf("nobody is told why: %q", w.notes)
			}
			a.endVM("web")
			w.run(1000)
			if !w.noted("web: it ended by itself (2 of 3)") {
				t.Errorf("an end of its own is taken for the monitor's: %q", w.notes)
			}
		}},
		{"what never came up is started again at the operator's word", etcd, func(t *testing.T, w *world, a, b *host) {
			a.commanded(Command{Verb: StopVerb, Service: "web"})
			w.run(2000)
			a.noStart, b.noStart = "no such kernel", "no such kernel"
			a.commanded(Command{Verb: StartVerb, Service: "web"})
			failed := func(h *host) bool { return h.status("web").State == StateFailed }
			w.until("both nodes have failed", 300_000, func() bool { return failed(a) || failed(b) })
			w.run(2000)
			for _, h := range []*host{a, b} { // whichever node is asked
				if st := h.status("web"); st.State != StateFailed || st.Level != Critical || !strings.Contains(st.Why, "no such kernel") || !strings.Contains(st.Advice, "vm start web") {
					t.Errorf("%s says %s: %q, %q", h.name, st.State, st.Why, st.Advice)
				}
			}
			a.noStart, b.noStart = "", ""
			a.commanded(Command{Verb: StartVerb, Service: "web"})
			w.until("it runs", 20_000, func() bool { return w.runsOn("web") != "" })
		}},
		{"an arbiter that has no record raises an alarm only if it stays so", etcd, func(t *testing.T, w *world, a, b *host) {
			w.setLink("a", "b", false)
			w.run(3000)
			delete(w.arb.records, "r0")
			w.run(5500)
			if al := b.alarms(); strings.Contains(al, "no record") {
				t.Errorf("at once: %q", al)
			}
			w.run(6000)
			if al := b.alarms(); !strings.Contains(al, "no record of it, and its copies have promised term") {
				t.Errorf("later: %q", al)
			}
		}},
		{"only the address of a deposed owner is taken without a question", etcd, func(t *testing.T, w *world, a, b *host) {
			if a.deposed {
				t.Error("the first start is told that it deposes somebody")
			}
			a.commanded(Command{Verb: MoveVerb, Service: "web", Node: "b"})
			w.until("it runs on b", 8000, func() bool { return w.runsOn("web") == "b" })
			if b.deposed {
				t.Error("a move is told that it deposes somebody")
			}
			w.run(3000)
			b.off()
			w.until("it is taken over", 20_000, func() bool { return w.runsOn("web") == "a" })
			if !a.deposed {
				t.Error("a takeover is not told that it deposes somebody")
			}
		}},
		{"who can't take over protects nobody", etcd, func(t *testing.T, w *world, a, b *host) {
			for _, h := range []*host{a, b} {
				if p := h.status("web").Protection; p != covered {
					t.Errorf("%s says %q", h.name, p)
				}
			}
			b.killHA()
			w.run(8000)
			if p := a.status("web").Protection; !strings.Contains(p, "not against host loss: b is silent") {
				t.Errorf("b silent: %q", p)
			}
			b.startHA()
			w.run(3000)
			b.commanded(Command{Verb: StandbyVerb, Node: "b"})
			w.run(3000)
			for _, h := range []*host{a, b} {
				if p := h.status("web").Protection; !strings.Contains(p, "not against host loss: b is standby") {
					t.Errorf("b standby: %s says %q", h.name, p)
				}
			}
		}},
		{"an arbiter of two voters is no good verdict", etcd, func(t *testing.T, w *world, a, b *host) {
			for voters, want := range []string{"each node's loss is covered", "1 voter, so", "2 voters, so", "each node's loss is covered"} {
				w.arb.voters = voters
				w.run(5000)
				sn := a.core.Snapshot()
				if !strings.Contains(sn.Verdict, want) || (sn.Level == "") != (voters%3 == 0) || (sn.Services[0].Protection == covered) != (voters%3 == 0) {
					t.Errorf("%d voters: %s %q, %q", voters, sn.Level, sn.Verdict, sn.Services[0].Protection)
				}
			}
		}},
		{"what can't be started here is started there", etcd, func(t *testing.T, w *world, a, b *host) {
			a.commanded(Command{Verb: StopVerb, Service: "web"})
			w.run(2000)
			a.noStart = "the hypervisor is not installed"
			b.commanded(Command{Verb: StartVerb, Service: "web"})
			w.until("it runs on b", 60_000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"polluxha starts anew: what it finds is adopted", etcd, func(t *testing.T, w *world, a, b *host) {
			inc := a.vms["web"].inc
			a.killHA()
			w.run(200)
			a.startHA()
			w.run(1000)
			b.off()
			w.run(1000)
			w.expect("web", "a")
			if a.vms["web"].inc != inc {
				t.Error("it was started anew")
			}
		}},
		{"polluxha starts anew, and another node owns it: killed and demoted", etcd, func(t *testing.T, w *world, a, b *host) {
			w.mayDouble = true // nobody is there to kill it
			a.killHA()
			w.run(1000)
			w.setLink("a", "b", false)
			w.until("b takes over", 15_000, func() bool { return w.runsOn("web") == "b" })
			a.startHA()
			w.until("it is gone on a", 1000, func() bool { return !a.vms["web"].running && w.pair("r0").of("a").role == Secondary })
			w.setLink("a", "b", true)
			w.run(5000)
			w.expect("web", "b")
		}},
		{"standby drains the node, and nothing comes back before online", etcd, func(t *testing.T, w *world, a, b *host) {
			b.commanded(Command{Verb: StandbyVerb, Node: "a"})
			w.until("it runs on b", 3000, func() bool { return w.runsOn("web") == "b" })
			w.run(1000)
			if got := b.lastAnswer(); !got.Done || got.Err != "" {
				t.Errorf("answer %+v", got)
			}
			a.off()
			a.on()
			w.run(30_000)
			b.off()
			w.run(60_000)
			w.expect("web", "")
			a.commanded(Command{Verb: OnlineVerb, Node: "a"})
			w.run(5000)
			b.on()
			w.until("it runs", 60_000, func() bool { return w.runsOn("web") != "" })
		}},
		{"standby with nowhere to go: it runs on", etcd, func(t *testing.T, w *world, a, b *host) {
			b.off()
			w.run(10_000)
			a.commanded(Command{Verb: StandbyVerb, Node: "a", NoWait: true})
			w.run(10_000)
			w.expect("web", "a")
			if st := a.status("web"); !strings.Contains(st.Why, "standby") {
				t.Errorf("why %q", st.Why)
			}
		}},
		{"evacuate moves all once", etcd, func(t *testing.T, w *world, a, b *host) {
			b.commanded(Command{Verb: EvacuateVerb, Node: "a"})
			w.until("it runs on b", 3000, func() bool { return w.runsOn("web") == "b" })
			w.run(1000)
			b.off()
			w.until("it comes back when b dies", 15_000, func() bool { return w.runsOn("web") == "a" })
		}},
		{"leave ends what can't move, and the lease", etcd, func(t *testing.T, w *world, a, b *host) {
			a.commanded(Command{Verb: LeaveVerb, Node: "a"})
			took := w.until("it runs on b", 4000, func() bool { return w.runsOn("web") == "b" })
			w.run(2000)
			if w.arb.leases["a"] != nil || took > 4000 {
				t.Error("a has its lease")
			}
			b.commanded(Command{Verb: LeaveVerb, Node: "b"})
			w.run(5000)
			w.expect("web", "")
			if !w.arb.records["r0"].Released {
				t.Error("not released")
			}
		}},
		{"failback in its window, as a planned move", failback(etcd), func(t *testing.T, w *world, a, b *host) {
			a.off()
			w.until("b takes over", 15_000, func() bool { return w.runsOn("web") == "b" })
			a.on()
			w.run(60_000)
			w.expect("web", "b")
			w.run(5 * 60_000)
			w.expect("web", "a")
			if w.noted("ended here at once") {
				t.Error("it was killed")
			}
		}},
		{"not enough memory: refused, with the numbers", etcd, func(t *testing.T, w *world, a, b *host) {
			b.health = Health{MemoryBytes: 8 << 30, FreeBytes: 100 << 20}
			b.step(Event{Kind: HealthChanged, Health: b.health})
			w.run(2000)
			if al := a.alarms(); !strings.Contains(al, "if a dies, b needs 1024 MiB") {
				t.Errorf("no warning of what b can't take: %q", al)
			}
			a.off()
			w.run(60_000)
			w.expect("web", "")
			if st := b.status("web"); !strings.Contains(st.Why, "b has 100 MiB of memory free, and 1024 MiB are needed") {
				t.Errorf("why %q", st.Why)
			}
			b.step(Event{Kind: HealthChanged, Health: Health{MemoryBytes: 8 << 30, FreeBytes: 4 << 30}})
			w.until("b takes over", 5000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"a full node that would have to take nothing is no alarm", etcd, func(t *testing.T, w *world, a, b *host) {
			cfg := testConfig(ArbiterEtcd)
			cfg.Self, cfg.ReserveBytes = "a", 256<<20
			a.step(Event{Kind: Reconfigured, Config: &cfg})
			a.health = Health{MemoryBytes: 8 << 30, FreeBytes: 100 << 20}
			a.step(Event{Kind: HealthChanged, Health: a.health})
			w.run(30_000)
			if al := a.alarms(); strings.Contains(al, "a needs") {
				t.Errorf("alarms %q", al)
			}
		}},
		{"files that differ block automatic failover", etcd, func(t *testing.T, w *world, a, b *host) {
			cfg := testConfig(ArbiterEtcd)
			cfg.Self, cfg.Services[0].Hash = "b", "2"
			b.step(Event{Kind: Reconfigured, Config: &cfg})
			w.run(2000)
			if st := a.status("web"); st.SameFile || !strings.Contains(st.Why, "differs") {
				t.Errorf("status %+v", st)
			}
			a.off()
			w.run(60_000)
			w.expect("web", "")
			if st := b.status("web"); !strings.Contains(st.Why, "its file differs between b and a") {
				t.Errorf("why %q", st.Why)
			}
		}},
		{"the operator's override names the peer, the loss, and wants the name typed", etcd, func(t *testing.T, w *world, a, b *host) {
			w.setLink("a", "b", false)
			w.run(10_000)
			a.off()
			w.run(20_000)
			for _, c := range []struct {
				cmd  Command
				want string
			}{
				{Command{}, "--peer-is-down a"},
				{Command{PeerIsDown: "c"}, "the other node of it is a"},
				{Command{PeerIsDown: "a"}, "--force"},
				{Command{PeerIsDown: "a", Force: true}, "type the name of the VM: web"},
			} {
				c.cmd.Verb, c.cmd.Service = FailoverVerb, "web"
				if got := b.commanded(c.cmd); !got.Done || !strings.Contains(got.Err, c.want) {
					t.Errorf("%+v: %q", c.cmd, got.Err)
				}
			}
			w.mayLose = true
			b.commanded(Command{Verb: FailoverVerb, Service: "web", PeerIsDown: "a", Force: true, Confirm: "web"})
			w.until("it runs on b", 5000, func() bool { return w.runsOn("web") == "b" })
			if !w.noted("the operator says that a is down, and answers for") {
				t.Error("not in the audit log")
			}
			if r := w.arb.records["r0"]; r.Owner != "b" || !r.Sole() {
				t.Errorf("record %+v", r)
			}
		}},
		{"fence: B dies, A shoots it, and goes on", fence, func(t *testing.T, w *world, a, b *host) {
			w.setLink("a", "b", false)
			b.asleep = true
			w.run(1000)
			w.expect("web", "")
			w.until("a goes on", 12_000, func() bool { return w.runsOn("web") == "a" })
			if a.fences != 1 || b.alive {
				t.Errorf("%d shots, b alive %v", a.fences, b.alive)
			}
			w.setLink("a", "b", true)
			b.on()
			w.until("b counts again", 30_000, func() bool { return len(a.arb.records["r0"].InSync) == 2 })
			w.run(60_000)
			w.expect("web", "a")
			if a.fences+b.fences != 1 {
				t.Errorf("%d shots by a, %d by b", a.fences, b.fences)
			}
		}},
		{"fence: only the replication link is cut, and nobody is shot", fence, func(t *testing.T, w *world, a, b *host) {
			w.setLink("D", "r0", false)
			w.until("a goes on with b's word", 3000, func() bool { return a.arb.record("r0").Sole() && b.arb.record("r0").Sole() && w.runsOn("web") == "a" })
			w.run(60_000)
			w.expect("web", "a")
			a.off()
			w.run(60_000)
			w.expect("web", "") // b is stale, shot or not
			if a.fences != 0 {
				t.Errorf("%d shots by a", a.fences)
			}
		}},
		{"fence: A dies, B shoots it and takes over", fence, func(t *testing.T, w *world, a, b *host) {
			a.off()
			w.until("b takes over", 20_000, func() bool { return w.runsOn("web") == "b" })
			if b.fences != 1 {
				t.Errorf("%d shots", b.fences)
			}
		}},
		{"fence: the link is cut, and there is no deathmatch", fence, func(t *testing.T, w *world, a, b *host) {
			w.setLink("a", "b", false)
			w.until("a goes on", 12_000, func() bool { return w.runsOn("web") == "a" })
			for range 3 {
				b.on()
				w.run(60_000)
			}
			w.expect("web", "a")
			if a.fences != 1 || b.fences != 0 {
				t.Errorf("%d shots by a, %d by b", a.fences, b.fences)
			}
		}},
		{"fence: the shot fails: frozen, one shot only, and a sentence", fence, func(t *testing.T, w *world, a, b *host) {
			w.setLink("a", "Fb", false)
			b.off()
			w.run(120_000)
			w.expect("web", "")
			if a.fences != 1 {
				t.Errorf("%d shots", a.fences)
			}
			if st := a.status("web"); !strings.Contains(st.Advice, "gives no answer") || st.State != StateFrozen {
				t.Errorf("status %+v", st)
			}
			a.killHA()
			a.startHA()
			w.run(60_000)
			if a.fences != 1 {
				t.Errorf("%d shots after a restart", a.fences)
			}
			if got := a.commanded(Command{Verb: FailoverVerb, Service: "web", PeerIsDown: "b", Confirm: "web"}); strings.Contains(got.Err, "refused") || !slices.Equal(a.confirmed, []string{"b"}) {
				t.Errorf("the arbiter was told that %v is off: %+v", a.confirmed, got)
			}
			w.until("it goes on", 1000, func() bool { return w.runsOn("web") == "a" })
			if !w.noted("b is off, says an operator") {
				t.Error("nobody was told")
			}
		}},
		{"manual: A goes on alone, B never takes over by itself", manual, func(t *testing.T, w *world, a, b *host) {
			b.off()
			w.run(2000)
			w.expect("web", "a")
			b.on()
			w.until("b counts again", 30_000, func() bool { return len(a.arb.records["r0"].InSync) == 2 })
			w.run(5000)
			if st := b.status("web"); !strings.Contains(st.Protection, "protected against disk loss, not against host loss") {
				t.Errorf("protection %q", st.Protection)
			}
			a.off()
			w.run(120_000)
			w.expect("web", "")
			if st := b.status("web"); !strings.Contains(st.Advice, "--peer-is-down a") {
				t.Errorf("status %+v", st)
			}
			b.commanded(Command{Verb: FailoverVerb, Service: "web", PeerIsDown: "a", Confirm: "web"})
			w.until("it runs on b", 5000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"manual: a planned move works", manual, func(t *testing.T, w *world, a, b *host) {
			a.commanded(Command{Verb: MoveVerb, Service: "web", Node: "b"})
			w.until("it runs on b", 3000, func() bool { return w.runsOn("web") == "b" })
		}},
		{"there is one leader, and another one when it dies", etcd, func(t *testing.T, w *world, a, b *host) {
			lead := func() (names string) {
				for _, h := range w.hosts {
					if h.alive && h.core.leader.lead {
						names += h.name
					}
				}
				return names
			}
			if lead() != "a" {
				t.Fatalf("leaders %q", lead())
			}
			a.off()
			w.until("b leads", 10_000, func() bool { return lead() == "b" })
			for _, n := range b.core.Snapshot().Nodes {
				if want := map[string]NodeState{"a": Error, "b": Leader, "w": Follower}[n.Name]; n.State != want {
					t.Errorf("%s is %s (%s), want %s", n.Name, n.State, n.Why, want)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := started(t, tt.cfg)
			tt.do(t, w, w.host("a"), w.host("b"))
		})
	}
}

func failback(cfg Config) Config {
	cfg.Services = slices.Clone(cfg.Services)
	cfg.Services[0].Failback, cfg.Services[0].WindowFrom, cfg.Services[0].WindowTo = FailbackWindow, 3, 30
	return cfg
}

// What has become equal counts again, also while nothing runs.
func TestIdleOwnerCountsThePeerAgain(t *testing.T) {
	w := started(t, testConfig(ArbiterEtcd))
	a, b := w.host("a"), w.host("b")
	b.off()
	w.run(5000)
	a.commanded(Command{Verb: StopVerb, Service: "web", NoWait: true})
	w.run(3000)
	if r := w.arb.records["r0"]; !r.Sole() || !r.Released {
		t.Fatalf("record %+v", r)
	}
	b.on()
	w.until("both count", 10_000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
	w.until("and it is released", 5000, func() bool { return w.arb.records["r0"].Released })
	a.off()
	w.run(1000)
	b.commanded(Command{Verb: StartVerb, Service: "web"})
	w.until("b starts it", 20_000, func() bool { return w.runsOn("web") == "b" })
}
