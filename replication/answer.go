package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

func (r *Resource) localDone(ev *Event) {
	q := r.req.get(ev.ID)
	if q.is(hanging) {
		r.hangEnded(q)
		return
	}
	v := q.v
	q.clear(localPending)
	v.local--
	if ev.Err == nil {
		if q.op == OpRead || v.hasDisk() { // else the copy is out of use
			q.set(localOK)
		}
		if q.op == OpRead {
			v.stats.ReadBytes += uint64(q.size)
		} else {
			v.sync.dirty = true
			if !q.fua {
				q.syncSeq = v.sync.started + 1
			}
		}
		r.passed(q, PointLocal)
		r.progress(q)
		r.peerMayGo()
		r.maybeCloseDisk(v)
		return
	}
	v.markOneSided(q)
	r.diskError(v, ev.Err, false)
	switch {
	case q.op == OpRead && v.readsRemotely():
		r.readRemote(q) // the peer's copy serves; the client does not notice
	case q.changesData() && !q.is(isActive|completed): // what the peer wants retried has begun anew
	default:
		q.err = ev.Err
		r.progress(q)
		r.resubmitDiskless(q)
	}
	r.peerMayGo()
	r.maybeCloseDisk(v)
}

// progress answers the client as soon as the protocol allows it, and frees the
// slot when nothing more is to come. It may be called at any time.
func (r *Resource) progress(q *request) {
	if q.flags&(localPending|netPending|isPostponed) != 0 {
		return
	}
	if !q.is(completed) && !r.complete(q) {
		return
	}
	if q.is(inLog) {
		return
	}
	r.destroy(q)
}

// complete answers the client. It reports false if that has to wait (I1).
func (r *Resource) complete(q *request) bool {
	ok := q.is(localOK | netOK)
	if q.changesData() && q.is(isActive) {
		if q.is(mustRepeat) {
			r.resubmit(q)
			return false
		}
		if !q.v.hasDisk() {
			q.clear(localOK) // the disk has failed meanwhile: it is no copy any more
		}
		if q.is(toTarget) && q.v.st.Pdsk != drbd.UpToDate && (!q.is(localOK) || q.v.st.Disk != drbd.UpToDate) {
			q.clear(netOK) // nor is one in the middle of a resync whose source is gone
		}
		// pass_on kept the only good copy, and that lacks this write: whatever
		// the peer says, the client hears of the error. If it waited for the peer's
		// copy to be good, the resync of that would wait for it.
		passOn := q.err != nil && q.v.st.Disk == drbd.UpToDate
		unshared := !q.is(netOK) && !passOn && r.sharesTerm()
		if unshared && q.v.replicates() && !q.is(inLog) && !r.suspended() {
			r.resubmit(q) // the peer is back: it gets what it has missed before anybody hears of it
			return false
		}
		if unshared && q.v.replicates() && q.is(inLog) {
			// Its disk has been replaced while the connection stood. The write begins
			// anew once its epoch is over, which nobody ends as nothing new is sent:
			// the resync of its block would wait for it.
			r.hurry()
		}
		if !q.v.isSettled() || r.suspended() && !q.is(netOK) && !passOn || unshared {
			if !q.is(isParked) {
				q.set(isParked)
				r.req.parked = append(r.req.parked, q.id)
			}
			return false
		}
		// A copy that is not UpToDate is no copy to rely on: it will be
		// overwritten by the peer's.
		good := q.is(localOK) && q.v.st.Disk == drbd.UpToDate
		if !good && q.is(netOK) && !q.is(writeAcked) && q.is(inLog) {
			// Protocol A or B: that the peer has received it is not enough. Its
			// epoch's acknowledgement is.
			r.hurry()
			return false
		}
		if r.bound(q) {
			return false
		}
		ok = good || q.is(netOK) && q.v.st.Pdsk == drbd.UpToDate
		if r.terms.abandon && !q.is(netOK) {
			ok, q.err = false, ErrTermOver
		}
		ok = ok && !passOn
		if ok && !good && !q.v.hasDisk() {
			q.v.strayed = true
		}
	}
	if ok {
		q.err = nil
	} else if q.err == nil {
		q.err = ErrNoData
	}
	q.set(completed)
	if q.is(replicated) && q.epoch == r.send_.cur {
		r.closeEpoch()
	}
	if q.is(isActive) {
		q.clear(isActive)
		q.v.active.remove(clientWrite, uint32(q.id))
		if len(r.req.waiting) > 0 {
			r.kick = true
		}
		r.peerMayGo()
		q.v.ov.kick = q.v.ov.wanted > 0
	}
	done := Action{Kind: Complete, Tag: q.tag, Err: q.err}
	if q.is(moved) {
		done.Keep = true
		if q.op == OpRead {
			done.Data = q.data
		}
	}
	r.emit(done)
	q.tag, q.data = nil, nil
	return true
}

// unpark answers those who waited for a UUID to reach the disk, or for a thaw.
func (r *Resource) unpark() {
	parked := r.req.parked
	r.req.parked = nil
	for _, id := range parked {
		q := r.req.get(id)
		if !q.used || q.is(completed) || !q.is(isParked) {
			continue
		}
		q.clear(isParked)
		if q.changesData() && q.flags&(localOK|netOK|localPending|netPending|inLog) == 0 && q.v.readsRemotely() {
			r.restart(q)
		} else {
			r.progress(q)
		}
	}
	r.progressFlushes()
}

