package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// With allow-two-primaries both nodes may write the same blocks at once. Both
// copies must end alike, so one node decides, the one that has
// Link.ResolveConflicts (drbd84-protocol, 3.8). Its own write stays; the peer's
// is superseded if that covers it, else it is to be retried. The other node
// does nothing on a conflict but wait for that word.

// conflict is what stands between a peer's write and its begin here.
type conflict uint8

const (
	conflictNone     conflict = iota // nothing, or only requests that are begun anew after it
	conflictWait                     // something that ends by itself, or that the peer decides
	conflictAnswered                 // it is decided, the peer has its answer
)

// meetConflict looks at what overlaps p, a peer's request that finds its
// range busy, and decides if it is this node's to decide.
//
// A write of this node is in conflict with p only while the peer's answer to
// it is outstanding: once the peer has answered, p was begun after it there and
// comes after it here. Before p is answered, this node's write has ended on its
// disk: "superseded" tells the peer's client that its data, or what covers them,
// are on both disks. That the peer is asked to retry needs the same: what
// overlaps in part is then on this disk before the second attempt.
func (r *Resource) meetConflict(p *peerRequest) conflict {
	if p.kind != peerWrite || !r.net.AllowTwoPrimaries {
		return conflictWait
	}
	v := p.v
	answer := drbd.Command(0)
	for i := range v.active.r {
		a := &v.active.r[i]
		if a.start >= p.end() || p.sector >= a.end || a.kind&peerWriteWaitsFor == 0 {
			continue
		}
		if a.kind != clientWrite {
			return conflictWait
		}
		q := r.req.get(RequestID(a.id))
		switch {
		case q.is(isPostponed) && !q.is(localPending):
		case !r.link.ResolveConflicts, !q.is(netPending), q.is(localPending):
			return conflictWait
		case answer == 0 && q.sector <= p.sector && p.end() <= q.end() && q.is(localOK) && v.hasDisk() && (q.fua || p.flags&drbd.DPFUA == 0):
			answer = drbd.CmdSuperseded
		default:
			answer = drbd.CmdRetryWrite
		}
	}
	if answer == 0 {
		return conflictNone
	}
	r.countConflict(p.v, p.sector)
	r.sendAck(answer, v, p.sector, p.block, p.size)
	if !r.peerPollux {
		r.holdBack(p, answer == drbd.CmdRetryWrite)
	}
	if answer == drbd.CmdRetryWrite || !r.peerPollux {
		r.recv.leave(p.epoch)
	} else {
		r.recv.ended(p.epoch)
	}
	r.releasePeer(p)
	if len(r.req.waiting) > 0 {
		r.kick = true
	}
	return conflictAnswered
}

// An epochHold keeps an epoch of a kernel peer from being acknowledged. The
// kernel counts a write that met ours until it has let it go, and drops the
// connection if the acknowledgement counts another number. It has let go of a
// superseded one when it answers ours, and of one that it is to retry when that
// comes again.
type epochHold struct {
	epoch  uint64
	v      *volume
	sector drbd.Sector
	size   uint32
	block  uint64 // our write that is to be answered, 0 if it is
	again  bool   // the retried write is awaited, too
}

// holdBack holds the epoch of p, which met writes of this node.
func (r *Resource) holdBack(p *peerRequest, again bool) {
	for i := range p.v.active.r {
		if a := &p.v.active.r[i]; a.kind == clientWrite && a.start < p.end() && p.sector < a.end {
			r.recv.holds = append(r.recv.holds, epochHold{p.epoch, p.v, p.sector, p.size, r.req.get(RequestID(a.id)).blockID(), again})
		}
	}
}

// isHeldBack reports whether an epoch must not be acknowledged yet.
func (r *Resource) isHeldBack(epoch uint64) bool {
	held, kept := false, r.recv.holds[:0]
	for _, h := range r.recv.holds {
		if q := r.req.lookup(h.block); q == nil || !q.is(netPending) {
			h.block = 0
		}
		if h.v.hasDisk() && (h.block != 0 || h.again) {
			kept, held = append(kept, h), held || h.epoch == epoch
		}
	}
	r.recv.holds = kept
	return held
}

