package result

import (
	"math"
	"math/rand/v2"
	"slices"
)

// MinRounds is how many rounds an interval needs at least. With fewer the
// spread of the rounds themselves is not known well enough to tell a change
// from noise.
const MinRounds = 4

const (
	resamples = 2000 // of one interval; its ends move by less than the noise from 1000 on
	seed      = 8104 // the same data give the same interval, always
)

// Median returns the middle of v, the mean of both middles if there is an even
// number of them, NaN for nothing. v is left as it is.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// MedianOf is the Median of one field of all.
func MedianOf[T any](all []T, field func(T) float64) float64 {
	v := make([]float64, 0, len(all))
	for _, x := range all {
		v = append(v, field(x))
	}
	return Median(v)
}

// An Interval is a figure with what chance leaves open.
type Interval struct {
	Mid    float64 `json:"mid"`
	Low    float64 `json:"low"`  // 95 % confidence
	High   float64 `json:"high"` // 95 % confidence
	Rounds int     `json:"rounds"`
}

// Sure reports that there were rounds enough for Low and High to mean anything.
func (i Interval) Sure() bool { return i.Rounds >= MinRounds }

// Differs reports that the interval shows a ratio other than 1.
func (i Interval) Differs() bool { return i.Sure() && (i.Low > 1 || i.High < 1) }

// PairedRatio is by which factor a is larger than b: the geometric mean of the
// ratios within the rounds and its 95 % interval. a[i] and b[i] come from the
// same round, so that what slowed the machine down in that round slowed both.
// Rounds where one is not positive don't count. The zero Interval is no round.
func PairedRatio(a, b []float64) Interval {
	var logs []float64
	for i := range min(len(a), len(b)) {
		if a[i] > 0 && b[i] > 0 {
			logs = append(logs, math.Log(a[i]/b[i]))
		}
	}
	rng := rand.New(rand.NewPCG(seed, uint64(len(logs))))
	return interval(mean(logs), len(logs), func() float64 { return resampledMean(rng, logs) })
}

// UnpairedRatio is PairedRatio for rounds that have nothing to do with one
// another, such as those of two runs on different days.
func UnpairedRatio(a, b []float64) Interval {
	la, lb := logsOf(a), logsOf(b)
	n := min(len(la), len(lb))
	if n == 0 {
		return Interval{}
	}
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	return interval(mean(la)-mean(lb), n, func() float64 { return resampledMean(rng, la) - resampledMean(rng, lb) })
}

func logsOf(v []float64) (logs []float64) {
	for _, x := range v {
		if x > 0 {
			logs = append(logs, math.Log(x))
		}
	}
	return logs
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

func resampledMean(rng *rand.Rand, v []float64) float64 {
	sum := 0.0
	for range v {
		sum += v[rng.IntN(len(v))]
	}
	return sum / float64(len(v))
}

// interval is the bootstrap of a mean of n logarithms, made fit for few rounds.
// The plain percentile bootstrap takes the n values for the whole distribution:
// it is narrow by sqrt((n-1)/n), by what Student's t is wider than a normal
// distribution, and it never reaches beyond the values themselves; with five
// rounds one in six of its alarms is false. So its percentiles are moved out by
// both factors (Hesterberg 2015, "What teachers should know about the
// bootstrap", section 5), and the interval is at least as wide as Student's
// with the bootstrap's standard error. TestFalseAlarms has the proof.
func interval(mid float64, n int, draw func() float64) Interval {
	if n == 0 {
		return Interval{}
	}
	i := Interval{Mid: math.Exp(mid), Low: math.Exp(mid), High: math.Exp(mid), Rounds: n}
	if n < 2 {
		return i
	}
	draws := make([]float64, resamples)
	for k := range draws {
		draws[k] = draw()
	}
	slices.Sort(draws)
	wide := studentT(n-1) * math.Sqrt(float64(n)/float64(n-1))
	tail, reach := normalTail(wide), wide*deviation(draws)
	i.Low = math.Exp(min(quantile(draws, tail), mid-reach))
	i.High = math.Exp(max(quantile(draws, 1-tail), mid+reach))
	return i
}

// deviation is the standard deviation of many values.
func deviation(v []float64) float64 {
	m, sum := mean(v), 0.0
	for _, x := range v {
		sum += (x - m) * (x - m)
	}
	return math.Sqrt(sum / float64(len(v)))
}

// quantile interpolates between sorted values.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := min(int(at), len(sorted)-2)
	part := at - float64(low)
	return sorted[low]*(1-part) + sorted[low+1]*part
}

// normalTail is the part of a normal distribution above z standard deviations.
func normalTail(z float64) float64 { return math.Erfc(z/math.Sqrt2) / 2 }

// studentT is the two-sided 95 % quantile of Student's distribution with n
// degrees of freedom: Cornish and Fisher's expansion, exact to 0.2 % from 4 on,
// a table below.
func studentT(n int) float64 {
	if small := []float64{math.Inf(1), 12.706, 4.303, 3.182, 2.776}; n < len(small) {
		return small[n]
	}
	const z = 1.959964
	d := float64(n)
	return z + (z*z*z+z)/(4*d) + (5*math.Pow(z, 5)+16*z*z*z+3*z)/(96*d*d) + (3*math.Pow(z, 7)+19*math.Pow(z, 5)+17*z*z*z-15*z)/(384*d*d*d)
}
