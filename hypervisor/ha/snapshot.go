package ha

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// stateAt is what a node does with s, as far as it is known.
func (c *Core) stateAt(s *service, name string) State {
	if name == c.self {
		return s.state
	}
	n := c.node(name)
	sb := n.service(s.name)
	switch {
	case sb == nil:
		return StateUnknown
	case c.isOnline(n):
		return sb.State
	case sb.State == StateStopped, sb.State == StateBlocked, sb.State == StateFailed, n.fenced:
		return StateStopped
	}
	return StateUnknown
}

// order of states: of two nodes the one further to the front says how s is.
var stateOrder = []State{StateRunning, StateFrozen, StateStarting, StateMoving, StateStopping, StateFailed, StateBlocked, StateUnknown, StateStopped}

// overall is how s is, and where; "" if it is nowhere.
func (c *Core) overall(s *service) (State, string) {
	state, at := StateStopped, ""
	for _, name := range s.nodes {
		if st := c.stateAt(s, name); slices.Index(stateOrder, st) < slices.Index(stateOrder, state) {
			state, at = st, name
		}
	}
	switch state {
	case StateStopped, StateBlocked:
		at = ""
	case StateUnknown:
		if n := c.node(at); at != c.self && n.service(s.name) == nil && len(s.res) > 0 {
			// It was never heard of: the record knows whether it can be there.
			state, at = s.state, ""
		}
	case StateStarting, StateRunning, StateStopping, StateMoving, StateFrozen, StateFailed:
	}
	return state, at
}

// actedAt is the version of the wish that a node has acted upon.
func (c *Core) actedAt(s *service, name string) uint64 {
	if name == c.self {
		return s.acted
	}
	if sb := c.node(name).service(s.name); sb != nil {
		return sb.Since
	}
	return 0
}

// sentence is what is not as it should be with s: this node's view if it has one,
// else what its nodes say.
func (c *Core) sentence(s *service) verdict {
	state, at := c.overall(s)
	if s.why.text != "" && (at == "" || at == c.self || state == StateUnknown) {
		return s.why
	}
	if state == StateUnknown && at != "" {
		return verdict{Warning, at + " is silent, and had it last", ""}
	}
	for _, name := range s.nodes {
		if n := c.node(name); name != c.self && (at == "" || at == name) {
			if sb := n.service(s.name); sb != nil && sb.Why != "" && c.isOnline(n) {
				if sb.State == StateFailed {
					return verdict{Critical, name + ": " + sb.Why, "find out why, then: polluxadm vm start " + s.name}
				}
				return verdict{Warning, name + ": " + sb.Why, ""}
			}
		}
	}
	return verdict{}
}

// Snapshot is what status commands show.
func (c *Core) Snapshot() Snapshot {
	sn := Snapshot{Self: c.self, Cluster: c.cfg.Cluster, Alarms: slices.Clone(c.alarms)}
	sn.Arbiter = ArbiterStatus{Kind: c.cfg.Arbiter, Reachable: c.lease.reachable, Since: c.lease.since, Detail: c.lease.detail, LeaseEnds: c.lease.until}
	for _, r := range c.resources {
		sn.Arbiter.Behind = sn.Arbiter.Behind || r.known.behind
	}
	for _, s := range c.services {
		sn.Services = append(sn.Services, c.serviceStatus(s))
	}
	for _, n := range c.nodes {
		sn.Nodes = append(sn.Nodes, c.nodeStatus(n))
	}
	sn.Level, sn.Verdict, sn.Advice = c.verdict(&sn)
	return sn
}

