package drbd_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pollux-project/pollux/protocol/drbd"
)

func TestHeaderRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		decode func([]byte) (drbd.Header, error)
		bytes  string
		want   string
	}{
		{"short h80", drbd.DecodeHeader80, "83740267fff200", "packet header: length of the header: wanted 8, got 7"},
		{"short h100", drbd.DecodeHeader100, "8620ec20000000000000000000", "packet header: length of the header: wanted 16, got 13"},
		{"h100 for h80", drbd.DecodeHeader80, "8620ec2000000000", "packet header: magic: wanted 0x83740267 or 0x835a (an 8-byte header), got 0x8620ec20"},
		{"h80 for h100", drbd.DecodeHeader100, "83740267000000000000000000000000", "packet header: magic: wanted 0x8620ec20, got 0x83740267"},
		{"h95 for h100", drbd.DecodeHeader100, "835a0000000100180000000000000000", "packet header: magic: wanted 0x8620ec20, got 0x835a0000"},
		{"pad", drbd.DecodeHeader100, "8620ec20000000130000000000000001", "P_PING: header pad: wanted 0, got 0x00000001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.decode(unhex(t, tt.bytes))
			var pe *drbd.ProtocolError
			if !errors.As(err, &pe) || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func TestAppendHeader80Panics(t *testing.T) {
	for _, length := range []int{-1, 1 << 16} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a length of %d does not panic", length)
				}
			}()
			drbd.AppendHeader80(nil, drbd.CmdProtocol, length)
		}()
	}
}

