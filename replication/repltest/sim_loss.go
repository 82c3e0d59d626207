package repltest

import (
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// lossFeature is a bound for what may be lost under protocol A or B.
var lossFeature = feature{
	name: "loss",
	choose: func(d *dice, c *Config) {
		if c.Net[0].Protocol == 'C' || !d.chance(0.5) {
			return
		}
		bytes, ms := uint64(1+d.pick(64))*sectorSize, int64(20+d.pick(3000))
		for i := range c.Net {
			c.Net[i].MaxLossBytes, c.Net[i].MaxLossMS = bytes, ms
		}
	},
	troubles: []*trouble{
		{"change what may be lost", 3, func(s *sim, n *Node) {
			if s.w.cfg.Net[0].MaxLossBytes == 0 {
				return
			}
			bytes, ms := uint64(1+s.w.pick(64))*sectorSize, int64(20+s.w.pick(3000))
			s.adjust(n, func(net *replication.NetOptions, _ *replication.DiskOptions) {
				net.MaxLossBytes, net.MaxLossMS = bytes, ms
			})
		}},
	},
}

// lossModel is what clients of a node were answered for on the present connection
// and the peer's disk does not hold: it would be lost if the node were now.
type lossModel struct {
	link    *link
	answers []*Request
}

// bounded is called when a write was answered: all that would be lost now is
// within the bound, whatever the core counts.
func (l *lossModel) bounded(m *Model, n *Node, q *Request) {
	p := m.w.Nodes[1-n.id]
	bound := n.res.Snapshot(m.w.Tick()).Loss
	if l.link != n.link || bound.MaxBytes == 0 {
		l.link, l.answers = n.link, l.answers[:0]
	}
	if n.link == nil || p.link != n.link || bound.MaxBytes == 0 {
		return
	}
	l.answers = append(l.answers, q)
	lost := uint64(0)
	l.answers = slices.DeleteFunc(l.answers, func(w *Request) bool {
		st := n.state(w.Vol)
		if st.Conn != drbd.Connected || st.Pdsk != drbd.UpToDate || p.state(w.Vol).Disk != drbd.UpToDate { // the peer's copy does not count
			return true
		}
		d := p.Vols[w.Vol].data
		for i := w.Sector; i < w.Sector+w.Count; i++ {
			if m.olderThan(w.Vol, i, d.now[i], w) {
				lost += uint64(w.Count) * sectorSize
				return false
			}
		}
		return true
	})
	if lost > bound.MaxBytes {
		m.w.fail("%s: write %d was answered, and %d bytes would be lost now: %d may be", n.name, q.ID, lost, bound.MaxBytes)
	}
}
