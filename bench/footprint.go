package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A Footprint is what one polluxd costs after the load and at rest.
type Footprint struct {
	Node         string  `json:"node"`
	StorageBytes int64   `json:"storage_bytes"`
	RSSBytes     int64   `json:"rss_bytes"`  // resident at the end
	PeakBytes    int64   `json:"peak_bytes"` // most that was ever resident
	IdleSeconds  float64 `json:"idle_seconds"`
	IdleTicks    int64   `json:"idle_ticks"`  // of 10 ms, as programs see CPU time
	IdleMicros   float64 `json:"idle_cpu_us"` // the scheduler's own account
}

// The bars of memory and of rest. Source: the project's requirements; one tick
// is the least that can be measured.
const (
	memoryBase   = 64 << 20
	memoryPerGiB = 32 << 10
	idleTicksBar = 1
	idleTime     = 10 * time.Second
)

// settleTime is how long the daemons may tidy up after the load (our own):
// the last cleared bits are written, the collector gives memory back.
const settleTime = 5 * time.Second

// Limit is the memory that a node may take, in bytes.
func (f Footprint) Limit() int64 { return memoryBase + f.StorageBytes*memoryPerGiB>>30 }

// footprints looks at the daemons of a pair that nobody uses, for idleTime
// after settleTime.
func footprints(ctx context.Context, p *pair) ([]Footprint, error) {
	all := make([]Footprint, len(p.daemons))
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
			all[i].IdleTicks += sign * ticks
			all[i].IdleMicros += float64(sign) * micros
		}
		return nil
	}
	if err := sleep(ctx, settleTime); err != nil {
		return nil, err
	}
	for i, d := range p.daemons {
		all[i] = Footprint{Node: nodeNames[i], IdleSeconds: idleTime.Seconds()}
		for _, v := range p.volumes {
			all[i].StorageBytes += v.bytes
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid()))
		if err != nil {
			return nil, err
		}
		if all[i].RSSBytes, err = statusBytes(string(status), "VmRSS"); err != nil {
			return nil, err
		}
		if all[i].PeakBytes, err = statusBytes(string(status), "VmHWM"); err != nil {
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