// TestCheckLength has the border of every packet: all lengths in ok are taken,
// all in bad refused, with WSAME agreed.
func TestCheckLength(t *testing.T) {
	const data = drbd.DataSocket
	const meta = drbd.MetaSocket
	exactly := func(n uint32) (ok, bad []uint32) {
		ok, bad = []uint32{n}, []uint32{n + 1, n + 8, math.MaxUint32}
		if n > 0 {
			bad = append(bad, 0, n-1)
		}
		return ok, bad
	}
	type row struct {
		socket  drbd.Socket
		ok, bad []uint32
	}
	rows := map[drbd.Command]row{
		drbd.CmdBitmap:           {data, []uint32{0, 8, 4080}, []uint32{1, 4, 4076, 4081, 4088, math.MaxUint32}},
		drbd.CmdCompressedBitmap: {data, []uint32{2, 3, 4080}, []uint32{0, 1, 4081, math.MaxUint32}},
		drbd.CmdProtocol:         {data, []uint32{25, 31, 88}, []uint32{0, 24, 89, math.MaxUint32}},
		drbd.CmdProtocolUpdate:   {data, []uint32{25, 31, 88}, []uint32{0, 24, 89, math.MaxUint32}},
		drbd.CmdSizes:            {data, []uint32{56}, []uint32{0, 31, 32, 40, 55, 57, math.MaxUint32}},
		drbd.CmdAuthChallenge:    {data, []uint32{64, 128}, []uint32{0, 63, 129, math.MaxUint32}},
		drbd.CmdAuthResponse:     {data, []uint32{16, 20, 32, 64}, []uint32{0, 65, math.MaxUint32}},
		drbd.CmdOVReply:          {data, []uint32{28, 44, 88}, []uint32{0, 24, 89, math.MaxUint32}},
		drbd.CmdCsumRSRequest:    {data, []uint32{28, 44, 88}, []uint32{0, 24, 89, math.MaxUint32}},
		drbd.CmdWSame:            {data, []uint32{28 + 512, 28 + 20 + 4096}, []uint32{28, 28 + 511, 28 + 8192, math.MaxUint32}},
	}
	for _, cmd := range []drbd.Command{drbd.CmdData, drbd.CmdDataReply, drbd.CmdRSDataReply} {
		rows[cmd] = row{
			data,
			[]uint32{24 + 512, 24 + 4 + 4096, 24 + 1<<20, 24 + 64 + 1<<20},
			[]uint32{0, 23, 24, 24 + 511, 24 + 65 + 512, 24 + 65 + 1<<20, 24 + 512 + 1<<20, math.MaxUint32},
		}
	}
	fixed := map[drbd.Socket]map[uint32][]drbd.Command{
		data: {
			0:   {drbd.CmdUnplugRemote, drbd.CmdInitialData},
			4:   {drbd.CmdState},
			8:   {drbd.CmdBarrier, drbd.CmdSyncUUID, drbd.CmdStateChgReq, drbd.CmdConnStChgReq},
			16:  {drbd.CmdOutOfSync, drbd.CmdRSDeallocated},
			24:  {drbd.CmdTerm, drbd.CmdDataRequest, drbd.CmdRSDataRequest, drbd.CmdRSThinReq, drbd.CmdOVRequest},
			28:  {drbd.CmdTrim, drbd.CmdZeroes},
			48:  {drbd.CmdUUIDs},
			72:  {drbd.CmdConnectionFeatures},
			148: {drbd.CmdSyncParam89},
		},
		meta: {
			0: {drbd.CmdPing, drbd.CmdPingAck, drbd.CmdInitialMeta},
			4: {drbd.CmdStateChgReply, drbd.CmdConnStChgReply},
			8: {drbd.CmdBarrierAck},
			24: {
				drbd.CmdRecvAck, drbd.CmdWriteAck, drbd.CmdRSWriteAck, drbd.CmdSuperseded, drbd.CmdNegAck, drbd.CmdNegDReply,
				drbd.CmdNegRSDReply, drbd.CmdOVResult, drbd.CmdRSIsInSync, drbd.CmdRSCancel, drbd.CmdRetryWrite,
			},
		},
	}
	for socket, lengths := range fixed {
		for n, cmds := range lengths {
			for _, cmd := range cmds {
				ok, bad := exactly(n)
				rows[cmd] = row{socket, ok, bad}
			}
		}
	}
	for cmd := range drbd.NoCommand {
		r, known := rows[cmd]
		switch {
		case cmd == drbd.CmdDelayProbe: // on both sockets
			for _, s := range []drbd.Socket{data, meta} {
				if drbd.CheckLength(drbd.Header{Command: cmd, Length: 8}, true, s) != nil ||
					drbd.CheckLength(drbd.Header{Command: cmd, Length: 9}, true, s) == nil {
					t.Errorf("%v on the %v", cmd, s)
				}
			}
		case !known:
			for _, s := range []drbd.Socket{data, meta} {
				for _, n := range []uint32{0, 4, 8, 24} {
					if drbd.CheckLength(drbd.Header{Command: cmd, Length: n}, true, s) == nil {
						t.Errorf("%v is taken on the %v", cmd, s)
					}
				}
			}
		default:
			for _, n := range r.ok {
				checkLength(t, drbd.Header{Command: cmd, Length: n}, r.socket, true)
				checkLength(t, drbd.Header{Command: cmd, Length: n}, 1-r.socket, false)
			}
			for _, n := range r.bad {
				checkLength(t, drbd.Header{Command: cmd, Length: n}, r.socket, false)
			}
		}
	}
}

func checkLength(t *testing.T, h drbd.Header, socket drbd.Socket, want bool) {
	t.Helper()
	err := drbd.CheckLength(h, true, socket)
	var pe *drbd.ProtocolError
	if got := err == nil; got != want || !got && (!errors.As(err, &pe) || pe.Packet != h.Command || pe.Field == "") {
		t.Errorf("%v with %d bytes on the %v: %v", h.Command, h.Length, socket, err)
	}
}

