package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
)

// fioOutput is the part of fio's JSON (json+) that counts. Latencies are whole
// ones (lat): clat leaves the time in submission out, which is most of it here.
type fioOutput struct {
	Jobs []struct {
		Error int          `json:"error"`
		Write fioDirection `json:"write"`
		Read  fioDirection `json:"read"`
	} `json:"jobs"`
}

type fioDirection struct {
	IOBytes  int64 `json:"io_bytes"`
	TotalIOs int64 `json:"total_ios"`
	RuntimeM int64 `json:"runtime"` // milliseconds
	LatNS    struct {
		Bins map[string]int64 `json:"bins"` // latency in ns -> how many
	} `json:"lat_ns"`
}

// fioArgs has fio do w on an NBD export of size bytes. Several connections are
// several jobs, which share the depth; figures are of all of them together.
func fioArgs(w result.Workload, uri string, cfg Config, size int64, seed int) []string {
	rw := map[string]string{result.OpWrite: "write", result.OpRead: "read", result.OpMixed: "rw"}[w.Op]
	if w.Pattern == result.PatternRandom {
		rw = "rand" + rw
	}
	args := []string{
		"--name=bench", "--ioengine=nbd", "--uri=" + uri, "--rw=" + rw, fmt.Sprintf("--bs=%d", w.BlockBytes),
		fmt.Sprintf("--iodepth=%d", w.Depth/w.Connections), fmt.Sprintf("--numjobs=%d", w.Connections), "--group_reporting=1",
		fmt.Sprintf("--size=%d", size), "--time_based", fmt.Sprintf("--runtime=%.0fms", cfg.Seconds*1000), fmt.Sprintf("--ramp_time=%.0fms", cfg.Warmup*1000),
		fmt.Sprintf("--randseed=%d", seed), "--norandommap",
		"--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json+",
	}
	if w.Op == result.OpMixed {
		args = append(args, fmt.Sprintf("--rwmixread=%d", w.ReadPercent))
	}
	if w.Class == result.ClassFlush {
		args = append(args, "--fsync=1")
	}
	return args
}

// fio measures a workload with fio's NBD engine; servers are charged for the
// CPU time.
func (s *session) fio(ctx context.Context, w result.Workload, uri string, round int, servers []*process) (result.Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.cfg.Seconds*float64(time.Second))+time.Minute)
	defer cancel()
	others := watchOthers(s.lab)
	others.begin()
	before, err := cpuTicks(servers)
	if err != nil {
		return result.Sample{}, err
	}
	began, err := cpuTime(unix.RUSAGE_CHILDREN)
	if err != nil {
		return result.Sample{}, err
	}
	text, err := run(ctx, "fio", fioArgs(w, uri, s.cfg, int64(s.cfg.SizeMiB)*mib, round)...)
	if err != nil {
		return result.Sample{}, fmt.Errorf("%s: %w", w.Name, err)
	}
	after, err := cpuTicks(servers)
	if err != nil {
		return result.Sample{}, err
	}
	others.end()
	ended, err := cpuTime(unix.RUSAGE_CHILDREN)
	if err != nil {
		return result.Sample{}, err
	}
	sample, err := parseFio(text)
	if err != nil {
		return result.Sample{}, fmt.Errorf("%s: %w", w.Name, err)
	}
	sample.Round, sample.Workload, sample.OthersCPUs = round, w.Name, others.cpus()
	// The warm-up's operations are not in Ops, but its CPU time is in the ticks.
	share := s.cfg.Seconds / (s.cfg.Seconds + s.cfg.Warmup)
	sample.CPUMicros = (time.Duration(after-before) * tick).Seconds() * 1e6 * share / float64(sample.Ops)
	sample.ClientMicros = float64((ended - began).Microseconds()) * share / float64(sample.Ops)
	return sample, nil
}

// parseFio reads fio's output, which may have warnings before the JSON.
func parseFio(text string) (r result.Sample, err error) {
	start := strings.IndexByte(text, '{')
	if start < 0 {
		return r, fmt.Errorf("fio printed no JSON: %q", text)
	}
	var out fioOutput
	if err := json.Unmarshal([]byte(text[start:]), &out); err != nil {
		return r, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(out.Jobs) != 1 || out.Jobs[0].Write.TotalIOs+out.Jobs[0].Read.TotalIOs == 0 {
		return r, fmt.Errorf("fio's JSON has %d jobs, or one that did nothing", len(out.Jobs))
	}
	r = result.Sample{Client: result.ClientFio, Latency: result.NewHistogram()}
	if out.Jobs[0].Error != 0 {
		r.Errors = 1
	}
	for _, d := range []fioDirection{out.Jobs[0].Write, out.Jobs[0].Read} {
		r.Ops += d.TotalIOs
		r.Bytes += d.IOBytes
		r.Seconds = max(r.Seconds, float64(d.RuntimeM)/1000)
		for ns, n := range d.LatNS.Bins {
			latency, err := strconv.ParseInt(ns, 10, 64)
			if err != nil {
				return r, fmt.Errorf("fio's JSON: a latency of %q: %w", ns, err)
			}
			r.Latency.RecordN(time.Duration(latency), n)
		}
	}
	return r, nil
}
