package hatestbed

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// A Report is what the rounds have shown.
type Report struct {
	Config         Config
	Started, Ended time.Time
	Rounds         []Measured // in the order in which they ended
	Acked          int        // records that were promised, to the client or on a console
	MaxBoth        time.Duration
	Harm           int // faults that are a lost record or a second writer
	Faults         []string

	mu sync.Mutex // jobs that run beside one another
}

// say prints a line.
func (rep *Report) say(format string, args ...any) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	fmt.Fprintf(rep.Config.Out, format, args...)
}

// add takes a round and prints it. keep is called if it was slower than promised, or
// wrong, and says where its logs are.
func (rep *Report) add(m Measured, keep func(number int) string) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	m.Number = len(rep.Rounds) + 1
	if len(m.Faults) > 0 || m.missed() {
		m.Logs = keep(m.Number)
	}
	rep.Rounds = append(rep.Rounds, m)
	if !kindOf(m.Fault).twoRun {
		rep.MaxBoth = max(rep.MaxBoth, m.Both)
	}
	rep.Harm += m.Harm
	for _, f := range m.Faults {
		rep.Faults = append(rep.Faults, fmt.Sprintf("round %d, %s, %s: %s", m.Number, m.Arbiter, m.Fault, f))
	}
	fmt.Fprintln(rep.Config.Out, m.line())
}

// count adds acknowledged records.
func (rep *Report) count(acked int) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	rep.Acked += acked
}

// fault notes what was wrong in no single round; harm is how many records that are.
func (rep *Report) fault(harm int, format string, args ...any) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	rep.Harm += harm
	rep.Faults = append(rep.Faults, fmt.Sprintf(format, args...))
}

// Missed is how many rounds were slower than promised.
func (rep *Report) Missed() (n int) {
	for _, m := range rep.Rounds {
		if m.missed() {
			n++
		}
	}
	return n
}

// Verdict prints how it ended and tells whether all is well. A bar that was missed is
// told, and no fault: how fast this machine is, and how busy, is not Pollux's.
func (rep *Report) Verdict(out io.Writer) bool {
	fmt.Fprintf(out, "\n%d rounds in %v, %d acknowledged records, %d lost or written twice; two machines at once for %d ms at most (%d ms are in order)\n",
		len(rep.Rounds), rep.Ended.Sub(rep.Started).Round(time.Second), rep.Acked, rep.Harm, rep.MaxBoth.Milliseconds(), overlapLimit.Milliseconds())
	judged := 0
	for _, m := range rep.Rounds {
		if len(m.bars()) > 0 {
			judged++
		}
	}
	fmt.Fprintf(out, "SPEED: %d of the %d rounds with a promised speed were slower\n", rep.Missed(), judged)
	for _, m := range rep.Rounds {
		for _, b := range m.bars() {
			if b.got > b.limit {
				fmt.Fprintf(out, "  round %d, %s, %s: %s %s s, promised are %s s; its logs are in %s\n", m.Number, m.Arbiter, m.Fault, b.what, seconds(b.got), seconds(b.limit), m.Logs)
			}
		}
	}
	for _, f := range rep.Faults {
		fmt.Fprintln(out, "WRONG:", f)
	}
	return len(rep.Faults) == 0
}

// ControlVerdict prints what each job of the control has seen, and tells whether each
// has seen harm: a record lost, or two that write.
func (rep *Report) ControlVerdict(out io.Writer) bool {
	all := true
	fmt.Fprintln(out, "\nWithout the check of terms:")
	for _, j := range rep.Config.jobs() {
		harm := 0
		for _, m := range rep.Rounds {
			if m.Arbiter == j.arbiter && m.Fault == j.list[0].name {
				harm += m.Harm
			}
		}
		verdict := fmt.Sprintf("%d records lost, or written by two: seen", harm)
		if harm == 0 {
			all, verdict = false, "NOTHING WAS SEEN"
		}
		fmt.Fprintf(out, "  %-7s  %-34s  %s\n", j.arbiter, j.list[0].name, verdict)
	}
	for _, n := range needNoTerm {
		fmt.Fprintf(out, "  no control: %s: %s\n", n.faults, n.why)
	}
	return all
}

// needNoTerm are the faults where the check of terms has nothing to do: without it,
// too, nothing is lost, so they can't show that the harness sees.
var needNoTerm = []struct{ faults, why string }{
	{"kill -9 and loss of power of one host", "who is dead writes no more, and boots as Secondary; that the other one waits for the lease's end is polluxha's doing"},
	{"a stopped host that wakes with its polluxha", "that ends the machine at once, before it writes; 'primary wakes without polluxha' is the same without this second net"},
	{"crashes of polluxha, loss of the arbiter", "the copies stay connected, and each write is on both"},
	{"the link cut, or the secondary lost", "polluxha has the arbiter name the only copy that counts, whether I/O waits for that or not"},
	{"failing disks", "the state of the disk, not a term, keeps its copy out"},
	{"a planned move", "the machine has ended, and its host has demoted, before the other one begins"},
}
