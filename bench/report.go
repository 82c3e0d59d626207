package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Report is everything that was measured, and what it comes to.
type Report struct {
	Started    time.Time   `json:"started"`
	Machine    Machine     `json:"machine"`
	Rounds     int         `json:"rounds"`
	Seconds    int         `json:"seconds_per_run"`
	SizeMiB    int         `json:"volume_mib"`
	Isolated   bool        `json:"own_network_namespace"`
	Lines      []Line      `json:"lines"`
	Bars       []Bar       `json:"bars"`
	Footprints []Footprint `json:"footprints"`
	Runs       []Sample    `json:"runs"`
	Resyncs    []Resync    `json:"resyncs"`
}

// A Machine is where and with what it was measured.
type Machine struct {
	Kernel   string   `json:"kernel"`
	CPUs     int      `json:"cpus"`
	LoadFrom float64  `json:"load_before"` // others' work, 1 minute average
	Versions []string `json:"versions"`
}

// A Line is the median of a case's runs.
type Line struct {
	Case  Case    `json:"case"`
	IOPS  float64 `json:"iops"`
	Best  float64 `json:"best_iops"` // of the best round, nearest to what a quiet machine does
	P50   float64 `json:"p50_us"`
	P99   float64 `json:"p99_us"`
	CPU   float64 `json:"server_cpu_us"`
	Ratio float64 `json:"ratio,omitempty"` // of IOPS, to the best rival of its class and depth; 0 = there is none
}

