package bench

import (
	"fmt"
	"io"

	"github.com/pollux-project/pollux/bench/result"
)

// WriteTable writes what people look at: medians over the rounds, and the bars.
func WriteTable(w io.Writer, run *result.Run) error {
	for _, s := range run.Summaries() {
		fmt.Fprintf(w, "%-32s %-18s %9.0f IOPS  p50 %8.1f us  p99 %8.1f us  CPU %6.1f us\n", s.Workload, s.Target, s.IOPS, s.P50, s.P99, s.CPU)
	}
	for _, b := range run.Bars {
		verdict := "MISSED"
		if b.Met {
			verdict = "met"
		}
		fmt.Fprintf(w, "%-6s  %-44s %-18s %s\n", verdict, b.What, b.Want, b.Got)
	}
	for _, n := range run.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	return nil
}
