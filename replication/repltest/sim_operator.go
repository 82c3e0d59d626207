package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// operatorFeature is what operators and cluster managers ask for, right or wrong.
var operatorFeature = feature{
	name:   "operator",
	choose: choosePolicies,
	troubles: []*trouble{
		{"attach", 8, func(_ *sim, n *Node) {
			for i := range n.Vols {
				n.Attach(i)
			}
		}},
		{"detach", 5, func(s *sim, n *Node) {
			n.Command(replication.Command{Kind: replication.CmdDetach, Volume: uint16(s.w.pick(len(n.Vols))), Force: s.w.chance(0.3)}, nil)
		}},
		{"promote", 9, func(s *sim, n *Node) { s.promote(n, s.w.chance(0.1)) }},
		{"demote", 8, func(s *sim, n *Node) { s.demote(n) }},
		{"disconnect", 5, func(s *sim, n *Node) {
			n.Command(replication.Command{Kind: replication.CmdDisconnect, Force: s.w.chance(0.3)}, nil)
		}},
		{"connect", 7, func(s *sim, n *Node) { s.connect(n, s.w.chance(0.1)) }},
		{"invalidate", 3, func(s *sim, n *Node) { s.invalidate(n) }},
		{"outdate", 2, func(_ *sim, n *Node) { n.Command(replication.Command{Kind: replication.CmdOutdate}, nil) }},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			n.fence = 7
			n.endHandler()
		}
	},
}

