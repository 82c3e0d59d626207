package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Our own pacing of an online verify. drbd.ko asks and counts in blocks of
// 4 KiB. Between two Pollux nodes larger ones are compared, and only one that
// differs is looked at again in blocks of 4 KiB.
const (
	verifyBlock      = 4096
	verifyChunkBytes = verifyPieces * verifyBlock
	verifyPieces     = 64   // pieces of a chunk: the bits of verifyChunk.asked
	verifyChunks     = 1024 // most of them under way
	verifyTickMS     = 100
	verifyReports    = 512 // ranges out of sync that are named in the log, per run
)

// VerifyContinue as the StartSector of CmdVerify begins where the last verify
// of the volume was cut off.
const VerifyContinue = ^drbd.Sector(0)

// isVerify reports whether c is a state of an online verify.
func isVerify(c drbd.ConnState) bool { return c == drbd.VerifyS || c == drbd.VerifyT }

// verification is one online verify of a volume, on either side.
type verification struct {
	running bool
	source  bool
	kick    bool // source: what stood in the way of a chunk has ended
	asked   bool // source: the first request is out, from which the peer learns the start
	known   bool // target: the start is known
	over    bool // target: the source has said so; results may still be on their way
	done    bool // it has come to its regular end
	run     uint64
	alg     string
	sumSize int // bytes of a digest

	start, stop drbd.Sector // stop 0 is the end of the volume
	pos         drbd.Sector // source: next to be taken up
	q           ring[verifyChunk]
	wanted      int    // chunks that wait for a write to end
	unanswered  int    // requests that the peer has not answered
	heard       Tick   // when the peer last answered, or had nothing to answer
	inFlight    uint64 // bytes taken up and not compared
	pace        pacer  // source

	held ring[verifyHold] // target

	total, left uint64 // blocks of 4 KiB
	found       uint64 // the same, out of sync
	failed      uint64 // the same, that the peer could not read
	began       Tick
	marks       [8]resyncMark
	mark        int

	oosStart, oosEnd drbd.Sector // found and not yet reported
	reports          int
}

type verifyPhase uint8

const (
	verifyWanted  verifyPhase = iota // waits for writes that began before it
	verifyAsked                      // the peer hashes
	verifyReading                    // this node hashes
	verifySplit                      // the pieces are looked at one by one
	verifyDone
)

// A verifyChunk is a range that the source compares. No client writes there
// from when it is taken up until it is compared.
type verifyChunk struct {
	sector drbd.Sector
	size   uint32 // bytes
	phase  verifyPhase
	at     Tick   // when it was asked for
	asking uint64 // split: pieces that the peer hashes
	open   uint64 // split: pieces that are not compared
	bad    uint64 // pieces that differ
}

func (c *verifyChunk) end() drbd.Sector { return c.sector + drbd.Sector(c.size>>9) }

// A verifyHold is a range that the target was asked for.
type verifyHold struct {
	start, end drbd.Sector
	writers    bool // client writes wait for it
	read       bool // it is hashed
	overtaken  bool // and written since, on both nodes
	gone       bool
	at         Tick // when it was hashed
}

// runVerify is CmdVerify: the peer agrees, then this node drives.
func (r *Resource) runVerify(c *command) {
	v := r.volume(c.Volume)
	switch c.phase {
	case phaseBegin, phaseCheck:
		if v == nil {
			r.finish(c, &RequestError{Code: 127, Text: fmt.Sprintf("%s: no volume %d", r.cfg.Name, c.Volume)})
			return
		}
		if v.st.Disk == drbd.Negotiating || v.verifyOwed > 0 { // answers to the last one would be taken for answers to this
			r.retryLater(c)
			return
		}
		if !r.ready(c) {
			return
		}
		if code := r.mayVerify(v, c.StopSector, drbd.VerifyS); code < SSSuccess {
			r.finish(c, r.stateError(v, code))
			return
		}
		r.ask(c, v, maskConn, uint32(drbd.VerifyS)<<4)
	case phaseAsk:
		if c.reply == 0 {
			return
		}
		switch {
		case c.reply == SSConcurrentStChg || c.reply == SSInTransientState:
			r.retryLater(c)
		case c.reply == SSNothingToDo: // nothing has begun there
			r.finish(c, r.stateError(v, SSNoRemoteDisk))
		case c.reply < SSSuccess:
			r.finish(c, r.refusedByPeer(c))
		case r.mayVerify(v, c.StopSector, drbd.VerifyS) < SSSuccess: // a disk was lost meanwhile
			r.finish(c, r.stateError(v, r.mayVerify(v, c.StopSector, drbd.VerifyS)))
		default:
			r.startVerify(v, c.StartSector, c.StopSector)
			r.finish(c, nil)
		}
	}
}

