package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// checkHandshakeTimeout drops a peer that never finishes: the handshake, or a
// bitmap exchange in which both wait for the other.
func (r *Resource) checkHandshakeTimeout() {
	if !r.isUp() {
		return
	}
	if r.tearingDown {
		r.connectionLost(drbd.TearDown, nil)
		return
	}
	waits := r.conn != drbd.Connected
	for _, v := range r.vols {
		waits = waits || v.st.Conn == drbd.WFBitMapS || v.st.Conn == drbd.WFBitMapT || v.st.Conn == drbd.WFSyncUUID
		waits = waits || v.st.Disk == drbd.Negotiating
	}
	limit := Tick(handshakeMS)
	if r.conn == drbd.Connected {
		limit = bitmapMS // the peer may be storing a large bitmap
	}
	switch {
	case !waits:
	case r.now-r.lastData < limit:
		r.setTimer(timerHandshake, limit-(r.now-r.lastData))
	default:
		r.connectionLost(drbd.ProtocolFailure, fmt.Errorf("the peer did not go on with the handshake for %d s", limit/1000))
	}
}

// connectionLost is drbd84-protocol, 4.7: the states first, so that a new
// generation UUID is under way before any request ends without the peer.
func (r *Resource) connectionLost(reason drbd.ConnState, err error) {
	if !r.isUp() {
		if reason == drbd.Disconnecting && r.conn != drbd.StandAlone {
			if err != nil {
				r.lastError = err.Error()
			}
			r.emit(Action{Kind: Disconnect, Reason: reason, Err: err})
			r.standAlone()
		}
		return
	}
	left := r.tearingDown
	if r.tearingDown && reason != drbd.Disconnecting {
		reason, err = drbd.TearDown, nil
	}
	r.tearingDown = false
	r.emit(Action{Kind: Disconnect, Reason: reason, Err: err})
	r.connGen++
	r.lostAt = r.now
	if why := r.tooSmall(); why != "" && reason != drbd.Disconnecting {
		if r.lastError = why; r.reported != why { // it will be so again and again
			r.reported = why
			r.report("%s", why)
		}
	} else if err != nil && reason != drbd.TearDown {
		r.lastError = fmt.Sprintf("connection lost (%v): %v", reason, err)
	}
	for _, t := range []timerKind{timerPing, timerPong, timerRequest, timerBarrier, timerCommit, timerResync, timerHandshake, timerAhead, timerVerify, timerProof} {
		r.stopTimer(t)
	}
	r.stateSent = false
	r.pingWaiters = nil
	r.unsettled = r.unsettled || r.recv.q.len() > 0
	r.recv.drop()
	r.strictWait = false
	r.dropHeld()
	r.dropPeerRequests()
	r.peerRole = drbd.RoleUnknown
	for _, v := range r.vols {
		v.handshakeDone, v.havePeerUUIDs = false, false
		v.rx, v.tx = nil, nil
		r.dropStart(v)
		v.active.removeKind(resyncAsked | resyncOwed)
		r.targetLost(v)
		v.strayAnswers, v.verifyOwed = 0, 0
		r.dropGrowth(v)
	}
	text := reason.String()
	if err != nil {
		text = err.Error()
	}
	r.setConn(reason, text)
	r.stoodBack()
	r.failNetwork()
	for _, v := range r.vols {
		if v.hasDisk() {
			v.storeAll()
		}
	}
	r.cancelCommand()
	r.goWithoutPeer(left)
	r.startFencing()
	if reason == drbd.Disconnecting || !r.wantConnect {
		r.standAlone()
	} else {
		r.setConn(drbd.Unconnected, "retry")
		r.maybeConnect()
	}
	r.kick = true
	r.commandStep()
}

// maybeConnect goes from Unconnected to WFConnection once nothing of the last
// connection is under way on this node's disks any more, and what the peer has
// sent without hearing that it is stable has become stable: to a diskless
// Primary this copy is the only one. Nor is the sync UUID of a target announced
// before it is on disk: with each new one the source forgets an older generation,
// and a power cut would take this node back to one that it has forgotten.
func (r *Resource) maybeConnect() {
	if r.conn != drbd.Unconnected || r.peer.used > 0 || r.termOver() {
		return
	}
	if r.unsettled {
		r.unsettled = false
		r.settling = r.settling[:0]
		for _, v := range r.vols {
			if v.hasDisk() && v.opts.DiskFlushes {
				r.settling = append(r.settling, syncWait{v, r.requestSync(v)})
			}
		}
	}
	for _, w := range r.settling {
		if w.v.hasDisk() && w.v.sync.done < w.seq {
			return
		}
	}
	for _, v := range r.vols {
		if v.st.Disk == drbd.Inconsistent && !v.isSettled() {
			return
		}
	}
	r.settling = r.settling[:0]
	r.setConn(drbd.WFConnection, "connect")
	r.emit(Action{Kind: Connect})
}

func (r *Resource) standAlone() {
	r.wantConnect, r.awaitsDisk = false, false
	r.emit(Action{Kind: StopConnecting})
	r.setConn(drbd.StandAlone, "disconnected")
	r.commandStep()
}

