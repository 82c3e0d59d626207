package repltest

import (
	"fmt"
	"math/bits"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// stateChanged follows what the nodes believe of their copies.
func (m *Model) stateChanged(n *Node, v *Volume, from, to drbd.State) {
	p := m.w.Nodes[1-n.id]
	pv, mv := p.Vols[v.num], &m.vols[v.num]
	if from.Role != drbd.Primary && to.Role == drbd.Primary {
		switch {
		case from.Disk < drbd.UpToDate && to.Disk == drbd.UpToDate:
			m.lower(int(v.num), n.id, v.data.now) // by force: this copy counts, whatever it is
			v.torn = false
		case to.Conn >= drbd.Connected && to.Pdsk == drbd.UpToDate:
			m.joinFloors(int(v.num), n.id)
		}
	}
	if (from.Disk == drbd.Diskless || from.Disk == drbd.Negotiating) && to.Disk == drbd.UpToDate && to.Role != drbd.Primary && to.Pdsk != drbd.UpToDate {
		m.lower(int(v.num), n.id, v.data.now) // what its clients saw meanwhile was the peer's copy
	}
	if m.anyWeak && to.Disk < drbd.UpToDate && to.Conn < drbd.Connected && (from.Disk == drbd.UpToDate || from.Conn >= drbd.Connected) {
		// Both the disk and the peer are gone: A and B do not promise more than the peer has.
		m.lowerWeak(int(v.num), n.id, pv.data.now)
	}
	if v.absent && to.Role != drbd.Primary && to.Conn < drbd.Connected && to.Disk >= drbd.Outdated && (from.Disk < drbd.Inconsistent || from.Disk == drbd.Negotiating) {
		m.lower(int(v.num), n.id, v.data.now) // it comes back as it was left, and nobody here knows better
		v.absent = false
	}
	if m.vols[v.num].excused[n.id] && to.Disk < drbd.Inconsistent && from.Conn < drbd.Connected && to.Conn >= drbd.Connected && to.Pdsk == drbd.UpToDate {
		m.lower(int(v.num), n.id, pv.data.now) // its changes are thrown away, and without a disk it sees the peer's
	}
	isTarget := func(c drbd.ConnState) bool { return c == drbd.SyncTarget || c == drbd.PausedSyncT }
	becomesTarget := isTarget(to.Conn) && !isTarget(from.Conn)
	if becomesTarget {
		m.becomesTarget(n, v, pv)
	}
	mirrored := to.Conn == drbd.Connected && to.Disk == drbd.UpToDate && to.Pdsk == drbd.UpToDate
	if (mirrored || becomesTarget) && mv.solo[0] && mv.solo[1] && !mv.excused[0] && !mv.excused[1] && !m.policies() {
		m.w.fail("%s/%d: both nodes wrote alone, but the split brain is not seen: %v", n.name, v.num, to)
	}
	if to.Disk == drbd.UpToDate && to.Conn == drbd.Connected && from.Disk != drbd.UpToDate && v.torn {
		v.torn = false
		m.mustBeRemade(n, v)
		if n.protocol == 'C' && p.protocol == 'C' {
			m.compare(v, pv, n.name+" has finished its resync")
		}
	}
	if to.Disk == drbd.UpToDate {
		mv.remade[n.id] = 0
	}
	if from.Conn > drbd.Connected && mirrored && from.Disk < drbd.UpToDate {
		if n.link != nil && p.link == n.link { // what either wrote alone is on both, or thrown away
			mv.solo = [2]bool{}
		}
		m.inherit(int(v.num), n.id)
		v.absent = false
	}
	if mirrored {
		if p.alive && p.link == n.link && n.link != nil {
			if s := p.state(int(v.num)); s.Conn == drbd.Connected && s.Disk == drbd.UpToDate && s.Pdsk == drbd.UpToDate {
				mv.solo, mv.excused = [2]bool{}, [2]bool{}
			}
		}
	}
}

// policies reports whether a split brain may be solved without the operator.
func (m *Model) policies() bool {
	n := m.w.cfg.Net[0]
	return n.AfterSB0P != 0 || n.AfterSB1P != 0 || n.AfterSB2P != 0
}

// joinFloors: a node that is promoted while it is connected to good data serves
// all of it.
func (m *Model) joinFloors(vol, node int) {
	v := &m.vols[vol]
	for i, f := range v.floor[1-node] {
		if own := v.floor[node][i]; f != 0 && (own == 0 || m.reqs[own].start < m.reqs[f].start) {
			v.floor[node][i] = f
		}
	}
}

// becomesTarget checks that nothing that n's copy must hold is going to be
// overwritten by something older.
func (m *Model) becomesTarget(n *Node, v, source *Volume) {
	vol := int(v.num)
	for i := range min(len(source.data.now), len(v.data.now)) {
		f := m.floor(vol, n.id, i)
		if f == nil || !m.differMarked(v, source, i) || !m.olderThan(vol, i, source.data.now[i], f) {
			continue
		}
		switch {
		case m.vols[vol].excused[n.id], f.weak, m.policies(), m.reqs[f.ID].flushed == [2]bool{} && m.powerCut[1-n.id] > f.start:
			m.vols[vol].floor[n.id][i] = source.data.now[i]
		case m.olderThan(vol, i, v.data.now[i], f): // lost before
		default:
			m.w.fail("%s/%d: becomes target of a resync, but the source lacks the acknowledged write %d of sector %d (it holds %d)", n.name, v.num, f.ID, i, source.data.now[i])
			return
		}
	}
}

// differMarked reports whether a sector is going to be resynced.
func (m *Model) differMarked(v, pv *Volume, sector int) bool {
	bit := uint64(sector / (blockSize / sectorSize))
	for _, b := range []*meta.Bitmap{v.bitmap, pv.bitmap} {
		if b != nil && bit < b.Bits() && b.Test(bit) {
			return true
		}
	}
	return false
}

// Excuse allows node n's copies to be overwritten: discard-my-data.
func (m *Model) Excuse(n *Node) {
	for i := range m.vols {
		m.ExcuseVolume(n, i)
	}
}

// ExcuseVolume is Excuse for one of its volumes: invalidate.
func (m *Model) ExcuseVolume(n *Node, vol int) { m.vols[vol].excused[n.id] = true }

// observe sees every packet before it is stepped.
func (w *World) observe(n *Node, h drbd.Header, ev *replication.Event) {
	if (h.Command == drbd.CmdRSDataReply || h.Command == drbd.CmdRSDeallocated) && int(h.Volume) < len(n.Vols) {
		n.Vols[h.Volume].torn = true
	}
	if h.Command == drbd.CmdProtocolUpdate {
		w.after(0, n.noteProtocol)
	}
	if w.terms != nil {
		w.terms.received(n, h)
	}
}

// settle is called after every step of either node.
func (m *Model) settle() {}

// checkEqual compares the copies of every volume that both nodes take for
// mirrored: they are equal but for blocks that are marked or being written.
func (w *World) checkEqual() {
	a, b := w.Nodes[0], w.Nodes[1]
	if !a.alive || !b.alive || a.link == nil || a.link != b.link || a.protocol != 'C' || b.protocol != 'C' {
		return
	}
	for i := range a.Vols {
		x, y := a.state(i), b.state(i)
		if mirrors(x.Conn) && mirrors(y.Conn) && x.Disk == drbd.UpToDate && y.Disk == drbd.UpToDate &&
			x.Pdsk == drbd.UpToDate && y.Pdsk == drbd.UpToDate {
			w.Model.compare(a.Vols[i], b.Vols[i], "both nodes are Connected and UpToDate")
		}
	}
}

// compare fails if the copies differ in a sector that is neither marked nor
// being written.
func (m *Model) compare(x, y *Volume, when string) {
	for k, word := range x.data.differ {
		for ; word != 0; word &= word - 1 {
			i := k*64 + bits.TrailingZeros64(word)
			if i >= m.w.exported(int(x.num)) || m.differMarked(x, y, i) || m.beingWritten(int(x.num), i) || m.isPlanted(x.num, i) || m.onItsWay(int(x.num), i) {
				continue
			}
			m.w.fail("%s, but sector %d holds %d on one node and %d on the other, and no bit is set", when, i, x.data.now[i], y.data.now[i])
			return
		}
	}
}

// beingWritten reports whether a client's write or a local one of a sector is
// under way.
func (m *Model) beingWritten(vol, sector int) bool {
	for _, q := range m.pending {
		if q.writes() && q.Vol == vol && q.Sector <= sector && sector < q.Sector+q.Count {
			return true
		}
	}
	for _, f := range m.inflight {
		for _, o := range f {
			if int(o.v.num) == vol && o.sector <= sector && sector < o.end {
				return true
			}
		}
	}
	return false
}

// CheckQuiet is what holds when nothing has been going on for a while: both
// copies are equal and hold everything that was acknowledged.
func (w *World) CheckQuiet() {
	for _, n := range w.Nodes {
		w.Model.endSession(n)
	}
	for i := range w.Nodes[0].Vols {
		for _, n := range w.Nodes {
			if !n.alive {
				w.fail("%s is not running", n.name)
				return
			}
			s := n.state(i)
			if s.Conn != drbd.Connected || s.Disk != drbd.UpToDate || s.Pdsk != drbd.UpToDate {
				w.fail("%s/%d does not come to rest: %v", n.name, i, s)
				return
			}
			if p := n.res.Snapshot(w.Tick()).Pending; p != 0 {
				w.fail("%s: %d requests are stuck: %s %s", n.name, p, w.Model.pendingText(), n.res.Waiting())
				return
			}
		}
		a, b := w.Nodes[0].Vols[i].data.now, w.Nodes[1].Vols[i].data.now
		for k := range w.exported(i) {
			if a[k] != b[k] && !w.Model.isPlanted(uint16(i), k) && !w.grownAlike(i, k) {
				w.fail("at rest sector %d of volume %d holds %d on node a and %d on node b", k, i, a[k], b[k])
				return
			}
			for node, floor := range w.Model.vols[i].floor {
				if f := w.Model.reqs[floor[k]]; f != nil && w.Model.olderThan(i, k, a[k], f) {
					w.fail("at rest sector %d of volume %d holds %d: write %d is lost, which node %d had to hold", k, i, a[k], f.ID, node)
					return
				}
			}
		}
	}
	for _, q := range w.Model.pending {
		w.fail("request %d (%s) of node %s was never answered", q.ID, q.text(), q.node.name)
		return
	}
}

// grownAlike reports whether a sector may differ at rest: it came when both
// devices grew unconnected. With a kernel peer its bit stays set.
func (w *World) grownAlike(vol, sector int) bool {
	return w.cfg.Features&drbd.FeaturePollux == 0 && w.cfg.Room > 0 && sector >= w.cfg.Sectors/8*8 &&
		w.Model.differMarked(w.Nodes[0].Vols[vol], w.Nodes[1].Vols[vol], sector)
}

// pendingText lists the requests that were not answered.
func (m *Model) pendingText() string {
	s := fmt.Sprintf("%d not answered:", len(m.pending))
	for _, q := range m.pending {
		s += fmt.Sprintf(" %s/%d (%s);", q.node.name, q.ID, q.text())
	}
	return s
}
