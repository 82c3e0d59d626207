package drbd

// Flags of P_UUIDS. Source: drbd_protocol.h and drbd_receiver.c, receive_uuids.
const (
	UUIDDiscardMyData   uint64 = 1 // the sender's data lose a split brain; single shot
	UUIDCrashedPrimary  uint64 = 2
	UUIDInconsistent    uint64 = 4 // the sender's disk will be Inconsistent
	UUIDSkipInitialSync uint64 = 8
)

// Flags of P_SIZES. Source: drbd_protocol.h, enum dds_flags.
const (
	DDSForced   uint16 = 1
	DDSNoResync uint16 = 2 // new space is equal on both sides: --assume-clean
)

// Sizes is P_SIZES: what a node says of the size of a volume. It is 56 bytes if
// FeatureWSame is agreed, else 32.
type Sizes struct {
	DSize          Sector // usable size of the backing device, 0 if diskless
	USize          Sector // size that the user asked for, 0 = none
	CSize          Sector // size exported now; 0 in a resize trigger
	MaxBioSize     uint32 // bytes, at most MaxRequestSize
	QueueOrderType uint16 // 0
	DDSFlags       uint16

	// The part that only FeatureWSame has; WSame says that it is there.
	WSame             bool
	PhysicalBlockSize uint32 // bytes, as the next four
	LogicalBlockSize  uint32
	AlignmentOffset   uint32
	IOMin             uint32
	IOOpt             uint32
	DiscardEnabled    uint8 // 0 or 1, as the next two
	DiscardZeroesData uint8
	WriteSameCapable  uint8 // we send 0: newer kernels do not know P_WSAME
}

const (
	sizesSize      = 32
	sizesSizeWSame = 56
)

func sizesLen(wsame bool) int {
	if wsame {
		return sizesSizeWSame
	}
	return sizesSize
}

// Append appends the 32 bytes of p to dst, or 56 if p.WSame.
func (p Sizes) Append(dst []byte) []byte { return p.AppendSizes(dst, p.WSame) }

// AppendSizes appends p to dst in the form that wsame asks for: with it (56
// bytes) or without it (32 bytes), whatever p.WSame says.
func (p Sizes) AppendSizes(dst []byte, wsame bool) []byte {
	dst = put64(dst, uint64(p.DSize))
	dst = put64(dst, uint64(p.USize))
	dst = put64(dst, uint64(p.CSize))
	dst = put32(dst, p.MaxBioSize)
	dst = put32(dst, uint32(p.QueueOrderType)<<16|uint32(p.DDSFlags))
	if !wsame {
		return dst
	}
	dst = put32(dst, p.PhysicalBlockSize)
	dst = put32(dst, p.LogicalBlockSize)
	dst = put32(dst, p.AlignmentOffset)
	dst = put32(dst, p.IOMin)
	dst = put32(dst, p.IOOpt)
	return append(dst, p.DiscardEnabled, p.DiscardZeroesData, p.WriteSameCapable, 0)
}

// Decode sets p from b, which is 32 or 56 bytes long. It refuses sizes that no
// device can have, since bitmaps are sized by them.
func (p *Sizes) Decode(b []byte) error {
	if len(b) != sizesSize && len(b) != sizesSizeWSame {
		return &ProtocolError{Packet: CmdSizes, Field: "length", Got: len(b), Want: "32 or 56"}
	}
	*p = Sizes{
		DSize: Sector(be64(b)), USize: Sector(be64(b[8:])), CSize: Sector(be64(b[16:])),
		MaxBioSize: be32(b[24:]), QueueOrderType: uint16(be32(b[28:]) >> 16), DDSFlags: uint16(be32(b[28:])),
	}
	if len(b) == sizesSizeWSame {
		p.WSame = true
		p.PhysicalBlockSize, p.LogicalBlockSize, p.AlignmentOffset = be32(b[32:]), be32(b[36:]), be32(b[40:])
		p.IOMin, p.IOOpt = be32(b[44:]), be32(b[48:])
		p.DiscardEnabled, p.DiscardZeroesData, p.WriteSameCapable = b[52], b[53], b[54]
	}
	for _, f := range [...]struct {
		name string
		size Sector
	}{{"d_size", p.DSize}, {"u_size", p.USize}, {"c_size", p.CSize}} {
		if f.size > maxSector {
			return &ProtocolError{Packet: CmdSizes, Field: f.name, Got: uint64(f.size), Want: "at most 2^51 sectors"}
		}
	}
	return nil
}

