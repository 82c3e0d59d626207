package ha

import (
	"fmt"
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// leader is the election: the leader owns the arbiter's pseudo-resource. It decides
// nothing about services; the floating management address goes with it.
type leader struct {
	rec      arbiter.Record
	viewed   bool
	fence    OrderID
	claiming OrderID
	retryAt  Tick
	lead     bool // this node is the leader, and its lease is good
	told     bool // which of the two hooks ran last, once one has
	any      bool
	has      bool // the address is on this node, or may be
	sure     bool // of has: an earlier process may have left the address
	busy     OrderID
	busyAt   Tick
}

func (l *leader) see(id OrderID, rec arbiter.Record) {
	if id < l.fence && isNewer(l.rec, rec) {
		return
	}
	l.rec, l.viewed = rec, true
}

// elect keeps the leadership, or takes it from a leader that is gone.
func (c *Core) elect() {
	l := &c.leader
	if !c.cfg.Arbiter.Automatic() {
		return
	}
	lead := l.rec.Owner == c.self && !l.rec.Released && c.leaseGood() && !c.left && l.viewed
	if lead != l.lead {
		l.lead, c.beatDue = lead, true
		c.note(Notice{Level: Info, Topic: TopicNode, Node: c.self, Term: l.rec.Term, Text: map[bool]string{true: c.self + " is the leader now", false: c.self + " is not the leader any more"}[lead]})
	}
	c.leaderAddress()
	if n := c.node(c.self); n.cfg.Witness || !l.viewed || l.claiming != 0 || c.now < l.retryAt || !c.leaseGood() || !c.lease.reachable || c.left {
		return
	}
	if lead && c.namesElectors(l.rec) || !lead && l.has {
		return
	}
	if l.rec.Term > 0 && !l.rec.Released && l.rec.Owner != c.self {
		owner := c.node(l.rec.Owner)
		switch {
		case owner == nil, owner.fenced:
		case !c.cfg.Arbiter.HasLeases(), owner.lease.Alive || !owner.leaseKnow, c.now < owner.leaseSeen+c.cfg.Timing.margin():
			return
		}
	}
	members := c.electors()
	cl := arbiter.Claim{Resource: LeaderResource, Node: c.self, Session: c.session, Seen: l.rec.Term, Members: members, InSync: members}
	if l.rec.Term > 0 && l.rec.Owner != c.self {
		// Who joined since the last leader's claim can be added by the next one only.
		cl.InSync = slices.DeleteFunc(slices.Clone(members), func(n string) bool { return n != c.self && !l.rec.Counts(n) })
		if owner := c.node(l.rec.Owner); owner != nil && owner.fenced {
			cl.Fenced = l.rec.Owner
		}
	}
	l.claiming = c.give(Order{Kind: Claim, Resource: LeaderResource, Claim: cl, Timeout: c.askTimeout()}, func(e Event) {
		l.claiming, l.fence = 0, c.lastID+1
		l.retryAt = c.now + c.cfg.Timing.Keepalive
		if e.Outcome == Unreachable {
			c.lease.noContact(c, e.Err)
			return
		}
		l.see(l.fence, e.Record)
	})
}

// electors are the nodes that may lead.
func (c *Core) electors() (names []string) {
	for _, n := range c.nodes {
		if !n.cfg.Witness {
			names = append(names, n.cfg.Name)
		}
	}
	return names
}

// namesElectors reports whether the record's copies are all electors and nobody
// else. If not, nodes have come or gone and the leader claims it anew: one that the
// record does not name could not succeed it.
func (c *Core) namesElectors(rec arbiter.Record) bool {
	count := 0
	for _, n := range c.nodes {
		if n.cfg.Witness {
			continue
		}
		if count++; !rec.Counts(n.cfg.Name) {
			return false
		}
	}
	return count == len(rec.InSync)
}

// leaderAddress adds and removes the floating management address, and runs the hooks.
func (c *Core) leaderAddress() {
	l := &c.leader
	leads := l.rec.Owner == c.self && !l.rec.Released
	unsure := !l.sure && (l.lead || l.viewed && !leads || c.now-c.begun >= c.cfg.Timing.TTL)
	if c.cfg.LeaderAddress && (l.lead != l.has || unsure) && l.busy == 0 && c.now >= l.busyAt {
		kind := RemoveIPs
		if l.lead {
			kind, l.has = AddIPs, true
		}
		l.busy = c.give(Order{Kind: kind, Service: LeaderResource, Timeout: addressTimeout}, func(e Event) {
			l.busy, l.busyAt = 0, c.now+1000
			if e.Err != "" {
				c.note(Notice{Level: Warning, Topic: TopicAddress, Node: c.self, Text: fmt.Sprintf("the management address: %s", e.Err)})
			}
			l.has, l.sure = kind == AddIPs || e.Err != "", e.Err == ""
		})
	}
	if l.lead != l.told || !l.any && l.viewed {
		l.told, l.any = l.lead, true
		hook := OnFollower
		if l.lead {
			hook = OnLeader
		}
		c.give(Order{Kind: Hook, Hook: hook, Node: c.self, Text: c.self}, nil)
	}
}
