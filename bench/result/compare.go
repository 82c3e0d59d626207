package result

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Verdict says what a Change comes to.
type Verdict string

// The verdicts. Faster and Slower are meant for latencies and CPU too: less of
// them is Faster.
const (
	Faster   Verdict = "faster"
	Slower   Verdict = "slower"
	NotShown Verdict = "no difference shown" // the interval has 1 in it
	TooFew   Verdict = "too few rounds"      // fewer than MinRounds on a side
)

// A Change is one metric of one workload on one target in two runs.
type Change struct {
	Metric  Metric   `json:"metric"`
	A       float64  `json:"a"` // median over the rounds
	B       float64  `json:"b"`
	Factor  Interval `json:"factor"` // B as a multiple of A
	Verdict Verdict  `json:"verdict"`
}

// worse is by which part B is worse than A, 0.1 for 10 %; negative if better.
func (c *Change) worse() float64 {
	if c.Factor.Rounds == 0 {
		return 0
	}
	if c.Metric.MoreIsBetter() {
		return 1 - c.Factor.Mid
	}
	return c.Factor.Mid - 1
}

// A Pairing is one workload on one target that both runs have.
type Pairing struct {
	Workload string   `json:"workload"`
	Target   string   `json:"target"`
	Kind     string   `json:"kind"`    // of the target
	Changes  []Change `json:"changes"` // IOPS, p50, p99, CPU; only metrics that both runs have
}

// A Comparison is what changed from run A to run B.
type Comparison struct {
	Interleaved bool      `json:"interleaved"` // the runs were measured in the same minutes, so their rounds are pairs
	Differences []string  `json:"differences"` // of machine, settings and workloads: then not only Pollux has changed
	OnlyInOne   []string  `json:"only_in_one"` // workloads on targets that just one run has
	Pairings    []Pairing `json:"pairings"`
}

// ErrNothingInCommon says that two runs measured different things.
var ErrNothingInCommon = errors.New("the runs have no workload and target in common: there is nothing to compare")

// compared are the metrics of a Pairing.
var compared = []Metric{MetricIOPS, MetricP50, MetricP99, MetricCPU}

// Compare sets run b beside run a, workload by workload and target by target.
// Where the runs overlap in time their rounds were interleaved, and each round
// of b is set against the same round of a; otherwise the rounds of each run are
// as good as one another, and what differs between the two hours is in the
// interval too. The error is ErrNothingInCommon.
func Compare(a, b *Run) (*Comparison, error) {
	c := &Comparison{Interleaved: overlap(a, b), Differences: differences(a, b)}
	seen := map[[2]string]bool{}
	for _, run := range []*Run{a, b} {
		for _, s := range run.Summaries() {
			key := [2]string{s.Workload, s.Target}
			if seen[key] {
				continue
			}
			seen[key] = true
			sa, sb := a.SamplesOf(s.Workload, s.Target, ""), b.SamplesOf(s.Workload, s.Target, "")
			if len(sa) == 0 || len(sb) == 0 {
				c.OnlyInOne = append(c.OnlyInOne, s.Workload+" on "+s.Target)
				continue
			}
			if wa, wb := *a.Workload(s.Workload), *b.Workload(s.Workload); wa != wb {
				c.Differences = append(c.Differences, fmt.Sprintf("workload %s: not the same in both", s.Workload))
			}
			if sa[0].Client != sb[0].Client {
				c.Differences = append(c.Differences, fmt.Sprintf("%s on %s: measured by %s and by %s", s.Workload, s.Target, sa[0].Client, sb[0].Client))
			}
			p := pairing(s, sa, sb, c.Interleaved)
			p.Kind = run.Target(s.Target).Kind
			c.Pairings = append(c.Pairings, p)
		}
	}
	if len(c.Pairings) == 0 {
		return nil, ErrNothingInCommon
	}
	return c, nil
}

