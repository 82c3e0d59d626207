package ha

import "fmt"

// mayTake decides whether this node, which runs nothing of s, is to run it now.
// If not, s.why says why, unless all is as it should be.
func (c *Core) mayTake(s *service, w *Wish) bool {
	p := s.peer
	sb := p.service(s.name)
	switch {
	case s.force != "":
		return true
	case c.runsThere(s), c.leaving():
		return false
	case c.isStandby(c.self):
		s.say(Info, c.self+" is standby", "polluxadm node online "+c.self)
		return false
	case s.failed:
		s.say(Critical, c.usedUp(s), "find out why, then: polluxadm vm start "+s.name)
		return false
	case s.notReady != "":
		s.say(Critical, s.notReady, c.outdatedAdvice(s))
		return false
	case sb != nil && sb.Hash != s.cfg.Hash:
		s.say(Critical, fmt.Sprintf("its file differs between %s and %s, so it is not started automatically", c.self, p.cfg.Name), "make the two files equal and run polluxadm reload")
		return false
	}
	if why := c.lossDiffers(s); why != "" && c.mayLose(s) {
		s.say(Critical, why+", so it is not taken over automatically", lossAdvice)
		return false
	}
	var waits verdict
	for _, r := range s.res {
		set, v := c.claimable(s, r)
		if len(set) == 0 {
			waits = v
			break
		}
	}
	if waits.text != "" {
		s.say(waits.level, waits.text, waits.advice)
		s.waits, s.yieldAt = true, 0
		return false
	}
	return c.myTurn(s, w)
}

// runsThere reports whether the other node has s in use, as far as its heartbeats
// tell: then it is that node's business.
func (c *Core) runsThere(s *service) bool {
	sb := s.peer.service(s.name)
	if !c.isOnline(s.peer) || sb == nil {
		return false
	}
	switch sb.State {
	case StateMoving, StateStopping:
		for _, r := range s.res {
			if r.rec.Owner == s.peer.cfg.Name && !r.rec.Released || r.rec.Term == 0 {
				s.waits = true
				return true
			}
		}
		return false
	case StateStarting, StateRunning, StateFrozen:
		return true
	case StateStopped, StateBlocked, StateFailed, StateUnknown:
	}
	return false
}

// claimable says with which set of copies this node, which is not Primary of r, may
// ask the arbiter for it; if it may not, why.
func (c *Core) claimable(s *service, r *resource) (set []string, v verdict) {
	st, rec, peer := &r.st, &r.rec, r.peer.cfg.Name
	no := func(level Level, advice, format string, args ...any) ([]string, verdict) {
		return nil, verdict{level, r.name + ": " + fmt.Sprintf(format, args...), advice}
	}
	alone, both := []string{c.self}, []string{c.self, peer}
	equal := r.peerEqual() && st.PeerRole != Primary
	if equal {
		alone = both
	}
	switch {
	case !st.Up:
		return no(Critical, "polluxadm up "+r.name, "it is not up: %s", orElse(st.Problem, "polluxd does not run it"))
	case !r.known.viewed:
		return no(Warning, "", "the arbiter has not been reached yet")
	case !c.leaseGood():
		return no(Critical, "look at polluxadm cluster status", "this node has no lease: the arbiter is out of reach")
	case st.Connected && st.PeerRole == Primary:
		return no(Info, "", "%s is connected, and Primary", peer)
	case (r.known.behind || rec.Term == 0) && equal:
		return both, verdict{}
	case c.isFilling(r):
		c.wake(s, r.known.since+c.cfg.Timing.Deadtime)
		return no(Info, "", "the arbiter has term %d, and term %d is promised: it is filled once both copies are connected and equal", rec.Term, c.promisedTerm(r))
	case r.known.behind && rec.Term == 0:
		return no(Critical, "connect "+peer+", and let the copies become equal", "the arbiter has no record that counts, and term %d is promised: nobody knows who wrote last%s", c.promisedTerm(r), r.apart())
	case r.known.behind:
		return no(Critical, "connect "+peer, "the arbiter knows less than the copies (it was restored, or lost its state): it has term %d, term %d is promised; nobody knows who wrote last until both copies are connected and equal", rec.Term, c.promisedTerm(r))
	case rec.Term == 0:
		return no(Critical, "connect "+peer+", and let the copies become equal", "no node has owned it yet, so nobody knows whether this copy is current")
	case st.Disk == Outdated:
		return nil, verdict{Critical, r.outdated(), c.outdatedAdvice(s)}
	case r.left && !equal:
		return nil, r.leftVerdict()
	case !r.whole():
		return no(Critical, "connect "+peer+" and wait for the resync", "this node's disk is %s", st.Disk)
	case !rec.Counts(c.self):
		return c.stale(r)
	case len(rec.InSync) > 1 && !equal && !r.sameGeneration() && rec.Generation != 0 && st.Generation != 0 && rec.Generation != st.Generation:
		return no(Critical, "connect "+peer, "this copy is of generation %016X, what counts under term %d is %016X", st.Generation, rec.Term, rec.Generation)
	case st.TermUnknown != "" && !equal:
		return no(Critical, "connect "+peer, "this copy may not be the newest: %s", st.TermUnknown)
	}
	if !st.Connected && !rec.Sole() && !r.peer.fenced {
		// No third party keeps the record: the other node's may let it go on alone, too.
		switch {
		case c.cfg.Arbiter == ArbiterFence:
			return no(Critical, c.fenceAdvice(r.peer), "%s is not connected, and not confirmed to be off", peer)
		case c.cfg.Arbiter == ArbiterManual && rec.Owner != c.self:
			return no(Critical, c.forceAdvice(r, peer), "%s had it last and is not connected, and there is no arbiter", peer)
		}
	}
	switch {
	case rec.Owner == c.self && rec.Sole():
		if !r.met && !st.Marked && !st.Connected {
			return no(Critical, "connect "+peer, "the arbiter says that this node wrote alone, and its own metadata does not")
		}
		if c.mayBeContested(r) {
			c.wake(s, c.begun+c.cfg.Timing.Initdead)
			return no(Warning, "", "this node has booted, and waits for %s, whose record may say otherwise", peer)
		}
		return alone, verdict{}
	case rec.Owner != c.self && !rec.Released:
		if v := c.ownerLives(s, r); v.text != "" {
			return nil, v
		}
	}
	if !r.met && !st.Connected {
		return c.firstMeet(r)
	}
	return alone, verdict{}
}

