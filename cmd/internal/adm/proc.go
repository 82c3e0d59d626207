package adm

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

// The kernel module whose /proc/drbd this is. Clients read the first line.
const procVersion = "8.4.11 (api:1/proto:86-101)"

func (a *app) procCommand() *cobra.Command {
	return &cobra.Command{
		Use: "proc", GroupID: groupScripts, Short: "print the state of all volumes in the form of /proc/drbd of DRBD 8.4", Args: cobra.NoArgs,
		Long: "For monitors that read /proc/drbd and can be pointed at another file. The letters are explained in drbdadm(8) of 8.4.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.dryRun {
				_, err := fmt.Fprintln(a.Out, "polluxd: status")
				return err
			}
			st, err := a.fetchStatus(cmd.Context(), nil)
			if err != nil {
				return err
			}
			return writeProc(a.Out, st)
		},
	}
}

// writeProc prints the volumes in the order of their minors.
func writeProc(w io.Writer, st adm.Status) error {
	type device struct {
		r adm.Resource
		v adm.Volume
	}
	var devices []device
	for _, r := range st.Resources {
		for _, v := range r.Volumes {
			devices = append(devices, device{r, v})
		}
	}
	slices.SortFunc(devices, func(a, b device) int { return a.v.Minor - b.v.Minor })
	var b strings.Builder
	fmt.Fprintf(&b, "version: %s\nGIT-hash: Pollux %s\n", procVersion, Release)
	next := -1
	for _, d := range devices {
		if next >= 0 && d.v.Minor > next {
			b.WriteByte('\n') // a gap in the minors
		}
		next = d.v.Minor + 1
		if d.r.State != adm.StateUp {
			fmt.Fprintf(&b, "%2d: cs:%s\n", d.v.Minor, unconfigured)
			continue
		}
		procDevice(&b, d.r, d.v)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func procDevice(b *strings.Builder, r adm.Resource, v adm.Volume) {
	cstate := orElse(v.Replication, r.Connection)
	letter := r.Protocol
	if r.Connection == "StandAlone" {
		if v.Disk == "Diskless" && r.Role != "Primary" {
			fmt.Fprintf(b, "%2d: cs:%s\n", v.Minor, unconfigured)
			return
		}
		letter = " " // no network is configured
	}
	flag := func(on bool, c byte) byte {
		if on {
			return c
		}
		return '-'
	}
	flags := []byte{
		'r', flag(slices.Contains(v.ResyncPausedBy, "dependency"), 'a'), flag(slices.Contains(v.ResyncPausedBy, "peer"), 'p'),
		flag(slices.Contains(v.ResyncPausedBy, "user"), 'u'), '-', '-',
	}
	if len(r.Suspended) > 0 {
		flags[0] = 's'
	}
	fmt.Fprintf(b, "%2d: cs:%s ro:%s/%s ds:%s/%s %s %s\n", v.Minor, cstate, r.Role, r.PeerRole, v.Disk, v.PeerDisk, letter, flags)
	fmt.Fprintf(b, "    ns:%d nr:%d dw:%d dr:%d al:%d bm:%d lo:%d pe:%d ua:%d ap:%d ep:%d wo:%s oos:%d\n",
		v.SentBytes>>10, v.ReceivedBytes>>10, v.WrittenBytes>>10, v.ReadBytes>>10, v.ALWrites, v.BitmapWrites,
		v.LocalPending, v.PeerPending, v.Unacked, v.AppPending, max(v.Epochs, 1), orElse(v.WriteOrder, "f"), v.OutOfSyncBytes>>10)
	switch cstate {
	case "SyncSource", "SyncTarget":
		if v.Resync != nil {
			procProgress(b, *v.Resync, "sync'ed:", cstate == "SyncTarget")
		}
	case "VerifyS", "VerifyT":
		if v.Verify != nil {
			procProgress(b, v.Verify.Resync, "verified:", cstate == "VerifyS")
		}
	}
}

// procProgress is the bar with what is left, and the line with the time that it
// will take. The newline between them is missing in some kernels.
func procProgress(b *strings.Builder, s adm.Resync, word string, wants bool) {
	const mib4 = 4 << 20 // KiB: what a total is printed in MiB from
	total, left := s.TotalBytes>>10, min(s.LeftBytes, s.TotalBytes)>>10
	res := uint64(0)
	if total > 0 {
		res = 1000 - left*1000/total
	}
	x := res / 50
	fmt.Fprintf(b, "\t[%s>%s] %s%3d.%d%% ", strings.Repeat("=", int(max(x, 1)-1)), strings.Repeat(".", int(20-x)), word, res/10, res%10)
	if total > mib4 {
		fmt.Fprintf(b, "(%d/%d)M\n", left>>10, total>>10)
	} else {
		fmt.Fprintf(b, "(%d/%d)K\n", left, total)
	}
	rate := s.RateBytesPerSec >> 10
	eta := left / max(rate, 1)
	fmt.Fprintf(b, "\tfinish: %d:%02d:%02d speed: %s (%s)", eta/3600, eta/60%60, eta%60, thousands(rate), thousands(s.AverageBytesPerSec>>10))
	if wants {
		fmt.Fprintf(b, " want: %s", thousands(s.WantBytesPerSec>>10))
	}
	b.WriteString(" K/sec")
	if s.RateBytesPerSec == 0 && !s.Paused {
		b.WriteString(" (stalled)")
	}
	b.WriteByte('\n')
}

// thousands groups digits as the kernel does: 31,968.
func thousands(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
