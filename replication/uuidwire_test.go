package replication

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// uuids reads the form of drbdadm get-gi and of UUIDs.String.
func uuids(t testing.TB, s string) meta.UUIDs {
	t.Helper()
	var u meta.UUIDs
	if _, err := fmt.Sscanf(s, "%x:%x:%x:%x", &u.Current, &u.Bitmap, &u.History[0], &u.History[1]); err != nil {
		t.Fatalf("UUIDs %q: %v", s, err)
	}
	return u
}

// A wireNode is what one kernel told the other in a handshake: P_UUIDS with
// its bits and flags, P_STATE and the flags of P_PROTOCOL.
type wireNode struct {
	uuids     string
	bits      uint64
	flags     uint64
	state     uint32
	connFlags uint32
}

const refused = drbd.StandAlone // in the column of the outcome

// wireHandshakes are the handshakes of two DRBD 8.4.11 kernels (protocol 101,
// features 0xf), captured on their network: what they told one another, who
// resolves conflicts, the after-sb policies, and what each then did. Those of
// two equal UpToDate nodes are left out but for a few. Disks in state
// Negotiating are those of an attach.
var wireHandshakes = []struct {
	name         string
	a, b         wireNode
	aResolves    bool
	afterSB      [3]uint32
	wantA, wantB drbd.ConnState
}{
	{"s01-connect-fresh 2.05 v0", wireNode{"0000000000000004:0000000000000000:0000000000000000:0000000000000000", 4086, 0, 0x0000c882, 0}, wireNode{"0000000000000004:0000000000000000:0000000000000000:0000000000000000", 4086, 0, 0x0000c882, 0}, false, [3]uint32{0, 0, 0}, drbd.Connected, drbd.Connected},
	{"s04-writes-A 0.87 v0", wireNode{"17050732b82382d4:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, wireNode{"17050732b82382d4:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, false, [3]uint32{0, 0, 0}, drbd.Connected, drbd.Connected},
	{"s05-bitmap-plain-ab 3.77 v0", wireNode{"53adc721a30c6fbb:de0d3a4f01af124b:0000000000000000:0000000000000000", 86, 0, 0x0000d081, 0}, wireNode{"de0d3a4f01af124a:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s05-bitmap-plain-ab 7.49 v0", wireNode{"f31b4f709992db96:53adc721a30c6fbb:de0e3a4f01af124b:de0d3a4f01af124b", 4, 0, 0x0000d082, 0}, wireNode{"53adc721a30c6fba:0000000000000000:de0e3a4f01af124a:de0d3a4f01af124b", 0, 0, 0x0000d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s05-bitmap-plain-ba 3.51 v0", wireNode{"dfd9fb4a4064cea4:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, wireNode{"635bf0e128227695:dfd9fb4a4064cea5:0000000000000000:0000000000000000", 86, 0, 0x0000d081, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s05-bitmap-plain-ba 6.72 v0", wireNode{"635bf0e128227694:0000000000000000:dfdafb4a4064cea4:dfd9fb4a4064cea5", 0, 0, 0x0000d082, 0}, wireNode{"d307499d58b7baea:635bf0e128227695:dfdafb4a4064cea5:dfd9fb4a4064cea5", 4, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s05-bitmap-rle-ab 3.78 v0", wireNode{"39ba5a68eb3bcf7f:0880c775b706f229:0000000000000000:0000000000000000", 86, 0, 0x0000d081, 0}, wireNode{"0880c775b706f228:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s05-bitmap-rle-ab 6.94 v0", wireNode{"3935807053e45570:39ba5a68eb3bcf7f:0881c775b706f229:0880c775b706f229", 4, 0, 0x0000d082, 0}, wireNode{"39ba5a68eb3bcf7e:0000000000000000:0881c775b706f228:0880c775b706f229", 0, 0, 0x0000d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s05-bitmap-rle-ba 3.52 v0", wireNode{"4d1889ae8da8d032:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, wireNode{"ee05060a16619ac9:4d1889ae8da8d033:0000000000000000:0000000000000000", 86, 0, 0x0000d081, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s05-bitmap-rle-ba 6.66 v0", wireNode{"ee05060a16619ac8:0000000000000000:4d1989ae8da8d032:4d1889ae8da8d033", 0, 0, 0x0000d082, 0}, wireNode{"d987e4272dd00ff2:ee05060a16619ac9:4d1989ae8da8d033:4d1889ae8da8d033", 4, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s06-bigbitmap-mixed 1.75 v0", wireNode{"6559de5cb15b2920:526eab420c6f3286:0000000000000000:0000000000000000", 16099, 0, 0x0010c882, 0}, wireNode{"526eab420c6f3286:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0010d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s06-bigbitmap-plain 2.23 v0", wireNode{"18bdb6876fc05a32:89efd0a763a0bc5e:0000000000000000:0000000000000000", 12809, 0, 0x0010c882, 0}, wireNode{"89efd0a763a0bc5e:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0010d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s06-bigbitmap-rle 1.77 v0", wireNode{"eca260563a473cb8:b2d81e9d49182174:0000000000000000:0000000000000000", 12809, 0, 0x0010c882, 0}, wireNode{"b2d81e9d49182174:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0010d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s07-peer-crash 14.93 v0", wireNode{"cfe87bbd703ccce9:c76b9fa2556093a3:0000000000000000:0000000000000000", 38, 0, 0x0000d081, 0}, wireNode{"c76b9fa2556093a2:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s08-primary-crash 17.28 v0", wireNode{"d2ada21a09cbaaa2:0000000000000000:0000000000000000:0000000000000000", 3072, 2, 0x0000d082, 0}, wireNode{"d2ada21a09cbaaa2:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s09-verify 0.82 v0", wireNode{"fdbeecf7b1cac908:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, wireNode{"fdbeecf7b1cac908:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, false, [3]uint32{0, 0, 0}, drbd.Connected, drbd.Connected},
	{"s09-verify 4.44 v0", wireNode{"fdbeecf7b1cac908:0000000000000000:0000000000000000:0000000000000000", 3, 0, 0x0000d082, 0}, wireNode{"fdbeecf7b1cac908:0000000000000000:0000000000000000:0000000000000000", 3, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.Connected, drbd.Connected},
	{"s09-verify 7.52 v0", wireNode{"4ed76f378f22982f:fdbeecf7b1cac909:0000000000000000:0000000000000000", 3, 0, 0x0000d081, 0}, wireNode{"fdbeecf7b1cac908:0000000000000000:0000000000000000:0000000000000000", 3, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s10-csums 2.72 v0", wireNode{"291a3996cc70b623:c95f4e7c703aece5:0000000000000000:0000000000000000", 32, 0, 0x0000d081, 0}, wireNode{"c95f4e7c703aece4:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s12-integrity-crc32c 2.72 v0", wireNode{"c5695a1877c7726f:f4d18829de4dfdf7:0000000000000000:0000000000000000", 2, 0, 0x0000d081, 0}, wireNode{"f4d18829de4dfdf6:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s12-integrity-sha1 2.73 v0", wireNode{"8f6b53d4f96f3007:bc939484b89c3a25:0000000000000000:0000000000000000", 2, 0, 0x0000d081, 0}, wireNode{"bc939484b89c3a24:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s13-split-brain 3.56 v0", wireNode{"b07bb3246e9f51ff:a7d0e0357ffe4e36:0000000000000000:0000000000000000", 5, 0, 0x0000d081, 0}, wireNode{"d0cbaf17be676147:a7d0e0357ffe4e36:0000000000000000:0000000000000000", 5, 0, 0x0000d081, 0}, false, [3]uint32{0, 0, 0}, refused, refused},
	{"s13-split-brain 7.97 v0", wireNode{"b07bb3246e9f51ff:a7d0e0357ffe4e36:0000000000000000:0000000000000000", 5, 0, 0x0000d081, 0}, wireNode{"d0cbaf17be676146:a7d0e0357ffe4e36:0000000000000000:0000000000000000", 5, 1, 0x0000d082, 1}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s14-states 12.19 v0", wireNode{"9baf76434840c7dc:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0001100a, 0}, wireNode{"9baf76434840c7dc:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x000106aa, 0}, false, [3]uint32{0, 0, 0}, drbd.Connected, drbd.Connected},
	{"s14-states 15.68 v0", wireNode{"9baf76434840c7dd:0000000000000000:0000000000000000:0000000000000000", 0, 2, 0x000106a9, 0}, wireNode{"c6a15d5752d7193e:9baf76434840c7dc:0000000000000000:0000000000000000", 18, 0, 0x0000f006, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s14-states 49.80 v0", wireNode{"001ba4cb4e5c7e18:0000000000000000:3106bb7ad71b7210:9bb076434840c7dd", 2038, 0, 0x0000c882, 0}, wireNode{"c6a15d5752d7193e:001ba4cb4e5c7e18:3106bb7ad71b7210:9bb076434840c7dc", 2038, 0, 0x00009082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapT, drbd.WFBitMapS},
	{"s16-two-volumes 2.33 v0", wireNode{"00a666c797341d35:84516b57bc1ca0fd:0000000000000000:0000000000000000", 4, 0, 0x0000d081, 0}, wireNode{"84516b57bc1ca0fc:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s16-two-volumes 2.34 v1", wireNode{"aa704a74acc0a599:c6468866b2df5c05:0000000000000000:0000000000000000", 2, 0, 0x0000d081, 0}, wireNode{"c6468866b2df5c04:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s20-io-error 3.98 v0", wireNode{"49070b2cb33e4ea3:b599d49b5d9af4ab:0000000000000000:0000000000000000", 2, 0, 0x0000f009, 0}, wireNode{"b599d49b5d9af4aa:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x000106a6, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s21-thin-resync 2.17 v0", wireNode{"7e51ef8cc1523a79:6509341176f55a1f:0000000000000000:0000000000000000", 67, 0, 0x0000d081, 0}, wireNode{"6509341176f55a1e:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s23-diskless 3.37 v0", wireNode{"c075bc262a3e8c58:252beee98ab2ee32:0000000000000000:0000000000000000", 35, 0, 0x0000f00a, 0}, wireNode{"252beee98ab2ee32:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x000106aa, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s24-dry-run 1.17 v0", wireNode{"1cdac419f4b8b3bf:0a7bf8747f3c548c:0000000000000000:0000000000000000", 1, 0, 0x0000d081, 2}, wireNode{"0a7bf8747f3c548c:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, refused, refused},
	{"s25-after-sb 2.95 v0", wireNode{"47a5f57c815e620e:f1374c15374a63c4:0000000000000000:0000000000000000", 2, 0, 0x0000d082, 0}, wireNode{"f77a480ba614f8ce:f1374c15374a63c4:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, false, [3]uint32{3, 8, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s25-after-sb 7.67 v0", wireNode{"55d9b4adc65d2333:47a5f57c815e620e:f1384c15374a63c4:f1374c15374a63c4", 2, 0, 0x0000d081, 0}, wireNode{"9af6a8fbfc0b4860:47a5f57c815e620e:f1384c15374a63c4:f1374c15374a63c4", 2, 0, 0x0000d082, 0}, false, [3]uint32{3, 8, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s27-fencing 4.25 v0", wireNode{"c1ff49abf6e0cb2f:e0d7fad44446b795:0000000000000000:0000000000000000", 0, 0, 0x0000b081, 0}, wireNode{"e0d7fad44446b794:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000ca82, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s27-fencing 7.07 v0", wireNode{"9356fe1d9c952dc9:c1ff49abf6e0cb2f:e0d8fad44446b795:e0d7fad44446b795", 0, 0, 0x0000b081, 0}, wireNode{"c1ff49abf6e0cb2e:0000000000000000:e0d8fad44446b794:e0d7fad44446b795", 0, 0, 0x0000ca82, 0}, false, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
	{"s28-integrity-zeroes 1.76 v0", wireNode{"cc043d91778e8841:ba3204ced967bb29:0000000000000000:0000000000000000", 17, 0, 0x0000d081, 0}, wireNode{"ba3204ced967bb28:0000000000000000:0000000000000000:0000000000000000", 0, 0, 0x0000d082, 0}, true, [3]uint32{0, 0, 0}, drbd.WFBitMapS, drbd.WFBitMapT},
}

func wireInput(t *testing.T, self, peer wireNode, resolves bool, afterSB [3]uint32) HandshakeInput {
	ss, ps := drbd.StateOf(self.state), drbd.StateOf(peer.state)
	peerDisk := ps.Disk
	if peerDisk == drbd.Negotiating {
		peerDisk = drbd.Consistent // 4.6 step 1
	}
	return HandshakeInput{
		CompareInput: CompareInput{
			Self: uuids(t, self.uuids), Peer: uuids(t, peer.uuids),
			SelfCrashed: self.flags&2 != 0, PeerCrashed: peer.flags&2 != 0,
			SelfPrimary: ss.Role == drbd.Primary, PeerPrimary: ps.Role == drbd.Primary,
			ResolveConflicts: resolves, Version: 101, Features: 0xf,
		},
		Disk: ss.Disk, NegotiatedDisk: drbd.UpToDate, PeerDisk: peerDisk,
		SelfBits: self.bits, PeerBits: peer.bits,
		AfterSB0P: afterSB[0], AfterSB1P: afterSB[1], AfterSB2P: afterSB[2],
		DiscardMyData: self.flags&1 != 0, PeerDiscardMyData: peer.flags&1 != 0,
		DryRun: self.connFlags&2 != 0, PeerDryRun: peer.connFlags&2 != 0,
	}
}

func TestHandshakeAsKernel(t *testing.T) {
	for _, tt := range wireHandshakes {
		t.Run(tt.name, func(t *testing.T) {
			check := func(node string, in HandshakeInput, want drbd.ConnState) {
				got := DecideHandshake(in)
				conn := got.Conn
				if !got.OK {
					conn = refused
				}
				if conn != want || got.Full {
					t.Errorf("node %s: %s full=%v, the kernel did %s without full sync (%s)", node, conn, got.Full, want, got.Reason)
				}
			}
			check("a", wireInput(t, tt.a, tt.b, tt.aResolves, tt.afterSB), tt.wantA)
			check("b", wireInput(t, tt.b, tt.a, !tt.aResolves, tt.afterSB), tt.wantB)
		})
	}
}

// TestResyncUUIDsAsKernel replays the UUID operations of captured resyncs:
// drbdadm get-gi of both kernels before and after, and P_SYNC_UUID.
func TestResyncUUIDsAsKernel(t *testing.T) {
	for _, tt := range []struct {
		name                     string
		source, known            string // known: the target's copy of the source's UUIDs
		targetPrimary            bool
		sync                     uint64 // as sent; the random number where one was needed
		sourceAfter, targetAfter string
	}{
		{
			"s02 initial sync", "3BB3A4317D85AA2D:0000000000000004:0000000000000000:0000000000000000", "", false, 0x26A149F139410780,
			"3BB3A4317D85AA2D:0000000000000000:26A149F139410780:0000000000000004", "3BB3A4317D85AA2C:0000000000000000:26A149F139410780:0000000000000004",
		},
		{
			"s05 changes of a Primary", "39BA5A68EB3BCF7F:0880C775B706F229:0000000000000000:0000000000000000", "", false, 0x0881C775B706F229,
			"39BA5A68EB3BCF7F:0000000000000000:0881C775B706F229:0880C775B706F229", "39BA5A68EB3BCF7E:0000000000000000:0881C775B706F228:0880C775B706F229",
		},
		{
			"s13 split brain solved", "B07BB3246E9F51FF:A7D0E0357FFE4E36:0000000000000000:0000000000000000", "", false, 0xA7D1E0357FFE4E36,
			"B07BB3246E9F51FF:0000000000000000:A7D1E0357FFE4E36:A7D0E0357FFE4E36", "B07BB3246E9F51FE:0000000000000000:A7D1E0357FFE4E36:A7D0E0357FFE4E36",
		},
		{
			"s14 attach at the Primary", "C6A15D5752D7193E:9BAF76434840C7DC:0000000000000000:0000000000000000", "", true, 0x9BB076434840C7DC,
			"C6A15D5752D7193E:0000000000000000:9BB076434840C7DC:9BAF76434840C7DC", "C6A15D5752D7193F:0000000000000000:9BB076434840C7DD:9BAF76434840C7DC",
		},
		{ // the target knows the source's UUIDs from the resync before: they are its own
			"s14 invalidate", "C6A15D5752D7193E:0000000000000000:9BB076434840C7DD:9BAF76434840C7DC",
			"C6A15D5752D7193E:0000000000000000:9BB076434840C7DC:9BAF76434840C7DC", false, 0x3106BB7AD71B7210,
			"C6A15D5752D7193E:0000000000000000:3106BB7AD71B7210:9BB076434840C7DD", "C6A15D5752D7193E:0000000000000000:3106BB7AD71B7210:9BB076434840C7DC",
		},
		{
			"s14 interrupted resync", "C6A15D5752D7193E:001BA4CB4E5C7E18:3106BB7AD71B7210:9BB076434840C7DC", "", false, 0x001CA4CB4E5C7E18,
			"C6A15D5752D7193E:0000000000000000:001CA4CB4E5C7E18:001BA4CB4E5C7E18", "C6A15D5752D7193E:0000000000000000:001CA4CB4E5C7E18:001BA4CB4E5C7E18",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := uuids(t, tt.source)
			known := source
			if tt.known != "" {
				known = uuids(t, tt.known)
			}
			x := SyncUUID(&source, tt.sync)
			if x != tt.sync {
				t.Fatalf("SyncUUID = %016X, the kernel sent %016X", x, tt.sync)
			}
			target := meta.UUIDs{Current: x&^1 | b2u(tt.targetPrimary)}
			FinishTarget(&target, known, tt.targetPrimary)
			FinishSource(&source)
			if diff := cmp.Diff([]meta.UUIDs{uuids(t, tt.sourceAfter), uuids(t, tt.targetAfter)}, []meta.UUIDs{source, target}); diff != "" {
				t.Errorf("source, target after the resync (-kernel +ours):\n%s", diff)
			}
		})
	}
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
