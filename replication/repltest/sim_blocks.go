package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// blocksFeature is what happens to a few blocks that are busy: they are written
// and read again and again, each time as soon as that is answered, while one of
// the circumstances turns up in which the two copies of them may part.
var blocksFeature = feature{
	name: "busy blocks",
	troubles: []*trouble{
		{"busy blocks", 10, func(s *sim, n *Node) { s.busyBlocks(s.primaryOf(n)) }},
		{"busy blocks during a resync", 5, func(s *sim, n *Node) {
			n = s.primaryOf(n)
			s.w.breakLink(false)
			s.writeSome(n, 20)
			s.when(5000, func() bool { return n.state(0).Conn == drbd.SyncSource }, func() { s.busyBlocks(n) })
		}},
		{"busy blocks of a diskless Primary", 4, func(s *sim, n *Node) {
			n = s.primaryOf(n)
			p := s.w.Nodes[1-n.id]
			n.Command(replication.Command{Kind: replication.CmdDetach, Force: true}, nil)
			s.when(1000, func() bool { return n.state(0).Disk == drbd.Diskless }, func() {
				s.busyBlocks(n)
				if s.w.chance(0.5) {
					s.slowDown(p)
					s.w.after(s.w.jitter(100_000), func() { s.w.breakLink(false) })
					s.when(3000, func() bool { return n.state(0).Conn >= drbd.Connected }, func() {
						if s.serves(n) {
							s.m.Submit(n, Request{Op: replication.OpFlush}, nil)
						}
					})
				}
			})
		}},
		{"invalidate a disk that lies", 2, func(s *sim, n *Node) {
			vol := s.w.pick(len(n.Vols))
			n = s.w.Nodes[1-s.primaryOf(n).id]
			if !s.w.isPair(vol) {
				return
			}
			n.corrupt(vol, s.w.pick(s.w.cfg.Sectors))
			s.m.ExcuseVolume(n, vol)
			n.Command(replication.Command{Kind: replication.CmdInvalidate, Volume: uint16(vol)}, nil)
			if s.w.chance(0.6) {
				s.w.after(s.w.jitter(8_000), func() {
					n.Kill(s.w.chance(0.8), []float64{0, 0.5, 0.9}[s.w.pick(3)])
					s.w.after(s.w.jitter(2_000_000), n.Up)
				})
			}
		}},
		{"kill the target at the end of its resync", 4, func(s *sim, n *Node) {
			n = s.primaryOf(n)
			p := s.w.Nodes[1-n.id]
			s.w.breakLink(false)
			s.writeSome(n, 5)
			s.when(5000, func() bool { return p.alive && p.state(0).Conn == drbd.SyncTarget }, func() {
				s.when(5000, func() bool { return p.alive && p.state(0).Conn == drbd.Connected }, func() {
					p.Kill(s.w.chance(0.8), 0)
					s.w.after(s.w.jitter(2_000_000), p.Up)
				})
			})
		}},
	},
}

// primaryOf is the Primary, or n if there is none, or two.
func (s *sim) primaryOf(n *Node) *Node {
	if p := s.w.Nodes[1-n.id]; !(n.alive && n.res.Role() == drbd.Primary) && p.alive && p.res.Role() == drbd.Primary {
		return p
	}
	return n
}

// when does f as soon as cond holds, within so many milliseconds.
func (s *sim) when(limit int64, cond func() bool, f func()) {
	end := s.w.now + limit*1000
	var look func()
	look = func() {
		switch {
		case s.healing || s.w.now >= end:
		case cond():
			f()
		default:
			s.w.after(300+s.w.jitter(700), look)
		}
	}
	s.w.after(0, look)
}

// slowDown has the disks of a node take their time for a while.
func (s *sim) slowDown(n *Node) {
	n.slow = 1000 * []int64{2, 10, 50, 300}[s.w.pick(4)]
	s.w.after(100_000+s.w.jitter(1_000_000), func() { n.slow = 0 })
}

// writeSome writes so many blocks of a node's first volume.
func (s *sim) writeSome(n *Node, count int) {
	if !s.serves(n) {
		return
	}
	for range count {
		s.m.Submit(n, Request{Op: replication.OpWrite, Sector: 8 * s.w.pick(s.w.cfg.Sectors/8-8), Count: 8 * (1 + s.w.pick(8))}, nil)
	}
}

// serves reports whether clients may ask n for something.
func (s *sim) serves(n *Node) bool {
	c := s.clients[n.id]
	return n.alive && c.opened && c.life == n.life && n.res.Room() > 64 && n.w.now >= n.asleep
}

// busyBlocks has several clients of n write and read around one place, and
// lets something come between.
func (s *sim) busyBlocks(n *Node) {
	if !s.serves(n) {
		return
	}
	p, w, at := s.w.Nodes[1-n.id], s.w, s.w.pick(s.w.cfg.Sectors-64)
	for range 1 + w.pick(3) {
		s.busyClient(n, at, 4+w.pick(8))
	}
	if w.chance(0.7) {
		s.slowDown(w.Nodes[w.pick(2)])
	}
	soon := func(f func()) { w.after(w.jitter(20_000), f) }
	switch w.pick(8) {
	case 0:
		soon(func() { p.faults[failWrite] = 1 + w.pick(2) })
	case 1:
		soon(func() { n.faults[failWrite] = 1 })
	case 2: // what the peer says of its disk comes late, its acknowledgements do not
		w.delayed[p.id][drbd.DataSocket] = 1000 * (5 + w.jitter(80))
		w.after(w.jitter(500_000), func() { w.delayed[p.id][drbd.DataSocket] = 0 })
		soon(func() { p.faults[failWrite] = 1 })
	case 3:
		n.Command(replication.Command{Kind: replication.CmdVerify, StartSector: drbd.Sector(at &^ 7)}, nil)
	case 4:
		soon(func() { w.breakLink(false) })
	case 5:
		soon(func() {
			p.Kill(true, []float64{0, 0.5}[w.pick(2)])
			w.after(w.jitter(1_000_000), p.Up)
		})
	default: // nothing but the clients
	}
}

// busyClient is one client: the next request begins when the last is answered,
// and a read wants what was written just before.
func (s *sim) busyClient(n *Node, at, left int) {
	life := n.life
	var next func(last *Request)
	next = func(last *Request) {
		if left--; left < 0 || n.life != life || !s.serves(n) || s.healing || s.w.failure != nil {
			return
		}
		q := Request{Op: replication.OpWrite, Sector: at + s.w.pick(24), Count: 1 + s.w.pick(24)}
		if s.w.chance(0.6) {
			q.Sector, q.Count = q.Sector&^7, 8*(1+s.w.pick(3))
		}
		if last != nil && last.writes() && s.w.chance(0.6) {
			q = Request{Op: replication.OpRead, Sector: last.Sector, Count: last.Count}
		}
		q.Sector = min(q.Sector, s.w.cfg.Sectors-q.Count)
		s.m.Submit(n, q, next)
	}
	next(nil)
}
