package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// resync is the state of one resync of a volume, on either side.
type resync struct {
	running  bool
	source   bool
	ready    bool   // target: Inconsistent is on disk, blocks may be asked for
	begun    bool   // source: the target has asked for a block, so the sync UUID is on its disk
	ending   bool   // target: all blocks are here, the end is being made durable
	base     uint64 // source: the target's generation before, without the Primary bit
	peerDone bool   // source: the target says it has everything
	total    uint64
	failed   uint64           // blocks
	same     uint64           // bytes that a digest found equal
	csums    string           // target: the algorithm of csums-alg, if it is used
	number   uint64           // of the resync, of all of the resource
	pos      uint64           // target: next bit to look at
	skipped  bool             // blocks were passed over because a write was under way
	inFlight uint64           // bytes asked for and not answered
	asked    ring[askedBlock] // target: and not answered, oldest first
	pace     pacer
	held     []PeerID // source: requests that give way to the application
	began    Tick
	pausedAt Tick          // 0 while it runs
	pausedMS Tick          // all pauses that are over
	marks    [8]resyncMark // for the rate: one a second
	mark     int
	untold   bool       // source: P_SYNC_UUID is not sent yet, and
	before   meta.UUIDs // these are the generations without it
	sent     []span     // source: blocks whose answer has not come

	untilStored uint64 // target: the resync is over, and the source hears of it after this metadata job
}

type resyncMark struct {
	at   Tick
	left uint64
}

// becomeSource makes this node SyncSource. The sync UUID is on disk before the
// target hears of it: otherwise a crash here would make the two look unrelated.
func (r *Resource) becomeSource(v *volume) {
	wasAhead := v.st.Conn == drbd.Ahead
	before := v.uuids
	x := SyncUUID(&v.uuids, r.random())
	job := v.storeAll()
	r.beginResync(v, true)
	v.rs.untold, v.rs.before, v.rs.base = true, before, v.peerUUIDs.Current&^1
	ns := v.st
	ns.Conn, ns.Pdsk = drbd.SyncSource, drbd.Inconsistent
	r.setState(v, ns, "resync starts")
	gen := r.connGen
	v.whenStored(job, func() {
		if gen == r.connGen && v.rs.running {
			v.rs.untold = false
			r.sendPacket(drbd.DataSocket, drbd.CmdSyncUUID, v.num, drbd.SyncUUID{UUID: x})
		}
	})
	if wasAhead { // no write is sent before the peer knows that its copy is Inconsistent
		v.meta.required = v.meta.next
	}
}

func (r *Resource) beginResync(v *volume, source bool) {
	w := v.bitmap.Weight()
	v.disown()
	r.resyncs++
	v.rs = resync{number: r.resyncs, running: true, source: source, total: w, began: r.now}
	if !source && r.usesCsums(v) {
		v.rs.csums = r.net.CsumsAlg
	}
	v.rs.pace.begin(&v.opts, source, r.now, v.otherSectors)
	for i := range v.rs.marks {
		v.rs.marks[i] = resyncMark{r.now, w}
	}
	r.setTimerOnce(timerResync, resyncTickMS)
}

// becomeTarget makes this node SyncTarget. No block is asked for before the
// superblock says Inconsistent.
func (r *Resource) becomeTarget(v *volume, x uint64) {
	v.uuids.Current = x &^ 1
	if r.role == drbd.Primary {
		v.uuids.Current |= 1
	}
	v.uuids.Bitmap = 0
	r.beginResync(v, false)
	ns := v.st
	ns.Conn, ns.Disk = drbd.SyncTarget, drbd.Inconsistent
	r.setState(v, ns, "resync starts")
	job := v.storeAll()
	v.meta.required = job
	gen := r.connGen
	v.whenStored(job, func() {
		if gen == r.connGen && v.rs.running {
			v.rs.ready = true
			r.askResync(v)
			r.checkResyncDone(v)
		}
	})
}

func (r *Resource) resyncTick() {
	again := false
	for _, v := range r.vols {
		if !v.rs.running || v.rs.pausedAt != 0 {
			continue
		}
		again = true
		if m := &v.rs.marks[v.rs.mark]; r.now-m.at >= 1000 && v.bitmap != nil {
			v.rs.mark = (v.rs.mark + 1) % len(v.rs.marks)
			v.rs.marks[v.rs.mark] = resyncMark{r.now, v.bitmap.Weight()}
		}
		r.serveHeld(v)
		r.askResync(v)
		r.checkResyncDone(v)
	}
	if again {
		r.resyncTimer(resyncTickMS)
	}
}

