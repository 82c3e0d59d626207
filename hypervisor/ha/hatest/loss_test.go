package hatest

import (
	"strings"
	"testing"
)

// TestMoveUnderProtocolA: the connection is lost while the VM is handed over. What was
// acknowledged and has not arrived may not be left behind by a planned move.
func TestMoveUnderProtocolA(t *testing.T) {
	for _, bound := range []uint64{0, 4 * slotSize * 512} {
		s := newScene(t, func(c *Config) { c.Protocol, c.MaxLossBytes, c.MaxLossMS = 'A', bound, 2000 })
		s.stir()
		s.Run(2000)
		mend, n := s.cutOff(replicating, s.a, true, false, true), s.p.count
		s.stir()
		s.until("something is acknowledged that b lacks", 1000, func() bool { return s.p.count > n })
		s.a.manager.operatorMoves(s.s)
		s.until("the VM runs on a again", 60_000, func() bool { return s.s.started > 1 && s.runsOn(s.a)() })
		mend()
		s.settles()
	}
}

// TestTakeoverUnderProtocolA: it loses no more than was declared, and says so; without a
// declaration there is none.
func TestTakeoverUnderProtocolA(t *testing.T) {
	lost := uint64(0)
	for k := range int64(20) {
		s := newScene(t, func(c *Config) { c.Protocol, c.MaxLossBytes, c.MaxLossMS = 'A', 4*slotSize*512, 2000 })
		s.stir()
		mend := s.isolate(s.a)
		s.Run(100 * k)
		s.a.PowerOff(0.5)
		s.until("the VM runs on b", 30_000, s.runsOn(s.b))
		if text := s.b.manager.takes[s.s.name]; !strings.Contains(text, "at most 16 KiB, or 2.0 s") {
			s.fatal("b says %q", text)
		}
		mend()
		s.a.Boot()
		s.settles()
		lost += s.World.lost
	}
	if lost == 0 {
		t.Error("nothing was lost in any of them: the test is blind")
	}
	s := newScene(t, func(c *Config) { c.Protocol = 'A' })
	s.a.PowerOff(0.5)
	s.Run(60_000)
	s.nowhere()
	s.says(s.b, "--peer-is-down a")
	s.a.Boot()
	s.settles()
}
