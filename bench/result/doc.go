// Package result is what a benchmark leaves: every sample of every round with
// its whole latency histogram, the machine, the settings, the bars. It has no
// opinion about how anything was measured; package bench fills it, package
// bench/report shows it, `pollux-bench compare` sets two of them side by side.
//
// One file is one Run as JSON. Its first field is the format, so that a file of
// another version is refused by name instead of being read wrongly.
//
//	run := &result.Run{Format: result.Format, Started: time.Now().UTC()}
//	h := result.NewHistogram()
//	h.Record(120 * time.Microsecond)
//	run.Samples = append(run.Samples, result.Sample{Round: 1, Workload: "randwrite-4k-qd1-buffered", Target: "pollux-c", Client: "go", Seconds: 3, Ops: 1, Latency: h})
//	err := run.Write("build/bench/run.json")
//
// Units: a field says its own (Bytes, Micros, Seconds); latencies inside a
// Histogram are nanoseconds, in figures for people microseconds.
//
// Nothing here is safe for concurrent use: who measures with several
// goroutines gives each its own Histogram and merges them.
package result
