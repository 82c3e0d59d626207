package adm

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// A palette colours text, or leaves it alone.
type palette bool

func (p palette) paint(code, s string) string {
	if !p {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p palette) level(l level, s string) string {
	return p.paint([...]string{protected: "32", degraded: "33", atRisk: "1;31", stopped: "31"}[l], s)
}

func (p palette) bold(s string) string { return p.paint("1", s) }
func (p palette) dim(s string) string  { return p.paint("2", s) }

// writeTree prints the status for people: per resource one line with the
// verdict, then role, connection and volumes in DRBD's words.
func writeTree(w io.Writer, st adm.Status, p palette, now time.Time) {
	if len(st.Resources) == 0 {
		fmt.Fprintln(w, "# No currently configured resources.")
		return
	}
	for i, r := range st.Resources {
		if i > 0 {
			fmt.Fprintln(w)
		}
		writeResource(w, r, p, now)
	}
}

func writeResource(w io.Writer, r adm.Resource, p palette, now time.Time) {
	v := judge(r, now)
	fmt.Fprintf(w, "%s  %s\n", p.bold(r.Name), p.level(v.Level, v.String()))
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "    %s %s\n", p.dim(fmt.Sprintf("%-11s", name)), strings.TrimRight(fmt.Sprintf(format, args...), " "))
	}
	if r.State == adm.StateUp {
		row("role", "%s/%s  (%s/%s)", r.Role, r.PeerRole, r.Node, r.Peer)
		row("connection", "%s, protocol %s, %s - %s", r.Connection, r.Protocol, r.Address, r.PeerAddress)
		if r.TLS != nil {
			row("tls", "%s", tlsLine(*r.TLS, now))
		}
		if r.Term != nil {
			row("term", "%s", termLine(*r.Term))
		}
		if r.Manager != "" {
			row("manager", "%s", managerLine(r))
		}
		if r.Loss != nil {
			row("loss", "%s", lossLine(*r.Loss))
		}
	}
	for _, v := range r.Volumes {
		name := fmt.Sprintf("volume %d", v.Volume)
		if r.State != adm.StateUp {
			row(name, "%s on %s", v.Device, orNone(v.BackingDisk))
			continue
		}
		row(name, "%s/%s  %s  %s%s", v.Disk, v.PeerDisk, v.Device, formatBytes(v.SizeBytes), volumeNotes(r, v))
		if v.Resync != nil {
			row("", "%s", progressLine(*v.Resync)+pauseNote(r, v))
		}
		if v.Verify != nil {
			row("", "verify %s  %s differ", progressLine(v.Verify.Resync), formatBytes(v.Verify.FoundBytes))
		}
		if v.DiskError != "" {
			row("", "disk: %s", firstLine(v.DiskError))
		}
		if v.AttachProblem != "" {
			row("", "block device: %s", firstLine(v.AttachProblem))
		}
	}
	for _, c := range r.Changed {
		row("changed", "%s", c)
	}
	for _, line := range strings.Split(strings.TrimSpace(r.LastError), "\n") {
		// With a split brain, or without TLS, the verdict says it all.
		if line != "" && r.SplitBrain == "" && !strings.Contains(v.Why, line) {
			row("last error", "%s", line)
		}
	}
	if w := r.Violation; w != nil && !strings.Contains(r.LastError, w.Text) {
		row("violation", "%s broke the protocol, %d times, last at %s: %s", r.Peer, w.Count, w.Last.Local().Format(time.DateTime), w.Text)
	}
	if v.Advice != "" {
		row("next", "%s", v.Advice)
	}
}

// tlsLine says how long the certificates of a connection last; it goes on
// without them, but a later one needs them.
func tlsLine(t adm.TLS, now time.Time) string {
	if t.Until == nil || t.PeerUntil == nil {
		return "configured"
	}
	ends := func(until time.Time) string {
		s := until.Local().Format(time.DateTime)
		if now.After(until) {
			s += " (expired: the next connection needs a new one)"
		}
		return s
	}
	return fmt.Sprintf("%s, certificate until %s, the peer's until %s", t.Cipher, ends(*t.Until), ends(*t.PeerUntil))
}