// TestCheckLengthWithoutWSame: the shorter P_SIZES, and no P_WSAME at all.
func TestCheckLengthWithoutWSame(t *testing.T) {
	for _, tt := range []struct {
		h    drbd.Header
		want string
	}{
		{drbd.Header{Command: drbd.CmdSizes, Length: 32}, ""},
		{drbd.Header{Command: drbd.CmdSizes, Length: 56}, "P_SIZES: length: wanted 32, got 56"},
		{drbd.Header{Command: drbd.CmdWSame, Length: 28 + 512}, "P_WSAME: command: wanted one that the agreed version and features have, got 0x00000034"},
		{drbd.Header{Command: drbd.CmdSyncParam, Length: 4}, "P_SYNC_PARAM: command: wanted one that the agreed version and features have, got 0x0000000a"},
		{drbd.Header{Command: 0x35, Length: 0}, "packet 0x0035: command: wanted a packet of DRBD 8.4, got 0x00000035"},
		{drbd.Header{Command: drbd.CmdPing}, "P_PING: socket: wanted meta socket, got data socket"},
		{drbd.Header{Command: drbd.CmdUUIDs, Length: 1 << 31}, "P_UUIDS: length: wanted 48, got 2147483648"},
		{drbd.Header{Command: drbd.CmdData, Length: 8}, "P_DATA: length: wanted 536 to 1048664, got 8"},
	} {
		got := ""
		if err := drbd.CheckLength(tt.h, false, drbd.DataSocket); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.h, got, tt.want)
		}
	}
}

func TestDataSize(t *testing.T) {
	for _, tt := range []struct {
		cmd    drbd.Command
		length uint32
		digest int
		want   uint32 // 0: refused
	}{
		{drbd.CmdData, 24 + 512, 0, 512},
		{drbd.CmdData, 24 + 20 + 4096, 20, 4096},
		{drbd.CmdData, 24 + 64 + 1<<20, 64, 1 << 20},
		{drbd.CmdRSDataReply, 24 + 512 + 1<<20, 0, 0},
		{drbd.CmdData, 24 + 20 + 4096, 0, 0},
		{drbd.CmdData, 24 + 4096, 20, 0},
		{drbd.CmdData, 24, 0, 0},
		{drbd.CmdData, 24, 20, 0},
		{drbd.CmdData, 0, 0, 0},
		{drbd.CmdWSame, 28 + 4096, 0, 4096},
		{drbd.CmdWSame, 28 + 8192, 0, 0},
	} {
		got, err := drbd.DataSize(drbd.Header{Command: tt.cmd, Length: tt.length}, tt.digest)
		var pe *drbd.ProtocolError
		if got != tt.want || (err == nil) != (tt.want != 0) || err != nil && (!errors.As(err, &pe) || pe.Packet != tt.cmd) {
			t.Errorf("%v with %d bytes, digest %d: %d, %v, want %d", tt.cmd, tt.length, tt.digest, got, err, tt.want)
		}
	}
}

