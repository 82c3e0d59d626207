package hatest

import (
	"testing"
	"testing/synctest"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

// newDuoScene is newScene within a bubble.
func duoScene(t *testing.T, kind ha.ArbiterKind, f func(s *scene)) {
	synctest.Test(t, func(t *testing.T) {
		f(newScene(t, func(c *Config) { c.Arbiter = kind }))
	})
}

func TestManualMode(t *testing.T) {
	duoScene(t, ha.ArbiterManual, func(s *scene) {
		s.says(s.a, "not against host loss")
		s.b.PowerOff(0.5)
		s.pass(30_000)
		s.runs(s.a, 1)
		s.b.Boot()
		s.settles()
	})
	duoScene(t, ha.ArbiterManual, func(s *scene) {
		s.a.PowerOff(0.5)
		s.pass(60_000)
		s.nowhere()
		s.a.Boot()
		s.settles()
	})
}

// TestFence: the other host takes over once the board has switched the first one off.
func TestFence(t *testing.T) {
	duoScene(t, ha.ArbiterFence, func(s *scene) {
		mend := s.isolate(s.a)
		took := s.until("the VM runs on b", 60_000, s.runsOn(s.b))
		t.Logf("%d ms", took)
		s.inSync(s.b, s.b)
		mend()
		s.settles()
		s.runs(s.b, 2)
	})
	duoScene(t, ha.ArbiterFence, func(s *scene) {
		s.b.PowerOff(0.5)
		s.until("the VM goes on", 40_000, func() bool { return s.Arbiter.record(s.p.name).Sole() })
		s.pass(10_000)
		s.runs(s.a, 1)
		s.b.Boot()
		s.settles()
	})
}

// TestFenceProtectsAgain: the two have met again after one of them was fenced, and the
// other one's death is survived, too. Without that each would know old records for good,
// and nobody could take over.
func TestFenceProtectsAgain(t *testing.T) {
	duoScene(t, ha.ArbiterFence, func(s *scene) {
		s.b.PowerOff(0.5)
		s.until("the VM goes on", 40_000, func() bool { return s.Arbiter.record(s.p.name).Sole() })
		s.Run(20_000)
		s.b.Boot()
		s.settles()
		for _, h := range s.Hosts {
			for _, a := range h.manager.core.Snapshot().Alarms {
				s.fatal("%s: an alarm stands: %s", h.name, a.Text)
			}
		}
		s.a.PowerOff(0.5)
		s.until("the VM runs on b", 60_000, s.runsOn(s.b))
		s.a.Boot()
		s.settles()
	})
}

// TestSparedIsShotLater: a host that answers just before it would be shot is spared, and
// that was no shot: when it really dies, under the same term, it is shot.
func TestSparedIsShotLater(t *testing.T) {
	var aimed int64 // ms from the pause until b is to shoot
	duoScene(t, ha.ArbiterFence, func(s *scene) {
		s.a.Pause(120_000, false)
		aimed = s.until("b is to shoot", 60_000, func() bool { return s.b.half.aims })
	})
	duoScene(t, ha.ArbiterFence, func(s *scene) {
		s.a.Pause(aimed+1000, false)
		s.until("b is to shoot", 60_000, func() bool { return s.b.half.aims })
		s.until("it does not", 10_000, func() bool { return !s.b.half.aims })
		s.settles()
		s.runs(s.a, 1)
		if s.duo.boards.shots != 0 {
			s.fatal("a was shot at, and it answers")
		}
		s.a.PowerOff(0.5)
		s.until("the VM runs on b", 60_000, s.runsOn(s.b))
		s.a.Boot()
		s.settles()
	})
}

// TestOldRecordsComeToLight: one host comes back with records of before the other one went
// on alone. When the halves meet, the newer one gives its record up first; what the other
// one shows until it hears of that counts for nothing, and the owner writes all the while.
// Nobody takes over before both copies are connected.
func TestOldRecordsComeToLight(t *testing.T) {
	for _, kind := range []ha.ArbiterKind{ha.ArbiterFence, ha.ArbiterManual} {
		duoScene(t, kind, func(s *scene) {
			s.Arbiter.takeBackup()
			mend := s.cutOff(replicating, s.a, true, true, false)
			s.until("a goes on alone", 40_000, func() bool { return s.Arbiter.record(s.p.name).Sole() })
			s.pass(5000)
			s.b.half.restore(false)
			s.pass(3000)
			s.b.Boot()
			s.until("the halves have met", 40_000, func() bool { return s.Arbiter.record(s.p.name).Term == 0 })
			s.pass(10_000)
			s.runs(s.a, 1)
			s.a.PowerOff(0.5)
			s.pass(60_000)
			s.nowhere()
			s.a.Boot()
			mend()
			s.settles()
			s.inSync(s.s.at().h, s.a, s.b)
		})
	}
}
