package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// peerRequest is something the peer wants of this node's disk.
type peerRequest struct {
	id      PeerID
	used    bool
	kind    rangeKind
	op      Op
	alHeld  bool
	hanging bool // its I/O was given up and has not ended
	begun   Tick // when its I/O began, if there is a disk-timeout
	stale   bool // the peer has changed the blocks since: its answer clears no bits
	v       *volume
	sector  drbd.Sector
	size    uint32
	block   uint64
	flags   drbd.DPFlags
	epoch   uint64
	conn    uint32 // of which connection: a later one hears nothing of it
	syncSeq uint64
	data    []byte
	expect  []byte // the peer's digest: verifyRead of the source, resyncRead with csums-alg
	thin    bool   // resyncRead: zeroes need not be sent
	allZero bool   // and that is what was read
	stamp   int64  // of the packet: the caller's own
}

func (p *peerRequest) end() drbd.Sector { return p.sector + drbd.Sector((p.size+511)>>9) }

// peerRequests is the table of the peer's requests.
type peerRequests struct {
	chunks  []*[chunkSize]peerRequest
	free    []PeerID
	used    int
	bytes   int64
	waiting []PeerID // not begun, in order of arrival
}

func (t *peerRequests) get(id PeerID) *peerRequest { return &t.chunks[id/chunkSize][id%chunkSize] }

func (t *peerRequests) alloc() *peerRequest {
	if len(t.free) == 0 {
		base := PeerID(len(t.chunks) * chunkSize)
		c := new([chunkSize]peerRequest)
		t.chunks = append(t.chunks, c)
		for i := chunkSize - 1; i >= 0; i-- {
			c[i].id = base + PeerID(i)
			t.free = append(t.free, base+PeerID(i))
		}
	}
	id := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.used++
	p := t.get(id)
	*p = peerRequest{id: id, used: true}
	return p
}

// release frees the slot and the payload.
func (r *Resource) releasePeer(p *peerRequest) {
	t := &r.peer
	if p.hanging {
		t.bytes -= int64(p.size)
		t.used--
		return // slot and memory are its I/O's until that ends
	}
	if p.data != nil {
		r.emit(Action{Kind: Free, Data: p.data})
	}
	if p.expect != nil {
		r.sums = append(r.sums, p.expect)
	}
	t.bytes -= int64(p.size)
	p.used, p.v, p.data, p.expect = false, nil, nil, nil
	t.used--
	t.free = append(t.free, p.id)
}

func waitsFor(kind rangeKind) rangeKind {
	switch kind {
	case peerWrite:
		return peerWriteWaitsFor
	case resyncWrite:
		return resyncWriteWaitsFor
	case resyncRead, verifyRead:
		return resyncReadWaitsFor
	default:
		return peerReadWaitsFor
	}
}

// beginPeer starts p, or files it behind whatever it has to wait for.
func (r *Resource) beginPeer(p *peerRequest) {
	if r.behindWaiting(p, len(r.peer.waiting)) || !r.startPeer(p) {
		r.peer.waiting = append(r.peer.waiting, p.id)
	}
}

// behindWaiting reports whether one of the first n waiting requests overlaps
// p: they keep the order of arrival.
func (r *Resource) behindWaiting(p *peerRequest, n int) bool {
	for _, id := range r.peer.waiting[:n] {
		if w := r.peer.get(id); w.v == p.v && w.sector < p.end() && p.sector < w.end() {
			return true
		}
	}
	return false
}

func (r *Resource) startWaitingPeer() {
	if len(r.peer.waiting) == 0 {
		return
	}
	kept := 0
	for i, id := range r.peer.waiting {
		p := r.peer.get(id)
		if r.behindWaiting(p, kept) || !r.startPeer(p) {
			r.peer.waiting[kept] = r.peer.waiting[i]
			kept++
		}
	}
	r.peer.waiting = r.peer.waiting[:kept]
}

// peerMayGo has the peer's waiting requests looked at again.
func (r *Resource) peerMayGo() {
	if len(r.peer.waiting) > 0 {
		r.kickPeer = true
	}
}