// drawPacket draws a packet of every kind that Decode takes, with its command.
func drawPacket(t *rapid.T) (drbd.Command, drbd.Packet) {
	sector := drbd.Sector(rapid.Uint64Max(1<<51-1).Draw(t, "sector"))
	id := rapid.Uint64().Draw(t, "id")
	u32 := func(name string) uint32 { return rapid.Uint32().Draw(t, name) }
	u64 := func(name string) uint64 { return rapid.Uint64().Draw(t, name) }
	size := func(limit uint32) uint32 { return 512 * rapid.Uint32Range(1, limit/512).Draw(t, "size") }
	name := rapid.StringMatching(`[a-z0-9()-]{0,63}`)
	data := drbd.Data{Sector: sector, BlockID: id, Seq: u32("seq"), Flags: drbd.DPFlags(u32("flags"))}
	type kind struct {
		cmd  drbd.Command
		make func() drbd.Packet
	}
	k := rapid.SampledFrom([]kind{
		{drbd.CmdData, func() drbd.Packet { return &data }},
		{drbd.CmdTrim, func() drbd.Packet { return &drbd.Trim{Data: data, Size: size(drbd.MaxDiscardSize)} }},
		{drbd.CmdNegAck, func() drbd.Packet {
			return &drbd.BlockAck{Sector: sector, BlockID: id, Size: u32("size"), Seq: u32("seq")}
		}},
		{drbd.CmdDataRequest, func() drbd.Packet {
			return &drbd.BlockRequest{Sector: sector, BlockID: id, Size: size(drbd.MaxRequestSize), Pad: u32("pad")}
		}},
		{drbd.CmdOutOfSync, func() drbd.Packet {
			return &drbd.BlockDesc{Sector: sector, Size: size(drbd.MaxDiscardSize), Pad: u32("pad")}
		}},
		{drbd.CmdBarrier, func() drbd.Packet { return &drbd.Barrier{Barrier: u32("barrier")} }},
		{drbd.CmdBarrierAck, func() drbd.Packet { return &drbd.BarrierAck{Barrier: u32("barrier"), SetSize: u32("set_size")} }},
		{drbd.CmdDelayProbe, func() drbd.Packet { return &drbd.DelayProbe{Seq: u32("seq"), Offset: u32("offset")} }},
		{drbd.CmdStateChgReq, func() drbd.Packet { return &drbd.ReqState{Mask: u32("mask"), Val: u32("val")} }},
		{drbd.CmdConnStChgReply, func() drbd.Packet { return &drbd.ReqStateReply{Code: int32(u32("code"))} }},
		{drbd.CmdState, func() drbd.Packet { return &drbd.StatePacket{Word: u32("word")} }},
		{drbd.CmdSyncUUID, func() drbd.Packet { return &drbd.SyncUUID{UUID: u64("uuid")} }},
		{drbd.CmdUUIDs, func() drbd.Packet {
			return &drbd.UUIDs{
				Current: u64("c"), Bitmap: u64("b"), History: [2]uint64{u64("h1"), u64("h2")},
				DirtyBits: u64("bits"), Flags: u64("flags"),
			}
		}},
		{drbd.CmdTerm, func() drbd.Packet {
			p := u64("promised")
			return &drbd.TermPacket{Term: p / 2, Promised: p, Flags: u32("flags"), Ask: u32("ask")}
		}},
		{drbd.CmdConnectionFeatures, func() drbd.Packet {
			return &drbd.Features{Min: u32("min"), Flags: u32("flags"), Max: u32("max")}
		}},
		{drbd.CmdSizes, func() drbd.Packet {
			return &drbd.Sizes{
				DSize: sector, USize: sector / 2, CSize: sector / 3, MaxBioSize: u32("max bio"),
				QueueOrderType: uint16(u32("order")), DDSFlags: uint16(u32("dds")), WSame: true,
				PhysicalBlockSize: u32("phys"), LogicalBlockSize: u32("log"), AlignmentOffset: u32("align"),
				IOMin: u32("min"), IOOpt: u32("opt"), DiscardEnabled: uint8(u32("discard")),
				DiscardZeroesData: uint8(u32("zeroes")), WriteSameCapable: uint8(u32("same")),
			}
		}},
		{drbd.CmdProtocol, func() drbd.Packet {
			return &drbd.ProtocolPacket{
				Protocol: u32("protocol"), AfterSB0P: u32("0p"), AfterSB1P: u32("1p"), AfterSB2P: u32("2p"),
				ConnFlags: u32("flags"), TwoPrimaries: u32("two"), IntegrityAlg: name.Draw(t, "alg"),
			}
		}},
		{drbd.CmdSyncParam89, func() drbd.Packet {
			return &drbd.SyncParam89{
				ResyncRate: u32("rate"), VerifyAlg: name.Draw(t, "verify"), CsumsAlg: name.Draw(t, "csums"),
				CPlanAhead: u32("plan"), CDelayTarget: u32("delay"), CFillTarget: u32("fill"), CMaxRate: u32("max"),
			}
		}},
		{drbd.CmdPing, func() drbd.Packet { return drbd.Empty{} }},
	}).Draw(t, "kind")
	return k.cmd, k.make()
}

