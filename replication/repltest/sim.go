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
func Simulate(seed uint64) error {
	s := newSim(seed)
	s.w.KeepTrace()
	s.run()
	if err := s.w.Err(); err != nil {
		return fmt.Errorf("%w\n%s", err, s.w.LastTrace())
	}
	return nil
}

// sim is a simulated operator with clients.
type sim struct {
	w       *World
	clients [2]*simClient
	hot     int // sector around which the clients like to write
	m       *Model
}

// simClient keeps some requests of one node under way.
type simClient struct {
	node   *Node
	opened bool
	depth  int
	under  int
	life   int
}

func newSim(seed uint64) *sim {
	c := DefaultConfig()
	c.Seed = seed
	w := NewWorld(simConfig(c))
	s := &sim{w: w, m: w.Model}
	for i, n := range w.Nodes {
		s.clients[i] = &simClient{node: n, depth: 1 + w.pick(8)}
	}
	return s
}

// simConfig draws what a history is about.
func simConfig(c Config) Config {
	w := &World{rng: newRand(c.Seed ^ 0xabcdef)}
	c.Sectors = 3*8192 + 8*w.pick(40) + w.pick(8)
	c.Volumes = 1 + w.pick(8)/7
	c.ALSlots = 2 + w.pick(5)
	c.Synced = w.chance(0.8)
	if w.chance(0.3) {
		c.Features = KernelFeatures
	}
	protocol := byte("CCCCAB"[w.pick(6)])
	fencing := replication.Fencing(0)
	if w.chance(0.25) {
		fencing = replication.Fencing(1 + w.pick(2))
		c.FenceAgent = w.chance(0.8)
	}
	c.NoData = w.chance(0.2)
	epoch := []int{2048, 2048, 3, 20}[w.pick(4)]
	policies := [3]uint32{}
	if w.chance(0.2) {
		policies[0] = []uint32{replication.SBDiscardZeroChanges, replication.SBDiscardLeastChanges, replication.SBDiscardYoungerPrimary}[w.pick(3)]
		policies[1] = []uint32{replication.SBConsensus, replication.SBDiscardSecondary}[w.pick(2)]
	}
	for i := range c.Net {
		n := &c.Net[i]
		n.Protocol, n.MaxEpochSize = protocol, epoch
		n.TimeoutMS, n.KoCount, n.PingIntMS = 1000, 3, 1000
		n.AfterSB0P, n.AfterSB1P = policies[0], policies[1]
		d := &c.Disk[i]
		d.Fencing = fencing
		d.OnIOError = replication.OnIOError(w.pick(2))
		d.ALUpdates = !w.chance(0.03)
		d.CMaxRateKiB = uint32(20000 + w.pick(400000))
	}
	return c
}

// run is one history of some simulated seconds.
func (s *sim) run() {
	w := s.w
	w.Nodes[0].fence, w.Nodes[1].fence = s.fenceCode(), s.fenceCode()
	w.Nodes[0].Up()
	w.Nodes[1].Up()
	w.Run(200)
	s.promote(w.Nodes[w.pick(2)], !w.cfg.Synced)
	for i := 8 + w.pick(25); i > 0 && w.failure == nil; i-- {
		w.Run(int64(1 + w.pick(300)))
		if w.chance(0.2) {
			w.Run(int64(w.pick(3000)))
		}
		s.hot = w.pick(w.cfg.Sectors)
		s.trouble()
		s.drive()
	}
	s.heal()
	if w.failure == nil {
		w.CheckQuiet()
	}
}

func (s *sim) fenceCode() int {
	return []int{0, 4, 4, 5, 7, 1}[s.w.pick(6)]
}

