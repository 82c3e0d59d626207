package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// DiskStateAtAttach tells from the superblock's flags what our disk is worth
// before the peer was heard, and what is known of the peer's: Outdated, or
// DUnknown (drbd84-protocol, 8.3).
func DiskStateAtAttach(flags meta.Flags, fencing Fencing) (disk, pdsk drbd.DiskState) {
	pdsk = drbd.DUnknown
	peerOutdated := flags&meta.MDFPeerOutdated != 0
	if peerOutdated {
		pdsk = drbd.Outdated
	}
	switch {
	case flags&meta.MDFConsistent == 0:
		disk = drbd.Inconsistent
	case flags&meta.MDFWasUpToDate == 0:
		disk = drbd.Outdated
	case peerOutdated || fencing == FencingDontCare:
		disk = drbd.UpToDate
	default:
		disk = drbd.Consistent
	}
	return disk, pdsk
}

// FlagsOf are the superblock's flags in state s (8.3): bits 0, 1, 2, 4, 5 and
// 6 are computed, MDFALClean is cleared, because a volume in use has an
// activity log that is not applied, and the rest is kept from old. Without a
// disk that is at least Inconsistent there is nothing to say about the copy:
// the result is old, so that a detached or failed disk keeps its word.
func FlagsOf(s drbd.State, old meta.Flags, crashedPrimary bool) meta.Flags {
	if s.Disk < drbd.Inconsistent {
		return old
	}
	const computed = meta.MDFConsistent | meta.MDFPrimaryInd | meta.MDFConnectedInd |
		meta.MDFWasUpToDate | meta.MDFPeerOutdated | meta.MDFCrashedPrimary | meta.MDFALClean
	f := old &^ computed
	for _, c := range [...]struct {
		flag meta.Flags
		set  bool
	}{
		{meta.MDFConsistent, s.Disk > drbd.Inconsistent},
		// Also the only copy of a diskless Primary belongs to a Primary.
		{meta.MDFPrimaryInd, s.Role == drbd.Primary || s.Pdsk < drbd.Inconsistent && s.Peer == drbd.Primary},
		{meta.MDFConnectedInd, s.Conn > drbd.WFReportParams},
		{meta.MDFWasUpToDate, s.Disk > drbd.Outdated},
		{meta.MDFPeerOutdated, s.Pdsk == drbd.Inconsistent || s.Pdsk == drbd.Outdated},
		{meta.MDFCrashedPrimary, crashedPrimary},
	} {
		if c.set {
			f |= c.flag
		}
	}
	return f
}
