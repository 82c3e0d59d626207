package result

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// version is a run of one workload whose target has the given p50 (us) and CPU,
// with 3 % of noise on a machine that moves by its own factor in each round.
func version(rng *rand.Rand, machine []float64, p50, cpu float64) *Run {
	r := &Run{
		Format: Format, Started: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Ended: time.Date(2026, 11, 21, 12, 5, 0, 0, time.UTC),
		Machine:   Machine{Kernel: "6.1.0", CPUs: 2, Versions: []string{"polluxd 1", "fio-3.33"}},
		Workloads: []Workload{{Name: "w", Op: OpWrite, Pattern: PatternRandom, BlockBytes: 4096, Depth: 1, Connections: 1, Class: ClassBuffered}},
		Targets:   []Target{{Name: "pollux-c", Kind: KindPollux}},
	}
	for i, m := range machine {
		noise := func() float64 { return m * math.Exp(0.03*rng.NormFloat64()) }
		h := NewHistogram()
		one := p50 * noise()
		h.RecordN(time.Duration(one*1000), 990)
		h.RecordN(time.Duration(3*p50*noise()*1000), 10)
		r.Samples = append(r.Samples, Sample{Round: i + 1, Workload: "w", Target: "pollux-c", Client: ClientGo, Seconds: 1, Ops: int64(1e6 / one), Latency: h, CPUMicros: cpu * noise()})
	}
	return r
}

func machineMoves(rng *rand.Rand, n int) (m []float64) {
	for range n {
		m = append(m, math.Exp2(rng.Float64()-0.5))
	}
	return m
}

func verdicts(t *testing.T, a, b *Run) map[Metric]Verdict {
	t.Helper()
	c, err := Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	all := map[Metric]Verdict{}
	for _, change := range c.Pairings[0].Changes {
		all[change.Metric] = change.Verdict
	}
	return all
}

func TestCompareKnownTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	moves := machineMoves(rng, 7)
	for _, tt := range []struct {
		name     string
		p50, cpu float64
		rounds   int
		want     map[Metric]Verdict
	}{
		{"faster and cheaper", 80, 30, 7, map[Metric]Verdict{MetricIOPS: Faster, MetricP50: Faster, MetricP99: Faster, MetricCPU: Faster}},
		{"slower", 125, 40, 7, map[Metric]Verdict{MetricIOPS: Slower, MetricP50: Slower, MetricP99: Slower, MetricCPU: NotShown}},
		{"dearer", 100, 50, 7, map[Metric]Verdict{MetricIOPS: NotShown, MetricP50: NotShown, MetricP99: NotShown, MetricCPU: Slower}},
		{"three rounds", 50, 20, 3, map[Metric]Verdict{MetricIOPS: TooFew, MetricP50: TooFew, MetricP99: TooFew, MetricCPU: TooFew}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := version(rng, moves[:tt.rounds], 100, 40), version(rng, moves[:tt.rounds], tt.p50, tt.cpu)
			for m, want := range tt.want {
				if got := verdicts(t, a, b)[m]; got != want {
					t.Errorf("%s: %s, want %s", m, got, want)
				}
			}
		})
	}
}

// TestComparePairs: runs of the same minutes are compared round by round, which
// finds what the moves of the machine hide otherwise.
func TestComparePairs(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	moves := machineMoves(rng, 8)
	a, b := version(rng, moves, 100, 40), version(rng, moves, 110, 40)
	if got := verdicts(t, a, b)[MetricIOPS]; got != Slower {
		t.Errorf("interleaved: %s", got)
	}
	b.Started, b.Ended = a.Ended.Add(time.Hour), a.Ended.Add(2*time.Hour)
	c, err := Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if c.Interleaved || c.Pairings[0].Changes[0].Verdict != NotShown {
		t.Errorf("an hour apart: interleaved %v, %+v", c.Interleaved, c.Pairings[0].Changes[0])
	}
}

func TestCompareFalseAlarms(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	alarms, changes := 0, 0
	for range 100 {
		moves := machineMoves(rng, 5)
		c, err := Compare(version(rng, moves, 100, 40), version(rng, moves, 100, 40))
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range c.Pairings[0].Changes {
			changes++
			if change.Verdict != NotShown {
				alarms++
			}
		}
		if len(c.Regressions(0.1)) > 0 {
			t.Errorf("a regression of equals by 10 %%: %v", c.Regressions(0.1))
		}
	}
	if alarms > changes*8/100 {
		t.Errorf("%d false alarms in %d comparisons", alarms, changes)
	}
}

func TestRegressions(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	moves := machineMoves(rng, 8)
	c, err := Compare(version(rng, moves, 100, 40), version(rng, moves, 120, 40))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Regressions(0.05); len(got) != 3 || !strings.HasPrefix(got[0], "w on pollux-c: iops -1") {
		t.Errorf("above 5 %%: %q", got)
	}
	if got := c.Regressions(0.5); len(got) != 0 {
		t.Errorf("above 50 %%: %q", got)
	}
	a, b := version(rng, moves, 100, 40), version(rng, moves, 120, 40)
	a.Targets[0].Kind, b.Targets[0].Kind = KindPair, KindPair
	rival, err := Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if got := rival.Regressions(0.05); len(got) != 0 {
		t.Errorf("a rival's: %q", got)
	}
	better, err := Compare(version(rng, moves, 120, 40), version(rng, moves, 100, 40))
	if err != nil {
		t.Fatal(err)
	}
	if got := better.Regressions(0); len(got) != 0 {
		t.Errorf("an improvement is a regression: %q", got)
	}
}

func TestCompareOtherConditions(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	moves := machineMoves(rng, 5)
	a, b := version(rng, moves, 100, 40), version(rng, moves, 100, 40)
	b.Machine.Kernel, b.Machine.CPUs, b.Machine.Versions, b.Settings.DelayMicros = "6.12.0", 64, []string{"polluxd 2", "fio-3.40"}, 500
	b.Workloads[0].Connections = 4
	b.Workloads = append(b.Workloads, Workload{Name: "other"})
	b.Samples = append(b.Samples, Sample{Workload: "other", Target: "pollux-c", Client: ClientGo})
	c, err := Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(c.Differences, "\n")
	for _, want := range []string{"kernel: 6.1.0 and 6.12.0", "number of CPUs: 2 and 64", "delay between the nodes, us: 0 and 500", `"fio-3.33" is in the first run only`, `"fio-3.40" is in the second`, "workload w: not the same"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not among\n%s", want, text)
		}
	}
	if strings.Contains(text, "polluxd") {
		t.Errorf("Pollux' own version is what is compared:\n%s", text)
	}
	if len(c.OnlyInOne) != 1 || c.OnlyInOne[0] != "other on pollux-c" {
		t.Errorf("%q", c.OnlyInOne)
	}
	b.Targets[0].Name = "another"
	for i := range b.Samples {
		b.Samples[i].Target = "another"
	}
	if _, err := Compare(a, b); !errors.Is(err, ErrNothingInCommon) {
		t.Errorf("nothing in common: %v", err)
	}
}
