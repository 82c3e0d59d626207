package ha

import "fmt"

// want is what this node is about with a service.
type want uint8

const (
	wantIdle want = iota
	wantUp        // it runs here, or is being started
	wantDown      // it is ended in good order, and its terms are released
	wantLost      // it must not run here any more: ended at once
)

// service is one of the configuration's services. Of those without a copy on this
// node only name, cfg and nodes are used.
type service struct {
	name  string
	cfg   Service
	nodes [2]string // that have its copies, sorted
	mine  bool
	peer  *node
	res   []*resource

	dirty  bool
	wakeAt Tick
	waits  bool // for the arbiter: it is asked often

	seen   Seen
	isSeen bool

	want    want
	moving  string // while wantDown: the node that it is for
	byForce bool   // while wantDown: without asking the guest
	undo    bool   // while wantDown: it never came up
	again   bool   // while wantUp: it ends, and is started anew
	deposed bool   // the other node had it, and did not give it up
	flight  OrderID
	doing   OrderKind
	ipsBusy OrderID
	ipsAt   Tick // the next attempt
	killAt  Tick
	ill     string // why its monitor has it stopped here; "" once it is up
	toKill  bool   // while wantLost: it has not been seen to be gone
	inc     string
	incs    int
	wasUp   bool // it ran, in this incarnation
	hooked  bool

	restarts  int
	startedAt Tick
	restartAt Tick
	failed    bool   // its restarts here are used up
	fault     string // why it ended the last time
	acted     uint64 // version of the wish that was acted upon last
	holdOff   Tick   // no new attempt before
	handed    bool   // holdOff is for the other node, which has not taken it yet
	yieldAt   Tick   // since when it is left to a better node; 0: it is not
	twiceAt   Tick   // since when it runs on both nodes; 0: it does not
	ready     bool
	notReady  string
	refusal   verdict // of the last attempt
	force     string  // the node that an operator has answered for: it is down

	why   verdict
	state State
	since Tick
}

// verdict is a sentence about what is not as it should be, and the next step.
type verdict struct {
	level  Level
	text   string
	advice string
}

func (s *service) say(level Level, text, advice string) {
	if s != nil && s.why.text == "" {
		s.why = verdict{level, text, advice}
	}
}

// exists reports whether something of it runs here, or may run.
func (s *service) exists() bool {
	return s.isSeen && s.seen.Phase != PhaseStopped || s.flight != 0 && s.doing == StartService
}

// isHere reports whether this node uses, or could use, its volumes.
func (s *service) isHere() bool {
	if s.exists() {
		return true
	}
	for _, r := range s.res {
		if r.st.Role == Primary && r.st.Owned {
			return true
		}
	}
	return false
}

func (c *Core) wake(s *service, at Tick) {
	if s != nil {
		s.wakeAt = min(s.wakeAt, max(at, c.now+1))
	}
}

func (c *Core) seen(s *service, seen Seen) {
	if s.isSeen && s.seen == seen {
		return
	}
	s.seen, s.isSeen, s.dirty = seen, true, true
	c.beatDue = true
}

// decide looks at everything that is known of s, and takes the next steps.
func (c *Core) decide(s *service) {
	was, state := s.why, s.state
	s.waits, s.why = false, verdict{}
	for _, r := range s.res {
		if r.known.behind {
			c.tellBehind(r)
		}
	}
	c.tellTwice(s)
	w := c.wish(s)
	switch {
	case !s.isSeen || !s.allSet():
		s.say(Info, "its state on this node is not known yet", "")
	case s.want != wantLost && c.end(s):
	default:
		if s.want == wantIdle && w.Version > s.acted { // an order since it failed here counts for both nodes
			s.failed, s.restarts = false, 0
		}
		s.notReady = c.localProblem(s)
		s.ready = s.notReady == ""
		if s.want == wantIdle {
			c.rest(s, &w)
		}
		if s.want == wantUp {
			c.goUp(s, &w)
		}
	}
	switch s.want {
	case wantDown:
		c.goDown(s)
	case wantLost:
		c.endNow(s)
	case wantIdle, wantUp:
	}
	s.state = s.here()
	if s.state != state {
		s.since = c.now
		s.dirty = true
		c.note(Notice{Level: Info, Topic: TopicService, Service: s.name, Text: fmt.Sprintf("%s: %s on this node", s.name, s.state)})
	}
	if s.state != state || s.why != was {
		c.beatDue = true
		c.urgent = c.urgent || s.state != state
		c.tell(s)
	}
}

