package ha

import (
	"fmt"
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// resource is one resource that has a copy on this node.
type resource struct {
	name string
	cfg  Resource
	peer *node
	svc  *service // that it belongs to; nil if none

	st    Storage
	isSet bool // st was reported
	rec   arbiter.Record
	known record
	met   bool // the peer's copy was connected since this machine's boot
	left  bool // this copy was left behind: the disk had failed, and the peer's served alone

	lostAt   Tick   // when the data connection ended; 0 while it stands
	unsafeAt Tick   // since when this node may write only if the arbiter says so; 0: it may
	grant    uint64 // term that this node was given and has not been promoted under yet
	promised bool   // for grant
	spent    uint64 // a term that polluxd did not take up
	claiming OrderID
	busy     OrderID // a command of polluxd
	retryAt  Tick
	failures int     // of promotions and exports, in a row
	problem  string  // what the last of them said
	refused  string  // why the arbiter refused the last claim
	frozen   bool    // FreezeReads was ordered
	asking   OrderID // Failsafe
	askAt    Tick
}

// storage takes what polluxd says.
func (c *Core) storage(r *resource, st Storage) {
	was := r.st
	r.st = st
	if st.Connected {
		r.lostAt = 0
		if !r.met {
			r.met, c.saved = true, false
		}
		r.peer.fenced = false // it is back
	} else if was.Connected || r.lostAt == 0 {
		r.lostAt = c.now
	}
	if left := r.leftBehind(); left != r.left {
		r.left, c.saved = left, false
	}
	if r.isSafe() {
		r.unsafeAt = 0
	} else if r.unsafeAt == 0 {
		r.unsafeAt = c.now
	}
	if st.Frozen != was.Frozen {
		text, level := r.name+": I/O goes on", Info
		if st.Frozen != "" {
			text, level = fmt.Sprintf("%s: I/O is frozen: %s", r.name, st.Frozen), Warning
		}
		c.note(Notice{Level: level, Topic: TopicRole, Resource: r.name, Term: st.Term, Text: text})
	}
	if !st.ReadsFrozen {
		r.frozen = false
	}
	r.isSet = true
	c.changed(r)
}

// isSafe reports whether this node's copy may be written without a lease: the peer
// is connected, so it does not take over, or its copy does not count.
func (r *resource) isSafe() bool {
	st := &r.st
	return st.Role == Primary && (st.Sole || st.Connected && st.Frozen == "")
}

// leftBehind reports whether this node's copy may lack what was acknowledged while its
// disk was out of use and this node, Primary, went on with its peer's copy. The disk
// itself does not say so: it could not be written. That ends when both copies are
// connected and UpToDate, or when polluxd vouches for the disk that it had in use before,
// still Primary.
func (r *resource) leftBehind() bool {
	st := &r.st
	switch {
	case st.Role == Primary && st.Connected && st.PeerDisk == UpToDate && (st.Disk == Diskless || st.Disk == Failed):
		return true
	case st.Disk == UpToDate && (st.Role == Primary || st.Connected && st.PeerDisk == UpToDate):
		return false
	}
	return r.left
}

// isMine reports whether the arbiter's record names this node.
func (c *Core) isMine(r *resource) bool {
	return r.rec.Term > 0 && r.rec.Owner == c.self && !r.rec.Released
}

// peerEqual reports whether the peer's copy has all that this one has, by what both
// say.
func (r *resource) peerEqual() bool {
	st, cp := &r.st, r.peer.copy(r.name)
	return st.Connected && st.Disk == UpToDate && st.PeerDisk == UpToDate && st.DirtyBytes == 0 && !st.Sole && !st.Marked &&
		cp != nil && cp.DirtyBytes == 0 && cp.Disk == UpToDate && cp.Generation == st.Generation
}

// sameGeneration reports whether both copies are connected, UpToDate and of one
// generation: blocks that are out of sync all the same wait for the next resync.
func (r *resource) sameGeneration() bool {
	st, cp := &r.st, r.peer.copy(r.name)
	return st.Connected && st.Disk == UpToDate && st.PeerDisk == UpToDate && cp != nil && cp.Disk == UpToDate && cp.Generation == st.Generation
}

// whole reports whether this node's copy can be read and is of one moment.
func (r *resource) whole() bool { return r.st.Disk == UpToDate || r.st.Disk == Consistent }

// claim asks the arbiter for a new term under which inSync counts.
func (c *Core) claim(r *resource, force bool, inSync ...string) {
	members := r.cfg.pair()
	cl := arbiter.Claim{
		Resource: r.name, Node: c.self, Session: c.session, Seen: r.rec.Term, MinTerm: c.promisedTerm(r),
		InSync: slices.Sorted(slices.Values(inSync)), Members: members[:], Generation: r.st.Generation, Force: force,
	}
	if r.peer.fenced {
		cl.Fenced = r.peer.cfg.Name
	}
	r.claiming = c.give(Order{Kind: Claim, Resource: r.name, Claim: cl, Timeout: c.askTimeout()}, func(e Event) { c.claimed(r, cl, e) })
}

func (c *Core) claimAlone(r *resource) { c.claim(r, false, c.self) }

func (c *Core) claimBoth(r *resource) { c.claim(r, false, c.self, r.peer.cfg.Name) }

func (c *Core) claimed(r *resource, cl arbiter.Claim, e Event) {
	r.claiming, r.refused = 0, ""
	r.known.fence = c.lastID + 1
	c.changed(r)
	if e.Outcome == Unreachable {
		c.lease.noContact(c, e.Err)
		c.lease.nextObserve = 0 // it may have been carried out
		r.retryAt = c.now + max(c.cfg.Timing.TTL, 3000)/30
		return
	}
	c.lease.inContact(c)
	r.known.viewed = true
	rec := e.Record
	if e.Outcome == Granted {
		if rec.Term <= cl.Seen || rec.Term <= cl.MinTerm || rec.Owner != c.self {
			r.refused = fmt.Sprintf("the arbiter's grant of term %d is older than a promise of term %d: it is not used", rec.Term, max(cl.Seen, cl.MinTerm))
			r.retryAt = c.now + 1000
			return
		}
		c.note(Notice{Level: Info, Topic: TopicTerm, Resource: r.name, Term: rec.Term, Text: fmt.Sprintf("%s: term %d is this node's, counting %v", r.name, rec.Term, rec.InSync)})
		r.rec, r.grant, r.promised, r.failures = rec, rec.Term, false, 0
		c.dropOverrides(r)
		c.alarm(Notice{Key: "behind/" + r.name})
		r.known.behind = false
		return
	}
	r.refused = orElse(e.Err, e.Outcome.String())
	c.note(Notice{Level: Warning, Topic: TopicTerm, Resource: r.name, Term: rec.Term, Text: fmt.Sprintf("%s: %s", r.name, r.refused)})
	r.retryAt = c.now + 200
	switch e.Outcome {
	case Changed, Held, Stale:
		c.viewRecord(r, r.known.fence, rec)
	case Behind:
		r.known.atView = max(r.known.atView, cl.MinTerm)
		c.viewRecord(r, r.known.fence, rec)
		r.retryAt = c.now + 1000
	default: // Invalid: this node's mistake; asking again at once is none the better
		r.retryAt = c.now + 5000
	}
}

// keep cares for the term of a resource that this node is Primary of: it goes on
// alone if the peer is lost, and counts the peer again when it has everything. It
// reports whether I/O may go on under the arbiter's term.
func (c *Core) keep(r *resource) bool {
	st := &r.st
	c.failsafe(r)
	if r.claiming != 0 || r.busy != 0 {
		return false
	}
	fine := st.Owned && st.Frozen == "" && (c.overridden(r) || st.Term == r.rec.Term && st.Term >= st.Promised && c.isMine(r))
	if c.now < r.retryAt {
		c.wake(r.svc, r.retryAt)
		return fine
	}
	lonely := !st.Sole && (st.Frozen != "" || !st.Connected)
	switch {
	case c.overridden(r): // the operator has answered for it before the arbiter could
		if c.lease.reachable && c.leaseGood() && r.known.viewed {
			c.claim(r, true, c.self)
		}
		return fine
	case r.known.behind:
		if r.peerEqual() {
			c.claimBoth(r)
		}
		return fine
	case !c.isMine(r):
		return false
	case r.rec.Term > st.Term, !st.Owned, st.Term < st.Promised && r.rec.Term >= st.Promised:
		if lonely && !r.rec.Sole() {
			return c.goOn(r)
		}
		if r.spent == r.rec.Term {
			return c.goOn(r)
		}
		c.promote(r)
	case lonely:
		return c.goOn(r)
	case c.recordLags(r):
		c.claimAlone(r)
		return fine
	case r.peerEqual() && (r.rec.Sole() || r.rec.Generation != st.Generation):
		// polluxd is under the record's term and has taken the mark back, so a late
		// grant of the smaller set is refused by it.
		c.claimBoth(r)
		return fine
	case r.rec.Sole() && st.Connected && st.Disk == UpToDate && st.PeerDisk == UpToDate && st.DirtyBytes > 0:
		r.svc.say(Warning, fmt.Sprintf("%s: %s is connected and UpToDate, and %d KiB may differ there: it does not count", r.name, r.peer.cfg.Name, (st.DirtyBytes+1023)/1024),
			fmt.Sprintf("polluxadm disconnect %s, then connect: the resync ends that", r.name))
		return fine
	default:
		return fine
	}
	return false
}

// goOn asks to be the only one that counts.
func (c *Core) goOn(r *resource) bool {
	switch {
	case r.svc != nil && r.svc.force != "":
		c.forceAlone(r)
	case r.left:
		v := r.leftVerdict()
		r.svc.say(v.level, v.text, v.advice)
	case !r.whole():
		r.svc.say(Critical, fmt.Sprintf("%s: this node's disk is %s, and its peer is out of reach", r.name, r.st.Disk), "repair the connection to "+r.peer.cfg.Name)
	case c.cfg.Arbiter == ArbiterFence && !r.peer.fenced && !c.isOnline(r.peer):
		// As long as the peer is heard of, it is asked: that arbiter grants nothing
		// without its word.
		r.svc.say(Critical, fmt.Sprintf("%s: the peer is lost, and %s is not confirmed to be off", r.name, r.peer.cfg.Name), c.fenceAdvice(r.peer))
		r.svc.waits = true
	default:
		c.claimAlone(r)
	}
	return false
}

// leftVerdict is why a copy that was left behind counts for nothing on its own (I4).
func (r *resource) leftVerdict() verdict {
	peer := r.peer.cfg.Name
	return verdict{
		Critical, fmt.Sprintf("%s: this node's disk had failed, and what was written since is on %s only, which is out of reach", r.name, peer),
		"repair the connection to " + peer,
	}
}

// promote has polluxd take the record's term up.
func (c *Core) promote(r *resource) {
	term, sole := r.rec.Term, r.rec.Sole()
	r.busy = c.give(Order{Kind: Promote, Resource: r.name, Term: term, Sole: sole, Force: c.byForce(r), Timeout: storageTimeout}, func(e Event) {
		if c.ended(r, e) {
			r.grant = 0
			c.note(Notice{Level: Info, Topic: TopicRole, Resource: r.name, Term: term, Text: fmt.Sprintf("%s: Primary under term %d%s", r.name, term, aloneText(sole))})
			return
		}
		// It may know of something that overtook this grant: only a new one counts.
		r.spent, r.grant = term, 0
	})
}

func aloneText(sole bool) string {
	if sole {
		return ", alone"
	}
	return ""
}

// ended files the end of a command of polluxd, and reports whether it was carried
// out.
func (c *Core) ended(r *resource, e Event) bool {
	r.busy = 0
	c.changed(r)
	if e.Err == "" {
		r.problem, r.failures = "", 0
		return true
	}
	r.failures++
	r.problem = e.Err
	r.retryAt = c.now + min(Tick(r.failures)*100, 2000)
	c.note(Notice{Level: Warning, Topic: TopicRole, Resource: r.name, Text: e.Err})
	return false
}

// order gives a plain command of polluxd.
func (c *Core) order(r *resource, o Order) {
	o.Resource, o.Timeout = r.name, storageTimeout
	r.busy = c.give(o, func(e Event) { c.ended(r, e) })
}

// letGo ends this node's use of a resource step by step, and reports whether
// nothing is left of it.
func (c *Core) letGo(r *resource) bool {
	st := &r.st
	switch {
	case r.busy != 0:
		return false
	case st.Incarnation == "" && st.Role != Primary:
		return true
	case c.now < r.retryAt && r.problem != "":
		c.wake(r.svc, r.retryAt)
	case st.Incarnation != "":
		c.order(r, Order{Kind: Unexport})
	default:
		c.order(r, Order{Kind: Demote})
	}
	return false
}

// mayRelease reports whether the other copy that counts has all that was acknowledged:
// under protocols A and B it may not have it when the connection is lost, and whoever
// releases lets it take over at once.
func (r *resource) mayRelease() bool {
	st := &r.st
	return r.cfg.Protocol == "C" || r.rec.Sole() || st.Connected && st.PeerDisk == UpToDate && st.DirtyBytes == 0
}

// release tells the arbiter that nobody writes, and reports whether it knows, or
// need not.
func (c *Core) release(r *resource) bool {
	switch {
	case !r.mayRelease():
		return r.claiming == 0
	case !c.isMine(r) || r.known.behind && !r.peerEqual(): // who has an old record's word may be stale
		return r.claiming == 0
	case r.claiming != 0 || r.busy != 0:
		return false
	case c.now < r.retryAt:
		c.wake(r.svc, r.retryAt)
		return false
	}
	term := r.rec.Term
	r.claiming = c.give(Order{Kind: Release, Resource: r.name, Term: term, Timeout: c.askTimeout()}, func(e Event) {
		r.claiming, r.known.fence = 0, c.lastID+1
		c.changed(r)
		if e.Err != "" {
			r.retryAt = c.now + 300
			c.lease.nextObserve = 0
			return
		}
		if r.rec.Term == term && r.rec.Owner == c.self {
			r.rec.Released, r.grant = true, 0
			c.urgent = true
		}
	})
	return false
}
