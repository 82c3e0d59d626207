package drbd

import "fmt"

// A Command is the number of a packet. String gives DRBD's name.
type Command uint16

// Commands. Source: drbd_protocol.h, enum drbd_packet. The numbers left out
// were never sent, or belong to DRBD 9.
const (
	CmdData             Command = 0x00
	CmdDataReply        Command = 0x01
	CmdRSDataReply      Command = 0x02
	CmdBarrier          Command = 0x03
	CmdBitmap           Command = 0x04
	CmdUnplugRemote     Command = 0x07
	CmdDataRequest      Command = 0x08
	CmdRSDataRequest    Command = 0x09
	CmdSyncParam        Command = 0x0a // versions 86 to 88 only
	CmdProtocol         Command = 0x0b
	CmdUUIDs            Command = 0x0c
	CmdSizes            Command = 0x0d
	CmdState            Command = 0x0e
	CmdSyncUUID         Command = 0x0f
	CmdAuthChallenge    Command = 0x10
	CmdAuthResponse     Command = 0x11
	CmdStateChgReq      Command = 0x12
	CmdPing             Command = 0x13 // meta socket, as all up to CmdStateChgReply
	CmdPingAck          Command = 0x14
	CmdRecvAck          Command = 0x15
	CmdWriteAck         Command = 0x16
	CmdRSWriteAck       Command = 0x17
	CmdSuperseded       Command = 0x18
	CmdNegAck           Command = 0x19
	CmdNegDReply        Command = 0x1a
	CmdNegRSDReply      Command = 0x1b
	CmdBarrierAck       Command = 0x1c
	CmdStateChgReply    Command = 0x1d
	CmdOVRequest        Command = 0x1e
	CmdOVReply          Command = 0x1f
	CmdOVResult         Command = 0x20 // meta socket
	CmdCsumRSRequest    Command = 0x21
	CmdRSIsInSync       Command = 0x22 // meta socket
	CmdSyncParam89      Command = 0x23
	CmdCompressedBitmap Command = 0x24
	CmdDelayProbe       Command = 0x27 // either socket; ignored
	CmdOutOfSync        Command = 0x28
	CmdRSCancel         Command = 0x29 // meta socket
	CmdConnStChgReq     Command = 0x2a
	CmdConnStChgReply   Command = 0x2b // meta socket
	CmdRetryWrite       Command = 0x2c // meta socket
	CmdProtocolUpdate   Command = 0x2d
	CmdTrim             Command = 0x31
	CmdRSThinReq        Command = 0x32
	CmdRSDeallocated    Command = 0x33
	CmdWSame            Command = 0x34
	CmdZeroes           Command = 0x36

	// CmdTerm is ours (FeatureTerm). No DRBD uses numbers near it.
	CmdTerm Command = 0x7f01

	CmdInitialMeta        Command = 0xfff1 // first packet of the meta socket
	CmdInitialData        Command = 0xfff2 // first packet of the data socket
	CmdConnectionFeatures Command = 0xfffe

	// NoCommand is no packet: a ProtocolError about a header carries it.
	NoCommand Command = 0xffff
)

// String is DRBD's name of the packet, P_DATA for example.
func (c Command) String() string {
	if s := specOf(c); s != nil {
		return s.name
	}
	if c == NoCommand {
		return "packet header"
	}
	return fmt.Sprintf("packet %#04x", uint16(c))
}

// A Socket is one of the two TCP connections between two nodes.
type Socket uint8

// The sockets: requests, data and configuration go over the data socket, acks
// and pings over the meta socket.
const (
	DataSocket Socket = iota
	MetaSocket
)

func (s Socket) String() string {
	if s == MetaSocket {
		return "meta socket"
	}
	return "data socket"
}

// A spec is what the protocol says about one packet. Lengths are in bytes and
// do not count the header.
type spec struct {
	name    string
	fixed   uint32 // the part that Decode of the packet's struct reads
	min     uint32 // payload length of a version 100 or 101 peer
	max     uint32
	sockets uint8 // set of 1<<Socket; 0: older versions only
}

const (
	onData = 1 << DataSocket
	onMeta = 1 << MetaSocket
)

