package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Policies of after-sb-0pri, after-sb-1pri, after-sb-2pri and rr-conflict, as
// the configuration and P_PROTOCOL number them.
// Source: DRBD 8.4 linux/drbd.h, enum drbd_after_sb_p (drbd84-protocol, B.6).
const (
	SBDisconnect             uint32 = 0
	SBDiscardYoungerPrimary  uint32 = 1
	SBDiscardOlderPrimary    uint32 = 2
	SBDiscardZeroChanges     uint32 = 3
	SBDiscardLeastChanges    uint32 = 4
	SBDiscardLocal           uint32 = 5
	SBDiscardRemote          uint32 = 6
	SBConsensus              uint32 = 7
	SBDiscardSecondary       uint32 = 8
	SBCallPriLost            uint32 = 9 // call-pri-lost-after-sb; for rr-conflict call-pri-lost
	SBViolently              uint32 = 10
	handlerInitialSplitBrain        = "initial-split-brain"
	handlerSplitBrain               = "split-brain"
	handlerPriLost                  = "pri-lost"
	handlerPriLostAfterSB           = "pri-lost-after-sb"
)

// HandshakeInput is what decides the handshake of one volume, besides the
// generations: the disks, the bitmaps and the policies of the connection.
type HandshakeInput struct {
	CompareInput
	Resource string // for the advice in Reason

	// Disk is our own disk. If it is Negotiating, NegotiatedDisk is what
	// DiskStateAtAttach said. PeerDisk is the peer's real disk, never
	// Negotiating (drbd84-protocol, 4.6 step 1).
	Disk, NegotiatedDisk, PeerDisk drbd.DiskState

	SelfBits, PeerBits               uint64 // set bits as exchanged in P_UUIDS
	AfterSB0P, AfterSB1P, AfterSB2P  uint32
	RRConflict                       uint32
	AlwaysASBP                       bool
	DiscardMyData, PeerDiscardMyData bool
	DryRun, PeerDryRun               bool // connect --tentative, on either side
	DeviceOpen                       bool // a Primary cannot be demoted
}

// HandshakeResult is the decision on one volume.
type HandshakeResult struct {
	Conn drbd.ConnState // Connected, WFBitMapS or WFBitMapT; if OK
	Full bool           // before that, all bits of our bitmap are to be set and written
	// OK: go on. If not: drop the connection, or fail the disk that is
	// Negotiating (4.6 step 7).
	OK bool
	// Demote: the policy made us, a Primary, the victim; become Secondary
	// together with the step to Conn.
	Demote bool
	// SplitBrain: both copies were written and nothing decides between
	// them. OK is false.
	SplitBrain bool
	DryRun     bool     // OK is false only because someone asked what would happen
	Reason     string   // one sentence for the operator, whatever the outcome
	Handlers   []string // to be run, in this order
	Compare    CompareResult
}

// decision carries the verdict through the steps of DecideHandshake.
type decision struct {
	HandshakeInput
	disk    drbd.DiskState // ours, Negotiating replaced
	verdict int
	why     string // what brought the verdict about
	res     HandshakeResult
}

// DecideHandshake turns the comparison of the generations into the next
// connection state (drbd84-protocol, 5.5 and 5.6).
//
// It differs from the kernel in three cases, all towards caution: a Primary whose
// disk is Inconsistent (on-io-error pass_on) is not made the target after a split
// brain, which would throw away unasked what its application wrote; a split brain
// whose bitmaps have no common base (rule 41 or 100) and that discard-my-data
// solves is followed by a full sync, where the kernel would trust the bitmaps
// (two volumes of different pairs, both set up without initial sync, look like
// that: empty histories and no bit set); and an rr-conflict code that DRBD does
// not define means disconnect.
func DecideHandshake(in HandshakeInput) HandshakeResult {
	d := decision{HandshakeInput: in, disk: in.Disk}
	if d.disk == drbd.Negotiating {
		d.disk = in.NegotiatedDisk
	}
	d.res.Compare = CompareUUIDs(in.CompareInput)
	d.verdict = d.res.Compare.Verdict
	d.why = fmt.Sprintf("by rule %d of the data generations", d.res.Compare.Rule)
	if d.res.Compare.Refused() {
		d.res.Reason = d.refusal()
		return d.res
	}
	d.overruleByDisks()
	if d.verdict == VerdictSplitBrain || d.verdict == VerdictSplitBrainHard {
		d.res.Handlers = append(d.res.Handlers, handlerInitialSplitBrain)
		if !d.solveSplitBrain() {
			d.res.Handlers = append(d.res.Handlers, handlerSplitBrain)
			d.res.SplitBrain = true
			d.res.Reason = d.splitBrainReason()
			return d.res
		}
	}
	if !d.mayBecome() {
		d.res.Demote = false
		return d.res
	}
	d.conclude()
	return d.res
}

