package main

import (
	"flag"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-project/pollux/bench"
)

// ownFlags adds the flags that choose a target, a link and a workload of the
// user's own. take puts them into cfg once they are parsed.
func ownFlags(f *flag.FlagSet, cfg *bench.Config) (take func() error) {
	f.StringVar(&cfg.Target, "target", "", "measure this running `resource` or NBD URI, and nothing else; only reads, unless -destroy-data names it too")
	f.StringVar(&cfg.DestroyData, "destroy-data", "", "write to -target: what the `resource` (of a URI: its export) holds is lost")
	f.StringVar(&cfg.Settings, "config", "/etc/pollux/pollux.toml", "pollux.toml of the polluxd that has -target")
	bandwidth := f.String("bandwidth", "", "the nodes in two network namespaces, `rate` between them such as 1gbit or 100mbit")
	delay := f.Duration("delay", 0, "the nodes in two network namespaces, so much `time` for each way between them, such as 200us")
	op := f.String("op", "", "one workload of your own instead of the suite: `write`, read or mixed; with the flags that follow")
	pattern := f.String("pattern", "random", "own workload: `random` or sequential")
	block := f.String("bs", "4k", "own workload: `size` of a request, 512 to 4m")
	depth := f.Int("depth", 1, "own workload: requests in flight, all connections together")
	connections := f.Int("connections", 1, "own workload: connections to the export")
	class := f.String("class", "buffered", "own workload: buffered, direct, flush (after every write) or fua")
	percent := f.Int("read-percent", 70, "own workload: reads among the requests of -op mixed")
	f.Int64Var(&cfg.Count, "count", 0, "requests in one sample, instead of -seconds")
	return func() error {
		var err error
		if *bandwidth != "" {
			if cfg.BandwidthMbit, err = parseRate(*bandwidth); err != nil {
				return fmt.Errorf("-bandwidth: %w", err)
			}
		}
		cfg.DelayMicros = float64(*delay) / float64(time.Microsecond)
		if *op == "" {
			return nil
		}
		bytes, err := bench.ParseBytes(*block)
		if err != nil {
			return fmt.Errorf("-bs: %w", err)
		}
		w := bench.NewWorkload(*op, *pattern, bytes, *depth, *connections, *class, *percent)
		cfg.Custom = &w
		return nil
	}
}

var rate = regexp.MustCompile(`^([0-9.]+)([kmg])bit$`)

// parseRate takes a rate as tc writes it and returns Mbit/s.
func parseRate(text string) (float64, error) {
	m := rate.FindStringSubmatch(strings.ToLower(text))
	if m == nil {
		return 0, fmt.Errorf("%q is no rate: write 1gbit or 100mbit", text)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no rate: %w", text, err)
	}
	return n * map[string]float64{"k": 1e-3, "m": 1, "g": 1e3}[m[2]], nil
}
