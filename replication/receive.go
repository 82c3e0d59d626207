package replication

import (
	"fmt"

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

// received takes a packet. A violation of the protocol ends the connection as
// the kernel would end it (drbd84-protocol, 4.7 and 10.6).
func (r *Resource) received(ev *Event) {
	r.lastReceived = r.now
	if ev.Socket == drbd.DataSocket {
		r.lastData = r.now
	}
	if !r.isUp() {
		r.freeData(ev.Data)
		return
	}
	gen := r.connGen
	kept, err := r.dispatch(ev)
	if !kept {
		r.freeData(ev.Data)
	}
	if err == nil || gen != r.connGen {
		return
	}
	r.connectionLost(reasonOf(ev), drbd.Named(err, ev.Header.Command))
}

func (r *Resource) freeData(b []byte) {
	if b != nil {
		r.emit(Action{Kind: Free, Data: b})
	}
}

// dispatch handles one packet; it reports whether it keeps ev.Data.
func (r *Resource) dispatch(ev *Event) (kept bool, err error) {
	h := ev.Header
	if ev.Socket == drbd.DataSocket && !r.gotProtocol && h.Command == drbd.CmdAuthChallenge {
		return false, &drbd.ProtocolError{
			Packet: h.Command, Field: "command", Got: h.Command,
			Want: "P_PROTOCOL: the peer asks for a secret, cram-hmac-alg must be configured on both nodes",
		}
	}
	if ev.Socket == drbd.DataSocket && !r.gotProtocol && h.Command != drbd.CmdProtocol {
		return false, &drbd.ProtocolError{Packet: h.Command, Field: "command", Got: h.Command, Want: drbd.CmdProtocol}
	}
	switch h.Command {
	case drbd.CmdPing:
		r.sendEmpty(drbd.MetaSocket, drbd.CmdPingAck)
		return false, nil
	case drbd.CmdPingAck:
		r.pinged()
		return false, nil
	case drbd.CmdBarrier:
		var b drbd.Barrier
		if err := b.Decode(ev.Fixed); err != nil {
			return false, err
		}
		r.receivedBarrier(b)
		return false, nil
	case drbd.CmdBarrierAck:
		var b drbd.BarrierAck
		if err := b.Decode(ev.Fixed); err != nil {
			return false, err
		}
		return false, r.gotBarrierAck(b)
	case drbd.CmdProtocol, drbd.CmdProtocolUpdate:
		return false, r.receivedProtocol(h, ev.Fixed)
	case drbd.CmdTerm:
		return false, r.receivedTerm(ev.Fixed)
	case drbd.CmdConnStChgReq, drbd.CmdConnStChgReply:
		return false, r.receivedConnRequest(h.Command, ev.Fixed)
	case drbd.CmdUnplugRemote:
		if r.peerPollux {
			r.recv.hurry = true
		}
		return false, nil
	case drbd.CmdDelayProbe:
		return false, nil
	case drbd.CmdInitialData, drbd.CmdInitialMeta, drbd.CmdConnectionFeatures, drbd.CmdAuthChallenge, drbd.CmdAuthResponse:
		return false, &drbd.ProtocolError{Packet: h.Command, Field: "command", Got: h.Command, Want: "a packet that follows the greeting"}
	}
	v := r.volume(h.Volume)
	if v == nil {
		switch h.Command {
		case drbd.CmdSyncParam89, drbd.CmdSizes, drbd.CmdUUIDs, drbd.CmdState:
			r.unknownVolume(h.Volume)
			return false, nil
		}
		return false, &drbd.ProtocolError{Packet: h.Command, Field: "volume", Got: h.Volume, Want: "a configured volume"}
	}
	return r.dispatchVolume(v, ev)
}

func (r *Resource) dispatchVolume(v *volume, ev *Event) (kept bool, err error) {
	h := ev.Header
	switch h.Command {
	case drbd.CmdSyncParam89, drbd.CmdSizes, drbd.CmdUUIDs, drbd.CmdState, drbd.CmdSyncUUID,
		drbd.CmdStateChgReq, drbd.CmdStateChgReply:
		return false, r.dispatchState(v, h, ev.Fixed)
	}
	if !v.handshakeDone {
		return false, &drbd.ProtocolError{Packet: h.Command, Field: "command", Got: h.Command, Want: "P_STATE first"}
	}
	if f, name := featureOf(h.Command); f != 0 && r.link.Features&f == 0 {
		return false, &drbd.ProtocolError{Packet: h.Command, Field: "command", Got: h.Command, Want: "none of feature " + name + ", which is not agreed"}
	}
	switch h.Command {
	case drbd.CmdData:
		var d drbd.Data
		if err := d.Decode(ev.Fixed); err != nil {
			return false, err
		}
		return r.receivedWrite(v, h.Command, OpWrite, d, uint32(len(ev.Data)), ev.Data)
	case drbd.CmdTrim, drbd.CmdZeroes:
		var t drbd.Trim
		if err := t.Decode(ev.Fixed); err != nil {
			return false, err
		}
		if err := t.CheckSize(r.link.Features&drbd.FeatureWSame != 0); err != nil {
			return false, err
		}
		op := OpZero
		if h.Command == drbd.CmdTrim && r.link.Features&drbd.FeatureWZeroes != 0 {
			op = OpTrim
		}
		return r.receivedWrite(v, h.Command, op, t.Data, t.Size, nil)
	case drbd.CmdRecvAck, drbd.CmdWriteAck, drbd.CmdRSWriteAck, drbd.CmdNegAck, drbd.CmdNegDReply,
		drbd.CmdNegRSDReply, drbd.CmdRSCancel, drbd.CmdRSIsInSync, drbd.CmdSuperseded, drbd.CmdRetryWrite, drbd.CmdOVResult:
		var a drbd.BlockAck
		if err := a.Decode(ev.Fixed); err != nil {
			return false, err
		}
		if err := r.dispatchAck(v, h.Command, a); err != nil {
			return false, err
		}
		r.gotSeq(v, a.Seq)
		return false, nil
	case drbd.CmdDataReply:
		var d drbd.Data
		if err := d.Decode(ev.Fixed); err != nil {
			return false, err
		}
		return false, r.gotDataReply(v, d, ev.Data)
	case drbd.CmdRSDataReply:
		var d drbd.Data
		if err := d.Decode(ev.Fixed); err != nil {
			return false, err
		}
		return r.receivedResyncData(v, d, ev.Data)
	case drbd.CmdDataRequest, drbd.CmdRSDataRequest, drbd.CmdRSThinReq, drbd.CmdCsumRSRequest:
		var q drbd.BlockRequest
		if err := q.Decode(ev.Fixed); err != nil {
			return false, err
		}
		return false, r.receivedReadRequest(v, h.Command, q, ev.Fixed[drbd.FixedLen(h.Command):])
	case drbd.CmdOVRequest, drbd.CmdOVReply:
		var q drbd.BlockRequest
		if err := q.Decode(ev.Fixed); err != nil {
			return false, err
		}
		if h.Command == drbd.CmdOVReply {
			return false, r.receivedVerifyReply(v, q, ev.Fixed[drbd.FixedLen(h.Command):])
		}
		return false, r.receivedVerifyRequest(v, q)
	case drbd.CmdOutOfSync, drbd.CmdRSDeallocated:
		var d drbd.BlockDesc
		if err := d.Decode(ev.Fixed); err != nil {
			return false, err
		}
		if h.Command == drbd.CmdRSDeallocated {
			return false, r.receivedDeallocated(v, d)
		}
		return false, r.receivedOutOfSync(v, d)
	case drbd.CmdBitmap, drbd.CmdCompressedBitmap:
		return false, r.receivedBitmap(v, h.Command, ev.Fixed)
	}
	return false, &drbd.ProtocolError{Packet: h.Command, Field: "command", Got: h.Command, Want: "a packet that this node knows"}
}

func (r *Resource) dispatchAck(v *volume, cmd drbd.Command, a drbd.BlockAck) error {
	switch cmd {
	case drbd.CmdRecvAck, drbd.CmdWriteAck, drbd.CmdRSWriteAck, drbd.CmdNegAck:
		if a.BlockID == drbd.ResyncID {
			return r.gotResyncAck(v, cmd, a)
		}
		return r.gotBlockAck(cmd, v, a)
	case drbd.CmdSuperseded, drbd.CmdRetryWrite:
		return r.gotConflictAnswer(cmd, v, a)
	case drbd.CmdNegDReply:
		return r.gotNegDReply(v, a)
	case drbd.CmdNegRSDReply, drbd.CmdRSCancel, drbd.CmdRSIsInSync:
		return r.gotResyncRefusal(v, cmd, a)
	case drbd.CmdOVResult:
		return r.gotVerifyResult(v, a)
	}
	return &drbd.ProtocolError{Packet: cmd, Field: "command", Got: cmd, Want: "an answer to something we asked"}
}

// receivedWrite takes a write of the peer in its turn.
func (r *Resource) receivedWrite(v *volume, cmd drbd.Command, op Op, d drbd.Data, size uint32, data []byte) (kept bool, err error) {
	if !r.inSequence(v, d.Seq) {
		r.hold(heldWrite{v, cmd, op, d, size, data})
		return true, nil
	}
	return r.takeWrite(v, cmd, op, d, size, data)
}

// takeWrite is drbd84-protocol, 3.2.
func (r *Resource) takeWrite(v *volume, cmd drbd.Command, op Op, d drbd.Data, size uint32, data []byte) (kept bool, err error) {
	if r.role == drbd.Primary && !r.net.AllowTwoPrimaries {
		return false, &drbd.ProtocolError{Packet: cmd, Field: "role", Got: "a write", Want: "none, as this node is the only Primary"}
	}
	if n := len(r.recv.holds); n > maxRequests {
		return false, &drbd.ProtocolError{Packet: cmd, Field: "conflicts", Got: n, Want: fmt.Sprintf("at most %d that the peer has not settled", maxRequests)}
	}
	if r.tearingDown {
		// Sent after its sender asked for the end: a diskless one could not mark what is written here now.
		r.recv.lacks = true
		return false, nil
	}
	if v.st.Disk < drbd.Inconsistent {
		epoch := r.recv.join()
		r.recv.refused(epoch)
		r.sendAck(drbd.CmdNegAck, v, d.Sector, d.BlockID, size)
		return false, nil
	}
	if err := v.checkRange(cmd, d.Sector, size); err != nil {
		return false, err
	}
	if len(r.recv.holds) > 0 {
		r.cameAgain(v, d.Sector, size)
	}
	p := r.peer.alloc()
	p.kind, p.op, p.v, p.sector, p.size, p.block, p.flags = peerWrite, op, v, d.Sector, size, d.BlockID, d.Flags
	p.epoch, p.conn, p.data = r.recv.join(), r.connGen, data
	r.peer.bytes += int64(size)
	v.stats.ReceivedBytes += uint64(size)
	v.otherSectors += uint64(size >> 9)
	if v.st.Pdsk < drbd.Inconsistent {
		v.setDirty(d.Sector, size) // now: the disk that the peer may attach before this begins lacks it
	}
	if d.Flags&drbd.DPSendReceiveAck != 0 {
		r.sendAck(drbd.CmdRecvAck, v, d.Sector, d.BlockID, size)
	}
	if d.Flags&drbd.DPFlush != 0 {
		p.syncSeq = r.requestSync(v)
	}
	r.beginPeer(p)
	return true, nil
}

// receivedReadRequest serves the peer's reads: of an application (P_DATA_REQUEST)
// and of a resync.
func (r *Resource) receivedReadRequest(v *volume, cmd drbd.Command, q drbd.BlockRequest, digest []byte) error {
	if q.Size > drbd.MaxRequestSize {
		return &drbd.ProtocolError{Packet: cmd, Field: "blksize", Got: q.Size, Want: "at most 1 MiB"}
	}
	if err := v.checkRange(cmd, q.Sector, q.Size); err != nil {
		return err
	}
	kind, refusal := resyncRead, drbd.CmdNegRSDReply
	if cmd == drbd.CmdDataRequest {
		kind, refusal = peerRead, drbd.CmdNegDReply
	}
	if v.st.Disk != drbd.UpToDate {
		r.sendAck(refusal, v, q.Sector, q.BlockID, q.Size)
		return nil
	}
	if n := len(v.rs.sent); kind == resyncRead && n >= maxUnacked {
		return &drbd.ProtocolError{Packet: cmd, Field: "blocks under way", Got: n, Want: fmt.Sprintf("less than %d without P_RS_WRITE_ACK", maxUnacked)}
	}
	v.rs.begun = v.rs.begun || kind == resyncRead
	if kind == resyncRead && v.st.Conn == drbd.Ahead {
		r.sendAck(drbd.CmdRSCancel, v, q.Sector, q.BlockID, q.Size)
		return nil
	}
	p := r.peer.alloc()
	p.kind, p.op, p.v, p.sector, p.size, p.block, p.conn = kind, OpRead, v, q.Sector, q.Size, q.BlockID, r.connGen
	r.peer.bytes += int64(q.Size)
	if p.thin = cmd == drbd.CmdRSThinReq; cmd == drbd.CmdCsumRSRequest {
		p.expect = append(r.takeSum(), digest...)
	}
	if kind == resyncRead {
		r.serveResync(p)
		return nil
	}
	v.otherSectors += uint64(q.Size >> 9)
	r.beginPeer(p)
	return nil
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
		Sector: p.sector, Size: p.size, Data: p.data, DigestAlg: alg, WantZero: p.thin,
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
		v.al.End(first, last)
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