// restart has q begin again: it reached no copy while I/O was frozen, and one
// is there now.
func (r *Resource) restart(q *request) {
	if q.is(isActive) {
		q.v.active.remove(clientWrite, uint32(q.id))
	}
	if q.is(isTainted) {
		q.v.setDirty(q.sector, q.size)
	}
	if q.is(alHeld) && q.v.al != nil {
		q.v.letGo(q)
	}
	q.flags, q.err = q.flags&(hanging|moved|isTimed), nil
	r.req.waiting = append(r.req.waiting, q.id)
	r.kick = true
}

// destroy is the end of a request: only now are bits cleared and extents let
// go (drbd84-protocol, 3.1 step 9).
func (r *Resource) destroy(q *request) {
	v := q.v
	if q.changesData() && v.bitmap != nil && q.flags&(localOK|netOK|isTainted) != 0 {
		switch {
		case q.is(isExchanged):
			// Marked already, on both nodes, and maybe copied since, to the disk that did
			// not take it: then it is marked no more. If not, the mark may be that of a
			// younger write, and the resync takes it away.
		case q.flags&(localOK|netOK) != localOK|netOK:
			v.setDirty(q.sector, q.size)
		case q.is(rsWriteAck|isTainted) && !q.is(keepsBits):
			r.clearSynced(v, q.sector, q.size, false)
			r.sourceMayFinish(v)
		}
	}
	if q.is(alHeld) {
		q.clear(alHeld)
		if v.al != nil {
			v.letGo(q)
		}
	}
	r.satisfied(q)
	v.ov.kick = v.ov.wanted > 0
	r.peerMayGo()
	if q.is(hanging) {
		q.set(isZombie)
	} else {
		r.req.release(q)
	}
	if len(r.req.waiting) > 0 {
		r.kick = true
	}
	r.kickCommand = r.cmd != nil
}

// gotBlockAck is one of the peer's answers to a write.
func (r *Resource) gotBlockAck(cmd drbd.Command, v *volume, ack drbd.BlockAck) error {
	q := r.req.lookup(ack.BlockID)
	if q == nil || q.v != v || q.sector != ack.Sector || !q.is(replicated) {
		return &drbd.ProtocolError{Packet: cmd, Field: "block_id", Got: handle(ack.BlockID), Want: fmt.Sprintf("that of a write at sector %d", ack.Sector)}
	}
	switch cmd {
	case drbd.CmdNegAck:
		v.setDirty(q.sector, q.size)
		if r.role == drbd.Primary && v.st.Disk == drbd.UpToDate && v.uuids.Bitmap == 0 {
			// The peer's disk has failed. Its P_STATE may be lost with the connection,
			// and that disk come back as the equal of this one.
			r.newCurrent(v)
		}
		r.peerRefused(v)
		q.clear(netPending | netOK)
		r.answeredBehind(q)
		r.progress(q)
		return nil
	case drbd.CmdRSWriteAck:
		q.set(rsWriteAck | writeAcked)
	case drbd.CmdWriteAck:
		q.set(writeAcked)
	case drbd.CmdRecvAck:
		if !q.is(byReceipt) {
			return nil // not what we asked for; the write ack decides
		}
	}
	r.answeredBehind(q)
	if q.is(netPending) {
		q.clear(netPending)
		q.set(netOK)
		r.passed(q, PointAnswered)
		r.progress(q)
	}
	return nil
}

// gotDataReply serves a read from the peer's copy.
func (r *Resource) gotDataReply(v *volume, d drbd.Data, data []byte) error {
	q := r.req.lookup(d.BlockID)
	if q == nil || q.v != v || q.sector != d.Sector || !q.is(netPending) || q.op != OpRead && !q.is(needsProof) {
		return &drbd.ProtocolError{Packet: drbd.CmdDataReply, Field: "block_id", Got: handle(d.BlockID), Want: fmt.Sprintf("that of a read at sector %d", d.Sector)}
	}
	if !q.is(needsProof) && len(data) != len(q.data) {
		return &drbd.ProtocolError{Packet: drbd.CmdDataReply, Field: "data size", Got: len(data), Want: len(q.data)}
	}
	q.clear(netPending)
	r.passed(q, PointAnswered)
	r.answeredBehind(q)
	if q.is(needsProof) {
		r.proven(q)
		return nil
	}
	copy(q.data, data)
	r.req.reads--
	r.balancedEnded(q)
	q.set(netOK)
	r.progress(q)
	return nil
}

func (r *Resource) gotNegDReply(v *volume, ack drbd.BlockAck) error {
	q := r.req.lookup(ack.BlockID)
	if q == nil || q.v != v || q.sector != ack.Sector || !q.is(netPending) || q.op != OpRead && !q.is(needsProof) {
		return &drbd.ProtocolError{Packet: drbd.CmdNegDReply, Field: "block_id", Got: handle(ack.BlockID), Want: fmt.Sprintf("that of a read at sector %d", ack.Sector)}
	}
	q.clear(netPending)
	r.answeredBehind(q)
	if q.is(needsProof) { // refused, but read behind the flush all the same
		r.proven(q)
		return nil
	}
	r.req.reads--
	r.balancedEnded(q)
	if v.readsLocally(q.sector, q.size) {
		q.set(localOnly)
		r.startRead(q)
		return nil
	}
	q.err = ErrNoData
	r.progress(q)
	return nil
}
