package drbd

// ResyncID is the block id of everything that belongs to a resync or an online
// verify. No request of an application may use it.
// Source: drbd_int.h, ID_SYNCER.
const ResyncID = ^uint64(0)

// DPFlags are the flags of a write (p_data.dp_flags).
type DPFlags uint32

// Flags of a write. Source: drbd_protocol.h, DP_*.
const (
	DPRWSync         DPFlags = 2    // the request was synchronous: a hint
	DPMaySetInSync   DPFlags = 4    // the sender is in a resync or verify
	DPUnplug         DPFlags = 8    // submit queued I/O: a hint
	DPFUA            DPFlags = 16   // on stable storage before it is complete
	DPFlush          DPFlags = 32   // flush volatile caches first
	DPDiscard        DPFlags = 64   // P_TRIM, or a P_ZEROES that may unmap
	DPSendReceiveAck DPFlags = 128  // answer P_RECV_ACK on arrival (protocol B)
	DPSendWriteAck   DPFlags = 256  // answer P_WRITE_ACK or P_RS_WRITE_ACK (protocol C)
	DPWSame          DPFlags = 512  // P_WSAME
	DPZeroes         DPFlags = 1024 // P_ZEROES
)

// Data is the fixed part of P_DATA, P_DATA_REPLY and P_RS_DATA_REPLY; digest
// and data follow it.
type Data struct {
	Sector  Sector
	BlockID uint64  // opaque: echoed in the answer, never interpreted
	Seq     uint32  // per volume and sender, from 1; 0 in replies
	Flags   DPFlags // 0 in replies
}

// Append appends the 24 bytes of d to dst.
func (d Data) Append(dst []byte) []byte {
	dst = put64(dst, uint64(d.Sector))
	dst = put64(dst, d.BlockID)
	dst = put32(dst, d.Seq)
	return put32(dst, uint32(d.Flags))
}

// Decode sets d from the first 24 bytes of b.
func (d *Data) Decode(b []byte) error {
	if len(b) < 24 {
		return short(CmdData, b, 24)
	}
	*d = Data{Sector: Sector(be64(b)), BlockID: be64(b[8:]), Seq: be32(b[16:]), Flags: DPFlags(be32(b[20:]))}
	return checkSector(CmdData, d.Sector)
}

// Trim is the fixed part of P_TRIM and P_ZEROES, which have no other, and of
// P_WSAME, which is followed by an optional digest and one logical block.
type Trim struct {
	Data
	Size uint32 // bytes affected
}

// Append appends the 28 bytes of t to dst.
func (t Trim) Append(dst []byte) []byte { return put32(t.Data.Append(dst), t.Size) }

// Decode sets t from the first 28 bytes of b. The size has to be at most
// MaxDiscardSize here; CheckSize knows the limit that was agreed.
func (t *Trim) Decode(b []byte) error {
	if len(b) < 28 {
		return short(CmdTrim, b, 28)
	}
	if err := t.Data.Decode(b); err != nil {
		return Named(err, CmdTrim)
	}
	t.Size = be32(b[24:])
	return t.CheckSize(true)
}

// CheckSize reports whether the size of t is within the limit that holds with
// (wsame) or without FeatureWSame.
func (t Trim) CheckSize(wsame bool) error {
	if wsame {
		return checkSize(CmdTrim, "size", t.Size, MaxDiscardSize)
	}
	return checkSize(CmdTrim, "size", t.Size, MaxDiscardSizeSmall)
}

// BlockRequest is P_DATA_REQUEST, P_RS_DATA_REQUEST, P_RS_THIN_REQ and
// P_OV_REQUEST, and the fixed part of P_OV_REPLY and P_CSUM_RS_REQUEST, which
// end with a digest.
type BlockRequest struct {
	Sector  Sector
	BlockID uint64 // opaque; ResyncID in all but P_DATA_REQUEST
	Size    uint32 // bytes: a multiple of 512, 512 to MaxRequestSize
	Pad     uint32 // garbage of the kernel's memory: ignored, sent as 0
}

// Append appends the 24 bytes of r to dst.
func (r BlockRequest) Append(dst []byte) []byte {
	dst = put64(dst, uint64(r.Sector))
	dst = put64(dst, r.BlockID)
	dst = put32(dst, r.Size)
	return put32(dst, r.Pad)
}

// Decode sets r from the first 24 bytes of b. It refuses a size that no request
// may have, since the answer is sized by it.
func (r *BlockRequest) Decode(b []byte) error {
	if len(b) < 24 {
		return short(CmdDataRequest, b, 24)
	}
	*r = BlockRequest{Sector: Sector(be64(b)), BlockID: be64(b[8:]), Size: be32(b[16:]), Pad: be32(b[20:])}
	if err := checkSector(CmdDataRequest, r.Sector); err != nil {
		return err
	}
	return checkSize(CmdDataRequest, "blksize", r.Size, MaxRequestSize)
}

// BlockDesc is P_OUT_OF_SYNC and P_RS_DEALLOCATED: a range of the volume.
type BlockDesc struct {
	Sector Sector
	Size   uint32 // bytes: a multiple of 512, 512 to MaxDiscardSize
	Pad    uint32 // garbage in P_OUT_OF_SYNC: ignored, sent as 0
}

// Append appends the 16 bytes of d to dst.
func (d BlockDesc) Append(dst []byte) []byte {
	dst = put64(dst, uint64(d.Sector))
	dst = put32(dst, d.Size)
	return put32(dst, d.Pad)
}

// Decode sets d from the first 16 bytes of b.
func (d *BlockDesc) Decode(b []byte) error {
	if len(b) < 16 {
		return short(CmdOutOfSync, b, 16)
	}
	*d = BlockDesc{Sector: Sector(be64(b)), Size: be32(b[8:]), Pad: be32(b[12:])}
	if err := checkSector(CmdOutOfSync, d.Sector); err != nil {
		return err
	}
	return checkSize(CmdOutOfSync, "blksize", d.Size, MaxDiscardSize)
}

// Barrier is P_BARRIER: it closes the sender's current epoch of writes.
type Barrier struct {
	Barrier uint32 // opaque: echoed in P_BARRIER_ACK, never interpreted
}

// Append appends the 8 bytes of p to dst.
func (p Barrier) Append(dst []byte) []byte { return put32(put32(dst, p.Barrier), 0) }

// Decode sets p from the first 8 bytes of b; the pad is ignored.
func (p *Barrier) Decode(b []byte) error {
	if len(b) < 8 {
		return short(CmdBarrier, b, 8)
	}
	p.Barrier = be32(b)
	return nil
}

// DelayProbe is P_DELAY_PROBE, which is read and ignored.
type DelayProbe struct {
	Seq, Offset uint32
}

// Append appends the 8 bytes of p to dst.
func (p DelayProbe) Append(dst []byte) []byte { return put32(put32(dst, p.Seq), p.Offset) }

// Decode sets p from the first 8 bytes of b.
func (p *DelayProbe) Decode(b []byte) error {
	if len(b) < 8 {
		return short(CmdDelayProbe, b, 8)
	}
	*p = DelayProbe{Seq: be32(b), Offset: be32(b[4:])}
	return nil
}
