package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
)

// A Sample is one run of fio.
type Sample struct {
	Round  int     `json:"round"` // from 1
	Case   Case    `json:"case"`
	IOPS   float64 `json:"iops"` // writes per second; with Flush each has its flush
	P50    float64 `json:"p50_us"`
	P99    float64 `json:"p99_us"`
	CPU    float64 `json:"server_cpu_us"` // CPU time of all server processes per write
	Errors int     `json:"errors"`
}

// fioOutput is the part of fio's JSON that counts. Latencies are whole ones
// (lat): clat leaves the time in submission out, which is most of it here.
type fioOutput struct {
	Jobs []struct {
		Error int `json:"error"`
		Write struct {
			IOPS     float64 `json:"iops"`
			TotalIOs int64   `json:"total_ios"`
			LatNS    struct {
				Percentile map[string]float64 `json:"percentile"`
			} `json:"lat_ns"`
		} `json:"write"`
	} `json:"jobs"`
}

func fioArgs(c Case, uri string, cfg Config, seed int) []string {
	pattern, size := "--rw=randwrite", "--bs=4k"
	if c.Class == Stream {
		pattern, size = "--rw=write", "--bs=1M"
	}
	args := []string{
		"--name=bench", "--ioengine=nbd", "--uri=" + uri, pattern, size, fmt.Sprintf("--iodepth=%d", c.Depth),
		fmt.Sprintf("--size=%dM", cfg.SizeMiB), "--time_based", fmt.Sprintf("--runtime=%d", cfg.Seconds), fmt.Sprintf("--randseed=%d", seed),
		"--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json",
	}
	if c.Class == Flush {
		args = append(args, "--fsync=1")
	}
	return args
}

// fio measures a case; servers are charged for the CPU time.
func fio(ctx context.Context, cfg Config, c Case, uri string, round int, servers []*process) (Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(cfg.Seconds)*time.Second+time.Minute)
	defer cancel()
	before, err := cpuTicks(servers)
	if err != nil {
		return Sample{}, err
	}
	text, err := run(ctx, "fio", fioArgs(c, uri, cfg, round)...)
	if err != nil {
		return Sample{}, fmt.Errorf("%v: %w", c, err)
	}
	after, err := cpuTicks(servers)
	if err != nil {
		return Sample{}, err
	}
	r, writes, err := parseFio(text)
	if err != nil {
		return Sample{}, fmt.Errorf("%v: %w", c, err)
	}
	r.Round, r.Case = round, c
	r.CPU = (time.Duration(after-before) * tick).Seconds() * 1e6 / float64(writes)
	return r, nil
}

// parseFio reads fio's output, which may have warnings before the JSON.
func parseFio(text string) (r Sample, writes int64, err error) {
	start := strings.IndexByte(text, '{')
	if start < 0 {
		return r, 0, fmt.Errorf("fio printed no JSON: %q", text)
	}
	var out fioOutput
	if err := json.Unmarshal([]byte(text[start:]), &out); err != nil {
		return r, 0, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(out.Jobs) != 1 || out.Jobs[0].Write.TotalIOs == 0 {
		return r, 0, fmt.Errorf("fio's JSON has %d jobs, or one that wrote nothing", len(out.Jobs))
	}
	w := out.Jobs[0].Write
	micros := func(percentile string) float64 { return math.Round(w.LatNS.Percentile[percentile]/100) / 10 }
	return Sample{IOPS: w.IOPS, P50: micros("50.000000"), P99: micros("99.000000"), Errors: out.Jobs[0].Error}, w.TotalIOs, nil
}
