package replication

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// outcome is a HandshakeResult in one word: C, S, T with "!" for a full sync
// and "-" for Demote, or "fail", "split-brain", "dry-run".
func outcome(r HandshakeResult) string {
	switch {
	case r.SplitBrain:
		return "split-brain"
	case r.DryRun:
		return "dry-run"
	case !r.OK:
		return "fail"
	}
	s := map[drbd.ConnState]string{drbd.Connected: "C", drbd.WFBitMapS: "S", drbd.WFBitMapT: "T"}[r.Conn]
	if r.Full {
		s += "!"
	}
	if r.Demote {
		s += "-"
	}
	return s
}

// split is a split brain of two UpToDate disks: rule 90, or rule 100 (hard).
func split(hard bool, f func(*HandshakeInput)) HandshakeInput {
	in := HandshakeInput{
		CompareInput: CompareInput{Self: gen(0xa0, 0xc0, 0, 0), Peer: gen(0xb0, 0xc0, 0, 0), Version: 101, Features: 0xf},
		Resource:     "r0", Disk: upToDate, PeerDisk: upToDate, SelfBits: 5, PeerBits: 7,
	}
	if hard {
		in.Peer = gen(0xb0, 0xd0, 0, 0)
	}
	if f != nil {
		f(&in)
	}
	return in
}

// peersView is in as the peer sees it. Not for the policies: discard-local and
// discard-remote are swapped by the receiver of P_PROTOCOL.
func peersView(in HandshakeInput) HandshakeInput {
	in.Self, in.Peer = in.Peer, in.Self
	in.SelfCrashed, in.PeerCrashed = in.PeerCrashed, in.SelfCrashed
	in.SelfPrimary, in.PeerPrimary = in.PeerPrimary, in.SelfPrimary
	in.ResolveConflicts = !in.ResolveConflicts
	in.Disk, in.PeerDisk = in.PeerDisk, in.Disk
	in.SelfBits, in.PeerBits = in.PeerBits, in.SelfBits
	in.DiscardMyData, in.PeerDiscardMyData = in.PeerDiscardMyData, in.DiscardMyData
	in.DryRun, in.PeerDryRun = in.PeerDryRun, in.DryRun
	swap := map[uint32]uint32{SBDiscardLocal: SBDiscardRemote, SBDiscardRemote: SBDiscardLocal}
	if p, ok := swap[in.AfterSB0P]; ok {
		in.AfterSB0P = p
	}
	return in
}

