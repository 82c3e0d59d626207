package repltest

import (
	"github.com/pollux-project/pollux/replication"
)

// optionsFeature is config files that change while everything runs, on one node
// first and on the other some time later: what the peer hears of at once.
var optionsFeature = feature{
	name: "options",
	troubles: []*trouble{
		{"change the protocol", 3, func(s *sim, n *Node) {
			if c := s.w.cfg.Net[0]; c.AllowTwoPrimaries || s.w.cfg.Terms || c.OnCongestion != replication.CongestionBlock {
				return // these go with one protocol only
			}
			letter := "ABCC"[s.w.pick(4)]
			s.adjust(n, func(net *replication.NetOptions, _ *replication.DiskOptions) { net.Protocol = letter })
		}},
		{"change fencing", 2, func(s *sim, n *Node) {
			fencing := replication.Fencing(s.w.pick(3))
			s.adjust(n, func(_ *replication.NetOptions, disk *replication.DiskOptions) { disk.Fencing = fencing })
		}},
		{"change the algorithms", 3, func(s *sim, n *Node) {
			verify, csums := []string{"crc32c", "md5", "sha1"}[s.w.pick(3)], []string{"", "crc32c", "sha1"}[s.w.pick(3)]
			s.adjust(n, func(net *replication.NetOptions, _ *replication.DiskOptions) {
				net.VerifyAlg, net.CsumsAlg = verify, csums
			})
		}},
		{"configure handlers", 2, func(s *sim, n *Node) {
			s.w.cfg.FenceAgent, s.w.cfg.BeforeResync = s.w.chance(0.5), s.w.chance(0.3)
			n.Command(replication.Command{Kind: replication.CmdSetHandlers, Handlers: s.w.cfg.handlers()}, nil)
		}},
		{"change the activity log", 3, func(s *sim, n *Node) {
			extents, updates := []int{2, 3, 5, 900, 2500}[s.w.pick(5)], !s.w.chance(0.1)
			s.adjust(n, func(_ *replication.NetOptions, disk *replication.DiskOptions) {
				disk.ALExtents, disk.ALUpdates = extents, updates
			})
		}},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes { // alike on both, or they do not connect
			s.w.cfg.Net[n.id], s.w.cfg.Disk[n.id] = s.wanted(n)
			s.adjustUntil(n, 50)
		}
	},
}

// adjust changes the config files of both nodes. The second has what is wanted by then.
func (s *sim) adjust(n *Node, change func(*replication.NetOptions, *replication.DiskOptions)) {
	s.changes = append(s.changes, change)
	done := len(s.changes)
	take := func(x *Node) {
		if s.adjusted[x.id] < done {
			s.w.cfg.Net[x.id], s.w.cfg.Disk[x.id] = s.wanted(x)
		}
		s.adjustNow(x, nil)
	}
	take(n)
	s.w.after(s.w.jitter(500_000), func() { take(s.w.Nodes[1-n.id]) })
}

// wanted is n's configuration with all changes that it has not taken over yet.
func (s *sim) wanted(n *Node) (replication.NetOptions, replication.DiskOptions) {
	net, disk := s.w.cfg.Net[n.id], s.w.cfg.Disk[n.id]
	for _, change := range s.changes[s.adjusted[n.id]:] {
		change(&net, &disk)
	}
	s.adjusted[n.id] = len(s.changes)
	return net, disk
}

// adjustNow is `adjust` on n. What is refused now is taken over by the next one.
func (s *sim) adjustNow(n *Node, done func(error)) {
	for i := range n.Vols {
		n.Command(replication.Command{Kind: replication.CmdSetOptions, Volume: uint16(i), Net: s.w.cfg.Net[n.id], Disk: s.w.cfg.Disk[n.id]}, done)
	}
}

// adjustUntil is adjust as often as it takes: a resync or a verify may refuse it.
func (s *sim) adjustUntil(n *Node, times int) {
	s.adjustNow(n, func(err error) {
		if err != nil && times > 0 {
			s.w.after(200_000, func() { s.adjustUntil(n, times-1) })
		}
	})
}

// noteProtocol follows the protocol that is in force on n. Less is promised of
// what is answered around a change, and nothing of the order in which it is read.
func (n *Node) noteProtocol() {
	if !n.alive {
		return
	}
	if p := n.res.Snapshot(n.tick()).Protocol; p != n.protocol {
		n.protocol, n.unsafe = p, n.w.now
		n.w.Model.sessions[n.id].void = true
	}
}

// safeSince reports whether n has run under protocol C since that time, in µs,
// and not been told anything else.
func (n *Node) safeSince(start int64) bool { return n.protocol == 'C' && n.unsafe <= start }

// onItsWay reports whether a write of a sector may be on its way to the peer
// although it was answered: under protocol A or B, on the present connection.
func (m *Model) onItsWay(vol, sector int) bool {
	l := m.w.Nodes[0].link
	if !m.anyWeak || l == nil {
		return false
	}
	for _, q := range m.reqs[1:] {
		if q.weak && q.writes() && q.Vol == vol && q.Sector <= sector && sector < q.Sector+q.Count && q.end >= l.since {
			return true
		}
	}
	return false
}
