package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// Our own pacing of a resync. DRBD's tick allows only what fits into
// max-buffers per 100 ms; this node asks on as answers come in, and only the
// token bucket of c-max-rate (or resync-rate) holds it back.
const (
	resyncRequestBytes = 256 << 10 // largest block asked for
	resyncBurstMS      = 200       // what the token bucket holds
)

// bitmapBurst is how many bitmap packets are filed before the socket is looked at.
const bitmapBurst = 64

// resync is the state of one resync of a volume, on either side.
type resync struct {
	running  bool
	source   bool
	ready    bool // target: Inconsistent is on disk, blocks may be asked for
	ending   bool // target: all blocks are here, the end is being made durable
	peerDone bool // source: the target says it has everything
	total    uint64
	failed   uint64 // blocks
	pos      uint64 // target: next bit to look at
	skipped  bool   // blocks were passed over because a write was under way
	inFlight uint64 // bytes asked for and not answered
	tokens   int64  // bytes
	filled   Tick   // when tokens were last added
	began    Tick
	marks    [8]resyncMark // for the rate: one a second
	mark     int
}

type resyncMark struct {
	at   Tick
	left uint64
}

// startBitmap begins to send the bitmap of v; clients' writes wait meanwhile.
func (r *Resource) startBitmap(v *volume) {
	v.tx = drbd.NewBitmapSender(v.bitmap, r.net.UseRLE)
	r.setTimer(timerHandshake, handshakeMS)
	r.sendBitmaps()
}

// sendBitmaps files bitmap packets, some at a time.
func (r *Resource) sendBitmaps() {
	if !r.isUp() {
		return
	}
	for _, v := range r.vols {
		for i := 0; v.tx != nil; i++ {
			if i == bitmapBurst {
				r.emit(Action{Kind: WantDrain})
				return
			}
			cmd, payload, done := v.tx.Next(nil)
			start := r.beginPacket(cmd, v.num, len(payload))
			r.arena = append(r.arena, payload...)
			r.endPacket(drbd.DataSocket, start, nil)
			if !done {
				continue
			}
			v.tx = nil
			r.kick = true
			if v.st.Conn == drbd.WFBitMapT {
				ns := v.st
				ns.Conn = drbd.WFSyncUUID
				r.setState(v, ns, "bitmaps exchanged")
			}
		}
	}
}

func (r *Resource) receivedBitmap(v *volume, cmd drbd.Command, payload []byte) error {
	if v.st.Conn != drbd.WFBitMapS && v.st.Conn != drbd.WFBitMapT || v.bitmap == nil {
		return &drbd.ProtocolError{Packet: cmd, Field: "state", Got: v.st.Conn, Want: "WFBitMapS or WFBitMapT"}
	}
	if v.rx == nil {
		v.rx = drbd.NewBitmapReceiver(v.bitmap)
	}
	v.meta.touched = true
	done, err := v.rx.Receive(cmd, payload)
	if err != nil || !done {
		return err
	}
	v.rx = nil
	if v.st.Conn == drbd.WFBitMapT {
		v.storeAll()
		r.startBitmap(v)
		return nil
	}
	if v.tx != nil {
		return &drbd.ProtocolError{Packet: cmd, Field: "order", Got: "the peer's bitmap", Want: "ours to be received first"}
	}
	r.startSource(v)
	return nil
}

// startSource makes this node SyncSource. The sync UUID is on disk before the
// target hears of it: otherwise a crash here would make the two look unrelated.
func (r *Resource) startSource(v *volume) {
	x := SyncUUID(&v.uuids, r.random())
	job := v.storeAll()
	r.beginResync(v, true)
	ns := v.st
	ns.Conn, ns.Pdsk = drbd.SyncSource, drbd.Inconsistent
	r.setState(v, ns, "resync starts")
	gen := r.connGen
	v.whenStored(job, func() {
		if gen == r.connGen && v.rs.running {
			r.sendPacket(drbd.DataSocket, drbd.CmdSyncUUID, v.num, drbd.SyncUUID{UUID: x})
		}
	})
}

func (r *Resource) beginResync(v *volume, source bool) {
	w := v.bitmap.Weight()
	v.rs = resync{running: true, source: source, total: w, began: r.now, filled: r.now}
	for i := range v.rs.marks {
		v.rs.marks[i] = resyncMark{r.now, w}
	}
	r.setTimerOnce(timerResync, resyncTickMS)
}

// receivedSyncUUID makes this node SyncTarget. No block is asked for before
// the superblock says Inconsistent.
func (r *Resource) receivedSyncUUID(v *volume, x uint64) error {
	if v.st.Conn != drbd.WFSyncUUID && v.st.Conn != drbd.Behind || v.bitmap == nil {
		return &drbd.ProtocolError{Packet: drbd.CmdSyncUUID, Field: "state", Got: v.st.Conn, Want: "WFSyncUUID or Behind"}
	}
	v.uuids.Current = x &^ 1
	if r.role == drbd.Primary {
		v.uuids.Current |= 1
	}
	v.uuids.Bitmap = 0
	r.beginResync(v, false)
	ns := v.st
	ns.Conn, ns.Disk = drbd.SyncTarget, drbd.Inconsistent
	r.setState(v, ns, "resync starts")
	job := v.storeAll()
	gen := r.connGen
	v.whenStored(job, func() {
		if gen == r.connGen && v.rs.running {
			v.rs.ready = true
			r.askResync(v)
			r.checkResyncDone(v)
		}
	})
	return nil
}

