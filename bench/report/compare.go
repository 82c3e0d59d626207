package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

// WriteComparison writes what changed between two runs as a table; nameA and
// nameB are what the user called them.
func WriteComparison(w io.Writer, c *result.Comparison, nameA, nameB string, o Options) error {
	t := &table{Options: o}
	t.wrapped("", fmt.Sprintf("From %s to %s. Changes with 95 %% confidence intervals.", nameA, nameB))
	if c.Interleaved {
		t.wrapped("", "The rounds were interleaved: each is compared with the one beside it.")
	} else {
		t.wrapped("", "The runs were made at different times: what the machine did in between is in the figures too. Interleaved rounds tell more.")
	}
	if len(c.Differences) > 0 {
		t.line("%s", t.paint(red, "Not only Pollux differs:"))
		for _, d := range c.Differences {
			t.wrapped("  - ", d)
		}
	}
	for _, p := range c.Pairings {
		t.line("")
		t.line("%s", t.paint(bold, fmt.Sprintf("%s on %s", p.Workload, p.Target)))
		for i := range p.Changes {
			t.change(&p.Changes[i])
		}
	}
	if len(c.OnlyInOne) > 0 {
		t.line("")
		t.wrapped("Only in one of the runs: ", strings.Join(c.OnlyInOne, ", "))
	}
	_, err := io.WriteString(w, t.text.String())
	return err
}

func (t *table) change(c *result.Change) {
	verdict := string(c.Verdict)
	switch c.Verdict {
	case result.Faster:
		verdict = t.paint(green, verdictOf(c))
	case result.Slower:
		verdict = t.paint(red, verdictOf(c))
	case result.NotShown, result.TooFew:
		verdict = t.paint(dim, verdict)
	}
	interval := ""
	if c.Factor.Sure() {
		interval = fmt.Sprintf("(%s to %s)", percent(c.Factor.Low), percent(c.Factor.High))
	}
	change := ""
	if c.Factor.Rounds > 0 {
		change = percent(c.Factor.Mid)
	}
	t.line("  %-6s %10s → %-10s %9s  %-24s %s", metricName(c.Metric), metricValue(c.Metric, c.A), metricValue(c.Metric, c.B), change, interval, verdict)
}

// verdictOf says faster and slower of what has a speed, and less and more of
// the CPU.
func verdictOf(c *result.Change) string {
	if c.Metric != result.MetricCPU {
		return string(c.Verdict)
	}
	if c.Verdict == result.Faster {
		return "less CPU"
	}
	return "more CPU"
}

func metricName(m result.Metric) string {
	switch m {
	case result.MetricIOPS:
		return "IOPS"
	case result.MetricCPU:
		return "CPU/op"
	default:
		return string(m)
	}
}

func metricValue(m result.Metric, v float64) string {
	if m == result.MetricIOPS {
		return significant(v)
	}
	return micros(v)
}
