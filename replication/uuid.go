package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// Constants of the generation UUIDs.
// Source: drbd84-protocol, 5.1, 5.3, 5.4 and B.7 (DRBD 8.4 drbd_int.h).
const (
	// primaryBit of a UUID tells that its generation was a Primary's. It is
	// no part of the identity.
	primaryBit uint64 = 1
	// syncUUIDStep is added to the bitmap UUID to form the sync UUID.
	syncUUIDStep uint64 = 0x0001000000000000

	versionCorrections = 91  // rules 34 to 37, 51 and 71
	versionSyncStep    = 96  // sync UUID = bitmap UUID + syncUUIDStep
	versionCrashRule   = 101 // rule 41 needs this version and FeatureWSame
)

// Verdicts of CompareUUIDs that are no direction. Verdicts below
// VerdictUnrelated are refusals: VerdictNeeds91, or the negative sum of
// 0x10000, a needed feature << 8 and a needed version.
const (
	VerdictSplitBrain     = 100   // automatic recovery is possible
	VerdictSplitBrainHard = -100  // no automatic recovery (always-asbp apart)
	VerdictUnrelated      = -1000 // the copies have nothing in common
	VerdictNeeds91        = -1091
)

// identity is u without its mark of the role.
func identity(u uint64) uint64 { return u &^ primaryBit }

// randomUUID makes a UUID of random, which it keeps away from the two values
// that mean something else.
func randomUUID(random uint64, primary bool) uint64 {
	u := identity(random)
	if u == 0 || u == meta.UUIDJustCreated {
		u |= 1 << 63
	}
	if primary {
		u |= primaryBit
	}
	return u
}

// NewCurrent begins a new data generation: the bitmap tracks the changes since
// the old one. Callers rotate a bitmap UUID that must not be lost with
// ClearBitmap first; the events of the reference require that it is 0.
func NewCurrent(u *meta.UUIDs, random uint64, primary bool) {
	u.Bitmap = u.Current
	u.Current = randomUUID(random, primary)
}

// RotateCurrent begins a new generation while the bitmap goes on to track the
// changes since the bitmap UUID: a target that has not finished its resync is
// still known by that, one that has finished it by the history.
func RotateCurrent(u *meta.UUIDs, random uint64, primary bool) {
	u.History[1], u.History[0] = u.History[0], u.Current
	u.Current = randomUUID(random, primary)
}

// SetBitmap enters x, which is not 0, as bitmap UUID at the start of a resync.
// The old one goes to the history.
func SetBitmap(u *meta.UUIDs, x uint64) {
	ClearBitmap(u)
	u.Bitmap = x
}

// ClearBitmap moves the bitmap UUID, if there is one, to the history.
func ClearBitmap(u *meta.UUIDs) {
	if u.Bitmap == 0 {
		return
	}
	u.History[1], u.History[0], u.Bitmap = u.History[0], u.Bitmap, 0
}

// SyncUUID is the step of a node that becomes SyncSource: it enters the UUID
// of the running resync as bitmap UUID and returns it for P_SYNC_UUID.
func SyncUUID(u *meta.UUIDs, random uint64) uint64 {
	x := u.Bitmap + syncUUIDStep
	if u.Bitmap == 0 || u.Bitmap == meta.UUIDJustCreated {
		x = randomUUID(random, false)
	}
	SetBitmap(u, x)
	return x
}

// FinishSource is the source's step after a resync without failed blocks. The
// two sets of UUIDs are equal then: the caller enters u as its copy of the
// peer's, since no P_UUIDS follows and a later resync of the same connection
// (invalidate) relies on it. The same holds for FinishTarget.
func FinishSource(u *meta.UUIDs) { ClearBitmap(u) }

// FinishTarget is the target's step after a resync without failed blocks. Its
// own current UUID is the sync UUID then; peer is the source's last P_UUIDS, or
// what the end of an earlier resync made of them.
func FinishTarget(u *meta.UUIDs, peer meta.UUIDs, primary bool) {
	sync := u.Current
	u.Bitmap, u.History = peer.Bitmap, peer.History
	SetBitmap(u, sync)
	u.Current = identity(peer.Current)
	if primary {
		u.Current |= primaryBit
	}
	ClearBitmap(u)
}

// CompareInput is what both nodes know when they compare their generations.
type CompareInput struct {
	Self, Peer               meta.UUIDs // Peer: its last P_UUIDS
	SelfCrashed, PeerCrashed bool       // "crashed primary" (P_UUIDS flag 2)
	SelfPrimary, PeerPrimary bool       // roles now
	ResolveConflicts         bool       // we accepted the meta socket
	Version                  int        // agreed protocol version
	Features                 uint32     // agreed feature flags
}

// CompareResult is the verdict on two copies, from our side: +1 we are the
// source, +2 with a full sync, -1 and -2 the target likewise, 0 no resync, or
// one of the Verdict constants. Rule is the number in drbd84-protocol, 5.4, as
// the kernel logs it. Self and Peer are the UUIDs after the corrections of
// rules 34, 35, 51 and 71: a changed Self is to be stored.
type CompareResult struct {
	Verdict    int
	Rule       int
	Self, Peer meta.UUIDs
}