// firstMeet: after a boot nobody writes alone who was not the sole writer (I5).
func (c *Core) firstMeet(r *resource) ([]string, verdict) {
	peer := r.peer.cfg.Name
	if !c.isGone(r.peer) {
		return nil, verdict{Warning, fmt.Sprintf("%s: this node has booted, and waits for %s", r.name, peer), ""}
	}
	return nil, verdict{
		Critical, fmt.Sprintf("%s: this node has booted and was not the sole writer, and %s is away: it could have newer data", r.name, peer),
		c.forceAdvice(r, peer),
	}
}

func (c *Core) forceAdvice(r *resource, peer string) string {
	return fmt.Sprintf("bring %s back; or, if it is off for certain: polluxadm vm failover %s --peer-is-down %s", peer, r.svc.name, peer)
}

// apart is what polluxd says of copies that do not connect, such as a split brain and
// what ends it; "" if it says nothing.
func (r *resource) apart() string {
	if r.st.Connected || r.st.Problem == "" {
		return ""
	}
	return "; " + r.st.Problem
}

// mayBeContested reports whether the record that names this node the sole writer is its
// own word only, and the other node, which an operator or a fence device that was wrong
// may have made the sole writer, too, may be booting as well: it is waited for until
// initdead, as where both say so neither is started before a person has chosen.
func (c *Core) mayBeContested(r *resource) bool {
	n := r.peer
	return !c.cfg.Arbiter.HasLeases() && !r.met && !r.st.Connected && !n.fenced && n.at == 0 && !c.isGone(n)
}

// stale: the copy lacks writes.
func (c *Core) stale(r *resource) ([]string, verdict) {
	owner, peer := r.rec.Owner, r.peer.cfg.Name
	text := fmt.Sprintf("%s: this copy is stale: %s has written without it since term %d", r.name, owner, r.rec.Term)
	if cp := r.peer.copy(r.name); cp != nil && cp.DirtyBytes > 0 {
		text += fmt.Sprintf("; about %d KiB were missing when it was heard last", (cp.DirtyBytes+1023)/1024)
	} else if r.st.DirtyBytes > 0 {
		text += fmt.Sprintf("; at least %d KiB are missing", (r.st.DirtyBytes+1023)/1024)
	}
	if r.lostAt != 0 && !r.st.Connected {
		text += fmt.Sprintf("; it was connected last %s ago", ago(c.now-r.lostAt))
	}
	return nil, verdict{Critical, text, fmt.Sprintf("bring %s back; if its data is lost for good: polluxadm vm failover %s --peer-is-down %s --force", peer, r.svc.name, peer)}
}

// ago says a time coarsely, so that it changes rarely.
func ago(t Tick) string {
	switch {
	case t < 60_000:
		return "less than a minute"
	case t < 3_600_000:
		return fmt.Sprintf("%d min", t/60_000)
	}
	return fmt.Sprintf("%d h", t/3_600_000)
}

