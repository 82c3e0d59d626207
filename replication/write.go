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
	if ev.IsTimed {
		q.set(isTimed)
	}
	if !r.start(q) {
		r.req.waiting = append(r.req.waiting, q.id)
	}
	if r.req.used > hurryRequests && r.send_.unacked.len() > 0 {
		r.hurry()
	}
}

// passed tells who measures q that it is at p. What comes after the answer to the
// client is of no interest, and its Tag another request's.
func (r *Resource) passed(q *request, p Point) {
	if q.flags&(isTimed|completed) == isTimed {
		r.emit(Action{Kind: Passed, Tag: q.tag, Point: p})
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
	return r.susp || (r.suspFen || t.frozen != "") && !t.abandon || t.silent || r.noData()
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
		r.passed(q, PointStarted)
		r.emit(Action{Kind: DoLocal, Op: OpRead, Volume: v.num, ID: q.id, Sector: q.sector, Size: q.size, Data: q.data, Tag: q.tag, IsTimed: q.is(isTimed)})
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
	r.passed(q, PointStarted)
	start := r.beginPacket(drbd.CmdDataRequest, q.v.num, 24)
	r.arena = drbd.BlockRequest{Sector: q.sector, BlockID: q.blockID(), Size: q.size}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
	r.passed(q, PointSent)
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
			v.letGo(q)
		}
		q.err = ErrNotSupported
		r.progress(q)
		return true
	}
	v.active.insert(q.sector, q.end(), clientWrite, uint32(q.id))
	q.set(isActive)
	r.passed(q, PointStarted)
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
			Sector: q.sector, Size: q.size, Data: q.data, Tag: q.tag, IsTimed: q.is(isTimed),
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
	if v.starved != 0 && v.starved != q.id+1 && !v.passesStarved(first, last) {
		return false
	}
	ready, err := v.al.Begin(first, last)
	if err != nil {
		if v.starved == 0 {
			v.starved, v.passed = q.id+1, 0
			r.requestSync(v)
		}
		r.hurry() // extents are let go when the peer acknowledges their epochs
		return false
	}
	r.satisfied(q)
	q.set(alHeld)
	if !ready {
		r.passed(q, PointWaits)
		r.keepSpare(v, int(last-first)+1)
	}
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
	r.passed(q, PointSent)
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