func TestDecideHandshake(t *testing.T) {
	base := func(self, peer uint64, f func(*HandshakeInput)) HandshakeInput {
		in := HandshakeInput{
			CompareInput: CompareInput{Self: gen(self, 0, 0, 0), Peer: gen(peer, 0, 0, 0), Version: 101, Features: 0xf},
			Resource:     "r0", Disk: upToDate, PeerDisk: upToDate,
		}
		if f != nil {
			f(&in)
		}
		return in
	}
	newer := func(in *HandshakeInput) { in.Self = gen(0xb0, 0xa0, 0, 0) }           // rule 70: +1
	older := func(in *HandshakeInput) { in.Peer = gen(0xb0, 0xa0, 0, 0) }           // rule 50: -1
	much := func(in *HandshakeInput) { in.Self = gen(0xb0, 0x50, 0xa0, 0) }         // rule 80: +2
	primaryOlder := func(in *HandshakeInput) { older(in); in.SelfPrimary = true }   //
	stranger := func(in *HandshakeInput) { in.Peer = gen(0xb0, 0, 0x30, 0x40) }     //
	related := func(in *HandshakeInput) { in.Self.History = [2]uint64{0x10, 0x20} } //
	for _, tt := range []struct {
		name, want string
		in         HandshakeInput
		reason     string // a part of it
		handlers   []string
	}{
		{name: "equal", want: "C", in: base(0xa0, 0xa0, nil), reason: "no resync is needed"},
		{name: "equal with left-over bits", want: "C", in: base(0xa0, 0xa0, func(in *HandshakeInput) { in.SelfBits = 3 }), reason: "3 here, 0 at the peer"},
		{name: "newer", want: "S", in: base(0xa0, 0xa0, newer), reason: "becomes sync source"},
		{name: "older", want: "T", in: base(0xa0, 0xa0, older), reason: "becomes sync target"},
		{name: "much newer", want: "S!", in: base(0xa0, 0xa0, much), reason: "full sync"},
		{name: "peer is new", want: "S!", in: base(0xa0, 4, func(in *HandshakeInput) { in.PeerDisk = inconsistent })},
		{name: "I am new", want: "T!", in: base(4, 0xa0, func(in *HandshakeInput) { in.Disk = inconsistent })},
		{
			name: "unrelated", want: "fail", in: base(0xa0, 0xb0, func(in *HandshakeInput) { stranger(in); related(in) }),
			reason: "polluxadm create-md r0",
		},
		{
			name: "needs version 91", want: "fail", in: base(0xa0, 0xa0, func(in *HandshakeInput) { in.Self.Bitmap, in.Version = 0x50, 90 }),
			reason: "needs protocol version 91, but version 90 is agreed",
		},
		{
			name: "needs a feature", want: "fail",
			in:     base(0xa0, 0xa0, func(in *HandshakeInput) { in.SelfCrashed, in.PeerPrimary, in.Version, in.Features = true, true, 100, 1 }),
			reason: "needs protocol version 101 with feature flags 0x4, but version 100 with 0x1 is agreed",
		},
		{name: "Inconsistent peer with newer UUIDs", want: "S", in: base(0xa0, 0xa0, func(in *HandshakeInput) { older(in); in.PeerDisk = inconsistent }), reason: "because the peer's disk is Inconsistent"},
		{name: "Inconsistent self with newer UUIDs", want: "T!", in: base(0xa0, 0xa0, func(in *HandshakeInput) { much(in); in.Disk = inconsistent }), reason: "because this node's disk is Inconsistent"},
		{name: "Inconsistent and equal", want: "T", in: base(0xa0, 0xa0, func(in *HandshakeInput) { in.Disk = inconsistent })},
		{name: "both Inconsistent and equal", want: "C", in: base(0xa0, 0xa0, func(in *HandshakeInput) { in.Disk, in.PeerDisk = inconsistent, inconsistent })},
		{name: "Inconsistent in a split brain", want: "T", in: split(false, func(in *HandshakeInput) { in.Disk = inconsistent })},
		{name: "Inconsistent in a hard split brain", want: "S!", in: split(true, func(in *HandshakeInput) { in.PeerDisk = inconsistent })},
		{
			name: "both Inconsistent, I should be the source", want: "fail",
			in:     base(0xa0, 0xa0, func(in *HandshakeInput) { newer(in); in.Disk, in.PeerDisk = inconsistent, inconsistent }),
			reason: "would have to be the source of a resync",
		},
		{name: "Negotiating counts as what it will be", want: "S", in: base(0xa0, 0xa0, func(in *HandshakeInput) { newer(in); in.Disk, in.NegotiatedDisk = drbd.Negotiating, consistent })},
		{name: "Negotiating and Inconsistent", want: "T", in: base(0xa0, 0xa0, func(in *HandshakeInput) { newer(in); in.Disk, in.NegotiatedDisk = drbd.Negotiating, inconsistent })},
		{name: "rr-conflict disconnect", want: "fail", in: base(0xa0, 0xa0, primaryOlder), reason: "polluxadm secondary r0"},
		{
			name: "rr-conflict call-pri-lost", want: "fail", in: base(0xa0, 0xa0, func(in *HandshakeInput) { primaryOlder(in); in.RRConflict = SBCallPriLost }),
			handlers: []string{"pri-lost"},
		},
		{name: "rr-conflict violently", want: "T", in: base(0xa0, 0xa0, func(in *HandshakeInput) { primaryOlder(in); in.RRConflict = SBViolently })},
		{name: "rr-conflict, undefined code", want: "fail", in: base(0xa0, 0xa0, func(in *HandshakeInput) { primaryOlder(in); in.RRConflict = 77 })},
		{name: "a diskless Primary may attach old data", want: "T", in: base(0xa0, 0xa0, func(in *HandshakeInput) { primaryOlder(in); in.Disk, in.NegotiatedDisk = drbd.Negotiating, upToDate })},
		{name: "an Inconsistent Primary may be target", want: "T", in: base(0xa0, 0xa0, func(in *HandshakeInput) { primaryOlder(in); in.Disk = inconsistent })},
		{name: "dry run", want: "dry-run", in: base(0xa0, 0xa0, func(in *HandshakeInput) { newer(in); in.DryRun = true }), reason: "this node becomes sync source"},
		{name: "the peer's dry run", want: "dry-run", in: base(0xa0, 0xa0, func(in *HandshakeInput) { in.PeerDryRun = true }), reason: "no resync is needed"},
		{name: "split brain", want: "split-brain", in: split(false, nil), reason: "polluxadm connect --discard-my-data r0", handlers: []string{"initial-split-brain", "split-brain"}},
		{name: "hard split brain", want: "split-brain", in: split(true, nil), reason: "split brain: both nodes may have written", handlers: []string{"initial-split-brain", "split-brain"}},
		{name: "discard mine", want: "T", in: split(false, func(in *HandshakeInput) { in.DiscardMyData = true }), handlers: []string{"initial-split-brain"}},
		{name: "discard the peer's", want: "S", in: split(false, func(in *HandshakeInput) { in.PeerDiscardMyData = true }), handlers: []string{"initial-split-brain"}},
		{name: "discard both", want: "split-brain", in: split(false, func(in *HandshakeInput) { in.DiscardMyData, in.PeerDiscardMyData = true, true }), reason: "both were told to discard"},
		{name: "hard, discard mine", want: "T!", in: split(true, func(in *HandshakeInput) { in.DiscardMyData = true })},
		{name: "hard, the policy alone does not count", want: "split-brain", in: split(true, func(in *HandshakeInput) { in.AfterSB0P = SBDiscardLocal })},
		{name: "hard, always-asbp", want: "T!", in: split(true, func(in *HandshakeInput) { in.AfterSB0P, in.AlwaysASBP = SBDiscardLocal, true })},
		{name: "discard-my-data on a Primary", want: "fail", in: split(false, func(in *HandshakeInput) { in.DiscardMyData, in.SelfPrimary = true, true }), reason: "this node is Primary"},
		{
			name: "unsolved by the policy, then by hand", want: "S",
			in: split(false, func(in *HandshakeInput) { in.AfterSB0P, in.PeerDiscardMyData = SBDiscardZeroChanges, true }),
		},
		{
			name: "dry run of a demotion", want: "dry-run",
			in: split(false, func(in *HandshakeInput) {
				in.AfterSB0P, in.AfterSB1P, in.SelfPrimary, in.DryRun = SBDiscardLocal, SBCallPriLost, true, true
			}),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := DecideHandshake(tt.in)
			if o := outcome(got); o != tt.want {
				t.Errorf("%s, want %s (%s)", o, tt.want, got.Reason)
			}
			if !strings.Contains(got.Reason, tt.reason) || got.Reason == "" || strings.ContainsAny(got.Reason, "\n%") {
				t.Errorf("reason %q lacks %q", got.Reason, tt.reason)
			}
			if tt.handlers != nil && !cmp.Equal(got.Handlers, tt.handlers) {
				t.Errorf("handlers %v, want %v", got.Handlers, tt.handlers)
			}
			if got.Demote && !got.OK {
				t.Error("Demote without OK")
			}
		})
	}
}

