package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// resyncRate is the ceiling in bytes per second.
func (v *volume) resyncRate() int64 {
	if v.opts.CPlanAhead == 0 {
		return int64(v.opts.ResyncRateKiB) << 10
	}
	return int64(v.opts.CMaxRateKiB) << 10
}

// askResync asks for as many blocks as window and rate allow.
func (r *Resource) askResync(v *volume) {
	s := &v.rs
	if v.st.Conn != drbd.SyncTarget || !s.ready || s.ending {
		return
	}
	rate := v.resyncRate()
	s.tokens = min(s.tokens+rate*int64(r.now-s.filled)/1000, max(rate*resyncBurstMS/1000, resyncRequestBytes))
	s.filled = r.now
	window := uint64(max(r.net.MaxBuffers, 32)) * 4096 / 2
	for s.tokens > 0 && s.inFlight < window {
		bit := v.bitmap.NextSet(s.pos)
		if bit >= v.bitmap.Bits() {
			s.pos = bit
			if s.inFlight > 0 || v.bitmap.Weight() <= s.failed {
				return
			}
			if !s.skipped && s.failed > 0 {
				s.failed = v.bitmap.Weight() // what is left cannot be had
				return
			}
			s.pos, s.skipped, s.failed = 0, false, 0 // once more, at the next tick
			return
		}
		sector := meta.Bit(bit).Sector()
		size := r.resyncBlock(v, bit)
		s.pos = bit + uint64(size+4095)/4096
		end := sector + drbd.Sector(size>>9)
		if v.active.busy(sector, end, resyncAskWaitsFor|resyncAsked) {
			s.skipped = true
			continue
		}
		v.active.insert(sector, end, resyncAsked, 0)
		s.inFlight += uint64(size)
		s.tokens -= int64(size)
		start := r.beginPacket(drbd.CmdRSDataRequest, v.num, 24)
		r.arena = drbd.BlockRequest{Sector: sector, BlockID: drbd.ResyncID, Size: size}.Append(r.arena)
		r.endPacket(drbd.DataSocket, start, nil)
	}
}

// resyncBlock is the size in bytes of the request that begins at bit: dirty
// neighbours are merged while it stays aligned to its size (7.2).
func (r *Resource) resyncBlock(v *volume, bit uint64) uint32 {
	n := uint64(1)
	for n*4096 < resyncRequestBytes && bit%(2*n) == 0 && bit+2*n <= v.bitmap.Bits() &&
		v.bitmap.NextClear(bit+n) >= bit+2*n {
		n *= 2
	}
	size := n * 4096
	if left := uint64((v.size - meta.Bit(bit).Sector()).Bytes()); size > left {
		size = left
	}
	return uint32(size)
}

// receivedResyncData has one block written that we asked for.
func (r *Resource) receivedResyncData(v *volume, d drbd.Data, data []byte) (kept bool, err error) {
	size := uint32(len(data))
	if err := v.checkRange(drbd.CmdRSDataReply, d.Sector, size); err != nil {
		return false, err
	}
	if !v.answered(d.Sector, size) {
		return false, &drbd.ProtocolError{Packet: drbd.CmdRSDataReply, Field: "sector", Got: d.Sector, Want: "a block that was asked for"}
	}
	if v.st.Disk < drbd.Inconsistent {
		v.active.removeAt(resyncAsked, d.Sector)
		r.sendAck(drbd.CmdNegAck, v, d.Sector, drbd.ResyncID, size)
		return false, nil
	}
	p := r.peer.alloc()
	p.kind, p.op, p.v, p.sector, p.size, p.block = resyncWrite, OpWrite, v, d.Sector, size, drbd.ResyncID
	p.conn, p.data = r.connGen, data
	r.peer.bytes += int64(size)
	v.stats.ReceivedBytes += uint64(size)
	r.beginPeer(p)
	r.askResync(v)
	return true, nil
}

// answered takes an answer into account; it reports whether it was asked for.
// The range stays taken until the block is written.
func (v *volume) answered(s drbd.Sector, size uint32) bool {
	for i := range v.active.r {
		if a := &v.active.r[i]; a.kind == resyncAsked && a.start == s && a.id == 0 && a.end == s+drbd.Sector(size>>9) {
			a.id = 1
			v.rs.inFlight -= min(v.rs.inFlight, uint64(size))
			return true
		}
	}
	return false
}

// gotResyncRefusal: the source could not, or need not, send a block.
func (r *Resource) gotResyncRefusal(v *volume, cmd drbd.Command, a drbd.BlockAck) error {
	if cmd == drbd.CmdNegRSDReply && r.gotVerifyRefusal(v, a) {
		return nil
	}
	if !v.answered(a.Sector, a.Size) {
		if cmd == drbd.CmdNegRSDReply && v.verifyOwed > 0 {
			v.verifyOwed--
			return nil
		}
		return &drbd.ProtocolError{Packet: cmd, Field: "sector", Got: a.Sector, Want: "a block that was asked for"}
	}
	v.active.removeAt(resyncAsked, a.Sector)
	switch cmd {
	case drbd.CmdNegRSDReply:
		v.rs.failed += uint64(a.Size+4095) / 4096
	case drbd.CmdRSIsInSync:
		v.clearClean(a.Sector, a.Size)
	case drbd.CmdRSCancel:
		v.rs.skipped = true
	}
	r.kick = true
	r.askResync(v)
	r.checkResyncDone(v)
	return nil
}