// startPeer begins p if nothing stands in its way. A disk that went away
// meanwhile ends it with an error.
func (r *Resource) startPeer(p *peerRequest) bool {
	v := p.v
	if v.st.Disk < drbd.Inconsistent {
		v.local++
		v.active.insert(p.sector, p.end(), p.kind, uint32(p.id))
		r.peerEnded(p, nil, ErrNoData)
		return true
	}
	if v.sync.done < p.syncSeq {
		return false
	}
	if v.active.busy(p.sector, p.end(), waitsFor(p.kind)) {
		if c := r.meetConflict(p); c != conflictNone {
			return c == conflictAnswered
		}
	}
	if p.kind == verifyRead && p.expect == nil && r.peerMayLack(v, p.sector, p.end()) {
		return false
	}
	if p.kind == peerWrite && v.st.Pdsk < drbd.Inconsistent {
		if !v.isSettled() {
			return false // the new generation is on disk before its first write
		}
		// A diskless Primary writes here: this is the only copy, so this node
		// keeps its own log of what its peer lacks (3.2 step 7).
		first, last := meta.ExtentsOf(p.sector, p.size)
		if !p.alHeld {
			ready, err := v.al.Begin(first, last)
			if err != nil {
				return false
			}
			p.alHeld = true
			if !ready {
				return false
			}
		} else if !v.al.Ready(first, last) {
			return false
		}
	}
	if p.kind == peerWrite && v.st.Conn == drbd.SyncTarget && !v.isSettled() {
		return false // Inconsistent is on disk before a copy becomes a mixture
	}
	if len(r.req.postponed) > 0 {
		r.resubmitPostponed(p)
	}
	v.local++
	v.active.insert(p.sector, p.end(), p.kind, uint32(p.id))
	p.begun = r.diskTimer(v)
	if p.op != OpRead {
		v.sync.dirty = true
		v.stats.WrittenBytes += uint64(p.size)
	}
	alg := ""
	switch {
	case p.kind == verifyRead && v.ov.running:
		alg = v.ov.alg
	case p.kind == verifyRead:
		alg = r.net.VerifyAlg
	case p.kind == resyncRead && p.expect != nil:
		alg = r.net.CsumsAlg
	}
	noUnmap := p.op == OpZero && p.flags&drbd.DPDiscard == 0 && p.flags&drbd.DPZeroes != 0
	r.emit(Action{
		Kind: DoPeerLocal, Op: p.op, FUA: p.flags&drbd.DPFUA != 0, NoUnmap: noUnmap, Volume: v.num, Peer: p.id,
		Sector: p.sector, Size: p.size, Data: p.data, DigestAlg: alg, WantZero: p.thin, Stamp: p.stamp,
	})
	return true
}

func (r *Resource) peerLocalDone(ev *Event) {
	p := r.peer.get(ev.Peer)
	if p.hanging {
		r.peerHangEnded(p, ev.Data)
		return
	}
	if ev.Data != nil {
		p.data = ev.Data
	}
	v := p.v
	p.allZero = ev.AllZero
	r.peerEnded(p, ev.Digest, ev.Err)
	r.maybeCloseDisk(v)
}

// peerEnded answers the peer, unless the connection has changed.
func (r *Resource) peerEnded(p *peerRequest, digest []byte, err error) {
	v := p.v
	v.local--
	v.active.remove(p.kind, uint32(p.id))
	if err == nil && p.op != OpRead && v.st.Disk < drbd.Inconsistent {
		err = ErrNoData // written to a disk that is given up: it does not count
	}
	r.peerMayGo()
	if len(r.req.waiting) > 0 {
		r.kick = true
	}
	if p.alHeld && v.al != nil {
		first, last := meta.ExtentsOf(p.sector, p.size)
		v.al.EndWritten(first, last, v.sync.started+1)
	}
	if p.op != OpRead {
		v.sync.dirty = true
	}
	if err != nil && v.st.Disk >= drbd.Inconsistent {
		v.setDirty(p.sector, p.size)
		r.diskError(v, err, false)
	}
	if p.conn == r.connGen && r.isUp() {
		r.answerPeer(p, digest, err)
	}
	if p.kind == resyncWrite {
		v.active.removeAt(resyncAsked, p.sector)
	}
	r.releasePeer(p)
	r.askResync(v)
	r.checkResyncDone(v)
}

