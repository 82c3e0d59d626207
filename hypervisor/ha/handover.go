package ha

import "fmt"

// leave decides whether s, which this node is about, is to end here, or to be
// started anew. It reports whether s is on its way.
func (c *Core) leave(s *service, w *Wish) bool {
	isNew := w.Version > s.acted
	switch w.Target {
	case TargetDisabled:
		s.again = false
		return false
	case TargetStopped:
		s.acted = max(s.acted, w.Version)
		s.want, s.byForce, s.moving, s.refusal = wantDown, w.Kill, "", verdict{}
		if s.byForce {
			s.flight = 0 // a kill overtakes what is under way
			s.toKill = true
		}
		return true
	case TargetStarted, TargetOnline, TargetStandby:
	}
	if isNew && w.Place != s.peer.cfg.Name { // also of one that has never come up
		s.acted = w.Version
		s.failed, s.restarts, s.restartAt = false, 0, 0
		if w.Restart && !s.undo && s.exists() && s.flight == 0 {
			s.inc, s.wasUp, s.again = "", false, true
			c.stop(s, false)
			return true
		}
	}
	if s.undo {
		return false
	}
	why := ""
	switch {
	case s.flight != 0:
		return false
	case isNew && w.Place == s.peer.cfg.Name:
		why = "the operator moves it"
	case c.isStandby(c.self):
		why = c.self + " is standby"
	case c.leaving():
		why = c.self + " leaves"
	case c.failsBack(s):
		why = s.peer.cfg.Name + " is preferred"
	default:
		return false
	}
	problem := c.peerProblem(s)
	if problem != "" && c.leaving() {
		s.want, s.byForce, s.moving, s.refusal = wantDown, false, "", verdict{}
		return true
	}
	if problem != "" {
		s.say(Warning, fmt.Sprintf("%s, and %s can't take it: %s", why, s.peer.cfg.Name, problem), "")
		return false
	}
	if c.movingNow() >= maxMoves {
		s.say(Info, why+": it waits for others that move", "")
		return false
	}
	s.acted = max(s.acted, w.Version)
	c.handOver(s, why)
	return true
}

// maxMoves is how many services one node hands over at a time: the other one has to
// boot them all.
const maxMoves = 4

func (c *Core) movingNow() int {
	n := 0
	for _, s := range c.services {
		if s.want == wantDown && s.moving != "" {
			n++
		}
	}
	return n
}

// handOver begins the planned move to the other node: it has all it needs, and waits
// for the release.
func (c *Core) handOver(s *service, why string) {
	s.want, s.moving, s.byForce, s.refusal = wantDown, s.peer.cfg.Name, false, verdict{}
	c.note(Notice{Level: Info, Topic: TopicService, Service: s.name, Node: s.moving, Text: fmt.Sprintf("%s: it moves to %s: %s", s.name, s.moving, why)})
}

// peerProblem is why the other node can't take s over in good order; "" if it can.
func (c *Core) peerProblem(s *service) string {
	p := s.peer
	name := p.cfg.Name
	sb := p.service(s.name)
	switch {
	case !c.isOnline(p) || sb == nil:
		return name + " is silent"
	case c.isStandby(name):
		return name + " is standby"
	case sb.Hash != s.cfg.Hash:
		return "its file is another one there"
	case !sb.Ready:
		return orElse(sb.Why, "it is not ready")
	case !c.lease.reachable:
		return "the arbiter can't be reached"
	}
	for _, r := range s.res {
		if !r.rec.Counts(name) || !r.peerEqual() {
			return fmt.Sprintf("%s: the copy of %s does not count yet: wait for the resync", r.name, name)
		}
	}
	return ""
}

// failsBack reports whether s is to go back to the node that it prefers, now.
func (c *Core) failsBack(s *service) bool {
	if s.cfg.Failback != FailbackWindow || !c.prefersPeer(s) || !s.exists() || c.peerProblem(s) != "" {
		return false
	}
	from, to := s.cfg.WindowFrom, s.cfg.WindowTo
	if from < to {
		return c.minute >= from && c.minute < to
	}
	return c.minute >= from || c.minute < to
}

// prefersPeer reports whether the other node is the better place by more than s
// sticks to this one.
func (c *Core) prefersPeer(s *service) bool {
	gain := s.cfg.score(s.peer.cfg.Name) - s.cfg.score(c.self)
	return gain > 0 && gain > s.cfg.Stickiness
}
