package replication

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// Errors that a client's request can end with.
var (
	ErrNotPrimary   = errors.New("this node is not Primary")
	ErrNoData       = errors.New("no UpToDate copy can be reached")
	ErrOutOfRange   = errors.New("beyond the end of the volume")
	ErrNotSupported = errors.New("the peer does not support this operation")
	ErrLostWrites   = errors.New("the copy that is left may lack writes that were answered and not flushed: a disk has failed or its fdatasync has, and no other copy could be reached")
	ErrALTooSmall   = errors.New("the request needs more extents of the activity log than there are; raise al-extents")
	ErrShutdown     = errors.New("the daemon is shutting down")
)

// Room reports how many requests may be submitted before the table is full.
func (r *Resource) Room() int { return maxRequests - r.req.used }

func (r *Resource) submitted(ev *Event) {
	v := r.volume(ev.Volume)
	if v == nil || r.role != drbd.Primary {
		r.emit(Action{Kind: Complete, Tag: ev.Tag, Err: ErrNotPrimary})
		return
	}
	if sectors := drbd.Sector(ev.Size >> 9); ev.Op != OpFlush && (ev.Sector > v.size || sectors > v.size-ev.Sector) {
		r.emit(Action{Kind: Complete, Tag: ev.Tag, Err: ErrOutOfRange})
		return
	}
	q := r.req.alloc()
	if q == nil {
		panic("replication: request submitted to a full table; the caller asks Room first")
	}
	q.op, q.fua, q.unmap, q.v = ev.Op, ev.FUA, !ev.NoUnmap, v
	q.sector, q.size, q.data, q.tag = ev.Sector, ev.Size, ev.Data, ev.Tag
	if !r.start(q) {
		r.req.waiting = append(r.req.waiting, q.id)
	}
	if r.req.used > hurryRequests && r.send_.unacked.len() > 0 {
		r.hurry()
	}
}

// start begins q if nothing stands in its way.
func (r *Resource) start(q *request) bool {
	if r.suspended() || !q.v.isSettled() {
		return false
	}
	switch q.op {
	case OpRead:
		return r.startRead(q)
	case OpFlush:
		return r.startFlush(q)
	default:
		return r.startWrite(q)
	}
}

// startWaiting begins what can begin, oldest first.
func (r *Resource) startWaiting() {
	if len(r.req.waiting) == 0 {
		return
	}
	kept := r.req.waiting[:0]
	for _, id := range r.req.waiting {
		if !r.start(r.req.get(id)) {
			kept = append(kept, id)
		}
	}
	r.req.waiting = kept
}

func (r *Resource) suspended() bool {
	t := &r.terms
	return r.susp || (r.suspFen || t.frozen != "") && !t.abandon || r.noData()
}

// noData is on-no-data-accessible suspend-io at work.
func (r *Resource) noData() bool {
	for _, v := range r.vols {
		if v.st.SuspNod {
			return true
		}
	}
	return false
}

// readsLocally reports whether this node's copy of a range is good.
func (v *volume) readsLocally(s drbd.Sector, size uint32) bool {
	switch v.st.Disk {
	case drbd.UpToDate:
		return true
	case drbd.Inconsistent:
		// Not while Behind: what the peer says to be out of sync may be under way.
		first, last := meta.BitsOutward(s, size)
		return v.st.Conn >= drbd.SyncSource && v.st.Conn < drbd.Ahead && !v.bitmap.Any(first, last)
	default:
		return false
	}
}

func (v *volume) readsRemotely() bool {
	return v.st.Conn >= drbd.Connected && v.st.Pdsk == drbd.UpToDate
}

func (r *Resource) startRead(q *request) bool {
	v := q.v
	switch {
	case v.readsLocally(q.sector, q.size) && v.opts.ReadBalancing != PreferLocal && r.balances(q):
		r.readBalanced(q)
	case v.readsLocally(q.sector, q.size):
		q.set(localPending)
		v.local++
		v.otherSectors += uint64(q.size >> 9)
		q.begun = r.diskTimer(v)
		r.emit(Action{Kind: DoLocal, Op: OpRead, Volume: v.num, ID: q.id, Sector: q.sector, Size: q.size, Data: q.data, Tag: q.tag})
	case v.readsRemotely():
		r.readRemote(q)
	case v.st.Disk == drbd.Inconsistent && v.st.Conn >= drbd.Connected && v.st.Conn < drbd.SyncSource:
		return false // the direction of the resync is being settled
	default:
		q.err = ErrNoData
		r.progress(q)
	}
	return true
}

