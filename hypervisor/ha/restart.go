package ha

import "fmt"

// died: s has ended here by itself, or could not be started.
func (c *Core) died(s *service, why string) {
	if s.cfg.RestartReset > 0 && c.now-s.startedAt > s.cfg.RestartReset {
		s.restarts = 0
	}
	s.restarts++
	s.wasUp, s.inc, s.ill = false, "", ""
	s.failed = s.cfg.RestartLimit >= 0 && s.restarts > s.cfg.RestartLimit
	s.restartAt = c.now + restartDelay(s.cfg.RestartDelay, s.restarts)
	s.dirty = true
	c.note(Notice{Level: Warning, Topic: TopicService, Service: s.name, Text: fmt.Sprintf("%s: %s (%d of %d)", s.name, why, s.restarts, s.cfg.RestartLimit)})
	s.refusal, s.fault = verdict{Warning, why, ""}, why
}

// restartDelay doubles with each restart, up to MaxRestartDelay.
func restartDelay(first Tick, n int) Tick {
	d := first
	for i := 1; i < n && d < MaxRestartDelay; i++ {
		d *= 2
	}
	return min(d, MaxRestartDelay)
}

// moveOrStay: the restarts of s on this node are used up.
func (c *Core) moveOrStay(s *service) {
	why := c.peerProblem(s)
	if why == "" {
		c.handOver(s, "its restarts on this node are used up")
		return
	}
	s.say(Critical, fmt.Sprintf("it failed %s on %s (%s), and can't move: %s", times(s.restarts), c.self, s.fault, why),
		"find out why, then: polluxadm vm start "+s.name)
}

// usedUp is why s is not started here any more.
func (c *Core) usedUp(s *service) string {
	return fmt.Sprintf("its restarts on %s are used up (%s)", c.self, orElse(s.fault, "it ended each time"))
}

// times is "once" or "N times".
func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
