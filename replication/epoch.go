package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// sendEpochs is the sender's half of write ordering: which epoch is current,
// which one still lacks its P_BARRIER, which ones the peer has not
// acknowledged (drbd84-protocol, 3.4).
type sendEpochs struct {
	cur       uint32 // number of the current epoch
	writes    int    // replicated in it
	last      uint32 // of the last write that was sent
	open      bool   // a write was sent and its epoch's P_BARRIER was not
	unacked   ring[sentEpoch]
	hurried   bool // the peer was asked to make its epochs durable now
	hurriedAt Tick
	proven    bool   // a proof has let go of epochs that may still be acknowledged,
	provenEnd uint32 // up to before this one
	// flushed is for a kernel peer: what is older than this epoch is stable
	// there once it is acknowledged. See proof.go.
	flushed uint32
}

type sentEpoch struct {
	epoch   uint32
	count   uint32
	barrier bool
	acked   bool // by a kernel peer, whose flush of it is not proven
	at      Tick // when the barrier was sent, and then: when it was acknowledged
	// conflicts is how many writes have left it, because they met writes of the
	// peer: a kernel peer does not acknowledge what is left.
	conflicts uint32
}

// closeEpoch ends the current epoch: whatever is submitted from now on is
// ordered behind it.
func (r *Resource) closeEpoch() {
	e := &r.send_
	if e.writes == 0 {
		return
	}
	e.cur++
	e.writes = 0
	if e.open {
		r.setTimerOnce(timerBarrier, barrierIdleMS)
	}
}

// barrierIfDue sends the P_BARRIER of a closed epoch. It precedes every write
// and every read request of a later one.
func (r *Resource) barrierIfDue() {
	e := &r.send_
	if !e.open {
		return
	}
	last := e.unacked.at(e.unacked.len() - 1)
	if last.epoch == e.cur {
		return
	}
	e.open = false
	last.barrier, last.at = true, r.now
	start := r.beginPacket(drbd.CmdBarrier, 0, 8)
	r.arena = drbd.Barrier{Barrier: last.epoch}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
	r.setTimerOnce(timerRequest, Tick(r.net.TimeoutMS))
	if last.count == 0 {
		r.dropEmptyEpochs()
	}
}

// countWrite takes a write into the current epoch, just before it is sent.
func (r *Resource) countWrite(q *request) {
	e := &r.send_
	r.barrierIfDue()
	if !e.open {
		e.open = true
		e.unacked.push(sentEpoch{epoch: e.cur})
	}
	e.unacked.at(e.unacked.len()-1).count++
	e.writes++
	q.epoch, e.last = e.cur, e.cur
	r.req.log.push(q.id)
	q.v.inLog += uint64(q.size)
	q.set(inLog | replicated)
	if e.writes >= r.net.MaxEpochSize {
		r.closeEpoch()
	}
}

func (r *Resource) barrierIdle() {
	if r.isUp() {
		r.barrierIfDue()
	}
}

// hurry has all that was sent made durable by the peer as soon as it can.
// A kernel peer does so anyway at each P_BARRIER.
func (r *Resource) hurry() {
	if !r.isUp() || r.send_.unacked.len() == 0 {
		return
	}
	r.closeEpoch()
	r.barrierIfDue()
	if !r.peerPollux {
		r.prove()
	} else if !r.send_.hurried && r.send_.unacked.len() > 0 {
		r.send_.hurried, r.send_.hurriedAt = true, r.now
		r.sendEmpty(drbd.DataSocket, drbd.CmdUnplugRemote)
	}
}

