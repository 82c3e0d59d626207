package replication

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/replication/meta"
)

// gen is short for UUIDs in tests.
func gen(current, bitmap, h1, h2 uint64) meta.UUIDs {
	return meta.UUIDs{Current: current, Bitmap: bitmap, History: [2]uint64{h1, h2}}
}

func TestUUIDOperations(t *testing.T) {
	for _, tt := range []struct {
		name       string
		op         func(*meta.UUIDs)
		from, want meta.UUIDs
	}{
		{"new current as Primary", func(u *meta.UUIDs) { NewCurrent(u, 0xa00, true) }, gen(0x101, 0, 3, 4), gen(0xa01, 0x101, 3, 4)},
		{"new current as Secondary", func(u *meta.UUIDs) { NewCurrent(u, 0xa01, false) }, gen(0x100, 0, 3, 4), gen(0xa00, 0x100, 3, 4)},
		{"not the value of new metadata", func(u *meta.UUIDs) { NewCurrent(u, 5, false) }, gen(0x100, 0, 0, 0), gen(1<<63|4, 0x100, 0, 0)},
		{"not zero", func(u *meta.UUIDs) { NewCurrent(u, 1, true) }, gen(0x100, 0, 0, 0), gen(1<<63|1, 0x100, 0, 0)},
		{"set bitmap", func(u *meta.UUIDs) { SetBitmap(u, 0xb) }, gen(1, 0, 3, 4), gen(1, 0xb, 3, 4)},
		{"set bitmap rotates", func(u *meta.UUIDs) { SetBitmap(u, 0xb) }, gen(1, 2, 3, 4), gen(1, 0xb, 2, 3)},
		{"clear bitmap", ClearBitmap, gen(1, 2, 3, 4), gen(1, 0, 2, 3)},
		{"clear no bitmap", ClearBitmap, gen(1, 0, 3, 4), gen(1, 0, 3, 4)},
		{"sync UUID of a generation", func(u *meta.UUIDs) { SyncUUID(u, 0xf0) }, gen(1, 0x21, 3, 4), gen(1, 0x0001000000000021, 0x21, 3)},
		{"sync UUID of new metadata", func(u *meta.UUIDs) { SyncUUID(u, 0xf0) }, gen(1, 4, 0, 0), gen(1, 0xf0, 4, 0)},
		{"sync UUID without tracking", func(u *meta.UUIDs) { SyncUUID(u, 0xf0) }, gen(1, 0, 3, 4), gen(1, 0xf0, 3, 4)},
		{"source finishes", FinishSource, gen(0xc, 0x5, 0xb, 0x8), gen(0xc, 0, 0x5, 0xb)},
		{"target finishes", func(u *meta.UUIDs) { FinishTarget(u, gen(0xd, 0xb, 0x8, 0x7), false) }, gen(0x5, 0, 9, 9), gen(0xc, 0, 0x5, 0xb)},
		{"Primary target finishes", func(u *meta.UUIDs) { FinishTarget(u, gen(0xc, 0xb, 0x8, 0x7), true) }, gen(0x5, 0, 9, 9), gen(0xd, 0, 0x5, 0xb)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := tt.from
			tt.op(&u)
			if u != tt.want {
				t.Errorf("%v -> %v, want %v", tt.from, u, tt.want)
			}
		})
	}
}

