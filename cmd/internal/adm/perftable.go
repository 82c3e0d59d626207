package adm

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pollux-project/pollux/internal/perf"
)

// writePerf prints a report for people.
func writePerf(w io.Writer, r perfReport, p palette) {
	if r.Every == 0 {
		fmt.Fprintf(w, "%s  nothing is measured: sample is 0 in [perf] of pollux.toml\n", p.bold(r.Resource))
		return
	}
	for i, v := range r.Volumes {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s  %s on %s, %s since %s\n", p.bold(fmt.Sprintf("%s/%d", r.Resource, v.Volume)), r.Role, r.Node,
			shortDuration(v.Seconds), v.Since.Local().Format(time.DateTime))
		if len(v.Directions) == 0 {
			fmt.Fprintln(w, "    no requests in that time")
		}
		for _, d := range v.Directions {
			writePerfDirection(w, d, p)
		}
	}
}

// shareWidth is how many characters stand for all of a request's time.
const shareWidth = 20

func writePerfDirection(w io.Writer, d perfDirection, p palette) {
	fmt.Fprintf(w, "\n  %s", p.bold(d.Direction))
	if total := d.Hops[len(d.Hops)-1]; d.Requests > 0 {
		fmt.Fprintf(w, "  %d requests, %d measured", max(d.Requests, total.Count), total.Count)
	}
	if d.Verdict != "" {
		fmt.Fprintf(w, "\n    %s", d.Verdict)
	}
	isDisk := d.Direction == perf.Disk.String()
	share := fmt.Sprintf("%-*s", shareWidth+6, "share")
	if isDisk {
		share = ""
	}
	fmt.Fprintf(w, "\n    %s\n", p.dim(fmt.Sprintf("%-15s %s%8s%8s%8s%8s%8s%9s", "hop", share, "p50", "p90", "p99", "p99.9", "max", "count")))
	for _, h := range d.Hops {
		if h.Max == 0 {
			continue // nothing had to wait there
		}
		bar := fmt.Sprintf("%4.0f%% %-*s", 100*h.Share, shareWidth, strings.Repeat("#", int(h.Share*shareWidth+0.5)))
		if h.Hop == perf.Total.String() {
			bar = strings.Repeat(" ", shareWidth+6)
		}
		if isDisk {
			bar = ""
		}
		line := fmt.Sprintf("    %-15s %s%8s", h.Hop, bar, shortTime(h.P50))
		for i, ns := range []int64{h.P90, h.P99, h.P999} {
			if h.Count < perfLeast[i] {
				line += fmt.Sprintf("%8s", "-")
			} else {
				line += fmt.Sprintf("%8s", shortTime(ns))
			}
		}
		fmt.Fprintf(w, "%s%8s%9d\n", line, shortTime(h.Max), h.Count)
	}
}

// shortTime is a time in three digits.
func shortTime(ns int64) string {
	switch t := float64(ns); {
	case t < 9.995e3:
		return fmt.Sprintf("%.1fus", t/1e3)
	case t < 999.5e3:
		return fmt.Sprintf("%.0fus", t/1e3)
	case t < 9.995e6:
		return fmt.Sprintf("%.2fms", t/1e6)
	case t < 99.95e6:
		return fmt.Sprintf("%.1fms", t/1e6)
	case t < 999.5e6:
		return fmt.Sprintf("%.0fms", t/1e6)
	default:
		return fmt.Sprintf("%.2fs", t/1e9)
	}
}

func shortDuration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// perfCauses are what a verdict names: hops that have one cause.
var perfCauses = []struct {
	hops   []string
	name   string
	advice string // NODE, PEER and RES stand for names
}{
	{[]string{"peer"}, "the peer", "the network there and back, and its disk: polluxadm perf RES on PEER tells its disk's part"},
	{[]string{"send"}, "the socket to the peer", "the network, or the peer, takes less than is written"},
	{
		[]string{"local queue", "local write", "local read", "local flush", "local discard"},
		"the local disk",
		"the disk of NODE is what to look at",
	},
	{[]string{"activity log"}, "the activity log", "more extents than it holds are in use: raise al-extents, or give meta-disk a faster device"},
	{[]string{"conflict"}, "waiting for other requests", "requests overlap one another, or I/O was frozen"},
	{[]string{"NBD in"}, "the way into polluxd", "too little CPU, or more requests at a time than can be taken up"},
	{[]string{"receive"}, "the way into polluxd", "too little CPU on NODE, or overlapping writes"},
	{[]string{"ack", "reply", "rest"}, "polluxd", "too little CPU on NODE"},
}

// perfVerdict says what a request mostly waits for.
func perfVerdict(r perfReport, d perfDirection) string {
	best, most := -1, 0.0
	for i, c := range perfCauses {
		sum := 0.0
		for _, h := range d.Hops {
			for _, name := range c.hops {
				if h.Hop == name {
					sum += h.Share
				}
			}
		}
		if sum > most {
			best, most = i, sum
		}
	}
	if best < 0 {
		return ""
	}
	c := perfCauses[best]
	how := "most"
	if most < 0.5 {
		how = "the largest part"
	}
	advice := strings.NewReplacer("NODE", r.Node, "PEER", r.Peer, "RES", r.Resource).Replace(c.advice)
	return fmt.Sprintf("%s of a %s's time (%.0f %%) is %s (%s)", how, d.Direction, 100*most, c.name, advice)
}
