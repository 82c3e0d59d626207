package drbd_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// unhex is the bytes of a hex text in which spaces and bars may stand.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "|", "", "\n", "", "\t", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGolden has one row per packet of drbd84-protocol, appendix A. The packets
// with data end after their fixed part.
func TestGolden(t *testing.T) {
	const id = 0x3412000000000000 // as an x86 kernel sends the handle 0x1234
	for _, tt := range []struct {
		name   string
		old    bool // 8-byte header
		length int  // of the payload if more than the fixed part is announced
		cmd    drbd.Command
		packet drbd.Packet
		rest   string
		want   string
	}{
		{
			name: "A.1 first packet, data", old: true, cmd: drbd.CmdInitialData, packet: drbd.Empty{},
			want: "83740267 fff20000",
		},
		{
			name: "A.1 first packet, meta", old: true, cmd: drbd.CmdInitialMeta, packet: drbd.Empty{},
			want: "83740267 fff10000",
		},
		{
			name: "A.2", old: true, cmd: drbd.CmdConnectionFeatures, packet: &drbd.Features{Min: 86, Flags: 15, Max: 101},
			want: "83740267 fffe0048 | 00000056 0000000f 00000065 00000000 |" + strings.Repeat("00", 56),
		},
		{
			name: "our own", cmd: drbd.CmdTerm, packet: &drbd.TermPacket{Term: 7, Promised: 9, Flags: drbd.TermKnown},
			want: "8620ec20 00007f01 00000018 00000000 | 00000000 00000007 00000000 00000009 00000001 00000000",
		},
		{
			name: "A.3 challenge", cmd: drbd.CmdAuthChallenge, packet: drbd.Empty{}, rest: challengeText,
			want: "8620ec20 00000010 00000040 00000000" + challengeText,
		},
		{
			name: "A.3 response", cmd: drbd.CmdAuthResponse, packet: drbd.Empty{}, rest: "ee1c5ec6bdd80daae54534c4a4b9783ce6267e20",
			want: "8620ec20 00000011 00000014 00000000 ee1c5ec6bdd80daae54534c4a4b9783ce6267e20",
		},
		{
			name: "A.4", cmd: drbd.CmdProtocol, packet: &drbd.ProtocolPacket{Protocol: drbd.ProtocolC},
			want: "8620ec20 0000000b 00000019 00000000 | 00000003 00000000 00000000 00000000 00000000 00000000 00",
		},
		{
			name: "A.5", cmd: drbd.CmdSyncParam89,
			packet: &drbd.SyncParam89{ResyncRate: 250, CPlanAhead: 20, CDelayTarget: 10, CFillTarget: 100, CMaxRate: 102400},
			want: "8620ec20 00000023 00000094 00000000 | 000000fa |" + strings.Repeat("00", 128) +
				"| 00000014 0000000a 00000064 00019000",
		},
		{
			name: "A.6 sizes", cmd: drbd.CmdSizes,
			packet: &drbd.Sizes{
				DSize: 0x7fb0, CSize: 0x7fb0, MaxBioSize: 1 << 20, WSame: true,
				PhysicalBlockSize: 512, LogicalBlockSize: 512, IOMin: 512, DiscardEnabled: 1,
			},
			want: "8620ec20 0000000d 00000038 00000000 | 0000000000007fb0 0000000000000000 0000000000007fb0 00100000 00000000" +
				"00000200 00000200 00000000 00000200 00000000 01000000",
		},
		{
			name: "A.6 uuids", cmd: drbd.CmdUUIDs,
			packet: &drbd.UUIDs{Current: 0x297038c6fd6f4f6c, Bitmap: 4, History: [2]uint64{5, 6}, DirtyBits: 7, Flags: drbd.UUIDCrashedPrimary},
			want: "8620ec20 0000000c 00000030 00000000 | 297038c6fd6f4f6c 0000000000000004 0000000000000005 0000000000000006" +
				"0000000000000007 0000000000000002",
		},
		{
			name: "A.7", cmd: drbd.CmdState, packet: &drbd.StatePacket{Word: 0x0000d082},
			want: "8620ec20 0000000e 00000004 00000000 | 0000d082",
		},
		{
			name: "A.8 data", cmd: drbd.CmdData, length: 24 + 4096,
			packet: &drbd.Data{Sector: 8, BlockID: id, Seq: 1, Flags: drbd.DPRWSync | drbd.DPSendWriteAck},
			want:   "8620ec20 00000000 00001018 00000000 | 00000000 00000008 | 34120000 00000000 | 00000001 | 00000102",
		},
		{
			name: "A.8 ack", cmd: drbd.CmdWriteAck, packet: &drbd.BlockAck{Sector: 8, BlockID: id, Size: 4096, Seq: 1},
			want: "8620ec20 00000016 00000018 00000000 | 00000000 00000008 | 34120000 00000000 | 00001000 | 00000001",
		},
		{
			name: "A.9 small", old: true, cmd: drbd.CmdData, length: 24 + 4096,
			packet: &drbd.Data{Sector: 2048, BlockID: id, Seq: 7, Flags: drbd.DPRWSync},
			want:   "83740267 0000 1018 | 00000000 00000800 | 34120000 00000000 | 00000007 | 00000002",
		},
		{
			name: "A.10 barrier", cmd: drbd.CmdBarrier, packet: &drbd.Barrier{Barrier: 0x05000000},
			want: "8620ec20 00000003 00000008 00000000 | 05000000 00000000",
		},
		{
			name: "A.10 ack", cmd: drbd.CmdBarrierAck, packet: &drbd.BarrierAck{Barrier: 0x05000000, SetSize: 3},
			want: "8620ec20 0000001c 00000008 00000000 | 05000000 00000003",
		},
		{
			name: "A.11 promote", cmd: drbd.CmdStateChgReq, packet: &drbd.ReqState{Mask: 3, Val: 1},
			want: "8620ec20 00000012 00000008 00000000 | 00000003 00000001",
		},
		{
			name: "A.11 refusal", cmd: drbd.CmdStateChgReply, packet: &drbd.ReqStateReply{Code: -19},
			want: "8620ec20 0000001d 00000004 00000000 | ffffffed",
		},
		{
			name: "A.11 disconnect", cmd: drbd.CmdConnStChgReq, packet: &drbd.ReqState{Mask: 0x1f0, Val: 0x10},
			want: "8620ec20 0000002a 00000008 00000000 | 000001f0 00000010",
		},
		{
			name: "A.11 reply", cmd: drbd.CmdConnStChgReply, packet: &drbd.ReqStateReply{Code: 1},
			want: "8620ec20 0000002b 00000004 00000000 | 00000001",
		},
		{
			name: "A.12", cmd: drbd.CmdCompressedBitmap, packet: drbd.Empty{}, rest: "123fb762ff7d6b0f",
			want: "8620ec20 00000024 00000008 00000000 | 12 | 3fb762ff7d6b0f",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, tt.want)
			payload := append(tt.packet.Append(nil), unhex(t, tt.rest)...)
			length := max(tt.length, len(payload))
			h := drbd.Header{Command: tt.cmd, Length: uint32(length)}
			got := drbd.AppendHeader100(nil, h)
			if tt.old {
				got = drbd.AppendHeader80(nil, tt.cmd, length)
			}
			hsize := len(got)
			if got = append(got, payload...); !bytes.Equal(got, want) {
				t.Errorf("encoded  %x\nwant     %x", got, want)
			}
			decode := drbd.DecodeHeader100
			if tt.old {
				decode = drbd.DecodeHeader80
			}
			if got, err := decode(want); got != h || err != nil {
				t.Errorf("header is %+v, %v, want %+v", got, err, h)
			}
			p, rest, err := drbd.Decode(h, want[hsize:], true)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.packet, p); diff != "" || !bytes.Equal(rest, unhex(t, tt.rest)) {
				t.Errorf("decoded with rest %x (-want +got):\n%s", rest, diff)
			}
		})
	}
}

