package ha

import (
	"fmt"
	"strconv"
)

// export hands the volumes to the incarnation that runs, or is to run, and reports
// whether all are.
func (c *Core) export(s *service) bool {
	all := true
	for _, r := range s.res {
		switch {
		case s.inc == "" || r.st.Incarnation == s.inc:
		case r.busy != 0:
			all = false
		case c.now < r.retryAt:
			all = false
			c.wake(s, r.retryAt)
		default:
			all = false
			c.order(r, Order{Kind: Export, Incarnation: s.inc})
		}
	}
	return all
}

// bringUp starts s: all its resources are this node's.
func (c *Core) bringUp(s *service) {
	s.again, s.killAt = false, 0
	if s.wasUp {
		c.died(s, orElse(s.ill, "it ended by itself"))
	}
	switch {
	case s.failed:
		c.moveOrStay(s)
		return
	case c.now < s.restartAt:
		s.say(Warning, fmt.Sprintf("it ended %s (%s), and is started again soon", times(s.restarts), s.refusal.text), "")
		c.wake(s, s.restartAt)
		return
	}
	for _, r := range s.res {
		if r.failures >= 3 {
			c.died(s, r.problem)
			r.failures = 0
			return
		}
	}
	if s.inc == "" {
		s.incs++
		s.inc = strconv.FormatUint(s.res[0].rec.Term, 10) + "-" + c.session + "-" + strconv.Itoa(s.incs)
	}
	if !c.export(s) {
		return
	}
	s.startedAt = c.now
	s.fly(c, Order{Kind: StartService, Incarnation: s.inc, Deposed: s.deposed, Timeout: s.cfg.StartTimeout}, func(e Event) {
		if e.Err == "" {
			s.seen.Phase, s.seen.Incarnation, s.wasUp, s.refusal = PhaseRunning, s.inc, true, verdict{}
			return
		}
		c.note(Notice{Level: Warning, Topic: TopicService, Service: s.name, Text: s.name + ": not started: " + e.Err})
		// What came of it is not known: it must be gone before the next attempt.
		c.kill(s, func(bool) { c.died(s, e.Err) })
	})
}

// goneUp: s runs.
func (c *Core) goneUp(s *service) {
	s.undo, s.force, s.ill = false, "", ""
	if s.restarts > 0 && c.now-s.startedAt > max(s.cfg.RestartReset, 1) && s.cfg.RestartReset > 0 {
		s.restarts = 0
	}
	if s.cfg.Addresses && !s.seen.Addresses && s.ipsBusy == 0 {
		c.addresses(s, AddIPs)
	}
	if !s.hooked && (!s.cfg.Addresses || s.seen.Addresses) {
		s.hooked = true
		c.give(Order{Kind: Hook, Hook: OnPromote, Service: s.name, Text: s.name + " runs on " + c.self}, nil)
	}
	if s.cfg.Addresses && !s.seen.Addresses {
		s.say(Warning, "its addresses are not on this node yet", "")
	}
}

// addresses adds or removes them; what failed is done again.
func (c *Core) addresses(s *service, kind OrderKind) {
	if c.now < s.ipsAt {
		c.wake(s, s.ipsAt)
		return
	}
	s.ipsBusy = c.give(Order{Kind: kind, Service: s.name, Timeout: addressTimeout}, func(e Event) {
		s.ipsBusy, s.dirty = 0, true
		if e.Err != "" {
			s.ipsAt = c.now + 1000
			c.note(Notice{Level: Warning, Topic: TopicAddress, Service: s.name, Text: s.name + ": " + e.Err})
			return
		}
		s.ipsAt, s.seen.Addresses = 0, kind == AddIPs
	})
}

// fly gives an order for the service itself; there is one at a time.
func (s *service) fly(c *Core, o Order, done func(Event)) {
	o.Service = s.name
	var id OrderID
	id = c.give(o, func(e Event) {
		s.dirty = true
		if s.flight != id {
			return // overtaken
		}
		s.flight = 0
		done(e)
	})
	s.flight, s.doing = id, o.Kind
}