func (r *Resource) readRemote(q *request) {
	r.barrierIfDue()
	q.set(netPending)
	q.since, q.epoch = r.now, r.send_.cur
	r.req.reads++
	start := r.beginPacket(drbd.CmdDataRequest, q.v.num, 24)
	r.arena = drbd.BlockRequest{Sector: q.sector, BlockID: q.blockID(), Size: q.size}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
	r.setTimerOnce(timerRequest, Tick(r.net.TimeoutMS))
}

// startWrite begins a write, trim or write-zeroes. The order of the checks is
// the order of drbd84-protocol, 3.1.
func (r *Resource) startWrite(q *request) bool {
	v := q.v
	conn := v.st.Conn
	if v.tx != nil || v.held || conn == drbd.WFBitMapT || conn == drbd.WFSyncUUID || v.st.Disk == drbd.Negotiating {
		return false // neither node would mark what is written while they settle who is the source
	}
	if v.active.busy(q.sector, q.end(), clientWriteWaitsFor) || len(r.peer.waiting) > 0 && r.behindPeer(q) ||
		v.ov.running && v.ov.holdsWriter(q.sector, q.end()) {
		return false
	}
	local := v.st.Disk >= drbd.Inconsistent
	if v.st.Disk != drbd.UpToDate && v.st.Pdsk != drbd.UpToDate {
		q.err = ErrNoData
		r.progress(q)
		return true
	}
	if first, last := meta.ExtentsOf(q.sector, q.size); local && v.opts.ALUpdates && int(last-first) >= v.al.Slots() {
		q.err = fmt.Errorf("%w: %d of %d", ErrALTooSmall, last-first+1, v.al.Slots())
		r.satisfied(q)
		r.progress(q)
		return true
	}
	if local && !r.makeHot(q) {
		return false
	}
	replicate := replicates(v.st)
	if replicate && r.net.OnCongestion != CongestionBlock && r.isCongested(v) {
		return false // what follows from it is done by the next maintain
	}
	if replicate && !r.canReplicate(q) {
		if q.is(alHeld) {
			q.clear(alHeld)
			v.al.End(meta.ExtentsOf(q.sector, q.size))
		}
		q.err = ErrNotSupported
		r.progress(q)
		return true
	}
	v.active.insert(q.sector, q.end(), clientWrite, uint32(q.id))
	q.set(isActive)
	if replicate {
		r.replicate(q)
	} else if v.bitmap != nil {
		if v.setDirty(q.sector, q.size) > 0 && (conn == drbd.Ahead || conn == drbd.WFBitMapS) {
			r.sendOutOfSync(v, q.sector, q.size)
		}
	}
	if local {
		q.set(localPending)
		v.local++
		q.begun = r.diskTimer(v)
		v.sync.dirty = true
		v.stats.WrittenBytes += uint64(q.size)
		v.otherSectors += uint64(q.size >> 9)
		r.emit(Action{
			Kind: DoLocal, Op: q.op, FUA: q.fua, NoUnmap: !q.unmap, Volume: v.num, ID: q.id,
			Sector: q.sector, Size: q.size, Data: q.data, Tag: q.tag,
		})
	}
	r.progress(q)
	return true
}

// replicates reports whether a write that begins in s goes to the peer.
func replicates(s drbd.State) bool {
	return s.Conn >= drbd.Connected && (s.Pdsk == drbd.UpToDate ||
		s.Pdsk >= drbd.Inconsistent && s.Conn >= drbd.WFBitMapT && s.Conn < drbd.Ahead)
}

// keepBits is called when writes go to this disk alone from now on: what they
// mark must not be cleared by the end of an earlier write that the peer had.
func (r *Resource) keepBits(v *volume) {
	for i := range r.req.log.len() {
		if q := r.req.get(*r.req.log.at(i)); q.v == v {
			q.set(keepsBits)
		}
	}
}

