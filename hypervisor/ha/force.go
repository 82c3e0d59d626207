package ha

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// refuseForce looks whether an operator may answer for what nobody knows (I9).
func (c *Core) refuseForce(cmd *Command, s *service) string {
	if !s.mine {
		return fmt.Sprintf("this node has no copy of its disks: give the command on %s or %s", s.nodes[0], s.nodes[1])
	}
	p := s.peer.cfg.Name
	name := "the VM: " + s.name
	if cmd.Verb == ResumeSoleVerb {
		name = "the resource"
		if why := c.refuseResume(s); why != "" {
			return why
		}
		cmd.PeerIsDown = p // that is what the verb says
	}
	switch {
	case cmd.PeerIsDown == "" && c.runsThere(s):
		return fmt.Sprintf("it runs on %s, which is well: polluxadm vm move %s", p, s.name)
	case cmd.PeerIsDown == "":
		return fmt.Sprintf("look at %s, its management board, its power. If it is off: --peer-is-down %s", p, p)
	case cmd.PeerIsDown != p:
		return fmt.Sprintf("--peer-is-down names %s, but the other node of it is %s", cmd.PeerIsDown, p)
	case c.isOnline(s.peer) && c.now-s.peer.at < c.cfg.Timing.Warntime:
		return fmt.Sprintf("%s is not down, its heartbeats come: polluxadm vm move %s", p, s.name)
	case s.exists() && !s.isFrozen():
		return "it runs here already"
	}
	unknown := []string{fmt.Sprintf("whether %s still runs it: if it does, both write, and one side's data will have to be thrown away", p)}
	for _, r := range s.res {
		switch {
		case r.st.Connected:
			return fmt.Sprintf("%s is connected to %s, so that is not down", r.name, p)
		case !r.st.Up:
			return fmt.Sprintf("%s is not up: polluxadm up %s", r.name, r.name)
		case r.rec.Term > 0 && !r.rec.Counts(c.self):
			_, v := c.stale(r)
			if !cmd.Force {
				return v.text + ". To use it nevertheless, and lose what is missing: --force"
			}
			unknown = append(unknown, v.text+": that is lost")
		case !r.whole():
			if !cmd.Force {
				return fmt.Sprintf("%s: this node's disk is %s. To use it nevertheless: --force", r.name, r.st.Disk)
			}
			unknown = append(unknown, fmt.Sprintf("%s: the disk is %s", r.name, r.st.Disk))
		case r.rec.Term == 0 || r.known.behind:
			unknown = append(unknown, r.name+": whether this copy is the newest: the arbiter has no record of it")
		}
		if b := r.cfg.bound(); b != "" {
			unknown = append(unknown, fmt.Sprintf("%s: protocol %s may have lost writes: %s", r.name, r.cfg.Protocol, b))
		}
	}
	if cmd.Confirm != s.name {
		cmd.asksName = true
		return "nobody knows " + strings.Join(unknown, "; ") + ". The other side's data is kept. To answer for it, type the name of " + name
	}
	c.note(Notice{Level: Critical, Topic: TopicOperator, Service: s.name, Node: p, Text: fmt.Sprintf("%s: the operator says that %s is down, and answers for: %s", s.name, p, strings.Join(unknown, "; "))})
	return ""
}

// refuseResume is why frozen I/O of s can't go on alone: it was not this node that had it.
func (c *Core) refuseResume(s *service) string {
	for _, r := range s.res {
		if r.st.Role != Primary && !c.isMine(r) {
			return fmt.Sprintf("%s: this node did not write it last: to take it over: polluxadm vm failover %s --peer-is-down %s", r.name, s.name, s.peer.cfg.Name)
		}
	}
	return ""
}

// forceUp has s run here, and go on alone, because the operator says so. Where a fence
// decides, his word is one: all that waited for that node's end goes on.
func (c *Core) forceUp(cmd *Command, s *service) {
	if c.cfg.Arbiter == ArbiterFence {
		n := s.peer
		c.give(Order{Kind: ConfirmOff, Node: n.cfg.Name, Timeout: storageTimeout}, func(e Event) {
			if e.Err == "" {
				c.fenced(n, "an operator")
				return
			}
			c.note(Notice{Level: Critical, Topic: TopicFence, Node: n.cfg.Name, Text: fmt.Sprintf("the arbiter does not take the operator's word that %s is off: %s", n.cfg.Name, e.Err)})
		})
	}
	s.force = cmd.PeerIsDown
	s.failed, s.restarts, s.holdOff = false, 0, 0
	s.dirty = true
}

// forceAlone makes this node the only one that counts, as the operator wants: with
// the arbiter's new term if it answers, else with one of its own that the arbiter is
// told as soon as it does.
func (c *Core) forceAlone(r *resource) {
	if c.lease.reachable {
		c.claim(r, true, c.self)
		return
	}
	members := r.cfg.pair()
	term := arbiter.OverrideTerm(max(c.promisedTerm(r), r.rec.Term), c.self, members[:])
	c.overrides = append(c.overrides, Override{Resource: r.name, Term: term})
	c.saved = false
	c.save()
	c.note(Notice{Level: Critical, Topic: TopicOperator, Resource: r.name, Term: term, Text: fmt.Sprintf("%s: the operator gives it term %d without the arbiter", r.name, term)})
	r.busy = c.give(Order{Kind: PromiseTerm, Resource: r.name, Term: term, Timeout: storageTimeout}, func(e Event) {
		if c.ended(r, e) {
			r.busy = c.give(Order{Kind: Promote, Resource: r.name, Term: term, Sole: true, Force: c.byForce(r), Timeout: storageTimeout}, func(e Event) { c.ended(r, e) })
		}
	})
}

// byForce reports whether polluxd is to be told that a copy lacks writes.
func (c *Core) byForce(r *resource) bool {
	return r.svc != nil && r.svc.force != "" && !r.whole()
}
