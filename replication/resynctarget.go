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

// pace brings the pacer of v to now.
func (r *Resource) pace(v *volume) *pacer {
	p := &v.rs.pace
	p.advance(r.now, v.otherSectors, v.starved != 0, v.rs.inFlight)
	return p
}

// repace begins the pacing of a running resync anew: its options have changed.
func (r *Resource) repace(v *volume) {
	if v.rs.running {
		v.rs.pace.begin(&v.opts, v.rs.source, r.now, v.otherSectors)
	}
}

// askResync asks for as many blocks as window and rate allow.
func (r *Resource) askResync(v *volume) {
	s := &v.rs
	if v.st.Conn != drbd.SyncTarget || !s.ready || s.ending {
		return
	}
	p := r.pace(v)
	limit := uint64(max(r.net.MaxBuffers, 32)) * 4096 / 2
	for {
		bit := v.bitmap.NextSet(s.pos)
		if bit >= v.bitmap.Bits() {
			s.pos = bit
			r.resyncPassOver(v)
			return
		}
		if !p.mayAsk(s.inFlight, limit) {
			r.resyncTimer(p.wait())
			return
		}
		sector := meta.Bit(bit).Sector()
		size := r.resyncBlock(v, bit)
		s.pos = bit + uint64(size+4095)/4096
		end := sector + drbd.Sector(size>>9)
		if v.active.busy(sector, end, resyncAskWaitsFor|resyncAsked|resyncOwed) {
			s.skipped = true
			continue
		}
		r.askBlock(v, sector, size)
		p.asked(size)
	}
}

// resyncPassOver is the end of the bitmap: blocks that were passed over are
// looked at once more at the next tick.
func (r *Resource) resyncPassOver(v *volume) {
	s := &v.rs
	switch {
	case s.inFlight > 0 || v.bitmap.Weight() <= s.failed:
	case !s.skipped && s.failed > 0:
		s.failed = v.bitmap.Weight() // what is left cannot be had
	default:
		s.pos, s.skipped, s.failed = 0, false, 0
	}
}

// askBlock asks the source for one block.
func (r *Resource) askBlock(v *volume, sector drbd.Sector, size uint32) {
	v.active.insert(sector, sector+drbd.Sector(size>>9), resyncAsked, 0)
	v.rs.inFlight += uint64(size)
	v.rs.asked.push(askedBlock{sector: sector, size: size, at: r.now})
	start := r.beginPacket(drbd.CmdRSDataRequest, v.num, 24)
	r.arena = drbd.BlockRequest{Sector: sector, BlockID: drbd.ResyncID, Size: size}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
}

// resyncTimer has the resync looked at in so many milliseconds, if not sooner.
func (r *Resource) resyncTimer(in Tick) {
	if t := r.timers[timerResync]; t == 0 || t > r.now+in {
		r.setTimer(timerResync, in)
	}
}

// resyncBlock is the size in bytes of the request that begins at bit: dirty
// neighbours are merged while it stays aligned to its size (7.2).
func (r *Resource) resyncBlock(v *volume, bit uint64) uint32 {
	n := uint64(1)
	limit := uint64(v.rs.pace.block())
	for n*4096 < limit && bit%(2*n) == 0 && bit+2*n <= v.bitmap.Bits() &&
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
	switch {
	case r.answered(v, d.Sector, size):
	case v.tooLate(d.Sector, size):
		r.sendAck(drbd.CmdNegAck, v, d.Sector, drbd.ResyncID, size)
		return false, nil
	default:
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

// askedBlock is one that was asked for.
type askedBlock struct {
	sector drbd.Sector
	size   uint32 // bytes
	at     Tick
}

// answered takes an answer into account; it reports whether it was asked for.
// The range stays taken until the block is written. Answers come nearly in the
// order of the requests: the search is short.
func (r *Resource) answered(v *volume, sector drbd.Sector, size uint32) bool {
	s := &v.rs
	for i := range s.asked.len() {
		a := s.asked.at(i)
		if a.sector != sector || a.size != size {
			continue
		}
		s.inFlight -= uint64(size)
		s.pace.gotAnswer(size, r.now-a.at)
		for ; i > 0; i-- {
			*s.asked.at(i) = *s.asked.at(i - 1)
		}
		s.asked.pop()
		return true
	}
	return false
}

// tooLate takes an answer to a resync that is over: the source's disk failed, or
// this one's. It reports whether there was one to come. Until then the block is
// not asked for again: this answer, older than what was written since, would be
// taken for that one.
func (v *volume) tooLate(sector drbd.Sector, size uint32) bool {
	for i := range v.active.r {
		if a := &v.active.r[i]; a.kind == resyncOwed && a.start == sector && a.id == size {
			return v.active.removeAt(resyncOwed, sector)
		}
	}
	if v.strayAnswers == 0 {
		return false
	}
	v.strayAnswers--
	return true
}

// gotResyncRefusal: the source could not, or need not, send a block.
func (r *Resource) gotResyncRefusal(v *volume, cmd drbd.Command, a drbd.BlockAck) error {
	if cmd == drbd.CmdNegRSDReply && r.gotVerifyRefusal(v, a) {
		return nil
	}
	switch {
	case r.answered(v, a.Sector, a.Size):
	case v.tooLate(a.Sector, a.Size):
		return nil
	case cmd == drbd.CmdNegRSDReply && v.verifyOwed > 0:
		v.verifyOwed--
		return nil
	default:
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
