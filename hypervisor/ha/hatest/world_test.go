package hatest

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// A puppet decides nothing; the test gives the orders.
type puppet struct{ done map[ha.OrderID]ha.Event }

func (p *puppet) Step(_ ha.Tick, e ha.Event) []ha.Order {
	if e.Order != 0 {
		p.done[e.Order] = e
	}
	return nil
}

func (p *puppet) Snapshot() ha.Snapshot { return ha.Snapshot{} }

// A stage is a World whose managers are puppets.
type stage struct {
	t    *testing.T
	w    *World
	last ha.OrderID
}

func newStage(t *testing.T, seed uint64) *stage {
	cfg := DefaultConfig()
	cfg.Seed = seed
	w := newWorld(cfg, &Memory{})
	w.decide = func() decider { return &puppet{map[ha.OrderID]ha.Event{}} }
	w.KeepTrace()
	for _, h := range w.Hosts {
		h.Boot()
	}
	w.Run(10_000)
	return &stage{t: t, w: w}
}

// order has it carried out, and returns the event that answers it.
func (s *stage) order(h int, o ha.Order) ha.Event {
	s.t.Helper()
	s.last++
	o.ID = s.last
	m := s.w.Hosts[h].manager
	m.carryOut([]ha.Order{o})
	p := m.core.(*puppet)
	s.w.RunUntil(20_000, func() bool { return p.done[o.ID].Order != 0 })
	if e, ok := p.done[o.ID]; ok {
		return e
	}
	if s.w.failure == nil {
		s.t.Fatalf("%v was not answered\n%s", o.Kind, s.w.Trace())
	}
	return ha.Event{}
}

// run has host h take the VM over under a term that the arbiter gives for these copies.
func (s *stage) run(h int, inc string, inSync ...string) {
	s.t.Helper()
	host := s.w.Hosts[h]
	rec := s.w.Arbiter.record("r0a")
	e := s.order(h, ha.Order{Kind: ha.Claim, Claim: arbiter.Claim{
		Resource: "r0a", Node: host.name, Seen: rec.Term, InSync: inSync, Members: []string{"a", "b"},
	}})
	if e.Outcome != ha.Granted {
		s.t.Fatalf("claim: %v %s", e.Outcome, e.Err)
	}
	s.start(h, inc, e.Record)
}

func (s *stage) start(h int, inc string, rec arbiter.Record) {
	s.t.Helper()
	for _, o := range []ha.Order{
		{Kind: ha.PromiseTerm, Resource: "r0a", Term: rec.Term},
		{Kind: ha.Promote, Resource: "r0a", Term: rec.Term, Sole: rec.Sole()},
		{Kind: ha.Export, Resource: "r0a", Incarnation: inc},
		{Kind: ha.StartService, Service: "vm0", Incarnation: inc},
	} {
		if e := s.order(h, o); e.Err != "" && s.w.failure == nil {
			s.t.Fatalf("%v: %s\n%s", o.Kind, e.Err, s.w.Trace())
		}
	}
}

func (s *stage) writes(want bool) {
	s.t.Helper()
	n := s.w.Pairs[0].count
	s.w.Run(8000)
	if got := s.w.Pairs[0].count > n; got != want && s.w.failure == nil {
		s.t.Fatalf("records are acknowledged: %v, want %v\n%s", got, want, s.w.Trace())
	}
}

func (s *stage) fine() {
	s.t.Helper()
	if s.w.failure != nil {
		s.t.Fatalf("%v\n%s", s.w.failure, s.w.Trace())
	}
}

func (s *stage) wrong(text string) {
	s.t.Helper()
	if s.w.failure == nil || !strings.Contains(s.w.failure.Error(), text) {
		s.t.Fatalf("want a failure that says %q, got %v\n%s", text, s.w.failure, s.w.Trace())
	}
}

// TestStage has a VM run, fail over and come back by hand: the world does what it
// is to do, and nothing is found wrong.
func TestStage(t *testing.T) {
	for seed := range uint64(20) {
		s := newStage(t, seed)
		s.run(0, "one", "a", "b")
		s.writes(true)
		s.w.Hosts[0].PowerOff(0.5)
		s.w.Run(15_000)
		s.run(1, "two", "b")
		s.writes(true)
		s.w.Hosts[0].Boot()
		s.w.Run(15_000)
		if why := s.w.Pairs[0].rest(); why != "" && s.w.failure == nil {
			t.Fatalf("%s\n%s", why, s.w.Trace())
		}
		s.writes(true)
		s.fine()
	}
}

// TestChecksNotice: each check finds what it is for.
func TestChecksNotice(t *testing.T) {
	t.Run("a start on stale data", func(t *testing.T) {
		s := newStage(t, 0)
		s.run(0, "one", "a", "b")
		s.w.cutOff(replicating, s.w.Hosts[0], true, true, false)
		s.w.Run(3000)
		rec := s.w.Arbiter.record("r0a")
		e := s.order(0, ha.Order{Kind: ha.Claim, Claim: arbiter.Claim{
			Resource: "r0a", Node: "a", Seen: rec.Term, InSync: []string{"a"}, Members: []string{"a", "b"},
		}})
		s.order(0, ha.Order{Kind: ha.Promote, Resource: "r0a", Term: e.Record.Term, Sole: true})
		s.writes(true)
		s.w.Hosts[0].PowerOff(1)
		s.w.Run(10_000)
		stale := e.Record
		stale.Term, stale.InSync = stale.Term+1, []string{"b"}
		s.start(1, "two", stale)
		s.wrong("runs on stale data")
	})
	t.Run("a VM that runs twice", func(t *testing.T) {
		s := newStage(t, 0)
		s.run(0, "one", "a", "b")
		s.w.cutOff(replicating, s.w.Hosts[0], true, true, true)
		s.w.Run(10_000)
		s.run(1, "two", "b")
		s.w.Run(5000)
		s.wrong("whose manager could have ended it")
	})
	t.Run("an incarnation that is used again", func(t *testing.T) {
		s := newStage(t, 0)
		s.run(0, "one", "a", "b")
		s.order(0, ha.Order{Kind: ha.KillService, Service: "vm0"})
		s.order(0, ha.Order{Kind: ha.Unexport, Resource: "r0a"})
		s.order(0, ha.Order{Kind: ha.Export, Resource: "r0a", Incarnation: "one"})
		s.order(0, ha.Order{Kind: ha.StartService, Service: "vm0", Incarnation: "one"})
		s.wrong("so was another one before")
	})
	t.Run("a stopped service that is started", func(t *testing.T) {
		s := newStage(t, 0)
		s.w.Services[0].stopped = stop{on: true, hosts: s.w.Hosts}
		s.run(0, "one", "a", "b")
		s.wrong("its operator has stopped it")
	})
	t.Run("an arbiter that grants a term again", func(t *testing.T) {
		s := newStage(t, 0)
		s.run(0, "one", "a", "b")
		rec := s.w.Arbiter.record("r0a")
		s.w.Arbiter.store(rec)
		s.wrong("was granted before")
	})
	t.Run("a writer whose record was swapped", func(t *testing.T) {
		s := newStage(t, 0)
		s.run(0, "one", "a", "b")
		s.w.cutOff(replicating, s.w.Hosts[0], true, true, false)
		s.w.Run(3000)
		rec := s.w.Arbiter.record("r0a")
		s.order(0, ha.Order{Kind: ha.Promote, Resource: "r0a", Term: rec.Term + 1, Sole: true}) // nobody has granted that
		s.w.Run(5000)
		s.wrong("lacks it, whose copy counts")
	})
}