// gotBarrierAck: the oldest epoch is stable on the peer, or will be before a
// kernel peer reads on.
func (r *Resource) gotBarrierAck(ack drbd.BarrierAck) error {
	e := &r.send_
	if e.proven && int32(ack.Barrier-e.provenEnd) < 0 {
		return nil // of an epoch with conflicts that has been let go already
	}
	if !r.peerPollux {
		r.flushedBefore(ack.Barrier) // what it never acknowledges is skipped, too
	}
	if e.unacked.len() == 0 {
		return &drbd.ProtocolError{Packet: drbd.CmdBarrierAck, Field: "barrier", Got: ack.Barrier, Want: "none: no epoch waits"}
	}
	first := *e.unacked.at(0)
	if !first.barrier || first.acked || ack.Barrier != first.epoch {
		return &drbd.ProtocolError{Packet: drbd.CmdBarrierAck, Field: "barrier", Got: ack.Barrier, Want: first.epoch}
	}
	if ack.SetSize != first.count && (r.peerPollux || ack.SetSize != first.count+first.conflicts) {
		return &drbd.ProtocolError{Packet: drbd.CmdBarrierAck, Field: "set_size", Got: ack.SetSize, Want: first.count}
	}
	if q := r.answersMissing(first.count); q != nil {
		return &drbd.ProtocolError{
			Packet: drbd.CmdBarrierAck, Field: "set_size", Got: ack.SetSize,
			Want: fmt.Sprintf("the acknowledgement of sector %d first", q.sector),
		}
	}
	if r.peerPollux || int32(e.flushed-first.epoch) > 0 {
		r.releaseEpoch()
	} else {
		r.awaitProof()
	}
	r.epochsOver()
	if r.peerPollux && e.unacked.len() > 0 && e.unacked.at(e.unacked.len()-1).barrier && (r.req.used > hurryRequests || len(r.req.flushes) > 0 || r.loss.held > 0) {
		r.hurry()
	}
	return nil
}

// releaseEpoch lets the writes of the oldest epoch go: they are stable on the peer.
func (r *Resource) releaseEpoch() {
	first := r.send_.unacked.pop()
	r.send_.hurried = false
	for range first.count {
		q := r.req.get(r.req.log.pop())
		q.clear(inLog)
		q.v.inLog -= uint64(q.size)
		r.settleLoss(q)
		if q.is(netPending) { // protocol A: it has arrived, so it was sent
			q.clear(netPending)
			q.set(netOK)
		}
		r.progress(q)
	}
	r.kick = true
	r.progressFlushes()
}

// epochsOver looks at what waits for the end of epochs.
func (r *Resource) epochsOver() {
	for _, v := range r.vols {
		r.sourceMayFinish(v)
		r.maybeReturn(v)
	}
}

// recvEpochs is the receiver's half: epochs in the order of their writes, the
// last one still open.
type recvEpochs struct {
	q          ring[recvEpoch]
	base       uint64 // number of the oldest one
	eligible   int    // how many of the oldest ones are closed and ended
	committing int    // how many of the oldest ones the running fdatasync covers
	stable     int    // how many of the oldest ones are stable, but held back (holds)
	late       uint32 // writes that have ended and are answered when their UUID is on disk
	holds      []epochHold
	waits      []syncWait
	hurry      bool
	lacks      bool  // a write of the open epoch was not taken: it is never acknowledged
	stamp      int64 // of the packet that is being received, until its write has it
}

type recvEpoch struct {
	barrier uint32
	size    uint32 // writes received
	active  uint32 // of these, not ended
	refused uint32 // of these, ended with P_NEG_ACK
	closed  bool
	left    bool // a write has left it, because it met one of this node
}

type syncWait struct {
	v   *volume
	seq uint64
}

// joinEpoch counts a write of the peer into the open epoch and returns its number.
func (e *recvEpochs) join() uint64 {
	if e.q.len() == 0 || e.q.at(e.q.len()-1).closed {
		e.q.push(recvEpoch{})
	}
	last := e.q.at(e.q.len() - 1)
	last.size++
	last.active++
	return e.base + uint64(e.q.len()-1)
}

func (e *recvEpochs) ended(epoch uint64) { e.q.at(int(epoch-e.base)).active-- }

// refused counts a write that was answered with P_NEG_ACK: its blocks are out of
// sync at the peer, whatever becomes of its epoch.
func (e *recvEpochs) refused(epoch uint64) {
	ep := e.q.at(int(epoch - e.base))
	ep.active--
	ep.refused++
}

