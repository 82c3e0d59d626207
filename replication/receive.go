package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// received takes a packet. A violation of the protocol ends the connection as
// the kernel would end it (drbd84-protocol, 4.7 and 10.6).
func (r *Resource) received(ev *Event) {
	r.lastReceived = r.now
	r.recv.stamp = ev.Stamp
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
	p.stamp, r.recv.stamp = r.recv.stamp, 0
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
