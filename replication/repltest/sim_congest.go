package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// congestFeature is a link that cannot keep up, and on-congestion.
var congestFeature = feature{
	name:   "congestion",
	choose: chooseCongestion,
	troubles: []*trouble{
		{"jam the network", 6, func(s *sim, n *Node) { s.w.Jam(n.id, 50_000+s.w.jitter(2_000_000)) }},
	},
}

// chooseCongestion draws what protocol A does when writes pile up.
func chooseCongestion(d *dice, c *Config) {
	if c.Net[0].Protocol != 'A' || d.chance(0.2) {
		return
	}
	policy := replication.CongestionPullAhead
	if d.chance(0.1) {
		policy = replication.CongestionDisconnect
	}
	fill, extents := uint64(0), 0
	if d.chance(0.8) {
		fill = uint64(8 + d.pick(100))
	}
	if fill == 0 || d.chance(0.3) {
		extents = 2 + d.pick(4)
	}
	for i := range c.Net {
		c.Net[i].OnCongestion, c.Net[i].CongestionFill, c.Net[i].CongestionExtents = policy, fill, extents
	}
}

// Jam holds up what node from sends on the data socket for so many µs.
func (w *World) Jam(from int, us int64) {
	if l := w.Nodes[from].link; l != nil {
		s := &l.streams[from][drbd.DataSocket]
		s.last = max(s.last, w.now+us)
	}
}
