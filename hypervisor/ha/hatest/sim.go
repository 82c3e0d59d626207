package hatest

import (
	"fmt"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// A Coverage says which pairs of faults have occurred: the second began while the
// first one lasted, or its consequences did.
type Coverage struct{ pairs [][]int }

// NewCoverage returns one that has seen nothing.
func NewCoverage() *Coverage {
	c := &Coverage{pairs: make([][]int, len(faults))}
	for i := range c.pairs {
		c.pairs[i] = make([]int, len(faults))
	}
	return c
}

func (c *Coverage) add(a, b int) { c.pairs[max(a, b)][min(a, b)]++ }

// Add adds what another one has seen.
func (c *Coverage) Add(o *Coverage) {
	for i := range o.pairs {
		for k, n := range o.pairs[i] {
			c.pairs[i][k] += n
		}
	}
}

// Pairs is how many pairs have occurred, of how many; the names of those that have
// not, and how often the rarest one has.
func (c *Coverage) Pairs() (seen, of int, missing []string, rarest int) {
	rarest = -1
	for i := range c.pairs {
		for k := range i + 1 {
			of++
			switch n := c.pairs[i][k]; n {
			case 0:
				missing = append(missing, fmt.Sprintf("%q with %q", faults[i].name, faults[k].name))
				rarest = 0
			default:
				seen++
				if rarest < 0 || n < rarest {
					rarest = n
				}
			}
		}
	}
	return seen, of, missing, rarest
}

// A Simulator runs one history after the other in the same memory. It is not safe
// for concurrent use.
type Simulator struct {
	Coverage *Coverage
	Events   int    // of all histories so far
	Seconds  int64  // that passed in them
	Starts   int    // of VMs
	Records  int    // that were acknowledged
	Splits   int    // split brains that an operator had to end
	Sweeps   int    // blocks marked for nothing, likewise
	Shots    int    // of fence agents
	Lost     uint64 // bytes by takeovers under protocols A and B, as declared
	mem      Memory
	bubble   func(func()) // runs a history in a synctest bubble
}

// NewSimulator returns a Simulator that has run nothing. bubble runs what it is given
// in a synctest bubble.
func NewSimulator(bubble func(func())) *Simulator {
	return &Simulator{Coverage: NewCoverage(), bubble: bubble}
}

// play runs a plan.
func (r *Simulator) play(p *plan, coverage *Coverage, trace bool) *history {
	h := &history{plan: p, coverage: coverage}
	run := func() {
		h.w = newWorld(p.cfg, &r.mem)
		if trace {
			h.w.KeepTrace()
		}
		h.run()
		h.w.End()
	}
	if p.cfg.isDuo() {
		r.bubble(run)
	} else {
		run()
	}
	return h
}

// Run is one history. The error of one that fails has a smaller one that fails
// alike, with the end of its trace.
func (r *Simulator) Run(seed uint64) error {
	p := newPlan(seed)
	h := r.play(p, r.Coverage, false)
	r.count(h.w)
	if h.w.failure == nil {
		return nil
	}
	small := p
	if TraceLines <= shortTrace {
		small = shrink(p, func(p *plan) error { return r.play(p, nil, false).w.failure })
	}
	t := r.play(small, nil, true)
	if t.w.failure == nil {
		return fmt.Errorf("%w\nrun again it does not fail: the simulation is not deterministic", h.w.failure)
	}
	return fmt.Errorf("%w\n`make ha-sim SEED=%d` replays it. A smaller history that fails alike:\n%vits end:\n%s\n%w", h.w.failure, seed, small, t.w.Trace(), t.w.failure)
}

func (r *Simulator) count(w *World) {
	r.Events += w.steps
	r.Seconds += w.now / second
	r.Splits += w.splits
	r.Sweeps += w.sweeps
	r.Lost += w.lost
	if w.duo != nil {
		r.Shots += w.duo.boards.shots
	}
	for _, s := range w.Services {
		r.Starts += s.started
	}
	for _, p := range w.Pairs {
		r.Records += p.count
	}
}

// A history is a plan that runs.
type history struct {
	plan     *plan
	w        *World
	coverage *Coverage // nil: nobody counts
}

// The bounds of what has to happen once nothing stands in the way, ms.
const (
	comesUp   = 90_000
	comesBack = 240_000
	comesDown = 60_000
)

func (h *history) run() {
	w := h.w
	for _, x := range w.Hosts {
		x.Boot()
	}
	if !w.RunUntil(comesUp, w.settled) {
		w.stuck("after the first start", comesUp)
		return
	}
	for i := range h.plan.rounds {
		if h.round(&h.plan.rounds[i]); w.failure != nil {
			return
		}
	}
	w.stopAll()
}

// round has two faults befall the hosts, and mends all.
func (h *history) round(r *round) {
	w := h.w
	w.Run(r.wait)
	active, until := 0, make([]int64, len(r.faults))
	for i, f := range r.faults {
		w.Run(f.delay)
		if w.failure != nil {
			return
		}
		if i == 0 {
			w.Arbiter.takeBackup()
		}
		if i > 0 && h.coverage != nil && w.now < until[i-1] {
			h.coverage.add(r.faults[i-1].kind, f.kind)
		}
		host := w.victim(f.role, f.seed)
		w.trace("---- %s: %s", host.name, faults[f.kind].name)
		w.stir()
		ms, end := faults[f.kind].begin(w, host, &dice{f.seed})
		until[i] = w.now + max(ms, consequences)*millisecond
		active++
		w.after(ms*millisecond, func() {
			w.trace("---- the end of: %s", faults[f.kind].name)
			end()
			w.stir()
			active--
		})
	}
	w.RunUntil(10*60_000, func() bool { return active == 0 && (w.duo == nil || !w.duo.aiming()) })
	if w.failure != nil {
		return
	}
	w.trace("---- everything is mended")
	for range 3 {
		w.mend()
		if w.failure != nil {
			return
		}
		if w.RunUntil(comesBack/3, w.settled) {
			w.forget()
			for _, s := range w.Services {
				w.checkContent(s.at())
			}
			for _, p := range w.Pairs {
				p.diskLost = false
			}
			return
		}
	}
	w.stuck("after everything was mended", comesBack)
}

// consequences is how long a fault that is over at once is still felt, ms.
const consequences = 8000

// victim is the host on which the first VM runs, or another one.
func (w *World) victim(role int, seed uint64) *Host {
	s := w.Services[0]
	at := w.Hosts[s.hosts[0]]
	for _, v := range s.vms {
		at = v.h
	}
	if role == 0 {
		return at
	}
	i := at.id + 1 + int(seed%uint64(len(w.Hosts)-1))
	return w.Hosts[i%len(w.Hosts)]
}

// mend is what operators do who read the messages: everything is switched on,
// disks are attached, a resource that has given up looks for its peer again.
func (w *World) mend() {
	if w.duo != nil && w.duo.boards.lied { // the operator has the board repaired, and believes neither
		w.duo.boards.lied = false
		for _, h := range w.Hosts {
			h.PowerOff(0.5)
		}
	}
	for _, h := range w.Hosts {
		h.Boot()
		if !h.running() {
			continue
		}
		if h.half != nil && h.half.broken() { // its disk was full: it says so
			h.manager.crash()
		}
		h.StartPolluxd()
		h.manager.start()
		h.attachDisks()
	}
	for _, p := range w.Pairs {
		if p.cut {
			w.fail("%s: still cut", p.name)
		}
		p.reconnect()
	}
	for _, p := range w.Pairs {
		p.sweep()
	}
	for _, s := range w.Services {
		if s.neglected() {
			w.operatorStarts(s)
		}
	}
	for _, h := range w.Hosts {
		if w.standsBy(h) {
			w.operatorOnline(h)
		}
	}
}

// reconnect has a node look for its peer that has given up: a split brain. Then the
// changes of the copy are thrown away that does not serve: what that has is to hold
// all that was ever acknowledged. It comes to this where a copy was forced, where a
// diskless Primary has lost the one it used, and where a frozen Primary began a
// generation for its returning peer just when that took over.
func (p *Pair) reconnect() {
	v := p.world.Services[p.service].at()
	given := false
	if v != nil {
		n := p.node(v.h)
		if o := n.Observe(); o.Life != 0 && o.State[pairVolume].Conn == drbd.StandAlone && o.State[pairVolume].Disk < drbd.UpToDate {
			v.h.KillPolluxd() // it serves nobody: begun anew it takes what its peer has
			v.h.StartPolluxd()
			return
		}
	}
	for i := range p.hosts {
		given = given || p.seen[i].Life != 0 && p.seen[i].State[pairVolume].Conn == drbd.StandAlone
	}
	for _, h := range p.hosts {
		n := p.node(h)
		o := n.Observe()
		if !given || o.Life == 0 {
			continue
		}
		discard := v != nil && v.h != h && o.State[pairVolume].Role != drbd.Primary
		if v == nil && p.forced && p.world.duo != nil { // two have written; neither is started before the operator has chosen
			discard = h == p.hosts[1]
		}
		if discard {
			p.world.splits++
			if v != nil {
				p.world.checkContent(v)
			}
			p.w.Forced()
			n.Command(replication.Command{Kind: replication.CmdDisconnect}, nil)
		}
		if p.tries++; discard && p.diskLost && p.tries > len(p.hosts) { // both lost theirs, and the older one came first
			n.Command(replication.Command{Kind: replication.CmdInvalidate, Volume: pairVolume}, nil)
		}
		n.Command(replication.Command{Kind: replication.CmdConnect, Force: discard}, nil)
	}
}

// sweep has two equal copies meet anew that say that some blocks of a replaced disk
// are out of sync, as an operator does after a verify: the Primary begins a generation
// meanwhile, and what is marked is sent.
func (p *Pair) sweep() {
	if p.rest() != "" {
		return
	}
	for i, h := range p.hosts {
		n := p.node(h)
		if p.seen[i].State[pairVolume].Role != drbd.Primary || p.marked() == 0 {
			continue
		}
		p.world.sweeps++
		n.Command(replication.Command{Kind: replication.CmdDisconnect}, nil)
		p.world.after(5*second, func() { p.node(h).Command(replication.Command{Kind: replication.CmdConnect}, nil) })
	}
}

// standsBy reports whether a manager takes h for drained: the operator's word that
// it is online again has not reached all.
func (w *World) standsBy(h *Host) bool {
	for _, o := range w.Hosts {
		if o.manager.core == nil {
			continue
		}
		for _, n := range o.manager.core.Snapshot().Nodes {
			if n.Name == h.name && n.Standby {
				return true
			}
		}
	}
	return false
}

// forget begins anew with what the arbiter says, after operators have forced things.
func (w *World) forget() {
	for _, p := range w.Pairs {
		if p.forced {
			p.forced = false
			p.forgive(w.Services[p.service].at().h)
			p.record(w.Arbiter.record(p.name))
		}
		if p.tries = 0; p.person != nil {
			p.person = nil
			p.record(w.Arbiter.record(p.name))
		}
	}
}

// at is the VM of s that runs, nil if none does, or two.
func (s *Service) at() (at *VM) {
	for _, v := range s.vms {
		switch {
		case v.phase != vmRunning || !v.h.running():
		case at != nil:
			return nil
		default:
			at = v
		}
	}
	return at
}

// neglected reports whether a manager has used up a service's restarts, or has not
// heard that the operator wants it again.
func (s *Service) neglected() bool {
	for _, h := range s.w.Hosts {
		if h.manager.core == nil || !s.has(h) {
			continue
		}
		for _, st := range h.manager.core.Snapshot().Services {
			if st.Name == s.name && (st.State == ha.StateFailed || st.Target == ha.TargetStopped) {
				return true
			}
		}
	}
	return false
}

// unsettled is why w is not at rest, "" if it is: every VM runs and writes, both
// copies of each resource are equal, and the arbiter counts both.
func (w *World) unsettled() string {
	for _, h := range w.Hosts {
		if !h.running() || h.manager.core == nil {
			return h.name + " does not run"
		}
	}
	for _, p := range w.Pairs {
		if why := p.rest(); why != "" {
			return why
		}
		if n := p.marked(); n > 0 {
			return fmt.Sprintf("%s: the copies are equal, and %d bytes are marked out of sync", p.name, n)
		}
		if w.duo != nil && w.duo.agree(p.name) != "" {
			return w.duo.agree(p.name)
		}
		if rec := w.Arbiter.record(p.name); len(rec.InSync) != 2 || rec.Released {
			return fmt.Sprintf("%s: the record is %+v", p.name, rec)
		}
	}
	for _, s := range w.Services {
		v := s.at()
		if v == nil {
			return fmt.Sprintf("%s does not run: %v", s.name, s.vms)
		}
		if len(s.vms) > 1 {
			return fmt.Sprintf("%s exists twice: %v", s.name, s.vms)
		}
		if w.now-v.acked > 4*second {
			return fmt.Sprintf("%v has not written for %d ms", v, (w.now-v.acked)/millisecond)
		}
	}
	return ""
}

func (w *World) settled() bool { return w.unsettled() == "" }

func (w *World) stuck(when string, ms int64) {
	if w.failure != nil {
		return
	}
	text := ""
	for _, h := range w.Hosts {
		if h.manager.core == nil {
			continue
		}
		snap := h.manager.core.Snapshot()
		text += fmt.Sprintf("\n  %s: %s", h.name, snap.Verdict)
		for _, s := range snap.Services {
			text += fmt.Sprintf("; %s is %s on %q, target %s: %s", s.Name, s.State, s.Node, s.Target, s.Why)
		}
	}
	w.fail("no progress %s: %s, for %d s%s", when, w.unsettled(), ms/1000, text)
}

// stopAll has the operator stop every VM: they stay stopped, and both copies are
// equal at rest.
func (w *World) stopAll() {
	w.Run(3000) // the managers have heard of each other
	for _, s := range w.Services {
		w.Hosts[s.hosts[0]].manager.operatorStops(s)
	}
	none := func() bool {
		for _, s := range w.Services {
			if len(s.vms) > 0 {
				return false
			}
		}
		return true
	}
	if !w.RunUntil(comesDown, none) {
		w.stuck("after every VM was to stop", comesDown)
		return
	}
	w.Run(15_000)
	if !none() {
		w.fail("a VM runs again, after its operator has stopped it")
	}
	for _, p := range w.Pairs {
		if w.failure == nil {
			p.w.CheckQuiet()
			p.look()
		}
	}
}