// gotResyncAck: the target has written a block that we sent, or failed to.
func (r *Resource) gotResyncAck(v *volume, cmd drbd.Command, a drbd.BlockAck) error {
	if err := v.checkRange(cmd, a.Sector, a.Size); err != nil {
		return err
	}
	v.rs.acked(a.Sector)
	if !v.rs.running || !v.rs.source {
		r.maybeReturn(v)
		return nil // of a resync that was aborted, or that waits while this node is Ahead
	}
	if cmd == drbd.CmdNegAck {
		v.rs.failed += uint64(a.Size+4095) / 4096
		return nil
	}
	r.clearSynced(v, a.Sector, a.Size, true)
	r.sourceMayFinish(v)
	return nil
}

// receivedOutOfSync marks what the peer wrote without sending it.
func (r *Resource) receivedOutOfSync(v *volume, d drbd.BlockDesc) error {
	if err := v.checkRange(drbd.CmdOutOfSync, d.Sector, d.Size); err != nil {
		return err
	}
	v.setDirty(d.Sector, d.Size)
	r.overtaken(v, d.Sector, d.Size)
	return nil
}

// checkResyncDone ends the target's part once nothing is left: data and bitmap
// become durable, the link is proven alive, then the generation is taken over.
func (r *Resource) checkResyncDone(v *volume) {
	s := &v.rs
	if !v.isSyncTarget() || !s.ready || s.ending || s.inFlight > 0 || s.pausedAt != 0 && s.total == 0 ||
		v.bitmap == nil || v.bitmap.Weight() > s.failed || v.active.busy(0, ^drbd.Sector(0), resyncWrite|resyncAsked) {
		return
	}
	s.ending = true
	v.meta.forceSync = true
	job := v.storeAll()
	gen := r.connGen
	v.whenStored(job, func() {
		if gen != r.connGen || !v.isSyncTarget() {
			return
		}
		r.whenPinged(func() {
			if gen == r.connGen && v.isSyncTarget() && s.ending {
				r.finishTarget(v)
			}
		})
	})
}

func (r *Resource) finishTarget(v *volume) {
	s := &v.rs
	if w := v.bitmap.Weight(); w > s.failed { // a write failed meanwhile
		s.ending, s.pos = false, 0
		return
	}
	ns := v.st
	ns.Conn, ns.Pdsk = drbd.Connected, drbd.UpToDate
	text := s.resyncText()
	if s.failed == 0 {
		FinishTarget(&v.uuids, v.peerUUIDs, r.role == drbd.Primary)
		v.peerUUIDs = v.uuids // no P_UUIDS follows: both know what the other has now
		ns.Disk = drbd.UpToDate
	} else {
		ns.Disk = drbd.Inconsistent
		text = fmt.Sprintf("resync finished, but %d blocks could not be had", v.bitmap.Weight())
	}
	r.setState(v, ns, text)
	job := v.requireSuperblock()
	gen, st := r.connGen, v.st
	// The source must not advance its UUIDs before ours are on disk.
	v.rs.untilStored = job
	v.whenStored(job, func() {
		if gen == r.connGen && r.isUp() && v.hasDisk() {
			r.sendStateWord(v, finishWord(st, v.st))
			if v.st.Conn == drbd.Connected && v.st.Disk < st.Disk {
				r.sendStateWord(v, v.st) // pass_on meanwhile: that is the last word
			}
		}
	})
	r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "after-resync-target"})
}

// finishWord is the word that ends a resync with the state st, told when the
// state is now: who was demoted meanwhile is Primary no more. A promotion is
// announced when it is on disk itself.
func finishWord(st, now drbd.State) drbd.State {
	w := now
	w.Conn, w.Disk, w.Pdsk = st.Conn, st.Disk, st.Pdsk
	if st.Role != drbd.Primary {
		w.Role = st.Role
	}
	return w
}

// tellable is s as the peer may hear it: a target whose finished resync is not
// on disk yet is one still, whatever else it has to tell. The source would take
// any other word for the end, and advance its UUIDs.
func (v *volume) tellable(s drbd.State) drbd.State {
	if s.Conn != drbd.Connected || s.Disk != drbd.UpToDate || v.meta.done >= v.rs.untilStored {
		return s
	}
	s.Conn, s.Disk, s.Pdsk = drbd.SyncTarget, drbd.Inconsistent, drbd.UpToDate
	if s.Paused() {
		s.Conn = drbd.PausedSyncT
	}
	return s
}

