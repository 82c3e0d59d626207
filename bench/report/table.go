package report

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
)

// Options say how text is written.
type Options struct {
	Color bool // ANSI colours, for terminals
}

// WantsColor reports whether f is a terminal whose user did not turn colour
// off (NO_COLOR, TERM=dumb).
func WantsColor(f *os.File) bool {
	return IsTerminal(f) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// ANSI attributes.
const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "32"
)

func (o Options) paint(code, text string) string {
	if !o.Color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// tableWidth is what the table fits in, in columns.
const tableWidth = 100

// WriteTable writes what people look at on a terminal: medians over the rounds
// grouped by workload, measures, bars, notes, the machine. No line but a path
// or a name that is longer by itself has more than 100 columns.
func WriteTable(w io.Writer, run *result.Run, o Options) error {
	t := &table{run: run, Options: o}
	for i := range run.Workloads {
		t.workload(&run.Workloads[i])
	}
	t.skipped()
	t.crossCheck()
	t.measures()
	t.bars()
	t.notes()
	t.machine()
	_, err := io.WriteString(w, t.text.String())
	return err
}

type table struct {
	Options
	run  *result.Run
	text strings.Builder
}

func (t *table) line(format string, args ...any) {
	t.text.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

// columns of a row: target, speed, best, p50, p99, p99.9, CPU, ratio.
const columns = "  %-20s %9s %9s %8s %8s %8s %8s  %s"

func (t *table) workload(w *result.Workload) {
	first := true
	for i := range t.run.Targets {
		target := &t.run.Targets[i]
		s := t.run.Summary(w.Name, target.Name)
		if s.Rounds == 0 || target.Kind == result.KindYardstick {
			continue
		}
		if first {
			first = false
			t.line("%s", t.paint(bold, workloadTitle(w)))
			head := ""
			if t.run.BestRival(w.Name) != "" {
				head = "× best rival"
			}
			t.line("%s", t.paint(dim, strings.TrimRight(fmt.Sprintf(columns, "", speedUnit(w), "best", "p50", "p99", "p99.9", "CPU/op", head), " ")))
		}
		row := fmt.Sprintf(columns, target.Name, significant(speed(w, s.IOPS)), significant(speed(w, s.Best)), micros(s.P50), micros(s.P99), micros(s.P999), micros(s.CPU), againstRival(t.run, w.Name, target))
		if s.Errors > 0 {
			row += fmt.Sprintf("  %d ERRORS", s.Errors)
		}
		row = strings.TrimRight(row, " ")
		if target.Kind == result.KindPollux {
			row = t.paint(bold, row)
		}
		t.line("%s", row)
	}
	if !first {
		t.line("")
	}
}

func (t *table) skipped() {
	any := false
	for _, target := range t.run.Targets {
		if target.Skipped == "" {
			continue
		}
		any = true
		t.wrapped(fmt.Sprintf("  %-20s ", target.Name), "skipped: "+target.Skipped)
	}
	if any {
		t.line("")
	}
}

// crossCheck sets two clients side by side where both measured.
func (t *table) crossCheck() {
	checks := crossChecks(t.run)
	if len(checks) == 0 {
		return
	}
	t.line("%s", t.paint(bold, "Two clients on the same workload (within 10 % where processors are free)"))
	for _, c := range checks {
		verdict := t.paint(green, "agree")
		switch {
		case !c.judged:
			verdict = "for information"
		case !c.agrees():
			verdict = t.paint(red, "DIFFER")
		}
		t.line("  %-34s %-20s go %s, %s %s IOPS: %s, %s", c.workload, c.target, thousands(c.ours), c.client, thousands(c.theirs), percent(c.theirs/c.ours), verdict)
	}
	t.line("")
}

// A crossCheck is one workload on one target, measured by two clients.
type crossCheck struct {
	workload, target, client string
	ours, theirs             float64 // median IOPS
	judged                   bool    // else client and servers share the processors, and the cheaper client sees more IOPS
}

// agrees: source of the 10 % is the project's requirements.
func (c crossCheck) agrees() bool { return math.Abs(c.theirs/c.ours-1) <= 0.1 }

func crossChecks(run *result.Run) (all []crossCheck) {
	iops := func(all []*result.Sample) float64 { return result.MedianOf(all, (*result.Sample).IOPS) }
	for _, w := range run.Workloads {
		for _, target := range run.Targets {
			ours := run.SamplesOf(w.Name, target.Name, result.ClientGo)
			for _, client := range []string{result.ClientFio, result.ClientGuestFio} {
				theirs := run.SamplesOf(w.Name, target.Name, client)
				if len(ours) > 0 && len(theirs) > 0 {
					all = append(all, crossCheck{w.Name, target.Name, client, iops(ours), iops(theirs), w.Depth == 1 || target.Kind == result.KindYardstick})
				}
			}
		}
	}
	return all
}

func (t *table) measures() {
	for _, g := range measureGroups(t.run) {
		t.line("%s", t.paint(bold, g.name))
		for _, r := range g.rows {
			spread := ""
			if len(r.values) > 1 {
				spread = fmt.Sprintf("%s to %s", quantity(r.low(), r.unit), quantity(r.high(), r.unit))
			}
			t.line("  %-20s %-28s %14s  %s", r.target, r.detail, quantity(r.median(), r.unit), t.paint(dim, spread))
		}
		t.line("")
	}
}

func (t *table) bars() {
	if len(t.run.Bars) == 0 {
		return
	}
	met := 0
	for _, b := range t.run.Bars {
		if b.Met {
			met++
		}
	}
	t.line("%s", t.paint(bold, fmt.Sprintf("Bars: %d of %d met", met, len(t.run.Bars))))
	for _, b := range t.run.Bars {
		verdict := t.paint(green, "met   ")
		if !b.Met {
			verdict = t.paint(red, "MISSED")
		}
		const indent = "          "
		if head := fmt.Sprintf("%s: %s", b.What, b.Want); len([]rune(head+b.Got)) < tableWidth-12 {
			t.line("  %s  %s, got %s", verdict, head, b.Got)
		} else {
			t.line("  %s  %s", verdict, head)
			t.wrapped(indent, "got "+b.Got)
		}
	}
	t.line("")
}

func (t *table) notes() {
	for _, n := range t.run.Notes {
		t.wrapped("Note: ", n)
	}
	if len(t.run.Notes) > 0 {
		t.line("")
	}
}

func (t *table) machine() {
	for _, l := range machineLines(t.run) {
		t.wrapped("", l)
	}
	t.wrapped("", "IOPS, latencies and CPU are medians over the rounds; CPU/op is that of all server processes. "+
		"A ratio is the median of those within the rounds, in brackets the 95 % interval of their mean.")
}

// machineLines describe where and how it was measured.
func machineLines(run *result.Run) (lines []string) {
	m, s := run.Machine, run.Settings
	cpu := fmt.Sprintf("%d CPUs", m.CPUs)
	if m.CPUModel != "" {
		cpu += " (" + m.CPUModel + ")"
	}
	if m.MemoryBytes > 0 {
		cpu += ", " + byteSize(float64(m.MemoryBytes)) + " memory"
	}
	lines = append(lines, fmt.Sprintf("%s, Linux %s; load %.2f before, %.2f after", cpu, m.Kernel, m.LoadBefore, m.LoadAfter))
	if m.Filesystem != "" {
		lines = append(lines, "Images on "+m.Filesystem)
	}
	settings := fmt.Sprintf("%d rounds, %s s a sample", s.Rounds, trimmed(s.Seconds))
	if s.WarmupSeconds > 0 {
		settings += fmt.Sprintf(" after %s s of warm-up", trimmed(s.WarmupSeconds))
	}
	if s.SizeBytes > 0 {
		settings += ", volumes of " + byteSize(float64(s.SizeBytes))
	}
	if s.Isolated {
		settings += ", in a network namespace of its own"
	}
	if s.DelayMicros > 0 {
		settings += fmt.Sprintf(", %s of delay each way", micros(s.DelayMicros))
	}
	if s.BandwidthMbit > 0 {
		settings += fmt.Sprintf(", %s Mbit/s between the nodes", trimmed(s.BandwidthMbit))
	}
	lines = append(lines, settings)
	if run.Commit != "" {
		lines = append(lines, "Pollux "+run.Commit)
	}
	return lines
}

// wrapped writes text behind a prefix, broken at tableWidth and indented.
func (t *table) wrapped(prefix, text string) {
	indent := strings.Repeat(" ", len([]rune(prefix)))
	line := prefix
	empty := true
	for _, word := range strings.Fields(text) {
		if !empty && len([]rune(line))+1+len([]rune(word)) > tableWidth {
			t.line("%s", line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	t.line("%s", line)
}