// mayVerify is whether an online verify may begin here, as VerifyS or VerifyT.
// Disks that are not UpToDate are refused, where the kernel's sanitizing would
// call them UpToDate.
func (r *Resource) mayVerify(v *volume, stop drbd.Sector, as drbd.ConnState) StateCode {
	ns := v.st
	ns.Conn = as
	connected := v.st.Conn >= drbd.Connected
	switch {
	case connected && v.st.Disk < drbd.Inconsistent:
		return SSNoLocalDisk
	case connected && v.st.Pdsk < drbd.Inconsistent:
		return SSNoRemoteDisk
	case v.ov.over:
		return SSInTransientState
	case isVerify(v.st.Conn):
		return SSResyncRunning
	case v.st.Conn == drbd.Connected && (v.st.Disk < drbd.UpToDate || v.st.Pdsk < drbd.UpToDate):
		return SSNoUpToDateDisk
	case stop != 0 && connected && !r.endsVerify():
		return SSNotSupported
	}
	return CheckState(r.context(v), v.st, ns, false, true)
}

// endsVerify reports whether the source tells the target that a verify is over
// (drbd84-protocol, 10.2), so that it may stop early.
func (r *Resource) endsVerify() bool { return r.link.Version != 100 && r.link.Version >= 97 }

// startVerify makes this node VerifyS.
func (r *Resource) startVerify(v *volume, start, stop drbd.Sector) {
	if start == VerifyContinue {
		start = v.verifyFrom
	}
	const blockSectors = verifyBlock >> 9
	start &^= blockSectors - 1
	if start >= v.size { // as drbd.ko does: the last block
		start = (v.size - 1) &^ (blockSectors - 1)
	}
	v.verifyFrom = start
	ns := v.st
	ns.Conn = drbd.VerifyS
	r.setState(v, ns, "online verify by the operator")
	s := &v.ov
	if !s.running {
		return
	}
	s.start, s.pos, s.stop = start, start, stop
	s.pace.begin(&v.opts, false, r.now, v.otherSectors)
	s.total = blocksOf(v.verifyEnd() - start)
	s.left = s.total
	s.resetMarks(r.now)
	r.report("volume %d: Starting Online Verify from sector %d", v.num, start)
	r.setTimerOnce(timerVerify, verifyTickMS)
	r.askVerify(v)
	r.maybeVerified(v)
}

// blocksOf is the number of blocks of 4 KiB of n sectors.
func blocksOf(n drbd.Sector) uint64 { return (uint64(n) + verifyBlock>>9 - 1) / (verifyBlock >> 9) }

func (s *verification) resetMarks(now Tick) {
	for i := range s.marks {
		s.marks[i] = resyncMark{now, s.left}
	}
}

// verifyEnd is where the verify ends: a stop sector means all blocks that begin
// before it.
func (v *volume) verifyEnd() drbd.Sector {
	if s := &v.ov; s.stop != 0 && s.stop < v.size {
		return min(max((s.stop+verifyBlock>>9-1)&^(verifyBlock>>9-1), s.start), v.size)
	}
	return v.size
}

// verifyChanged begins and ends the bookkeeping as the state does.
func (r *Resource) verifyChanged(v *volume, os, ns drbd.State) {
	if isVerify(os.Conn) {
		r.verifyLeft(v, os, ns)
	}
	if !isVerify(ns.Conn) {
		return
	}
	h, err := drbd.NewDigest(r.net.VerifyAlg)
	if err != nil {
		panic(fmt.Sprintf("replication: %s/%d: %v", r.cfg.Name, v.num, err)) // the handshake lets no such name pass
	}
	r.verifyRuns++
	v.ov = verification{
		running: true, source: ns.Conn == drbd.VerifyS, run: r.verifyRuns, alg: r.net.VerifyAlg, sumSize: h.Size(),
		began: r.now, heard: r.now,
	}
}

// verifyLeft is the end of a verify, whatever the reason.
func (r *Resource) verifyLeft(v *volume, os, ns drbd.State) {
	s := &v.ov
	if os.Conn == drbd.VerifyS && ns.Conn == drbd.Connected && r.isUp() && r.endsVerify() {
		r.sendStateWord(v, ns)
	}
	r.reportOutOfSync(v)
	if s.left > 0 && !s.done {
		v.verifyFrom = s.resumeAt()
		r.report("volume %d: Online Verify reached sector %d", v.num, v.verifyFrom)
	}
	v.verifyOwed += s.unanswered
	if ns.Conn < drbd.Connected {
		v.verifyOwed = 0
	}
	v.ov = verification{}
	r.kick = true
	r.peerMayGo()
}

// resumeAt is where the next verify continues: everything before it was
// compared. A target does not know what the source has not yet told.
func (s *verification) resumeAt() drbd.Sector {
	if s.source {
		if s.q.len() > 0 {
			return s.q.at(0).sector
		}
		return s.pos
	}
	const slack = verifyChunks * (verifyBlock >> 9)
	done := drbd.Sector(s.total-s.left) * (verifyBlock >> 9)
	return s.start + max(done, slack) - slack
}

