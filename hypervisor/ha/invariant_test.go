package ha

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// survivor is node b, a while after a, which owned web under term 5, fell silent.
// Nothing speaks against its taking over.
func survivor(t *testing.T, cfg Config) *Core {
	t.Helper()
	cfg.Self = "b"
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.begun, c.now, c.last, c.session, c.boot = 1, 100_000, 100_000, "s", "x"
	c.lease.reachable, c.lease.viewed, c.lease.contact, c.lease.until = true, true, 50_000, 105_000
	a := c.node("a")
	a.at, a.leaseKnow, a.leaseSeen, a.lease = 90_000, true, 95_000, arbiter.Lease{Node: "a", Session: "t"}
	a.beat = Beat{Session: "t", Services: []ServiceBeat{{Name: "web", Hash: "1", State: StateRunning}}}
	r := c.resource("r0")
	r.rec = arbiter.Record{Resource: "r0", Term: 5, Owner: "a", InSync: []string{"a", "b"}, Generation: 2}
	r.known.viewed, r.met, r.isSet = true, true, true
	r.st = Storage{Resource: "r0", Up: true, Role: Secondary, Disk: UpToDate, PeerDisk: DUnknown, Generation: 2, Term: 5, Promised: 5}
	s := c.service("web")
	s.isSeen, s.seen.Phase = true, PhaseStopped
	return c
}