// Regressions are the changes for the worse of Pollux that are shown, and are
// larger than part: 0.05 is 5 %. A rival may become as slow as it likes.
func (c *Comparison) Regressions(part float64) (found []string) {
	for _, p := range c.Pairings {
		if p.Kind != KindPollux {
			continue
		}
		for i := range p.Changes {
			if change := &p.Changes[i]; change.Verdict == Slower && change.worse() > part {
				found = append(found, fmt.Sprintf("%s on %s: %s %+.1f %%", p.Workload, p.Target, change.Metric, 100*(change.Factor.Mid-1)))
			}
		}
	}
	return found
}

// overlap reports that the runs were measured in the same minutes. A run that
// was cut short has no end: it overlaps nothing.
func overlap(a, b *Run) bool {
	return a.Started.Before(b.Ended) && b.Started.Before(a.Ended)
}

func pairing(s Summary, sa, sb []*Sample, interleaved bool) Pairing {
	p := Pairing{Workload: s.Workload, Target: s.Target}
	for _, m := range compared {
		va, vb := values(sa, m), values(sb, m)
		if len(va) == 0 || len(vb) == 0 {
			continue
		}
		c := Change{Metric: m, A: Median(va), B: Median(vb)}
		if interleaved {
			inA, inB := rounds(sa, sb, m)
			c.Factor = PairedRatio(inB, inA)
		} else {
			c.Factor = UnpairedRatio(vb, va)
		}
		c.Verdict = c.judge()
		p.Changes = append(p.Changes, c)
	}
	return p
}

func values(all []*Sample, m Metric) (v []float64) {
	for _, s := range all {
		if x := s.Value(m); x > 0 {
			v = append(v, x)
		}
	}
	return v
}

func (c *Change) judge() Verdict {
	switch {
	case !c.Factor.Sure():
		return TooFew
	case !c.Factor.Differs():
		return NotShown
	case c.worse() > 0:
		return Slower
	default:
		return Faster
	}
}

// differences are what else changed between two runs.
func differences(a, b *Run) (list []string) {
	differ := func(what string, va, vb any) {
		if ta, tb := fmt.Sprint(va), fmt.Sprint(vb); ta != tb {
			list = append(list, fmt.Sprintf("%s: %s and %s", what, orNothing(ta), orNothing(tb)))
		}
	}
	differ("kernel", a.Machine.Kernel, b.Machine.Kernel)
	differ("CPU", a.Machine.CPUModel, b.Machine.CPUModel)
	differ("number of CPUs", a.Machine.CPUs, b.Machine.CPUs)
	differ("memory, bytes", a.Machine.MemoryBytes, b.Machine.MemoryBytes)
	differ("filesystem", a.Machine.Filesystem, b.Machine.Filesystem)
	sa, sb := a.Settings, b.Settings
	differ("seconds of a sample", sa.Seconds, sb.Seconds)
	differ("seconds of warm-up", sa.WarmupSeconds, sb.WarmupSeconds)
	differ("size of the volumes, bytes", sa.SizeBytes, sb.SizeBytes)
	differ("own network namespace", sa.Isolated, sb.Isolated)
	differ("delay between the nodes, us", sa.DelayMicros, sb.DelayMicros)
	differ("bandwidth between the nodes, Mbit/s", sa.BandwidthMbit, sb.BandwidthMbit)
	for _, v := range a.Machine.Versions {
		if !ours(v) && !slices.Contains(b.Machine.Versions, v) {
			list = append(list, fmt.Sprintf("%q is in the first run only", v))
		}
	}
	for _, v := range b.Machine.Versions {
		if !ours(v) && !slices.Contains(a.Machine.Versions, v) {
			list = append(list, fmt.Sprintf("%q is in the second run only", v))
		}
	}
	return list
}

// ours is a version of Pollux: that it differs is why runs are compared.
func ours(version string) bool { return strings.Contains(strings.ToLower(version), "pollux") }

func orNothing(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