// TestAfterSplitBrain: one row per line of 5.6. Each decision is also taken
// from the peer's side and must be the mirror image.
func TestAfterSplitBrain(t *testing.T) {
	type in = HandshakeInput
	youngOld := func(self, peer uint64, policy uint32) func(*in) {
		return func(i *in) { i.Self.Bitmap |= self; i.Peer.Bitmap |= peer; i.AfterSB0P = policy }
	}
	bits := func(self, peer uint64, policy uint32) func(*in) {
		return func(i *in) { i.SelfBits, i.PeerBits, i.AfterSB0P = self, peer, policy }
	}
	// one: I am Primary, the peer is not; no rr-conflict in the way.
	one := func(policy, zero uint32) func(*in) {
		return func(i *in) { i.SelfPrimary, i.AfterSB1P, i.AfterSB0P, i.RRConflict = true, policy, zero, SBViolently }
	}
	two := func(policy, zero uint32) func(*in) {
		return func(i *in) {
			i.SelfPrimary, i.PeerPrimary, i.AfterSB2P, i.AfterSB0P, i.RRConflict = true, true, policy, zero, SBViolently
		}
	}
	also := func(f, g func(*in)) func(*in) { return func(i *in) { f(i); g(i) } }
	resolves := func(i *in) { i.ResolveConflicts = true }
	open := func(i *in) { i.DeviceOpen = true }
	disconnects := func(i *in) { i.RRConflict = SBDisconnect }
	for _, tt := range []struct {
		name, want string
		f          func(*in)
	}{
		{"0pri disconnect", "split-brain", bits(1, 0, SBDisconnect)},
		{"0pri younger, I was not Primary", "T", youngOld(0, 1, SBDiscardYoungerPrimary)},
		{"0pri younger, I was Primary", "S", youngOld(1, 0, SBDiscardYoungerPrimary)},
		{"0pri younger, both, fewer changes", "T", youngOld(1, 1, SBDiscardYoungerPrimary)},
		{"0pri younger, none, peer unchanged", "S", also(youngOld(0, 0, SBDiscardYoungerPrimary), func(i *in) { i.PeerBits = 0 })},
		{"0pri older, I was not Primary", "S", youngOld(0, 1, SBDiscardOlderPrimary)},
		{"0pri older, I was Primary", "T", youngOld(1, 0, SBDiscardOlderPrimary)},
		{"0pri older, both, more changes", "S", also(youngOld(1, 1, SBDiscardOlderPrimary), func(i *in) { i.SelfBits = 9 })},
		{"0pri zero changes, none", "S", bits(0, 0, SBDiscardZeroChanges)},
		{"0pri zero changes, none, I resolve", "T", also(bits(0, 0, SBDiscardZeroChanges), resolves)},
		{"0pri zero changes, the peer has none", "S", bits(3, 0, SBDiscardZeroChanges)},
		{"0pri zero changes, I have none", "T", bits(0, 3, SBDiscardZeroChanges)},
		{"0pri zero changes, both changed", "split-brain", bits(3, 3, SBDiscardZeroChanges)},
		{"0pri least changes, I have fewer", "T", bits(2, 3, SBDiscardLeastChanges)},
		{"0pri least changes, I have more", "S", bits(3, 2, SBDiscardLeastChanges)},
		{"0pri least changes, equal", "S", bits(3, 3, SBDiscardLeastChanges)},
		{"0pri least changes, equal, I resolve", "T", also(bits(3, 3, SBDiscardLeastChanges), resolves)},
		{"0pri discard-local", "T", bits(9, 1, SBDiscardLocal)},
		{"0pri discard-remote", "S", bits(1, 9, SBDiscardRemote)},
		{"0pri consensus is no policy here", "split-brain", bits(1, 0, SBConsensus)},
		{"0pri violently is no policy here", "split-brain", bits(1, 0, SBViolently)},
		{"1pri disconnect", "split-brain", one(SBDisconnect, SBDiscardRemote)},
		{"1pri consensus, the Secondary loses", "S", one(SBConsensus, SBDiscardRemote)},
		{"1pri consensus, the Primary would lose", "split-brain", one(SBConsensus, SBDiscardLocal)},
		{"1pri violently-as0p, the Primary loses", "T", one(SBViolently, SBDiscardLocal)},
		{"1pri violently-as0p, the Secondary loses", "S", one(SBViolently, SBDiscardRemote)},
		{"1pri violently-as0p and rr-conflict", "fail", also(one(SBViolently, SBDiscardLocal), disconnects)},
		{"1pri discard-secondary", "S", one(SBDiscardSecondary, SBDiscardLocal)},
		{"1pri call-pri-lost, demoted", "T-", also(one(SBCallPriLost, SBDiscardLocal), disconnects)},
		{"1pri call-pri-lost, in use", "split-brain", also(one(SBCallPriLost, SBDiscardLocal), open)},
		{"1pri call-pri-lost, the Secondary loses", "S", one(SBCallPriLost, SBDiscardRemote)},
		{"1pri discard-local is no policy here", "split-brain", one(SBDiscardLocal, SBDiscardLocal)},
		{"2pri disconnect", "split-brain", two(SBDisconnect, SBDiscardLocal)},
		{"2pri violently-as0p", "T", two(SBViolently, SBDiscardLocal)},
		{"2pri call-pri-lost, demoted", "T-", also(two(SBCallPriLost, SBDiscardLocal), disconnects)},
		{"2pri call-pri-lost, in use", "split-brain", also(two(SBCallPriLost, SBDiscardLocal), open)},
		{"2pri call-pri-lost, the peer loses", "S", two(SBCallPriLost, SBDiscardRemote)},
		{"2pri consensus is no policy here", "split-brain", two(SBConsensus, SBDiscardLocal)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			self := split(false, tt.f)
			got := DecideHandshake(self)
			if o := outcome(got); o != tt.want {
				t.Errorf("%s, want %s (%s)", o, tt.want, got.Reason)
			}
			wantHandlers := []string{handlerInitialSplitBrain}
			if self.DeviceOpen {
				wantHandlers = append(wantHandlers, handlerPriLostAfterSB)
			}
			if got.SplitBrain {
				wantHandlers = append(wantHandlers, handlerSplitBrain)
			}
			if !cmp.Equal(got.Handlers, wantHandlers) {
				t.Errorf("handlers %v, want %v", got.Handlers, wantHandlers)
			}
			if !self.DeviceOpen && tt.want != "fail" {
				peer := DecideHandshake(peersView(self))
				want := map[string]string{"S": "T", "T": "S", "T-": "S", "split-brain": "split-brain"}[tt.want]
				if o := strings.TrimSuffix(outcome(peer), "-"); o != want {
					t.Errorf("the peer decides %s, want %s", o, want)
				}
			}
		})
	}
}

func ExampleDecideHandshake() {
	res := DecideHandshake(HandshakeInput{
		CompareInput: CompareInput{Self: gen(0xa1, 0xc0, 0, 0), Peer: gen(0xb0, 0xc0, 0, 0), Version: 101},
		Resource:     "r0", Disk: drbd.UpToDate, PeerDisk: drbd.UpToDate,
	})
	fmt.Println(res.OK, res.SplitBrain)
	fmt.Println(res.Reason)
	// Output:
	// false true
	// split brain: both nodes wrote since they last saw one another; nothing was merged and both copies are as they were; on the node whose changes are to be thrown away run `polluxadm secondary r0` and then `polluxadm connect --discard-my-data r0`, on the other one `polluxadm connect r0`
}
