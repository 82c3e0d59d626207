package drbd

// Results of one block of an online verify: the BlockID of P_OV_RESULT, which
// is a number there. Source: drbd_int.h, ID_IN_SYNC and ID_OUT_OF_SYNC.
const (
	OVInSync    uint64 = 4711
	OVOutOfSync uint64 = 4712
)

// BlockAck is the answer to a write or a request on the meta socket: P_RECV_ACK,
// P_WRITE_ACK, P_RS_WRITE_ACK, P_SUPERSEDED, P_RETRY_WRITE, P_NEG_ACK,
// P_NEG_DREPLY, P_NEG_RS_DREPLY, P_RS_CANCEL, P_OV_RESULT, P_RS_IS_IN_SYNC.
//
// Size is what the peer claims and is not checked: a node without a disk answers
// a write with "payload less digest" (drbd84-protocol, 3.2), which is no size of
// blocks for a P_TRIM. Where BlockID leads to a request of our own, its size
// counts, not this one; elsewhere CheckSize has to be asked first.
type BlockAck struct {
	Sector  Sector
	BlockID uint64 // that of the request; OVInSync or OVOutOfSync in P_OV_RESULT
	Size    uint32 // bytes
	Seq     uint32 // shares its counter with the writes of the volume
}

// Append appends the 24 bytes of a to dst.
func (a BlockAck) Append(dst []byte) []byte {
	dst = put64(dst, uint64(a.Sector))
	dst = put64(dst, a.BlockID)
	dst = put32(dst, a.Size)
	return put32(dst, a.Seq)
}

// Decode sets a from the first 24 bytes of b.
func (a *BlockAck) Decode(b []byte) error {
	if len(b) < 24 {
		return short(CmdWriteAck, b, 24)
	}
	*a = BlockAck{Sector: Sector(be64(b)), BlockID: be64(b[8:]), Size: be32(b[16:]), Seq: be32(b[20:])}
	return checkSector(CmdWriteAck, a.Sector)
}

// CheckSize reports whether the size of an answer with command cmd is one that
// a range of blocks can have: a multiple of 512 from 512 to MaxDiscardSize.
func (a BlockAck) CheckSize(cmd Command) error {
	return checkSize(cmd, "blksize", a.Size, MaxDiscardSize)
}

// BarrierAck is P_BARRIER_ACK: the epoch is stable at the peer.
type BarrierAck struct {
	Barrier uint32 // opaque: that of P_BARRIER
	SetSize uint32 // writes in the epoch
}

// Append appends the 8 bytes of p to dst.
func (p BarrierAck) Append(dst []byte) []byte { return put32(put32(dst, p.Barrier), p.SetSize) }

// Decode sets p from the first 8 bytes of b.
func (p *BarrierAck) Decode(b []byte) error {
	if len(b) < 8 {
		return short(CmdBarrierAck, b, 8)
	}
	*p = BarrierAck{Barrier: be32(b), SetSize: be32(b[4:])}
	return nil
}