// diskIsBack has a node look for its peer that has given it up as a diskless Primary:
// its own disk has the data now, or it is Primary no more.
func (r *Resource) diskIsBack() {
	if !r.awaitsDisk || r.conn != drbd.StandAlone {
		return
	}
	for _, v := range r.vols {
		if r.role == drbd.Primary && !v.hasDisk() {
			return
		}
	}
	r.connect("the disk is back")
}

// connect has the node look for its peer.
func (r *Resource) connect(reason string) {
	r.wantConnect, r.awaitsDisk = true, false
	r.splitBrain, r.lastError = "", ""
	r.setConn(drbd.Unconnected, reason)
	r.maybeConnect()
}

// failNetwork ends the peer's part of all requests: whatever its disk may lack
// is marked before a client hears of it.
func (r *Resource) failNetwork() {
	e := &r.send_
	for e.unacked.len() > 0 {
		e.unacked.pop()
	}
	e.open, e.hurried, e.proven = false, false, false
	if e.writes > 0 {
		e.cur, e.writes = e.cur+1, 0
	}
	e.flushed = e.cur
	for r.req.byPos.len() > 0 {
		r.req.byPos.pop()
	}
	for n := r.req.log.len(); n > 0; n-- {
		q := r.req.get(r.req.log.pop())
		q.v.setDirty(q.sector, q.size)
		q.v.inLog -= uint64(q.size)
		r.settleLoss(q)
		switch {
		case !q.is(completed):
		case q.v.hasDisk():
			q.v.unproven = true
		default:
			q.v.owed = true
			q.v.lost = q.v.lost || !q.is(writeAcked) // protocol A or B: it may never have arrived
		}
		q.clear(inLog | netPending | netOK | rsWriteAck | writeAcked)
		r.progress(q)
	}
	r.failPostponed()
	r.failFlushesAndReads()
}

// failFlushesAndReads is failNetwork for what is not in the transfer log.
func (r *Resource) failFlushesAndReads() {
	for _, id := range r.req.flushes {
		r.req.get(id).clear(inLog | netPending | needsProof)
	}
	if r.proof != nil {
		r.req.release(r.proof)
		r.proof = nil
	}
	if r.req.reads > 0 {
		r.req.reads = 0
		for _, c := range r.req.chunks {
			for i := range c {
				if q := &c[i]; q.used && q.op == OpRead && q.is(netPending) {
					q.clear(netPending)
					r.balancedEnded(q)
					r.req.waiting = append(r.req.waiting, q.id)
				}
			}
		}
	}
	r.progressFlushes()
}

// checkRequestTimeout drops a peer that leaves a request or a barrier
// unanswered for ko-count x timeout (3.11).
func (r *Resource) checkRequestTimeout() {
	if !r.isUp() || r.net.KoCount == 0 {
		return
	}
	var oldest Tick
	look := func(t Tick) {
		if t != 0 && (oldest == 0 || t < oldest) {
			oldest = t
		}
	}
	for i := range r.req.log.len() {
		if q := r.req.get(*r.req.log.at(i)); q.is(netPending) {
			look(q.since)
			break // in send order: the first is the oldest
		}
	}
	limit := Tick(r.net.TimeoutMS) * Tick(r.net.KoCount)
	if e := &r.send_; e.unacked.len() > 0 && e.unacked.at(0).barrier {
		switch first := e.unacked.at(0); {
		case !r.peerPollux && (first.acked || first.conflicts > 0): // its proof is awaited, or the next one's acknowledgement
		case !r.peerPollux:
			look(first.at)
		case e.hurried:
			look(max(first.at, e.hurriedAt))
		default: // it may take its time until it is asked to hurry
			if r.now-first.at >= limit/2 {
				r.hurry()
			}
			r.setTimer(timerRequest, max(min(Tick(r.net.TimeoutMS), limit/4), 1))
		}
	}
	for _, ids := range [2][]RequestID{r.req.flushes, r.req.postponed} {
		for _, id := range ids {
			if q := r.req.get(id); q.is(netPending | isPostponed) {
				look(q.since)
			}
		}
	}
	if r.proof != nil {
		look(r.proof.since)
	}
	for _, v := range r.vols {
		if v.ov.unanswered > 0 { // clients' writes wait for these
			look(v.ov.heard)
		}
		if s := &v.ov; s.held.len() > 0 && s.held.at(0).read && s.held.at(0).writers { // and for their result
			look(s.held.at(0).at)
		}
	}
	if r.req.reads > 0 {
		for _, c := range r.req.chunks {
			for i := range c {
				if q := &c[i]; q.used && q.op == OpRead && q.is(netPending) {
					look(q.since)
				}
			}
		}
	}
	if oldest == 0 {
		return
	}
	if r.now-oldest >= limit {
		r.connectionLost(drbd.Timeout, fmt.Errorf("the peer left a request unanswered for %d ms (timeout x ko-count)", limit))
		return
	}
	r.setTimer(timerRequest, min(Tick(r.net.TimeoutMS), oldest+limit-r.now))
}
