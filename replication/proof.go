package replication

import "github.com/pollux-project/pollux/protocol/drbd"

// A kernel peer acknowledges an epoch when its writes have ended, and flushes
// its disks right afterwards, before it reads the next packet (drbd84-protocol,
// 3.4). If its power goes in between, its disk lacks what it has acknowledged.
// So its acknowledgement is not the end of an epoch here: its writes stay in the
// transfer log, with their extents of the activity log, until the flush is
// proven. The proof is any answer to what was sent on the data socket behind the
// P_BARRIER: that of a later write, a later P_BARRIER_ACK, a read. Whoever writes
// on has it with the next write, for nothing. After a pause of proofIdleMS, or
// at once if somebody waits for it, this node reads a little to have it. If the
// connection is lost before, the blocks are marked as those of any epoch that
// was not acknowledged.
//
// An epoch in which writes met the peer's own (conflict.go) is never
// acknowledged by a kernel peer. Its proof is all that it waits for.

// proofBytes is the size of the read that proves a kernel peer's flush.
const proofBytes = 4096

// awaitProof: the oldest epoch is acknowledged, but not proven.
func (r *Resource) awaitProof() {
	first := r.send_.unacked.at(0)
	first.acked, first.at = true, r.now
	if r.proofIsWanted() {
		r.prove()
	} else {
		r.setTimerOnce(timerProof, proofIdleMS)
	}
}

// proofIsWanted reports whether anybody waits for the end of an epoch. A FLUSH
// has a proof of its own.
func (r *Resource) proofIsWanted() bool {
	if r.cmd != nil || r.req.used > hurryRequests {
		return true
	}
	for _, v := range r.vols {
		if v.starved != 0 || v.al != nil && v.al.InUse() > v.al.Slots()/2 || v.rs.peerDone || v.st.Conn == drbd.Ahead {
			return true
		}
	}
	return false
}

// proofIdle asks for the proof of what has been acknowledged for a while.
func (r *Resource) proofIdle() {
	e := &r.send_
	if !r.isUp() || e.unacked.len() == 0 || !e.unacked.at(0).acked {
		return
	}
	if due := e.unacked.at(0).at + proofIdleMS; due > r.now {
		r.setTimer(timerProof, due-r.now) // a later one than that the timer was set for
		return
	}
	r.prove()
}

// prove has a kernel peer prove that it has flushed what it has acknowledged,
// and what it never acknowledges: it reads a little behind the last P_BARRIER.
func (r *Resource) prove() {
	e := &r.send_
	if r.peerPollux || r.proof != nil || e.unacked.len() == 0 || r.req.used == maxRequests {
		return
	}
	if first := e.unacked.at(0); !first.acked && (first.conflicts == 0 || !first.barrier || r.answersMissing(first.count) != nil) {
		return // called again when there is an answer
	}
	r.barrierIfDue()
	q := r.req.alloc()
	q.op, q.v, q.epoch = OpFlush, r.req.get(*r.req.log.at(0)).v, e.cur
	r.proof = q
	r.sendProof(q)
}

// sendProof has a kernel peer read a little for q: its answer follows the flush
// of all that was sent before the last P_BARRIER.
func (r *Resource) sendProof(q *request) {
	q.set(needsProof | netPending)
	q.since = r.now
	q.sector = 0
	start := r.beginPacket(drbd.CmdDataRequest, q.v.num, 24)
	r.arena = drbd.BlockRequest{BlockID: q.blockID(), Size: proofBytes}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
	r.setTimerOnce(timerRequest, Tick(r.net.TimeoutMS))
}

// proven ends the wait for the proof that q asked for.
func (r *Resource) proven(q *request) {
	if int32(q.epoch-r.send_.last) > 0 {
		r.needProof = false
	}
	if q == r.proof {
		r.proof = nil
		r.req.release(q)
		r.kick = true
		if e := &r.send_; e.unacked.len() > 0 { // later than q, or its answers are missing
			if e.unacked.at(0).conflicts > 0 || r.proofIsWanted() {
				r.prove()
			} else {
				r.setTimerOnce(timerProof, proofIdleMS)
			}
		}
	}
	r.progressFlushes()
}

// answeredBehind takes the peer's answer to q, which was sent behind the
// P_BARRIER of each epoch that is older than q's.
func (r *Resource) answeredBehind(q *request) {
	if !r.peerPollux {
		r.flushedBefore(q.epoch)
	}
}

// flushedBefore: a kernel peer has flushed what is older than epoch. Whatever of
// it is acknowledged, or never will be, is let go.
func (r *Resource) flushedBefore(epoch uint32) {
	e := &r.send_
	if int32(epoch-e.flushed) > 0 {
		e.flushed = epoch
	}
	n := e.unacked.len()
	for e.unacked.len() > 0 {
		first := e.unacked.at(0)
		if !first.barrier || int32(e.flushed-first.epoch) <= 0 ||
			!first.acked && (first.conflicts == 0 || r.answersMissing(first.count) != nil) {
			break
		}
		if !first.acked {
			e.proven, e.provenEnd = true, first.epoch+1
		}
		r.releaseEpoch()
	}
	if e.unacked.len() < n {
		r.epochsOver()
	}
}
