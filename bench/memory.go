package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// memoryExperiment looks for the most memory that a node takes when everything is
// asked of it at once.
var memoryExperiment = experiment{
	name: "memory", what: "most memory of each node under eight busy resources, many clients, large writes and a resync at once",
	run: func(ctx context.Context, s *session) error { return s.memory(ctx) },
}

// Our own sizes: small volumes, so that what the bar grants for storage is nothing.
const (
	memoryVolumes = 8
	memoryBytes   = 64 * mib
	memoryTime    = 10 * time.Second
)

// memoryLoads are what clients do, by volume; the last one is resynced over and over.
func memoryLoads() (loads [memoryVolumes - 1][]result.Workload) {
	for i := range loads {
		loads[i] = []result.Workload{workload(result.OpWrite, result.PatternRandom, 4096, 32, 1, result.ClassBuffered)}
	}
	loads[0] = append(loads[0], workload(result.OpWrite, result.PatternRandom, 4096, 128, 4, result.ClassBuffered))
	loads[5] = []result.Workload{workload(result.OpWrite, result.PatternSequential, mib, 16, 1, result.ClassBuffered)}
	loads[6] = []result.Workload{
		workload(result.OpWrite, result.PatternRandom, 256<<10, 64, 2, result.ClassBuffered),
		workload(result.OpWrite, result.PatternRandom, mib, 64, 2, result.ClassBuffered),
	}
	return loads
}

func (s *session) memory(ctx context.Context) error {
	p := s.pair("pair")
	for i := range memoryVolumes {
		p.volumes = append(p.volumes, volume{name: fmt.Sprintf("r%d", i), protocol: 'C', io: "buffered", bytes: memoryBytes})
	}
	if err := checkRoom(s.lab.dir, 2*p.imageBytes()); err != nil {
		return err
	}
	if err := p.prepare(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	s.out.AddTarget(result.Target{Name: targetPollux, Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C"})
	if err := s.memoryLoad(ctx, p); err != nil {
		return err
	}
	limit := footprint{storageBytes: memoryVolumes * memoryBytes}.limit()
	for i, d := range p.daemons {
		peak, err := peakBytes(d)
		if err != nil {
			return err
		}
		s.measure(result.Measure{Name: "memory under full load", Target: targetPollux, Value: float64(peak), Unit: "bytes", Detail: "node " + nodeNames[i]})
		s.bar(peak <= limit, float64(peak)/float64(limit), "memory under full load, node "+nodeNames[i],
			fmt.Sprintf("<= %.1f MiB", float64(limit)/mib), "%.1f MiB", float64(peak)/mib)
	}
	return p.stop()
}

// memoryLoad has all loads and the resyncs run together.
func (s *session) memoryLoad(ctx context.Context, p *pair) error {
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	run := func(what string, f func() error) {
		all.Go(func() {
			if err := f(); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
				mu.Unlock()
			}
		})
	}
	end := time.Now().Add(memoryTime)
	for i, workloads := range memoryLoads() {
		for j, w := range workloads {
			v := p.volumes[i]
			run(v.name, func() error {
				_, err := load.Run(ctx, p.uri(v), load.Spec{Workload: w, SizeBytes: v.bytes, Duration: memoryTime, Seed: uint64(16*i + j)})
				return err
			})
		}
	}
	last := p.volumes[memoryVolumes-1]
	run(last.name, func() error {
		for ctx.Err() == nil && time.Now().Before(end) {
			// Both must have seen the end of the last one: before that the source
			// refuses the next.
			for _, o := range [][2]string{{nodeNames[1], "invalidate"}, {nodeNames[1], "wait-sync"}, {nodeNames[0], "wait-sync"}} {
				if err := p.adm(ctx, o[0], o[1], last.name); err != nil {
					return err
				}
			}
		}
		return ctx.Err()
	})
	all.Wait()
	return errors.Join(errs...)
}

// peakBytes is the most memory that a process has had resident.
func peakBytes(p *process) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		return 0, err
	}
	return statusBytes(string(status), "VmHWM")
}
