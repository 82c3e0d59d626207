package adm

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// A level says how well a resource's data is protected now.
type level uint8

// The levels, best first.
const (
	protected level = iota // two good copies, connected
	degraded               // one good copy
	atRisk                 // no good copy is known, or two that contradict each other
	stopped                // nobody can use it on this node
)

func (l level) String() string {
	return [...]string{"protected", "degraded", "at risk", "stopped"}[l]
}

// A verdict is what status says of a resource in one sentence.
type verdict struct {
	Level  level
	Why    string
	Advice string // what to do next, may be empty
}

func (v verdict) String() string { return v.Level.String() + ": " + v.Why }

// judge looks at a resource as somebody who wants to know whether the data is
// safe. now is for "since when".
func judge(r adm.Resource, now time.Time) verdict {
	switch {
	case r.State == adm.StateFailed:
		return verdict{stopped, "it could not be brought up: " + firstLine(r.Reason), r.Advice}
	case r.State != adm.StateUp:
		return verdict{stopped, "it is not up on this node", "polluxadm up " + r.Name}
	case r.WaitsToResume != "":
		return verdict{stopped, r.WaitsToResume, ""}
	case len(r.Suspended) > 0:
		return verdict{stopped, "reads and writes are frozen: " + suspendedWhy(r), orElse(r.Advice, resumeAdvice(r))}
	case r.SplitBrain != "":
		return verdict{
			atRisk, "split brain: " + splitBrainFact(r.SplitBrain),
			fmt.Sprintf("on the node whose changes are to be lost: polluxadm secondary %s, then polluxadm connect --discard-my-data %s; "+
				"on the other: polluxadm connect %s", r.Name, r.Name, r.Name),
		}
	}
	for _, v := range r.Volumes {
		if v.Disk != "UpToDate" && v.PeerDisk != "UpToDate" {
			return noGoodCopy(r, v, now)
		}
	}
	for _, v := range r.Volumes {
		if v.Disk != "UpToDate" || v.PeerDisk != "UpToDate" {
			return oneGoodCopy(r, v, now)
		}
	}
	for _, v := range r.Volumes {
		if isConnected(r) && v.OutOfSyncBytes > 0 {
			return verdict{
				degraded, fmt.Sprintf("%sthe two copies differ in %s", volumeWord(r, v), formatBytes(v.OutOfSyncBytes)),
				fmt.Sprintf("on the node with the worse data: polluxadm invalidate %s", r.Name),
			}
		}
	}
	why := fmt.Sprintf("%s and %s hold the same data", r.Node, r.Peer)
	switch r.Protocol {
	case "A":
		why += "; protocol A: the last writes are lost if the Primary dies"
	case "B":
		why += "; protocol B: the last writes are lost if both nodes lose power"
	}
	return verdict{protected, why, ""}
}

func noGoodCopy(r adm.Resource, v adm.Volume, now time.Time) verdict {
	which := volumeWord(r, v)
	switch {
	case isConnected(r) && v.Disk == "Inconsistent" && v.PeerDisk == "Inconsistent":
		return verdict{
			atRisk, which + "neither node has valid data yet",
			fmt.Sprintf("on the node whose data is to be kept (either one, if both disks are new): polluxadm primary --force %s", confirmed(r)),
		}
	case v.Disk == "Diskless" || v.Disk == "Failed":
		why := which + "this node has no usable disk"
		if v.DiskError != "" {
			why += " (" + firstLine(v.DiskError) + ")"
		}
		return verdict{atRisk, why + " and " + peerAbsent(r, now), attachAdvice(r, v)}
	case isConnected(r):
		return verdict{atRisk, fmt.Sprintf("%sno copy is up to date: %s here, %s on %s", which, v.Disk, v.PeerDisk, r.Peer), ""}
	}
	return verdict{atRisk, fmt.Sprintf("%sthis copy is %s and %s", which, v.Disk, peerAbsent(r, now)), connectAdvice(r)}
}

