package hatest

import (
	"slices"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// A scene is a World in which a VM runs on host a, told to a test.
type scene struct {
	*World
	t    *testing.T
	a, b *Host
	p    *Pair
	s    *Service
	lost int64 // the longest time without an acknowledged record since reset, µs
	last int64
	n    int
}

func newScene(t *testing.T, change ...func(*Config)) *scene {
	cfg := DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	w := newWorld(cfg, &Memory{})
	t.Cleanup(w.End)
	w.KeepTrace()
	for _, h := range w.Hosts {
		h.Boot()
	}
	s := &scene{World: w, t: t, a: w.Hosts[0], b: w.Hosts[1], p: w.Pairs[0], s: w.Services[0]}
	if !w.RunUntil(comesUp, w.settled) {
		w.stuck("after the first start", comesUp)
		s.fine()
	}
	if v := s.s.at(); v.h != s.a {
		t.Fatalf("the VM runs on %s, which it does not prefer", v.h.name)
	}
	w.Run(3000)
	return s
}

// pass lets so many ms pass and measures the longest time without a record.
func (s *scene) pass(ms int64) {
	s.t.Helper()
	s.lost, s.last, s.n = 0, s.now, s.p.count
	for end := s.now + ms*millisecond; s.now < end && s.failure == nil; {
		s.stir()
		s.Run(20)
		if s.p.count > s.n {
			s.n, s.last = s.p.count, s.now
		}
		s.lost = max(s.lost, s.now-s.last)
	}
	s.fine()
}

// until waits until done, at most so many ms, and returns how many it took.
func (s *scene) until(what string, ms int64, done func() bool) int64 {
	s.t.Helper()
	began := s.now
	if !s.RunUntil(ms, done) {
		s.fine()
		s.stuck("until "+what, ms)
		s.fine()
	}
	return (s.now - began) / millisecond
}

func (s *scene) fine() {
	s.t.Helper()
	if s.failure != nil {
		s.t.Fatalf("%v\n%s", s.failure, s.Trace())
	}
}

func (s *scene) fatal(format string, args ...any) {
	s.t.Helper()
	s.fail(format, args...)
	s.fine()
}

// runs: the VM, its start number so and so, runs on h and writes.
func (s *scene) runs(h *Host, start int) {
	s.t.Helper()
	s.fine()
	v := s.s.at()
	switch {
	case v == nil || v.h != h || v.serial != start:
		s.fatal("start %d of the VM should run on %s: %v", start, h.name, s.s.vms)
	case s.now-v.acked > 3*second:
		s.fatal("%v has not written for %d ms", v, (s.now-v.acked)/millisecond)
	}
}

func (s *scene) runsOn(h *Host) func() bool {
	return func() bool {
		v := s.s.at()
		return v != nil && v.h == h && v.acked > 0
	}
}

// nowhere: no VM runs, and no record is acknowledged.
func (s *scene) nowhere() {
	s.t.Helper()
	n := s.p.count
	s.pass(5000)
	if len(s.s.vms) > 0 || s.p.count > n {
		s.fatal("the VM should run nowhere: %v, %d records were acknowledged", s.s.vms, s.p.count-n)
	}
}

// inSync: the arbiter counts the copies of these hosts.
func (s *scene) inSync(owner *Host, hosts ...*Host) {
	s.t.Helper()
	var names []string
	for _, h := range hosts {
		names = append(names, h.name)
	}
	if rec := s.Arbiter.record(s.p.name); rec.Owner != owner.name || !slices.Equal(rec.InSync, names) {
		s.fatal("the record is %+v, want owner %s, in sync %v", rec, owner.name, names)
	}
}

// says: the status on h has these words for why the service is as it is.
func (s *scene) says(h *Host, words ...string) {
	s.t.Helper()
	st := s.status(h)
	text := st.Why + " " + st.Advice + " " + st.Protection
	for _, w := range words {
		if !strings.Contains(text, w) {
			s.fatal("%s says %+v, want %q in it", h.name, st, w)
		}
	}
}

func (s *scene) status(h *Host) ha.ServiceStatus {
	for _, st := range h.manager.core.Snapshot().Services {
		if st.Name == s.s.name {
			return st
		}
	}
	s.fatal("%s knows nothing of %s", h.name, s.s.name)
	return ha.ServiceStatus{}
}

// alarmed: an alarm with that word stands on h.
func (s *scene) alarmed(h *Host, word string) {
	s.t.Helper()
	for _, n := range h.manager.core.Snapshot().Alarms {
		if strings.Contains(n.Text, word) {
			return
		}
	}
	s.fatal("%s: no alarm about %q: %+v", h.name, word, h.manager.core.Snapshot().Alarms)
}

func (s *scene) role(h *Host) drbd.Role { return s.p.node(h).Observe().State[pairVolume].Role }

// cutData cuts the link over which h replicates.
func (s *scene) cutData(h *Host) func() { return s.cutOff(replicating, h, true, true, false) }

// isolate cuts h off from everybody.
func (s *scene) isolate(h *Host) func() {
	a, b, c := s.cutOff(replicating, h, true, true, true), s.cutOff(management, h, true, true, true), s.cutArbiter(h, true, true)
	return func() { a(); b(); c() }
}

// settles: everything is as before the trouble.
func (s *scene) settles() {
	s.t.Helper()
	s.until("all is well again", 120_000, s.settled)
}

// silence is how long storage takes to notice that its peer is gone, ms: ping-int
// and ping-timeout, or timeout times ko-count.
const silence = 7000

// The rows of the behaviour table, in its order.

func TestSecondaryDies(t *testing.T) {
	s := newScene(t)
	s.b.PowerOff(0.5)
	n := s.until("the loss is noticed", silence, func() bool { return s.p.seen[0].Term.Frozen != "" })
	resumed := s.until("I/O goes on", 500, func() bool { return s.p.seen[0].Term.Frozen == "" })
	t.Logf("noticed after %d ms, resumed alone %d ms later", n, resumed)
	s.pass(20_000)
	s.runs(s.a, 1)
	s.inSync(s.a, s.a)
	s.b.Boot()
	s.settles()
	s.runs(s.a, 1)
}

func TestPrimaryDies(t *testing.T) {
	s := newScene(t)
	s.a.PowerOff(0.5)
	took := s.until("the VM runs on b", 20_000, s.runsOn(s.b))
	t.Logf("%d ms from the power cut to the first record of the new VM", took)
	if took < 6000 {
		s.fatal("b has waited for %d ms only, a lease lasts longer", took)
	}
	s.inSync(s.b, s.b)
	s.a.Boot()
	s.settles()
	s.runs(s.b, 2) // it stays where it is
}

func TestLinkCut(t *testing.T) {
	s := newScene(t)
	mend := s.cutData(s.a)
	s.pass(40_000)
	if s.lost > (silence+1000)*millisecond {
		s.fatal("no record for %d ms", s.lost/millisecond)
	}
	s.runs(s.a, 1)
	s.inSync(s.a, s.a)
	mend()
	s.settles()
	s.runs(s.a, 1)
}

func TestLinkCutThenPrimaryDies(t *testing.T) {
	s := newScene(t)
	mend := s.cutData(s.a)
	s.pass(20_000)
	s.a.PowerOff(0.5)
	s.pass(40_000)
	s.nowhere()
	s.says(s.b, "a")
	mend()
	s.nowhere()
	s.a.Boot()
	s.settles()
}

func TestPrimaryIsolated(t *testing.T) {
	s := newScene(t)
	mend := s.isolate(s.a)
	took := s.until("the VM runs on b", 25_000, s.runsOn(s.b))
	t.Logf("%d ms", took)
	s.runs(s.b, 2)
	s.inSync(s.b, s.b)
	mend()
	s.settles()
	s.runs(s.b, 2)
}

func TestSecondaryIsolated(t *testing.T) {
	s := newScene(t)
	mend := s.isolate(s.b)
	s.pass(40_000)
	s.runs(s.a, 1)
	s.inSync(s.a, s.a)
	if r := s.role(s.b); r != drbd.Secondary {
		s.fatal("b is %v", r)
	}
	mend()
	s.settles()
	s.runs(s.a, 1)
}

func TestArbiterDies(t *testing.T) {
	s := newScene(t)
	s.Arbiter.down++
	s.pass(60_000)
	s.runs(s.a, 1)
	if s.lost > second {
		s.fatal("no record for %d ms", s.lost/millisecond)
	}
	s.alarmed(s.a, "arbit")
	s.Arbiter.down--
	s.settles()
	s.runs(s.a, 1)
}

func TestManagerOfThePrimaryDies(t *testing.T) {
	s := newScene(t)
	s.a.manager.crash()
	s.pass(60_000)
	s.runs(s.a, 1)
	s.a.manager.start()
	s.pass(30_000)
	s.runs(s.a, 1) // it was adopted
	s.settles()
}

func TestArbiterDiesThenLinkCut(t *testing.T) {
	s := newScene(t)
	s.Arbiter.down++
	s.pass(5000)
	mend := s.cutData(s.a)
	s.Run(40_000)
	n := s.p.count
	s.Run(60_000)
	if s.fine(); s.p.count > n {
		s.fatal("%d records were acknowledged without a permit", s.p.count-n)
	}
	if r := s.role(s.b); r != drbd.Secondary {
		s.fatal("b is %v", r)
	}
	s.Arbiter.down--
	s.until("the VM runs", 60_000, func() bool { v := s.s.at(); return v != nil && s.now-v.acked < second })
	mend()
	s.settles()
}

func TestArbiterDiesThenSecondaryDies(t *testing.T) {
	s := newScene(t)
	s.Arbiter.down++
	s.pass(5000)
	s.b.PowerOff(0.5)
	s.Run(10_000)
	n := s.p.count
	s.Run(30_000)
	if s.fine(); s.p.count > n {
		s.fatal("%d records were acknowledged without a permit", s.p.count-n)
	}
	s.Arbiter.down--
	s.until("the VM runs", 60_000, s.runsOn(s.a))
	s.inSync(s.a, s.a)
	s.b.Boot()
	s.settles()
}

func TestBothLosePowerAndTheStaleOneReturns(t *testing.T) {
	s := newScene(t)
	mend := s.cutData(s.a)
	s.pass(20_000)
	s.a.PowerOff(0.5)
	s.b.PowerOff(0.5)
	s.Run(3000)
	mend()
	s.b.Boot()
	s.pass(60_000)
	s.nowhere()
	s.says(s.b, "a")
	s.a.Boot()
	s.settles()
}

func TestBothLosePowerAndTheSoleWriterReturns(t *testing.T) {
	s := newScene(t)
	mend := s.cutData(s.a)
	s.pass(20_000)
	s.a.PowerOff(0.5)
	s.b.PowerOff(0.5)
	s.Run(3000)
	mend()
	s.a.Boot()
	s.until("the VM runs on a", 60_000, s.runsOn(s.a))
	s.inSync(s.a, s.a)
	s.b.Boot()
	s.settles()
	s.runs(s.a, 2)
}

func TestFullPowerCut(t *testing.T) {
	s := newScene(t)
	s.a.PowerOff(0.5)
	s.b.PowerOff(0.5)
	s.Run(20_000)
	s.b.Boot()
	s.Run(4000)
	s.a.Boot()
	s.settles()
	if s.s.started != 2 {
		s.fatal("it was started %d times", s.s.started-1)
	}
}

func TestPrimaryPaused(t *testing.T) {
	for _, still := range []bool{false, true} {
		s := newScene(t)
		s.a.Pause(30_000, still)
		s.until("the VM runs on b", 25_000, s.runsOn(s.b))
		s.pass(60_000)
		s.runs(s.b, 2)
		s.settles()
		s.runs(s.b, 2)
	}
}

func TestArbiterAnswersLateAndOld(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Seed = 7 })
	for range 2 { // so that there are old grants
		mend := s.cutData(s.b)
		s.pass(12_000)
		mend()
		s.settles()
	}
	s.Arbiter.moody++
	s.Arbiter.lying++
	starts := s.s.started
	mend := s.cutData(s.b)
	s.pass(60_000)
	mend()
	s.pass(60_000)
	s.Arbiter.moody--
	s.Arbiter.lying--
	s.settles()
	if s.s.started != starts {
		s.fatal("it was started %d times more", s.s.started-starts)
	}
}

