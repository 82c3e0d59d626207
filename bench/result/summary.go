package result

import "slices"

// A Metric is one figure of a Sample.
type Metric string

// The metrics. Of all but MetricIOPS less is better.
const (
	MetricIOPS     Metric = "iops"
	MetricP50      Metric = "p50"      // us
	MetricP99      Metric = "p99"      // us
	MetricP999     Metric = "p99.9"    // us
	MetricCPU      Metric = "cpu"      // us of all server processes, an operation
	MetricSyscalls Metric = "syscalls" // an operation
)

// MoreIsBetter reports on which side of 1 a ratio of this metric is good.
func (m Metric) MoreIsBetter() bool { return m == MetricIOPS }

// Value is the metric's figure; 0 if the sample does not have it.
func (s *Sample) Value(m Metric) float64 {
	switch m {
	case MetricIOPS:
		return s.IOPS()
	case MetricP50:
		return s.Latency.PMicros(0.5)
	case MetricP99:
		return s.Latency.PMicros(0.99)
	case MetricP999:
		return s.Latency.PMicros(0.999)
	case MetricCPU:
		return s.CPUMicros
	case MetricSyscalls:
		return s.SyscallsPerOp
	default:
		return 0
	}
}

// A Summary is what all rounds of one workload on one target come to: medians,
// unless a field says otherwise. Latencies and CPU are microseconds; what is
// not known is 0.
type Summary struct {
	Workload string
	Target   string
	Rounds   int
	IOPS     float64
	Best     float64 // IOPS of the best round, nearest to what a quiet machine does
	Least    float64 // IOPS of the worst round
	BytesPS  float64 // bytes per second
	P50      float64
	P90      float64
	P99      float64
	P999     float64
	Max      float64 // of all rounds
	CPU      float64
	Syscalls float64
	Errors   int64 // of all rounds together
}

// PrimaryClient is the client whose samples of a workload on a target are
// summed up: the Go client where it measured, another one where only that did,
// so that two clients' figures are never mixed.
func (r *Run) PrimaryClient(workload, target string) string {
	client := ""
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Workload != workload || s.Target != target {
			continue
		}
		if s.Client == ClientGo {
			return ClientGo
		}
		if client == "" {
			client = s.Client
		}
	}
	return client
}

// SamplesOf returns the samples of one client, in the order of the rounds; ""
// means the primary client.
func (r *Run) SamplesOf(workload, target, client string) []*Sample {
	if client == "" {
		client = r.PrimaryClient(workload, target)
	}
	var all []*Sample
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Workload == workload && s.Target == target && s.Client == client {
			all = append(all, s)
		}
	}
	slices.SortStableFunc(all, func(a, b *Sample) int { return a.Round - b.Round })
	return all
}

// Summary sums up the rounds of a workload on a target; Rounds is 0 if it was
// not measured.
func (r *Run) Summary(workload, target string) Summary {
	return summarize(workload, target, r.SamplesOf(workload, target, ""))
}

func summarize(workload, target string, all []*Sample) Summary {
	sum := Summary{Workload: workload, Target: target, Rounds: len(all)}
	if len(all) == 0 {
		return sum
	}
	metric := func(m Metric) float64 { return MedianOf(all, func(s *Sample) float64 { return s.Value(m) }) }
	sum.IOPS, sum.P50, sum.P99, sum.P999 = metric(MetricIOPS), metric(MetricP50), metric(MetricP99), metric(MetricP999)
	sum.CPU, sum.Syscalls = metric(MetricCPU), metric(MetricSyscalls)
	sum.BytesPS = MedianOf(all, (*Sample).BytesPerSecond)
	sum.P90 = MedianOf(all, func(s *Sample) float64 { return s.Latency.PMicros(0.9) })
	sum.Least = all[0].IOPS()
	for _, s := range all {
		sum.Best, sum.Least = max(sum.Best, s.IOPS()), min(sum.Least, s.IOPS())
		sum.Max = max(sum.Max, s.Latency.PMicros(1))
		sum.Errors += s.Errors
	}
	return sum
}

// Summaries returns one Summary for every workload and target that was
// measured, in the order in which Workloads and Targets name them.
func (r *Run) Summaries() []Summary {
	var all []Summary
	for _, w := range r.Workloads {
		for _, t := range r.Targets {
			if s := r.Summary(w.Name, t.Name); s.Rounds > 0 {
				all = append(all, s)
			}
		}
	}
	return all
}

// Merged is the histogram of all rounds of a workload on a target together;
// empty if nothing was measured.
func (r *Run) Merged(workload, target string) *Histogram {
	h := NewHistogram()
	for _, s := range r.SamplesOf(workload, target, "") {
		h.Merge(s.Latency)
	}
	return h
}

// Rounds returns a metric of two targets under one workload, round by round;
// rounds in which one of them was not measured are left out.
func (r *Run) Rounds(workload, a, b string, m Metric) (va, vb []float64) {
	return rounds(r.SamplesOf(workload, a, ""), r.SamplesOf(workload, b, ""), m)
}

func rounds(sa, sb []*Sample, m Metric) (va, vb []float64) {
	for _, x := range sa {
		i := slices.IndexFunc(sb, func(y *Sample) bool { return y.Round == x.Round })
		if i < 0 {
			continue
		}
		if p, q := x.Value(m), sb[i].Value(m); p > 0 && q > 0 {
			va, vb = append(va, p), append(vb, q)
		}
	}
	return va, vb
}

// Ratio is the median, over the rounds, of a's metric divided by b's in the
// same round; NaN if no round has both. Bars are about it.
func (r *Run) Ratio(workload, a, b string, m Metric) float64 {
	va, vb := r.Rounds(workload, a, b, m)
	ratios := make([]float64, len(va))
	for i := range va {
		ratios[i] = va[i] / vb[i]
	}
	return Median(ratios)
}

// RatioInterval is Ratio with what chance leaves open, see PairedRatio.
func (r *Run) RatioInterval(workload, a, b string, m Metric) Interval {
	return PairedRatio(r.Rounds(workload, a, b, m))
}

// BestRival is the target of KindPair with the highest median IOPS under a
// workload, the one that a bar is about; "" if no pair was measured.
func (r *Run) BestRival(workload string) string { return r.bestOf(workload, KindPair) }

// RivalOf is what a target of Pollux is set against under a workload: the best
// pair, or for a node alone (no protocol) the best single copy; "" if there is
// none, or the target is not Pollux.
func (r *Run) RivalOf(workload string, t *Target) string {
	switch {
	case t.Kind != KindPollux:
		return ""
	case t.Protocol == "":
		return r.bestOf(workload, KindCopy)
	default:
		return r.BestRival(workload)
	}
}

func (r *Run) bestOf(workload, kind string) string {
	best, iops := "", 0.0
	for _, t := range r.Targets {
		if t.Kind != kind {
			continue
		}
		if s := r.Summary(workload, t.Name); s.Rounds > 0 && s.IOPS > iops {
			best, iops = t.Name, s.IOPS
		}
	}
	return best
}

// MeasureMedian is the median over the rounds of one measure; NaN if it was
// not taken. "" as detail means any.
func (r *Run) MeasureMedian(name, target, detail string) float64 {
	var v []float64
	for _, m := range r.Measures {
		if m.Name == name && m.Target == target && (detail == "" || m.Detail == detail) {
			v = append(v, m.Value)
		}
	}
	return Median(v)
}