// specs holds the packets up to P_ZEROES by number. Source: drbd_receiver.c,
// drbd_cmd_handler[] and ack_receiver_tbl[]; limits from drbd84-protocol, 2,
// 6.3 and 10.7.
var specs = [...]spec{
	CmdData:        {"P_DATA", 24, 24 + sectorSize, 24 + MaxDigestSize + MaxRequestSize, onData},
	CmdDataReply:   {"P_DATA_REPLY", 24, 24 + sectorSize, 24 + MaxDigestSize + MaxRequestSize, onData},
	CmdRSDataReply: {"P_RS_DATA_REPLY", 24, 24 + sectorSize, 24 + MaxDigestSize + MaxRequestSize, onData},
	CmdBarrier:     {"P_BARRIER", 8, 8, 8, onData},
	CmdBitmap:      {"P_BITMAP", 0, 0, MaxBitmapSize, onData},

	CmdUnplugRemote:  {"P_UNPLUG_REMOTE", 0, 0, 0, onData},
	CmdDataRequest:   {"P_DATA_REQUEST", 24, 24, 24, onData},
	CmdRSDataRequest: {"P_RS_DATA_REQUEST", 24, 24, 24, onData},
	CmdSyncParam:     {"P_SYNC_PARAM", 4, 4, 4 + AlgNameSize, 0},
	CmdProtocol:      {"P_PROTOCOL", 24, 25, 24 + AlgNameSize, onData},
	CmdUUIDs:         {"P_UUIDS", 48, 48, 48, onData},
	CmdSizes:         {"P_SIZES", 32, 32, 56, onData},
	CmdState:         {"P_STATE", 4, 4, 4, onData},
	CmdSyncUUID:      {"P_SYNC_UUID", 8, 8, 8, onData},
	CmdAuthChallenge: {"P_AUTH_CHALLENGE", 0, AuthChallengeSize, maxAuthChallengeSize, onData},
	CmdAuthResponse:  {"P_AUTH_RESPONSE", 0, 1, MaxDigestSize, onData},
	CmdStateChgReq:   {"P_STATE_CHG_REQ", 8, 8, 8, onData},

	CmdPing:          {"P_PING", 0, 0, 0, onMeta},
	CmdPingAck:       {"P_PING_ACK", 0, 0, 0, onMeta},
	CmdRecvAck:       {"P_RECV_ACK", 24, 24, 24, onMeta},
	CmdWriteAck:      {"P_WRITE_ACK", 24, 24, 24, onMeta},
	CmdRSWriteAck:    {"P_RS_WRITE_ACK", 24, 24, 24, onMeta},
	CmdSuperseded:    {"P_SUPERSEDED", 24, 24, 24, onMeta},
	CmdNegAck:        {"P_NEG_ACK", 24, 24, 24, onMeta},
	CmdNegDReply:     {"P_NEG_DREPLY", 24, 24, 24, onMeta},
	CmdNegRSDReply:   {"P_NEG_RS_DREPLY", 24, 24, 24, onMeta},
	CmdBarrierAck:    {"P_BARRIER_ACK", 8, 8, 8, onMeta},
	CmdStateChgReply: {"P_STATE_CHG_REPLY", 4, 4, 4, onMeta},

	CmdOVRequest:        {"P_OV_REQUEST", 24, 24, 24, onData},
	CmdOVReply:          {"P_OV_REPLY", 24, 24 + 1, 24 + MaxDigestSize, onData},
	CmdOVResult:         {"P_OV_RESULT", 24, 24, 24, onMeta},
	CmdCsumRSRequest:    {"P_CSUM_RS_REQUEST", 24, 24 + 1, 24 + MaxDigestSize, onData},
	CmdRSIsInSync:       {"P_RS_IS_IN_SYNC", 24, 24, 24, onMeta},
	CmdSyncParam89:      {"P_SYNC_PARAM89", syncParamSize, syncParamSize, syncParamSize, onData},
	CmdCompressedBitmap: {"P_COMPRESSED_BITMAP", 0, 2, MaxBitmapSize, onData},
	CmdDelayProbe:       {"P_DELAY_PROBE", 8, 8, 8, onData | onMeta},
	CmdOutOfSync:        {"P_OUT_OF_SYNC", 16, 16, 16, onData},
	CmdRSCancel:         {"P_RS_CANCEL", 24, 24, 24, onMeta},
	CmdConnStChgReq:     {"P_CONN_ST_CHG_REQ", 8, 8, 8, onData},
	CmdConnStChgReply:   {"P_CONN_ST_CHG_REPLY", 4, 4, 4, onMeta},
	CmdRetryWrite:       {"P_RETRY_WRITE", 24, 24, 24, onMeta},
	CmdProtocolUpdate:   {"P_PROTOCOL_UPDATE", 24, 25, 24 + AlgNameSize, onData},
	CmdTrim:             {"P_TRIM", 28, 28, 28, onData},
	CmdRSThinReq:        {"P_RS_THIN_REQ", 24, 24, 24, onData},
	CmdRSDeallocated:    {"P_RS_DEALLOCATED", 16, 16, 16, onData},
	CmdWSame:            {"P_WSAME", 28, 28 + sectorSize, 28 + MaxDigestSize + maxLogicalBlock, onData},
	CmdZeroes:           {"P_ZEROES", 28, 28, 28, onData},
}

// Packets outside the table, because their numbers are far away.
var (
	specInitialMeta = spec{"P_INITIAL_META", 0, 0, 0, onMeta}
	specInitialData = spec{"P_INITIAL_DATA", 0, 0, 0, onData}
	specTerm        = spec{"P_TERM", termSize, termSize, termSize, onData}
	specFeatures    = spec{"P_CONNECTION_FEATURES", featuresSize, featuresSize, featuresSize, onData}
)

// specOf is the description of cmd, or nil if DRBD 8.4 has no such packet.
func specOf(cmd Command) *spec {
	switch {
	case int(cmd) < len(specs):
		if s := &specs[cmd]; s.name != "" {
			return s
		}
		return nil
	case cmd == CmdTerm:
		return &specTerm
	case cmd == CmdInitialMeta:
		return &specInitialMeta
	case cmd == CmdInitialData:
		return &specInitialData
	case cmd == CmdConnectionFeatures:
		return &specFeatures
	}
	return nil
}
