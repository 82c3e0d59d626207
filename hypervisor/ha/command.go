package ha

import (
	"fmt"
	"strings"
)

// job is a command whose end somebody waits for.
type job struct {
	cmd      Command
	service  *service // nil: of a node
	version  uint64   // of the wish
	began    Tick
	deadline Tick
	text     string // told last
}

func (c *Core) answer(cmd *Command, done bool, text, err string) {
	c.give(Order{Kind: Answer, Command: cmd.ID, Service: cmd.Service, Node: cmd.Node, Done: done, Text: text, Err: err, Asks: cmd.asksName}, nil)
}

func (c *Core) command(cmd Command) {
	if c.begun == 0 {
		c.answer(&cmd, true, "", "polluxha is starting: try again")
		return
	}
	s := c.service(cmd.Service)
	switch cmd.Verb {
	case StandbyVerb, OnlineVerb, EvacuateVerb, LeaveVerb:
		c.nodeCommand(cmd)
		return
	case StartVerb, StopVerb, KillVerb, RestartVerb, MoveVerb, EnableVerb, DisableVerb, FailoverVerb, ResumeSoleVerb:
	default:
		c.answer(&cmd, true, "", fmt.Sprintf("%q is no command", cmd.Verb))
		return
	}
	if s == nil {
		c.answer(&cmd, true, "", fmt.Sprintf("vm %s: there is no file of it on this node: look at polluxadm vm list", cmd.Service))
		return
	}
	if why := c.refuse(&cmd, s); why != "" {
		c.answer(&cmd, true, "", "vm "+s.name+": "+why)
		return
	}
	c.note(Notice{Level: Info, Topic: TopicOperator, Service: s.name, Node: cmd.Node, Text: strings.TrimSpace(fmt.Sprintf("%s %s %s%s", cmd.Verb, s.name, cmd.Node, cmd.PeerIsDown))})
	w := c.wish(s)
	n := Wish{Service: s.name, Target: w.Target, Place: w.Place}
	switch cmd.Verb {
	case StartVerb:
		n.Target, n.Place = TargetStarted, orElse(cmd.Node, w.Place)
	case StopVerb, KillVerb:
		n.Target, n.Kill = TargetStopped, cmd.Verb == KillVerb
	case RestartVerb:
		n.Target, n.Restart = TargetStarted, true
		_, n.Place = c.overall(s)
	case MoveVerb:
		n.Target, n.Place = TargetStarted, cmd.Node
		if n.Place == "" {
			n.Place = c.otherThan(s)
		}
		cmd.Node = n.Place
	case EnableVerb:
		n.Target = TargetStarted
	case DisableVerb:
		n.Target = TargetDisabled
	case FailoverVerb, ResumeSoleVerb:
		n.Target, n.Place = TargetStarted, c.self
		c.forceUp(&cmd, s)
	default:
	}
	n = c.want(n)
	if cmd.NoWait || cmd.Verb == EnableVerb || cmd.Verb == DisableVerb {
		c.answer(&cmd, true, fmt.Sprintf("%s: %s: accepted", s.name, cmd.Verb), "")
		return
	}
	wait := s.cfg.StartTimeout + s.cfg.StopTimeout + 3*c.cfg.Timing.Deadtime + c.cfg.Timing.Initdead
	c.jobs = append(c.jobs, &job{cmd: cmd, service: s, version: n.Version, began: c.now, deadline: c.now + wait})
}

// otherThan is the node of s where it does not run.
func (c *Core) otherThan(s *service) string {
	if _, at := c.overall(s); at == s.nodes[0] {
		return s.nodes[1]
	}
	return s.nodes[0]
}

// refuse is why a command makes no sense, or must not be done.
func (c *Core) refuse(cmd *Command, s *service) string {
	state, at := c.overall(s)
	switch {
	case cmd.Node != "" && !has(s.nodes, cmd.Node):
		return fmt.Sprintf("%s has no copy of its disks: its nodes are %s and %s", cmd.Node, s.nodes[0], s.nodes[1])
	case cmd.Verb == StartVerb && cmd.Node != "" && at != "" && at != cmd.Node:
		return fmt.Sprintf("it is %s on %s: polluxadm vm move %s --to %s moves it", state, at, s.name, cmd.Node)
	case (cmd.Verb == MoveVerb || cmd.Verb == RestartVerb) && at == "":
		return fmt.Sprintf("it is %s: polluxadm vm start %s starts it", state, s.name)
	case (cmd.Verb == MoveVerb || cmd.Verb == RestartVerb) && c.wish(s).Target == TargetStopped:
		return fmt.Sprintf("an operator has stopped it, and it is %s on %s: wait for its end, then polluxadm vm start %s", state, at, s.name)
	case cmd.Verb == MoveVerb && cmd.Node == at:
		return "it runs on " + at + " already"
	case cmd.Verb != FailoverVerb && cmd.Verb != ResumeSoleVerb:
		return c.unheard(s.nodes[0], s.nodes[1])
	}
	return c.refuseForce(cmd, s)
}

// unheard is why no order is taken yet: this node has just been started, and another
// one may know of later orders, which would undo it.
func (c *Core) unheard(nodes ...string) string {
	for _, name := range nodes {
		if n := c.node(name); name != c.self && n != nil && n.at == 0 && !c.isGone(n) {
			return fmt.Sprintf("this node has just been started and has not heard of %s, which may know of later orders: try again in some seconds, or give the order on %s", name, name)
		}
	}
	return ""
}

