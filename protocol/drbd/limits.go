package drbd

// Limits of the protocol, in bytes. Source: drbd84-protocol, 10.7;
// drbd_protocol.h, DRBD_MAX_BIO_SIZE and DRBD_MAX_BATCH_BIO_SIZE;
// drbd_int.h, DRBD_SOCKET_BUFFER_SIZE; linux/drbd.h, SHARED_SECRET_MAX.
const (
	// MaxRequestSize is the largest data of one packet, and the largest
	// block asked for in one request.
	MaxRequestSize = 1 << 20
	// MaxDiscardSize is the largest range of P_TRIM, P_ZEROES and P_WSAME
	// when FeatureWSame is agreed, MaxDiscardSizeSmall when it is not.
	MaxDiscardSize      = 128 << 20
	MaxDiscardSizeSmall = 4 << 20
	// AlgNameSize holds the name of a hash and its NUL.
	AlgNameSize = 64
	// MaxDigestSize is the longest digest: that of sha512.
	MaxDigestSize = 64
	// MaxBitmapPacketSize limits P_BITMAP and P_COMPRESSED_BITMAP with their
	// header; MaxBitmapSize is what remains for the payload.
	MaxBitmapPacketSize = 4096
	MaxBitmapSize       = MaxBitmapPacketSize - HeaderSize100
	// MaxControlSize holds the payload of every packet but P_DATA,
	// P_DATA_REPLY, P_RS_DATA_REPLY and P_WSAME.
	MaxControlSize = MaxBitmapSize

	sectorSize           = 512
	maxLogicalBlock      = 4096 // the one block that a P_WSAME brings
	maxAuthChallengeSize = 128
)

// maxSector is one more than the last sector that any device can have.
// Source: drbd_limits.h, DRBD_MAX_SECTORS_FLEX of the kernel.
const maxSector = 1 << 51

// A Sector is a position or a length on a volume in units of 512 bytes,
// whatever the logical block size of the device is.
type Sector uint64

// Bytes is the position or length in bytes. Sectors from the wire are below
// 2^51 once decoded, so it does not overflow.
func (s Sector) Bytes() int64 { return int64(s) * sectorSize }

// SectorOf is the sector that contains the byte at offset bytes, which must
// not be negative; for a length it is the number of whole sectors.
func SectorOf(bytes int64) Sector { return Sector(uint64(bytes) / sectorSize) }

// FixedLen is the length in bytes of the fixed part of a packet that its
// struct decodes: 24 for P_DATA, 32 for P_SIZES (its shorter form), 0 for a
// packet without fields of its own (P_PING, P_BITMAP, P_AUTH_CHALLENGE). It is
// -1 for a command that DRBD 8.4 does not have.
func FixedLen(cmd Command) int {
	if s := specOf(cmd); s != nil {
		return int(s.fixed)
	}
	return -1
}

// CheckLength reports whether a packet as h announces it may arrive on socket
// of a version 100 or 101 connection; wsame says whether FeatureWSame is
// agreed. It must be asked before anything is sized by h.Length, and afterwards
// MaxRequestSize plus 128 bytes hold any payload, MaxControlSize every one but
// those with data. How the data of P_DATA and its kind divide into digest and
// blocks is checked by DataSize, which knows the digest. The error is a
// *ProtocolError.
func CheckLength(h Header, wsame bool, socket Socket) error {
	s := specOf(h.Command)
	if s == nil {
		return unknown(h.Command)
	}
	if s.sockets == 0 || h.Command == CmdWSame && !wsame {
		return &ProtocolError{Packet: h.Command, Field: "command", Got: hex32(h.Command), Want: "one that the agreed version and features have"}
	}
	if s.sockets>>socket&1 == 0 {
		return &ProtocolError{Packet: h.Command, Field: "socket", Got: socket, Want: 1 - socket}
	}
	if h.Length < s.min || h.Length > s.max {
		return lengthError(h, s)
	}
	switch h.Command {
	case CmdSizes:
		if want := sizesLen(wsame); h.Length != uint32(want) {
			return &ProtocolError{Packet: h.Command, Field: "length", Got: h.Length, Want: want}
		}
	case CmdBitmap:
		if h.Length%8 != 0 {
			return &ProtocolError{Packet: h.Command, Field: "length", Got: h.Length, Want: "whole 64-bit words"}
		}
	case CmdData, CmdDataReply, CmdRSDataReply, CmdWSame:
		if (h.Length-s.fixed)%sectorSize > MaxDigestSize {
			return &ProtocolError{Packet: h.Command, Field: "length", Got: h.Length, Want: "whole sectors and at most one digest"}
		}
	}
	return nil
}

func lengthError(h Header, s *spec) error {
	if s.min == s.max {
		return &ProtocolError{Packet: h.Command, Field: "length", Got: h.Length, Want: s.min}
	}
	return &ProtocolError{Packet: h.Command, Field: "length", Got: h.Length, Want: span{s.min, s.max}}
}

// DataSize is the number of data bytes in a packet that passed CheckLength and
// carries data (P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY, P_WSAME) behind a digest
// of digestSize bytes (0: no integrity algorithm): a multiple of 512, from 512
// to MaxRequestSize. The error is a *ProtocolError.
func DataSize(h Header, digestSize int) (uint32, error) {
	want := span{sectorSize, MaxRequestSize}
	if h.Command == CmdWSame {
		want.max = maxLogicalBlock
	}
	size := int64(h.Length) - int64(FixedLen(h.Command)) - int64(digestSize)
	if size%sectorSize != 0 {
		return 0, &ProtocolError{Packet: h.Command, Field: "data size", Got: size, Want: "a multiple of 512"}
	}
	if size < int64(want.min) || size > int64(want.max) {
		return 0, &ProtocolError{Packet: h.Command, Field: "data size", Got: size, Want: want}
	}
	return uint32(size), nil
}