// TestRoundTrip: Decode(Append(p)) == p for every kind of packet, appended
// behind other bytes; its length is FixedLen, and every cut of it is refused.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cmd, p := drawPacket(t)
		payload := p.Append([]byte("before"))[len("before"):]
		if n := drbd.FixedLen(cmd); n > len(payload) {
			t.Fatalf("%v has %d bytes, FixedLen %d", cmd, len(payload), n)
		}
		h := drbd.Header{Command: cmd, Length: uint32(len(payload))}
		got, rest, err := drbd.Decode(h, payload, true)
		if err != nil || len(rest) != 0 {
			t.Fatalf("decode: %v, rest %x", err, rest)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			t.Fatalf("(-encoded +decoded):\n%s", diff)
		}
		for n := range payload {
			if cmd == drbd.CmdSyncParam89 && n == 132 || cmd == drbd.CmdProtocol && n == 24 {
				continue // the form of an older version
			}
			_, _, err := drbd.Decode(h, payload[:n], true)
			var pe *drbd.ProtocolError
			if !errors.As(err, &pe) || pe.Packet != cmd {
				t.Fatalf("%v cut to %d bytes: %v", cmd, n, err)
			}
		}
	})
}

// TestOldForms are the packets of versions before 100 that captures have.
func TestOldForms(t *testing.T) {
	for _, tt := range []struct {
		cmd    drbd.Command
		packet drbd.Packet
		length int
	}{
		{drbd.CmdProtocol, &drbd.ProtocolPacket{Protocol: 3, NoIntegrity: true}, 24},
		{drbd.CmdSyncParam, &drbd.SyncParam{ResyncRate: 250}, 4},
		{drbd.CmdSyncParam, &drbd.SyncParam{ResyncRate: 250, VerifyAlg: "sha1", V88: true}, 9},
		{drbd.CmdSyncParam89, &drbd.SyncParam89{ResyncRate: 250, VerifyAlg: "sha1", CsumsAlg: "md5", V94: true}, 132},
		{drbd.CmdSizes, &drbd.Sizes{DSize: 100, CSize: 100, MaxBioSize: 4096}, 32},
	} {
		payload := tt.packet.Append(nil)
		got, _, err := drbd.Decode(drbd.Header{Command: tt.cmd, Length: uint32(len(payload))}, payload, false)
		if diff := cmp.Diff(tt.packet, got); diff != "" || err != nil || len(payload) != tt.length {
			t.Errorf("%v: %d bytes, %v (-encoded +decoded):\n%s", tt.cmd, len(payload), err, diff)
		}
	}
}

