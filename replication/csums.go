package replication

import (
	"bytes"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Checksum based resync and thin resync: a block that is equal already, or all
// zeroes, is not sent (drbd84-protocol, 7.2 to 7.4). Digests and zeroes are
// found by whoever reads the disk, outside the core.

// usesCsums reports whether the resync of v that begins now compares digests
// first. Only the target decides; the algorithm is the same on both nodes.
func (r *Resource) usesCsums(v *volume) bool {
	return r.net.CsumsAlg != "" && (!r.net.CsumsAfterCrashOnly || v.crashed)
}

// thinBlocks is the size, in bitmap blocks, of the requests that may be
// answered with nothing but "all zeroes"; 0 if the peer does not know them or
// rs-discard-granularity is off. What is no power of two of blocks is rounded
// down to one: larger requests are aligned to their size.
func (r *Resource) thinBlocks(v *volume) uint64 {
	blocks := uint64(min(v.opts.RSDiscardGranularity, drbd.MaxRequestSize)) / 4096
	if blocks == 0 || r.link.Features&drbd.FeatureThinResync == 0 {
		return 0
	}
	n := uint64(1)
	for n*2 <= blocks {
		n *= 2
	}
	return n
}

// hashBlock reads a block here before it is asked for. Clients' writes wait for
// its range already; a write of the peer may change it meanwhile, on both nodes
// alike: whatever the source compares with the digest, the copies are equal
// then if it is.
func (r *Resource) hashBlock(v *volume, sector drbd.Sector, size uint32) {
	p := r.peer.alloc()
	p.kind, p.op, p.v, p.sector, p.size, p.conn, p.epoch = csumRead, OpRead, v, sector, size, r.connGen, v.rs.number
	r.peer.bytes += int64(size)
	v.local++
	v.active.insert(sector, p.end(), csumRead, uint32(p.id))
	v.active.insert(sector, p.end(), resyncAsked, uint32(p.id)+1) // the id goes when it is really asked for
	r.emit(Action{Kind: DoPeerLocal, Op: OpRead, Volume: v.num, Peer: p.id, Sector: sector, Size: size, DigestAlg: v.rs.csums})
}

// hashed asks for a block with the digest of what is here. If it cannot be read
// here, it is asked for as it is.
func (r *Resource) hashed(p *peerRequest, digest []byte, err error) {
	v := p.v
	asked := v.active.find(resyncAsked, uint32(p.id)+1)
	if asked == nil {
		return // the resync is over
	}
	if asked.id = 0; !v.isSyncTarget() || v.rs.number != p.epoch {
		v.active.removeAt(resyncAsked, p.sector)
		return // another one has begun, or this one rests
	}
	cmd := drbd.CmdCsumRSRequest
	if err != nil {
		cmd, digest = drbd.CmdRSDataRequest, nil
	}
	r.sendBlockRequest(cmd, v, p.sector, p.size, digest)
}

// sendBlockRequest asks the source for one block; what is asked for is answered
// once.
func (r *Resource) sendBlockRequest(cmd drbd.Command, v *volume, sector drbd.Sector, size uint32, digest []byte) {
	v.rs.asked.push(askedBlock{sector: sector, size: size, at: r.now})
	start := r.beginPacket(cmd, v.num, 24+len(digest))
	r.arena = drbd.BlockRequest{Sector: sector, BlockID: drbd.ResyncID, Size: size}.Append(r.arena)
	r.arena = append(r.arena, digest...)
	r.endPacket(drbd.DataSocket, start, nil)
}

// answerResync is the end of a read for the target: the block, or that there
// is no need to send it.
func (r *Resource) answerResync(p *peerRequest, digest []byte, err error) {
	v := p.v
	switch {
	case v.st.Pdsk < drbd.Inconsistent:
		// The target's disk is gone (7.3). What came later could be taken for an
		// answer to its next resync.
	case v.st.Conn == drbd.Ahead:
		r.sendAck(drbd.CmdRSCancel, v, p.sector, p.block, p.size)
		r.maybeReturn(v)
	case err != nil, v.st.Disk != drbd.UpToDate:
		v.rs.failed += uint64(p.size+4095) / 4096
		r.sendAck(drbd.CmdNegRSDReply, v, p.sector, p.block, p.size)
	case p.expect != nil && bytes.Equal(digest, p.expect):
		v.stats.ReadBytes += uint64(p.size)
		v.rs.same += uint64(p.size)
		v.clearClean(p.sector, p.size)
		r.sendAck(drbd.CmdRSIsInSync, v, p.sector, p.block, p.size)
		r.sourceMayFinish(v)
	case p.thin && p.allZero:
		v.stats.ReadBytes += uint64(p.size)
		v.rs.sent = append(v.rs.sent, span{p.sector, p.size})
		start := r.beginPacket(drbd.CmdRSDeallocated, v.num, 16)
		r.arena = drbd.BlockDesc{Sector: p.sector, Size: p.size}.Append(r.arena)
		r.endPacket(drbd.DataSocket, start, nil)
	default:
		v.rs.sent = append(v.rs.sent, span{p.sector, p.size})
		r.answerRead(p, drbd.CmdRSDataReply, drbd.CmdNegRSDReply, nil)
	}
}

// receivedDeallocated writes zeroes where the source has nothing else; the disk
// may give the blocks back.
func (r *Resource) receivedDeallocated(v *volume, d drbd.BlockDesc) error {
	_, err := r.resyncAnswer(v, drbd.CmdRSDeallocated, d.Sector, d.Size, nil)
	return err
}