// refusal is the sentence for copies that cannot be compared.
func (d *decision) refusal() string {
	switch v := d.verdict; v {
	case VerdictUnrelated:
		return "unrelated data: the two copies never had a common data generation, so neither can be brought up to date from the other; " +
			"nothing was changed; to make one node a copy of the other run `polluxadm down " + d.resource() +
			"`, `polluxadm create-md " + d.resource() + "` and `polluxadm up " + d.resource() + "` on the node whose data are to be thrown away"
	case VerdictNeeds91:
		return fmt.Sprintf("the end of the last resync was seen by one node only, and correcting that needs protocol version %d, but version %d is agreed; upgrade the older node",
			versionCorrections, d.Version)
	default:
		return fmt.Sprintf("after the crash of a Primary the comparison needs protocol version %d with feature flags %#x, but version %d with %#x is agreed; upgrade the older node",
			-v&0xff, -v>>8&0xff, d.Version, d.Features)
	}
}

// overruleByDisks is step 3: who is Inconsistent receives, whatever the UUIDs.
func (d *decision) overruleByDisks() {
	selfBetter := d.disk > drbd.Inconsistent && d.PeerDisk == drbd.Inconsistent
	peerBetter := d.PeerDisk > drbd.Inconsistent && d.disk == drbd.Inconsistent
	if !selfBetter && !peerBetter {
		return
	}
	if split := d.verdict == VerdictSplitBrain || d.verdict == VerdictSplitBrainHard; split && (selfBetter && d.PeerPrimary || peerBetter && d.SelfPrimary) {
		return // the victim is in use: its application's writes would vanish unasked
	}
	full := d.verdict == VerdictSplitBrainHard || d.verdict == 2 || d.verdict == -2
	d.verdict = -1
	d.why = "because this node's disk is Inconsistent"
	if selfBetter {
		d.verdict, d.why = 1, "because the peer's disk is Inconsistent"
	}
	if full {
		d.verdict *= 2
	}
}

// solveSplitBrain is steps 5 and 6. It reports whether a policy or
// discard-my-data found a direction.
func (d *decision) solveSplitBrain() bool {
	hard := d.verdict == VerdictSplitBrainHard
	solved := 0
	if !hard || d.AlwaysASBP {
		if solved = d.afterSplitBrain(); solved != 0 {
			d.why = "as the after-sb policy says after a split brain"
		}
	}
	if solved == 0 && d.DiscardMyData != d.PeerDiscardMyData {
		solved, d.why = 1, "because the peer was told to discard its changes after a split brain"
		if d.DiscardMyData {
			solved, d.why = -1, "because this node was told to discard its changes after a split brain"
		}
	}
	if hard {
		solved *= 2 // the bitmaps have no common base
	}
	d.verdict = solved
	return solved != 0
}

// afterSplitBrain is 5.6: -1 we are the victim, +1 the peer is, 0 none.
func (d *decision) afterSplitBrain() int {
	switch {
	case d.SelfPrimary && d.PeerPrimary:
		return d.afterSB2Primaries()
	case d.SelfPrimary || d.PeerPrimary:
		return d.afterSB1Primary()
	default:
		return d.afterSB0Primaries()
	}
}

func (d *decision) afterSB0Primaries() int {
	selfWasPrimary, peerWasPrimary := d.Self.Bitmap&primaryBit != 0, d.Peer.Bitmap&primaryBit != 0
	switch d.AfterSB0P {
	case SBDiscardYoungerPrimary, SBDiscardOlderPrimary:
		if selfWasPrimary == peerWasPrimary {
			if v, decided := d.zeroChanges(); decided {
				return v
			}
			return d.leastChanges()
		}
		// Who was Primary when the generations split is the older Primary.
		if selfWasPrimary == (d.AfterSB0P == SBDiscardYoungerPrimary) {
			return 1
		}
		return -1
	case SBDiscardZeroChanges:
		v, _ := d.zeroChanges()
		return v
	case SBDiscardLeastChanges:
		return d.leastChanges()
	case SBDiscardLocal:
		return -1
	case SBDiscardRemote:
		return 1
	default: // disconnect, and those that are no after-sb-0pri policy
		return 0
	}
}

// zeroChanges discards the side that wrote nothing.
func (d *decision) zeroChanges() (v int, decided bool) {
	switch {
	case d.SelfBits == 0 && d.PeerBits == 0:
		return d.tie(), true
	case d.PeerBits == 0:
		return 1, true
	case d.SelfBits == 0:
		return -1, true
	}
	return 0, false
}

func (d *decision) leastChanges() int {
	switch {
	case d.SelfBits < d.PeerBits:
		return -1
	case d.SelfBits > d.PeerBits:
		return 1
	}
	return d.tie()
}

// tie breaks an even decision in the same way on both nodes.
func (d *decision) tie() int {
	if d.ResolveConflicts {
		return -1
	}
	return 1
}

