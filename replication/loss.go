package replication

// lossAccount is what clients were answered for under protocol A or B and the
// peer has not acknowledged: what is lost if this node is now. It counts only
// while there is a bound (NetOptions.MaxLossBytes).
type lossAccount struct {
	bytes uint64
	held  int // writes whose answer waits for the peer because a bound is reached
}

// bound holds the answer to q back if it would exceed what may be lost: the bytes,
// or the time since the oldest of them was sent; or if another owner may have come
// of whom this node does not know (lookForPeer), whose data lacks it. Then q waits
// for the peer, as under protocol C; its client notices a slow disk and no error.
// While the connection is lost nothing is in the transfer log: whether the owner of a
// term may go on alone is for its arbiter to say (termFreeze).
func (r *Resource) bound(q *request) (holds bool) {
	most := r.net.MaxLossBytes
	silent := r.terms.silent
	if most == 0 && !silent || !q.is(inLog) || q.is(writeAcked) {
		return false
	}
	if !silent && r.loss.bytes+uint64(q.size) <= most && !r.isOverdue() {
		if q.set(atRisk); r.loss.bytes+uint64(q.size) > most/2 {
			r.hurry() // before anybody has to wait
		}
		r.loss.bytes += uint64(q.size)
		return false
	}
	if !q.is(isHeld) {
		q.set(isHeld)
		r.loss.held++
	}
	r.hurry()
	return true
}

// isOverdue reports whether the oldest write that the peer has not acknowledged is
// older than what may be lost.
func (r *Resource) isOverdue() bool {
	if r.net.MaxLossMS == 0 || r.req.log.len() == 0 {
		return false
	}
	return r.now-r.req.get(*r.req.log.at(0)).since >= Tick(r.net.MaxLossMS)
}

// settleLoss is called when q leaves the transfer log.
func (r *Resource) settleLoss(q *request) {
	if q.is(atRisk) {
		q.clear(atRisk)
		r.loss.bytes -= uint64(q.size)
	}
	if q.is(isHeld) {
		q.clear(isHeld)
		r.loss.held--
	}
}

// A LossSnapshot is a bound and what there is; the zero value without a bound.
type LossSnapshot struct {
	MaxBytes uint64
	MaxMS    int64
	Bytes    uint64 // answered, and not acknowledged by the peer
	AgeMS    int64  // since the oldest write was sent that the peer has not acknowledged
	Held     int    // writes whose answer waits for the peer because of it
}

func (r *Resource) lossSnapshot(now Tick) LossSnapshot {
	if r.net.MaxLossBytes == 0 || r.net.Protocol == 'C' {
		return LossSnapshot{}
	}
	s := LossSnapshot{MaxBytes: r.net.MaxLossBytes, MaxMS: r.net.MaxLossMS, Bytes: r.loss.bytes, Held: r.loss.held}
	if r.req.log.len() > 0 {
		s.AgeMS = int64(max(now-r.req.get(*r.req.log.at(0)).since, 0))
	}
	return s
}