func TestArbiterRestoredFromBackup(t *testing.T) {
	s := newScene(t)
	s.Arbiter.takeBackup()
	mend := s.cutData(s.b)
	s.pass(20_000)
	mend()
	s.settles()
	term := s.Arbiter.record(s.p.name).Term
	s.Arbiter.restore()
	s.pass(10_000)
	s.until("it is filled again", 60_000, func() bool { return s.Arbiter.record(s.p.name).Term > term })
	s.runs(s.a, 1)
	s.inSync(s.a, s.a, s.b)
	s.settles()
}

// What the operator does, and what breaks besides.

func TestMove(t *testing.T) {
	s := newScene(t)
	s.a.manager.command(ha.Command{Verb: ha.MoveVerb, Service: s.s.name})
	var left, came int64
	s.until("the VM runs on b", 10_000, func() bool {
		if left == 0 && s.role(s.a) == drbd.Secondary {
			left = s.now
		}
		if came == 0 && left > 0 && s.role(s.b) == drbd.Primary {
			came = s.now
		}
		return s.runsOn(s.b)()
	})
	if d := (came - left) / millisecond; d > 500 || came == 0 {
		s.fatal("the hand-over of storage took %d ms", d)
	}
	s.settles()
	s.runs(s.b, 2)
	s.inSync(s.b, s.a, s.b)
}