func (c *Core) verdict(sn *Snapshot) (level Level, text, advice string) {
	for _, want := range []Level{Critical, Warning} {
		for _, a := range sn.Alarms {
			if a.Level == want {
				return want, a.Text, ""
			}
		}
		for i := range sn.Services {
			if s := &sn.Services[i]; s.Level == want {
				return want, "vm " + s.Name + ": " + s.Why, s.Advice
			}
		}
		for i := range sn.Nodes {
			if n := &sn.Nodes[i]; want == Warning && n.State == Error {
				return want, n.Name + ": " + n.Why, ""
			}
		}
	}
	switch {
	case c.cfg.Arbiter == ArbiterManual:
		return Warning, "all services run as they should; a node's loss is covered by a person only", ""
	case !sn.Arbiter.Reachable:
		return Warning, "the arbiter has not answered yet: no automatic failover", ""
	case len(sn.Nodes) < 2:
		return Warning, "the cluster has one node: nobody takes over from it", "polluxadm cluster token NODE --link IP:PORT"
	case c.voters() == 1 || c.voters() == 2:
		text := fmt.Sprintf("the arbiter has %s, so the death of one silences it: nothing fails over automatically", count(c.voters(), "voter"))
		if c.cfg.Voters > c.voters() && c.cfg.Voters > 2 {
			return Warning, text, "a node that has just joined has its vote within seconds; one that stays without: polluxadm cluster status there"
		}
		return Warning, text, "make it three: polluxadm cluster token NODE --link IP:PORT --kind witness, for a third host without disks"
	}
	for _, s := range c.services {
		if n := c.unfenced(s); n != "" {
			return Warning, "there is no fence device for " + n + ", so nothing fails over automatically when it dies",
				"add a table [[fence]] for it to cluster.toml on all nodes, with serial one higher, and reload polluxha"
		}
	}
	for i := range sn.Services {
		if s := &sn.Services[i]; s.Target == TargetStarted && s.Protection != covered {
			return Warning, "vm " + s.Name + ": " + s.Protection, "polluxadm status shows its disks"
		}
	}
	return "", "all services run, and each node's loss is covered", ""
}

// covered is the protection of a service that another node would take over.
const covered = "protected against the loss of a disk or a host"

// IsCovered reports whether another node would take the service over by itself.
func (s *ServiceStatus) IsCovered() bool { return s.Protection == covered }

func (c *Core) serviceStatus(s *service) ServiceStatus {
	w := c.wish(s)
	state, at := c.overall(s)
	v := c.sentence(s)
	if n := s.cfg.Notice; n != "" {
		if v.level != Critical {
			v.level = Warning
		}
		if v.text != "" {
			n = v.text + "; " + n
		}
		v.text, v.advice = n, orElse(v.advice, "correct its file, then polluxadm reload")
	}
	st := ServiceStatus{
		Name: s.name, State: state, Node: at, Target: w.Target, Enabled: w.Target != TargetDisabled, Level: v.level, Why: v.text, Advice: v.advice,
		Incarnation: s.inc, Restarts: s.restarts, Since: s.since, SameFile: true, Monitor: s.seen.Monitor,
	}
	st.Nodes = []string{s.nodes[0], s.nodes[1]}
	slices.SortStableFunc(st.Nodes, func(a, b string) int { return cmp.Compare(s.cfg.score(b), s.cfg.score(a)) })
	for _, name := range s.nodes {
		if sb := c.node(name).service(s.name); name != c.self && sb != nil && sb.Hash != s.cfg.Hash {
			st.SameFile = false
		}
	}
	for _, r := range s.res {
		st.Resources = append(st.Resources, ResourceStatus{Record: r.rec, Behind: r.known.behind, Storage: r.st, MaxLoss: r.cfg.bound()})
	}
	st.Protection = c.protection(s, st.SameFile)
	if st.Why == "" && s.want == wantUp && s.mine && c.prefersPeer(s) && s.cfg.Failback != FailbackNever {
		st.Level, st.Why, st.Advice = Info, fmt.Sprintf("it prefers %s", s.peer.cfg.Name), fmt.Sprintf("polluxadm vm move %s --to %s", s.name, s.peer.cfg.Name)
	}
	if why := c.lossDiffers(s); why != "" && st.Why == "" && c.cfg.failsOver(&s.cfg) {
		st.Level, st.Why, st.Advice = Warning, why+": no automatic failover", lossAdvice
	}
	if !st.SameFile && st.Why == "" {
		st.Level, st.Why, st.Advice = Warning, "its file differs between its nodes: no automatic failover", "make the files equal and run polluxadm reload"
	}
	return st
}

// protection is what s is protected against.
func (c *Core) protection(s *service, sameFile bool) string {
	if !c.cfg.failsOver(&s.cfg) {
		return "protected against disk loss, not against host loss"
	}
	for _, r := range s.res {
		if r.rec.Term > 0 && len(r.rec.InSync) < 2 {
			return "not protected: one copy"
		}
	}
	switch {
	case s.mine && !c.lease.reachable && s.isFailsafe():
		return "protected against disk loss, not against host loss: no arbitration; failsafe: it runs on whatever becomes of " + s.peer.cfg.Name
	case s.mine && !c.lease.reachable:
		return "protected against disk loss, not against host loss: no arbitration"
	case !sameFile:
		return "protected against disk loss, not against host loss: its file differs between its nodes"
	case c.lossDiffers(s) != "":
		return "protected against disk loss, not against host loss: " + c.lossDiffers(s)
	case c.notThere(s) != "":
		return "protected against disk loss, not against host loss: " + c.notThere(s)
	case c.voters() == 1 || c.voters() == 2: // half of two is no majority
		return fmt.Sprintf("protected against disk loss, not against host loss: the arbiter has %d of 3 voters", c.voters())
	}
	if n := c.unfenced(s); n != "" {
		return "protected against disk loss, not against host loss: there is no fence device for " + n
	}
	return covered
}

