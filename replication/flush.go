package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
)

// startFlush begins a FLUSH: an fdatasync here, and under protocol C the
// proof that the peer's copy is stable too (a Pollux peer: its P_BARRIER_ACK;
// a kernel peer: a small read behind the barrier, whose answer it sends only
// after its flush). Under A and B the peer is only ordered by the barrier.
func (r *Resource) startFlush(q *request) bool {
	v := q.v
	r.passed(q, PointStarted)
	if v.lost {
		// As fsync after a failed writeback: said once, to whoever asks next.
		v.lost = false
		q.err = ErrLostWrites
		r.progress(q)
		return true
	}
	if v.hasDisk() {
		q.syncSeq = r.requestSync(v)
	} else if !v.readsRemotely() {
		q.err = ErrNoData
		r.progress(q)
		return true
	}
	if r.isUp() && v.st.Conn >= drbd.Connected {
		r.closeEpoch()
		if r.net.Protocol == 'C' || v.st.Disk != drbd.UpToDate {
			r.flushPeer(q)
		} else {
			r.barrierIfDue()
		}
	}
	r.req.flushes = append(r.req.flushes, q.id)
	r.progressFlushes()
	return true
}

func (r *Resource) flushPeer(q *request) {
	e := &r.send_
	if e.unacked.len() == 0 && (r.peerPollux || !r.needProof) {
		return
	}
	q.epoch = e.cur
	q.set(inLog) // here: epochs before q.epoch are outstanding
	if r.peerPollux {
		r.hurry()
		return
	}
	r.barrierIfDue()
	r.sendProof(q)
}

// progressFlushes completes the flushes whose parts are all over.
func (r *Resource) progressFlushes() {
	if len(r.req.flushes) == 0 {
		return
	}
	for _, v := range r.vols {
		if v.lost && !v.hasDisk() && !r.suspended() {
			r.failFlushes(v) // they began before the node of the only copy has crashed
		}
	}
	oldest := r.send_.cur
	if r.send_.unacked.len() > 0 {
		oldest = r.send_.unacked.at(0).epoch
	}
	kept := r.req.flushes[:0]
	for _, id := range r.req.flushes {
		q := r.req.get(id)
		v := q.v
		if q.err != nil {
			q.clear(localOK | netOK | inLog | netPending)
			r.complete(q)
			r.req.release(q)
			r.kick = true
			continue
		}
		if q.is(inLog) && (r.send_.unacked.len() == 0 || int32(oldest-q.epoch) >= 0) {
			q.clear(inLog)
			q.set(netOK)
			r.passed(q, PointAnswered)
		}
		if v.hasDisk() && v.sync.done >= q.syncSeq && !q.is(localOK) {
			q.set(localOK)
			r.passed(q, PointLocal)
		}
		waits := q.flags&(inLog|netPending) != 0 || v.hasDisk() && !q.is(localOK) && v.sync.done < q.syncSeq
		if waits || !v.isSettled() || r.suspended() && !q.is(netOK) {
			kept = append(kept, id)
			continue
		}
		// A copy that could not be flushed is out (its disk has failed); what
		// counts is that one good copy holds everything.
		switch {
		case v.hasDisk() && v.st.Disk == drbd.UpToDate, v.readsRemotely():
			q.set(localOK)
		case q.flags&(localOK|netOK) == 0:
			q.err = ErrNoData
		}
		q.clear(inLog | netPending)
		if !q.is(completed) {
			r.complete(q)
		}
		r.req.release(q)
		r.kick = true
	}
	r.req.flushes = kept
}