// TestHeader95 is A.9: the header that versions 95 to 99 put before a large
// packet. We only read it.
func TestHeader95(t *testing.T) {
	got, err := drbd.DecodeHeader80(unhex(t, "835a 0000 00010018"))
	want := drbd.Header{Command: drbd.CmdData, Length: 65560}
	if got != want || err != nil {
		t.Errorf("h95 is %+v, %v, want %+v", got, err, want)
	}
	if size, err := drbd.DataSize(got, 0); size != 65536 || err != nil {
		t.Errorf("data size is %d, %v, want 65536", size, err)
	}
}

const challengeText = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f" +
	"202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"

// TestAuthResponse is A.3.
func TestAuthResponse(t *testing.T) {
	challenge := unhex(t, challengeText)
	for alg, want := range map[string]string{
		"md5":    "ae8b73320d1bc78a7891125e24a17de7",
		"sha1":   "ee1c5ec6bdd80daae54534c4a4b9783ce6267e20",
		"sha256": "f2a25927ac1c2cd4ed169962d2b803e613af17129a6ba1d8f42ca5f6148f18b6",
	} {
		got, err := drbd.AuthResponse(alg, "FooFunFactory", challenge)
		if err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%s: response %x, %v, want %s", alg, got, err, want)
		}
	}
}
