package ha

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// lease is this node's lease, and what it knows of the arbiter.
type lease struct {
	until       Tick // it lasts as long, counted from when the renewal was ordered; 0: none
	renewing    OrderID
	nextRenew   Tick
	observing   OrderID
	nextObserve Tick
	reachable   bool // the last answer was one
	since       Tick // of reachable; 0: it never answered
	contact     Tick // since when every question was answered
	viewed      bool // it was seen at least once
	detail      string
	voters      int  // of the arbiter, as it says
	lost        bool // the lease had ended, and the records were not looked at since
}

// leaseGood reports whether this node holds its lease, if leases decide.
func (c *Core) leaseGood() bool { return !c.cfg.Arbiter.HasLeases() || c.now < c.lease.until }

// askTimeout is how long a question to the arbiter may take: several fit into a lease.
func (c *Core) askTimeout() Tick {
	if ttl := c.cfg.Timing.TTL; ttl > 0 {
		return max(ttl/4, 100)
	}
	return 2000
}

// keepLease renews the lease each third of its time, and looks at the arbiter: at
// once if something may have changed, often while a decision waits for it, else now
// and then. Two nodes that are the arbiter together have no lease that ends; that is
// how they meet again after one of them was away.
func (c *Core) keepLease() {
	l := &c.lease
	if l.renewing == 0 && c.now >= l.nextRenew {
		sent := c.now
		l.renewing = c.give(Order{Kind: Renew, Session: c.session, Timeout: c.askTimeout()}, func(e Event) { c.renewed(sent, e) })
	}
	if c.cfg.Arbiter.HasLeases() && l.until != 0 && c.now >= l.until && !l.lost {
		l.lost, c.leader.viewed = true, false
		c.note(Notice{Level: Critical, Topic: TopicLease, Node: c.self, Text: "this node's lease has ended: the arbiter was not reached in time"})
		c.dirtyAll()
	}
	if l.observing == 0 && c.now >= l.nextObserve {
		c.observe()
	}
	text := ""
	switch {
	case c.now-c.begun < c.askTimeout() && !l.viewed:
	case !c.cfg.Arbiter.Automatic():
		text = "no arbiter: protected against disk loss, not against host loss"
	case !l.reachable && (c.now-l.since >= c.askTimeout() || !c.leaseGood()):
		text = "no arbitration, no automatic failover: the arbiter can't be reached: " + l.silence() + "; running services go on as long as their peers are connected"
	}
	level := Critical
	if c.cfg.Arbiter == ArbiterManual {
		level = Warning
	}
	c.alarm(Notice{Key: "arbitration", Level: level, Topic: TopicAlarm, Text: text})
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func (c *Core) renewed(sent Tick, e Event) {
	l := &c.lease
	l.renewing = 0
	ttl := c.cfg.Timing.TTL
	if e.Err != "" {
		l.nextRenew = c.now + max(ttl/12, 50)
		l.noContact(c, e.Err)
		return
	}
	l.inContact(c)
	if !c.cfg.Arbiter.HasLeases() {
		l.nextRenew = sent + max(ttl, 3000)/3
		return
	}
	if l.lost || l.until == 0 {
		l.lost, l.nextObserve = false, 0
		c.note(Notice{Level: Info, Topic: TopicLease, Node: c.self, Text: "this node has a lease"})
		c.dirtyAll()
	}
	l.until = max(l.until, sent+ttl)
	l.nextRenew = sent + ttl/3
	c.give(Order{Kind: TellLease, Until: l.until}, nil)
}

func (l *lease) inContact(c *Core) {
	if !l.reachable {
		l.reachable, l.since, l.contact = true, c.now, c.now
		c.note(Notice{Level: Info, Topic: TopicArbiter, Text: "the arbiter answers"})
		c.dirtyAll()
	}
	if l.contact == 0 {
		l.contact = c.now
	}
}

func (l *lease) noContact(c *Core, why string) {
	l.detail = why
	l.lostContact(c)
}

// silence is why the arbiter does not answer.
func (l *lease) silence() string {
	return orElse(strings.TrimPrefix(l.detail, arbiter.ErrUnreachable.Error()+": "), "no answer")
}

func (l *lease) lostContact(c *Core) {
	l.contact = 0
	if l.reachable {
		l.reachable, l.since = false, c.now
		c.dirtyAll()
	}
}

// observe asks for all records and leases. What the answer must not be older than
// is noted now: promises that are known already.
func (c *Core) observe() {
	l := &c.lease
	names := make([]string, 0, len(c.resources)+1)
	for _, r := range c.resources {
		names = append(names, r.name)
		r.known.atView = c.promisedTerm(r)
	}
	names = append(names, LeaderResource)
	l.nextObserve = c.now + c.lookAgain()
	id := c.lastID + 1
	l.observing = c.give(Order{Kind: Observe, Resources: names, Timeout: c.askTimeout()}, func(e Event) { c.viewed(id, e) })
}

// lookAgain is when to look at the arbiter the next time, if nothing calls.
func (c *Core) lookAgain() Tick {
	ttl := max(c.cfg.Timing.TTL, 3000)
	if !c.lease.reachable {
		return ttl / 12
	}
	for _, s := range c.services {
		if s.mine && s.waits {
			return ttl / 20
		}
	}
	return ttl / 2
}

func (c *Core) viewed(id OrderID, e Event) {
	l := &c.lease
	l.observing = 0
	if e.Err != "" {
		l.nextObserve = min(l.nextObserve, c.now+max(c.cfg.Timing.TTL, 3000)/12)
		l.noContact(c, e.Err)
		return
	}
	l.inContact(c)
	l.detail, l.viewed, l.voters = e.View.Detail, true, e.View.Voters
	for _, n := range c.nodes {
		was := n.lease
		n.lease, n.leaseKnow = e.View.Lease(n.cfg.Name), true
		if n.lease.Alive {
			n.leaseSeen = c.now
		}
		if n.lease != was {
			c.dirtyAll()
		}
	}
	for _, rec := range e.View.Records {
		if rec.Resource == LeaderResource {
			c.leader.see(id, rec)
			continue
		}
		if r := c.resource(rec.Resource); r != nil {
			c.viewRecord(r, id, rec)
		}
	}
}

// record is what this node knows of an arbiter's record.
type record struct {
	viewed bool    // it was seen, or the arbiter has answered a claim
	fence  OrderID // views that were asked for before this order may be older than what is known
	atView uint64  // promised when the view was asked for
	behind bool    // the arbiter's record is older than a promise: it is not believed
	since  Tick    // of behind
}

func noRecord(name string) arbiter.Record { return arbiter.Record{Resource: name} }

// promisedTerm is the highest term that any replica is known to have promised.
func (c *Core) promisedTerm(r *resource) uint64 {
	p := max(r.st.Promised, r.st.Term)
	if cp := r.peer.copy(r.name); cp != nil {
		p = max(p, cp.Promised, cp.Term)
	}
	return p
}

func isNewer(rec, than arbiter.Record) bool {
	return rec.Term > than.Term || rec.Term == than.Term && rec.Released && !than.Released
}

// viewRecord takes what the arbiter itself says now.
func (c *Core) viewRecord(r *resource, id OrderID, rec arbiter.Record) {
	if id < r.known.fence && isNewer(r.rec, rec) {
		return
	}
	behind := rec.Term < r.known.atView
	if r.known.viewed && behind == r.known.behind && sameRecord(rec, r.rec) {
		return
	}
	if behind && !r.known.behind {
		r.known.since = c.now
	}
	r.rec, r.known.viewed, r.known.behind = rec, true, behind
	c.tellBehind(r)
	c.changed(r)
}

// isFilling reports whether a record that is behind may just not have been filled yet:
// copies that were promoted before there was an arbiter meet it for the first time.
func (c *Core) isFilling(r *resource) bool {
	return r.known.behind && c.now < r.known.since+c.cfg.Timing.Deadtime
}

// tellBehind raises the alarm about a record that stays behind.
func (c *Core) tellBehind(r *resource) {
	n := Notice{Key: "behind/" + r.name, Level: Critical, Topic: TopicAlarm, Resource: r.name, Term: r.rec.Term}
	switch {
	case !r.known.behind, c.isFilling(r):
	case r.rec.Term == 0:
		n.Text = fmt.Sprintf("%s: the arbiter has no record of it, and its copies have promised term %d: they were promoted by hand before, or the arbiter has lost its state; "+
			"it is filled as soon as both copies are connected and equal", r.name, r.known.atView)
	default:
		n.Text = fmt.Sprintf("%s: the arbiter has term %d, and the replicas have promised term %d: it was restored from a backup, or has lost its state; it is not believed, "+
			"and filled again as soon as both copies are connected and equal", r.name, r.rec.Term, r.known.atView)
	}
	c.alarm(n)
}

// learnRecord takes a record that somebody else has seen, or that a claim was
// answered with: only what is newer counts.
func (c *Core) learnRecord(r *resource, rec arbiter.Record) {
	if rec.Term == 0 || !isNewer(rec, r.rec) {
		return
	}
	r.rec = rec
	if rec.Term >= c.promisedTerm(r) {
		r.known.behind = false
		c.alarm(Notice{Key: "behind/" + r.name})
	}
	c.changed(r)
}

func (c *Core) changed(r *resource) {
	c.beatDue = true
	if r.svc != nil {
		r.svc.dirty = true
	}
}
