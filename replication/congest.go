package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Congestion (drbd84-protocol, 3.10): under protocol A a Primary whose link
// cannot keep up goes Ahead instead of waiting. From then on its writes are its
// own: each is marked in the bitmap, on disk by the rules of the activity log
// (I2), and the peer, Behind and Outdated, is told which blocks to mark. Once
// everything that was sent is stable on the peer, the marked blocks are
// resynced without an exchange of bitmaps, because both have the same bits.
//
// We differ from the kernel in two things. Going Ahead begins a new data
// generation, on disk before the first write of one's own: if this node then
// crashes and somebody forces the stale copy into service, their next contact
// shows a split brain rather than overwriting what was written here. And where
// the step is made in the middle of a resync, answers that are under way clear
// no bits; what they were for is marked again on both sides before the return.

// aheadRestMS is how long a node stays Ahead after the last epoch was
// acknowledged. Source: drbd84-protocol, 3.10.
const aheadRestMS = 1000

// span is a range of a volume, size in bytes.
type span struct {
	sector drbd.Sector
	size   uint32
}

// isCongested reports whether too much is under way to the peer for another
// write of v, and has the next maintain do what on-congestion says. A peer of our
// kind, which makes epochs durable in its own time, is asked to hurry before.
func (r *Resource) isCongested(v *volume) bool {
	c := v.st.Conn
	syncing := c == drbd.SyncSource || c == drbd.PausedSyncS
	if r.net.Protocol != 'A' || v.st.Disk != drbd.UpToDate || c != drbd.Connected && !syncing {
		return false
	}
	if syncing && (r.net.CsumsAlg != "" || v.rs.untold) {
		return false // blocks found equal are cleared on the peer without an answer that could be awaited
	}
	sent, fill, hot, extents := v.inLog>>9, r.net.CongestionFill, v.al.InUse(), r.net.CongestionExtents
	switch {
	case fill != 0 && sent >= fill, extents != 0 && hot >= extents:
		r.congested = v
		return true
	case r.peerPollux && !r.send_.hurried && (fill != 0 && sent >= fill/2 || extents != 0 && hot >= extents/2):
		r.hurry()
	}
	return false
}

// relieve does what on-congestion says.
func (r *Resource) relieve() {
	v := r.congested
	r.congested = nil
	r.kick = true // the write that found it goes on
	if !r.isUp() || r.net.OnCongestion == CongestionBlock || v.st.Conn < drbd.Connected || v.st.Conn == drbd.Ahead {
		return
	}
	if r.net.OnCongestion == CongestionDisconnect {
		r.giveUp("volume %d: congested: %d sectors and %d extents of the activity log are under way to the peer; on-congestion says disconnect: "+
			"run `polluxadm connect %s` when the link has room again", v.num, v.inLog>>9, v.al.InUse(), r.cfg.Name)
		return
	}
	r.goAhead(v)
}

// goAhead stops replication of v's writes.
func (r *Resource) goAhead(v *volume) {
	text := fmt.Sprintf("congested: %d sectors, %d extents under way", v.inLog>>9, v.al.InUse())
	r.closeEpoch()
	var held []PeerID
	if v.st.Conn != drbd.Connected {
		for i := range r.req.log.len() {
			if q := r.req.get(*r.req.log.at(i)); q.v == v {
				v.ahead = append(v.ahead, span{q.sector, q.size})
			}
		}
		v.ahead = append(v.ahead, v.rs.sent...)
		held = v.rs.held
		v.rs = resync{sent: v.rs.sent}
	}
	ns := v.st
	ns.Conn = drbd.Ahead
	r.announceAndSet(v, ns, text)
	r.letGo(held)
	r.barrierIfDue()
	if v.uuids.Bitmap == 0 {
		r.newCurrent(v)
	}
	r.maybeReturn(v)
}

// sendOutOfSync tells the peer of blocks that changed here alone.
func (r *Resource) sendOutOfSync(v *volume, s drbd.Sector, size uint32) {
	r.barrierIfDue()
	start := r.beginPacket(drbd.CmdOutOfSync, v.num, 16)
	r.arena = drbd.BlockDesc{Sector: s, Size: size}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
}

// mayReturn reports whether nothing of v is under way to the peer any more.
func (r *Resource) mayReturn(v *volume) bool {
	if v.st.Conn != drbd.Ahead || v.inLog > 0 || len(v.rs.sent) > 0 || v.active.busy(0, ^drbd.Sector(0), resyncRead) {
		return false
	}
	for _, id := range r.peer.waiting {
		if p := r.peer.get(id); p.v == v && p.kind == resyncRead {
			return false
		}
	}
	return true
}

// maybeReturn starts the time after which v is resynced.
func (r *Resource) maybeReturn(v *volume) {
	if r.mayReturn(v) {
		r.setTimerOnce(timerAhead, aheadRestMS)
	}
}

// returnFromAhead makes this node the source of a resync of whatever was
// marked meanwhile.
func (r *Resource) returnFromAhead() {
	for _, v := range r.vols {
		switch {
		case v.st.Conn != drbd.Ahead:
			continue
		case !r.mayReturn(v) || !v.isSettled():
			r.setTimerOnce(timerAhead, aheadRestMS/10)
			continue
		}
		for _, s := range v.ahead {
			v.setDirty(s.sector, s.size)
			r.sendOutOfSync(v, s.sector, s.size)
		}
		v.ahead = v.ahead[:0]
		r.startSource(v)
	}
}

// overtaken: the peer has changed a range since it sent what is being written
// there, so the end of that write says nothing about the range any more.
func (r *Resource) overtaken(v *volume, s drbd.Sector, size uint32) {
	end := s + drbd.Sector((size+511)>>9)
	for i := range v.active.r {
		if a := &v.active.r[i]; a.kind&(resyncWrite|peerWrite) != 0 && a.start < end && s < a.end {
			r.peer.get(PeerID(a.id)).stale = true
		}
	}
	for i := range v.rs.asked.len() {
		if a := v.rs.asked.at(i); a.sector < end && s < a.sector+drbd.Sector(a.size>>9) {
			a.stale = true
		}
	}
	for _, id := range r.peer.waiting {
		if p := r.peer.get(id); p.v == v && p.op != OpRead && p.sector < end && s < p.end() {
			p.stale = true
		}
	}
}

// acked takes out a block whose answer has come.
func (s *resync) acked(sector drbd.Sector) {
	for i := range s.sent {
		if s.sent[i].sector == sector {
			s.sent = append(s.sent[:i], s.sent[i+1:]...)
			return
		}
	}
}
