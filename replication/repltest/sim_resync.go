package repltest

import (
	"github.com/pollux-project/pollux/replication"
)

// resyncFeature pauses resyncs, and chooses how they are done.
var resyncFeature = feature{
	name:   "resync",
	choose: chooseResync,
	troubles: []*trouble{
		{"pause a resync", 5, func(s *sim, n *Node) {
			s.resyncCommand(n, replication.Command{Kind: replication.CmdPauseSync})
			if s.w.chance(0.5) {
				s.w.after(s.w.jitter(600_000), func() { s.resyncCommand(n, replication.Command{Kind: replication.CmdResumeSync}) })
			}
		}},
		{"a handler refuses the next resync", 1, func(s *sim, n *Node) {
			n.before = 1
			s.w.after(s.w.jitter(2_000_000), func() { n.before = 0 })
		}},
		{"resume a resync", 2, func(s *sim, n *Node) { s.resyncCommand(n, replication.Command{Kind: replication.CmdResumeSync}) }},
		{"another volume is resynced first", 2, func(s *sim, n *Node) {
			s.resyncCommand(n, replication.Command{Kind: replication.CmdSyncAfter, Waits: true})
			s.w.after(s.w.jitter(600_000), func() { s.resyncCommand(n, replication.Command{Kind: replication.CmdSyncAfter}) })
		}},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			n.before = 0
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

// chooseResync draws what is compared before it is sent, and the pace.
func chooseResync(d *dice, c *Config) {
	alg := []string{"", "", "", "crc32c", "sha1"}[d.pick(5)]
	afterCrash := d.chance(0.2)
	c.BeforeResync = d.chance(0.1)
	thin := []uint32{0, 0, 0, 0, 32768, 65536, 65536, 1 << 20}[d.pick(8)]
	if c.Synced && d.chance(0.02) {
		thin = 4096 // each request is as large: a full resync has 20,000 events
	}
	min := []uint32{0, 250, 4000, 100000}[d.pick(4)]
	for i := range c.Net {
		c.Net[i].CsumsAlg, c.Net[i].CsumsAfterCrashOnly = alg, afterCrash
		o := &c.Disk[i]
		o.RSDiscardGranularity, o.CMinRateKiB = thin, min
		switch d.pick(6) {
		case 0:
			o.CPlanAhead, o.ResyncRateKiB = 0, uint32(10000+d.pick(90000))
		case 1:
			o.CFillTarget = 0
		case 2:
			o.CPlanAhead, o.CFillTarget = uint32(1+d.pick(30)), uint32(8+d.pick(5000))
		}
		if d.chance(0.1) {
			c.Net[i].MaxBuffers = 32
		}
	}
}