// cameAgain notes the second attempt of a write that was to be retried.
func (r *Resource) cameAgain(v *volume, s drbd.Sector, size uint32) {
	for i := range r.recv.holds {
		if h := &r.recv.holds[i]; h.v == v && h.sector == s && h.size == size {
			h.again = false
		}
	}
}

// countConflict says once a connection what a cluster file system, or a guest
// that is moved in good order, never does.
func (r *Resource) countConflict(v *volume, s drbd.Sector) {
	v.stats.Conflicts++
	if !r.conflictTold {
		r.conflictTold = true
		r.report("volume %d: both Primaries write sector %d at the same time; both copies stay equal, but only one of the writes remains: are the applications coordinated, by a cluster file system for instance?", v.num, s)
	}
}

// behindPeer reports whether q overlaps a write of the peer that waits to
// begin: it must not be passed for ever.
func (r *Resource) behindPeer(q *request) bool {
	for _, id := range r.peer.waiting {
		if p := r.peer.get(id); p.kind == peerWrite && p.v == q.v && p.sector < q.end() && q.sector < p.end() {
			return true
		}
	}
	return false
}

// gotConflictAnswer is the peer's word on a write that met one of its own.
func (r *Resource) gotConflictAnswer(cmd drbd.Command, v *volume, ack drbd.BlockAck) error {
	if r.link.ResolveConflicts || !r.net.AllowTwoPrimaries {
		return &drbd.ProtocolError{Packet: cmd, Field: "block_id", Got: handle(ack.BlockID), Want: "none: the peer does not resolve conflicts"}
	}
	q := r.req.lookup(ack.BlockID)
	if q == nil || q.v != v || q.sector != ack.Sector || !q.is(replicated) || !q.is(netPending) {
		return &drbd.ProtocolError{Packet: cmd, Field: "block_id", Got: handle(ack.BlockID), Want: fmt.Sprintf("that of a write at sector %d", ack.Sector)}
	}
	r.countConflict(v, q.sector)
	if cmd == drbd.CmdRetryWrite || !r.peerPollux {
		r.leaveEpoch(q)
	}
	q.clear(netPending)
	if !r.peerPollux {
		r.flushedBefore(q.epoch)
	}
	if cmd == drbd.CmdSuperseded {
		q.set(netOK | writeAcked)
		r.progress(q)
		return nil
	}
	q.clear(replicated)
	q.set(isPostponed | isTainted)
	q.since = r.now
	r.req.postponed = append(r.req.postponed, q.id)
	r.setTimerOnce(timerRequest, Tick(r.net.TimeoutMS))
	r.resubmitDiskless(q)
	r.peerMayGo()
	return nil
}

// resubmitPostponed begins anew, behind p, what p had to wait for.
func (r *Resource) resubmitPostponed(p *peerRequest) {
	for i := 0; i < len(r.req.postponed); {
		q := r.req.get(r.req.postponed[i])
		if q.v == p.v && q.sector < p.end() && p.sector < q.end() {
			r.resubmit(q)
		} else {
			i++
		}
	}
}

// resubmitDiskless begins q anew if it is postponed and there is no disk here:
// then no order has to be kept with what the peer sends.
func (r *Resource) resubmitDiskless(q *request) {
	if q.is(isPostponed) && !q.is(localPending) && q.v.st.Disk < drbd.Inconsistent {
		r.resubmit(q)
	}
}

// resubmit has q, which the peer did not take, begin as if it were new. It
// keeps its extents: this node's disk holds its data, the peer's does not.
func (r *Resource) resubmit(q *request) {
	r.unpostpone(q)
	q.v.active.remove(clientWrite, uint32(q.id))
	q.flags, q.err = q.flags&(alHeld|hanging|moved|isTimed)|isTainted, nil
	r.req.waiting = append(r.req.waiting, q.id)
	r.kick = true
}

func (r *Resource) unpostpone(q *request) {
	q.clear(isPostponed)
	for i, id := range r.req.postponed {
		if id == q.id {
			r.req.postponed = append(r.req.postponed[:i], r.req.postponed[i+1:]...)
			return
		}
	}
}

// failPostponed ends the wait for a peer that is gone: what it did not take is
// marked, and answered by what this node's copy is worth.
func (r *Resource) failPostponed() {
	for _, id := range r.req.waiting {
		if q := r.req.get(id); q.is(isTainted) {
			q.v.setDirty(q.sector, q.size)
		}
	}
	for len(r.req.postponed) > 0 {
		q := r.req.get(r.req.postponed[0])
		q.v.setDirty(q.sector, q.size)
		r.unpostpone(q)
		r.progress(q)
	}
}