// askVerify asks for as much as window and rate allow.
func (r *Resource) askVerify(v *volume) {
	s := &v.ov
	if !s.running || !s.source {
		return
	}
	s.kick = false
	for i := 0; s.wanted > 0 && i < s.q.len(); i++ {
		if c := s.q.at(i); c.phase == verifyWanted && (s.asked || i == 0) && r.settledForVerify(v, c) {
			s.wanted--
			r.askChunk(v, c)
		}
	}
	s.pace.advance(r.now, v.otherSectors, v.starved != 0, s.inFlight)
	limit := uint64(max(r.net.MaxBuffers, 32)) * 4096 / 2
	for end := v.verifyEnd(); s.pos < end && s.q.len() < verifyChunks; {
		if !s.pace.mayAsk(s.inFlight, limit) {
			if t := r.timers[timerVerify]; t == 0 || t > r.now+s.pace.wait() {
				r.setTimer(timerVerify, s.pace.wait())
			}
			return
		}
		c := verifyChunk{sector: s.pos, size: r.verifySize(s, end)}
		s.pos = c.end()
		s.inFlight += uint64(c.size)
		s.pace.asked(c.size)
		s.wanted++
		s.q.push(c)
		if at := s.q.at(s.q.len() - 1); (s.asked || s.q.len() == 1) && r.settledForVerify(v, at) {
			s.wanted--
			r.askChunk(v, at)
		}
	}
}

// verifySize is the size of the next chunk, in bytes: larger ones are aligned,
// so that no run depends on where another began.
func (r *Resource) verifySize(s *verification, end drbd.Sector) uint32 {
	size := int64(verifyBlock)
	if r.peerPollux {
		most := s.pace.block()
		size = most - s.pos.Bytes()%most
	}
	return uint32(min(size, (end - s.pos).Bytes()))
}

// settledForVerify reports whether all writes to c that began before it was
// taken up are over on this node, and on a peer that does not wait for them
// itself.
func (r *Resource) settledForVerify(v *volume, c *verifyChunk) bool {
	return !v.active.busy(c.sector, c.end(), clientWrite) && !r.peerMayLack(v, c.sector, c.end())
}

// peerMayLack reports whether a write that was answered to its client may still
// be under way on the peer's disk. A Pollux peer orders a verify behind the
// writes that it has received; drbd.ko relies on the other node's log.
func (r *Resource) peerMayLack(v *volume, start, end drbd.Sector) bool {
	if r.peerPollux {
		return false
	}
	for i := range r.req.log.len() {
		if q := r.req.get(*r.req.log.at(i)); q.v == v && q.sector < end && start < q.end() && !q.is(writeAcked) {
			r.hurry()
			return true
		}
	}
	return false
}

func (r *Resource) askChunk(v *volume, c *verifyChunk) {
	c.phase, c.at = verifyAsked, r.now
	r.sendVerifyRequest(v, c.sector, c.size)
}

func (r *Resource) sendVerifyRequest(v *volume, sector drbd.Sector, size uint32) {
	s := &v.ov
	if s.unanswered == 0 {
		s.heard = r.now
	}
	s.asked = true
	s.unanswered++
	start := r.beginPacket(drbd.CmdOVRequest, v.num, 24)
	r.arena = drbd.BlockRequest{Sector: sector, BlockID: drbd.ResyncID, Size: size}.Append(r.arena)
	r.endPacket(drbd.DataSocket, start, nil)
	r.setTimerOnce(timerRequest, Tick(r.net.TimeoutMS))
}

// verifyTick keeps the rate and takes up what time allows.
func (r *Resource) verifyTick() {
	again := false
	for _, v := range r.vols {
		s := &v.ov
		if !s.running {
			continue
		}
		again = true
		if m := &s.marks[s.mark]; r.now-m.at >= 1000 {
			s.mark = (s.mark + 1) % len(s.marks)
			s.marks[s.mark] = resyncMark{r.now, s.left}
		}
		r.askVerify(v)
		r.maybeVerified(v)
	}
	if again {
		r.setTimer(timerVerify, verifyTickMS)
	}
}

// maybeVerified ends the source's part when everything is compared.
func (r *Resource) maybeVerified(v *volume) {
	if s := &v.ov; s.running && s.source && s.q.len() == 0 && s.pos >= v.verifyEnd() {
		r.verified(v, "online verify done")
	}
}