func TestStopIsRemembered(t *testing.T) {
	s := newScene(t)
	s.b.manager.operatorStops(s.s) // the node where it does not run
	s.until("it is stopped", 10_000, func() bool { return len(s.s.vms) == 0 })
	s.nowhere()
	s.a.PowerOff(0.5)
	s.b.PowerOff(0.5)
	s.Run(5000)
	s.a.Boot()
	s.b.Boot()
	s.Run(40_000)
	s.nowhere()
	s.operatorStarts(s.s)
	s.settles()
}

func TestStandby(t *testing.T) {
	s := newScene(t)
	s.a.manager.operatorStandby()
	s.until("the VM runs on b", 15_000, s.runsOn(s.b))
	s.a.PowerOff(0.5)
	s.Run(5000)
	s.a.Boot()
	s.settles()
	s.b.PowerOff(0.5)
	s.Run(40_000)
	s.nowhere()
	s.says(s.a, "standby")
	s.operatorOnline(s.a)
	s.until("the VM runs on a", 40_000, s.runsOn(s.a))
	s.b.Boot()
	s.settles()
}

func TestDaemonOfThePrimaryCrashes(t *testing.T) {
	s := newScene(t)
	s.a.KillPolluxd()
	s.Run(2000)
	s.a.StartPolluxd()
	s.settles()
	if s.s.started > 2 {
		s.fatal("it was started %d times", s.s.started-1)
	}
}