// TestTakeoverConditions breaks the conditions of I5 and I6 one at a time.
func TestTakeoverConditions(t *testing.T) {
	for _, tt := range []struct {
		name   string
		breaks func(c *Core, r *resource, s *service, a *node)
		want   string // "" = it takes over
	}{
		{"nothing", func(*Core, *resource, *service, *node) {}, ""},
		{"I6: the data connection stands", func(_ *Core, r *resource, _ *service, _ *node) { r.st.Connected, r.st.PeerRole = true, Primary }, "a is connected, and Primary"},
		{"I6: the arbiter says that the lease lives", func(_ *Core, _ *resource, _ *service, a *node) { a.lease.Alive = true }, "its lease has not ended"},
		{"I6: the lease may live by this node's clock", func(c *Core, _ *resource, _ *service, a *node) { a.at = c.now - c.cfg.Timing.TTL }, "may not have ended on its own clock"},
		{"I6: the margin has not passed", func(c *Core, _ *resource, _ *service, a *node) { a.leaseSeen = c.now - 10 }, "may not have ended on its own clock"},
		{"I6: this process was stopped itself", func(c *Core, _ *resource, _ *service, _ *node) { c.woke = c.now - 1000 }, "may not have ended on its own clock"},
		{"I6: the arbiter was away, the owner may renew first", func(c *Core, _ *resource, _ *service, _ *node) { c.lease.contact = c.now - 100 }, "may not have ended on its own clock"},
		{"I6: a fence is confirmed, the lease lives", func(_ *Core, _ *resource, _ *service, a *node) { a.lease.Alive, a.fenced = true, true }, ""},
		{"I6: this copy does not count", func(_ *Core, r *resource, _ *service, _ *node) { r.rec.InSync = []string{"a"} }, "this copy is stale"},
		{"I6: it counted in another generation", func(_ *Core, r *resource, _ *service, _ *node) { r.st.Generation = 4 }, "this copy is of generation 0000000000000004"},
		{"I6: its disk is being resynced", func(_ *Core, r *resource, _ *service, _ *node) { r.st.Disk = Inconsistent }, "Inconsistent"},
		{"I6: protocol A, with bounds", func(_ *Core, r *resource, _ *service, _ *node) {
			r.cfg.Protocol, r.cfg.MaxLossBytes, r.cfg.MaxLossMS = "A", 1<<20, 5000
		}, ""},
		{"the disk was rolled back", func(_ *Core, r *resource, _ *service, _ *node) { r.st.TermUnknown = "the disk was rolled back" }, "may not be the newest"},
		{"I5: booted since, and the peer was not met", func(_ *Core, r *resource, _ *service, _ *node) { r.met = false }, "was not the sole writer"},
		{"I5: booted since, the owner, both counted", func(_ *Core, r *resource, _ *service, _ *node) { r.met, r.rec.Owner = false, "b" }, "was not the sole writer"},
		{"I5: booted since, sole by record, not by mark", func(_ *Core, r *resource, _ *service, _ *node) {
			r.met, r.rec.Owner, r.rec.InSync = false, "b", []string{"b"}
		}, "its own metadata does not"},
		{"I5: booted since, sole by record and mark", func(_ *Core, r *resource, _ *service, _ *node) {
			r.met, r.rec.Owner, r.rec.InSync, r.st.Marked = false, "b", []string{"b"}, true
		}, ""},
		{"this node has no lease", func(c *Core, _ *resource, _ *service, _ *node) { c.lease.until = c.now }, "this node has no lease"},
		{"the arbiter is behind", func(_ *Core, r *resource, _ *service, _ *node) { r.known.behind = true }, "the arbiter knows less than the copies"},
		{"the arbiter has no record", func(_ *Core, r *resource, _ *service, _ *node) { r.rec = noRecord("r0") }, "no node has owned it yet"},
		{"the arbiter was not looked at", func(_ *Core, r *resource, _ *service, _ *node) { r.known.viewed = false }, "has not been reached yet"},
		{"files differ", func(_ *Core, _ *resource, s *service, _ *node) { s.cfg.Hash = "2" }, "its file differs between b and a"},
		{"protocol A, and the owner has declared another bound", func(_ *Core, r *resource, _ *service, n *node) {
			r.cfg.Protocol, r.cfg.MaxLossBytes, r.cfg.MaxLossMS = "A", 1<<20, 5000
			n.beat.Copies = []Copy{{Resource: "r0", MaxLossBytes: 2 << 20, MaxLossMS: 5000}}
		}, "r0: b and a declare different bounds of what may be lost (at most 1024 KiB, or 5.0 s; at most 2048 KiB, or 5.0 s)"},
		{"protocol A, and the owner has declared the same bound", func(_ *Core, r *resource, _ *service, n *node) {
			r.cfg.Protocol, r.cfg.MaxLossBytes, r.cfg.MaxLossMS = "A", 1<<20, 5000
			n.beat.Copies = []Copy{{Resource: "r0", MaxLossBytes: 1 << 20, MaxLossMS: 5000}}
		}, ""},
		{"protocol A, another bound, and the owner has released it", func(_ *Core, r *resource, _ *service, n *node) {
			r.cfg.Protocol, r.cfg.MaxLossBytes, r.cfg.MaxLossMS, r.rec.Released = "A", 1<<20, 5000, true
			n.beat.Copies = []Copy{{Resource: "r0", MaxLossBytes: 2 << 20, MaxLossMS: 5000}}
		}, ""},
		{"the VM's failover is manual", func(c *Core, _ *resource, s *service, _ *node) { s.cfg.Manual = true }, "failover is manual"},
		{"the VM's failover is manual, and its owner was called off for another VM's sake", func(c *Core, _ *resource, s *service, n *node) {
			s.cfg.Manual, n.fenced = true, true
		}, "a is off, and failover is manual"},
		{"this node is standby", func(c *Core, _ *resource, _ *service, _ *node) {
			c.learnWish(Wish{Node: "b", Target: TargetStandby, Version: 1, By: "a"})
		}, "standby"},
		{"the operator has stopped it", func(c *Core, _ *resource, _ *service, _ *node) {
			c.learnWish(Wish{Service: "web", Target: TargetStopped, Version: 1, By: "a"})
		}, "-"},
		{"the hypervisor is missing", func(_ *Core, _ *resource, s *service, _ *node) { s.seen.Problem = "qemu is not installed" }, "qemu is not installed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := survivor(t, testConfig(ArbiterEtcd))
			s := c.service("web")
			tt.breaks(c, c.resource("r0"), s, c.node("a"))
			claimed := false
			for _, o := range c.Step(c.now+1, Event{Kind: Ticked}) {
				claimed = claimed || o.Kind == Claim && o.Resource == "r0"
			}
			if claimed != (tt.want == "") || tt.want != "" && tt.want != "-" && !strings.Contains(s.why.text, tt.want) {
				t.Errorf("claimed %v, says %q, want %q", claimed, s.why.text, tt.want)
			}
		})
	}
}