// makeHot has the activity log name the extents of q on disk (I2).
func (r *Resource) makeHot(q *request) bool {
	v := q.v
	if !v.opts.ALUpdates {
		return true
	}
	first, last := meta.ExtentsOf(q.sector, q.size)
	if q.is(alHeld) {
		return v.al.Ready(first, last)
	}
	if v.starved != 0 && v.starved != q.id+1 {
		return false
	}
	ready, err := v.al.Begin(first, last)
	if err != nil {
		v.starved = q.id + 1
		r.hurry() // extents are let go when the peer acknowledges their epochs
		return false
	}
	r.satisfied(q)
	q.set(alHeld)
	return ready
}

// satisfied lets the others go on that waited for q to have its extents.
func (r *Resource) satisfied(q *request) {
	if q.v.starved == q.id+1 {
		q.v.starved = 0
		r.kick = true
	}
}

func (r *Resource) canReplicate(q *request) bool {
	switch q.op {
	case OpTrim:
		return r.link.Features&(drbd.FeatureTrim|drbd.FeatureWZeroes) != 0
	case OpZero: // without P_ZEROES the peer executes a P_TRIM as zeroes, which it may unmap: DRBD's choice, too
		return r.link.Features&(drbd.FeatureTrim|drbd.FeatureWZeroes) != 0
	default:
		return true
	}
}

// replicate sends q to the peer. The flags say what it has to answer, and when.
func (r *Resource) replicate(q *request) {
	v := q.v
	r.countWrite(q)
	var flags drbd.DPFlags
	if v.st.Conn >= drbd.SyncSource && v.st.Conn <= drbd.PausedSyncT {
		flags |= drbd.DPMaySetInSync
	}
	switch {
	case r.net.Protocol == 'C' || flags&drbd.DPMaySetInSync != 0:
		flags |= drbd.DPSendWriteAck
	case r.net.Protocol == 'B':
		flags |= drbd.DPSendReceiveAck
	}
	q.pos = 0
	q.clear(byReceipt)
	if q.fua {
		flags |= drbd.DPFUA
	}
	lone := v.st.Disk != drbd.UpToDate
	if lone {
		// The peer's copy is the only good one: whatever the protocol says, the
		// client is answered only once it is written.
		flags |= drbd.DPSendWriteAck
		flags &^= drbd.DPSendReceiveAck
	}
	q.set(netPending)
	if flags&drbd.DPSendReceiveAck != 0 {
		q.set(byReceipt)
	}
	if v.st.Pdsk != drbd.UpToDate {
		q.set(toTarget)
	}
	q.since = r.now
	d := drbd.Data{Sector: q.sector, BlockID: q.blockID(), Seq: v.nextSeq()}
	switch {
	case q.op == OpWrite:
		d.Flags = flags
		r.sendData(drbd.CmdData, v, d, q.data)
	case r.noZeroes(q):
		d.Flags = flags
		r.sendData(drbd.CmdData, v, d, zeroes[:q.size])
	case q.op == OpTrim && r.link.Features&drbd.FeatureTrim != 0, r.link.Features&drbd.FeatureWZeroes == 0:
		d.Flags = flags | drbd.DPDiscard
		r.sendTrim(drbd.CmdTrim, v, drbd.Trim{Data: d, Size: q.size})
	default:
		d.Flags = flags | drbd.DPZeroes
		if q.unmap {
			d.Flags |= drbd.DPDiscard
		}
		r.sendTrim(drbd.CmdZeroes, v, drbd.Trim{Data: d, Size: q.size})
	}
	v.stats.SentBytes += uint64(q.size)
	if r.net.Protocol == 'A' && !lone {
		q.pos = r.dataPos
		r.req.byPos.push(q.id)
	}
	r.setTimerOnce(timerRequest, Tick(r.net.TimeoutMS))
}

// noZeroes reports whether q goes to the peer as plain data. With P_ZEROES drbd.ko
// loses the stream if data-integrity-alg is set (drbd84-protocol, 10.3 no. 3). Then
// the handshake leaves the packet out; but the option may have come since.
func (r *Resource) noZeroes(q *request) bool {
	return q.op == OpZero && r.integrity != "" && !r.peerPollux && r.link.Features&drbd.FeatureWZeroes != 0 && q.size <= drbd.MaxRequestSize
}

// zeroes is the data of such a write; it is never written to.
var zeroes = make([]byte, drbd.MaxRequestSize)

func (r *Resource) sendTrim(cmd drbd.Command, v *volume, t drbd.Trim) {
	start := r.beginPacket(cmd, v.num, 28)
	r.arena = t.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
}

