package bench

import (
	"fmt"

	"github.com/pollux-project/pollux/bench/result"
)

// The bars of the latency experiment. Source: the project's requirements for
// speed. All are medians of interleaved rounds, ratios within one run.
const (
	tailBar      = 3.0  // p99 as a multiple of p50, at depth 1
	cpuBar       = 0.6  // CPU time per write of both daemons, to the quorum pair's
	agreementBar = 0.10 // by which our own client and fio may differ
	depthBar     = 0.02 // by which what our client has in flight may differ from the depth (our own)
)

// pairBars are least IOPS as multiples of the best fair pair's.
var pairBars = []struct {
	what        string
	depth       int
	connections int
	class       string
	least       float64
}{
	{"4 KiB random write, buffered, QD1", 1, 1, result.ClassBuffered, 1.2},
	{"4 KiB random write, buffered, QD32", 32, 1, result.ClassBuffered, 2.5},
	{"4 KiB random write, buffered, QD32, 4 connections", 32, 4, result.ClassBuffered, 3},
	{"4 KiB random write, O_DIRECT, QD1", 1, 1, result.ClassDirect, 1.15},
	{"4 KiB random write, O_DIRECT, QD16", 16, 1, result.ClassDirect, 1.5},
	{"flush after every write, QD1", 1, 1, result.ClassFlush, 1.2},
	{"flush after every write, 16 writers", 16, 1, result.ClassFlush, 3},
}

// aloneBars are least IOPS of one node alone as multiples of nbdkit's file.
var aloneBars = []struct {
	depth int
	least float64
}{{1, 0.65}, {32, 0.9}}

func randomWrite(depth, connections int, class string) string {
	return workload(result.OpWrite, result.PatternRandom, 4096, depth, connections, class).Name
}

// judgeLatency adds the bars about what was measured; what was not has none.
func judgeLatency(run *result.Run) {
	for _, b := range pairBars {
		w := randomWrite(b.depth, b.connections, b.class)
		if rival := run.BestRival(w); rival != "" {
			judgeRatio(run, b.what, w, "pollux-c", rival, b.least)
		}
	}
	for _, b := range aloneBars {
		judgeRatio(run, fmt.Sprintf("one node alone, QD%d", b.depth), randomWrite(b.depth, 1, result.ClassBuffered), "pollux-alone", "nbdkit-file", b.least)
	}
	judgeTail(run, randomWrite(1, 1, result.ClassBuffered))
	judgeCPU(run, randomWrite(32, 1, result.ClassBuffered))
	judgeProtocols(run, randomWrite(1, 1, result.ClassBuffered))
}

// judgeRatio compares IOPS.
func judgeRatio(run *result.Run, what, workload, target, rival string, least float64) {
	a, b := run.Summary(workload, target), run.Summary(workload, rival)
	if a.Rounds == 0 || b.Rounds == 0 {
		return
	}
	ratio := a.IOPS / b.IOPS
	run.AddBar(result.Bar{
		What: what, Want: fmt.Sprintf(">= %g x %s", least, rival), Ratio: ratio, Met: ratio >= least,
		Got: fmt.Sprintf("%.2f x: %.0f to %.0f IOPS (best rounds %.2f x)", ratio, a.IOPS, b.IOPS, a.Best/b.Best),
	})
}

func judgeTail(run *result.Run, workload string) {
	var ratios []float64
	for _, s := range run.SamplesOf(workload, "pollux-c", "") {
		ratios = append(ratios, s.Value(result.MetricP99)/s.Value(result.MetricP50))
	}
	if ratios == nil {
		return
	}
	ratio, sum := result.Median(ratios), run.Summary(workload, "pollux-c")
	run.AddBar(result.Bar{
		What: "the same at QD1, p99", Want: fmt.Sprintf("<= %g x p50", tailBar), Ratio: ratio, Met: ratio <= tailBar,
		Got: fmt.Sprintf("%.2f x: %.0f to %.0f us", ratio, sum.P99, sum.P50),
	})
}

func judgeCPU(run *result.Run, workload string) {
	rival := run.BestRival(workload)
	a, b := run.Summary(workload, "pollux-c"), run.Summary(workload, rival)
	if a.CPU == 0 || b.CPU == 0 {
		return
	}
	ratio := a.CPU / b.CPU
	run.AddBar(result.Bar{
		What: "CPU per replicated 4 KiB write, QD32", Want: fmt.Sprintf("<= %g x %s", cpuBar, rival), Ratio: ratio, Met: ratio <= cpuBar,
		Got: fmt.Sprintf("%.2f x: %.1f to %.1f us, all daemons", ratio, a.CPU, b.CPU),
	})
}

// judgeProtocols compares latencies: what promises less must not take longer.
func judgeProtocols(run *result.Run, workload string) {
	a, b, c := run.Summary(workload, "pollux-a"), run.Summary(workload, "pollux-b"), run.Summary(workload, "pollux-c")
	if a.Rounds == 0 || b.Rounds == 0 || c.Rounds == 0 {
		return
	}
	run.AddBar(result.Bar{
		What: "latency of the protocols, buffered, QD1", Want: "A <= B <= C", Met: a.P50 <= b.P50 && b.P50 <= c.P50,
		Got: fmt.Sprintf("A %.0f, B %.0f, C %.0f us", a.P50, b.P50, c.P50),
	})
}
