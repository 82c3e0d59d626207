package engine

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A violationRow is a peer that keeps to the protocol up to one packet.
type violationRow struct {
	cmd  drbd.Command // the packet that is wrong
	do   func(p *rawPeer)
	want string         // the violation, behind the packet's name; %d is the volume's size in sectors
	conn drbd.ConnState // the state that the connection ends in; 0: ProtocolFailure
	set  stage
}

// A stage is where the conversation is when the row's packet comes.
type stage struct {
	features uint32 // 0: a kernel's
	word     *word  // nil: none of the handshake
	in       drbd.ConnState
}

var (
	greeted   = stage{}
	connected = stage{word: &word{}, in: drbd.Connected}
	protocol  = stage{word: &word{until: drbd.CmdProtocol}}
	uuids     = stage{word: &word{until: drbd.CmdUUIDs}}
	noSizes   = stage{word: &word{until: drbd.CmdProtocol}}
	noUUIDs   = stage{word: &word{until: drbd.CmdSizes}}
	plain     = stage{features: drbd.FeatureWSame, word: &word{}, in: drbd.Connected} // no TRIM, WZEROES, THIN_RESYNC
	small     = stage{features: drbd.FeatureTrim, word: &word{}, in: drbd.Connected}
	terms     = stage{features: kernelFeatures | drbd.FeaturePollux | drbd.FeatureTerm, word: &word{until: drbd.CmdProtocol}}
	// The peer has a newer generation: the node becomes its target.
	target = stage{in: drbd.WFBitMapT, word: &word{uuids: func(u *drbd.UUIDs) {
		u.Bitmap, u.Current = u.Current, 0x1234567890abcde0
	}}}
)

func sends(cmd drbd.Command, k drbd.Packet, rest ...byte) func(*rawPeer) {
	return func(p *rawPeer) { p.send(cmd, k, rest...) }
}

func answer(cmd drbd.Command, k drbd.Packet) func(*rawPeer) {
	return func(p *rawPeer) { p.say(cmd, k) }
}

// beyond has a range of 4 KiB that ends a sector behind the device.
func beyond(cmd drbd.Command, meta bool, make1 func(drbd.Sector) drbd.Packet, rest ...byte) func(*rawPeer) {
	return func(p *rawPeer) {
		if k := make1(p.sectors() - 7); meta {
			p.say(cmd, k)
		} else {
			p.send(cmd, k, rest...)
		}
	}
}

func request(s drbd.Sector) drbd.Packet {
	return drbd.BlockRequest{Sector: s, BlockID: drbd.ResyncID, Size: 4096}
}

func resyncAck(s drbd.Sector) drbd.Packet {
	return drbd.BlockAck{Sector: s, BlockID: drbd.ResyncID, Size: 4096}
}

// ofLength sends a packet whose length is wrong.
func ofLength(cmd drbd.Command, n int) func(*rawPeer) {
	return func(p *rawPeer) { p.raw(p.data, header(cmd, 0, n), make([]byte, n)) }
}

func metaOfLength(cmd drbd.Command, n int) func(*rawPeer) {
	return func(p *rawPeer) { p.raw(p.meta, header(cmd, 0, n), make([]byte, n)) }
}

const (
	outside  = "sector: wanted a range of 8 sectors that ends at %d at most, got -7" // -7: %d less 7
	noBlock  = "sector: wanted a block that was asked for, got 8"
	noHandle = "block_id: wanted that of a write at sector 8, got 0x4711"
	follows  = "command: wanted a packet that follows the greeting, got "
)

var strange = drbd.BlockAck{Sector: 8, BlockID: 0x4711, Size: 4096}