// UUIDs is P_UUIDS: the data generations of a volume.
type UUIDs struct {
	Current, Bitmap uint64
	History         [2]uint64 // youngest first
	DirtyBits       uint64    // bits set in the sender's bitmap
	Flags           uint64    // UUIDDiscardMyData, ...
}

// Append appends the 48 bytes of p to dst.
func (p UUIDs) Append(dst []byte) []byte {
	for _, v := range [...]uint64{p.Current, p.Bitmap, p.History[0], p.History[1], p.DirtyBits, p.Flags} {
		dst = put64(dst, v)
	}
	return dst
}

// Decode sets p from the first 48 bytes of b.
func (p *UUIDs) Decode(b []byte) error {
	if len(b) < 48 {
		return short(CmdUUIDs, b, 48)
	}
	*p = UUIDs{
		Current: be64(b), Bitmap: be64(b[8:]), History: [2]uint64{be64(b[16:]), be64(b[24:])},
		DirtyBits: be64(b[32:]), Flags: be64(b[40:]),
	}
	return nil
}

// SyncUUID is P_SYNC_UUID: the resync starts, UUID is the target's new current
// UUID.
type SyncUUID struct {
	UUID uint64
}

// Append appends the 8 bytes of p to dst.
func (p SyncUUID) Append(dst []byte) []byte { return put64(dst, p.UUID) }

// Decode sets p from the first 8 bytes of b.
func (p *SyncUUID) Decode(b []byte) error {
	if len(b) < 8 {
		return short(CmdSyncUUID, b, 8)
	}
	p.UUID = be64(b)
	return nil
}

// StatePacket is P_STATE: the sender's state changed.
type StatePacket struct {
	Word uint32 // see State.Word and StateOf
}

// Append appends the 4 bytes of p to dst.
func (p StatePacket) Append(dst []byte) []byte { return put32(dst, p.Word) }

// Decode sets p from the first 4 bytes of b. The states in the word are not
// judged: StateOf and State.Valid do.
func (p *StatePacket) Decode(b []byte) error {
	if len(b) < 4 {
		return short(CmdState, b, 4)
	}
	p.Word = be32(b)
	return nil
}

// ReqState is P_STATE_CHG_REQ and P_CONN_ST_CHG_REQ: a request to change the
// fields of the state word that Mask selects to those of Val.
type ReqState struct {
	Mask, Val uint32
}

// Append appends the 8 bytes of p to dst.
func (p ReqState) Append(dst []byte) []byte { return put32(put32(dst, p.Mask), p.Val) }

// Decode sets p from the first 8 bytes of b.
func (p *ReqState) Decode(b []byte) error {
	if len(b) < 8 {
		return short(CmdStateChgReq, b, 8)
	}
	*p = ReqState{Mask: be32(b), Val: be32(b[4:])}
	return nil
}

// ReqStateReply is P_STATE_CHG_REPLY and P_CONN_ST_CHG_REPLY.
type ReqStateReply struct {
	Code int32 // SS_*: positive means done
}

// Append appends the 4 bytes of p to dst.
func (p ReqStateReply) Append(dst []byte) []byte { return put32(dst, uint32(p.Code)) }

// Decode sets p from the first 4 bytes of b.
func (p *ReqStateReply) Decode(b []byte) error {
	if len(b) < 4 {
		return short(CmdStateChgReply, b, 4)
	}
	p.Code = int32(be32(b))
	return nil
}
