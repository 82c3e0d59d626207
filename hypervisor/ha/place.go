package ha

import "fmt"

// localProblem is why s could not be started here, whatever the arbiter says; ""
// if it could.
func (c *Core) localProblem(s *service) string {
	switch {
	case s.cfg.Problem != "":
		return s.cfg.Problem
	case c.health.Problem != "":
		return c.health.Problem
	case s.seen.Problem != "":
		return s.seen.Problem
	case c.isStandby(c.self):
		return c.self + " is standby"
	case s.failed:
		return c.usedUp(s)
	}
	for _, r := range s.res {
		switch {
		case !r.st.Up:
			return r.name + " is not up: " + orElse(r.st.Problem, "polluxd does not run it")
		case r.st.Disk == Outdated:
			return r.outdated()
		case !r.whole():
			return fmt.Sprintf("%s: the disk of %s is %s", r.name, c.self, r.st.Disk)
		}
	}
	if need := s.cfg.MemoryBytes + c.cfg.ReserveBytes; s.want == wantIdle && !s.exists() && c.health.MemoryBytes > 0 && need > c.freeBytes() {
		return fmt.Sprintf("%s has %d MiB of memory free, and %d MiB are needed: stop or move another one", c.self, c.freeBytes()>>20, need>>20)
	}
	return ""
}

// freeBytes is the memory that is left here, less what is promised to services that
// are being started.
func (c *Core) freeBytes() uint64 {
	free := c.health.FreeBytes
	for _, s := range c.services {
		if s.mine && s.want == wantUp && (!s.exists() || s.startedAt > c.healthAt || s.flight != 0) {
			free -= min(free, s.cfg.MemoryBytes)
		}
	}
	return free
}

// myTurn reports whether this node is the best one to start s that can, or has left
// it to a better one for long enough.
func (c *Core) myTurn(s *service, w *Wish) bool {
	p := s.peer
	sb := p.service(s.name)
	counts := true
	for _, r := range s.res {
		counts = counts && (r.rec.Counts(p.cfg.Name) || r.rec.Term == 0 || r.known.behind)
	}
	if !counts {
		s.yieldAt = 0
		return true
	}
	if !c.isOnline(p) && !c.isGone(p) && p.at == 0 {
		s.say(Info, "this node has just started, and waits for "+p.cfg.Name, "")
		return false
	}
	if !c.isOnline(p) || sb == nil || !sb.Ready || c.isStandby(p.cfg.Name) || !c.isBetter(s, w, p.cfg.Name) {
		s.yieldAt = 0
		return true
	}
	if s.yieldAt == 0 {
		s.yieldAt = c.now
	}
	at := s.yieldAt + c.cfg.Timing.Deadtime
	if c.now >= at {
		s.yieldAt = 0
		return true
	}
	for _, r := range s.res { // the better one may take over from this node at once
		if c.isMine(r) {
			c.release(r)
		}
	}
	c.wake(s, at)
	s.say(Info, "it is left to "+p.cfg.Name, "")
	return false
}

// isBetter reports whether the other node is a better place for s than this one.
func (c *Core) isBetter(s *service, w *Wish, other string) bool {
	if w.Place == c.self || w.Place == other {
		return w.Place == other
	}
	if mine, theirs := c.keepsReserve(s, c.self), c.keepsReserve(s, other); mine != theirs {
		return theirs
	}
	if a, b := s.cfg.score(c.self), s.cfg.score(other); a != b {
		return b > a
	}
	if owner := s.res[0].rec.Owner; owner == c.self || owner == other {
		return owner == other
	}
	return other < c.self
}

// healthOf is what a node has left, as far as it is known.
func (c *Core) healthOf(n *node) Health {
	if n.cfg.Name == c.self {
		return Health{MemoryBytes: c.health.MemoryBytes, FreeBytes: c.freeBytes(), Problem: c.health.Problem}
	}
	return n.beat.Health
}

// runsOn reports whether a node has s in use.
func (c *Core) runsOn(s *service, n *node) bool {
	if n.cfg.Name == c.self {
		return s.mine && (s.want == wantUp || s.exists())
	}
	sb := n.service(s.name)
	return sb != nil && (sb.State == StateRunning || sb.State == StateFrozen || sb.State == StateStarting || sb.State == StateMoving)
}

// needed is the most memory that a node would need if one other node died, and which
// one that is.
func (c *Core) needed(at *node) (bytes uint64, of string) {
	for _, n := range c.nodes {
		if n == at || n.cfg.Witness {
			continue
		}
		sum := uint64(0)
		for _, s := range c.services {
			if has(s.nodes, at.cfg.Name) && has(s.nodes, n.cfg.Name) && c.runsOn(s, n) && c.cfg.failsOver(&s.cfg) {
				sum += s.cfg.MemoryBytes
			}
		}
		if sum > bytes {
			bytes, of = sum, n.cfg.Name
		}
	}
	return bytes, of
}

func has(nodes [2]string, name string) bool { return nodes[0] == name || nodes[1] == name }

// keepsReserve reports whether a node that starts s keeps what it would need for
// those of another node that dies (N+1).
func (c *Core) keepsReserve(s *service, name string) bool {
	n := c.node(name)
	h := c.healthOf(n)
	need, _ := c.needed(n)
	return h.MemoryBytes == 0 || h.FreeBytes >= need+s.cfg.MemoryBytes+c.cfg.ReserveBytes
}

// checkReserve warns of each node whose death the others could not make good.
func (c *Core) checkReserve() {
	if c.now < c.reserveAt {
		return
	}
	c.reserveAt = c.now + 10*sweep
	for _, n := range c.nodes {
		if n.cfg.Witness {
			continue
		}
		h := c.healthOf(n)
		need, of := c.needed(n)
		text := ""
		if c.isOnline(n) && h.MemoryBytes > 0 && need > 0 && need+c.cfg.ReserveBytes > h.FreeBytes {
			text = fmt.Sprintf("if %s dies, %s needs %d MiB for what ran there, and has %d MiB free: not all of it would be started", of, n.cfg.Name, (need+c.cfg.ReserveBytes)>>20, h.FreeBytes>>20)
		}
		c.alarm(Notice{Key: "reserve/" + n.cfg.Name, Level: Warning, Topic: TopicAlarm, Node: n.cfg.Name, Text: text})
	}
}