// stop ends it in good order, by force if that fails.
func (c *Core) stop(s *service, byForce bool) {
	if byForce {
		c.kill(s, func(bool) {})
		return
	}
	s.fly(c, Order{Kind: StopService, Timeout: s.cfg.StopTimeout}, func(e Event) {
		if e.Err == "" {
			s.seen.Phase = PhaseStopped
			return
		}
		c.note(Notice{Level: Warning, Topic: TopicService, Service: s.name, Text: fmt.Sprintf("%s: it did not stop: %s: it is killed", s.name, e.Err)})
		c.kill(s, func(bool) {})
	})
}

func (c *Core) kill(s *service, then func(gone bool)) {
	s.fly(c, Order{Kind: KillService, Timeout: killTimeout}, func(e Event) {
		if e.Err == "" {
			s.seen.Phase = PhaseStopped
		} else {
			s.killAt, s.fault = c.now+1000, e.Err
			c.note(Notice{Level: Critical, Topic: TopicService, Service: s.name, Text: s.name + ": it can't be killed: " + e.Err})
		}
		then(e.Err == "")
	})
}

// goDown ends s here and releases its terms.
func (c *Core) goDown(s *service) {
	if s.why.text == "" {
		s.why = s.refusal
	}
	switch {
	case s.flight != 0:
		return
	case s.exists():
		if c.now < s.killAt {
			c.wake(s, s.killAt)
			return
		}
		c.stop(s, s.byForce || s.killAt != 0)
		return
	}
	s.killAt = 0
	if s.seen.Addresses && s.cfg.Addresses { // before the terms are released
		if s.ipsBusy == 0 {
			c.addresses(s, RemoveIPs)
		}
		return
	}
	done := true
	for i := len(s.res) - 1; i >= 0; i-- {
		r := s.res[i]
		if c.stuck(r) {
			c.keep(r) // alone, so that what nobody waits for any more ends
			done = false
		} else if r.claiming != 0 || !c.letGo(r) {
			done = false
		} else if !c.release(r) && (c.lease.reachable || s.undo) {
			done = false
		}
	}
	if done {
		c.keepsTerms(s)
		c.ends(s)
	}
}

// stuck reports whether polluxd could not demote r because it is frozen: what was
// written, and is acknowledged by nobody, ends only by a new term.
func (c *Core) stuck(r *resource) bool {
	return r.st.Role == Primary && r.st.Frozen != "" && r.problem != "" && c.isMine(r) && !r.known.behind
}

// keepsTerms: s was to move, and the other copy may lack what was acknowledged last. It
// stays with this node.
func (c *Core) keepsTerms(s *service) {
	for _, r := range s.res {
		if s.moving != "" && r.rec.Owner == c.self && (!r.rec.Counts(r.peer.cfg.Name) || !r.mayRelease()) {
			c.note(Notice{
				Level: Warning, Topic: TopicService, Service: s.name, Resource: r.name,
				Text: fmt.Sprintf("%s: it does not move to %s: %s was lost before it had all of %s", s.name, s.moving, r.peer.cfg.Name, r.name),
			})
			s.moving = ""
		}
	}
}

// ends: nothing of s is left here.
func (c *Core) ends(s *service) {
	if s.hooked {
		c.give(Order{Kind: Hook, Hook: OnDemote, Service: s.name, Text: s.name + " has ended on " + c.self}, nil)
	}
	s.want, s.hooked, s.wasUp, s.byForce, s.undo, s.inc = wantIdle, false, false, false, false, ""
	if s.moving != "" {
		s.holdOff, s.handed = c.now+c.cfg.Timing.Deadtime, true // the other one's turn
		s.refusal = verdict{}
	}
	s.moving = ""
	s.dirty, c.urgent, c.beatDue = true, true, true
}
