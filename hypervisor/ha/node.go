package ha

import (
	"fmt"
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// node is what this node knows of another one; of itself, the configuration only.
type node struct {
	cfg      Node
	beat     Beat
	at       Tick // when the last beat came; 0: never
	links    []bool
	online   bool // as it was told last
	late     bool
	fenced   bool // confirmed to be off, and not heard of since
	fencedAt Tick
	shot     OrderID
	missed   string // why the last shot failed
	spared   Tick   // when it answered just before one; 0: never

	lease     arbiter.Lease
	leaseKnow bool
	leaseSeen Tick // when it was seen alive last
}

func (n *node) link(i int, up bool) {
	if i < 0 || i > 15 {
		return
	}
	for len(n.links) <= i {
		n.links = append(n.links, false)
	}
	n.links[i] = up
}

// service returns what the node said last of a service.
func (n *node) service(name string) *ServiceBeat {
	for i := range n.beat.Services {
		if n.beat.Services[i].Name == name {
			return &n.beat.Services[i]
		}
	}
	return nil
}

func (n *node) copy(name string) *Copy {
	for i := range n.beat.Copies {
		if n.beat.Copies[i].Resource == name {
			return &n.beat.Copies[i]
		}
	}
	return nil
}

// silence is how long nothing was heard of a node, as far as this process could
// hear.
func (c *Core) silence(n *node) Tick { return c.now - max(n.at, c.woke, c.begun) }

// isOnline reports whether a node's heartbeats come. One that has not been heard of
// yet is not online, and not gone before initdead has passed.
func (c *Core) isOnline(n *node) bool {
	dead := c.cfg.Timing.Deadtime
	return n.cfg.Name == c.self || n.at != 0 && (c.now-n.at < dead || n.online && c.now-c.woke < dead)
}

// isGone reports whether a node counts as dead as far as heartbeats tell.
func (c *Core) isGone(n *node) bool {
	if n.cfg.Name == c.self {
		return false
	}
	if n.at == 0 {
		return c.now-c.begun >= c.cfg.Timing.Initdead
	}
	return c.silence(n) >= c.cfg.Timing.Deadtime
}

// heard takes a heartbeat.
func (c *Core) heard(n *node, link int, b Beat) {
	n.link(link, true)
	n.at = c.now
	same := b.Session == n.beat.Session && b.Seq == n.beat.Seq
	if b.Session != n.beat.Session || n.fenced && c.now-n.fencedAt > 2*c.cfg.Timing.Keepalive {
		n.fenced, n.missed = false, "" // it is back, or was never off; a beat may be late
	}
	if same || b.Session == n.beat.Session && b.Seq < n.beat.Seq {
		return // what came over a slower link
	}
	n.beat = b
	for _, w := range b.Wishes {
		c.learnWish(w)
	}
	for _, cp := range b.Copies {
		if r := c.resource(cp.Resource); r != nil && cp.Record.Resource == r.name && !r.known.behind {
			c.learnRecord(r, cp.Record)
		}
	}
	for _, s := range c.services {
		if s.nodes[0] == n.cfg.Name || s.nodes[1] == n.cfg.Name {
			s.dirty = true
		}
	}
	c.reserveAt = 0
}

// watchNodes tells of nodes that come, go and are late.
func (c *Core) watchNodes() {
	t := &c.cfg.Timing
	for _, n := range c.nodes {
		if n.cfg.Name == c.self {
			continue
		}
		on := c.isOnline(n)
		late := on && c.silence(n) >= t.Warntime
		if late != n.late {
			n.late = late
			if late {
				c.note(Notice{Level: Warning, Topic: TopicNode, Node: n.cfg.Name, Text: fmt.Sprintf("%s: no heartbeat for %d ms", n.cfg.Name, c.now-n.at)})
			}
		}
		if on == n.online {
			continue
		}
		n.online = on
		c.dirtyAll()
		if on {
			c.note(Notice{Level: Info, Topic: TopicNode, Node: n.cfg.Name, Text: n.cfg.Name + ": heartbeats come"})
			continue
		}
		c.note(Notice{Level: Warning, Topic: TopicNode, Node: n.cfg.Name, Text: fmt.Sprintf("%s: no heartbeat for %d ms: it counts as dead", n.cfg.Name, c.now-n.at)})
		c.give(Order{Kind: Hook, Hook: OnNodeLost, Node: n.cfg.Name, Text: n.cfg.Name + " is silent"}, nil)
	}
}

// sendBeat tells the others what has changed. What does not matter at once waits
// until a few changes are together.
func (c *Core) sendBeat() {
	const gather = 50 // milliseconds
	if !c.beatDue || !c.urgent && c.now-c.beatAt < gather {
		return
	}
	c.beatDue, c.urgent, c.beatAt = false, false, c.now
	b := c.compose()
	if sameBeat(&b, &c.beat) {
		return
	}
	b.Seq = c.beat.Seq + 1
	c.beat = b
	c.give(Order{Kind: SendBeat, Beat: b}, nil)
}

func (c *Core) compose() Beat {
	b := Beat{Session: c.session, Boot: c.boot, Config: c.cfg.Hash, Leader: c.leader.lead, Arbiter: c.lease.reachable && c.leaseGood(), Health: c.health, Seq: c.beat.Seq}
	b.Wishes = slices.Clone(c.wishes)
	for _, s := range c.services {
		if !s.mine {
			continue
		}
		b.Services = append(b.Services, ServiceBeat{
			Name: s.name, Hash: s.cfg.Hash, State: s.here(), Ready: s.ready, Why: s.told(), Since: s.acted, Failed: s.failed, Moving: s.moving,
		})
	}
	for _, r := range c.resources {
		st := &r.st
		b.Copies = append(b.Copies, Copy{
			Resource: r.name, Role: st.Role, Connected: st.Connected, Disk: st.Disk, DirtyBytes: roughly(st.DirtyBytes), Generation: st.Generation,
			Term: st.Term, Promised: st.Promised, Sole: st.Sole || st.Marked, Record: r.rec,
			MaxLossBytes: r.cfg.MaxLossBytes, MaxLossMS: r.cfg.MaxLossMS,
		})
	}
	return b
}

// told is what the other node hears of what is not as it should be.
func (s *service) told() string {
	if s.failed {
		return orElse(s.why.text, s.notReady)
	}
	return orElse(s.notReady, orElse(s.why.text, s.cfg.Notice))
}

// roughly rounds up to two binary digits, so that what grows is told a few times
// only. 0 stays 0.
func roughly(n uint64) uint64 {
	step := uint64(1)
	for n/step > 3 {
		step *= 2
	}
	return (n + step - 1) / step * step
}

func sameBeat(a, b *Beat) bool {
	return a.Session == b.Session && a.Boot == b.Boot && a.Config == b.Config && a.Leader == b.Leader && a.Arbiter == b.Arbiter && a.Health == b.Health &&
		slices.Equal(a.Services, b.Services) && slices.Equal(a.Wishes, b.Wishes) &&
		slices.EqualFunc(a.Copies, b.Copies, func(x, y Copy) bool {
			same := sameRecord(x.Record, y.Record)
			x.Record, y.Record = arbiter.Record{}, arbiter.Record{}
			return same && sameCopy(&x, &y)
		})
}

func sameCopy(x, y *Copy) bool {
	return x.Resource == y.Resource && x.Role == y.Role && x.Connected == y.Connected && x.Disk == y.Disk && x.DirtyBytes == y.DirtyBytes &&
		x.Generation == y.Generation && x.Term == y.Term && x.Promised == y.Promised && x.Sole == y.Sole &&
		x.MaxLossBytes == y.MaxLossBytes && x.MaxLossMS == y.MaxLossMS
}

func sameRecord(x, y arbiter.Record) bool {
	return x.Resource == y.Resource && x.Term == y.Term && x.Owner == y.Owner && x.Generation == y.Generation && x.Released == y.Released && slices.Equal(x.InSync, y.InSync)
}