// counts reports whether the peer takes a write for done that is not stable yet.
func (e *recvEpochs) counts() bool {
	for i := range e.q.len() {
		if ep := e.q.at(i); ep.size > ep.active+ep.refused {
			return true
		}
	}
	return false
}

// leave takes a write out of its epoch: neither node counts it.
func (e *recvEpochs) leave(epoch uint64) {
	ep := e.q.at(int(epoch - e.base))
	ep.active--
	ep.size--
	ep.left = true
}

// receivedBarrier closes the peer's epoch. An empty one is ignored, as the
// kernel does (drbd84-protocol, 10.6), and so is one that lacks a write, with what
// follows it: the peer has counted that write, and keeps their blocks as out of sync.
func (r *Resource) receivedBarrier(b drbd.Barrier) {
	e := &r.recv
	if e.lacks || e.q.len() == 0 || e.q.at(e.q.len()-1).closed {
		return
	}
	last := e.q.at(e.q.len() - 1)
	if last.size == 0 && (r.peerPollux || !last.left) {
		return
	}
	last.closed, last.barrier = true, b.Barrier
	switch {
	case !r.peerPollux:
		// The strict way: nothing more is received until this epoch is on disk.
		r.strictWait, e.hurry = true, true
	case e.q.len() > maxRecvEpochs/2:
		e.hurry = true
	default:
		r.setTimerOnce(timerCommit, Tick(r.cfg.CommitLazyMS))
	}
}

// maintainEpochs acknowledges what has become stable and starts the next
// group commit if one is due.
func (r *Resource) maintainEpochs() {
	e := &r.recv
	for {
		if e.committing > 0 {
			for _, w := range e.waits {
				if w.v.sync.done < w.seq {
					return
				}
			}
			e.stable, e.committing = e.committing, 0
			e.waits = e.waits[:0]
		}
		r.ackEpochs()
		// Counted on from last time: with one write at a time there are thousands.
		for e.eligible < e.q.len() && e.q.at(e.eligible).closed && e.q.at(e.eligible).active == 0 {
			e.eligible++
		}
		if e.eligible == e.stable || !r.isUp() {
			if e.q.len() == e.stable || !e.q.at(e.stable).closed {
				e.hurry, r.strictWait = false, false
			}
			return
		}
		if !e.hurry && r.flushesEpochs() {
			return
		}
		e.committing = e.eligible
		e.waits = e.waits[:0]
		for _, v := range r.vols {
			if v.opts.DiskFlushes {
				e.waits = append(e.waits, syncWait{v, r.requestSync(v)})
			}
		}
	}
}

// flushesEpochs reports whether any volume wants its epochs flushed (disk-flushes).
func (r *Resource) flushesEpochs() bool {
	for _, v := range r.vols {
		if v.opts.DiskFlushes {
			return true
		}
	}
	return false
}

// ackEpochs acknowledges the oldest epochs that are stable.
func (r *Resource) ackEpochs() {
	e := &r.recv
	for e.stable > 0 && !r.isHeldBack(e.base) {
		ep := e.q.pop()
		e.stable--
		e.base++
		e.eligible--
		if ep.size == 0 { // all of it were conflicts: the peer expects nothing
			continue
		}
		start := r.beginPacket(drbd.CmdBarrierAck, 0, 8)
		r.arena = drbd.BarrierAck{Barrier: ep.barrier, SetSize: ep.size}.Append(r.arena)
		r.endPacket(drbd.MetaSocket, start, nil)
	}
}

// dropEpochs forgets the peer's epochs when the connection is gone: they are
// never acknowledged, so the peer takes their blocks as out of sync.
func (e *recvEpochs) drop() {
	for e.q.len() > 0 {
		e.q.pop()
		e.base++
	}
	e.eligible, e.committing, e.stable, e.late, e.hurry, e.lacks = 0, 0, 0, 0, false, false
	e.holds = e.holds[:0]
	e.waits = e.waits[:0]
}