func (r *Resource) answerPeer(p *peerRequest, digest []byte, err error) {
	v := p.v
	switch p.kind {
	case peerWrite:
		switch {
		case err == nil && v.st.Pdsk < drbd.Inconsistent && !v.isSettled():
			r.answerWhenSettled(p)
			return
		case err != nil:
			r.sendAck(drbd.CmdNegAck, v, p.sector, p.block, p.size)
			r.recv.refused(p.epoch)
			return
		case p.flags&drbd.DPMaySetInSync != 0 && !p.stale && v.st.Conn >= drbd.SyncSource && v.st.Conn <= drbd.PausedSyncT:
			v.clearClean(p.sector, p.size)
			v.ov.overtake(p.sector, p.end())
			if p.flags&drbd.DPSendWriteAck != 0 {
				r.sendAck(drbd.CmdRSWriteAck, v, p.sector, p.block, p.size)
			}
		case p.flags&drbd.DPSendWriteAck != 0:
			r.sendAck(drbd.CmdWriteAck, v, p.sector, p.block, p.size)
		}
		r.recv.ended(p.epoch)
	case resyncWrite:
		if err != nil {
			v.rs.failed += uint64(p.size+4095) / 4096
			r.sendAck(drbd.CmdNegAck, v, p.sector, drbd.ResyncID, p.size)
			return
		}
		if !p.stale {
			v.clearClean(p.sector, p.size)
		}
		r.sendAck(drbd.CmdRSWriteAck, v, p.sector, drbd.ResyncID, p.size)
	case peerRead:
		if v.st.Disk != drbd.UpToDate {
			err = ErrNoData // a write that it waited for has failed: it may have read what was there before
		}
		r.answerRead(p, drbd.CmdDataReply, drbd.CmdNegDReply, err)
	case resyncRead:
		r.answerResync(p, digest, err)
	case csumRead:
		r.hashed(p, digest, err)
	case verifyRead:
		r.answerVerify(p, digest, err)
	}
}

// answerWhenSettled answers a write that has ended once the new generation is on
// disk: it was sent before the peer lost its disk, and this is the only copy now.
// Without that UUID the peer's old disk would be taken for its equal.
func (r *Resource) answerWhenSettled(p *peerRequest) {
	v, gen := p.v, r.connGen
	sector, block, size, flags, epoch := p.sector, p.block, p.size, p.flags, p.epoch
	r.recv.late++
	v.whenStored(v.meta.required, func() {
		if gen == r.connGen {
			r.recv.late--
		}
		switch {
		case gen != r.connGen || !r.isUp():
			return
		case !v.hasDisk():
			r.sendAck(drbd.CmdNegAck, v, sector, block, size)
			r.recv.refused(epoch)
			return
		case flags&drbd.DPSendWriteAck != 0:
			r.sendAck(drbd.CmdWriteAck, v, sector, block, size)
		}
		r.recv.ended(epoch)
	})
}

func (r *Resource) answerRead(p *peerRequest, reply, refusal drbd.Command, err error) {
	v := p.v
	if err != nil || uint32(len(p.data)) != p.size {
		r.sendAck(refusal, v, p.sector, p.block, p.size)
		return
	}
	v.stats.ReadBytes += uint64(p.size)
	v.stats.SentBytes += uint64(p.size)
	r.sendData(reply, v, drbd.Data{Sector: p.sector, BlockID: p.block}, p.data)
}

// sendAck sends one of the packets of p_block_ack; it consumes a sequence number.
func (r *Resource) sendAck(cmd drbd.Command, v *volume, s drbd.Sector, block uint64, size uint32) {
	start := r.beginPacket(cmd, v.num, 24)
	r.arena = drbd.BlockAck{Sector: s, BlockID: block, Size: size, Seq: v.nextSeq()}.Append(r.arena)
	r.endPacket(drbd.MetaSocket, start, nil)
}

// dropPeerRequests forgets what has not begun when the connection is gone.
func (r *Resource) dropPeerRequests() {
	for _, id := range r.peer.waiting {
		p := r.peer.get(id)
		if p.alHeld && p.v.al != nil {
			first, last := meta.ExtentsOf(p.sector, p.size)
			p.v.al.End(first, last)
		}
		r.releasePeer(p)
	}
	r.peer.waiting = r.peer.waiting[:0]
}
