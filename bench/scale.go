package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// scaleExperiment runs hundreds of resources in one daemon.
var scaleExperiment = experiment{
	name: "scale", what: "500 resources in one daemon: start, memory, CPU time at rest; 64 busy ones; cost of a write from 1 to 500", standard: true,
	run: func(ctx context.Context, s *session) error { return s.scale(ctx) },
}

// scaleCounts are the numbers of resources that a pair has.
var scaleCounts = []int{1, 64, 500}

// Sizes and times of our own, and the bars. Source of those: the project's
// requirements.
const (
	scaleMany  = 2       // of scaleCounts: whose cost at rest is measured
	scaleBusy  = 1       // of scaleCounts: whose resources are all busy
	scaleBytes = 4 * mib // of each volume

	scaleRest = 15 * time.Second // in which the bits of the first sync are cleared on disk, and the collector gives memory back
	scaleIdle = 20 * time.Second // two pings of each connection, ping-int 10
	scaleLoad = 6 * time.Second

	scaleMemory   = 400 * mib
	scaleCPU      = 0.01
	scaleFairness = 0.7
	scaleFlat     = 1.1
)

func scaleTarget(i int) string { return fmt.Sprintf("pollux-c-%d-res", scaleCounts[i]) }

func (s *session) scale(ctx context.Context) error {
	pairs := make([]*pair, len(scaleCounts))
	for i, n := range scaleCounts {
		p := s.pair(fmt.Sprintf("of%d", n))
		for k := range n {
			p.volumes = append(p.volumes, volume{name: fmt.Sprintf("r%d", k), protocol: 'C', io: result.ClassBuffered, bytes: scaleBytes, sparse: true})
		}
		if err := checkRoom(s.lab.dir, 2*int64(n)*2*scaleBytes); err != nil {
			return err
		}
		s.out.AddTarget(result.Target{Name: scaleTarget(i), Kind: result.KindPollux, Protocol: "C", Detail: fmt.Sprintf("Pollux, one of %d resources in each daemon", n)})
		if err := p.prepareMany(ctx); err != nil {
			return err
		}
		if err := s.startMany(ctx, p, scaleTarget(i)); err != nil {
			return err
		}
		pairs[i] = p
	}
	if err := s.scaleAtRest(ctx, pairs[scaleMany]); err != nil {
		return err
	}
	if err := s.scaleFair(ctx, pairs[scaleBusy]); err != nil {
		return err
	}
	if err := s.scaleCost(ctx, pairs); err != nil {
		return err
	}
	var errs []error
	for _, p := range pairs {
		errs = append(errs, p.stop())
	}
	return errors.Join(errs...)
}

// prepareMany is prepare for many sparse volumes: the metadata of all by one order.
func (p *pair) prepareMany(ctx context.Context) error {
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return err
	}
	if err := p.choosePorts(); err != nil {
		return err
	}
	if err := p.writeResources(); err != nil {
		return err
	}
	for _, node := range nodeNames {
		if err := os.Mkdir(filepath.Join(p.dir, node), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(p.settings(node), []byte(settingsText(node, p.volumes)), 0o600); err != nil {
			return err
		}
		for _, v := range p.volumes {
			if err := makeSparse(p.image(node, v), v); err != nil {
				return err
			}
		}
		if err := p.adm(ctx, node, "create-md", "--force", "all"); err != nil {
			return err
		}
	}
	return nil
}

// startMany is start by orders for all, as many resources are for their users.
func (s *session) startMany(ctx context.Context, p *pair, target string) error {
	took := func(what string, begun time.Time) {
		s.measure(result.Measure{Name: what, Target: target, Value: time.Since(begun).Seconds(), Unit: "s"})
	}
	begun := time.Now()
	for n, node := range nodeNames {
		argv := p.link.onNode(n, filepath.Join(p.bin, "polluxd"), "--config", p.settings(node))
		d, err := p.lab.start(argv[0], argv[1:]...)
		if err != nil {
			return err
		}
		p.daemons = append(p.daemons, d)
	}
	for i, d := range p.daemons {
		if err := p.lab.await(ctx, d, func(ctx context.Context) error { return p.allUp(ctx, nodeNames[i]) }); err != nil {
			return err
		}
	}
	if err := p.adm(ctx, nodeNames[0], "wait-connect", "--timeout", "30s", "all"); err != nil {
		return err
	}
	took("start until all are connected", begun)
	begun = time.Now()
	if err := p.adm(ctx, nodeNames[0], "primary", "--force", "all"); err != nil {
		return err
	}
	took("primary --force all", begun)
	begun = time.Now()
	err := p.adm(ctx, nodeNames[0], "wait-sync", "all")
	took(fmt.Sprintf("first sync of %d MiB each, wait-sync all", scaleBytes/mib), begun)
	return err
}

// allUp reports an error until the daemon of a node knows all resources: it
// answers before.
func (p *pair) allUp(ctx context.Context, node string) error {
	text, err := p.ask(ctx, node, "status", "all")
	if err != nil {
		return err
	}
	if have := strings.Count("\n"+text, "\nr"); have < len(p.volumes) {
		return fmt.Errorf("%d of %d resources are up", have, len(p.volumes))
	}
	return nil
}

