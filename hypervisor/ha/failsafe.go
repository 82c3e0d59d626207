package ha

import "fmt"

// failsafe has the peer of a service whose file wants it stand back while the arbiter
// is away: this node then goes on whatever becomes of the peer and of the cable, and the
// peer, by its durable word, does not take over before it has met this node again. It
// is asked only while neither node reaches the arbiter and both have the same file, and
// released as soon as either reaches it, so that it may take over again. If the peer's
// manager is silent, what was agreed stays: it can't tell whether the arbiter is back.
func (c *Core) failsafe(r *resource) {
	st := &r.st
	if r.asking != 0 || c.now < r.askAt || st.Role != Primary || !st.Owned {
		return
	}
	on := c.wantsFailsafe(r)
	if on == st.AsksPeer {
		return
	}
	r.asking = c.give(Order{Kind: Failsafe, Resource: r.name, On: on, Timeout: storageTimeout}, func(e Event) {
		r.asking = 0
		c.changed(r)
		if e.Err != "" {
			r.askAt = c.now + 1000
			c.note(Notice{Level: Warning, Topic: TopicRole, Resource: r.name, Text: e.Err})
			return
		}
		text := r.name + ": failsafe ends: " + r.peer.cfg.Name + " may take over again"
		if on {
			text = fmt.Sprintf("%s: failsafe: the arbiter is away, %s is asked not to take over before it has met this node again", r.name, r.peer.cfg.Name)
		}
		c.note(Notice{Level: Info, Topic: TopicRole, Resource: r.name, Term: st.Term, Text: text})
	})
}

func (c *Core) wantsFailsafe(r *resource) bool {
	if r.svc == nil || !r.svc.cfg.Failsafe || !c.cfg.Arbiter.HasLeases() || c.lease.reachable {
		return false
	}
	sb := r.peer.service(r.svc.name)
	switch {
	case !r.st.Connected, !c.isOnline(r.peer), sb == nil:
		return r.st.AsksPeer
	case c.now-c.lease.since < c.askTimeout(): // a question that was lost is no absence
		return r.st.AsksPeer && !r.peer.beat.Arbiter
	}
	return !r.peer.beat.Arbiter && sb.Hash == r.svc.cfg.Hash
}

// isFailsafe reports whether s goes on here whatever becomes of its peer.
func (s *service) isFailsafe() bool {
	for _, r := range s.res {
		if !r.st.PeerStandsBack && !r.st.Sole {
			return false
		}
	}
	return s.cfg.Failsafe && len(s.res) > 0
}

// outdated says what is wrong with this node's copy.
func (r *resource) outdated() string {
	return fmt.Sprintf("%s: this copy is Outdated: it left while %s wrote, or has promised %[2]s not to take over while the arbiter was away, and %[2]s may have gone on alone", r.name, r.peer.cfg.Name)
}

// outdatedAdvice is what helps a service one of whose copies here is Outdated; "" if none is.
func (c *Core) outdatedAdvice(s *service) string {
	for _, r := range s.res {
		if peer := r.peer.cfg.Name; r.st.Disk == Outdated {
			return fmt.Sprintf("bring %s back; if its data is lost for good: polluxadm vm failover %s --peer-is-down %[1]s --force", peer, s.name)
		}
	}
	return ""
}

// recordLags reports whether this node writes alone by its peer's word, and the arbiter,
// which answers again, still counts both copies.
func (c *Core) recordLags(r *resource) bool {
	return r.st.Sole && !r.rec.Sole() && c.lease.reachable && c.leaseGood() &&
		(c.cfg.Arbiter != ArbiterFence || c.isOnline(r.peer) || r.peer.fenced)
}