func (r *Resource) resyncTick() {
	again := false
	for _, v := range r.vols {
		if !v.rs.running {
			continue
		}
		again = true
		if m := &v.rs.marks[v.rs.mark]; r.now-m.at >= 1000 && v.bitmap != nil {
			v.rs.mark = (v.rs.mark + 1) % len(v.rs.marks)
			v.rs.marks[v.rs.mark] = resyncMark{r.now, v.bitmap.Weight()}
		}
		r.askResync(v)
		r.checkResyncDone(v)
	}
	if again {
		r.setTimer(timerResync, resyncTickMS)
	}
}

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
	if !v.answered(a.Sector, a.Size) {
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

// gotResyncAck: the target has written a block that we sent, or failed to.
func (r *Resource) gotResyncAck(v *volume, cmd drbd.Command, a drbd.BlockAck) error {
	if err := v.checkRange(cmd, a.Sector, a.Size); err != nil {
		return err
	}
	if !v.rs.running || !v.rs.source {
		return nil // of a resync that was aborted
	}
	if cmd == drbd.CmdNegAck {
		v.rs.failed += uint64(a.Size+4095) / 4096
		return nil
	}
	v.clearClean(a.Sector, a.Size)
	r.sourceMayFinish(v)
	return nil
}

// receivedOutOfSync marks what the peer wrote without sending it.
func (r *Resource) receivedOutOfSync(v *volume, d drbd.BlockDesc) error {
	if err := v.checkRange(drbd.CmdOutOfSync, d.Sector, d.Size); err != nil {
		return err
	}
	v.setDirty(d.Sector, d.Size)
	return nil
}

// checkResyncDone ends the target's part once nothing is left: data and bitmap
// become durable, the link is proven alive, then the generation is taken over.
func (r *Resource) checkResyncDone(v *volume) {
	s := &v.rs
	if v.st.Conn != drbd.SyncTarget || !s.ready || s.ending || s.inFlight > 0 ||
		v.bitmap == nil || v.bitmap.Weight() > s.failed || v.active.busy(0, ^drbd.Sector(0), resyncWrite|resyncAsked) {
		return
	}
	s.ending = true
	v.meta.forceSync = true
	job := v.storeAll()
	gen := r.connGen
	v.whenStored(job, func() {
		if gen != r.connGen || v.st.Conn != drbd.SyncTarget {
			return
		}
		r.whenPinged(func() {
			if v.st.Conn == drbd.SyncTarget {
				r.finishTarget(v)
			}
		})
	})
}

func (r *Resource) finishTarget(v *volume) {
	s := &v.rs
	if w := v.bitmap.Weight(); w > s.failed { // a write failed meanwhile
		s.ending, s.pos = false, 0
		return
	}
	ns := v.st
	ns.Conn, ns.Pdsk = drbd.Connected, drbd.UpToDate
	text := "resync finished"
	if s.failed == 0 {
		FinishTarget(&v.uuids, v.peerUUIDs, r.role == drbd.Primary)
		v.peerUUIDs = v.uuids
		v.peerUUIDs = v.uuids // no P_UUIDS follows: both know what the other has now
		ns.Disk = drbd.UpToDate
	} else {
		ns.Disk = drbd.Inconsistent
		text = fmt.Sprintf("resync finished, but %d blocks could not be had", s.failed)
	}
	r.setState(v, ns, text)
	job := v.requireSuperblock()
	gen, st := r.connGen, v.st
	// The source must not advance its UUIDs before ours are on disk.
	v.whenStored(job, func() {
		if gen == r.connGen && r.isUp() && v.hasDisk() {
			r.sendStateWord(v, st)
		}
	})
	r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "after-resync-target"})
}

// sourceMayFinish ends the source's part: the target has said that it is
// finished, and every bit is gone here too.
func (r *Resource) sourceMayFinish(v *volume) {
	s := &v.rs
	if !s.running || !s.source || !s.peerDone || s.ending || v.bitmap == nil {
		return
	}
	if w := v.bitmap.Weight(); w > s.failed {
		if r.req.log.len() == 0 {
			r.connectionLost(drbd.ProtocolFailure, fmt.Errorf("the peer says that the resync is finished, but %d blocks are still out of sync here", w))
		}
		return
	}
	s.ending = true
	gen := r.connGen
	r.whenPinged(func() {
		if gen != r.connGen || v.st.Conn != drbd.SyncSource && v.st.Conn != drbd.PausedSyncS || v.bitmap == nil {
			return
		}
		ns := v.st
		ns.Conn = drbd.Connected
		if s.failed == 0 {
			FinishSource(&v.uuids)
			v.peerUUIDs = v.uuids
			v.peerUUIDs = v.uuids
			ns.Pdsk = drbd.UpToDate
		}
		r.setState(v, ns, "resync finished")
		v.storeAll()
	})
}

// resyncOver forgets the resync of v: finished or aborted.
func (r *Resource) resyncOver(v *volume) {
	v.rs = resync{}
	v.active.removeKind(resyncAsked)
	if v.hasDisk() {
		v.storeAll()
	}
}