// violations has rows for every packet of the protocol, in the order of their
// numbers. Rows that need a client or other options have tests of their own.
var violations = []violationRow{
	{drbd.CmdData, sends(drbd.CmdData, drbd.Data{}, make([]byte, 512)...), "command: wanted P_PROTOCOL, got P_DATA", 0, greeted},
	{drbd.CmdData, sends(drbd.CmdData, drbd.Data{}, make([]byte, 512)...), "command: wanted P_STATE first, got P_DATA", 0, uuids},
	{drbd.CmdData, ofLength(drbd.CmdData, 24), "length: wanted 536 to 1048664, got 24", 0, connected},
	{drbd.CmdData, ofLength(drbd.CmdData, 24+513), "data size: wanted a multiple of 512, got 513", 0, connected},
	{drbd.CmdData, ofLength(drbd.CmdData, 1<<30), "length: wanted 536 to 1048664, got 1073741824", 0, connected},
	{drbd.CmdData, beyond(drbd.CmdData, false, func(s drbd.Sector) drbd.Packet { return drbd.Data{Sector: s} }, make([]byte, 4096)...), outside, 0, connected},
	{drbd.CmdData, sends(drbd.CmdData, drbd.Data{Sector: 1 << 60}, make([]byte, 4096)...), "sector: wanted below 2^51, got 1152921504606846976", 0, connected},
	{drbd.CmdData, func(p *rawPeer) { p.raw(p.data, header(drbd.CmdData, 7, 24+512), make([]byte, 24+512)) }, "volume: wanted a configured volume, got 7", 0, connected},
	{drbd.CmdData, metaOfLength(drbd.CmdData, 24+512), "socket: wanted data socket, got meta socket", drbd.Disconnecting, connected},
	{drbd.CmdDataReply, sends(drbd.CmdDataReply, drbd.Data{Sector: 8, BlockID: 0x4711}, make([]byte, 512)...), "block_id: wanted that of a read at sector 8, got 0x4711", 0, connected},
	{drbd.CmdRSDataReply, sends(drbd.CmdRSDataReply, drbd.Data{Sector: 8, BlockID: drbd.ResyncID}, make([]byte, 4096)...), noBlock, 0, connected},
	{drbd.CmdRSDataReply, sends(drbd.CmdRSDataReply, drbd.Data{Sector: 1 << 60}, make([]byte, 4096)...), "sector: wanted below 2^51, got 1152921504606846976", 0, connected},
	{drbd.CmdBarrier, ofLength(drbd.CmdBarrier, 4), "length: wanted 8, got 4", 0, connected},
	{drbd.CmdBitmap, sends(drbd.CmdBitmap, drbd.Empty{}, make([]byte, 8)...), "state: wanted WFBitMapS or WFBitMapT, got Connected", 0, connected},
	{drbd.CmdBitmap, ofLength(drbd.CmdBitmap, 4088), "length: wanted 0 to 4080, got 4088", 0, target},
	{drbd.CmdBitmap, func(p *rawPeer) {
		p.send(drbd.CmdBitmap, drbd.Empty{}, make([]byte, 4080)...)
	}, "length: wanted 512, got 4080", 0, target},
	{drbd.CmdBitmap, func(p *rawPeer) {
		for range 2 {
			p.send(drbd.CmdBitmap, drbd.Empty{}, make([]byte, 512)...)
			p.send(drbd.CmdBitmap, drbd.Empty{})
		}
	}, "state: wanted WFBitMapS or WFBitMapT, got WFSyncUUID", 0, target},
	{drbd.CmdUnplugRemote, ofLength(drbd.CmdUnplugRemote, 8), "length: wanted 0, got 8", 0, connected},
	{drbd.CmdDataRequest, sends(drbd.CmdDataRequest, drbd.BlockRequest{}), "blksize: wanted a multiple of 512 from 512 to 1048576, got 0", 0, connected},
	{drbd.CmdDataRequest, beyond(drbd.CmdDataRequest, false, request), outside, 0, connected},
	{drbd.CmdRSDataRequest, sends(drbd.CmdRSDataRequest, drbd.BlockRequest{Size: 2 << 20}), "blksize: wanted a multiple of 512 from 512 to 1048576, got 2097152", 0, connected},
	{drbd.CmdRSDataRequest, beyond(drbd.CmdRSDataRequest, false, request), outside, 0, connected},
	{drbd.CmdSyncParam, sends(drbd.CmdSyncParam, drbd.SyncParam{ResyncRate: 250}), "command: wanted one that the agreed version and features have, got 0x0000000a", 0, connected},
	{drbd.CmdProtocol, sends(drbd.CmdProtocol, drbd.ProtocolPacket{Protocol: 9}), "protocol: wanted 1, 2 or 3, got 9", 0, greeted},
	{drbd.CmdProtocol, sends(drbd.CmdProtocol, drbd.ProtocolPacket{Protocol: 3, AfterSB1P: 99}), "after_sb_1p: wanted at most 10, got 99", 0, greeted},
	{drbd.CmdProtocol, sends(drbd.CmdProtocol, drbd.ProtocolPacket{Protocol: 3, TwoPrimaries: 2}), "two_primaries: wanted 0 or 1, got 2", 0, greeted},
	{drbd.CmdProtocol, ofLength(drbd.CmdProtocol, 25+64), "length: wanted 25 to 88, got 89", 0, greeted},
	{drbd.CmdProtocol, func(p *rawPeer) {
		p.raw(p.data, header(drbd.CmdProtocol, 0, 26), drbd.ProtocolPacket{Protocol: 3, NoIntegrity: true}.Append(nil), []byte("ab"))
	}, `integrity_alg: wanted one string with a NUL at its end, got "ab"`, 0, greeted},
	{drbd.CmdProtocol, sends(drbd.CmdProtocol, drbd.ProtocolPacket{Protocol: 3}), "command: wanted P_PROTOCOL_UPDATE after the first one, got P_PROTOCOL", 0, protocol},
	{drbd.CmdUUIDs, ofLength(drbd.CmdUUIDs, 40), "length: wanted 48, got 40", 0, protocol},
	{drbd.CmdUUIDs, sends(drbd.CmdUUIDs, drbd.UUIDs{}), "command: wanted P_PROTOCOL, got P_UUIDS", 0, greeted},
	{drbd.CmdSizes, sends(drbd.CmdSizes, drbd.Sizes{WSame: true, CSize: 1<<51 + 1}), "c_size: wanted at most 2^51 sectors, got 2251799813685249", 0, protocol},
	{drbd.CmdSizes, sends(drbd.CmdSizes, drbd.Sizes{WSame: true, DSize: 1 << 63}), "d_size: wanted at most 2^51 sectors, got 9223372036854775808", 0, protocol},
	{drbd.CmdSizes, sends(drbd.CmdSizes, drbd.Sizes{WSame: true, USize: 1 << 62}), "u_size: wanted at most 2^51 sectors, got 4611686018427387904", 0, connected},
	{drbd.CmdSizes, sends(drbd.CmdSizes, drbd.Sizes{WSame: true}), "max_bio_size: wanted 512 or more, got 0", 0, protocol},
	{drbd.CmdSizes, sends(drbd.CmdSizes, drbd.Sizes{MaxBioSize: 4096}), "length: wanted 56, got 32", 0, protocol},
	{drbd.CmdState, sends(drbd.CmdState, drbd.StatePacket{Word: 0xffffffff}), "state: wanted a state of DRBD 8.4, got 0xffffffff", 0, uuids},
	{drbd.CmdState, sends(drbd.CmdState, drbd.StatePacket{Word: 0xd080}), "role: wanted Primary or Secondary, got Unknown", 0, uuids},
	{drbd.CmdState, sends(drbd.CmdState, drbd.StatePacket{Word: 0xcc82}), "disk: wanted the state of the peer's own disk, got DUnknown", 0, uuids},
	{drbd.CmdState, sends(drbd.CmdState, drbd.StatePacket{Word: 0xd082}), "command: wanted P_SIZES first, got P_STATE", 0, noSizes},
	{drbd.CmdState, sends(drbd.CmdState, drbd.StatePacket{Word: 0xd082}), "disk: wanted none: no P_UUIDS came before, got UpToDate", 0, noUUIDs},
	{drbd.CmdState, sends(drbd.CmdState, drbd.StatePacket{Word: 0xd082}), "command: wanted P_PROTOCOL, got P_STATE", 0, greeted},
	{drbd.CmdSyncUUID, sends(drbd.CmdSyncUUID, drbd.SyncUUID{UUID: 1}), "state: wanted WFSyncUUID or Behind, got Connected", 0, connected},
	{drbd.CmdAuthChallenge, sends(drbd.CmdAuthChallenge, drbd.Empty{}, make([]byte, 64)...), follows + "P_AUTH_CHALLENGE", 0, connected},
	{drbd.CmdAuthChallenge, sends(drbd.CmdAuthChallenge, drbd.Empty{}, make([]byte, 64)...), "command: wanted P_PROTOCOL: the peer asks for a secret, cram-hmac-alg must be configured on both nodes, got P_AUTH_CHALLENGE", 0, greeted},
	{drbd.CmdAuthResponse, sends(drbd.CmdAuthResponse, drbd.Empty{}, make([]byte, 20)...), follows + "P_AUTH_RESPONSE", 0, connected},
	{drbd.CmdStateChgReq, ofLength(drbd.CmdStateChgReq, 4), "length: wanted 8, got 4", 0, connected},
	{drbd.CmdPing, metaOfLength(drbd.CmdPing, 4), "length: wanted 0, got 4", drbd.NetworkFailure, connected},
	{drbd.CmdPing, sends(drbd.CmdPing, drbd.Empty{}), "socket: wanted meta socket, got data socket", 0, connected},
	{drbd.CmdPing, func(p *rawPeer) {
		b := header(drbd.CmdPing, 0, 0)
		b[15] = 1
		p.raw(p.meta, b)
	}, "header pad: wanted 0, got 0x00000001", drbd.NetworkFailure, connected},
	{drbd.CmdPingAck, metaOfLength(drbd.CmdPingAck, 8), "length: wanted 0, got 8", drbd.NetworkFailure, connected},
	{drbd.CmdRecvAck, answer(drbd.CmdRecvAck, strange), noHandle, drbd.NetworkFailure, connected},
	{drbd.CmdWriteAck, answer(drbd.CmdWriteAck, strange), noHandle, drbd.NetworkFailure, connected},
	{drbd.CmdWriteAck, func(p *rawPeer) { p.raw(p.meta, header(drbd.CmdWriteAck, 3, 24), strange.Append(nil)) }, "volume: wanted a configured volume, got 3", drbd.NetworkFailure, connected},
	{drbd.CmdWriteAck, answer(drbd.CmdWriteAck, strange), "command: wanted P_STATE first, got P_WRITE_ACK", drbd.NetworkFailure, protocol},
	{drbd.CmdRSWriteAck, answer(drbd.CmdRSWriteAck, strange), noHandle, drbd.NetworkFailure, connected},
	{drbd.CmdRSWriteAck, beyond(drbd.CmdRSWriteAck, true, resyncAck), outside, drbd.NetworkFailure, connected},
	{drbd.CmdSuperseded, answer(drbd.CmdSuperseded, strange), "block_id: wanted none: the peer does not resolve conflicts, got 0x4711", drbd.NetworkFailure, connected},
	{drbd.CmdNegAck, answer(drbd.CmdNegAck, strange), noHandle, drbd.NetworkFailure, connected},
	{drbd.CmdNegAck, beyond(drbd.CmdNegAck, true, resyncAck), outside, drbd.NetworkFailure, connected},
	{drbd.CmdNegDReply, answer(drbd.CmdNegDReply, strange), "block_id: wanted that of a read at sector 8, got 0x4711", drbd.NetworkFailure, connected},
	{drbd.CmdNegRSDReply, answer(drbd.CmdNegRSDReply, strange), noBlock, drbd.NetworkFailure, connected},
	{drbd.CmdBarrierAck, answer(drbd.CmdBarrierAck, drbd.BarrierAck{Barrier: 5, SetSize: 1}), "barrier: wanted none: no epoch waits, got 5", 0, connected},
	{drbd.CmdStateChgReply, answer(drbd.CmdStateChgReply, drbd.ReqStateReply{Code: 1}), "retcode: wanted no reply: nothing was asked, got 1", drbd.NetworkFailure, connected},
	{drbd.CmdOVRequest, beyond(drbd.CmdOVRequest, false, request), outside, 0, connected},
	{drbd.CmdOVReply, sends(drbd.CmdOVReply, request(8), make([]byte, 16)...), noBlock, 0, connected},
	{drbd.CmdOVResult, beyond(drbd.CmdOVResult, true, resyncAck), outside, drbd.NetworkFailure, connected},
	{drbd.CmdOVResult, answer(drbd.CmdOVResult, drbd.BlockAck{Sector: 8, BlockID: drbd.OVInSync, Size: 100}), "blksize: wanted a multiple of 512, got 100", drbd.NetworkFailure, connected},
	{drbd.CmdCsumRSRequest, beyond(drbd.CmdCsumRSRequest, false, request, make([]byte, 16)...), outside, 0, connected},
	{drbd.CmdCsumRSRequest, ofLength(drbd.CmdCsumRSRequest, 24), "length: wanted 25 to 88, got 24", 0, connected},
	{drbd.CmdRSIsInSync, answer(drbd.CmdRSIsInSync, strange), noBlock, drbd.NetworkFailure, connected},
	{drbd.CmdSyncParam89, sends(drbd.CmdSyncParam89, drbd.SyncParam89{CPlanAhead: 1 << 31}), "c_plan_ahead: wanted at most 300, got 2147483648", 0, protocol},
	{drbd.CmdSyncParam89, sends(drbd.CmdSyncParam89, drbd.SyncParam89{CMaxRate: 1 << 31}), "c_max_rate: wanted at most 4194304, got 2147483648", 0, connected},
	{drbd.CmdSyncParam89, sends(drbd.CmdSyncParam89, drbd.SyncParam89{CDelayTarget: 101}), "c_delay_target: wanted at most 100, got 101", 0, connected},
	{drbd.CmdSyncParam89, sends(drbd.CmdSyncParam89, drbd.SyncParam89{CFillTarget: 1 << 30}), "c_fill_target: wanted at most 1048576, got 1073741824", 0, connected},
	{drbd.CmdSyncParam89, sends(drbd.CmdSyncParam89, drbd.SyncParam89{ResyncRate: 1 << 30}), "resync_rate: wanted at most 8388608, got 1073741824", 0, connected},
	{drbd.CmdSyncParam89, sends(drbd.CmdSyncParam89, drbd.SyncParam89{VerifyAlg: "rot13"}), `verify_alg: wanted an algorithm that this node has, got "rot13"`, 0, connected},
	{drbd.CmdSyncParam89, sends(drbd.CmdSyncParam89, drbd.SyncParam89{CsumsAlg: "rot13"}), `csums_alg: wanted an algorithm that this node has, got "rot13"`, 0, connected},
	{drbd.CmdCompressedBitmap, sends(drbd.CmdCompressedBitmap, drbd.Empty{}, 0x12, 0), "state: wanted WFBitMapS or WFBitMapT, got Connected", 0, connected},
	{drbd.CmdCompressedBitmap, sends(drbd.CmdCompressedBitmap, drbd.Empty{}, 0x0f, 0), "code: wanted 2, got 15", 0, target},
	{drbd.CmdDelayProbe, ofLength(drbd.CmdDelayProbe, 4), "length: wanted 8, got 4", 0, connected},
	{drbd.CmdOutOfSync, beyond(drbd.CmdOutOfSync, false, func(s drbd.Sector) drbd.Packet { return drbd.BlockDesc{Sector: s, Size: 4096} }), outside, 0, connected},
	{drbd.CmdOutOfSync, sends(drbd.CmdOutOfSync, drbd.BlockDesc{Size: 1 << 30}), "blksize: wanted a multiple of 512 from 512 to 134217728, got 1073741824", 0, connected},
	{drbd.CmdRSCancel, answer(drbd.CmdRSCancel, strange), noBlock, drbd.NetworkFailure, connected},
	{drbd.CmdConnStChgReq, ofLength(drbd.CmdConnStChgReq, 4), "length: wanted 8, got 4", 0, connected},
	{drbd.CmdConnStChgReply, answer(drbd.CmdConnStChgReply, drbd.ReqStateReply{Code: 1}), "retcode: wanted no reply: nothing was asked, got 1", drbd.NetworkFailure, connected},
	{drbd.CmdRetryWrite, answer(drbd.CmdRetryWrite, strange), "block_id: wanted none: the peer does not resolve conflicts, got 0x4711", drbd.NetworkFailure, connected},
	{drbd.CmdProtocolUpdate, sends(drbd.CmdProtocolUpdate, drbd.ProtocolPacket{Protocol: 1, TwoPrimaries: 1}), "protocol: wanted C with allow-two-primaries, got 1", 0, connected},
	{drbd.CmdProtocolUpdate, sends(drbd.CmdProtocolUpdate, drbd.ProtocolPacket{Protocol: 3, AfterSB0P: 11}), "after_sb_0p: wanted at most 10, got 11", 0, connected},
	{drbd.CmdProtocolUpdate, sends(drbd.CmdProtocolUpdate, drbd.ProtocolPacket{Protocol: 3, IntegrityAlg: "rot13"}), `integrity_alg: wanted an algorithm that this node has, got "rot13"`, 0, connected},
	{drbd.CmdProtocolUpdate, sends(drbd.CmdProtocolUpdate, drbd.ProtocolPacket{Protocol: 3}), "command: wanted P_PROTOCOL, got P_PROTOCOL_UPDATE", 0, greeted},
	{drbd.CmdTrim, sends(drbd.CmdTrim, drbd.Trim{}), "size: wanted a multiple of 512 from 512 to 134217728, got 0", 0, connected},
	{drbd.CmdTrim, sends(drbd.CmdTrim, drbd.Trim{Size: 8 << 20}), "size: wanted a multiple of 512 from 512 to 4194304, got 8388608", 0, small},
	{drbd.CmdTrim, sends(drbd.CmdTrim, drbd.Trim{Size: 4096}), "command: wanted none of feature TRIM, which is not agreed, got P_TRIM", 0, plain},
	{drbd.CmdTrim, beyond(drbd.CmdTrim, false, func(s drbd.Sector) drbd.Packet { return drbd.Trim{Data: drbd.Data{Sector: s}, Size: 4096} }), outside, 0, connected},
	{drbd.CmdRSThinReq, beyond(drbd.CmdRSThinReq, false, request), outside, 0, connected},
	{drbd.CmdRSThinReq, sends(drbd.CmdRSThinReq, request(8)), "command: wanted none of feature THIN_RESYNC, which is not agreed, got P_RS_THIN_REQ", 0, plain},
	{drbd.CmdRSDeallocated, sends(drbd.CmdRSDeallocated, drbd.BlockDesc{Sector: 8, Size: 4096}), noBlock, 0, connected},
	{drbd.CmdWSame, sends(drbd.CmdWSame, drbd.Trim{Size: 4096}, make([]byte, 512)...), "command: wanted a packet that this node knows, got P_WSAME", 0, connected},
	{drbd.CmdZeroes, beyond(drbd.CmdZeroes, false, func(s drbd.Sector) drbd.Packet { return drbd.Trim{Data: drbd.Data{Sector: s}, Size: 4096} }), outside, 0, connected},
	{drbd.CmdZeroes, sends(drbd.CmdZeroes, drbd.Trim{Size: 4096}), "command: wanted none of feature WZEROES, which is not agreed, got P_ZEROES", 0, plain},
	{drbd.CmdTerm, sends(drbd.CmdTerm, drbd.TermPacket{}), "command: wanted none: terms are not agreed, got P_TERM", 0, connected},
	{drbd.CmdTerm, sends(drbd.CmdTerm, drbd.TermPacket{Term: 9, Promised: 8}), "term: wanted at most 8, got 9", 0, terms},
	{drbd.CmdInitialMeta, answer(drbd.CmdInitialMeta, drbd.Empty{}), follows + "P_INITIAL_META", drbd.Disconnecting, connected},
	{drbd.CmdInitialData, sends(drbd.CmdInitialData, drbd.Empty{}), follows + "P_INITIAL_DATA", 0, connected},
	{drbd.CmdConnectionFeatures, sends(drbd.CmdConnectionFeatures, drbd.Features{}), follows + "P_CONNECTION_FEATURES", 0, connected},
	{0x35, sends(0x35, drbd.Empty{}), "command: wanted a packet of DRBD 8.4, got 0x00000035", 0, connected},
	{0x35, answer(0x35, drbd.Empty{}), "command: wanted a packet of DRBD 8.4, got 0x00000035", drbd.Disconnecting, connected},
	{drbd.NoCommand, func(p *rawPeer) { p.raw(p.data, []byte("GET / HTTP/1.1\r\n")) }, "magic: wanted 0x8620ec20, got 0x47455420", 0, connected},
	{drbd.NoCommand, func(p *rawPeer) { p.raw(p.data, drbd.AppendHeader80(nil, drbd.CmdPing, 8), make([]byte, 8)) }, "magic: wanted 0x8620ec20, got 0x83740267", 0, greeted},
	{drbd.NoCommand, func(p *rawPeer) { p.raw(p.meta, make([]byte, 16)) }, "magic: wanted 0x8620ec20, got 0x00000000", drbd.NetworkFailure, connected},
}