func (c *Core) nodeCommand(cmd Command) {
	n := c.node(cmd.Node)
	if n == nil || n.cfg.Witness {
		c.answer(&cmd, true, "", fmt.Sprintf("node %s: it is no data node of the cluster", cmd.Node))
		return
	}
	for _, o := range c.nodes {
		if why := c.unheard(o.cfg.Name); why != "" && !o.cfg.Witness {
			c.answer(&cmd, true, "", "node "+cmd.Node+": "+why)
			return
		}
	}
	c.note(Notice{Level: Info, Topic: TopicOperator, Node: cmd.Node, Text: fmt.Sprintf("%s %s", cmd.Verb, cmd.Node)})
	switch cmd.Verb {
	case StandbyVerb:
		c.want(Wish{Node: cmd.Node, Target: TargetStandby})
	case OnlineVerb:
		c.want(Wish{Node: cmd.Node, Target: TargetOnline})
		c.answer(&cmd, true, cmd.Node+" is online", "")
		return
	case LeaveVerb:
		if cmd.Node != c.self {
			c.answer(&cmd, true, "", "give this command on "+cmd.Node)
			return
		}
		c.left = true
		c.dirtyAll()
	default: // evacuate
		for _, s := range c.services {
			if c.runsOn(s, n) {
				w := c.wish(s)
				if w.Target == TargetStarted {
					c.want(Wish{Service: s.name, Target: TargetStarted, Place: c.otherThan(s)})
				}
			}
		}
	}
	if cmd.NoWait {
		c.answer(&cmd, true, cmd.Node+": accepted", "")
		return
	}
	c.jobs = append(c.jobs, &job{cmd: cmd, began: c.now, deadline: c.now + nodeJobTimeout})
}

// nodeJobTimeout is how long a node may take to move all its services, in milliseconds.
const nodeJobTimeout Tick = 30 * 60 * 1000

// leaving reports whether this node ends all it runs.
func (c *Core) leaving() bool { return c.left }

// checkJobs answers the commands that are done, or never will be.
func (c *Core) checkJobs() {
	kept := c.jobs[:0]
	for _, j := range c.jobs {
		done, text, err := c.progress(j)
		switch {
		case done || err != "":
			c.answer(&j.cmd, true, text, err)
			continue
		case c.now >= j.deadline:
			c.answer(&j.cmd, true, "", "it takes longer than it should: "+text)
			continue
		case text != j.text:
			j.text = text
			c.answer(&j.cmd, false, text, "")
		}
		kept = append(kept, j)
	}
	clear(c.jobs[len(kept):])
	c.jobs = kept
}

// progress is how far a command is.
func (c *Core) progress(j *job) (done bool, text, err string) {
	if j.service == nil {
		return c.nodeProgress(j)
	}
	s := j.service
	state, at := c.overall(s)
	v := c.sentence(s)
	text = fmt.Sprintf("%s: %s", s.name, state)
	if at != "" {
		text += " on " + at
	}
	if v.text != "" {
		text += ": " + v.text
	}
	if w := c.wish(s); c.isReplaced(j, &w) {
		return false, text, fmt.Sprintf("vm %s: a later order, given on %s, has taken the place of this one: it is to be %s", s.name, w.By, w.Target)
	}
	acted := at != "" && c.actedAt(s, at) >= j.version
	switch j.cmd.Verb {
	case StopVerb, KillVerb:
		done = state == StateStopped && at == ""
	case MoveVerb:
		done = state == StateRunning && at == j.cmd.Node
	default:
		done = state == StateRunning && acted
	}
	const enough = 10_000 // milliseconds: a refusal that has stood so long will stand
	if !done && (state == StateBlocked || state == StateFailed) && s.force == "" && c.now-max(j.began, s.since) >= enough && v.level == Critical {
		err = fmt.Sprintf("vm %s: %s", s.name, v.text)
		if v.advice != "" {
			err += ": " + v.advice
		}
		return false, text, err
	}
	return done, text, ""
}

// isReplaced reports whether an order that was given later wants something else of
// the service than j does.
func (c *Core) isReplaced(j *job, w *Wish) bool {
	if w.Version < j.version || w.Version == j.version && w.By == c.self {
		return false
	}
	switch j.cmd.Verb {
	case StopVerb, KillVerb:
		return w.Target != TargetStopped
	case MoveVerb:
		return w.Target != TargetStarted || w.Place != j.cmd.Node
	default:
		return w.Target != TargetStarted
	}
}

func (c *Core) nodeProgress(j *job) (done bool, text, err string) {
	n := c.node(j.cmd.Node)
	left, why := 0, ""
	for _, s := range c.services {
		if n != nil && c.runsOn(s, n) {
			left++
			if v := c.sentence(s); v.text != "" && why == "" {
				why = ": " + s.name + ": " + v.text
			}
		}
	}
	if left > 0 {
		return false, fmt.Sprintf("%s: %d still run there%s", j.cmd.Node, left, why), ""
	}
	if j.cmd.Verb == LeaveVerb && c.cfg.Arbiter.HasLeases() {
		if !c.resigned {
			c.resigned = true
			c.lease.until, c.lease.nextRenew = 0, 1<<62
			c.give(Order{Kind: Resign, Session: c.session, Timeout: c.askTimeout()}, func(Event) {})
		}
	}
	return true, j.cmd.Node + ": nothing runs there any more", ""
}
