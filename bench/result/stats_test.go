package result

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 10}, 3}} {
		if got := Median(tt.values); got != tt.want {
			t.Errorf("median of %v = %v, want %v", tt.values, got, tt.want)
		}
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("the median of nothing is a number")
	}
}

// rounds draws n rounds of two variants on a machine whose speed moves by
// factor 2 from round to round; b is slower by the factor of effect, and each
// round of each moves by noise (relative) besides. kind is the noise's form.
func drawRounds(rng *rand.Rand, n int, effect, noise float64, kind string) (a, b []float64) {
	draw := func() float64 {
		x := rng.NormFloat64() * noise
		if kind == "spikes" && rng.IntN(10) == 0 {
			x -= 8 * noise * rng.Float64() // another program had the machine
		}
		return math.Exp(x)
	}
	for range n {
		machine := 10000 * math.Exp2(rng.Float64()-0.5)
		a, b = append(a, machine*draw()), append(b, machine/effect*draw())
	}
	return a, b
}

func shareOfDifferences(n int, effect, noise float64, kind string, unpaired bool) float64 {
	rng := rand.New(rand.NewPCG(77, uint64(n)))
	const trials = 400
	found := 0
	for range trials {
		a, b := drawRounds(rng, n, effect, noise, kind)
		i := PairedRatio(a, b)
		if unpaired {
			i = UnpairedRatio(a, b)
		}
		if i.Differs() {
			found++
		}
	}
	return float64(found) / trials
}

// TestFalseAlarms draws rounds of two variants that are equal. 5 % of the
// intervals may say otherwise; 400 draws move that by 2.2 points (2 sigma).
func TestFalseAlarms(t *testing.T) {
	for _, n := range []int{4, 5, 7, 10, 20} {
		for _, kind := range []string{"normal", "spikes"} {
			if got := shareOfDifferences(n, 1, 0.05, kind, false); got > 0.07 {
				t.Errorf("%d rounds, %s noise, paired: %.1f %% of false alarms", n, kind, 100*got)
			}
			if got := shareOfDifferences(n, 1, 0.05, kind, true); got > 0.07 {
				t.Errorf("%d rounds, %s noise, not paired: %.1f %% of false alarms", n, kind, 100*got)
			}
		}
	}
}

// TestPower draws rounds whose true difference is 10 %, with 3 % of noise on
// each side, on a machine that moves by a factor of 2: pairing finds it.
func TestPower(t *testing.T) {
	for _, tt := range []struct {
		rounds      int
		effect      float64
		noise, want float64
	}{{5, 1.1, 0.03, 0.85}, {10, 1.1, 0.03, 0.99}, {10, 1.1, 0.06, 0.8}, {20, 1.03, 0.03, 0.8}} {
		if got := shareOfDifferences(tt.rounds, tt.effect, tt.noise, "normal", false); got < tt.want {
			t.Errorf("%d rounds, effect %v, noise %v: found in %.0f %% of the cases, want %.0f %%", tt.rounds, tt.effect, tt.noise, 100*got, 100*tt.want)
		}
	}
	if got := shareOfDifferences(10, 1.1, 0.03, "normal", true); got > 0.5 {
		t.Errorf("not paired: found in %.0f %% of the cases: the machine's own moves should hide it", 100*got)
	}
}

// TestCoverage asks whether the interval has the true ratio in it.
func TestCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{5, 10} {
		inside := 0
		const trials = 1000
		for range trials {
			if i := PairedRatio(drawRounds(rng, n, 1.25, 0.08, "normal")); i.Low <= 1.25 && 1.25 <= i.High {
				inside++
			}
		}
		if share := float64(inside) / trials; share < 0.935 || share > 0.985 {
			t.Errorf("%d rounds: the truth is in %.1f %% of the intervals", n, 100*share)
		}
	}
}

func TestIntervals(t *testing.T) {
	same := PairedRatio([]float64{5, 5, 5, 5, 5}, []float64{4, 4, 4, 4, 4})
	if math.Abs(same.Mid-1.25) > 1e-12 || math.Abs(same.Low-1.25) > 1e-12 || math.Abs(same.High-1.25) > 1e-12 || !same.Differs() {
		t.Errorf("no noise at all: %+v", same)
	}
	few := PairedRatio([]float64{5, 5, 5}, []float64{4, 4, 4})
	if few.Sure() || few.Differs() {
		t.Errorf("three rounds are too few: %+v", few)
	}
	if none := PairedRatio(nil, []float64{1}); none != (Interval{}) {
		t.Errorf("no rounds: %+v", none)
	}
	if one := UnpairedRatio([]float64{2}, []float64{1}); one.Mid != 2 || one.Rounds != 1 || one.Differs() {
		t.Errorf("one round: %+v", one)
	}
	if zero := PairedRatio([]float64{0, 2, math.NaN()}, []float64{1, 1, 1}); zero.Rounds != 1 {
		t.Errorf("rounds without a figure don't count: %+v", zero)
	}
	a, b := []float64{10, 12, 9, 11, 13}, []float64{9, 9, 10, 9, 12}
	if PairedRatio(a, b) != PairedRatio(a, b) {
		t.Error("the same data give another interval")
	}
}

func TestStudentT(t *testing.T) {
	for n, want := range map[int]float64{1: 12.706, 4: 2.776, 5: 2.571, 9: 2.262, 19: 2.093, 100: 1.984} {
		if got := studentT(n); math.Abs(got-want) > 0.005*want {
			t.Errorf("t(%d) = %.3f, want %.3f", n, got, want)
		}
	}
}