// targetLost settles what the UUIDs of v say about a target whose connection
// is lost: its own may be those from before the resync, the sync UUID, or, if
// its last word was lost, this node's.
func (r *Resource) targetLost(v *volume) {
	s, u := &v.rs, &v.uuids
	if v.st.Conn >= drbd.Connected { // what the peer has is known since the handshake
		v.endUnknown = false
	}
	if !v.isSyncSource() || !s.running {
		return
	}
	switch {
	case s.untold: // what it never heard of must not take a place in the history
		u.Bitmap, u.History = s.before.Bitmap, s.before.History
	case s.begun || v.bitmap == nil || v.bitmap.Weight() == 0:
		v.endUnknown = v.bitmap != nil
		return
	case s.base != s.before.Bitmap&^1: // not the plain case, in which the handshake sees a lost sync UUID
		x, second := u.Bitmap, s.before.History[0]
		if s.base == s.before.History[1]&^1 {
			second = s.before.History[1] // the only generation that both know
		}
		u.Bitmap, u.History = s.before.Bitmap, [2]uint64{x, second}
	default:
		return
	}
	v.endUnknown = u.Bitmap == 0 && r.role == drbd.Primary // it may have the same generation
}

// sourceMayFinish ends the source's part: the target has said that it is
// finished, and every bit is gone here too.
func (r *Resource) sourceMayFinish(v *volume) {
	s := &v.rs
	if !s.running || !s.source || !s.peerDone || s.ending || v.bitmap == nil {
		return
	}
	if w := v.bitmap.Weight(); w > s.failed {
		if r.req.log.len() == 0 {
			r.connectionLost(drbd.ProtocolFailure, &drbd.ProtocolError{
				Packet: drbd.CmdState, Field: "conn", Got: "Connected, as if the resync were finished",
				Want: fmt.Sprintf("SyncTarget: %d blocks are still out of sync here", w),
			})
		}
		return
	}
	s.ending = true
	gen := r.connGen
	r.whenPinged(func() {
		if gen != r.connGen || !v.isSyncSource() || v.bitmap == nil {
			return
		}
		ns := v.st
		ns.Conn = drbd.Connected
		if s.failed == 0 {
			FinishSource(&v.uuids)
			v.peerUUIDs = v.uuids
			ns.Pdsk = drbd.UpToDate
		}
		r.setState(v, ns, s.resyncText())
		v.storeAll()
		r.unfence(v)
	})
}

// doneAndGone: the target has finished the resync, and its disk has failed before
// this node had cleared all bits or proven the link alive. That disk will say that
// it has the generation of this node: what it lacks belongs to a new one.
func (r *Resource) doneAndGone(v *volume) {
	if v.bitmap == nil {
		return
	}
	FinishSource(&v.uuids)
	v.peerUUIDs = v.uuids
	if r.role == drbd.Primary || v.bitmap.Weight() > 0 {
		r.newCurrent(v)
		return
	}
	v.requireSuperblock()
}

// resyncOver forgets the resync of v: finished or aborted.
func (r *Resource) resyncOver(v *volume) {
	if r.isUp() {
		v.disown()
	}
	held := v.rs.held
	v.rs = resync{}
	v.ahead = v.ahead[:0]
	v.active.removeKind(resyncAsked)
	r.letGo(held)
	if v.hasDisk() {
		v.storeAll()
	}
}

// letGo begins what the source's resync has held, or drops it with the connection.
func (r *Resource) letGo(held []PeerID) {
	for _, id := range held {
		if p := r.peer.get(id); r.isUp() {
			r.beginPeer(p)
		} else {
			r.releasePeer(p)
		}
	}
}

// disown leaves what was asked for to a resync that is over.
func (v *volume) disown() {
	for i := range v.rs.asked.len() {
		a := v.rs.asked.at(i)
		v.active.removeAt(resyncAsked, a.sector)
		v.active.insert(a.sector, a.sector+drbd.Sector(a.size>>9), resyncOwed, a.size)
	}
	v.rs.asked = ring[askedBlock]{}
}

// resyncText tells what a resync has done, in DRBD's words if digests were compared.
func (s *resync) resyncText() string {
	if s.same == 0 {
		return "resync finished"
	}
	total := s.total * 4
	return fmt.Sprintf("resync finished: %d %% had equal checksums, eliminated: %dK; transferred %dK total %dK",
		s.same>>10*100/max(total, 1), s.same>>10, total-min(s.same>>10, total), total)
}
