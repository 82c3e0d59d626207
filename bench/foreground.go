package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// foregroundExperiment puts a volume under a steady load of 4 KiB writes, once
// in peace and once while its second copy is made anew, with DRBD's controller on
// in two settings:
//
//   - its defaults: c-max-rate 100M, and c-min-rate 250k, to which a resync
//     falls back beside an application. This one has the bar;
//   - c-min-rate 0, which never gives way: 100 MiB/s are copied in any case.
//
// What the resync copied in the meantime is measured as well: a resync that
// stands still is in nobody's way.
var foregroundExperiment = experiment{
	name: "foreground", what: "latency of writes during a resync", standard: true,
	run: func(ctx context.Context, s *session) error { return s.foreground(ctx) },
}

const (
	foregroundBar    = 2.0 // p99 of a write as a multiple of that without a resync. Source: the project's requirements for speed.
	foregroundBucket = 250 * time.Millisecond
	foregroundWarmup = 500 * time.Millisecond // and the resync has begun before that
)

// A pressure is how a resync goes on beside the load.
type pressure struct {
	name    string   // of it, in details
	options []string // of disk-options; nil = there is no resync
	bar     bool
}

var pressures = []pressure{
	{name: "no resync"},
	{name: "controller, defaults", options: []string{"--c-max-rate=100M", "--c-min-rate=250k"}, bar: true},
	{name: "controller, c-min-rate 0", options: []string{"--c-max-rate=100M", "--c-min-rate=0"}},
}