// dataSent: protocol A counts a write as done with the network once it was
// handed to the socket.
func (r *Resource) dataSent(pos uint64) {
	for r.req.byPos.len() > 0 {
		q := r.req.get(*r.req.byPos.at(0))
		if q.pos > pos {
			return
		}
		r.req.byPos.pop()
		if q.is(netPending) {
			q.clear(netPending)
			q.set(netOK)
			r.progress(q)
		}
	}
}

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
		}
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
		q.v.al.End(meta.ExtentsOf(q.sector, q.size))
	}
	q.flags, q.err = q.flags&(hanging|moved), nil
	r.req.waiting = append(r.req.waiting, q.id)
	r.kick = true
}

// destroy is the end of a request: only now are bits cleared and extents let
// go (drbd84-protocol, 3.1 step 9).
func (r *Resource) destroy(q *request) {
	v := q.v
	if q.changesData() && v.bitmap != nil && q.flags&(localOK|netOK|isTainted) != 0 {
		switch {
		case q.is(isExchanged) && q.flags&(localOK|netOK) == localOK:
			// Marked already, and maybe copied since.
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
			v.al.End(meta.ExtentsOf(q.sector, q.size))
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

// markOneSided: this disk has failed to do q. What the peer says of earlier I/O
// to the same blocks may still come, and must not clear their bits.
func (v *volume) markOneSided(q *request) {
	v.setDirty(q.sector, q.size)
	if q.changesData() && q.is(inLog) {
		q.set(oneSided)
		v.oneSided = true
	}
}

// clearSynced clears what a range covers, but for what a younger write touches
// that this disk has not taken. A block of a resync that the peer has written
// after that one was read from here after it, too: then both have the same.
func (r *Resource) clearSynced(v *volume, s drbd.Sector, size uint32, resynced bool) {
	v.clearClean(s, size)
	if !v.oneSided {
		return
	}
	v.oneSided = false
	for i := range r.req.log.len() {
		q := r.req.get(*r.req.log.at(i))
		after := resynced && q.is(writeAcked)
		switch {
		case q.v != v || !q.is(oneSided):
		case after && s <= q.sector && q.end() <= s+drbd.Sector(size>>9):
			q.clear(oneSided)
		default:
			v.oneSided = true
			if !after {
				v.setDirty(q.sector, q.size)
			}
		}
	}
}

// gotBlockAck is one of the peer's answers to a write.
func (r *Resource) gotBlockAck(cmd drbd.Command, v *volume, ack drbd.BlockAck) error {
	q := r.req.lookup(ack.BlockID)
	if q == nil || q.v != v || q.sector != ack.Sector || !q.is(replicated) {
		return &drbd.ProtocolError{Packet: cmd, Field: "block_id", Got: ack.BlockID, Want: "an outstanding write of this sector"}
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
		r.progress(q)
	}
	return nil
}

// gotDataReply serves a read from the peer's copy.
func (r *Resource) gotDataReply(v *volume, d drbd.Data, data []byte) error {
	q := r.req.lookup(d.BlockID)
	if q == nil || q.v != v || q.sector != d.Sector || !q.is(netPending) || q.op != OpRead && !q.is(needsProof) {
		return &drbd.ProtocolError{Packet: drbd.CmdDataReply, Field: "block_id", Got: d.BlockID, Want: "an outstanding read of this sector"}
	}
	q.clear(netPending)
	r.answeredBehind(q)
	if q.is(needsProof) {
		r.proven(q)
		return nil
	}
	if len(data) != len(q.data) {
		return &drbd.ProtocolError{Packet: drbd.CmdDataReply, Field: "length", Got: len(data), Want: len(q.data)}
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
	if q == nil || q.v != v || !q.is(netPending) || q.op != OpRead && !q.is(needsProof) {
		return &drbd.ProtocolError{Packet: drbd.CmdNegDReply, Field: "block_id", Got: ack.BlockID, Want: "an outstanding read"}
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

// startFlush begins a FLUSH: an fdatasync here, and under protocol C the
// proof that the peer's copy is stable too (a Pollux peer: its P_BARRIER_ACK;
// a kernel peer: a small read behind the barrier, whose answer it sends only
// after its flush). Under A and B the peer is only ordered by the barrier.
func (r *Resource) startFlush(q *request) bool {
	v := q.v
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
		}
		if v.hasDisk() && v.sync.done >= q.syncSeq {
			q.set(localOK)
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