// trouble is one thing that happens.
func (s *sim) trouble() {
	w := s.w
	n := w.Nodes[w.pick(2)]
	switch k := w.pick(100); {
	case k < 12:
		w.Cut(w.chance(0.5))
		w.after(w.jitter(4_000_000), w.Heal)
	case k < 20:
		w.breakLink(false)
	case k < 26:
		w.Stall(n.id, drbd.Socket(w.pick(2)))
	case k < 40:
		n.Kill(w.chance(0.6), []float64{0, 0.5, 0.9}[w.pick(3)])
		w.after(w.jitter(2_000_000), func() { n.Up() })
	case k < 43:
		power := w.chance(0.8)
		w.Nodes[0].Kill(power, 0.5)
		w.Nodes[1].Kill(power, 0.5)
		w.after(w.jitter(2_000_000), func() { w.Nodes[0].Up() })
		w.after(w.jitter(2_000_000), func() { w.Nodes[1].Up() })
	case k < 50:
		n.faults[[]fault{failRead, failWrite, failSync, failMeta}[w.pick(4)]] = 1
	case k < 58:
		for i := range n.Vols {
			n.Attach(i)
		}
	case k < 63:
		n.Command(replication.Command{Kind: replication.CmdDetach, Volume: uint16(w.pick(len(n.Vols))), Force: w.chance(0.3)}, nil)
	case k < 72:
		s.promote(n, w.chance(0.1))
	case k < 80:
		s.demote(n)
	case k < 85:
		n.Command(replication.Command{Kind: replication.CmdDisconnect, Force: w.chance(0.3)}, nil)
	case k < 92:
		s.connect(n, w.chance(0.1))
	case k < 95:
		s.invalidate(n)
	case k < 97:
		n.Command(replication.Command{Kind: replication.CmdOutdate}, nil)
	default:
		w.Heal()
	}
}

func (s *sim) connect(n *Node, discard bool) {
	n.Command(replication.Command{Kind: replication.CmdConnect, Force: discard}, func(err error) {
		if err == nil && discard {
			s.m.Excuse(n)
		}
	})
}

func (s *sim) invalidate(n *Node) {
	kind, victim := replication.CmdInvalidate, n
	if s.w.chance(0.5) {
		kind, victim = replication.CmdInvalidateRemote, s.w.Nodes[1-n.id]
	}
	s.m.Excuse(victim)
	n.Command(replication.Command{Kind: kind, Volume: uint16(s.w.pick(len(n.Vols)))}, nil)
}

// promote makes n Primary and opens its volumes.
func (s *sim) promote(n *Node, force bool) {
	c := s.clients[n.id]
	n.Command(replication.Command{Kind: replication.CmdPrimary, Force: force}, func(err error) {
		if err != nil || c.opened && c.life == n.life {
			return
		}
		c.life, c.under = n.life, 0
		s.w.after(0, func() {
			n.Command(replication.Command{Kind: replication.CmdOpen}, func(err error) {
				c.opened = err == nil && c.life == n.life
				s.w.after(0, s.drive)
			})
		})
	})
}

// demote closes the volumes of n, once its clients are done, and makes it Secondary.
func (s *sim) demote(n *Node) {
	c := s.clients[n.id]
	if !c.opened || c.life != n.life || s.w.chance(0.1) {
		n.Command(replication.Command{Kind: replication.CmdSecondary}, nil)
		return
	}
	c.opened = false
	var wait func()
	wait = func() {
		if c.life != n.life || !n.alive {
			return
		}
		if c.under > 0 {
			s.w.after(20000, wait)
			return
		}
		n.Command(replication.Command{Kind: replication.CmdClose}, func(error) {
			s.w.after(0, func() { n.Command(replication.Command{Kind: replication.CmdSecondary}, nil) })
		})
	}
	wait()
}

// drive lets the clients submit up to their depth.
func (s *sim) drive() {
	for _, c := range s.clients {
		if !c.opened || !c.node.alive || c.life != c.node.life {
			continue
		}
		for c.under < c.depth && c.node.res.Room() > 0 && s.w.failure == nil && c.opened {
			s.submit(c)
		}
	}
}

