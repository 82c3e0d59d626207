package repltest

import "github.com/pollux-project/pollux/replication"

// opsFeature is what operators do besides roles and connections: they suspend
// I/O and let it go on, and begin generations by hand.
var opsFeature = feature{
	name: "ops",
	troubles: []*trouble{
		{"suspend-io", 3, func(s *sim, n *Node) {
			n.Command(replication.Command{Kind: replication.CmdSuspendIO}, nil)
			life := n.life
			s.w.after(s.w.jitter(3_000_000), func() {
				if n.life == life && s.w.chance(0.8) {
					n.Command(replication.Command{Kind: replication.CmdResumeIO}, nil)
				}
			})
		}},
		{"new-current-uuid", 2, func(s *sim, n *Node) {
			n.Command(replication.Command{Kind: replication.CmdNewCurrentUUID, Volume: uint16(s.w.pick(len(n.Vols)))}, nil)
		}},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			n.Command(replication.Command{Kind: replication.CmdResumeIO}, nil)
		}
	},
}
