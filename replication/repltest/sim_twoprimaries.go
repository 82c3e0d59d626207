package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// twoPrimariesFeature is histories with allow-two-primaries: clients write on
// both nodes, often the same blocks, and a cluster manager has both nodes
// Primary whenever they may be, and ends split brains.
var twoPrimariesFeature = feature{
	name: "two primaries",
	choose: func(d *dice, c *Config) {
		if d.chance(0.08) { // one connection, one ordered stream, several volumes
			c.Volumes = 2 + d.pick(2)
		}
		if c.Net[0].Protocol != 'C' || !d.chance(0.25) {
			return
		}
		policy := []uint32{replication.SBDisconnect, replication.SBDisconnect, replication.SBViolently, replication.SBCallPriLost}[d.pick(4)]
		for i := range c.Net {
			c.Net[i].AllowTwoPrimaries, c.Net[i].AfterSB2P = true, policy
		}
		if c.Stonith = c.FenceAgent && d.chance(0.5); c.Stonith {
			c.FenceCode = [2]int{7, 7}
		}
	},
	troubles: []*trouble{
		{"promote the other node", 4, func(s *sim, n *Node) {
			if s.w.Nodes[1-n.id].res.Role() == drbd.Primary {
				s.promote(n, false)
			} else {
				s.promote(s.w.Nodes[1-n.id], false)
			}
		}},
		{"forbid or allow two primaries", 1, func(s *sim, n *Node) {
			net := s.w.cfg.Net[n.id]
			net.AllowTwoPrimaries = net.AllowTwoPrimaries && s.w.chance(0.7)
			n.Command(replication.Command{Kind: replication.CmdSetOptions, Net: net, Disk: s.w.cfg.Disk[n.id]}, nil)
		}},
	},
	begin: func(s *sim) {
		if s.w.cfg.Net[0].AllowTwoPrimaries {
			m := &clusterManager{sim: s, dice: &dice{mix(s.w.cfg.Seed, mixName("cluster manager"))}}
			s.manager = m
			s.w.after(100_000, m.look)
		}
	},
	heal: func(s *sim) {
		if s.manager != nil {
			s.manager.stopped = true
		}
		for _, n := range s.w.Nodes { // alike on both, or they do not connect
			n.Command(replication.Command{Kind: replication.CmdSetOptions, Net: s.w.cfg.Net[n.id], Disk: s.w.cfg.Disk[n.id]}, nil)
		}
	},
}

// clusterManager looks at both nodes from time to time, as one with
// master-max=2 does.
type clusterManager struct {
	*sim
	dice    *dice
	stopped bool
}

func (m *clusterManager) look() {
	if m.stopped || m.w.failure != nil {
		return
	}
	m.w.after(100_000+m.dice.jitter(400_000), m.look)
	a, b := m.w.Nodes[0], m.w.Nodes[1]
	if !a.alive || !b.alive || m.dice.chance(0.1) {
		return
	}
	sa, sb := a.state(0), b.state(0)
	switch {
	case sa.Conn >= drbd.Connected && sb.Conn >= drbd.Connected:
		for _, n := range m.w.Nodes {
			if n.res.Role() != drbd.Primary {
				m.promote(n, false)
			} else if m.dice.chance(0.05) { // the end of a live migration
				m.demote(n)
			}
		}
	case sa.Conn == drbd.StandAlone && sb.Conn == drbd.StandAlone:
		m.endSplitBrain()
	}
}

// endSplitBrain demotes one node, and then has it throw its changes away.
func (m *clusterManager) endSplitBrain() {
	victim, winner := m.w.Nodes[0], m.w.Nodes[1]
	switch isA, isB := victim.res.Role() == drbd.Primary, winner.res.Role() == drbd.Primary; {
	case isA && isB:
		m.demote(m.w.Nodes[m.dice.pick(2)])
		return
	case isA:
		victim, winner = winner, victim
	}
	m.connect(victim, true)
	m.connect(winner, false)
}

// stonith switches the peer of n off, and on again later.
func (n *Node) stonith() {
	p := n.w.Nodes[1-n.id]
	p.Kill(true, 0.5)
	n.w.after(n.w.jitter(2_000_000), p.Up)
}