// TestCompareUUIDs has rows for each rule of 5.4, in its order. Bit 0 is set
// here and there: it must not count.
func TestCompareUUIDs(t *testing.T) {
	const (
		new4 = meta.UUIDJustCreated
		step = uint64(0x0001000000000000)
		wire = uint32(0xf)
	)
	// In most rows the agreed version is 101 and all features are there.
	for _, tt := range []struct {
		name string
		in   CompareInput
		want CompareResult // Self and Peer: only if corrected
	}{
		{"10 both new", CompareInput{Self: gen(new4, 0, 0, 0), Peer: gen(new4|1, 0, 0, 0)}, CompareResult{Verdict: 0, Rule: 10}},
		{"20 I am new", CompareInput{Self: gen(new4, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0)}, CompareResult{Verdict: -2, Rule: 20}},
		{"20 I have nothing", CompareInput{Self: gen(0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0)}, CompareResult{Verdict: -2, Rule: 20}},
		{"20 both have nothing", CompareInput{}, CompareResult{Verdict: -2, Rule: 20}},
		{"30 peer is new", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(new4, 0, 0, 0)}, CompareResult{Verdict: 2, Rule: 30}},
		{"30 peer has nothing", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0, 0, 0, 0)}, CompareResult{Verdict: 2, Rule: 30}},
		{"30 I have nothing, peer is new", CompareInput{Self: gen(0, 0, 0, 0), Peer: gen(new4, 0, 0, 0)}, CompareResult{Verdict: 2, Rule: 30}},
		{
			"34 I missed the end of the resync",
			CompareInput{Self: gen(0xa0, 0x51, 0xb0, 0xc0), Peer: gen(0xa0, 0, 0x50, 0xb1)},
			CompareResult{Verdict: 1, Rule: 34, Self: gen(0xa0, 0, 0x51, 0xb0)},
		},
		{"34 version 90", CompareInput{Self: gen(0xa0, 0x50, 0xb0, 0), Peer: gen(0xa0, 0, 0x50, 0xb0), Version: 90}, CompareResult{Verdict: VerdictNeeds91, Rule: 34}},
		{
			"35 the peer missed the end of the resync",
			CompareInput{Self: gen(0xa0, 0, 0x50, 0xb1), Peer: gen(0xa0, 0x51, 0xb0, 0xc0)},
			CompareResult{Verdict: -1, Rule: 35, Peer: gen(0xa0, 0, 0x51, 0xb0)},
		},
		{"35 version 90", CompareInput{Self: gen(0xa0, 0, 0x50, 0xb0), Peer: gen(0xa0, 0x50, 0xb0, 0), Version: 90}, CompareResult{Verdict: VerdictNeeds91, Rule: 35}},
		{"36 the peer did not store the sync UUID", CompareInput{Self: gen(0xa0, 0x50, 0xb0, 0), Peer: gen(0xa0, 0, 0xd0, 0)}, CompareResult{Verdict: 1, Rule: 36}},
		{"36 version 90", CompareInput{Self: gen(0xa0, 0x50, 0xb0, 0), Peer: gen(0xa0, 0, 0xd0, 0), Version: 90}, CompareResult{Verdict: VerdictNeeds91, Rule: 36}},
		{"36 bit 0 alone is a bitmap UUID", CompareInput{Self: gen(0xa0, 1, 0xb0, 0), Peer: gen(0xa0, 0, 0xd0, 0)}, CompareResult{Verdict: 1, Rule: 36}},
		{"37 I did not store the sync UUID", CompareInput{Self: gen(0xa0, 0, 0xd0, 0), Peer: gen(0xa0, 0x50, 0xb0, 0)}, CompareResult{Verdict: -1, Rule: 37}},
		{"37 version 90", CompareInput{Self: gen(0xa0, 0, 0xd0, 0), Peer: gen(0xa0, 0x50, 0xb0, 0), Version: 90}, CompareResult{Verdict: VerdictNeeds91, Rule: 37}},
		{"40 equal", CompareInput{Self: gen(0xa1, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0)}, CompareResult{Verdict: 0, Rule: 40}},
		{"40 equal, both tracking", CompareInput{Self: gen(0xa0, 0x50, 0, 0), Peer: gen(0xa0, 0x60, 0, 0)}, CompareResult{Verdict: 0, Rule: 40}},
		{"40 equal, a Primary", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), SelfPrimary: true}, CompareResult{Verdict: 0, Rule: 40}},
		{"41 crash, a Primary, old peer", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), PeerCrashed: true, SelfPrimary: true, Features: 0xb}, CompareResult{Verdict: -(0x10000 + 4<<8 + 101), Rule: 41}},
		{"41 crash, both Primary", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), PeerCrashed: true, SelfPrimary: true, PeerPrimary: true}, CompareResult{Verdict: -100, Rule: 41}},
		{"41 crash, I am Primary", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), PeerCrashed: true, SelfPrimary: true}, CompareResult{Verdict: 1, Rule: 41}},
		{"41 crash, the peer is Primary", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), PeerCrashed: true, PeerPrimary: true}, CompareResult{Verdict: -1, Rule: 41}},
		{"40 I crashed", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), SelfCrashed: true}, CompareResult{Verdict: 1, Rule: 40}},
		{"40 the peer crashed", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), PeerCrashed: true}, CompareResult{Verdict: -1, Rule: 40}},
		{"40 both crashed, I resolve", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), SelfCrashed: true, PeerCrashed: true, ResolveConflicts: true}, CompareResult{Verdict: -1, Rule: 40}},
		{"40 both crashed, the peer resolves", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xa0, 0, 0, 0), SelfCrashed: true, PeerCrashed: true}, CompareResult{Verdict: 1, Rule: 40}},
		{"50 the peer tracks against me", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xb0, 0xa1, 0, 0)}, CompareResult{Verdict: -1, Rule: 50}},
		{
			"51 P_SYNC_UUID was lost",
			CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xb0, 0xa1+step, 0xa1, 0xc0)},
			CompareResult{Verdict: -1, Rule: 51, Peer: gen(0xb0, 0xa1, 0xc0, 0xc0)},
		},
		{
			"51 version 95",
			CompareInput{Self: gen(0xa0, 0, 0xc0, 0), Peer: gen(0xb0, 0x50, 0xa1, 0xc1), Version: 95},
			CompareResult{Verdict: -1, Rule: 51, Peer: gen(0xb0, 0xa1, 0xc1, 0xc1)},
		},
		{"51 version 90", CompareInput{Self: gen(0xa0, 0, 0xc0, 0), Peer: gen(0xb0, 0x50, 0xa0, 0xc0), Version: 90}, CompareResult{Verdict: VerdictNeeds91, Rule: 51}},
		{"60 not the sync UUID of my generation", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xb0, 0x50, 0xa0, 0xc0)}, CompareResult{Verdict: -2, Rule: 60}},
		{"60 I am in the older history", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xb0, 0x50, 0xc0, 0xa1)}, CompareResult{Verdict: -2, Rule: 60}},
		{"70 I track against the peer", CompareInput{Self: gen(0xb0, 0xa1, 0, 0), Peer: gen(0xa0, 0, 0, 0)}, CompareResult{Verdict: 1, Rule: 70}},
		{
			"71 P_SYNC_UUID was lost",
			CompareInput{Self: gen(0xb0, 0xa1+step, 0xa1, 0xc0), Peer: gen(0xa0, 0, 0, 0)},
			CompareResult{Verdict: 1, Rule: 71, Self: gen(0xb0, 0xa1, 0xc0, 0xc0)},
		},
		{
			"71 version 95",
			CompareInput{Self: gen(0xb0, 0x50, 0xa1, 0xc1), Peer: gen(0xa0, 0, 0xc0, 0), Version: 95},
			CompareResult{Verdict: 1, Rule: 71, Self: gen(0xb0, 0xa1, 0xc1, 0xc1)},
		},
		{"71 version 90", CompareInput{Self: gen(0xb0, 0x50, 0xa0, 0xc0), Peer: gen(0xa0, 0, 0xc0, 0), Version: 90}, CompareResult{Verdict: VerdictNeeds91, Rule: 71}},
		{"80 the peer is in my history", CompareInput{Self: gen(0xb0, 0x50, 0xa0, 0xc0), Peer: gen(0xa1, 0, 0, 0)}, CompareResult{Verdict: 2, Rule: 80}},
		{"80 in the older one", CompareInput{Self: gen(0xb0, 0x50, 0xc0, 0xa1), Peer: gen(0xa1, 0, 0, 0)}, CompareResult{Verdict: 2, Rule: 80}},
		{"90 both left the same generation", CompareInput{Self: gen(0xa0, 0xc1, 0, 0), Peer: gen(0xb0, 0xc0, 0, 0)}, CompareResult{Verdict: 100, Rule: 90}},
		{"100 a common ancestor", CompareInput{Self: gen(0xa0, 0xc0, 0xd0, 0xe1), Peer: gen(0xb0, 0xf0, 0xe0, 0x10)}, CompareResult{Verdict: -100, Rule: 100}},
		{"100 two empty histories", CompareInput{Self: gen(0xa0, 0, 0, 0), Peer: gen(0xb0, 0, 0, 0)}, CompareResult{Verdict: -100, Rule: 100}},
		{"unrelated", CompareInput{Self: gen(0xa0, 0, 0x10, 0x20), Peer: gen(0xb0, 0, 0x30, 0x40)}, CompareResult{Verdict: -1000, Rule: 100}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.in
			if in.Version == 0 {
				in.Version = 101
			}
			if in.Features == 0 {
				in.Features = wire
			}
			want := tt.want
			if want.Self == (meta.UUIDs{}) {
				want.Self = in.Self
			}
			if want.Peer == (meta.UUIDs{}) {
				want.Peer = in.Peer
			}
			got := CompareUUIDs(in)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if refuse := tt.want.Verdict <= -1000; got.Refused() != refuse {
				t.Errorf("Refused() = %v", got.Refused())
			}
		})
	}
}