// leaveEpoch takes q out of its epoch: the peer does not count it either. An
// epoch that is left empty is never acknowledged. The epoch ends with this, as
// a kernel peer acknowledges none that a conflict was in.
func (r *Resource) leaveEpoch(q *request) {
	e := &r.send_
	if q.epoch == e.cur {
		r.closeEpoch()
	}
	r.req.log.removeFunc(func(id RequestID) bool { return id == q.id })
	q.clear(inLog)
	q.v.inLog -= uint64(q.size)
	r.settleLoss(q)
	r.needProof = !r.peerPollux
	for i := range e.unacked.len() {
		if u := e.unacked.at(i); u.epoch == q.epoch {
			u.count--
			u.conflicts++
			break
		}
	}
	r.dropEmptyEpochs()
}

// dropEmptyEpochs forgets closed epochs that have lost all their writes.
func (r *Resource) dropEmptyEpochs() {
	r.send_.unacked.removeFunc(func(u sentEpoch) bool { return u.barrier && u.count == 0 })
	if r.send_.unacked.len() == 0 {
		r.send_.hurried = false
	}
	r.progressFlushes()
	r.kick = true
}

// answersMissing is a write among the n oldest that the peer has not answered
// although it was asked to, or nil. Which protocol it was sent under counts, not
// the one of today.
func (r *Resource) answersMissing(n uint32) *request {
	for i := range int(n) {
		if q := r.req.get(*r.req.log.at(i)); q.is(netPending) && q.pos == 0 {
			return q
		}
	}
	return nil
}

// inSequence reports whether everything that the peer has numbered before seq
// was seen, and takes seq as seen if so. Data and acknowledgements travel on two
// sockets; the node that decides conflicts must see them in the order in which
// they were sent (drbd84-protocol, 3.3). Numbers wrap around.
func (r *Resource) inSequence(v *volume, seq uint32) bool {
	if int32(seq-1-v.peerSeq) > 0 && r.link.ResolveConflicts && r.net.AllowTwoPrimaries {
		return false
	}
	v.sawSeq(seq)
	return true
}

func (v *volume) sawSeq(seq uint32) {
	if int32(seq-v.peerSeq) > 0 {
		v.peerSeq = seq
	}
}

// heldWrite is a write of the peer that has overtaken an acknowledgement. The
// data socket is not read meanwhile, so there is never a second one.
type heldWrite struct {
	v    *volume // nil: there is none
	cmd  drbd.Command
	op   Op
	d    drbd.Data
	size uint32
	data []byte
}

// hold keeps a write until what was sent before it has come.
func (r *Resource) hold(h heldWrite) {
	r.held = h
	r.setTimer(timerSequence, Tick(r.net.PingTimeoutMS))
}

// gotSeq takes the number of an acknowledgement, and what was waiting for it.
func (r *Resource) gotSeq(v *volume, seq uint32) {
	if v.sawSeq(seq); r.held.v != v {
		return
	}
	r.setTimer(timerSequence, Tick(r.net.PingTimeoutMS))
	if h := r.held; r.inSequence(v, h.d.Seq) {
		r.held = heldWrite{}
		r.stopTimer(timerSequence)
		if kept, err := r.takeWrite(h.v, h.cmd, h.op, h.d, h.size, h.data); err != nil {
			r.connectionLost(drbd.ProtocolFailure, err)
		} else if !kept {
			r.freeData(h.data)
		}
	}
}

// sequenceTimeout: an acknowledgement that the peer has numbered does not come.
func (r *Resource) sequenceTimeout() {
	if h := &r.held; h.v != nil {
		r.connectionLost(drbd.ProtocolFailure, &drbd.ProtocolError{
			Packet: h.cmd, Field: "seq_num", Got: h.d.Seq, Want: fmt.Sprintf("%d first", h.v.peerSeq+1),
		})
	}
}

// dropHeld forgets the write that waits, with its connection.
func (r *Resource) dropHeld() {
	r.freeData(r.held.data)
	r.held = heldWrite{}
	r.stopTimer(timerSequence)
}