// connEvents collects the states that the connection of a node goes through.
type connEvents struct {
	mu    sync.Mutex
	conns []drbd.ConnState
}

func (c *connEvents) watch(n *node) {
	n.t.Cleanup(n.Subscribe(func(ev Event) {
		if ev.Kind == "state" && ev.From.Conn != ev.To.Conn {
			c.mu.Lock()
			c.conns = append(c.conns, ev.To.Conn)
			c.mu.Unlock()
		}
	}))
}

func (c *connEvents) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = nil
}

// wait waits for a state after reset.
func (c *connEvents) wait(t *testing.T, want drbd.ConnState) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		seen := fmt.Sprintf("%v", c.conns)
		for _, s := range c.conns {
			if s == want {
				c.mu.Unlock()
				return
			}
		}
		c.mu.Unlock()
		if time.Now().After(end) {
			t.Fatalf("the connection went through %s, want %v among them", seen, want)
		}
	}
}

// shorter is by how much the pauses before a peer that broke the protocol are
// shorter than they are in earnest: the violations of a table are many.
const shorter = 1000

// rawNode is a node with good data whose peer the test plays.
func rawNode(t *testing.T, change func(*Config)) *node {
	t.Helper()
	n, _ := newPair(t, func(c *Config) {
		c.Net.SockCheckMS = 10
		c.Net.VerifyAlg, c.Net.CsumsAlg = "md5", "md5"
		if change != nil {
			change(c)
		}
	})
	n.outcast1 = func(row int) time.Duration { return outcast(row) / shorter }
	n.up()
	if err := n.Primary(true); err != nil {
		t.Fatal(err)
	}
	return n
}

