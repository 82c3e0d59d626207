package hatestbed

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// The speeds that are promised.
const (
	barTakeover = 12 * time.Second // with a lease of 6 s
	barLeader   = 15 * time.Second // when the host also led etcd
	barCertain  = 4 * time.Second  // once nobody can doubt that the machine has ended
	barResume   = 500 * time.Millisecond
	barHandover = 500 * time.Millisecond
)

// kindOf is the kind of fault of that name.
func kindOf(name string) fault {
	all := faults()
	if i := slices.IndexFunc(all, func(f fault) bool { return f.name == name }); i >= 0 {
		return all[i]
	}
	return fault{}
}

// A bar is one promised speed of a round, and what was measured.
type bar struct {
	what       string
	limit, got time.Duration
}

// bars are what is promised for a round. I/O alone has none where the other host led
// etcd: the promise is for an arbiter that is well, and that one has an election.
func (m *Measured) bars() []bar {
	f := kindOf(m.Fault)
	switch {
	case !f.barred || m.First == 0 && m.Resumed == 0:
		return nil
	case f.want == takesOver && m.Arbiter == ArbiterFence:
		return []bar{{"kernel after the fence", barCertain, m.Kernel - m.Confirmed}}
	case f.want == takesOver && m.Led:
		return []bar{{"kernel", barLeader, m.Kernel}}
	case f.want == takesOver:
		return []bar{{"kernel", barTakeover, m.Kernel}}
	case f.want == moves:
		return []bar{{"hand-over", barHandover, m.Resumed}, {"kernel after the stop", barCertain, m.Kernel - m.Stopped}}
	case m.Led:
		return nil
	}
	return []bar{{"I/O alone", barResume, m.Resumed}}
}

func (m *Measured) missed() bool {
	return slices.ContainsFunc(m.bars(), func(b bar) bool { return b.got > b.limit })
}

// line is one round, for the progress.
func (m *Measured) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%3d  %-7s %-34s", m.Number, m.Arbiter, m.Fault)
	for _, c := range columns {
		if d := c.of(m); d != 0 {
			fmt.Fprintf(&b, "  %s %s", c.name, seconds(d))
		}
	}
	if m.Led {
		b.WriteString("  (it led etcd)")
	}
	switch {
	case len(m.Faults) > 0:
		fmt.Fprintf(&b, "  WRONG: %s; logs: %s", strings.Join(m.Faults, "; "), m.Logs)
	case m.missed():
		fmt.Fprintf(&b, "  SLOWER than promised; logs: %s", m.Logs)
	default:
		b.WriteString("  ok")
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

// median of a list that is sorted and not empty.
func median(list []time.Duration) time.Duration {
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// spread is the minimum, median and maximum of what is not zero.
func spread(list []time.Duration) string {
	list = slices.DeleteFunc(list, func(d time.Duration) bool { return d == 0 })
	if len(list) == 0 {
		return "-"
	}
	slices.Sort(list)
	return fmt.Sprintf("%s %s %s", seconds(list[0]), seconds(median(list)), seconds(list[len(list)-1]))
}

// A column of the table is one time of a round; 0: it has none.
type column struct {
	name string
	of   func(*Measured) time.Duration
}

var columns = []column{
	{"detected", func(m *Measured) time.Duration { return m.Detected }},
	{"fenced", func(m *Measured) time.Duration { return m.Confirmed }},
	{"stopped", func(m *Measured) time.Duration { return m.Stopped }},
	{"promoted", func(m *Measured) time.Duration { return m.Promoted }},
	{"kernel", func(m *Measured) time.Duration { return m.Kernel }},
	{"first record", func(m *Measured) time.Duration { return m.First }},
	{"I/O again", func(m *Measured) time.Duration { return m.Resumed }},
	{"client's gap", func(m *Measured) time.Duration { return m.Gap }},
	{"well again", func(m *Measured) time.Duration { return m.Settled }},
}

// Table prints the times, for each kind of fault and arbiter minimum, median and
// maximum in seconds, with the promised bar. * marks those that struck the host
// which led etcd: then there is an election, and all leases begin anew. A column
// without any figure is left out.
func (rep *Report) Table(out io.Writer) {
	const width = 18
	used := rep.usedColumns()
	fmt.Fprintf(out, "\n%-42s %3s", "seconds: min median max (*: led etcd)", "n")
	for _, c := range used {
		fmt.Fprintf(out, "  %-*s", width, c.name)
	}
	fmt.Fprintln(out, "  promised")
	for _, r := range rep.rows() {
		fmt.Fprintf(out, "%-42s %3d", r.name, len(r.of))
		for _, c := range used {
			fmt.Fprintf(out, "  %-*s", width, spread(r.values(c)))
		}
		fmt.Fprintln(out, "  "+r.promise())
	}
}

// usedColumns are those that have any figure.
func (rep *Report) usedColumns() []column {
	return slices.DeleteFunc(slices.Clone(columns), func(c column) bool {
		return !slices.ContainsFunc(rep.Rounds, func(m Measured) bool { return c.of(&m) != 0 })
	})
}

// A row is the rounds of one kind.
type row struct {
	name string
	led  bool
	of   []Measured
}

func (r *row) values(c column) []time.Duration {
	list := make([]time.Duration, len(r.of))
	for i := range r.of {
		list[i] = c.of(&r.of[i])
	}
	return list
}

// rows has the kinds in their order; what struck the host that led etcd has a bar of
// its own, or none, hence a row.
func (rep *Report) rows() (rows []row) {
	for _, arbiter := range []Arbiter{ArbiterEtcd, ArbiterWitness, ArbiterFence} {
		for _, f := range faults() {
			for _, led := range []bool{false, true} {
				r := row{name: fmt.Sprintf("%-7s %s", arbiter, f.name), led: led}
				if led {
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

// promise is the bars, and how many rounds missed each.
func (r *row) promise() string {
	var all []string
	for i, b := range r.of[0].bars() {
		missed := 0
		for k := range r.of {
			if bars := r.of[k].bars(); i < len(bars) && bars[i].got > bars[i].limit {
				missed++
			}
		}
		text := fmt.Sprintf("%s %s", b.what, seconds(b.limit))
		if missed > 0 {
			text += fmt.Sprintf(" (MISSED %d times)", missed)
		}
		all = append(all, text)
	}
	switch f := kindOf(r.of[0].Fault); {
	case len(all) > 0:
		return strings.Join(all, ", ")
	case f.barred && f.want == goesOn && r.led:
		return "none: etcd elects a leader meanwhile"
	}
	return "-"
}