// Refused reports whether the copies cannot be compared or are unrelated.
func (r CompareResult) Refused() bool { return r.Verdict <= VerdictUnrelated }

// CompareUUIDs decides from the generation UUIDs which copy is newer (5.4).
// Both nodes call it with mirrored input and, for histories that can arise,
// come to mirrored verdicts.
func CompareUUIDs(in CompareInput) CompareResult {
	res := CompareResult{Self: in.Self, Peer: in.Peer}
	self, peer := identity(in.Self.Current), identity(in.Peer.Current)
	none := func(c uint64) bool { return c == 0 || c == meta.UUIDJustCreated }
	switch {
	case self == meta.UUIDJustCreated && peer == meta.UUIDJustCreated:
		res.Rule, res.Verdict = 10, 0
	case none(self) && peer != meta.UUIDJustCreated:
		res.Rule, res.Verdict = 20, -2
	case self != meta.UUIDJustCreated && none(peer):
		res.Rule, res.Verdict = 30, 2
	case self == peer:
		compareSameGeneration(in, &res)
	default:
		compareGenerations(in, &res)
	}
	return res
}

// compareSameGeneration: rules 34 to 41. The data may still differ by what a
// resync or a crashed Primary left behind.
func compareSameGeneration(in CompareInput, res *CompareResult) {
	if (in.Self.Bitmap == 0) == (in.Peer.Bitmap == 0) {
		res.Rule, res.Verdict = compareCrashed(in)
		return
	}
	src, dst := &res.Self, &res.Peer // who still has a bitmap UUID was the source
	rules, verdict := [2]int{34, 36}, 1
	if in.Self.Bitmap == 0 {
		src, dst = dst, src
		rules, verdict = [2]int{35, 37}, -1
	}
	finished := identity(src.Bitmap) == identity(dst.History[0]) &&
		identity(src.History[0]) == identity(dst.History[1])
	res.Rule, res.Verdict = rules[1], verdict
	if finished {
		res.Rule = rules[0]
	}
	if in.Version < versionCorrections {
		res.Verdict = VerdictNeeds91
		return
	}
	if finished { // the source missed the end of the resync
		ClearBitmap(src)
	}
}

// compareCrashed: rules 40 and 41, equal generations and bitmap UUIDs alike.
func compareCrashed(in CompareInput) (rule, verdict int) {
	direction := func(selfIsSource bool) int {
		if selfIsSource {
			return 1
		}
		return -1
	}
	if !in.SelfCrashed && !in.PeerCrashed {
		return 40, 0
	}
	if in.SelfPrimary || in.PeerPrimary {
		switch {
		case in.Features&drbd.FeatureWSame == 0:
			return 41, -(0x10000 + int(drbd.FeatureWSame)<<8 + versionCrashRule)
		case in.SelfPrimary && in.PeerPrimary:
			return 41, VerdictSplitBrainHard
		}
		return 41, direction(in.SelfPrimary)
	}
	if in.SelfCrashed != in.PeerCrashed {
		return 40, direction(in.SelfCrashed)
	}
	return 40, direction(!in.ResolveConflicts)
}

// compareGenerations: rules 50 to 100, different current UUIDs.
func compareGenerations(in CompareInput, res *CompareResult) {
	self, peer := in.Self, in.Peer
	cs, cp := identity(self.Current), identity(peer.Current)
	inHistory := func(c uint64, u meta.UUIDs) bool {
		return c == identity(u.History[0]) || c == identity(u.History[1])
	}
	decide := func(rule, verdict int) { res.Rule, res.Verdict = rule, verdict }
	switch {
	case cs == identity(peer.Bitmap):
		decide(50, -1)
	case cs == identity(peer.History[0]) && syncUUIDLost(peer, self, in.Version):
		decide(51, -1)
		undoSyncUUID(&res.Peer, in.Version, res)
	case inHistory(cs, peer):
		decide(60, -2)
	case identity(self.Bitmap) == cp:
		decide(70, 1)
	case identity(self.History[0]) == cp && syncUUIDLost(self, peer, in.Version):
		decide(71, 1)
		undoSyncUUID(&res.Self, in.Version, res)
	case inHistory(cp, self):
		decide(80, 2)
	case identity(self.Bitmap) == identity(peer.Bitmap) && identity(self.Bitmap) != 0:
		decide(90, VerdictSplitBrain)
	case inHistory(identity(self.History[0]), peer) || inHistory(identity(self.History[1]), peer):
		decide(100, VerdictSplitBrainHard)
	default:
		decide(100, VerdictUnrelated)
	}
}

// syncUUIDLost: source began a resync, but its last P_SYNC_UUID never arrived
// at target. The caller knows that target's generation is source's youngest
// history entry.
func syncUUIDLost(source, target meta.UUIDs, version int) bool {
	if version < versionSyncStep {
		return identity(target.History[0]) == identity(source.History[1])
	}
	return identity(source.History[0])+syncUUIDStep == identity(source.Bitmap)
}

// undoSyncUUID takes the source's start of a resync back.
func undoSyncUUID(source *meta.UUIDs, version int, res *CompareResult) {
	if version < versionCorrections {
		res.Verdict = VerdictNeeds91
		return
	}
	source.Bitmap, source.History[0] = source.History[0], source.History[1]
}
