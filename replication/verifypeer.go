package replication

import (
	"bytes"
	"fmt"
	"math/bits"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// receivedVerifyRequest has one range hashed for the peer. A disk that is not
// UpToDate has nothing to compare.
func (r *Resource) receivedVerifyRequest(v *volume, q drbd.BlockRequest) error {
	if err := v.checkRange(drbd.CmdOVRequest, q.Sector, q.Size); err != nil {
		return err
	}
	if v.st.Disk != drbd.UpToDate || r.net.VerifyAlg == "" {
		r.sendAck(drbd.CmdNegRSDReply, v, q.Sector, q.BlockID, q.Size)
		return nil
	}
	if n := v.ov.held.len(); n >= maxUnacked {
		return &drbd.ProtocolError{Packet: drbd.CmdOVRequest, Field: "blocks under way", Got: n, Want: fmt.Sprintf("less than %d without P_OV_RESULT", maxUnacked)}
	}
	p := r.peer.alloc()
	p.kind, p.op, p.v, p.sector, p.size, p.block, p.conn = verifyRead, OpRead, v, q.Sector, q.Size, q.BlockID, r.connGen
	r.peer.bytes += int64(q.Size)
	if s := &v.ov; s.running && !s.source {
		if !s.known {
			// Only the first request tells where the source begins.
			s.known, s.start = true, q.Sector
			s.total = blocksOf(v.size - q.Sector)
			s.left = s.total
			s.resetMarks(r.now)
			r.setTimerOnce(timerVerify, verifyTickMS)
			r.report("volume %d: Online Verify start sector: %d", v.num, q.Sector)
		}
		s.hold(p.sector, p.end())
	}
	r.beginPeer(p)
	return nil
}

// hold keeps clients' writes off a range that is to be hashed. A piece takes
// the place of its chunk.
func (s *verification) hold(start, end drbd.Sector) {
	for i := range s.held.len() {
		if h := s.held.at(i); h.start <= start && end <= h.end {
			h.gone = true
		}
	}
	s.held.push(verifyHold{start: start, end: end, writers: true})
	s.popHeld()
}

func (s *verification) popHeld() {
	for s.held.len() > 0 && s.held.at(0).gone {
		s.held.pop()
	}
}

// hashed is called when a range has been hashed for the source. drbd.ko compares
// later without a look at what is written meanwhile: its range stays held until
// the result. A Pollux node puts the comparison between the writes before and
// behind the reply.
func (s *verification) hashed(start, end drbd.Sector, release bool, now Tick) {
	for i := range s.held.len() {
		if h := s.held.at(i); !h.gone && h.start == start && h.end == end {
			h.read, h.writers, h.at = true, !release, now
			return
		}
	}
}

// overtake notes that what was hashed has been written anew since, on both
// nodes: a result that is still on its way says nothing any more.
func (s *verification) overtake(start, end drbd.Sector) {
	for i := range s.held.len() {
		if h := s.held.at(i); h.read && start <= h.start && h.end <= end {
			h.overtaken = true
		}
	}
}

// gotVerifyResult is the source's verdict on one range.
func (r *Resource) gotVerifyResult(v *volume, a drbd.BlockAck) error {
	if err := v.checkRange(drbd.CmdOVResult, a.Sector, a.Size); err != nil {
		return err
	}
	s := &v.ov
	if !s.running || s.source { // of a verify that was cut off
		if a.BlockID == drbd.OVOutOfSync && v.hasDisk() {
			v.setDirty(a.Sector, a.Size)
		}
		return nil
	}
	end, overtaken := a.Sector+drbd.Sector(a.Size>>9), false
	for i := range s.held.len() {
		if h := s.held.at(i); !h.gone && h.start == a.Sector && h.end == end {
			h.gone, overtaken = true, h.overtaken
			break
		}
	}
	s.popHeld()
	r.kick = true
	if a.BlockID == drbd.OVOutOfSync && !overtaken {
		r.differs(v, a.Sector, a.Size)
		r.noteOutOfSync(v, a.Sector, end)
	} else if s.oosEnd != 0 && s.oosEnd <= a.Sector {
		r.reportOutOfSync(v)
	}
	s.left -= min(s.left, blocksOf(end-a.Sector))
	r.maybeTargetVerified(v)
	return nil
}

// maybeTargetVerified ends the target's part: all blocks are compared, or the
// source has said that it is over, which may overtake its last results on the
// other socket.
func (r *Resource) maybeTargetVerified(v *volume) {
	switch s := &v.ov; {
	case s.known && s.left == 0:
		r.verified(v, "online verify done")
	case s.over && s.held.len() == 0:
		r.verified(v, "online verify done, the peer says")
	}
}

// receivedVerifyReply has the range read here, to compare its digest.
func (r *Resource) receivedVerifyReply(v *volume, q drbd.BlockRequest, digest []byte) error {
	if err := v.checkRange(drbd.CmdOVReply, q.Sector, q.Size); err != nil {
		return err
	}
	s := &v.ov
	c, piece := s.verifyChunkAt(q.Sector, q.Size)
	switch {
	case c == nil && v.verifyOwed > 0: // asked by a verify that is over
		v.verifyOwed--
		r.sendVerifyResult(v, q.Sector, q.Size, true)
		return nil
	case c == nil || piece < 0 && c.phase != verifyAsked || piece >= 0 && c.asking>>piece&1 == 0:
		return &drbd.ProtocolError{Packet: drbd.CmdOVReply, Field: "sector", Got: q.Sector, Want: "a block that was asked for"}
	case len(digest) != s.sumSize:
		return &drbd.ProtocolError{Packet: drbd.CmdOVReply, Field: "length of the digest", Got: len(digest), Want: s.sumSize}
	}
	r.verifyAnswered(v, c, piece)
	p := r.peer.alloc()
	p.kind, p.op, p.v, p.sector, p.size, p.block, p.conn = verifyRead, OpRead, v, q.Sector, q.Size, s.run, r.connGen
	p.expect = append(r.takeSum(), digest...)
	r.peer.bytes += int64(q.Size)
	r.beginPeer(p)
	r.askVerify(v)
	return nil
}

// verifyAnswered takes an answer of the peer into account.
func (r *Resource) verifyAnswered(v *volume, c *verifyChunk, piece int) {
	s := &v.ov
	s.unanswered--
	s.heard = r.now
	if piece < 0 {
		s.pace.gotAnswer(c.size, r.now-c.at)
		c.phase = verifyReading
	} else {
		c.asking &^= 1 << piece
	}
}

// takeSum returns an empty buffer for a digest; releasePeer gives it back.
func (r *Resource) takeSum() []byte {
	if n := len(r.sums); n > 0 {
		b := r.sums[n-1]
		r.sums = r.sums[:n-1]
		return b[:0]
	}
	return make([]byte, 0, drbd.MaxDigestSize)
}

// answerVerify is the end of a read for a verify: the target replies with the
// digest, of zeroes if it could not read; the source compares.
func (r *Resource) answerVerify(p *peerRequest, digest []byte, err error) {
	if p.expect != nil {
		r.compared(p, err == nil && bytes.Equal(digest, p.expect))
		return
	}
	v := p.v
	if err != nil {
		h, e := drbd.NewDigest(r.net.VerifyAlg)
		if e != nil {
			r.sendAck(drbd.CmdNegRSDReply, v, p.sector, p.block, p.size)
			return
		}
		digest = make([]byte, h.Size())
	}
	v.stats.ReadBytes += uint64(p.size)
	start := r.beginPacket(drbd.CmdOVReply, v.num, 24+len(digest))
	r.arena = drbd.BlockRequest{Sector: p.sector, BlockID: p.block, Size: p.size}.Append(r.arena)
	r.arena = append(r.arena, digest...)
	r.endPacket(drbd.DataSocket, start, nil)
	v.ov.hashed(p.sector, p.end(), r.peerPollux, r.now)
	r.setTimerOnce(timerRequest, Tick(r.net.TimeoutMS))
	r.kick = true
}

// compared is the verdict on a chunk or piece. A chunk of more than one block
// that differs is looked at again, block by block.
func (r *Resource) compared(p *peerRequest, equal bool) {
	v := p.v
	s := &v.ov
	c, piece := s.verifyChunkAt(p.sector, p.size)
	if !s.running || s.run != p.block || c == nil {
		r.sendVerifyResult(v, p.sector, p.size, true) // this node's copy is out of use: nothing is known
		return
	}
	v.stats.ReadBytes += uint64(p.size)
	if !equal && piece < 0 && c.size > verifyBlock {
		r.splitChunk(v, c)
		return
	}
	if !equal {
		r.differs(v, p.sector, p.size)
		c.bad |= 1 << max(piece, 0)
	}
	r.sendVerifyResult(v, p.sector, p.size, equal)
	r.chunkProgress(v, c, piece)
}

// splitChunk asks for all pieces of c.
func (r *Resource) splitChunk(v *volume, c *verifyChunk) {
	n := int(c.size+verifyBlock-1) / verifyBlock
	c.phase = verifySplit
	c.asking = 1<<n - 1
	c.open = c.asking
	for i := range n {
		start, size := c.piece(i)
		r.sendVerifyRequest(v, start, size)
	}
}

// chunkProgress is called when a chunk or piece needs nothing more.
func (r *Resource) chunkProgress(v *volume, c *verifyChunk, piece int) {
	s := &v.ov
	if piece >= 0 {
		c.open &^= 1 << piece
		if c.open != 0 {
			return
		}
	}
	c.phase = verifyDone
	s.inFlight -= uint64(c.size)
	for s.q.len() > 0 && s.q.at(0).phase == verifyDone {
		r.retireChunk(v, s.q.pop())
	}
	r.kick = r.kick || len(r.req.waiting) > 0
	r.askVerify(v)
	r.maybeVerified(v)
}

// retireChunk reports what was found, in the order of the disk.
func (r *Resource) retireChunk(v *volume, c verifyChunk) {
	s := &v.ov
	s.left -= min(s.left, blocksOf(c.end()-c.sector))
	for bad := c.bad; bad != 0; bad &= bad - 1 {
		start, size := c.piece(bits.TrailingZeros64(bad))
		r.noteOutOfSync(v, start, start+drbd.Sector(size>>9))
	}
	if s.oosEnd != 0 && s.oosEnd < c.end() {
		r.reportOutOfSync(v)
	}
}

func (r *Resource) sendVerifyResult(v *volume, sector drbd.Sector, size uint32, equal bool) {
	id := drbd.OVOutOfSync
	if equal {
		id = drbd.OVInSync
	}
	r.sendAck(drbd.CmdOVResult, v, sector, id, size)
}

// gotVerifyRefusal: the peer could not read a range. It reports whether the
// range is of a verify.
func (r *Resource) gotVerifyRefusal(v *volume, a drbd.BlockAck) bool {
	s := &v.ov
	c, piece := s.verifyChunkAt(a.Sector, a.Size)
	if c == nil || piece < 0 && c.phase != verifyAsked || piece >= 0 && c.asking>>piece&1 == 0 {
		return false
	}
	r.verifyAnswered(v, c, piece)
	s.failed += blocksOf(drbd.Sector(a.Size >> 9))
	r.chunkProgress(v, c, piece)
	return true
}
