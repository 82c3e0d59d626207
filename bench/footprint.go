package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// footprintExperiment looks at two daemons after a load and at rest.
var footprintExperiment = experiment{
	name: "footprint", what: "memory after a load, and the CPU time of two daemons at rest", standard: true,
	run: func(ctx context.Context, s *session) error { return s.footprint(ctx) },
}

// A footprint is what one polluxd costs after the load and at rest.
type footprint struct {
	node         string
	storageBytes int64
	rssBytes     int64   // resident at the end
	peakBytes    int64   // most that was ever resident
	idleTicks    int64   // of 10 ms in idleTime, as programs see CPU time
	idleMicros   float64 // in idleTime, the scheduler's own account
}

// The bars of memory and of rest. Source: the project's requirements; one tick
// is the least that can be measured.
const (
	memoryBase   = 48 << 20
	memoryPerGiB = 32 << 10
	idleTicksBar = 1
	idleTime     = 10 * time.Second
)

func (s *session) footprint(ctx context.Context) error {
	v := volume{name: "load", protocol: 'C', io: "buffered", bytes: int64(s.cfg.SizeMiB) * mib}
	if err := checkRoom(s.lab.dir, 2*v.bytes); err != nil {
		return err
	}
	p := s.pair("pair", v)
	if err := p.prepare(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	s.say("load of %.1f s, then polluxd at rest for %v", s.cfg.Seconds, settleTime+idleTime)
	w := workload(result.OpWrite, result.PatternRandom, 4096, 32, 1, result.ClassBuffered)
	if _, err := s.sample(ctx, w, p.uri(v), 1, p.daemons); err != nil {
		return err
	}
	all, err := footprints(ctx, p)
	if err != nil {
		return err
	}
	for _, f := range all {
		s.measure(result.Measure{Name: "memory, most ever", Target: targetPollux, Value: float64(f.peakBytes), Unit: "bytes", Detail: "node " + f.node})
		s.measure(result.Measure{Name: "CPU time at rest", Target: targetPollux, Value: f.idleMicros / idleTime.Seconds(), Unit: "us/s", Detail: "node " + f.node})
		s.bar(f.peakBytes <= f.limit(), float64(f.peakBytes)/float64(f.limit()), "memory, node "+f.node, fmt.Sprintf("<= %.1f MiB", float64(f.limit())/mib),
			"%.1f MiB, peak %.1f MiB", float64(f.rssBytes)/mib, float64(f.peakBytes)/mib)
		s.bar(f.idleTicks <= idleTicksBar, 0, "CPU at rest, node "+f.node, fmt.Sprintf("<= %v in %v", idleTicksBar*tick, idleTime),
			"%v (%.1f ms by the scheduler)", time.Duration(f.idleTicks)*tick, f.idleMicros/1000)
	}
	return p.stop()
}

// settleTime is how long the daemons may tidy up after the load (our own):
// the last cleared bits are written, the collector gives memory back.
const settleTime = 5 * time.Second

// limit is the memory that a node may take, in bytes.
func (f footprint) limit() int64 { return memoryBase + f.storageBytes*memoryPerGiB>>30 }

// footprints looks at the daemons of a pair that nobody uses, for idleTime
// after settleTime.
func footprints(ctx context.Context, p *pair) ([]footprint, error) {
	all := make([]footprint, len(p.daemons))
	account := func(sign int64) error {
		for i, d := range p.daemons {
			ticks, err := cpuTicks([]*process{d})
			if err != nil {
				return err
			}
			micros, err := scheduledMicros(d.pid())
			if err != nil {
				return err
			}
			all[i].idleTicks += sign * ticks
			all[i].idleMicros += float64(sign) * micros
		}
		return nil
	}
	if err := sleep(ctx, settleTime); err != nil {
		return nil, err
	}
	for i, d := range p.daemons {
		all[i] = footprint{node: nodeNames[i]}
		for _, v := range p.volumes {
			all[i].storageBytes += v.bytes
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid()))
		if err != nil {
			return nil, err
		}
		if all[i].rssBytes, err = statusBytes(string(status), "VmRSS"); err != nil {
			return nil, err
		}
		if all[i].peakBytes, err = statusBytes(string(status), "VmHWM"); err != nil {
			return nil, err
		}
	}
	if err := account(-1); err != nil {
		return nil, err
	}
	if err := sleep(ctx, idleTime); err != nil {
		return nil, err
	}
	return all, account(+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// statusBytes reads a size of /proc/PID/status.
func statusBytes(status, field string) (int64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/PID/status has no %s", field)
}

// scheduledMicros is the time that a process's threads have been on a CPU.
func scheduledMicros(pid int) (micros float64, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(string(b))
		if len(fields) == 0 {
			return 0, fmt.Errorf("%s is empty", file)
		}
		ns, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		micros += float64(ns) / 1000
	}
	return micros, nil
}