// scaleAtRest is what many resources cost that nobody uses.
func (s *session) scaleAtRest(ctx context.Context, p *pair) error {
	count, target := scaleCounts[scaleMany], scaleTarget(scaleMany)
	s.say("%d resources at rest for %v", count, scaleRest+scaleIdle)
	if err := sleep(ctx, scaleRest); err != nil {
		return err
	}
	var micros [2]float64
	for sign, after := range []bool{false, true} {
		if after {
			if err := sleep(ctx, scaleIdle); err != nil {
				return err
			}
		}
		for i, d := range p.daemons {
			n, err := scheduledMicros(d.pid())
			if err != nil {
				return err
			}
			micros[i] += float64(2*sign-1) * n
		}
	}
	for i, d := range p.daemons {
		peak, err := peakBytes(d)
		if err != nil {
			return err
		}
		share := micros[i] / float64(scaleIdle.Microseconds())
		node := "node " + nodeNames[i]
		s.measure(result.Measure{Name: "memory, most ever", Target: target, Value: float64(peak), Unit: "bytes", Detail: node})
		s.measure(result.Measure{Name: "CPU time at rest", Target: target, Value: share * 1e6, Unit: "us/s", Detail: node})
		s.bar(peak <= scaleMemory, float64(peak)/scaleMemory, fmt.Sprintf("memory, %d resources, %s", count, node), fmt.Sprintf("<= %d MiB", scaleMemory/mib), "%.0f MiB", float64(peak)/mib)
		s.bar(share <= scaleCPU, share/scaleCPU, fmt.Sprintf("CPU at rest, %d resources, %s", count, node), fmt.Sprintf("<= %g %%", 100*scaleCPU), "%.2f %% of one CPU", 100*share)
	}
	begun := time.Now()
	err := p.adm(ctx, nodeNames[0], "status", "all")
	s.measure(result.Measure{Name: "polluxadm status all", Target: target, Value: time.Since(begun).Seconds() * 1000, Unit: "ms"})
	return err
}

// scaleFair has all resources of a pair busy at once, each with a client of its
// own that has two writes under way.
func (s *session) scaleFair(ctx context.Context, p *pair) error {
	w := workload(result.OpWrite, result.PatternRandom, 4096, 2, 1, result.ClassBuffered)
	iops, errs := make([]float64, len(p.volumes)), make([]error, len(p.volumes))
	// A processor of the Go runtime for each client: none waits for another one's.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(iops) + 2))
	var all sync.WaitGroup
	for i, v := range p.volumes {
		all.Go(func() {
			var r *load.Result
			r, errs[i] = load.Run(ctx, p.uri(v), load.Spec{Workload: w, SizeBytes: v.bytes, Warmup: time.Second, Duration: scaleLoad, Seed: uint64(i)})
			if errs[i] == nil {
				iops[i] = float64(r.Ops) / r.Seconds
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	sum := 0.0
	for _, n := range iops {
		sum += n
	}
	least, most := slices.Min(iops), slices.Max(iops)
	s.measure(result.Measure{Name: "IOPS of all busy resources", Target: scaleTarget(scaleBusy), Value: sum, Unit: "/s", Detail: w.Name})
	s.measure(result.Measure{Name: "fairness, slowest to fastest", Target: scaleTarget(scaleBusy), Value: least / most, Unit: "x", Detail: w.Name})
	s.bar(least >= scaleFairness*most, least/most, fmt.Sprintf("%d busy resources, slowest to fastest", len(iops)), fmt.Sprintf(">= %g", scaleFairness),
		"%.2f: %.0f to %.0f IOPS", least/most, least, most)
	return nil
}

// scaleCost compares one busy resource alone in its daemon with one among many
// that rest.
func (s *session) scaleCost(ctx context.Context, pairs []*pair) error {
	for _, depth := range []int{1, 32} {
		w := workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, result.ClassBuffered)
		s.out.AddWorkload(w)
		var do []func(context.Context, int) error
		for i, p := range pairs {
			do = append(do, func(ctx context.Context, round int) error {
				return s.costSample(ctx, p, p.volumes[0], w, scaleTarget(i), scaleBytes, round)
			})
		}
		if err := s.inTurn(ctx, s.cfg.Rounds, do...); err != nil {
			return err
		}
		for i := range pairs[1:] {
			target := scaleTarget(i + 1)
			for _, m := range costs {
				ratio := s.sampleRatio(w.Name, target, scaleTarget(0), m.value)
				s.measure(result.Measure{Name: m.what + " over one resource's", Target: target, Value: ratio, Unit: "x", Detail: w.Name})
				s.bar(ratio <= scaleFlat, ratio, fmt.Sprintf("%s, 1 of %d resources beside 1, QD%d", m.what, scaleCounts[i+1], depth), fmt.Sprintf("<= %.1f x", scaleFlat), "%.2f x", ratio)
			}
		}
	}
	return nil
}
