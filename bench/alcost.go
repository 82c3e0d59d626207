package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// alCostExperiment measures what a write pays whose extent the activity log
// does not name yet, with as many extents as is the default; alRangeExperiment
// does so for the whole range of al-extents.
var (
	alCostExperiment = experiment{
		name: "al-cost", what: "random writes over a cold 1 TiB, beside writes that the activity log knows", standard: true,
		run: func(ctx context.Context, s *session) error {
			return s.alCost(ctx, alPlan{stride: 16 * alExtent, extents: []int{alDefault}, depths: []int{1, 32}})
		},
	}
	alRangeExperiment = experiment{
		name: "al-range", what: "the same at depth 32 with al-extents from the least to the most",
		run: func(ctx context.Context, s *session) error {
			return s.alCost(ctx, alPlan{stride: 2 * alExtent, extents: []int{67, alDefault, 6433, 65534}, depths: []int{32}})
		},
	}
)

// The range of al-extents, and what it takes: 6433 is the most that 32 KiB of log
// on disk can describe, 65534 needs 292 KiB. An extent is 4 MiB of the device.
// Source: drbd-conf, al-extents; drbd84-protocol, 8.6 and 9.2.
const (
	alDefault   = 1237
	alLogKiB    = 292
	alExtent    = 4 << 20
	alDevice    = 1 << 40
	alBar       = 1.3
	alWarmBytes = 256 << 20
)

// alPlan is what one of the two measures.
type alPlan struct {
	stride  int64 // bytes from one cold block to the next: how many extents there are, and how long it takes to make the images
	extents []int // values of al-extents
	depths  []int
}

func (a alPlan) places() int64 { return alDevice / a.stride }

// The ways of writing that are compared. All go to blocks that the file system
// has allocated: what it takes for that is not the log's.
const (
	alWarm  = "warm"   // 64 extents, which stay in the log
	alCold  = "cold"   // one block in each of many more extents than the log has
	alNoLog = "no-log" // the same with al-updates no
)

// alCase is one line of the table.
type alCase struct {
	way      string
	extents  int
	workload result.Workload
}

func (c alCase) target() string {
	if c.way == alCold {
		return fmt.Sprintf("pollux-al%d-cold", c.extents)
	}
	return "pollux-al-" + c.way
}

func (s *session) alCost(ctx context.Context, plan alPlan) error {
	p := s.pair("pair")
	for _, io := range []string{result.ClassBuffered, result.ClassDirect} {
		p.volumes = append(p.volumes, volume{name: "cold-" + io, protocol: 'C', io: io, bytes: alDevice, sparse: true, filled: alWarmBytes, stride: plan.stride, logKiB: alLogKiB})
	}
	p.disk = alOptions(alDefault, true)
	if err := checkRoom(s.lab.dir, 2*p.imageBytes()); err != nil {
		return err
	}
	s.say("sparse images of 1 TiB, %d MiB of each written", p.imageBytes()/int64(len(p.volumes))/mib)
	if err := p.prepare(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	var do []func(context.Context, int) error
	do = append(do, func(_ context.Context, round int) error { return s.alFloor(plan, round) })
	for _, class := range []string{result.ClassBuffered, result.ClassDirect, result.ClassFlush} {
		for _, depth := range plan.depths {
			w := workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, class)
			s.out.AddWorkload(w)
			cases := []alCase{{alWarm, alDefault, w}, {alNoLog, alDefault, w}}
			for _, n := range plan.extents {
				cases = append(cases, alCase{alCold, n, w})
			}
			for _, c := range cases {
				do = append(do, func(ctx context.Context, round int) error { return s.alSample(ctx, p, plan, c, round) })
			}
		}
	}
	if err := s.inTurn(ctx, s.cfg.Rounds, do...); err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	s.alBars(plan)
	return nil
}

// alOptions is text for the disk section.
func alOptions(extents int, updates bool) string {
	return fmt.Sprintf("al-extents %d; al-updates %s;", extents, map[bool]string{true: "yes", false: "no"}[updates])
}

