package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// pace brings the pacer of v to now.
func (r *Resource) pace(v *volume) *pacer {
	p := &v.rs.pace
	p.advance(r.now, v.otherSectors, v.starved != 0, v.rs.inFlight)
	return p
}

// repace begins the pacing of a running resync or verify anew: its options have changed.
func (r *Resource) repace(v *volume) {
	if v.rs.running {
		v.rs.pace.begin(&v.opts, v.rs.source, r.now, v.otherSectors)
	}
	if v.ov.running && v.ov.source {
		v.ov.pace.begin(&v.opts, false, r.now, v.otherSectors)
	}
}

// askResync asks for as many blocks as window and rate allow.
func (r *Resource) askResync(v *volume) {
	s := &v.rs
	if v.st.Conn != drbd.SyncTarget || !s.ready || s.ending || v.bitmap == nil {
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
			s.pos = bit // what is clear before it is not looked through again
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
	v.rs.inFlight += uint64(size)
	switch {
	case uint64(size) == r.thinBlocks(v)*4096:
		r.sendBlockRequest(drbd.CmdRSThinReq, v, sector, size, nil)
	case v.rs.csums != "":
		r.hashBlock(v, sector, size)
		return
	default:
		r.sendBlockRequest(drbd.CmdRSDataRequest, v, sector, size, nil)
	}
	v.active.insert(sector, sector+drbd.Sector(size>>9), resyncAsked, 0)
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
	n, thin := uint64(1), r.thinBlocks(v)
	limit := max(uint64(v.rs.pace.block())/4096, thin)
	for n < limit && n != thin && bit%(2*n) == 0 && bit+2*n <= v.bitmap.Bits() &&
		v.bitmap.All(bit+n, bit+2*n-1) {
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
	return r.resyncAnswer(v, drbd.CmdRSDataReply, d.Sector, uint32(len(data)), data)
}

// resyncAnswer has a block written that we asked for, as zeroes if there are no data.
func (r *Resource) resyncAnswer(v *volume, cmd drbd.Command, sector drbd.Sector, size uint32, data []byte) (kept bool, err error) {
	if err := v.checkRange(cmd, sector, size); err != nil {
		return false, err
	}
	_, asked := r.answered(v, sector, size)
	switch {
	case asked:
	case v.tooLate(sector, size):
		r.sendAck(drbd.CmdNegAck, v, sector, drbd.ResyncID, size)
		return false, nil
	default:
		return false, &drbd.ProtocolError{Packet: cmd, Field: "sector", Got: sector, Want: "a block that was asked for"}
	}
	if v.st.Disk < drbd.Inconsistent {
		v.active.removeAt(resyncAsked, sector)
		r.sendAck(drbd.CmdNegAck, v, sector, drbd.ResyncID, size)
		return false, nil
	}
	p := r.peer.alloc()
	p.kind, p.op, p.v, p.sector, p.size, p.block = resyncWrite, OpWrite, v, sector, size, drbd.ResyncID
	p.conn, p.data = r.connGen, data
	if data == nil {
		p.op = OpZero
	}
	r.peer.bytes += int64(size)
	v.stats.ReceivedBytes += uint64(len(data))
	r.beginPeer(p)
	r.askResync(v)
	return true, nil
}

// askedBlock is one that was asked for.
type askedBlock struct {
	sector drbd.Sector
	size   uint32 // bytes
	at     Tick
	stale  bool // the source has changed it since, and told
}

// answered takes an answer into account; it reports whether it was asked for,
// and whether the block is stale. The range stays taken until the block is
// written. Answers come nearly in the order of the requests: the search is short.
func (r *Resource) answered(v *volume, sector drbd.Sector, size uint32) (stale, ok bool) {
	s := &v.rs
	for i := range s.asked.len() {
		a := s.asked.at(i)
		if a.sector != sector || a.size != size {
			continue
		}
		s.inFlight -= uint64(size)
		s.pace.gotAnswer(size, r.now-a.at)
		stale = a.stale
		for ; i > 0; i-- {
			*s.asked.at(i) = *s.asked.at(i - 1)
		}
		s.asked.pop()
		return stale, true
	}
	return false, false
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
	stale, asked := r.answered(v, a.Sector, a.Size)
	switch {
	case asked:
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
		v.rs.same += uint64(a.Size)
		if !stale { // this comes on the other socket than what tells of a change
			v.clearClean(a.Sector, a.Size)
		}
	case drbd.CmdRSCancel:
		v.rs.skipped = true
	}
	r.kick = true
	r.askResync(v)
	r.checkResyncDone(v)
	return nil
}