func TestMachineDies(t *testing.T) {
	s := newScene(t)
	s.s.at().end("it has crashed")
	s.a.manager.vmEnded(s.s)
	s.until("it runs again", 20_000, s.runsOn(s.a))
	s.settles()
	s.runs(s.a, 2)
}

// TestManagerAndMachineDie: the VM is started anew when its manager is back, by a
// name of its own.
func TestManagerAndMachineDie(t *testing.T) {
	s := newScene(t)
	s.a.manager.crash()
	s.s.at().end("it has crashed")
	s.Run(2000)
	s.a.manager.start()
	s.settles()
	s.runs(s.a, 2)
}

// TestOrderToOneThatHasHeardNothing: a manager that has just been started refuses an
// order that a later one of another node would undo.
func TestOrderToOneThatHasHeardNothing(t *testing.T) {
	s := newScene(t)
	s.b.manager.command(ha.Command{Verb: ha.MoveVerb, Service: s.s.name})
	s.until("the VM runs on b", 10_000, s.runsOn(s.b))
	s.settles()
	s.a.PowerOff(0.5)
	s.Run(20_000)
	s.a.Boot()
	s.until("a's manager runs", 5000, func() bool { return s.a.manager.core != nil })
	id := s.a.manager.command(ha.Command{Verb: ha.StopVerb, Service: s.s.name})
	if err := s.a.manager.answers[id]; !strings.Contains(err, "has not heard of b") {
		s.fatal("the order was answered by %q", err)
	}
	s.settles()
	s.runs(s.b, 2)
}

// TestArbiterRestoredWhileItMoves: a released term is forgotten while the other node
// takes the second disk; both copies are equal, so the record is filled again.
func TestArbiterRestoredWhileItMoves(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Services[0].Resources = 2 })
	s.Arbiter.takeBackup()
	s.a.manager.command(ha.Command{Verb: ha.MoveVerb, Service: s.s.name})
	s.until("the first disk is released", 5000, func() bool { return s.Arbiter.record("r0b").Released || s.Arbiter.record("r0a").Released })
	s.Arbiter.restore()
	s.settles()
	s.runs(s.b, 2)
}

// TestForgottenTermIsNotReleased: a backup counts a copy that has become stale. What
// the sole writer leaves must not be taken over by it.
func TestForgottenTermIsNotReleased(t *testing.T) {
	s := newScene(t)
	s.Arbiter.takeBackup()
	mend := s.cutData(s.b)
	s.pass(15_000)
	s.Arbiter.restore()
	s.pass(8000)
	s.a.manager.operatorStops(s.s)
	s.until("it is stopped", 10_000, func() bool { return len(s.s.vms) == 0 })
	s.Run(3000)
	if rec := s.Arbiter.record(s.p.name); rec.Released {
		s.fatal("the record of the backup was released: %+v", rec)
	}
	mend()
	s.Run(5000)
	s.operatorStarts(s.s)
	s.settles()
}

func TestMachineCannotBeKilled(t *testing.T) {
	s := newScene(t)
	s.a.unkillable++
	mend := s.isolate(s.a)
	boot := s.a.boot
	s.until("the VM runs on b", 25_000, s.runsOn(s.b))
	s.until("the watchdog has reset a", 60_000, func() bool { return s.a.boot > boot })
	s.a.unkillable--
	mend()
	s.settles()
}

func TestDiskOfThePrimaryFails(t *testing.T) {
	s := newScene(t)
	s.p.node(s.a).FailDisk()
	s.pass(20_000)
	s.fine()
	if v := s.s.at(); v == nil || s.now-v.acked > second {
		s.fatal("no VM writes: %v", s.s.vms)
	}
	s.a.attachDisks()
	s.settles()
}