// alSample measures one case. The log is brought into its state first: full of
// warm extents, or of cold ones that are not those of the sample.
func (s *session) alSample(ctx context.Context, p *pair, plan alPlan, c alCase, round int) error {
	io := result.ClassBuffered
	if c.workload.Class == result.ClassDirect {
		io = result.ClassDirect
	}
	v := *p.volume("cold-" + io)
	if err := p.reconfigure(ctx, alOptions(c.extents, c.way != alNoLog)); err != nil {
		return err
	}
	if err := settle(p.images(nil)); err != nil {
		return err
	}
	spec := load.Spec{
		Workload: c.workload, SizeBytes: alDevice, StrideBytes: plan.stride, Seed: uint64(round),
		Warmup: seconds(s.cfg.Warmup), Duration: seconds(s.cfg.Seconds),
	}
	if c.way == alWarm {
		spec.SizeBytes, spec.StrideBytes = alWarmBytes, 0
	}
	var ticks [2]int64
	var writes [2]uint64
	var failed error
	look := func(i int) func() {
		return func() {
			n, err := cpuTicks(p.daemons)
			ticks[i], failed = n, errors.Join(failed, err)
		}
	}
	spec.Begin, spec.End = look(0), look(1)
	var err error
	if writes[0], err = p.logWrites(ctx, v); err != nil {
		return err
	}
	res, err := load.Run(ctx, p.uri(v), spec)
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if writes[1], err = p.logWrites(ctx, v); err != nil {
		return err
	}
	s.out.AddTarget(result.Target{Name: c.target(), Kind: result.KindPollux, Protocol: "C", Detail: c.detail(plan)})
	sample := result.Sample{
		Round: round, Workload: c.workload.Name, Target: c.target(), Client: result.ClientGo, Seconds: res.Seconds,
		Ops: res.Ops, Bytes: res.Bytes, Errors: res.Errors, Latency: res.Latency,
		CPUMicros: (time.Duration(ticks[1]-ticks[0]) * tick).Seconds() * 1e6 / float64(max(1, res.Ops)),
	}
	sample.Latency.Compact()
	s.out.Samples = append(s.out.Samples, sample)
	s.say("round %d  %-28s %-22s %8.0f IOPS  mean %7.0f  p50 %7.0f  p99 %7.0f us  CPU %5.1f us", round, c.workload.Name, c.target(),
		sample.IOPS(), float64(sample.Latency.Mean().Microseconds()), sample.Latency.PMicros(0.5), sample.Latency.PMicros(0.99), sample.CPUMicros)
	if c.way == alCold && writes[1] > writes[0] {
		// The warm-up's are in both.
		all := float64(res.Ops) * (s.cfg.Seconds + s.cfg.Warmup) / s.cfg.Seconds
		s.measure(result.Measure{
			Name: "writes per transaction of the activity log", Target: c.target(), Round: round,
			Value: all / float64(writes[1]-writes[0]), Unit: "writes", Detail: c.workload.Name,
		})
	}
	return nil
}

func (c alCase) detail(plan alPlan) string {
	switch c.way {
	case alWarm:
		return "Pollux, writes to 64 extents of 1 TiB"
	case alNoLog:
		return fmt.Sprintf("Pollux, writes to %d extents of 1 TiB, al-updates no", plan.places())
	}
	return fmt.Sprintf("Pollux, writes to %d extents of 1 TiB, al-extents %d", plan.places(), c.extents)
}

