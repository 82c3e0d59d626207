package drbd

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the packet headers, in bytes. The 8-byte forms h80 and h95 precede
// the feature exchange (and are all that versions below 100 have); version 100
// and later use h100 for every packet after it, on both sockets.
// Source: drbd_protocol.h, struct p_header80, p_header95, p_header100.
const (
	HeaderSize80  = 8
	HeaderSize100 = 16
)

// Magic numbers of the headers. Source: drbd_protocol.h, DRBD_MAGIC,
// DRBD_MAGIC_BIG, DRBD_MAGIC_100.
const (
	magic80  = 0x83740267
	magic95  = 0x835a
	magic100 = 0x8620ec20
)

// A Header is what precedes every packet. The zero value is that of an empty
// P_DATA and is not valid.
type Header struct {
	Command Command
	Volume  uint16 // 0 for connection-wide packets; receivers ignore it there
	Length  uint32 // bytes after the header: fixed part, digest and data
}

// AppendHeader80 appends the 8-byte header of a packet with length bytes after
// it. It serves the first packet of a socket and P_CONNECTION_FEATURES; length
// must fit 16 bits, a larger one is a bug and panics.
func AppendHeader80(dst []byte, cmd Command, length int) []byte {
	if length < 0 || length > 0xffff {
		panic(fmt.Sprintf("drbd: %v with %d bytes does not fit an h80 header", cmd, length))
	}
	dst = binary.BigEndian.AppendUint32(dst, magic80)
	dst = binary.BigEndian.AppendUint16(dst, uint16(cmd))
	return binary.BigEndian.AppendUint16(dst, uint16(length))
}

// AppendHeader100 appends the 16-byte header h. It does not allocate when dst
// has room.
func AppendHeader100(dst []byte, h Header) []byte {
	dst = binary.BigEndian.AppendUint32(dst, magic100)
	dst = binary.BigEndian.AppendUint16(dst, h.Volume)
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.Command))
	dst = binary.BigEndian.AppendUint32(dst, h.Length)
	return binary.BigEndian.AppendUint32(dst, 0)
}

// DecodeHeader80 decodes the 8-byte header at the start of b: h80 or h95, told
// apart by their magic. The length is only what the peer claims: CheckLength
// comes before anything is sized by it. The error is a *ProtocolError.
func DecodeHeader80(b []byte) (Header, error) {
	if len(b) < HeaderSize80 {
		return Header{}, &ProtocolError{Packet: NoCommand, Field: "length of the header", Got: len(b), Want: HeaderSize80}
	}
	if magic := binary.BigEndian.Uint32(b); magic == magic80 {
		return Header{
			Command: Command(binary.BigEndian.Uint16(b[4:])),
			Length:  uint32(binary.BigEndian.Uint16(b[6:])),
		}, nil
	}
	if binary.BigEndian.Uint16(b) == magic95 {
		return Header{
			Command: Command(binary.BigEndian.Uint16(b[2:])),
			Length:  binary.BigEndian.Uint32(b[4:]),
		}, nil
	}
	return Header{}, &ProtocolError{
		Packet: NoCommand, Field: "magic", Got: hex32(binary.BigEndian.Uint32(b)),
		Want: "0x83740267 or 0x835a (an 8-byte header)",
	}
}

// DecodeHeader100 decodes the 16-byte header at the start of b. A version 100
// peer uses no other after the feature exchange, and its pad is zero: anything
// else means that the stream is out of step. The length is only what the peer
// claims: CheckLength comes before anything is sized by it. The error is a
// *ProtocolError.
func DecodeHeader100(b []byte) (Header, error) {
	if len(b) < HeaderSize100 {
		return Header{}, &ProtocolError{Packet: NoCommand, Field: "length of the header", Got: len(b), Want: HeaderSize100}
	}
	if magic := binary.BigEndian.Uint32(b); magic != magic100 {
		return Header{}, &ProtocolError{Packet: NoCommand, Field: "magic", Got: hex32(magic), Want: hex32(magic100)}
	}
	h := Header{
		Volume:  binary.BigEndian.Uint16(b[4:]),
		Command: Command(binary.BigEndian.Uint16(b[6:])),
		Length:  binary.BigEndian.Uint32(b[8:]),
	}
	if pad := binary.BigEndian.Uint32(b[12:]); pad != 0 {
		return Header{}, &ProtocolError{Packet: h.Command, Field: "header pad", Got: hex32(pad), Want: 0}
	}
	return h, nil
}

// hex32 is a number that an error shows in hexadecimal.
type hex32 uint32

func (x hex32) String() string { return fmt.Sprintf("%#08x", uint32(x)) }