func (d *decision) afterSB1Primary() int {
	switch d.AfterSB1P {
	case SBConsensus:
		v := d.afterSB0Primaries()
		if v == -1 && d.SelfPrimary || v == 1 && d.PeerPrimary {
			return 0 // the Primary would be the victim
		}
		return v
	case SBViolently:
		return d.afterSB0Primaries()
	case SBDiscardSecondary:
		if d.SelfPrimary {
			return 1
		}
		return -1
	case SBCallPriLost:
		return d.demoteVictim(d.afterSB0Primaries())
	default:
		return 0
	}
}

func (d *decision) afterSB2Primaries() int {
	switch d.AfterSB2P {
	case SBViolently:
		return d.afterSB0Primaries()
	case SBCallPriLost:
		return d.demoteVictim(d.afterSB0Primaries())
	default:
		return 0
	}
}

// demoteVictim: a Primary that v makes the victim must give up its role; if it
// cannot, the handler is called and the split brain stays unsolved.
func (d *decision) demoteVictim(v int) int {
	if v != -1 || !d.SelfPrimary {
		return v
	}
	if d.DeviceOpen {
		d.res.Handlers = append(d.res.Handlers, handlerPriLostAfterSB)
		return 0
	}
	d.res.Demote = true
	return v
}

// mayBecome is steps 7 to 9: it refuses a role in the resync that this node
// cannot play.
func (d *decision) mayBecome() bool {
	if d.verdict > 0 && d.disk <= drbd.Inconsistent {
		d.res.Reason = fmt.Sprintf("this node would have to be the source of a resync (%s), but its own disk is %s; connect it first to a node with UpToDate data, or run `polluxadm primary --force %s` on the node whose data are good",
			d.why, d.disk, d.resource())
		return false
	}
	if d.verdict < 0 && d.SelfPrimary && !d.res.Demote && d.Disk >= drbd.Consistent && !d.primaryMayLose() {
		return false
	}
	if d.DryRun || d.PeerDryRun {
		d.res.DryRun = true
		d.res.Reason = "dry run (connect --tentative): " + d.outcome() + "; the connection is dropped and nothing was changed"
		return false
	}
	return true
}

// primaryMayLose applies rr-conflict to a Primary that shall become target.
func (d *decision) primaryMayLose() bool {
	if d.RRConflict == SBViolently {
		return true
	}
	if d.RRConflict == SBCallPriLost {
		d.res.Handlers = append(d.res.Handlers, handlerPriLost)
	}
	d.res.Reason = fmt.Sprintf("this node is Primary, but it would have to take the peer's data (%s), which overwrites what the application here is using; stop the application, run `polluxadm secondary %[2]s` and then `polluxadm connect %[2]s` here",
		d.why, d.resource())
	return false
}

// conclude is steps 10 and 11.
func (d *decision) conclude() {
	d.res.OK = true
	d.res.Full = d.verdict >= 2 || d.verdict <= -2
	switch {
	case d.verdict > 0:
		d.res.Conn = drbd.WFBitMapS
	case d.verdict < 0:
		d.res.Conn = drbd.WFBitMapT
	default:
		d.res.Conn = drbd.Connected
	}
	d.res.Reason = d.outcome()
	if d.verdict == 0 && d.SelfBits|d.PeerBits != 0 {
		d.res.Reason += fmt.Sprintf(" (left-over bits in the bitmaps: %d here, %d at the peer)", d.SelfBits, d.PeerBits)
	}
}

// outcome says in words what the verdict means.
func (d *decision) outcome() string {
	kind := "the changed blocks"
	if d.verdict >= 2 || d.verdict <= -2 {
		kind = "everything (full sync)"
	}
	switch {
	case d.verdict > 0:
		return fmt.Sprintf("this node becomes sync source and sends %s to the peer, %s", kind, d.why)
	case d.verdict < 0:
		return fmt.Sprintf("this node becomes sync target and receives %s from the peer, %s", kind, d.why)
	default:
		return fmt.Sprintf("no resync is needed, %s", d.why)
	}
}

// splitBrainReason is the sentence for a split brain that stays.
func (d *decision) splitBrainReason() string {
	who := "both nodes wrote since they last saw one another"
	if d.res.Compare.Verdict == VerdictSplitBrainHard {
		who = "both nodes may have written independently of one another, and their last common data generation is not known"
	}
	if d.DiscardMyData && d.PeerDiscardMyData {
		who += ", and both were told to discard their changes"
	}
	return fmt.Sprintf("split brain: %s; nothing was merged and both copies are as they were; "+
		"on the node whose changes are to be thrown away run `polluxadm secondary %[2]s` and then `polluxadm connect --discard-my-data %[2]s`, "+
		"on the other one `polluxadm connect %[2]s`", who, d.resource())
}

func (d *decision) resource() string {
	if d.Resource == "" {
		return "RES"
	}
	return d.Resource
}