// TestGrowth is I4: the peer counts again when both say that they are equal, and not
// before.
func TestGrowth(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(r *resource, cp *Copy)
		want   bool
	}{
		{"both equal", func(*resource, *Copy) {}, true},
		{"dirty blocks here", func(r *resource, _ *Copy) { r.st.DirtyBytes = 4096 }, false},
		{"dirty blocks there", func(_ *resource, cp *Copy) { cp.DirtyBytes = 4096 }, false},
		{"another generation there", func(_ *resource, cp *Copy) { cp.Generation = 4 }, false},
		{"the peer's disk is Inconsistent", func(r *resource, _ *Copy) { r.st.PeerDisk = Inconsistent }, false},
		{"polluxd may write alone", func(r *resource, _ *Copy) { r.st.Sole = true }, false},
		{"the mark is set", func(r *resource, _ *Copy) { r.st.Marked = true }, false},
		{"polluxd has not taken the record's term up", func(r *resource, _ *Copy) { r.rec.Term = 6 }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := idleCore(t, 1)
			r := c.resources[0]
			r.rec.InSync = []string{"a"}
			tt.change(r, &c.node("b").beat.Copies[0])
			c.dirtyAll()
			claimed := false
			for _, o := range c.Step(1000, Event{Kind: Ticked}) {
				claimed = claimed || o.Kind == Claim && o.Resource == r.name && len(o.Claim.InSync) == 2
			}
			if claimed != tt.want {
				t.Errorf("claimed both: %v, want %v", claimed, tt.want)
			}
		})
	}
}

// TestLateGrant: a grant that is not higher than what is known does nothing, nor does
// the answer to an order that was answered.
func TestLateGrant(t *testing.T) {
	c := survivor(t, testConfig(ArbiterEtcd))
	var claim Order
	for _, o := range c.Step(c.now+1, Event{Kind: Ticked}) {
		if o.Kind == Claim && o.Resource == "r0" {
			claim = o
		}
	}
	old := arbiter.Record{Resource: "r0", Term: 5, Owner: "b", InSync: []string{"b"}}
	for _, o := range c.Step(c.now+1, Event{Kind: ClaimDone, Order: claim.ID, Outcome: Granted, Record: old}) {
		if o.Kind == PromiseTerm || o.Kind == Promote {
			t.Errorf("an old grant brings forth %v", o.Kind)
		}
	}
	newer := old
	newer.Term = 9
	for _, o := range c.Step(c.now+1, Event{Kind: ClaimDone, Order: claim.ID, Outcome: Granted, Record: newer}) {
		if o.Kind == PromiseTerm || o.Kind == Promote {
			t.Errorf("a second answer brings forth %v", o.Kind)
		}
	}
}

// TestIncarnations is I10: no two starts have one name, also after a restart of
// polluxha under the same term.
func TestIncarnations(t *testing.T) {
	w := started(t, testConfig(ArbiterEtcd))
	a := w.host("a")
	used := map[string]bool{a.vms["web"].inc: true}
	for i := range 3 {
		if i == 1 {
			a.killHA()
			a.startHA()
		}
		a.endVM("web")
		w.run(100)
		w.until("it runs again", 20_000, func() bool { return w.runsOn("web") == "a" })
		if inc := a.vms["web"].inc; used[inc] {
			t.Errorf("incarnation %q twice", inc)
		}
		used[a.vms["web"].inc] = true
	}
}