func oneGoodCopy(r adm.Resource, v adm.Volume, now time.Time) verdict {
	which := volumeWord(r, v)
	switch {
	case v.Replication == "Ahead":
		return verdict{degraded, fmt.Sprintf("%sthe connection cannot keep up: %s gets the changes later, %s by now", which, r.Peer, formatBytes(v.OutOfSyncBytes)), ""}
	case v.Replication == "Behind":
		return verdict{degraded, fmt.Sprintf("%sthe connection cannot keep up: this node gets the changes later; only %s has all the data", which, r.Peer), ""}
	case v.Resync != nil && v.Resync.Paused:
		return verdict{degraded, fmt.Sprintf("%s%s lacks changes, and the resync is paused%s", which, targetOf(r, v), pauseNote(r, v)), resumeSyncAdvice(r, v)}
	case v.Resync != nil && v.Resync.Source:
		return verdict{degraded, fmt.Sprintf("%s%s is being brought up to date, %.1f %% done", which, r.Peer, v.Resync.Done()), ""}
	case v.Resync != nil:
		return verdict{degraded, fmt.Sprintf("%sthis node is being brought up to date, %.1f %% done; only %s has all the data", which, v.Resync.Done(), r.Peer), ""}
	case v.Disk == "Diskless" || v.Disk == "Failed":
		why := fmt.Sprintf("%sthis node works on %s's disk, its own is %s", which, r.Peer, v.Disk)
		if v.DiskError != "" {
			why += " (" + firstLine(v.DiskError) + ")"
		}
		return verdict{degraded, why, attachAdvice(r, v)}
	case !isConnected(r) && r.Role != "Primary":
		return verdict{degraded, fmt.Sprintf("%sthis copy was current when %s was last seen: %s; it may have written since", which, r.Peer, peerAbsent(r, now)), connectAdvice(r)}
	case !isConnected(r):
		return verdict{degraded, which + "only this node has all the data: " + peerAbsent(r, now), connectAdvice(r)}
	case v.Disk == "UpToDate":
		return verdict{degraded, fmt.Sprintf("%sonly this node has all the data, %s's disk is %s", which, r.Peer, v.PeerDisk), ""}
	}
	return verdict{degraded, fmt.Sprintf("%sonly %s has all the data, the disk here is %s", which, r.Peer, v.Disk), ""}
}

// targetOf is the node that a resync brings up to date.
func targetOf(r adm.Resource, v adm.Volume) string {
	if v.Resync.Source {
		return r.Peer
	}
	return "this node"
}

// resumeSyncAdvice is what ends a pause that was ordered on this node.
func resumeSyncAdvice(r adm.Resource, v adm.Volume) string {
	if slices.Contains(v.ResyncPausedBy, "user") {
		return "polluxadm resume-sync " + r.Name
	}
	return ""
}

// resumeAdvice is what ends a suspension by an operator.
func resumeAdvice(r adm.Resource) string {
	if slices.Contains(r.Suspended, "user") {
		return "polluxadm resume-io " + r.Name
	}
	return ""
}

func suspendedWhy(r adm.Resource) string {
	var why []string
	for _, s := range r.Suspended {
		switch s {
		case "user":
			why = append(why, "an operator suspended them")
		case "no-data":
			why = append(why, "no up to date data can be reached")
		case "fencing":
			why = append(why, fmt.Sprintf("%s must be fenced before this node may go on alone", r.Peer))
		case "term":
			why = append(why, "the owner of a term may not go on alone") // the term line says more
		default:
			why = append(why, s)
		}
	}
	return strings.Join(why, ", ")
}

// attachAdvice is what to do about a disk that was given up; a volume may also
// have none by configuration.
func attachAdvice(r adm.Resource, v adm.Volume) string {
	if v.BackingDisk == "" {
		return ""
	}
	return "after the repair: polluxadm attach " + r.Name
}

func connectAdvice(r adm.Resource) string {
	if r.Connection == "StandAlone" {
		return "polluxadm connect " + r.Name
	}
	return ""
}

// peerAbsent says that the peer isn't connected, since when, and why if that
// is for TLS, which no patience mends.
func peerAbsent(r adm.Resource, now time.Time) string {
	s := fmt.Sprintf("%s is not connected (%s)", r.Peer, r.Connection)
	if r.PeerLostSince != nil {
		s += fmt.Sprintf(" since %s, %s ago", r.PeerLostSince.Local().Format(time.DateTime), roundAge(now.Sub(*r.PeerLostSince)))
	}
	if strings.HasPrefix(r.LastError, "TLS: ") {
		s += "; " + firstLine(r.LastError)
	}
	if v := r.Violation; v != nil && strings.Contains(r.LastError, v.Text) {
		s += ": it broke the protocol: " + v.Text
	}
	return s
}

// roundAge shortens a duration to what a person wants to know of it.
func roundAge(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return d.Round(time.Second).String()
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// isConnected reports whether the peer takes part: states from Connected on.
func isConnected(r adm.Resource) bool {
	switch r.Connection {
	case "StandAlone", "Disconnecting", "Unconnected", "Timeout", "BrokenPipe", "NetworkFailure",
		"ProtocolError", "TearDown", "WFConnection", "WFReportParams", "":
		return false
	}
	return true
}

func volumeWord(r adm.Resource, v adm.Volume) string {
	if len(r.Volumes) == 1 {
		return ""
	}
	return fmt.Sprintf("volume %d: ", v.Volume)
}

// splitBrainFact is the first part of the daemon's sentence: what happened.
// What to do comes from here, on a line of its own.
func splitBrainFact(s string) string {
	fact, _, _ := strings.Cut(strings.TrimPrefix(firstLine(s), "split brain: "), ";")
	return fact
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// confirmed is the resource as primary --force wants it: by name where a manager
// decides.
func confirmed(r adm.Resource) string {
	if r.Manager != "" {
		return "--confirm=" + r.Name + " " + r.Name
	}
	return r.Name
}