// expected fills in the size of the volume.
func (r *violationRow) expected(size drbd.Sector) string {
	want := r.want
	if want == outside {
		want = fmt.Sprintf("sector: wanted a range of 8 sectors that ends at %d at most, got %d", size, size-7)
	}
	return r.cmd.String() + ": " + want
}

// TestViolations plays every row against a node: the connection ends in DRBD's
// state with a reason that names packet and field, disk and generation are as
// for any lost connection, and the node takes its peer back.
func TestViolations(t *testing.T) {
	n := rawNode(t, nil)
	if err := n.Secondary(); err != nil {
		t.Fatal(err)
	}
	var events connEvents
	events.watch(n)
	size := drbd.Sector(n.Status().Volumes[0].SizeBytes / 512)
	for i := range violations {
		r := &violations[i]
		want := r.expected(size)
		t.Run(fmt.Sprintf("%d %s", i, want), func(t *testing.T) {
			n.t = t
			playViolation(t, n, &events, r, want)
		})
	}
	if s := n.Status(); s.Violations == 0 || s.Violation == "" || s.ViolationAt.IsZero() {
		t.Errorf("the status tells of no violation: %+v", s)
	}
}

func playViolation(t *testing.T, n *node, events *connEvents, r *violationRow, want string) {
	before := n.Status()
	if before.Conn == drbd.StandAlone {
		if err := n.Connect(ConnectOptions{}); err != nil {
			t.Fatal(err)
		}
		if s := n.Status(); s.Violations != 0 {
			t.Errorf("%d violations are still told of after connect", s.Violations)
		}
	}
	features := r.set.features
	if features == 0 {
		features = kernelFeatures
	}
	p := dialRaw(n, features)
	defer p.close()
	if w := r.set.word; w != nil {
		p.handshake(*w)
		if r.set.in != 0 {
			n.await(fmt.Sprint(r.set.in), func(s Status) bool { return s.Volumes[0].Conn == r.set.in })
		}
	}
	events.reset()
	r.do(p)
	end := r.conn
	if end == 0 {
		end = drbd.ProtocolFailure
	}
	events.wait(t, end)
	after := drbd.WFConnection
	if end == drbd.Disconnecting {
		after = drbd.StandAlone
	}
	n.await(fmt.Sprint(after), func(s Status) bool { return s.Conn == after })
	s := n.Status()
	if text := fmt.Sprintf("connection lost (%v): ", end) + want; !strings.HasPrefix(s.LastError, text[:strings.Index(text, ": P")+1]) || !strings.HasSuffix(s.LastError, want) {
		t.Errorf("last error %q\nwant       %q", s.LastError, text)
	}
	if s.Violation != want {
		t.Errorf("violation %q, want %q", s.Violation, want)
	}
	disk := drbd.UpToDate
	if r.set.in == drbd.WFBitMapT {
		disk = drbd.Outdated // it has heard that there is a newer generation
	}
	if v, b := s.Volumes[0], before.Volumes[0]; v.Disk != disk || v.UUIDs != b.UUIDs || v.SizeBytes != b.SizeBytes {
		t.Errorf("%v %+v %d bytes now, want %v %+v %d", v.Disk, v.UUIDs, v.SizeBytes, disk, b.UUIDs, b.SizeBytes)
	}
}

// TestViolationsCoverTheProtocol: a packet that the protocol gets has to get a row.
func TestViolationsCoverTheProtocol(t *testing.T) {
	has := map[drbd.Command]bool{}
	for _, r := range violations {
		has[r.cmd] = true
	}
	n := 0
	for cmd := range drbd.NoCommand {
		if drbd.FixedLen(cmd) >= 0 {
			if n++; !has[cmd] {
				t.Errorf("no row for %v", cmd)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d packets are known", n)
	}
}