// unfenced is a node of s that nobody can switch off where that has to decide; "" if
// there is none.
func (c *Core) unfenced(s *service) string {
	if c.cfg.Arbiter != ArbiterFence {
		return ""
	}
	for _, name := range s.nodes {
		if n := c.node(name); n != nil && !n.cfg.Fence {
			return name
		}
	}
	return ""
}

// notThere is why the node on which s does not run could not take it over; "" if it
// could, or if s runs nowhere.
func (c *Core) notThere(s *service) string {
	_, at := c.overall(s)
	for _, name := range s.nodes {
		n := c.node(name)
		sb := n.service(s.name)
		switch {
		case at == "" || name == at:
		case c.isStandby(name):
			return name + " is standby"
		case name == c.self && s.mine && s.notReady != "":
			return s.notReady
		case name == c.self:
		case !c.isOnline(n):
			return name + " is silent"
		case sb != nil && !sb.Ready && sb.Why != "" && sb.State != StateUnknown:
			return name + ": " + sb.Why
		}
	}
	return ""
}

// voters is how many the arbiter has, as it says itself, or as the cluster's file
// does; 0: it has none of its own.
func (c *Core) voters() int {
	if c.lease.voters > 0 {
		return c.lease.voters
	}
	return c.cfg.Voters
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c *Core) nodeStatus(n *node) NodeStatus {
	name := n.cfg.Name
	st := NodeStatus{
		Name: name, Witness: n.cfg.Witness, Online: c.isOnline(n), Standby: c.isStandby(name), Late: n.late, Fenced: n.fenced,
		LastSeen: n.at, Session: n.beat.Session, Health: n.beat.Health, SameFile: n.beat.Config == "" || n.beat.Config == c.cfg.Hash,
	}
	copies := n.beat.Copies
	if name == c.self {
		st.LastSeen, st.Session, st.Health, copies, st.SameFile = c.now, c.session, c.health, c.compose().Copies, true
	}
	st.Copies = len(copies)
	for _, cp := range copies {
		st.Term = max(st.Term, cp.Term)
		if cp.Record.Counts(name) {
			st.InSync++
		}
	}
	for _, s := range c.services {
		if c.runsOn(s, n) && (st.Online || name == c.self) {
			st.Services = append(st.Services, s.name)
		}
	}
	st.Lease = "none"
	switch {
	case !c.cfg.Arbiter.HasLeases():
	case name == c.self && c.leaseGood(), name != c.self && n.lease.Alive:
		st.Lease = "alive"
	case name == c.self && c.lease.until != 0, n.lease.Session != "":
		st.Lease = "ended"
	}
	st.State, st.Why = c.nodeState(n, &st)
	return st
}

func (c *Core) nodeState(n *node, st *NodeStatus) (NodeState, string) {
	data := slices.DeleteFunc(slices.Clone(c.cfg.Nodes), func(n Node) bool { return n.Witness })
	var why []string
	if !st.SameFile {
		why = append(why, "its cluster file is another one")
	}
	if st.Standby {
		why = append(why, "standby")
	}
	text := strings.Join(why, "; ")
	l := &c.leader
	switch {
	case !st.Online && n.at == 0:
		return Error, "it was never heard of"
	case !st.Online:
		return Error, "no heartbeat for " + ago(c.now-n.at)
	case len(data) < 2 || c.cfg.Arbiter == ArbiterManual:
		return Solo, text
	case st.Name == c.self && (!c.leaseGood() || !c.lease.reachable), st.Name != c.self && !n.beat.Arbiter:
		return Error, "it does not reach the arbiter"
	case l.rec.Owner == st.Name && !l.rec.Released && (l.lead || n.beat.Leader):
		return Leader, text
	case n.cfg.Witness, l.rec.Term > 0 && !l.rec.Released && c.leaderLives():
		return Follower, text
	}
	return Candidate, text
}

func (c *Core) leaderLives() bool {
	n := c.node(c.leader.rec.Owner)
	return n != nil && (n.cfg.Name == c.self && c.leader.lead || n.cfg.Name != c.self && n.beat.Leader && c.isOnline(n))
}