// TestDecodeRefuses are values inside packets of the right length.
func TestDecodeRefuses(t *testing.T) {
	long := strings.Repeat("61", 64)
	zeroes := func(n int) string { return strings.Repeat("00", n) }
	for _, tt := range []struct {
		name  string
		cmd   drbd.Command
		bytes string
		want  string
	}{
		{"unknown", 0x25, "", "packet 0x0025: command: wanted a packet of DRBD 8.4, got 0x00000025"},
		{"no command", drbd.NoCommand, "", "packet header: command: wanted a packet of DRBD 8.4, got 0x0000ffff"},
		{"surplus", drbd.CmdState, zeroes(5), "P_STATE: length: wanted 4, got 5"},
		{"payload of an empty packet", drbd.CmdPing, "00", "P_PING: length: wanted 0, got 1"},
		{"no size", drbd.CmdRSDataRequest, zeroes(24), "P_RS_DATA_REQUEST: blksize: wanted a multiple of 512 from 512 to 1048576, got 0"},
		{"part of a sector", drbd.CmdOVRequest, zeroes(16) + "00000201" + zeroes(4), "P_OV_REQUEST: blksize: wanted a multiple of 512 from 512 to 1048576, got 513"},
		{"too large", drbd.CmdRSThinReq, zeroes(16) + "00100200" + zeroes(4), "P_RS_THIN_REQ: blksize: wanted a multiple of 512 from 512 to 1048576, got 1049088"},
		{"sector", drbd.CmdWriteAck, "0008" + zeroes(22), "P_WRITE_ACK: sector: wanted below 2^51, got 2251799813685248"},
		{"sector of data", drbd.CmdRSDataReply, "ff" + zeroes(23), "P_RS_DATA_REPLY: sector: wanted below 2^51, got 18374686479671623680"},
		{"sector of a trim", drbd.CmdZeroes, "ff" + zeroes(27), "P_ZEROES: sector: wanted below 2^51, got 18374686479671623680"},
		{"trim without WSAME", drbd.CmdTrim, zeroes(24) + "00400200", "P_TRIM: size: wanted a multiple of 512 from 512 to 4194304, got 4194816"},
		{"range", drbd.CmdOutOfSync, zeroes(8) + "08000200" + zeroes(4), "P_OUT_OF_SYNC: blksize: wanted a multiple of 512 from 512 to 134217728, got 134218240"},
		{"device size", drbd.CmdSizes, "0008000000000001" + zeroes(24), "P_SIZES: d_size: wanted at most 2^51 sectors, got 2251799813685249"},
		{"name without end", drbd.CmdProtocol, zeroes(24) + "6162", `P_PROTOCOL: integrity_alg: wanted one string with a NUL at its end, got "ab"`},
		{"two names", drbd.CmdProtocolUpdate, zeroes(24) + "61006200", `P_PROTOCOL_UPDATE: integrity_alg: wanted one string with a NUL at its end, got "a\x00b\x00"`},
		{"long name", drbd.CmdProtocol, zeroes(24) + long + "00", "P_PROTOCOL: length: wanted 25 to 88, got 89"},
		{"no NUL", drbd.CmdSyncParam89, zeroes(68) + long + zeroes(16), `P_SYNC_PARAM89: csums_alg: wanted a NUL-terminated string, got "` + strings.Repeat("a", 64) + `"`},
		{"no NUL", drbd.CmdSyncParam89, zeroes(4) + long + zeroes(80), `P_SYNC_PARAM89: verify_alg: wanted a NUL-terminated string, got "` + strings.Repeat("a", 64) + `"`},
		{"old name without end", drbd.CmdSyncParam, zeroes(4) + "61", `P_SYNC_PARAM: verify_alg: wanted one string with a NUL at its end, got "a"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			payload := unhex(t, tt.bytes)
			p, rest, err := drbd.Decode(drbd.Header{Command: tt.cmd, Length: uint32(len(payload))}, payload, false)
			if p != nil || rest != nil || err == nil || err.Error() != tt.want {
				t.Errorf("%v, %x, error %v\nwant %s", p, rest, err, tt.want)
			}
		})
	}
}

// TestShort: Decode of a struct refuses a buffer that ends too early, as it
// refuses none of the right length.
func TestShort(t *testing.T) {
	for n, p := range map[int][]interface{ Decode(b []byte) error }{
		4:   {&drbd.StatePacket{}, &drbd.ReqStateReply{}},
		8:   {&drbd.Barrier{}, &drbd.BarrierAck{}, &drbd.DelayProbe{}, &drbd.ReqState{}, &drbd.SyncUUID{}},
		24:  {&drbd.Data{}, &drbd.BlockAck{}, &drbd.TermPacket{}},
		32:  {&drbd.Sizes{}},
		48:  {&drbd.UUIDs{}},
		72:  {&drbd.Features{}},
		148: {&drbd.SyncParam89{}},
	} {
		for _, p := range p {
			if err := p.Decode(make([]byte, n)); err != nil {
				t.Errorf("%T of %d bytes: %v", p, n, err)
			}
			if err := p.Decode(make([]byte, n-1)); err == nil {
				t.Errorf("%T of %d bytes is taken", p, n-1)
			}
		}
	}
}

// TestBlockAckSize: the size of an ack is the peer's claim, and judged on demand.
func TestBlockAckSize(t *testing.T) {
	for size, want := range map[uint32]bool{0: false, 512: true, 513: false, 128 << 20: true, 128<<20 + 512: false, 0xffffffec: false} {
		a := drbd.BlockAck{Sector: 8, Size: size}
		var got drbd.BlockAck
		if err := got.Decode(a.Append(nil)); err != nil || got != a {
			t.Errorf("size %#x: %+v, %v", size, got, err)
		}
		if err := got.CheckSize(drbd.CmdNegAck); (err == nil) != want {
			t.Errorf("size %#x: %v", size, err)
		}
	}
}

func TestNamesPanic(t *testing.T) {
	for _, p := range []drbd.Packet{
		drbd.ProtocolPacket{IntegrityAlg: strings.Repeat("a", 64)},
		drbd.SyncParam89{VerifyAlg: "a\x00b"},
		drbd.SyncParam{V88: true, VerifyAlg: strings.Repeat("a", 64)},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v does not panic", p)
				}
			}()
			p.Append(nil)
		}()
	}
}

func TestAgree(t *testing.T) {
	mine := drbd.Features{Min: 100, Flags: 0x0f | drbd.FeaturePollux, Max: 101}
	for _, tt := range []struct {
		name    string
		peer    drbd.Features
		version int
		flags   uint32
		refused bool
	}{
		{"Linux 6.1", drbd.Features{Min: 86, Flags: 15, Max: 101}, 101, 15, false},
		{"our own kind", mine, 101, 0x8000000f, false},
		{"newer", drbd.Features{Min: 86, Flags: 0x13, Max: 121}, 101, 3, false},
		{"8.4.0", drbd.Features{Min: 86, Max: 100}, 100, 0, false},
		{"only one version", drbd.Features{Min: 100}, 100, 0, false},
		{"8.3", drbd.Features{Min: 86, Max: 97}, 0, 0, true},
		{"9 alone", drbd.Features{Min: 110, Max: 121}, 0, 0, true},
		{"nothing", drbd.Features{}, 0, 0, true},
	} {
		version, flags, err := drbd.Agree(mine, tt.peer)
		var ve *drbd.VersionError
		if version != tt.version || flags != tt.flags || errors.As(err, &ve) != tt.refused {
			t.Errorf("%s: %d, %#x, %v", tt.name, version, flags, err)
		}
	}
}

func TestDigests(t *testing.T) {
	// "123456789" is the usual check input; the check value of CRC-32C is e3069283.
	for alg, want := range map[string]string{
		"crc32c": "839206e3",
		"md5":    "25f9e794323b453885f5181f1b624d0b",
		"sha1":   "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
	} {
		d, err := drbd.NewDigest(alg)
		if err != nil {
			t.Fatal(err)
		}
		d.Write([]byte("123456789"))
		if got := d.Sum([]byte{7}); !bytes.Equal(got, append([]byte{7}, unhex(t, want)...)) || d.Size() != len(got)-1 {
			t.Errorf("%s is %x, want %s", alg, got, want)
		}
	}
	for alg, size := range map[string]int{"sha256": 32, "sha384": 48, "sha512": 64} {
		if d, err := drbd.NewDigest(alg); err != nil || d.Size() != size || size > drbd.MaxDigestSize {
			t.Errorf("%s: %v", alg, err)
		}
	}
	for _, alg := range []string{"", "crc32", "SHA1", "hmac(sha1)"} {
		var ae *drbd.AlgorithmError
		if _, err := drbd.NewDigest(alg); !errors.As(err, &ae) || ae.For != "digest" {
			t.Errorf("digest %q: %v", alg, err)
		}
		if _, err := drbd.AuthResponse(alg, "secret", nil); !errors.As(err, &ae) || ae.For != "MAC" {
			t.Errorf("MAC %q: %v", alg, err)
		}
	}
	if _, err := drbd.AuthResponse("crc32c", "secret", nil); err == nil {
		t.Error("crc32c is taken for a MAC")
	}
}

func TestCheckAuthResponse(t *testing.T) {
	mine := sha256.Sum256([]byte("a challenge"))
	good, err := drbd.AuthResponse("sha256", "secret", mine[:])
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	bad[31] ^= 1
	for _, tt := range []struct {
		response []byte
		want     drbd.AuthResult
	}{{good, drbd.AuthOK}, {bad, drbd.AuthRefused}, {good[:20], drbd.AuthWrongSize}, {nil, drbd.AuthWrongSize}} {
		if got, err := drbd.CheckAuthResponse("sha256", "secret", mine[:], tt.response); got != tt.want || err != nil {
			t.Errorf("%x: %d, %v, want %d", tt.response, got, err, tt.want)
		}
	}
	if got, err := drbd.CheckAuthResponse("none", "secret", mine[:], good); got != drbd.AuthRefused || err == nil {
		t.Errorf("unknown algorithm: %d, %v", got, err)
	}
	if !drbd.AuthReflected(mine[:], append(bytes.Clone(mine[:]), 1)) || drbd.AuthReflected(mine[:], good) || drbd.AuthReflected(mine[:], nil) {
		t.Error("AuthReflected")
	}
}

func TestSector(t *testing.T) {
	if got := drbd.Sector(1<<51 - 1).Bytes(); got != 1<<60-512 {
		t.Errorf("last sector is at %d", got)
	}
	if drbd.SectorOf(4096) != 8 || drbd.SectorOf(4095) != 7 || drbd.SectorOf(0) != 0 {
		t.Error("SectorOf")
	}
}

// TestAllocs holds everything that passes once per request at no allocation.
func TestAllocs(t *testing.T) {
	buf := make([]byte, 0, 256)
	data := drbd.Data{Sector: 8, BlockID: 1, Seq: 2, Flags: drbd.DPFUA}
	trim := drbd.Trim{Data: data, Size: 4096}
	ack := drbd.BlockAck{Sector: 8, BlockID: 1, Size: 4096, Seq: 3}
	req := drbd.BlockRequest{Sector: 8, BlockID: 1, Size: 4096}
	desc := drbd.BlockDesc{Sector: 8, Size: 4096}
	barrier := drbd.Barrier{Barrier: 5}
	barrierAck := drbd.BarrierAck{Barrier: 5, SetSize: 6}
	failed := false
	n := testing.AllocsPerRun(100, func() {
		h := drbd.Header{Command: drbd.CmdData, Volume: 1, Length: 24 + 20 + 4096}
		got, err := drbd.DecodeHeader100(drbd.AppendHeader100(buf, h))
		failed = failed || err != nil || got != h || drbd.CheckLength(got, true, drbd.DataSocket) != nil
		size, err := drbd.DataSize(got, 20)
		failed = failed || err != nil || size != 4096
		h8, err := drbd.DecodeHeader80(drbd.AppendHeader80(buf, drbd.CmdData, 4096))
		failed = failed || err != nil || h8.Length != 4096
		failed = failed || data.Decode(data.Append(buf)) != nil || trim.Decode(trim.Append(buf)) != nil ||
			ack.Decode(ack.Append(buf)) != nil || req.Decode(req.Append(buf)) != nil || desc.Decode(desc.Append(buf)) != nil ||
			barrier.Decode(barrier.Append(buf)) != nil || barrierAck.Decode(barrierAck.Append(buf)) != nil
	})
	if n != 0 || failed {
		t.Errorf("%v allocations, failed %v", n, failed)
	}
	src, sink := newNaiveBits(100_000, 5), newNaiveBits(100_000)
	packet := make([]byte, drbd.MaxBitmapSize)
	for _, useRLE := range []bool{false, true} {
		n := testing.AllocsPerRun(10, func() {
			s, r := drbd.NewBitmapSender(src, useRLE), drbd.NewBitmapReceiver(sink)
			for done := false; !done; {
				cmd, payload, last := s.Next(packet)
				if _, err := r.Receive(cmd, payload); err != nil {
					failed = true
				}
				done = last
			}
		})
		if n > 2 || failed { // the sender and the receiver themselves
			t.Errorf("use-rle %v: %v allocations for a bitmap, failed %v", useRLE, n, failed)
		}
	}
}
