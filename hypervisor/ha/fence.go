package ha

import (
	"fmt"
	"slices"
)

// fenced: a node is off, confirmed.
func (c *Core) fenced(n *node, by string) {
	n.fenced, n.fencedAt, n.missed = true, c.now, ""
	c.note(Notice{Level: Warning, Topic: TopicFence, Node: n.cfg.Name, Text: fmt.Sprintf("%s is off, says %s", n.cfg.Name, by)})
	c.alarm(Notice{Key: "fence/" + n.cfg.Name})
	c.dirtyAll()
}

func (c *Core) fenceAdvice(n *node) string {
	if n.missed != "" {
		return fmt.Sprintf("the fence agent failed (%s): power %s off, and say so: polluxadm vm failover --peer-is-down %s", n.missed, n.cfg.Name, n.cfg.Name)
	}
	return ""
}

// shoot fences nodes where a fence is what decides. The side that runs a service has
// the head start; there is one shot for a node and term; nobody is shot who has not
// been met since this machine's boot (I8).
func (c *Core) shoot() {
	if c.cfg.Arbiter != ArbiterFence {
		return
	}
	for _, n := range c.nodes {
		if n.cfg.Name == c.self || n.cfg.Witness || n.fenced || n.shot != 0 {
			continue
		}
		due, term := c.shotDue(n)
		if term == 0 || c.now < due || c.wasShot(n, term) || n.spared != 0 && c.now < n.spared+c.cfg.Timing.Deadtime {
			continue
		}
		c.shots = slices.DeleteFunc(c.shots, func(s Shot) bool { return s.Node == n.cfg.Name })
		c.shots = append(c.shots, Shot{Node: n.cfg.Name, Term: term})
		c.saved = false
		c.save() // a restart must not shoot again
		c.note(Notice{Level: Critical, Topic: TopicFence, Node: n.cfg.Name, Term: term, Text: n.cfg.Name + " is powered off: it is silent, and nobody else can say whether it writes"})
		n.shot = c.give(Order{Kind: Fence, Node: n.cfg.Name, Term: term, Timeout: fenceTimeout}, func(e Event) {
			n.shot = 0
			if e.Err == "" {
				c.fenced(n, "its fence agent")
				return
			}
			if e.Spared { // so this was none: the next time that it is silent there is one
				n.spared = c.now
				c.shots = slices.DeleteFunc(c.shots, func(s Shot) bool { return s.Node == n.cfg.Name })
				c.saved = false
				c.note(Notice{Level: Info, Topic: TopicFence, Node: n.cfg.Name, Term: term, Text: fmt.Sprintf("%s was not powered off: %s", n.cfg.Name, e.Err)})
				return
			}
			n.missed = e.Err
			c.alarm(Notice{Key: "fence/" + n.cfg.Name, Level: Critical, Topic: TopicAlarm, Node: n.cfg.Name, Text: fmt.Sprintf("%s could not be fenced: %s; there is no second shot in this term", n.cfg.Name, e.Err)})
			c.dirtyAll()
		})
	}
}

func (c *Core) wasShot(n *node, term uint64) bool {
	return slices.ContainsFunc(c.shots, func(s Shot) bool { return s.Node == n.cfg.Name && s.Term >= term })
}

// shotDue is when a node is to be shot, and for which term; 0 if it is not.
func (c *Core) shotDue(n *node) (due Tick, term uint64) {
	t := &c.cfg.Timing
	for _, r := range c.resources {
		if r.peer != n || r.svc == nil || !r.met || r.st.Connected || r.rec.Sole() || !c.cfg.failsOver(&r.svc.cfg) {
			continue
		}
		at := max(r.lostAt, c.woke) + t.Deadtime
		switch w := c.wish(r.svc); {
		case r.svc.want == wantUp && r.st.Role == Primary && c.isMine(r) && !r.st.Sole && !c.isOnline(n):
		case r.svc.want == wantIdle && w.Target == TargetStarted && r.rec.Counts(c.self) && r.svc.ready && c.isGone(n) && !c.isStandby(c.self):
			if at = max(at, n.at+t.Deadtime); r.rec.Owner != c.self {
				at += t.fenceDelay()
			}
		default:
			continue
		}
		if term == 0 || at < due {
			due = at
		}
		term = max(term, r.rec.Term)
	}
	return due, term
}
