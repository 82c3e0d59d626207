package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

// WriteMarkdown writes the tables for a document: the bars, all workloads, the
// measures, the machine.
func WriteMarkdown(w io.Writer, run *result.Run) error {
	m := &markdown{}
	if len(run.Bars) > 0 {
		m.head("bar", "asked for", "measured", "")
		for _, b := range run.Bars {
			verdict := "met"
			if !b.Met {
				verdict = "**missed**"
			}
			m.row(b.What, b.Want, b.Got, verdict)
		}
	}
	for _, g := range pageGroups(run) {
		fmt.Fprintf(&m.text, "\n%s\n\n", cell(g.Title))
		m.head("target", g.Unit, "best", "p50", "p99", "p99.9", "CPU/op", "× best rival")
		for _, r := range g.Rows {
			name := r.Target
			if r.Pollux {
				name = "**" + name + "**"
			}
			m.row(name, r.Speed, r.Best, r.P50, r.P99, r.P999, r.CPU, r.Ratio)
		}
	}
	if groups := measureGroups(run); len(groups) > 0 {
		m.text.WriteByte('\n')
		m.head("what", "target", "", "median", "rounds")
		for _, g := range groups {
			for _, r := range g.rows {
				spread := ""
				if len(r.values) > 1 {
					spread = quantity(r.low(), r.unit) + " to " + quantity(r.high(), r.unit)
				}
				m.row(g.name, r.target, r.detail, quantity(r.median(), r.unit), spread)
			}
		}
	}
	m.text.WriteByte('\n')
	for _, t := range run.Targets {
		if t.Skipped != "" {
			fmt.Fprintf(&m.text, "%s was skipped: %s.\n", t.Name, t.Skipped)
		}
	}
	fmt.Fprintf(&m.text, "Measured %s. %s.\n", when(run), strings.Join(machineLines(run), ". "))
	for _, n := range run.Notes {
		fmt.Fprintf(&m.text, "%s\n", n)
	}
	_, err := io.WriteString(w, m.text.String())
	return err
}

type markdown struct{ text strings.Builder }

// head writes a table's first row; all columns that follow words are figures.
func (m *markdown) head(columns ...string) {
	m.row(columns...)
	marks := make([]string, len(columns))
	for i, c := range columns {
		marks[i] = "---"
		if strings.Contains(" IOPS MiB/s best p50 p99 p99.9 CPU/op median ", " "+c+" ") && c != "" {
			marks[i] = "---:"
		}
	}
	m.row(marks...)
}

func (m *markdown) row(cells ...string) {
	for _, c := range cells {
		m.text.WriteString("| " + cell(c) + " ")
	}
	m.text.WriteString("|\n")
}

// cell escapes what would end a cell or begin an element.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(s)
}
