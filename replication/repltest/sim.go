package repltest

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// Simulate runs one history: clients on whoever is Primary, an operator who
// does right and wrong things, and faults, all drawn from the seed. In the end
// everything is healed and must come to rest. The error names what broke, with
// the end of the trace.
func Simulate(seed uint64) error { return NewSimulator().Run(seed) }

// A Simulator runs one history after the other in the same memory. It is not
// safe for concurrent use.
type Simulator struct {
	Events int // of all histories so far
	mem    arena
}

// NewSimulator returns a Simulator that has run nothing.
func NewSimulator() *Simulator { return &Simulator{} }

// Run is one history; see Simulate. A history that fails is run again to have
// its trace.
func (r *Simulator) Run(seed uint64) error {
	p := newPlan(seed)
	s := newSim(p, &r.mem)
	s.run()
	r.Events += s.w.steps
	if s.w.failure == nil {
		return nil
	}
	err := r.again(p)
	if err == nil {
		return fmt.Errorf("%w\nrun again it does not fail: the simulation is not deterministic", s.w.failure)
	}
	if RingLines > shortTrace { // the whole history is wanted
		return err
	}
	small, runs := shrink(p, func(p *plan) error {
		s := newSim(p, &r.mem)
		s.run()
		return s.w.failure
	})
	return fmt.Errorf("%w\nmake sim SEED=%d replays it. A smaller history that fails alike, found in %d runs:\n%v\nits last steps:\n%w",
		s.w.failure, seed, runs, small, r.again(small))
}

// again runs a history with a trace; the error has its end.
func (r *Simulator) again(p *plan) error {
	s := newSim(p, &r.mem)
	s.w.KeepTrace()
	s.run()
	if s.w.failure == nil {
		return nil
	}
	return fmt.Errorf("%w\n%s", s.w.failure, s.w.LastTrace())
}

// A plan is what a history is about: two nodes, and round for round what the
// clients would like to do and what befalls them. Each round and each request
// draws from a seed of its own.
type plan struct {
	seed   uint64
	chosen []bool // of each feature, whether it has its choice
	cfg    Config
	first  int // the node that is promoted first
	rounds []round
}

// round is one thing that happens, and what the clients do then.
type round struct {
	wait     int64 // ms before it
	trouble  *trouble
	node     int    // whom it befalls
	seed     uint64 // of what it draws
	hot      int    // sector around which the clients like to write
	requests [2][]Request
}

// newPlan draws a plan: with its healing a history of 1,000 events or so.
func newPlan(seed uint64) *plan {
	chosen := make([]bool, len(features))
	for i := range chosen {
		chosen[i] = true
	}
	c := chooseConfig(seed, chosen)
	d := &dice{mix(seed, mixName("plan"))}
	p := &plan{seed: seed, chosen: chosen, cfg: c, first: d.pick(2)}
	table, total := allTroubles()
	for i := range 4 + d.pick(8) {
		p.rounds = append(p.rounds, newRound(c, table, total, mix(seed, mixName("round"), uint64(i))))
	}
	return p
}

// chooseConfig draws the configuration: of each feature that has its choice.
func chooseConfig(seed uint64, chosen []bool) Config {
	c := DefaultConfig()
	c.Seed = seed
	for i, f := range features {
		if f.choose != nil && chosen[i] {
			f.choose(&dice{mix(seed, mixName(f.name))}, &c)
		}
	}
	return c
}

func newRound(c Config, table []*trouble, total int, seed uint64) round {
	d := &dice{seed}
	r := round{wait: 1 + d.jitter(300), node: d.pick(2), hot: d.pick(c.Sectors)}
	if d.chance(0.2) {
		r.wait += d.jitter(3000)
	}
	k := d.pick(total)
	for _, t := range table {
		if k -= t.weight; k < 0 {
			r.trouble = t
			break
		}
	}
	r.seed = d.next()
	for node := range r.requests {
		for range d.pick(16) {
			r.requests[node] = append(r.requests[node], newRequest(c, r.hot, &dice{d.next()}))
		}
	}
	return r
}

// sim is a simulated operator with clients.
type sim struct {
	w       *World
	m       *Model
	plan    *plan
	clients [2]*simClient
	hot     int             // sector around which the clients write now
	manager *clusterManager // nil: there is none
	arbiter *arbiter        // of the term feature, if the history has terms
	healing bool
	// changes of the config files so far, and how many of them each node has.
	changes  []func(*replication.NetOptions, *replication.DiskOptions)
	adjusted [2]int
}

func newSim(p *plan, mem *arena) *sim {
	w := newWorld(p.cfg, mem)
	w.judging = true
	s := &sim{w: w, m: w.Model, plan: p}
	d := &dice{mix(p.cfg.Seed, mixName("clients"))}
	for i, n := range w.Nodes {
		s.clients[i] = &simClient{node: n, depth: 1 + d.pick(8)}
	}
	return s
}

// run is one history of some simulated seconds.
func (s *sim) run() {
	w := s.w
	s.arbitrate()
	w.Nodes[0].Up()
	w.Nodes[1].Up()
	w.Run(200)
	s.promote(w.Nodes[s.plan.first], !w.cfg.Synced)
	for _, f := range features {
		if f.begin != nil {
			f.begin(s)
		}
	}
	for i := range s.plan.rounds {
		r := &s.plan.rounds[i]
		w.Run(r.wait)
		if w.failure != nil {
			return
		}
		if r.trouble != nil {
			w.dice.state = r.seed
			w.trace("%s trouble: %s", w.Nodes[r.node].name, r.trouble.name)
			s.hot = r.hot
			r.trouble.do(s, w.Nodes[r.node])
		}
		for k, c := range s.clients {
			c.wishes = r.requests[k]
		}
		s.drive()
	}
	w.Run(300)
	s.heal()
	if w.failure == nil {
		w.CheckQuiet()
	}
	for _, f := range features {
		if f.quiet != nil && w.failure == nil {
			f.quiet(s)
		}
	}
}

// heal repairs everything and waits until both copies are equal. What stands
// in the way is resolved as the messages of the daemon advise.
func (s *sim) heal() {
	w := s.w
	s.healing = true
	for _, f := range features {
		if f.heal != nil && w.failure == nil {
			f.heal(s)
		}
	}
	w.Run(2500)
	for round := 0; round < 8 && w.failure == nil; round++ {
		w.Heal()
		w.endTerms()
		for _, n := range w.Nodes {
			n.Start()
			for i := range n.Vols {
				n.Attach(i)
			}
			if n.state(0).Conn == drbd.StandAlone {
				s.connect(n, false)
			}
		}
		if w.RunUntil(6000, s.settled) {
			if w.Run(1500); s.settled() {
				break
			}
			continue
		}
		s.resolve(round)
	}
	for _, c := range s.clients {
		c.opened = false
	}
	w.RunUntil(20000, s.idle)
	w.Run(3000)
}

func (s *sim) settled() bool {
	for _, n := range s.w.Nodes {
		for i := range n.Vols {
			if st := n.state(i); !n.alive || st.Conn != drbd.Connected || st.Disk != drbd.UpToDate || st.Pdsk != drbd.UpToDate {
				return false
			}
		}
	}
	return true
}

func (s *sim) idle() bool {
	for _, n := range s.w.Nodes {
		if !n.alive || n.pending() > 0 {
			return false
		}
	}
	return s.settled()
}
