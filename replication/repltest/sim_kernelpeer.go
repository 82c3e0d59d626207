package repltest

import "github.com/pollux-project/pollux/protocol/drbd"

// kernelPeerFeature has half of the pairs without FeaturePollux acknowledge
// epochs before they are flushed, as drbd.ko does.
var kernelPeerFeature = feature{
	name: "kernel peer",
	choose: func(d *dice, c *Config) {
		c.EarlyAck = c.Features&drbd.FeaturePollux == 0 && c.Net[0].Protocol == 'C' && !c.Net[0].AllowTwoPrimaries && d.chance(0.5)
	},
	troubles: []*trouble{
		{"cut the power behind an early acknowledgement", 3, func(s *sim, n *Node) {
			n.cutAtEarlyAck = s.w.cfg.EarlyAck
			life := n.life
			s.w.after(s.w.jitter(1_500_000), func() {
				n.cutAtEarlyAck = false
				if n.life != life || !n.alive {
					n.Up()
				}
			})
		}},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			n.cutAtEarlyAck = false
		}
	},
}