// A Bar is one demand and what was found.
type Bar struct {
	What string `json:"what"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Met  bool   `json:"met"`
}

func newReport(ctx context.Context, cfg Config, dir string) *Report {
	r := &Report{
		Started: time.Now().UTC().Truncate(time.Second), Rounds: cfg.Rounds, Seconds: cfg.Seconds, SizeMiB: cfg.SizeMiB, Isolated: cfg.Isolated,
		Machine: Machine{CPUs: runtime.NumCPU()},
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.Machine.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(b), &r.Machine.LoadFrom) //nolint:errcheck // decoration
	}
	for _, program := range []string{"qemu-storage-daemon", "nbdkit", "fio", cfg.Bin + "/polluxd"} {
		// A missing version is no reason to stop: everything was measured.
		if out, err := run(ctx, program, "--version"); err == nil {
			first, _, _ := strings.Cut(out, "\n")
			r.Machine.Versions = append(r.Machine.Versions, first)
		}
	}
	return r
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func medianOf[T any](all []T, field func(T) float64) float64 {
	var v []float64
	for _, x := range all {
		v = append(v, field(x))
	}
	return median(v)
}

// judge fills Lines and Bars from the rest.
func (r *Report) judge() {
	r.Lines, r.Bars = nil, nil
	for _, g := range groups {
		r.judgeGroup(g)
	}
	for _, class := range []Class{Buffered, Direct} {
		r.judgeProtocols(class)
	}
	r.judgeResync()
	for _, f := range r.Footprints {
		r.bar(f.PeakBytes <= f.Limit(), "memory, node "+f.Node, fmt.Sprintf("<= %.1f MiB", float64(f.Limit())/mib),
			"%.1f MiB, peak %.1f MiB", float64(f.RSSBytes)/mib, float64(f.PeakBytes)/mib)
		r.bar(f.IdleTicks <= idleTicksBar, "CPU at rest, node "+f.Node, fmt.Sprintf("<= %v in %.0f s", idleTicksBar*tick, f.IdleSeconds),
			"%v (%.1f ms by the scheduler)", time.Duration(f.IdleTicks)*tick, f.IdleMicros/1000)
	}
}

func (r *Report) bar(met bool, what, want, format string, args ...any) {
	r.Bars = append(r.Bars, Bar{What: what, Want: want, Got: fmt.Sprintf(format, args...), Met: met})
}

// line is the median of a case, nil if it was not run.
func (r *Report) line(c Case) *Line {
	for i := range r.Lines {
		if r.Lines[i].Case == c {
			return &r.Lines[i]
		}
	}
	return nil
}

func (r *Report) judgeGroup(g group) {
	first := len(r.Lines)
	for _, run := range r.Runs {
		if c := run.Case; c.Class == g.class && c.Depth == g.depth && r.line(c) == nil {
			r.Lines = append(r.Lines, r.summary(c))
		}
	}
	lines := r.Lines[first:]
	slices.SortStableFunc(lines, func(a, b Line) int { return strings.Compare(a.Case.target(), b.Case.target()) })
	var rival *Line
	for i := range lines {
		if l := &lines[i]; l.Case.System == Quorum && (rival == nil || l.IOPS > rival.IOPS) {
			rival = l
		}
	}
	if rival == nil {
		return
	}
	for i := range lines {
		l := &lines[i]
		if l.Case.System != Pollux {
			continue
		}
		l.Ratio = l.IOPS / rival.IOPS
		if g.bar > 0 && l.Case.Variant == "C" {
			r.bar(l.Ratio >= g.bar, fmt.Sprintf("%s, depth %d, protocol C", g.class, g.depth), fmt.Sprintf(">= %.1f x quorum", g.bar),
				"%.2f x %s (best rounds: %.2f x)", l.Ratio, rival.Case.target(), l.Best/rival.Best)
		}
	}
}

func (r *Report) summary(c Case) Line {
	var runs []Sample
	best := 0.0
	for _, run := range r.Runs {
		if run.Case == c {
			runs = append(runs, run)
			best = max(best, run.IOPS)
		}
	}
	return Line{
		Case: c, Best: best,
		IOPS: medianOf(runs, func(r Sample) float64 { return r.IOPS }),
		P50:  medianOf(runs, func(r Sample) float64 { return r.P50 }),
		P99:  medianOf(runs, func(r Sample) float64 { return r.P99 }),
		CPU:  medianOf(runs, func(r Sample) float64 { return r.CPU }),
	}
}

// judgeProtocols compares the latencies of A, B and C at depth 1.
func (r *Report) judgeProtocols(class Class) {
	var p50 []float64
	for _, protocol := range []string{"A", "B", "C"} {
		l := r.line(Case{class, 1, Pollux, protocol})
		if l == nil {
			return
		}
		p50 = append(p50, l.P50)
	}
	r.bar(slices.IsSorted(p50), fmt.Sprintf("%s, latency of the protocols", class), "A <= B <= C", "A %.0f, B %.0f, C %.0f us", p50[0], p50[1], p50[2])
}

// resyncRate is the median throughput in MiB/s, NaN if there was none.
func (r *Report) resyncRate(system string) float64 {
	var v []float64
	for _, s := range r.Resyncs {
		if s.System == system {
			v = append(v, s.MiBps())
		}
	}
	return median(v)
}

func (r *Report) judgeResync() {
	ours, theirs := r.resyncRate(Pollux), r.resyncRate(Nbdcopy)
	if math.IsNaN(ours) || math.IsNaN(theirs) {
		return
	}
	r.bar(ours/theirs >= resyncBar, "resync of a whole volume", fmt.Sprintf(">= %.1f x nbdcopy", resyncBar), "%.2f x: %.0f MiB/s to %.0f MiB/s", ours/theirs, ours, theirs)
}

// tlsCosts says what TLS takes, beside the same without it; it is no bar.
func (r *Report) tlsCosts() string {
	var b strings.Builder
	for _, g := range groups {
		with, without := r.line(Case{g.class, g.depth, Pollux, withTLS}), r.line(Case{g.class, g.depth, Pollux, "C"})
		if with != nil && without != nil {
			fmt.Fprintf(&b, "TLS     %-34s %.2f x the IOPS, p50 %+.1f us, CPU %+.0f us per write\n", fmt.Sprintf("%s, depth %d, protocol C", g.class, g.depth),
				with.IOPS/without.IOPS, with.P50-without.P50, with.CPU-without.CPU)
		}
	}
	if with, without := r.resyncRate(PolluxTLS), r.resyncRate(Pollux); !math.IsNaN(with) && !math.IsNaN(without) {
		fmt.Fprintf(&b, "TLS     %-34s %.2f x: %.0f MiB/s to %.0f MiB/s\n", "resync of a whole volume", with/without, with, without)
	}
	return b.String()
}

// WriteJSON writes everything, all rounds included.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteTable writes what people look at.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n4 KiB random writes to two copies on one machine (stream: 1 MiB in sequence); medians of %d rounds of %d s (%d CPUs, Linux %s)\n\n", r.Rounds, r.Seconds, r.Machine.CPUs, r.Machine.Kernel)
	const row = "%-9s %5s  %-24s %8s %8s %8s %8s %7s  %s\n"
	fmt.Fprintf(&b, row, "class", "depth", "", "IOPS", "best", "p50 us", "p99 us", "CPU us", "x quorum")
	var last Case
	for _, l := range r.Lines {
		class, depth, ratio := "", "", ""
		if l.Case.Class != last.Class || l.Case.Depth != last.Depth {
			class, depth = string(l.Case.Class), fmt.Sprint(l.Case.Depth)
			if last.Class != "" {
				b.WriteByte('\n')
			}
		}
		if l.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", l.Ratio)
		}
		last = l.Case
		line := fmt.Sprintf(row, class, depth, l.Case.target(), fmt.Sprintf("%.0f", l.IOPS), fmt.Sprintf("%.0f", l.Best),
			fmt.Sprintf("%.1f", l.P50), fmt.Sprintf("%.1f", l.P99), fmt.Sprintf("%.0f", l.CPU), ratio)
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	b.WriteString("\nCPU: of all server processes, per write. x quorum: IOPS to the best quorum line of the same class and depth.\n\n")
	if !r.Isolated {
		b.WriteString("Without a network namespace of its own only the nbdkit peer is a fair rival: there is none for the direct class.\n\n")
	}
	for _, bar := range r.Bars {
		verdict := "met"
		if !bar.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(&b, "%-6s  %-34s %-19s %s\n", verdict, bar.What, bar.Want, bar.Got)
	}
	if costs := r.tlsCosts(); costs != "" {
		b.WriteString("\n" + costs)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
