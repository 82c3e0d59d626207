package replication

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

func TestDiskStateAtAttach(t *testing.T) {
	const good = meta.MDFConsistent | meta.MDFWasUpToDate
	for _, tt := range []struct {
		name       string
		flags      meta.Flags
		fencing    Fencing
		disk, pdsk drbd.DiskState
	}{
		{"new", 0, FencingDontCare, inconsistent, dUnknown},
		{"Inconsistent, whatever else", meta.MDFWasUpToDate | meta.MDFPeerOutdated, FencingDontCare, inconsistent, outdated},
		{"Outdated", meta.MDFConsistent, FencingDontCare, outdated, dUnknown},
		{"Outdated, the peer as well", meta.MDFConsistent | meta.MDFPeerOutdated, FencingResourceOnly, outdated, outdated},
		{"good, no fencing", good, FencingDontCare, upToDate, dUnknown},
		{"good, fencing", good, FencingResourceOnly, consistent, dUnknown},
		{"good, stonith", good, FencingResourceAndStonith, consistent, dUnknown},
		{"good, the peer is outdated", good | meta.MDFPeerOutdated, FencingResourceAndStonith, upToDate, outdated},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk, pdsk := DiskStateAtAttach(tt.flags, tt.fencing)
			if disk != tt.disk || pdsk != tt.pdsk {
				t.Errorf("%v/%v, want %v/%v", disk, pdsk, tt.disk, tt.pdsk)
			}
		})
	}
}

func TestFlagsOf(t *testing.T) {
	const good = meta.MDFConsistent | meta.MDFWasUpToDate
	all := ^meta.Flags(0)
	for _, tt := range []struct {
		name    string
		s       drbd.State
		old     meta.Flags
		crashed bool
		want    meta.Flags
	}{
		{"normal", normal, 0, false, good | meta.MDFPrimaryInd | meta.MDFConnectedInd},
		{"Secondary alone", st(sec, unk, drbd.WFConnection, upToDate, dUnknown), meta.MDFPrimaryInd | meta.MDFConnectedInd, false, good},
		{"WFReportParams is not connected", st(sec, unk, drbd.WFReportParams, upToDate, dUnknown), 0, false, good},
		{"the only copy of a diskless Primary", st(sec, pri, drbd.Connected, upToDate, drbd.Diskless), 0, false, good | meta.MDFPrimaryInd | meta.MDFConnectedInd},
		{"Consistent", st(sec, unk, drbd.WFConnection, consistent, dUnknown), 0, false, good},
		{"Outdated", st(sec, unk, drbd.WFConnection, outdated, dUnknown), good, false, meta.MDFConsistent},
		{"Inconsistent", st(sec, pri, drbd.SyncTarget, inconsistent, upToDate), good, false, meta.MDFConnectedInd},
		{"peer Inconsistent", st(pri, sec, drbd.SyncSource, upToDate, inconsistent), 0, false, good | meta.MDFPrimaryInd | meta.MDFConnectedInd | meta.MDFPeerOutdated},
		{"peer Outdated", st(sec, unk, drbd.WFConnection, upToDate, outdated), 0, false, good | meta.MDFPeerOutdated},
		{"crashed Primary", st(sec, unk, drbd.WFConnection, upToDate, dUnknown), 0, true, good | meta.MDFCrashedPrimary},
		{"the others are kept, AL_CLEAN is not", st(sec, unk, drbd.WFConnection, upToDate, dUnknown), all, false, good | all&^0xf7},
		{"detached: as it was", st(sec, sec, drbd.Connected, drbd.Diskless, upToDate), good | meta.MDFALClean, true, good | meta.MDFALClean},
		{"failed: as it was", st(pri, sec, drbd.Connected, drbd.Failed, upToDate), good | meta.MDFPrimaryInd, false, good | meta.MDFPrimaryInd},
		{"negotiating: as it was", st(sec, sec, drbd.Connected, drbd.Negotiating, upToDate), meta.MDFConsistent, false, meta.MDFConsistent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := FlagsOf(tt.s, tt.old, tt.crashed); got != tt.want {
				t.Errorf("%#x (%v), want %#x (%v)", uint32(got), got, uint32(tt.want), tt.want)
			}
		})
	}
}

// TestFlagsRoundTrip: a restart never makes more of a copy than it was.
func TestFlagsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t, "state")
		if s.Disk < drbd.Inconsistent || s.Disk == dUnknown {
			return
		}
		fencing := Fencing(rapid.IntRange(0, 2).Draw(t, "fencing"))
		flags := FlagsOf(s, meta.Flags(rapid.Uint32().Draw(t, "old")), false)
		disk, _ := DiskStateAtAttach(flags, fencing)
		if disk > s.Disk && (s.Disk != consistent || disk != upToDate) {
			t.Errorf("%v became %v", s.Disk, disk)
		}
		if s.Disk <= outdated && disk != s.Disk {
			t.Errorf("%v became %v", s.Disk, disk)
		}
	})
}
