package hatestbed

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// line is one round, for the progress.
func (m Measured) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%3d  %-34s", m.Number, m.Fault)
	for _, t := range []struct {
		name string
		d    time.Duration
	}{
		{"detected", m.Detected}, {"promoted", m.Promoted}, {"kernel", m.Kernel}, {"record", m.First}, {"I/O again", m.Resumed}, {"gap", m.Gap},
	} {
		if t.d != 0 {
			fmt.Fprintf(&b, "  %s %s", t.name, seconds(t.d))
		}
	}
	if m.Led {
		b.WriteString("  (it led etcd)")
	}
	switch {
	case len(m.Faults) > 0:
		fmt.Fprintf(&b, "  WRONG: %s", strings.Join(m.Faults, "; "))
	case m.Missed:
		b.WriteString("  slower than promised")
	default:
		b.WriteString("  ok")
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

// spread is the minimum, median and maximum of what is not zero.
func spread(list []time.Duration) string {
	list = slices.DeleteFunc(list, func(d time.Duration) bool { return d == 0 })
	if len(list) == 0 {
		return "-"
	}
	slices.Sort(list)
	return fmt.Sprintf("%s %s %s", seconds(list[0]), seconds(list[len(list)/2]), seconds(list[len(list)-1]))
}

// columns of the table.
var columns = []struct {
	name string
	of   func(Measured) time.Duration
}{
	{"detected", func(m Measured) time.Duration { return m.Detected }},
	{"promoted", func(m Measured) time.Duration { return m.Promoted }},
	{"kernel", func(m Measured) time.Duration { return m.Kernel }},
	{"first record", func(m Measured) time.Duration { return m.First }},
	{"I/O again", func(m Measured) time.Duration { return m.Resumed }},
	{"client's gap", func(m Measured) time.Duration { return m.Gap }},
}

// Table prints the times, for each kind of fault and arbiter minimum, median and
// maximum in seconds, with the promised bar. * marks those that struck the host
// which led etcd: then there is an election, and all leases begin anew.
func (rep *Report) Table(out io.Writer) {
	const width = 18
	fmt.Fprintf(out, "\n%-42s %3s", "seconds: min median max (*: led etcd)", "n")
	for _, c := range columns {
		fmt.Fprintf(out, "  %-*s", width, c.name)
	}
	fmt.Fprintln(out, "  promised")
	for _, r := range rep.rows() {
		fmt.Fprintf(out, "%-42s %3d", r.name, len(r.of))
		for _, c := range columns {
			list := make([]time.Duration, len(r.of))
			for i, m := range r.of {
				list[i] = c.of(m)
			}
			fmt.Fprintf(out, "  %-*s", width, spread(list))
		}
		fmt.Fprintln(out, "  "+r.promise())
	}
}

// A row is the rounds of one kind.
type row struct {
	name  string
	fault fault
	led   bool
	of    []Measured
}

// rows has the kinds in their order; a takeover from the host that led etcd has
// a bar of its own, hence a row.
func (rep *Report) rows() (rows []row) {
	for _, arbiter := range []Arbiter{ArbiterEtcd, ArbiterWitness} {
		for _, f := range faults() {
			for _, led := range []bool{false, true} {
				r := row{name: fmt.Sprintf("%-7s %s", arbiter, f.name), fault: f, led: led}
				if led && f.before == nil {
					r.name += "*"
				}
				for _, m := range rep.Rounds {
					if m.Arbiter == arbiter && m.Fault == f.name && m.Led == led {
						r.of = append(r.of, m)
					}
				}
				if len(r.of) > 0 {
					rows = append(rows, r)
				}
			}
		}
	}
	return rows
}

// promise is the bar, and how many rounds missed it.
func (r row) promise() string {
	bar := r.fault.bar
	switch {
	case bar == 0, r.fault.want == goesOn && r.led:
		return "-"
	case r.fault.want == takesOver && r.led:
		bar = barLeader
	}
	column := map[outcome]string{takesOver: "kernel", goesOn: "I/O again", moves: "I/O again"}[r.fault.want]
	missed := 0
	for _, m := range r.of {
		if m.Missed {
			missed++
		}
	}
	text := fmt.Sprintf("%s %s", column, seconds(bar))
	if missed > 0 {
		text += fmt.Sprintf(", missed %d times", missed)
	}
	return text
}

// Verdict prints how it ended and tells whether all is well.
func (rep *Report) Verdict(out io.Writer) bool {
	fmt.Fprintf(out, "\n%d rounds, %d acknowledged records, %d lost or written twice; two machines at once for %d ms at most (%d ms are in order)\n",
		len(rep.Rounds), rep.Acked, rep.Harm, rep.MaxBothMS, overlapLimit.Milliseconds())
	for _, f := range rep.Faults {
		fmt.Fprintln(out, "WRONG:", f)
	}
	return len(rep.Faults) == 0
}
