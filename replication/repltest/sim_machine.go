package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// machineFeature is what cables, disks and power supplies do.
var machineFeature = feature{
	name:   "machine",
	choose: chooseMachine,
	troubles: []*trouble{
		{"cut the network", 12, func(s *sim, _ *Node) {
			s.w.Cut(s.w.chance(0.5))
			s.w.after(s.w.jitter(4_000_000), s.w.Heal)
		}},
		{"break the connection", 8, func(s *sim, _ *Node) { s.w.breakLink(false) }},
		{"stall a socket", 6, func(s *sim, n *Node) { s.w.Stall(n.id, drbd.Socket(s.w.pick(2))) }},
		{"kill a node", 14, func(s *sim, n *Node) {
			n.Kill(s.w.chance(0.6), []float64{0, 0.5, 0.9}[s.w.pick(3)])
			s.w.after(s.w.jitter(2_000_000), func() { n.Up() })
		}},
		{"kill both nodes", 3, func(s *sim, _ *Node) {
			power := s.w.chance(0.8)
			for _, n := range s.w.Nodes {
				n.Kill(power, 0.5)
				s.w.after(s.w.jitter(2_000_000), n.Up)
			}
		}},
		{"fail a disk operation", 7, func(s *sim, n *Node) {
			n.faults[[]fault{failRead, failWrite, failSync, failMeta}[s.w.pick(4)]] = 1
		}},
		{"heal the network", 3, func(s *sim, _ *Node) { s.w.Heal() }},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			clear(n.faults)
		}
	},
}

// chooseMachine draws sizes, and how fast everything is.
func chooseMachine(d *dice, c *Config) {
	c.Sectors = 3*8192 + 8*d.pick(40) + d.pick(8)
	c.Volumes = 1 + d.pick(8)/7
	c.ALSlots = 2 + d.pick(5)
	c.Synced = d.chance(0.8)
	if d.chance(0.3) {
		c.Features = KernelFeatures
	}
	epoch := []int{2048, 2048, 3, 20}[d.pick(4)]
	for i := range c.Net {
		n := &c.Net[i]
		n.MaxEpochSize, n.TimeoutMS, n.KoCount, n.PingIntMS = epoch, 1000, 3, 1000
		c.Disk[i].ALUpdates = !d.chance(0.03)
		c.Disk[i].CMaxRateKiB = uint32(20000 + d.pick(400000))
	}
}

// newRequest draws what a client would like to do.
func newRequest(c Config, hot int, d *dice) Request {
	q := Request{Vol: d.pick(c.Volumes)}
	size := c.Sectors
	if c.Room > 0 && d.chance(0.3) {
		size += c.Room // beyond the end perhaps: that is refused
	}
	switch d.pick(4) {
	case 0:
		q.Count = 1 + d.pick(20)
	case 1:
		q.Count = 8 * (1 + d.pick(32))
	default:
		q.Count = 8
	}
	q.Sector = d.pick(size - q.Count)
	if d.chance(0.6) {
		q.Sector = min(hot+d.pick(64), size-q.Count)
	}
	if d.chance(0.05) {
		q.Sector = size - q.Count
	}
	if q.Count%8 == 0 && d.chance(0.8) {
		q.Sector &^= 7
	}
	switch k := d.pick(20); {
	case k < 12:
		q.Op, q.FUA = replication.OpWrite, d.chance(0.1)
	case k < 16:
		q.Op = replication.OpRead
	case k < 18:
		q.Op = replication.OpFlush
	case k < 19:
		q.Op = replication.OpTrim
	default:
		q.Op = replication.OpZero
	}
	return q
}

// simClient keeps some requests of one node under way, as long as there are wishes.
type simClient struct {
	node   *Node
	opened bool
	wishes []Request
	depth  int
	under  int
	life   int
}

// drive lets the clients submit up to their depth.
func (s *sim) drive() {
	for _, c := range s.clients {
		for s.mayRun(c) {
			s.submit(c)
		}
	}
}

func (s *sim) mayRun(c *simClient) bool {
	return c.opened && c.node.alive && c.life == c.node.life && c.under < c.depth && len(c.wishes) > 0 &&
		c.node.res.Room() > 0 && s.w.failure == nil
}

func (s *sim) submit(c *simClient) {
	q := c.wishes[0]
	c.wishes = c.wishes[1:]
	c.under++
	life := c.life
	s.m.Submit(c.node, q, func(*Request) {
		if c.life != life {
			return
		}
		c.under--
		s.w.after(s.w.jitter(2000), func() {
			if s.mayRun(c) {
				s.submit(c)
			}
		})
	})
}