// choosePolicies draws protocol, fencing and what else the configuration decides.
func choosePolicies(d *dice, c *Config) {
	protocol := "CCCCAB"[d.pick(6)]
	fencing := replication.Fencing(0)
	if d.chance(0.25) {
		fencing = replication.Fencing(1 + d.pick(2))
		c.FenceAgent = d.chance(0.8)
	}
	c.NoData = d.chance(0.2)
	policies := [2]uint32{}
	if d.chance(0.2) {
		policies[0] = []uint32{replication.SBDiscardZeroChanges, replication.SBDiscardLeastChanges, replication.SBDiscardYoungerPrimary}[d.pick(3)]
		policies[1] = []uint32{replication.SBConsensus, replication.SBDiscardSecondary}[d.pick(2)]
	}
	for i := range c.Net {
		c.Net[i].Protocol = protocol
		c.Net[i].AfterSB0P, c.Net[i].AfterSB1P = policies[0], policies[1]
		c.Disk[i].Fencing = fencing
		c.Disk[i].OnIOError = replication.OnIOError(d.pick(3))
		c.FenceCode[i] = []int{0, 4, 4, 5, 7, 1}[d.pick(6)]
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
	vol := s.w.pick(len(n.Vols))
	s.m.ExcuseVolume(victim, vol)
	n.Command(replication.Command{Kind: kind, Volume: uint16(vol)}, nil)
}

// promote makes n Primary and opens its volumes.
func (s *sim) promote(n *Node, force bool) {
	if s.arbiter != nil && !s.healing {
		s.takeOver(n)
		return
	}
	n.Command(replication.Command{Kind: replication.CmdPrimary, Force: force}, s.open(n))
}

// open opens the volumes of n once it is Primary.
func (s *sim) open(n *Node) func(error) {
	c := s.clients[n.id]
	return func(err error) {
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
	}
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

// worth is how good a node's copies are, a Primary's a little more.
func (n *Node) worth() int {
	sum := 0
	for i := range n.Vols {
		sum += 2 * int(n.state(i).Disk)
	}
	if n.res.Role() == drbd.Primary {
		sum++
	}
	return sum
}

// anyVolume reports whether f holds for one of the volumes.
func (s *sim) anyVolume(f func(a, b drbd.State) bool) bool {
	a, b := s.w.Nodes[0], s.w.Nodes[1]
	for i := range a.Vols {
		if f(a.state(i), b.state(i)) {
			return true
		}
	}
	return false
}

// resolve is the operator's way out of what does not heal by itself.
func (s *sim) resolve(round int) {
	w := s.w
	winner, victim := w.Nodes[0], w.Nodes[1]
	if victim.worth() > winner.worth() {
		winner, victim = victim, winner
	}
	w.trace("resolve round=%d winner=%s: a %v, b %v", round, winner.name, w.Nodes[0].state(0), w.Nodes[1].state(0))
	s.demoteNow(victim, round)
	if round > 2 && s.anyVolume(func(a, b drbd.State) bool { return min(a.Disk, b.Disk) < drbd.Inconsistent }) {
		s.demoteNow(winner, round) // what it has seen of a volume without a disk binds it to one generation
	}
	apart := s.anyVolume(func(a, b drbd.State) bool {
		return min(a.Conn, b.Conn) < drbd.Connected || min(a.Disk, b.Disk) <= drbd.Diskless
	})
	if !apart {
		s.invalidateWorse(winner, victim)
		w.Run(500)
		return
	}
	for _, n := range []*Node{victim, winner} {
		n.Command(replication.Command{Kind: replication.CmdDisconnect, Force: true}, nil)
	}
	w.Run(500)
	for _, n := range w.Nodes { // what an attach was refused for is seen at the handshake
		for i := range n.Vols {
			n.Attach(i)
		}
	}
	if round >= 6 { // not even that was enough: their generations are unrelated
		s.createMD(victim)
		w.Run(500)
	} else if round >= 4 { // copies that nothing can compare: throw one away
		for i := range victim.Vols {
			if winner.state(i).Disk > drbd.Inconsistent {
				s.m.ExcuseVolume(victim, i)
				victim.Command(replication.Command{Kind: replication.CmdInvalidate, Volume: uint16(i)}, nil)
			}
		}
		w.Run(500)
	}
	if s.anyVolume(func(a, b drbd.State) bool { return a.Disk == drbd.Inconsistent && b.Disk == drbd.Inconsistent }) {
		s.promote(winner, true)
		w.Run(500)
	}
	s.connect(victim, true)
	s.connect(winner, false)
}

// demoteNow demotes n, by a restart if its clients never end.
func (s *sim) demoteNow(n *Node, round int) {
	if n.res.Role() != drbd.Primary {
		return
	}
	s.demote(n)
	s.w.Run(1500)
	if n.res.Role() == drbd.Primary && round > 2 {
		n.Kill(false, 1)
		n.Up()
		s.w.Run(200)
	}
}

// invalidateWorse has every copy that is not up to date made anew from the other.
func (s *sim) invalidateWorse(winner, victim *Node) {
	for i := range victim.Vols {
		mine, its := winner.state(i).Disk, victim.state(i).Disk
		switch {
		case mine < drbd.UpToDate && its < drbd.UpToDate:
			s.demoteNow(winner, 3) // to force a Primary that has lost its good copy does nothing
			s.promote(winner, true)
		case its < drbd.UpToDate:
			s.m.ExcuseVolume(victim, i)
			victim.Command(replication.Command{Kind: replication.CmdInvalidate, Volume: uint16(i)}, nil)
		case mine < drbd.UpToDate:
			s.m.ExcuseVolume(winner, i)
			winner.Command(replication.Command{Kind: replication.CmdInvalidate, Volume: uint16(i)}, nil)
		}
	}
}

// createMD is what the message about unrelated data advises: down, create-md,
// up, on the node whose copy does not count.
func (s *sim) createMD(n *Node) {
	n.Kill(false, 1)
	for i, v := range n.Vols {
		s.m.ExcuseVolume(n, i)
		d := newMetaDisk(s.w.mem, v.meta.base, v.meta.end())
		if err := meta.Create(d, v.layout, meta.CreateOptions{}); err != nil {
			s.w.fail("%s/%d: create-md: %v", n.name, i, err)
			return
		}
		d.commit()
		d.durably = v.meta.durably
		v.meta = d
	}
	n.Start()
	for i := range n.Vols {
		n.Attach(i)
	}
}