// verified is the regular end of a verify, on either side. What was found is
// not repaired (drbd84-protocol, 7.9).
func (r *Resource) verified(v *volume, text string) {
	s := &v.ov
	s.done = true
	r.reportOutOfSync(v)
	if s.left == 0 {
		v.verifyFrom = 0
	}
	seconds := max(int64(r.now-s.began)/1000, 1)
	r.report("volume %d: Online verify done (total %d sec; %d K/sec)", v.num, int64(r.now-s.began)/1000, int64(s.total-s.left)*4/seconds)
	if s.failed > 0 {
		r.report("volume %d: %d 4k blocks could not be compared: the peer could not read them", v.num, s.failed)
	}
	ns := v.st
	ns.Conn = drbd.Connected
	r.setState(v, ns, text)
	if n := v.bitmap.Weight(); n > 0 {
		r.report("volume %d: Online verify found %d 4k blocks out of sync! To repair them: invalidate on the node with the worse data", v.num, n)
		r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "out-of-sync"})
	}
}

// differs marks one range as out of sync.
func (r *Resource) differs(v *volume, sector drbd.Sector, size uint32) {
	v.setDirty(sector, size)
	v.ov.found += blocksOf(drbd.Sector(size >> 9))
}

// noteOutOfSync collects neighbours for one line of the log, as drbd.ko does.
func (r *Resource) noteOutOfSync(v *volume, sector, end drbd.Sector) {
	s := &v.ov
	if s.oosEnd == sector && s.oosEnd != 0 {
		s.oosEnd = end
		return
	}
	r.reportOutOfSync(v)
	s.oosStart, s.oosEnd = sector, end
}

func (r *Resource) reportOutOfSync(v *volume) {
	s := &v.ov
	if s.oosEnd == 0 {
		return
	}
	switch s.reports++; {
	case s.reports <= verifyReports:
		r.report("volume %d: Out of sync: start=%d, size=%d (sectors)", v.num, s.oosStart, s.oosEnd-s.oosStart)
	case s.reports == verifyReports+1:
		r.report("volume %d: more ranges are out of sync; the log names the first %d", v.num, verifyReports)
	}
	s.oosStart, s.oosEnd = 0, 0
}

// holdsWriter reports whether a client's write has to wait for the verify: its
// block is being compared.
func (s *verification) holdsWriter(start, end drbd.Sector) bool {
	if s.source {
		i := s.find(start)
		return i < s.q.len() && s.q.at(i).sector < end && s.overlaps(i, end)
	}
	for i := range s.held.len() {
		if h := s.held.at(i); h.writers && !h.gone && h.start < end && start < h.end {
			return true
		}
	}
	return false
}

// overlaps reports whether a chunk from the i-th on, before end, is not done.
func (s *verification) overlaps(i int, end drbd.Sector) bool {
	for ; i < s.q.len() && s.q.at(i).sector < end; i++ {
		if s.q.at(i).phase != verifyDone {
			return true
		}
	}
	return false
}

// find is the index of the first chunk that ends behind sector. The chunks
// follow one another without a gap.
func (s *verification) find(sector drbd.Sector) int {
	lo, hi := 0, s.q.len()
	for lo < hi {
		if mid := (lo + hi) / 2; s.q.at(mid).end() > sector {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// verifyChunkAt is the chunk, or the piece of a chunk that was split, that a
// packet of the peer names; piece is -1 for the chunk itself.
func (s *verification) verifyChunkAt(sector drbd.Sector, size uint32) (c *verifyChunk, piece int) {
	i := s.find(sector)
	if i == s.q.len() {
		return nil, 0
	}
	c = s.q.at(i)
	switch {
	case sector < c.sector:
		return nil, 0
	case c.phase != verifySplit:
		if sector != c.sector || size != c.size {
			return nil, 0
		}
		return c, -1
	}
	piece = int(sector-c.sector) / (verifyBlock >> 9)
	if start, n := c.piece(piece); start != sector || n != size {
		return nil, 0
	}
	return c, piece
}

// piece is the range of the i-th piece.
func (c *verifyChunk) piece(i int) (drbd.Sector, uint32) {
	off := uint32(i) * verifyBlock
	return c.sector + drbd.Sector(off>>9), min(verifyBlock, c.size-off)
}

// snapshot is the progress, nil if no verify runs.
func (s *verification) snapshot(now Tick) *VerifySnapshot {
	if !s.running {
		return nil
	}
	vs := &VerifySnapshot{
		Source: s.source, Start: s.start, Stop: s.stop, Position: s.resumeAt(), TotalBytes: s.total * verifyBlock,
		LeftBytes: s.left * verifyBlock, FoundBytes: s.found * verifyBlock, FailedBytes: s.failed * verifyBlock, BeganAt: s.began,
	}
	oldest := s.marks[(s.mark+1)%len(s.marks)]
	if dt := now - oldest.at; dt > 0 && oldest.left > s.left {
		vs.RateBytesPerSec = (oldest.left - s.left) * verifyBlock * 1000 / uint64(dt)
	}
	return vs
}
