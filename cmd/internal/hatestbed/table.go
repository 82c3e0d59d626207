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
// maximum in seconds, with the promised bar.
func (rep *Report) Table(out io.Writer) {
	const width = 18
	fmt.Fprintf(out, "\n%-42s %3s", "seconds: minimum median maximum", "n")
	for _, c := range columns {
		fmt.Fprintf(out, "  %-*s", width, c.name)
	}
	fmt.Fprintln(out, "  promised")
	for _, arbiter := range []Arbiter{ArbiterEtcd, ArbiterWitness} {
		for _, f := range faults() {
			var of []Measured
			for _, m := range rep.Rounds {
				if m.Arbiter == arbiter && m.Fault == f.name {
					of = append(of, m)
				}
			}
			if len(of) == 0 {
				continue
			}
			fmt.Fprintf(out, "%-7s %-34s %3d", arbiter, f.name, len(of))
			for _, c := range columns {
				list := make([]time.Duration, len(of))
				for i, m := range of {
					list[i] = c.of(m)
				}
				fmt.Fprintf(out, "  %-*s", width, spread(list))
			}
			fmt.Fprintln(out, "  "+f.promise(of))
		}
	}
}

// promise is the bar, and how many rounds missed it.
func (f fault) promise(of []Measured) string {
	if f.bar == 0 {
		return "-"
	}
	column := map[outcome]string{takesOver: "kernel", goesOn: "I/O again", moves: "I/O again"}[f.want]
	missed := 0
	for _, m := range of {
		if m.Missed {
			missed++
		}
	}
	text := fmt.Sprintf("%s %s", column, seconds(f.bar))
	if missed > 0 {
		text += fmt.Sprintf(", missed %d times", missed)
	}
	return text
}

// Verdict prints how it ended and tells whether all is well.
func (rep *Report) Verdict(out io.Writer) bool {
	fmt.Fprintf(out, "\n%d rounds, %d acknowledged records, %d lost; two machines at once for %d ms at most (%d ms are in order)\n",
		len(rep.Rounds), rep.Acked, rep.Lost, rep.MaxBothMS, overlapLimit.Milliseconds())
	for _, f := range rep.Faults {
		fmt.Fprintln(out, "WRONG:", f)
	}
	return len(rep.Faults) == 0
}
