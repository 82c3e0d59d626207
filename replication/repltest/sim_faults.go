package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// faultsFeature is what is neither whole nor broken: half a network, a slow
// disk, a clock that jumps, a packet that ends in the middle.
var faultsFeature = feature{
	name: "faults",
	troubles: []*trouble{
		{"cut the network one way", 5, func(s *sim, n *Node) {
			s.w.CutOneWay(n.id)
			s.w.after(s.w.jitter(4_000_000), s.w.Heal)
		}},
		{"tear a packet", 5, func(s *sim, n *Node) { s.w.tear(n.id, drbd.Socket(s.w.pick(2))) }},
		{"slow a socket down", 4, func(s *sim, n *Node) {
			d := &s.w.delayed[n.id][s.w.pick(2)]
			*d = 1000 * []int64{5, 80, 600, 1500}[s.w.pick(4)]
			s.w.after(s.w.jitter(2_000_000), func() { *d = 0 })
		}},
		{"slow a disk down", 4, func(s *sim, n *Node) {
			n.slow = 1000 * []int64{5, 100, 1000, 3000}[s.w.pick(4)]
			s.w.after(s.w.jitter(3_000_000), func() { n.slow = 0 })
		}},
		{"a clock jumps", 4, func(s *sim, n *Node) { n.jump(1 + s.w.jitter(20_000)) }},
		{"timers are late", 2, func(s *sim, n *Node) {
			n.late = 1000 * (1 + s.w.jitter(2000))
			s.w.after(s.w.jitter(3_000_000), func() { n.late = 0 })
		}},
		{"fail several disk operations", 2, func(s *sim, n *Node) {
			n.faults[[]fault{failRead, failWrite}[s.w.pick(2)]] = 2 + s.w.pick(5)
		}},
		{"restart the daemon", 6, func(s *sim, n *Node) {
			was := n.alive && n.res.Role() == drbd.Primary
			n.Kill(false, 1)
			s.w.after(s.w.jitter(1_000_000), func() {
				n.Up()
				if was {
					s.resume(n)
				}
			})
		}},
		{"cut the power of both nodes", 3, func(s *sim, _ *Node) {
			for _, n := range s.w.Nodes {
				n.Kill(true, []float64{0, 0.5, 0.9}[s.w.pick(3)])
				s.w.after(s.w.jitter(2_000_000), n.Up)
			}
		}},
		{"change options", 4, changeOptions},
	},
	heal: func(s *sim) {
		s.w.delayed = [2][2]int64{}
		for _, n := range s.w.Nodes {
			n.slow, n.late = 0, 0
		}
	},
}

// resume takes the role of Primary up as package engine does after a restart in
// the same boot: at once if this node was durably the only writer, otherwise
// when the peer is connected and not Primary.
func (s *sim) resume(n *Node) {
	life := n.life
	sole := true
	for _, v := range n.Vols {
		sole = sole && v.alone
	}
	left := 100
	var look func()
	look = func() {
		if left--; left < 0 || n.life != life || !n.alive || n.res.Role() == drbd.Primary {
			return
		}
		if st := n.state(0); sole || st.Conn >= drbd.Connected && st.Peer == drbd.Secondary {
			s.promote(n, false)
			return
		}
		s.w.after(50_000, look)
	}
	look()
}

// changeOptions is a config file that changes while everything runs: on one
// node first, on the other some time later.
func changeOptions(s *sim, n *Node) {
	epoch, ko := []int{1, 3, 20, 2048}[s.w.pick(4)], []int{0, 2, 7}[s.w.pick(3)]
	rate, onError := uint32(20000+s.w.pick(400000)), replication.OnIOError(s.w.pick(2))
	change := func(x *Node) {
		net, disk := s.w.cfg.Net[x.id], s.w.cfg.Disk[x.id]
		net.MaxEpochSize, net.KoCount = epoch, ko
		disk.CMaxRateKiB, disk.OnIOError = rate, onError
		s.w.cfg.Net[x.id], s.w.cfg.Disk[x.id] = net, disk
		for i := range x.Vols {
			x.Command(replication.Command{Kind: replication.CmdSetOptions, Volume: uint16(i), Net: net, Disk: disk}, nil)
		}
	}
	change(n)
	s.w.after(s.w.jitter(500_000), func() { change(s.w.Nodes[1-n.id]) })
}