// tell makes what a person has to do something about an alarm.
func (c *Core) tell(s *service) {
	n := Notice{Key: "vm/" + s.name, Level: Critical, Topic: TopicAlarm, Service: s.name}
	if s.why.level == Critical {
		n.Text = s.name + ": " + s.why.text
		if s.why.advice != "" {
			n.Text += ": " + s.why.advice
		}
		if s.state == StateBlocked && !c.standing(n.Key) {
			c.give(Order{Kind: Hook, Hook: OnUnavailable, Service: s.name, Text: s.why.text}, nil)
		}
	}
	c.alarm(n)
}

func (c *Core) standing(key string) bool {
	for i := range c.alarms {
		if c.alarms[i].Key == key {
			return true
		}
	}
	return false
}

func (s *service) allSet() bool {
	for _, r := range s.res {
		if !r.isSet {
			return false
		}
	}
	return true
}

// here is the state on this node.
func (s *service) here() State {
	switch {
	case s.want == wantDown && s.moving != "":
		return StateMoving
	case s.want == wantDown && s.undo:
		return StateStarting
	case s.want == wantDown, s.want == wantLost:
		return StateStopping
	case s.want == wantUp && s.failed && !s.exists():
		return StateFailed
	case s.want == wantUp && (!s.exists() || s.again || s.flight != 0 && s.doing == StartService):
		return StateStarting
	case s.want == wantUp && s.isFrozen():
		return StateFrozen
	case s.exists():
		return StateRunning
	case s.why.level == Critical || s.why.level == Warning:
		return StateBlocked
	}
	return StateStopped
}

func (s *service) isFrozen() bool {
	for _, r := range s.res {
		if r.st.Role != Primary || r.st.Frozen != "" || r.st.ReadsFrozen {
			return true
		}
	}
	return false
}

// rest: this node is about nothing with s.
func (c *Core) rest(s *service, w *Wish) {
	if s.handed && (c.tookOver(s) || w.Version > s.acted && w.Place == c.self) {
		s.handed, s.holdOff = false, 0
	}
	if w.Target != TargetDisabled && s.seen.Addresses && s.cfg.Addresses && s.ipsBusy == 0 && !s.isHere() {
		c.addresses(s, RemoveIPs) // an earlier process has left them: they may be the other node's by now
	}
	switch {
	case w.Target == TargetDisabled:
		for _, r := range s.res {
			if r.st.Role == Primary {
				c.keep(r)
			}
		}
	case s.isHere():
		c.adopt(s, w)
	case c.now < s.holdOff:
		s.why = s.refusal
		c.wake(s, s.holdOff)
	case w.Target == TargetStarted && c.mayTake(s, w):
		c.begin(s, w)
	default:
		c.giveBack(s)
	}
}

// tookOver reports whether the other node has taken its turn: its terms are newer
// than those that this node gave back.
func (c *Core) tookOver(s *service) bool {
	for _, r := range s.res {
		if r.rec.Owner != s.peer.cfg.Name {
			return false
		}
	}
	return true
}

// adopt takes over what an earlier polluxha has left running.
func (c *Core) adopt(s *service, w *Wish) {
	for _, r := range s.res {
		if !r.known.viewed && r.rec.Term == 0 {
			s.say(Warning, "it runs here, and the arbiter has not been asked yet", "")
			s.waits = true
			return
		}
	}
	s.want, s.wasUp, s.hooked, s.undo = wantUp, s.seen.Phase != PhaseStopped, s.seen.Phase != PhaseStopped, false
	s.startedAt, s.again = c.now, false
	s.inc = s.seen.Incarnation
	if s.inc == "" && s.exists() {
		s.inc = s.res[0].st.Incarnation
	}
	s.acted = max(s.acted, w.Version)
	c.note(Notice{Level: Info, Topic: TopicService, Service: s.name, Text: s.name + ": found in use on this node, and cared for"})
}

// giveBack releases the terms of an owner that does not use them: another copy that
// counts may take them over at once. One that has become equal counts again before.
func (c *Core) giveBack(s *service) {
	for _, r := range s.res {
		if r.rec.Owner == c.self && r.rec.Sole() && !r.known.behind && r.st.Role == Secondary && r.st.PeerRole == Secondary && r.peerEqual() &&
			c.leaseGood() && c.lease.reachable && r.claiming == 0 && r.busy == 0 && c.now >= r.retryAt {
			c.claimBoth(r)
			continue
		}
		if c.isMine(r) && r.st.Up && r.st.Role == Secondary && c.leaseGood() && (!r.known.behind || r.peerEqual()) {
			c.release(r)
		}
	}
}