func (s *sim) submit(c *simClient) {
	w := s.w
	q := Request{Vol: w.pick(w.cfg.Volumes)}
	size := w.cfg.Sectors
	switch w.pick(4) {
	case 0:
		q.Count = 1 + w.pick(20)
	case 1:
		q.Count = 8 * (1 + w.pick(32))
	default:
		q.Count = 8
	}
	q.Sector = w.pick(size - q.Count)
	if w.chance(0.6) {
		q.Sector = min(s.hot+w.pick(64), size-q.Count)
	}
	if w.chance(0.05) {
		q.Sector = size - q.Count
	}
	if q.Count%8 == 0 && w.chance(0.8) {
		q.Sector &^= 7
	}
	switch k := w.pick(20); {
	case k < 12:
		q.Op, q.FUA = replication.OpWrite, w.chance(0.1)
	case k < 16:
		q.Op = replication.OpRead
	case k < 18:
		q.Op = replication.OpFlush
	case k < 19:
		q.Op = replication.OpTrim
	default:
		q.Op = replication.OpZero
	}
	c.under++
	life := c.life
	s.m.Submit(c.node, q, func(*Request) {
		if c.life != life {
			return
		}
		c.under--
		w.after(w.jitter(2000), s.driveOne(c))
	})
}

func (s *sim) driveOne(c *simClient) func() {
	return func() {
		if c.opened && c.node.alive && c.life == c.node.life && c.under < c.depth && s.w.failure == nil {
			s.submit(c)
		}
	}
}

// heal repairs everything and waits until both copies are equal. What stands
// in the way is resolved as the messages of the daemon advise.
func (s *sim) heal() {
	w := s.w
	for _, n := range w.Nodes {
		clear(n.faults)
		n.fence = 7
	}
	w.Run(2500)
	for round := 0; round < 8 && w.failure == nil; round++ {
		w.Heal()
		for _, n := range w.Nodes {
			n.Start()
			for i := range n.Vols {
				n.Attach(i)
			}
			if n.res.Snapshot(w.Tick()).Conn == drbd.StandAlone {
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
		if !n.alive || n.res.Snapshot(s.w.Tick()).Pending > 0 {
			return false
		}
	}
	return s.settled()
}

// resolve is the operator's way out of what does not heal by itself.
func (s *sim) resolve(round int) {
	w := s.w
	a, b := w.Nodes[0], w.Nodes[1]
	sa, sb := a.state(0), b.state(0)
	winner, victim := a, b
	good := func(n *Node, s drbd.State) int {
		if n.res.Role() == drbd.Primary {
			return 2*int(s.Disk) + 1
		}
		return 2 * int(s.Disk)
	}
	if good(b, sb) > good(a, sa) {
		winner, victim = b, a
	}
	w.trace("resolve round=%d winner=%s: a %v, b %v", round, winner.name, sa, sb)
	if victim.res.Role() == drbd.Primary { // both are
		s.demote(victim)
		w.Run(1500)
		if victim.res.Role() == drbd.Primary && round > 2 { // its clients never end
			victim.Kill(false, 1)
			victim.Up()
			w.Run(200)
		}
	}
	switch {
	case sa.Conn >= drbd.Connected && sb.Conn >= drbd.Connected && sa.Disk > drbd.Diskless && sb.Disk > drbd.Diskless:
		if sa.Disk < drbd.UpToDate && sb.Disk < drbd.UpToDate {
			s.promote(winner, true)
		} else {
			s.m.Excuse(victim)
			for i := range victim.Vols {
				if victim.state(i).Disk != drbd.UpToDate {
					victim.Command(replication.Command{Kind: replication.CmdInvalidate, Volume: uint16(i)}, nil)
				}
			}
		}
		w.Run(500)
	default:
		for _, n := range []*Node{victim, winner} {
			n.Command(replication.Command{Kind: replication.CmdDisconnect, Force: true}, nil)
		}
		w.Run(500)
		for _, n := range w.Nodes { // what an attach was refused for is seen at the handshake
			for i := range n.Vols {
				n.Attach(i)
			}
		}
		if round >= 4 { // copies that nothing can compare: throw one away
			s.m.Excuse(victim)
			for i := range victim.Vols {
				victim.Command(replication.Command{Kind: replication.CmdInvalidate, Volume: uint16(i)}, nil)
			}
			w.Run(500)
		}
		if sa.Disk == drbd.Inconsistent && sb.Disk == drbd.Inconsistent {
			s.promote(winner, true)
			w.Run(500)
		}
		s.connect(victim, true)
		s.connect(winner, false)
	}
}