// ownerLives is why r can't be taken from its owner, another node (I6).
func (c *Core) ownerLives(s *service, r *resource) verdict {
	n, rec := c.node(r.rec.Owner), &r.rec
	if n == nil || n != r.peer {
		return verdict{Critical, fmt.Sprintf("%s: the arbiter's record names %s, which has no copy", r.name, rec.Owner), "correct the configuration; the record stays as it is"}
	}
	name := n.cfg.Name
	switch {
	case n.fenced && (c.cfg.failsOver(&s.cfg) || s.force != ""):
		return verdict{}
	case r.st.Connected && c.isOnline(n):
		// Its manager will release the term, or start the service.
		return verdict{Info, fmt.Sprintf("%s: %s owns term %d", r.name, name, rec.Term), ""}
	case !c.cfg.failsOver(&s.cfg):
		if !c.isGone(n) && !n.fenced {
			return verdict{Info, fmt.Sprintf("%s: %s owns term %d", r.name, name, rec.Term), ""}
		}
		state := "silent"
		if n.fenced {
			state = "off"
		}
		return verdict{Critical, fmt.Sprintf("%s: %s is %s, and failover is manual", r.name, name, state), c.forceAdvice(r, name)}
	case !c.lease.reachable:
		return verdict{Critical, r.name + ": the arbiter can't be reached: " + c.lease.silence(), "look at polluxadm cluster status"}
	case n.lease.Alive || !n.leaseKnow:
		return verdict{Warning, fmt.Sprintf("%s: %s owns term %d, and its lease has not ended", r.name, name, rec.Term), ""}
	}
	if at := c.leaseOver(s, r, n); c.now < at {
		c.wake(s, at)
		return verdict{Warning, fmt.Sprintf("%s: %s owns term %d, and its lease may not have ended on its own clock", r.name, name, rec.Term), ""}
	}
	return verdict{}
}

// leaseOver is when the lease of an owner that the arbiter calls dead has ended by
// this node's clock, too. It counts from the last sign of life; an owner that says
// itself that it has ended the service gives none. An owner whose manager died long ago
// while its data connection stood has a polluxd that ends the service once that is lost:
// it gets the time for it. Whoever was without the arbiter for
// a while leaves the owner, which may have been so, too, the time to renew its lease
// first.
func (c *Core) leaseOver(s *service, r *resource, n *node) Tick {
	t := &c.cfg.Timing
	at := max(c.lease.contact+t.TTL/2, n.leaseSeen+t.margin())
	if cp, sb := n.copy(r.name), n.service(s.name); c.isOnline(n) && cp != nil && sb != nil && cp.Role == Secondary &&
		(sb.State == StateStopped || sb.State == StateBlocked || sb.State == StateFailed) {
		return at
	}
	if !r.st.Connected {
		at = max(at, r.lostAt+t.TTL/3)
	}
	return max(at, n.at+t.TTL+t.margin(), c.woke+t.TTL+t.margin(), c.begun+t.TTL+t.margin())
}

// mayLose reports whether taking s over now may lose what its owner acknowledged.
func (c *Core) mayLose(s *service) bool {
	for _, r := range s.res {
		if r.mayLose(c.self) {
			return true
		}
	}
	return false
}

func (r *resource) mayLose(self string) bool {
	return r.cfg.Protocol != "C" && r.rec.Term > 0 && r.rec.Owner != self && !r.rec.Released
}

// lossText says what a takeover may lose.
func (c *Core) lossText(s *service) string {
	text := ""
	for _, r := range s.res {
		if r.mayLose(c.self) {
			bound := r.cfg
			if cp := r.peer.copy(r.name); cp != nil { // the owner has held to its own
				bound.MaxLossBytes, bound.MaxLossMS = cp.MaxLossBytes, cp.MaxLossMS
			}
			text += fmt.Sprintf("; %s: what %s acknowledged last may be missing: %s", r.name, r.rec.Owner, orElse(bound.bound(), "nobody has declared how much"))
		}
	}
	return text
}

const lossAdvice = "make max-loss-bytes and max-loss-seconds equal in both nodes' pollux.toml and run polluxadm reload"

// lossDiffers is a sentence if the two nodes of s do not declare the same bounds of what
// protocol A or B may lose: the one that takes over could not say what was lost.
func (c *Core) lossDiffers(s *service) string {
	for _, r := range s.res {
		cp := r.peer.copy(r.name)
		if r.cfg.Protocol == "C" || cp == nil || cp.MaxLossBytes == r.cfg.MaxLossBytes && cp.MaxLossMS == r.cfg.MaxLossMS {
			continue
		}
		theirs := Resource{Protocol: r.cfg.Protocol, MaxLossBytes: cp.MaxLossBytes, MaxLossMS: cp.MaxLossMS}
		return fmt.Sprintf("%s: %s and %s declare different bounds of what may be lost (%s; %s)", r.name, c.self, r.peer.cfg.Name,
			orElse(r.cfg.bound(), "none"), orElse(theirs.bound(), "none"))
	}
	return ""
}

// bound is what a takeover under protocol A or B loses at most.
func (r *Resource) bound() string {
	if r.Protocol == "C" || r.MaxLossBytes == 0 {
		return ""
	}
	return fmt.Sprintf("at most %d KiB, or %d.%d s", (r.MaxLossBytes+1023)/1024, r.MaxLossMS/1000, r.MaxLossMS%1000/100)
}