// begin: this node is to run s.
func (c *Core) begin(s *service, w *Wish) {
	s.want, s.undo, s.wasUp, s.hooked, s.failed = wantUp, true, false, false, false
	s.inc, s.moving, s.yieldAt, s.handed, s.again = "", "", 0, false, false
	s.acted = max(s.acted, w.Version)
	s.deposed = s.force != ""
	for _, r := range s.res {
		r.grant, r.failures, r.problem = 0, 0, ""
		s.deposed = s.deposed || r.rec.Owner == s.peer.cfg.Name && !r.rec.Released
	}
	c.urgent, c.beatDue = true, true
	c.note(Notice{Level: Info, Topic: TopicService, Service: s.name, Text: s.name + ": this node takes it" + c.lossText(s)})
}

// goUp goes on until s runs here with its addresses, and keeps it so.
func (c *Core) goUp(s *service, w *Wish) {
	if c.leave(s, w) {
		return
	}
	all := true
	for _, r := range s.res {
		if ok := c.own(s, r); s.want != wantUp {
			return
		} else if !ok {
			all = false
			if r.st.Role != Primary {
				break // one after the other
			}
		}
	}
	if s.flight != 0 {
		return
	}
	switch {
	case !s.exists():
		if all && w.Target != TargetDisabled {
			c.bringUp(s)
		}
	case s.again && w.Target != TargetDisabled:
		if c.now < s.killAt {
			s.say(Warning, "it is to be started anew, and can't be ended: "+s.fault, "")
			c.wake(s, s.killAt)
			return
		}
		c.kill(s, func(bool) {})
	case s.seen.Phase == PhaseFailed && w.Target != TargetDisabled:
		if s.ill == "" {
			s.ill = "its monitor says that it does not serve: " + s.seen.Monitor
			c.note(Notice{Level: Warning, Topic: TopicService, Service: s.name, Text: s.name + ": it is stopped: " + s.ill})
		}
		s.say(Warning, s.ill, "")
		c.stop(s, false)
	case s.seen.Phase == PhaseUnknown:
		s.say(Warning, "it gives no answer: "+orElse(s.seen.Monitor, "its hypervisor is silent"), "")
	default:
		if all && c.export(s) {
			c.goneUp(s)
		}
	}
}

// own makes this node the Primary of a resource under the arbiter's term, and keeps
// it so. It reports whether that is reached.
func (c *Core) own(s *service, r *resource) bool {
	switch {
	case r.claiming != 0 || r.busy != 0:
		return false
	case r.st.Role == Primary && (c.isMine(r) || r.known.behind || c.overridden(r)):
		return c.keep(r)
	case c.now < r.retryAt:
		c.wake(s, r.retryAt)
		return false
	case r.st.Role == Primary && r.rec.Owner == c.self: // it was released, as it seems by a request that came late
		if r.peerEqual() {
			c.claimBoth(r)
		} else {
			c.claimAlone(r)
		}
		return false
	case r.st.Role == Primary: // nobody owns it: it was promoted before there was an arbiter
		if r.rec.Term == 0 && r.known.viewed && r.peerEqual() {
			c.claimBoth(r)
		} else {
			s.say(Warning, fmt.Sprintf("%s: this node is Primary, and the arbiter has no record of it", r.name), "connect both nodes; it is recorded when their copies are equal")
		}
		return false
	case r.grant != 0 && r.grant == r.rec.Term && c.isMine(r):
		if r.promised {
			c.promote(r)
			return false
		}
		term := r.grant
		r.busy = c.give(Order{Kind: PromiseTerm, Resource: r.name, Term: term, Timeout: storageTimeout}, func(e Event) {
			r.promised = c.ended(r, e) && r.grant == term
		})
		return false
	case r.failures >= 3 && !s.exists():
		c.giveUp(s, verdict{Critical, fmt.Sprintf("%s: it can't be made Primary: %s", r.name, r.problem), "look at polluxadm status " + r.name})
		return false
	}
	if s.force != "" {
		c.forceAlone(r)
		return false
	}
	set, v := c.claimable(s, r)
	switch {
	case len(set) > 0:
		c.claim(r, false, set...)
	case s.exists():
		s.say(v.level, v.text, v.advice)
		s.waits = true
	default:
		c.giveUp(s, v)
	}
	return false
}

// giveUp takes back what was done for a start that can't be.
func (c *Core) giveUp(s *service, v verdict) {
	s.refusal, s.holdOff, s.force = v, c.now+2000, ""
	s.want, s.undo, s.moving = wantDown, true, ""
	s.say(v.level, v.text, v.advice)
	c.note(Notice{Level: Warning, Topic: TopicService, Service: s.name, Text: s.name + ": not started: " + v.text})
}
