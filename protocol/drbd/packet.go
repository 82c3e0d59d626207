package drbd

import (
	"encoding/binary"
	"fmt"
)

// A Packet is the fixed part of a packet's payload. Append appends it to dst in
// the form of the wire, without the header and without digest or data, and
// returns the extended slice. Every type's Decode is the inverse.
type Packet interface {
	Append(dst []byte) []byte
}

// Empty is a packet without fields of its own: P_PING, P_PING_ACK,
// P_UNPLUG_REMOTE, the first packets; and those whose payload is one piece of
// bytes: P_AUTH_CHALLENGE, P_AUTH_RESPONSE, P_BITMAP, P_COMPRESSED_BITMAP.
type Empty struct{}

// Append returns dst as it is.
func (Empty) Append(dst []byte) []byte { return dst }

// Decode decodes the payload of the packet that h announces and that CheckLength
// has passed. The packet is a pointer to the command's struct (*Data, *BlockAck,
// ...; Empty is a plain value) and rest is what follows it: digest and data, the
// bytes of a bitmap or of an authentication packet. rest aliases payload.
// Appending the packet and then rest gives payload again.
//
// payload may end after the fixed part for the packets with data, so that the
// caller can read data where it belongs; all others have to be whole. wsame says
// whether FeatureWSame is agreed. It allocates the struct: on the hot paths call
// Decode of a struct that is kept. The error is a *ProtocolError that names the
// packet.
func Decode(h Header, payload []byte, wsame bool) (p Packet, rest []byte, err error) {
	if specOf(h.Command) == nil {
		return nil, nil, unknown(h.Command)
	}
	switch h.Command {
	case CmdData, CmdDataReply, CmdRSDataReply:
		p, rest, err = decodeFixed(new(Data), 24, payload)
	case CmdTrim, CmdZeroes, CmdWSame:
		t := new(Trim)
		if p, rest, err = decodeFixed(t, 28, payload); err == nil {
			err = t.CheckSize(wsame)
		}
	case CmdRecvAck, CmdWriteAck, CmdRSWriteAck, CmdSuperseded, CmdNegAck, CmdNegDReply, CmdNegRSDReply,
		CmdOVResult, CmdRSIsInSync, CmdRSCancel, CmdRetryWrite:
		p, rest, err = decodeFixed(new(BlockAck), 24, payload)
	case CmdDataRequest, CmdRSDataRequest, CmdRSThinReq, CmdOVRequest, CmdOVReply, CmdCsumRSRequest:
		p, rest, err = decodeFixed(new(BlockRequest), 24, payload)
	case CmdOutOfSync, CmdRSDeallocated:
		p, rest, err = decodeFixed(new(BlockDesc), 16, payload)
	case CmdBarrier:
		p, rest, err = decodeFixed(new(Barrier), 8, payload)
	case CmdBarrierAck:
		p, rest, err = decodeFixed(new(BarrierAck), 8, payload)
	case CmdDelayProbe:
		p, rest, err = decodeFixed(new(DelayProbe), 8, payload)
	case CmdStateChgReq, CmdConnStChgReq:
		p, rest, err = decodeFixed(new(ReqState), 8, payload)
	case CmdStateChgReply, CmdConnStChgReply:
		p, rest, err = decodeFixed(new(ReqStateReply), 4, payload)
	case CmdState:
		p, rest, err = decodeFixed(new(StatePacket), 4, payload)
	case CmdUUIDs:
		p, rest, err = decodeFixed(new(UUIDs), 48, payload)
	case CmdSyncUUID:
		p, rest, err = decodeFixed(new(SyncUUID), 8, payload)
	case CmdTerm:
		p, rest, err = decodeFixed(new(TermPacket), termSize, payload)
	case CmdConnectionFeatures:
		p, rest, err = decodeFixed(new(Features), featuresSize, payload)
	case CmdSizes:
		p, rest, err = decodeFixed(new(Sizes), sizesLen(wsame), payload)
	case CmdProtocol, CmdProtocolUpdate:
		p, rest, err = decodeFixed(new(ProtocolPacket), len(payload), payload)
	case CmdSyncParam:
		p, rest, err = decodeFixed(new(SyncParam), len(payload), payload)
	case CmdSyncParam89:
		p, rest, err = decodeFixed(new(SyncParam89), len(payload), payload)
	case CmdUnplugRemote, CmdPing, CmdPingAck, CmdInitialMeta, CmdInitialData,
		CmdAuthChallenge, CmdAuthResponse, CmdBitmap, CmdCompressedBitmap:
		p, rest = Empty{}, payload
	case NoCommand: // not in the table, as other unknown numbers
	}
	if err == nil && len(rest) > 0 && !hasRest(h.Command) {
		err = &ProtocolError{Field: "length", Got: len(payload), Want: len(payload) - len(rest)}
	}
	if err != nil {
		return nil, nil, Named(err, h.Command)
	}
	return p, rest, nil
}

// hasRest reports whether bytes may follow the fields of cmd.
func hasRest(cmd Command) bool {
	switch cmd { // the others end with their fields
	case CmdData, CmdDataReply, CmdRSDataReply, CmdWSame, CmdOVReply, CmdCsumRSRequest,
		CmdAuthChallenge, CmdAuthResponse, CmdBitmap, CmdCompressedBitmap:
		return true
	}
	return false
}

// decodeFixed decodes p from the first size bytes of b.
func decodeFixed(p interface {
	Packet
	Decode(b []byte) error
}, size int, b []byte,
) (Packet, []byte, error) {
	if len(b) < size {
		return nil, nil, &ProtocolError{Field: "length", Got: len(b), Want: size}
	}
	return p, b[size:], p.Decode(b[:size])
}

// unknown is the error of a command that DRBD 8.4 does not have.
func unknown(cmd Command) error {
	return &ProtocolError{Packet: cmd, Field: "command", Got: hex32(cmd), Want: "a packet of DRBD 8.4"}
}

// short is the error of a buffer that ends inside the fixed part of a packet.
func short(cmd Command, b []byte, want int) error {
	return &ProtocolError{Packet: cmd, Field: "length", Got: len(b), Want: want}
}

// checkSector reports whether s can be a sector of a volume at all.
func checkSector(cmd Command, s Sector) error {
	if s >= maxSector {
		return &ProtocolError{Packet: cmd, Field: "sector", Got: uint64(s), Want: "below 2^51"}
	}
	return nil
}

// checkSize reports whether size bytes, the value of a field, are whole sectors,
// at least one and at most limit bytes.
func checkSize(cmd Command, field string, size, limit uint32) error {
	if size == 0 || size%sectorSize != 0 || size > limit {
		return &ProtocolError{Packet: cmd, Field: field, Got: size, Want: wholeSectors(limit)}
	}
	return nil
}

// A span is the range of values that an error names as right.
type span struct{ min, max uint32 }

func (s span) String() string { return fmt.Sprintf("%d to %d", s.min, s.max) }

// wholeSectors is the sizes up to this one that are right.
type wholeSectors uint32

func (w wholeSectors) String() string {
	return fmt.Sprintf("a multiple of 512 from 512 to %d", uint32(w))
}

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

func put32(dst []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(dst, v) }
func put64(dst []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(dst, v) }