func (s *session) foreground(ctx context.Context) error {
	seconds := max(s.cfg.Seconds, 2)
	size := max(int64(s.cfg.SyncMiB), int64(seconds*150)) * mib // more than is copied meanwhile
	if err := checkRoom(s.lab.dir, 2*size); err != nil {
		return err
	}
	v := volume{name: "foreground", protocol: 'C', io: "buffered", bytes: size}
	p := s.pair("pair", v)
	s.out.AddTarget(result.Target{Name: targetPollux, Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C"})
	s.say("writing images of %d MiB", 2*size/mib)
	if err := p.prepare(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	f := &foreground{s: s, p: p, v: v, seconds: seconds, p50: map[string][]float64{}, p99: map[string][]float64{}}
	var turns []func(context.Context, int) error
	for _, depth := range []int{1, 4} {
		for _, how := range pressures {
			turns = append(turns, func(ctx context.Context, round int) error { return f.turn(ctx, depth, how, round) })
		}
	}
	if err := s.inTurn(ctx, s.cfg.Rounds, turns...); err != nil {
		return err
	}
	for _, depth := range []int{1, 4} {
		for _, how := range pressures {
			if how.options != nil {
				f.judge(depth, how)
			}
		}
	}
	return p.stop()
}

// foreground is the experiment under way.
type foreground struct {
	s        *session
	p        *pair
	v        volume
	seconds  float64
	p50, p99 map[string][]float64 // us by key, one a round
}

func foregroundKey(depth int, how pressure) string { return fmt.Sprintf("QD%d, %s", depth, how.name) }

// turn is one load, with or without a resync, and the end of that.
func (f *foreground) turn(ctx context.Context, depth int, how pressure, round int) error {
	if err := settle(f.p.images(&f.v)); err != nil {
		return err
	}
	if how.options != nil {
		if err := f.setOptions(ctx, how.options...); err != nil {
			return err
		}
		if err := f.p.adm(ctx, nodeNames[1], "invalidate", f.v.name); err != nil {
			return err
		}
	}
	var seen [2]peerDevice
	var at [2]time.Time
	var errs [2]error
	note := func(i int) func() {
		return func() { seen[i], errs[i] = f.p.peerDevice(ctx, f.v); at[i] = time.Now() }
	}
	w := workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, result.ClassBuffered)
	f.s.out.AddWorkload(w)
	r, err := load.Run(ctx, f.p.uri(f.v), load.Spec{
		Workload: w, SizeBytes: f.v.bytes, Warmup: foregroundWarmup, Duration: time.Duration(f.seconds * float64(time.Second)),
		Seed: uint64(round), Trace: true, Begin: note(0), End: note(1),
	})
	if err := errors.Join(err, errs[0], errs[1]); err != nil {
		return err
	}
	key := foregroundKey(depth, how)
	if r.Errors > 0 {
		return fmt.Errorf("%s: %d writes failed: %w", key, r.Errors, r.Refusal)
	}
	f.p50[key] = append(f.p50[key], r.Latency.PMicros(0.5))
	f.p99[key] = append(f.p99[key], r.Latency.PMicros(0.99))
	m := func(name string, value float64, unit string) {
		f.s.measure(result.Measure{Name: name, Target: targetPollux, Round: round, Value: value, Unit: unit, Detail: key})
	}
	m("p50 of a write", r.Latency.PMicros(0.5), "us")
	m("p99 of a write", r.Latency.PMicros(0.99), "us")
	m("writes", float64(r.Ops)/r.Seconds, "1/s")
	if how.options == nil {
		return nil
	}
	sent := float64(seen[1].Sent-seen[0].Sent) / 1024 // the bits that writes clear are no work of the resync
	m("resync beside it", max(sent-float64(r.Bytes)/mib, 0)/at[1].Sub(at[0]).Seconds(), "MiB/s")
	return f.finish(ctx, r, w.Name, key, round, seen[1].OutOfSync)
}

// finish lets the resync run to its end, and keeps the first round's course.
func (f *foreground) finish(ctx context.Context, r *load.Result, workload, key string, round int, left uint64) error {
	if round == 1 {
		f.s.out.Timelines = append(f.s.out.Timelines, result.Timeline{
			Name: "writes during a resync, " + key, Target: targetPollux, Workload: workload,
			BucketSeconds: foregroundBucket.Seconds(), Points: points(r.Trace, foregroundBucket),
			Marks: []result.Mark{{T: 0, Text: "resync began before"}},
		})
	}
	if left == 0 {
		f.s.note("%s: the resync was over before the load was", key)
	}
	if err := f.setOptions(ctx, "--c-max-rate=4G", "--c-min-rate=0"); err != nil {
		return err
	}
	if err := f.p.adm(ctx, nodeNames[1], "wait-sync", f.v.name); err != nil {
		return err
	}
	return f.setOptions(ctx, "--set-defaults", "--c-max-rate=100M")
}

func (f *foreground) setOptions(ctx context.Context, options ...string) error {
	for _, node := range nodeNames {
		if err := f.p.adm(ctx, node, append([]string{"disk-options", f.v.name}, options...)...); err != nil {
			return err
		}
	}
	return nil
}

func (f *foreground) judge(depth int, how pressure) {
	key, quiet := foregroundKey(depth, how), foregroundKey(depth, pressures[0])
	var ratios []float64
	for i, x := range f.p99[key] {
		ratios = append(ratios, x/f.p99[quiet][i])
	}
	ratio := result.Median(ratios)
	f.s.measure(result.Measure{Name: "p99 of a write, beside that without a resync", Target: targetPollux, Value: ratio, Unit: "x", Detail: key})
	if how.bar {
		f.s.bar(ratio <= foregroundBar, ratio, fmt.Sprintf("p99 of a 4 KiB write during a resync, QD%d", depth),
			fmt.Sprintf("<= %.0f x that without", foregroundBar), "%.2f x: %.0f us to %.0f us", ratio, result.Median(f.p99[key]), result.Median(f.p99[quiet]))
	}
}

// points puts a trace into buckets.
func points(trace []load.Completion, bucket time.Duration) (all []result.Point) {
	trace = slices.Clone(trace)
	slices.SortFunc(trace, func(a, b load.Completion) int { return int(a.At - b.At) })
	for at := time.Duration(0); len(trace) > 0; at += bucket {
		h, n := result.NewHistogram(), 0
		for n < len(trace) && trace[n].At < at+bucket {
			h.Record(trace[n].Took)
			n++
		}
		trace = trace[n:]
		p := result.Point{T: at.Seconds(), IOPS: float64(n) / bucket.Seconds()}
		if n > 0 {
			p.P50Micros, p.P99Micros, p.MaxMicros = h.PMicros(0.5), h.PMicros(0.99), h.PMicros(1)
		}
		all = append(all, p)
	}
	return all
}
