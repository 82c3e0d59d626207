package repltest

import (
	"github.com/pollux-project/pollux/replication"
)

// resyncFeature pauses resyncs, and chooses how they are done.
var resyncFeature = feature{
	name: "resync",
	troubles: []*trouble{
		{"pause a resync", 5, func(s *sim, n *Node) {
			s.resyncCommand(n, replication.Command{Kind: replication.CmdPauseSync})
			if s.w.chance(0.5) {
				s.w.after(s.w.jitter(600_000), func() { s.resyncCommand(n, replication.Command{Kind: replication.CmdResumeSync}) })
			}
		}},
		{"resume a resync", 2, func(s *sim, n *Node) { s.resyncCommand(n, replication.Command{Kind: replication.CmdResumeSync}) }},
		{"another volume is resynced first", 2, func(s *sim, n *Node) {
			s.resyncCommand(n, replication.Command{Kind: replication.CmdSyncAfter, Waits: true})
			s.w.after(s.w.jitter(600_000), func() { s.resyncCommand(n, replication.Command{Kind: replication.CmdSyncAfter}) })
		}},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			s.resyncCommand(n, replication.Command{Kind: replication.CmdResumeSync})
			s.resyncCommand(n, replication.Command{Kind: replication.CmdSyncAfter})
		}
	},
}

// resyncCommand gives c to n for each of its volumes. A node that does not run
// has no pauses to end.
func (s *sim) resyncCommand(n *Node, c replication.Command) {
	for i := range n.Vols {
		c.Volume = uint16(i)
		n.Command(c, nil)
	}
}
