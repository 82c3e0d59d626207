package hatest

import (
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/replication"
)

// apart: the operator says on each host that the other one is off, and neither is. From
// then on each is the sole writer by its own records, under the same term.
func (s *scene) apart() (mend func()) {
	s.t.Helper()
	mend = s.isolate(s.a)
	s.pass(4000)
	s.duo.lie()
	s.a.manager.operatorForces(s.s)
	s.b.manager.operatorForces(s.s)
	s.until("both have it", 60_000, func() bool { return len(s.s.vms) == 2 && s.role(s.a) == s.role(s.b) })
	s.pass(10_000)
	return mend
}

// choose is what the operator does whom the status tells of two that have written: the
// changes of h are thrown away.
func (s *scene) choose(h *Host) {
	for _, o := range s.Hosts {
		s.p.node(o).Command(replication.Command{Kind: replication.CmdConnect, Force: o == h}, nil)
	}
}

// TestBothBootAsTheOnlyOne: both hosts boot at once, and each is the sole writer by its
// own records. Neither may go on before it has heard what the other one says; then a
// person has to choose.
func TestBothBootAsTheOnlyOne(t *testing.T) {
	for _, later := range []int64{0, 3000, 15_000} { // ms until the second one boots
		duoScene(t, ha.ArbiterFence, func(s *scene) {
			mend := s.apart()
			s.a.PowerOff(0.5)
			s.b.PowerOff(0.5)
			s.Run(1000)
			mend()
			s.a.Boot()
			s.Run(later)
			s.b.Boot()
			s.pass(60_000)
			s.nowhere()
			for _, h := range s.Hosts {
				s.says(h, "nobody knows who wrote last")
			}
			s.choose(s.b)
			s.settles()
		})
	}
}

// TestOnlyOneOfTwoReturns: the sole writer does not wait for good for one that is dead.
func TestOnlyOneOfTwoReturns(t *testing.T) {
	duoScene(t, ha.ArbiterFence, func(s *scene) {
		s.b.PowerOff(0.5)
		s.until("the VM goes on", 40_000, func() bool { return s.Arbiter.record(s.p.name).Sole() })
		s.pass(5000)
		s.a.PowerOff(0.5)
		s.Run(1000)
		s.a.Boot()
		took := s.until("the VM runs on a", 60_000, s.runsOn(s.a))
		t.Logf("%d ms", took)
		s.b.Boot()
		s.settles()
	})
}

// TestRunsOnBoth: the two meet while each runs the VM. Both say so, and what to do; that
// ends it.
func TestRunsOnBoth(t *testing.T) {
	duoScene(t, ha.ArbiterFence, func(s *scene) {
		s.apart()()
		s.Run(20_000)
		for _, h := range s.Hosts {
			s.alarmed(h, "vm0: it runs on a and on b at once")
		}
		s.a.manager.operatorStops(s.s)
		s.until("both have ended it", 60_000, func() bool { return len(s.s.vms) == 0 })
		s.Run(5000)
		for _, h := range s.Hosts {
			h.PowerOff(0.5)
		}
		for _, h := range s.Hosts {
			h.Boot()
		}
		s.Run(20_000)
		s.nowhere()
		s.choose(s.b)
		s.Run(10_000)
		s.operatorStarts(s.s)
		s.settles()
		for _, h := range s.Hosts {
			for _, a := range h.manager.core.Snapshot().Alarms {
				s.fatal("%s: an alarm stands: %s", h.name, a.Text)
			}
		}
	})
}