// managerLine says who decides about a resource, and for whom it is exported.
func managerLine(r adm.Resource) string {
	s := r.Manager
	if r.Incarnation != "" {
		s += ", exported to incarnation " + r.Incarnation
	}
	if r.Lease == adm.LeaseOver {
		s += "; its lease is over"
	}
	return s
}

// lossLine is what a failover may lose, and what it would lose now.
func lossLine(l adm.Loss) string {
	s := fmt.Sprintf("at most %s or %d s; now %s, %d ms", formatBytes(l.MaxBytes), l.MaxSeconds, formatBytes(l.Bytes), l.AgeMS)
	if l.Holds {
		s += ": clients wait for the peer"
	}
	return s
}

// termLine is "7 (promised 9)" and whatever else is to be said.
func termLine(t adm.Term) string {
	s := fmt.Sprint(t.Term)
	if t.Promised != t.Term {
		s += fmt.Sprintf(" (promised %d)", t.Promised)
	}
	switch {
	case t.Frozen != "":
		s += ", I/O is frozen: " + t.Frozen
	case t.Unknown != "":
		s += ", unknown: " + t.Unknown
	case t.Sole || t.Marked:
		s += ", sole writer"
	case t.Owned:
		s += ", owner"
	}
	switch {
	case t.PeerStandsBack:
		s += ", the peer stands back (failsafe)"
	case t.StandsBack:
		s += ", stands back for the Primary"
	}
	return s
}

func volumeNotes(r adm.Resource, v adm.Volume) string {
	var notes []string
	if v.Replication != "" && v.Replication != r.Connection {
		notes = append(notes, v.Replication)
	}
	if v.Resync == nil && v.OutOfSyncBytes > 0 {
		notes = append(notes, formatBytes(v.OutOfSyncBytes)+" out of sync")
	}
	if v.OpenCount > 0 {
		notes = append(notes, fmt.Sprintf("open (%d)", v.OpenCount))
	}
	if len(notes) == 0 {
		return ""
	}
	return "  " + strings.Join(notes, ", ")
}

// pauseNote says who holds a resync up.
func pauseNote(r adm.Resource, v adm.Volume) string {
	var who []string
	for _, p := range v.ResyncPausedBy {
		switch p {
		case "user":
			who = append(who, "an operator here")
		case "peer":
			who = append(who, r.Peer)
		case "dependency":
			who = append(who, "another resync that goes first (resync-after)")
		default:
			who = append(who, p)
		}
	}
	if len(who) == 0 {
		return ""
	}
	return " by " + strings.Join(who, " and ")
}

// barWidth is the length of the bar, in characters: DRBD's own is 20 as well.
const barWidth = 20

// progressLine is "[=====>..............] 25.0 %  3.0 GiB left  96 MiB/s  ETA 0:32".
func progressLine(s adm.Resync) string {
	done := s.Done()
	n := int(done / 100 * barWidth)
	bar := strings.Repeat("=", n)
	if n < barWidth {
		bar += ">" + strings.Repeat(".", barWidth-1-n)
	}
	line := fmt.Sprintf("[%s] %4.1f %%  %s left", bar, done, formatBytes(s.LeftBytes))
	if s.Paused {
		return line + "  paused"
	}
	line += fmt.Sprintf("  %s/s", formatBytes(s.RateBytesPerSec))
	if s.ETASeconds >= 0 && s.RateBytesPerSec > 0 {
		line += "  ETA " + formatETA(s.ETASeconds)
	}
	return line
}

func formatETA(seconds int64) string {
	if seconds >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
	}
	return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
}

// formatBytes prints a size in binary units with three digits at most.
func formatBytes(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1023.5 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %ciB", f, units[u])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[u])
}

func orNone(s string) string {
	if s == "" {
		return "no disk"
	}
	return s
}