// alFloor measures what no way of doing it could save: a durable write of 4 KiB,
// which each transaction is, and to write out one scattered block on both copies,
// which every write needs before its extent may leave the log, some hundred at a
// time.
func (s *session) alFloor(plan alPlan, round int) error {
	s.out.AddTarget(result.Target{Name: targetFiles, Kind: result.KindFile, Detail: "files on the same disk"})
	var files [2]*os.File
	for i := range files {
		v := volume{bytes: alDevice, sparse: true, stride: plan.stride}
		path := s.lab.path(fmt.Sprintf("floor-%d.img", i))
		if _, err := os.Stat(path); err != nil {
			if err := makeSparse(path, v); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	block := make([]byte, 4096)
	writes, begun := 0, time.Now()
	for time.Since(begun) < seconds(s.cfg.Seconds) {
		if _, err := unix.Pwritev2(int(files[0].Fd()), [][]byte{block}, plan.stride, unix.RWF_DSYNC); err != nil {
			return fmt.Errorf("durable write: %w", err)
		}
		writes++
	}
	s.measure(result.Measure{Name: "durable write of 4 KiB", Target: targetFiles, Round: round, Value: float64(time.Since(begun).Microseconds()) / float64(writes), Unit: "us"})

	rng := rand.New(rand.NewPCG(uint64(round), 0))
	writes, begun = 0, time.Now()
	for time.Since(begun) < seconds(s.cfg.Seconds) {
		for range alDefault / 4 {
			at := rng.Int64N(plan.places()) * plan.stride
			for _, f := range files {
				if _, err := f.WriteAt(block, at); err != nil {
					return err
				}
			}
			writes++
		}
		var errs [2]error
		var g sync.WaitGroup
		for i, f := range files {
			g.Go(func() { errs[i] = unix.Fdatasync(int(f.Fd())) })
		}
		g.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
	}
	s.measure(result.Measure{Name: alFloorName, Target: targetFiles, Round: round, Value: float64(time.Since(begun).Microseconds()) / float64(writes), Unit: "us"})
	return nil
}

const (
	targetFiles = "files"
	alFloorName = "to write out one scattered block on both copies"
)

// alBars compares cold with warm at depth 32 (the bar), round by round.
func (s *session) alBars(plan alPlan) {
	floor := s.out.MeasureMedian(alFloorName, targetFiles, "")
	for _, class := range []string{result.ClassBuffered, result.ClassDirect, result.ClassFlush} {
		for _, depth := range plan.depths {
			name := workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, class).Name
			for _, n := range plan.extents {
				cold := alCase{way: alCold, extents: n}.target()
				ratio := s.meanRatio(name, cold, alCase{way: alWarm}.target())
				beside := s.meanRatio(name, cold, alCase{way: alNoLog}.target())
				s.measure(result.Measure{Name: "latency over warm", Target: cold, Value: ratio, Unit: "x", Detail: name})
				s.measure(result.Measure{Name: "latency over al-updates no", Target: cold, Value: beside, Unit: "x", Detail: name})
				if depth == 32 && n == alDefault {
					s.bar(ratio <= alBar, ratio, "cold 1 TiB, QD32, "+class, fmt.Sprintf("<= %.1f x warm", alBar),
						"%.2f x warm, %.2f x without the log; written out at %.0f us a block it takes %.0f us at least", ratio, beside, floor, 32*floor)
				}
			}
		}
	}
}

func (s *session) meanRatio(workload, target, base string) float64 {
	return s.sampleRatio(workload, target, base, func(x *result.Sample) float64 { return float64(x.Latency.Mean()) })
}

// sampleRatio is the median over the rounds of the ratio of two targets' samples.
func (s *session) sampleRatio(workload, target, base string, value func(*result.Sample) float64) float64 {
	have := map[string]map[int]float64{target: {}, base: {}}
	for i := range s.out.Samples {
		if x := &s.out.Samples[i]; x.Workload == workload && have[x.Target] != nil {
			have[x.Target][x.Round] = value(x)
		}
	}
	var ratios []float64
	for round, v := range have[target] {
		if b := have[base][round]; b > 0 {
			ratios = append(ratios, v/b)
		}
	}
	return result.Median(ratios)
}

// reconfigure changes the disk options of a pair in use.
func (p *pair) reconfigure(ctx context.Context, disk string) error {
	if p.disk == disk {
		return nil
	}
	p.disk = disk
	if err := p.writeResources(); err != nil {
		return err
	}
	for _, node := range nodeNames {
		if err := p.adm(ctx, node, "adjust", "all"); err != nil {
			return err
		}
	}
	return nil
}

// logWrites is how many transactions of the activity log the Primary has written.
func (p *pair) logWrites(ctx context.Context, v volume) (uint64, error) {
	text, err := p.ask(ctx, nodeNames[0], "status", "--json", v.name)
	if err != nil {
		return 0, err
	}
	var all []struct {
		Devices []struct {
			ALWrites uint64 `json:"al-writes"`
		} `json:"devices"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return 0, fmt.Errorf("status of %s: %w", v.name, err)
	}
	if len(all) != 1 || len(all[0].Devices) != 1 {
		return 0, fmt.Errorf("status of %s names %d resources, not one with one volume", v.name, len(all))
	}
	return all[0].Devices[0].ALWrites, nil
}
