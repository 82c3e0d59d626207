package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// growthExperiment measures whether a write costs more on a larger device.
var growthExperiment = experiment{
	name: "growth", what: "latency and CPU per write from 1 GiB to 16 TiB devices", standard: true,
	run: func(ctx context.Context, s *session) error { return s.growth(ctx) },
}

// growthSizes are of the data. The largest is one GiB short of 16 TiB, which is
// as long as a file of ext4 can be, metadata included.
var growthSizes = []struct {
	name  string
	bytes int64
}{{"1 GiB", 1 << 30}, {"64 GiB", 64 << 30}, {"1 TiB", 1 << 40}, {"16 TiB", 16<<40 - 1<<30}}

const (
	growthBar    = 1.1 // of the largest device's figure to the smallest one's
	growthRegion = 256 << 20
)

func (s *session) growth(ctx context.Context) error {
	p := s.pair("pair")
	for i, size := range growthSizes {
		p.volumes = append(p.volumes, volume{name: fmt.Sprintf("size%d", i), protocol: 'C', io: result.ClassBuffered, bytes: size.bytes, sparse: true, filled: growthRegion})
	}
	if err := checkRoom(s.lab.dir, 2*int64(len(p.volumes))*2*growthRegion); err != nil {
		return err
	}
	s.say("sparse images of 1 GiB to 16 TiB")
	if err := p.prepare(ctx); err != nil {
		return err
	}
	begun := time.Now()
	if err := p.start(ctx); err != nil {
		return err
	}
	s.measure(result.Measure{Name: "time to bring four sizes up", Target: targetPollux, Value: time.Since(begun).Seconds(), Unit: "s"})
	var do []func(context.Context, int) error
	for _, depth := range []int{1, 32} {
		w := workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, result.ClassBuffered)
		s.out.AddWorkload(w)
		for i := range growthSizes {
			do = append(do, func(ctx context.Context, round int) error { return s.growthSample(ctx, p, w, i, round) })
		}
	}
	if err := s.inTurn(ctx, s.cfg.Rounds, do...); err != nil {
		return err
	}
	s.growthBars()
	return p.stop()
}

func growthTarget(i int) string { return "pollux-c-" + growthSizes[i].name }

func (s *session) growthSample(ctx context.Context, p *pair, w result.Workload, i, round int) error {
	v := p.volumes[i]
	if err := settle(p.images(&v)); err != nil {
		return err
	}
	if err := warmRegion(p.images(&v), growthRegion); err != nil {
		return err
	}
	s.out.AddTarget(result.Target{Name: growthTarget(i), Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, a device of " + growthSizes[i].name})
	return s.costSample(ctx, p, v, w, growthTarget(i), growthRegion, round)
}

// costs are what must not grow with the size or the number of devices.
var costs = []struct {
	what  string
	value func(*result.Sample) float64
}{
	{"latency (p50)", func(x *result.Sample) float64 { return x.Latency.PMicros(0.5) }},
	{"CPU per write", func(x *result.Sample) float64 { return x.CPUMicros }},
}

// costSample measures w on the first size bytes of v, with the scheduler's
// account of the CPU time of both daemons.
func (s *session) costSample(ctx context.Context, p *pair, v volume, w result.Workload, target string, size int64, round int) error {
	var micros [2]float64
	var failed error
	look := func(k int) func() {
		return func() {
			for _, d := range p.daemons {
				n, err := scheduledMicros(d.pid())
				micros[k] += n
				failed = errors.Join(failed, err)
			}
		}
	}
	res, err := load.Run(ctx, p.uri(v), load.Spec{
		Workload: w, SizeBytes: size, Seed: uint64(round), Warmup: seconds(s.cfg.Warmup), Duration: seconds(s.cfg.Seconds),
		Begin: look(0), End: look(1),
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	sample := result.Sample{
		Round: round, Workload: w.Name, Target: target, Client: result.ClientGo, Seconds: res.Seconds,
		Ops: res.Ops, Bytes: res.Bytes, Errors: res.Errors, Latency: res.Latency, CPUMicros: (micros[1] - micros[0]) / float64(max(1, res.Ops)),
	}
	sample.Latency.Compact()
	s.out.Samples = append(s.out.Samples, sample)
	s.say("round %d  %-28s %-16s %8.0f IOPS  p50 %7.1f us  CPU %5.1f us", round, w.Name, target, sample.IOPS(), sample.Latency.PMicros(0.5), sample.CPUMicros)
	return nil
}

// growthBars compares each size with the smallest, round by round.
func (s *session) growthBars() {
	last := len(growthSizes) - 1
	for _, depth := range []int{1, 32} {
		name := workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, result.ClassBuffered).Name
		for _, m := range costs {
			for i := range growthSizes {
				ratio := s.sampleRatio(name, growthTarget(i), growthTarget(0), m.value)
				s.measure(result.Measure{Name: m.what + " over 1 GiB's", Target: growthTarget(i), Value: ratio, Unit: "x", Detail: name})
				if i == last {
					s.bar(ratio <= growthBar, ratio, fmt.Sprintf("%s, 16 TiB beside 1 GiB, QD%d", m.what, depth), fmt.Sprintf("<= %.1f x", growthBar), "%.2f x", ratio)
				}
			}
		}
	}
}
