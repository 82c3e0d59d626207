package ha

import "fmt"

// end looks whether s may go on here, and ends it at once if it may not (I7). What
// protects the data are the terms; this is for what a term can't undo: a guest that
// still reads, and talks to the network.
func (c *Core) end(s *service) bool {
	if !s.isHere() {
		return false
	}
	for _, r := range s.res {
		if v := c.overdue(s, r); v.text != "" {
			c.lose(s, v)
			return true
		}
	}
	return false
}

// overdue is why a resource that is in use here may not be any more.
func (c *Core) overdue(s *service, r *resource) verdict {
	st := &r.st
	if !s.exists() && (st.Role != Primary || !st.Owned) {
		return verdict{}
	}
	switch rec := &r.rec; {
	case rec.Term > 0 && !r.known.behind && rec.Owner != c.self && rec.Term >= st.Term:
		return verdict{Warning, fmt.Sprintf("%s: %s owns it, under term %d", r.name, rec.Owner, rec.Term), ""}
	case st.Role == Primary && st.Owned && st.Promised > st.Term && (!c.isMine(r) || rec.Term < st.Promised):
		return verdict{Warning, fmt.Sprintf("%s: term %d is promised to another owner, this node has term %d", r.name, st.Promised, st.Term), ""}
	}
	if c.leaseGood() || r.unsafeAt == 0 {
		return verdict{}
	}
	end := c.lease.until
	if end == 0 { // when an earlier process's lease ended is not known
		end = c.begun + c.askTimeout()
	}
	const same = 1000 // milliseconds: what is found out just after a pause happened in it
	if r.unsafeAt > end && (c.woke == 0 || r.unsafeAt-c.woke > same) {
		// The lease ended long ago, while the peer was connected: the other node waits
		// for longer than this after it lost the connection.
		end = r.unsafeAt + c.cfg.Timing.TTL/2
	}
	if c.now < end {
		c.wake(s, end)
		s.waits = true
		return verdict{}
	}
	return verdict{
		Critical, fmt.Sprintf("%s: its peer is out of reach, and this node's lease has ended", r.name),
		"restore the connection to the arbiter or to " + r.peer.cfg.Name,
	}
}

// lose ends s at once: reads wait, the addresses go, it is killed.
func (c *Core) lose(s *service, v verdict) {
	s.toKill = s.exists() || s.wasUp
	s.want, s.refusal, s.killAt, s.moving, s.flight = wantLost, v, 0, "", 0
	c.note(Notice{Level: Critical, Topic: TopicService, Service: s.name, Text: fmt.Sprintf("%s: it is ended here at once: %s", s.name, v.text)})
	for _, r := range s.res {
		if r.st.Role == Primary && !r.st.ReadsFrozen && !r.frozen {
			r.frozen = true
			c.give(Order{Kind: FreezeReads, Resource: r.name, Timeout: storageTimeout}, func(e Event) {
				if r.frozen = e.Err == ""; !r.frozen {
					c.note(Notice{Level: Critical, Topic: TopicRole, Resource: r.name, Text: e.Err})
				}
			})
		}
	}
}

func (c *Core) endNow(s *service) {
	s.why = s.refusal
	if s.seen.Addresses && s.cfg.Addresses && s.ipsBusy == 0 {
		c.addresses(s, RemoveIPs)
	}
	switch {
	case s.flight != 0:
		return
	case s.toKill || s.seen.Phase != PhaseStopped:
		if c.now < s.killAt {
			c.wake(s, s.killAt)
			return
		}
		c.kill(s, func(gone bool) {
			if gone {
				s.toKill = false
				return
			}
			c.give(Order{Kind: Watchdog, Service: s.name, Text: s.name + " must not run here any more, and can't be killed"}, nil)
		})
		return
	}
	done := s.ipsBusy == 0 && !(s.seen.Addresses && s.cfg.Addresses)
	for i := len(s.res) - 1; i >= 0; i-- {
		done = c.letGo(s.res[i]) && done
	}
	switch {
	case done:
		s.holdOff = c.now + 500
		c.ends(s)
	case c.mayGoOn(s):
		c.note(Notice{Level: Info, Topic: TopicService, Service: s.name, Text: s.name + ": the arbiter answers again: this node goes on with what is frozen"})
		c.ends(s)
	}
}

// mayGoOn reports whether nothing speaks against s here any more but that polluxd
// can't demote what is frozen: what was written and never acknowledged ends only by a
// new term. This node still owns it, so it asks for one.
func (c *Core) mayGoOn(s *service) bool {
	frozen := false
	for _, r := range s.res {
		if !c.lease.reachable || !c.leaseGood() || !c.isMine(r) || r.known.behind || r.busy != 0 || c.overdue(s, r).text != "" {
			return false
		}
		frozen = frozen || r.st.Role == Primary && r.st.Frozen != "" && r.problem != ""
	}
	return frozen
}
