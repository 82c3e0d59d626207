package replication

import (
	"flag"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewritePace = flag.Bool("rewrite-pace", false, "write testdata/pace.txt anew")

// path is a link to the peer and its disk: one block after the other, at so
// many bytes per millisecond, the answer so much later.
type path struct {
	perMS   int64
	delayMS Tick
	flying  ring[flight]
}

type flight struct {
	size    uint32
	at, due Tick
}

// paced runs a pacer over a path, a millisecond at a time, and reports for
// every half second the rate achieved, what was under way, and how long the
// application's write would have waited behind resync blocks.
func paced(o DiskOptions, l path, limit uint64, ms Tick, load func(Tick) uint64) string {
	var p pacer
	var inFlight, others, done, filled uint64
	var behind Tick
	p.begin(&o, false, 1, 0)
	var out strings.Builder
	var free int64 // µs: when the path has done all
	for now := Tick(1); now <= ms; now++ {
		for l.flying.len() > 0 && l.flying.at(0).due <= now {
			f := l.flying.pop()
			inFlight -= uint64(f.size)
			done += uint64(f.size)
			p.gotAnswer(f.size, now-f.at)
		}
		others += load(now)
		p.advance(now, others, false, inFlight)
		for p.mayAsk(inFlight, limit) {
			size := uint32(p.block())
			p.asked(size)
			inFlight += uint64(size)
			free = max(free, int64(now)*1000) + int64(size)*1000/l.perMS
			l.flying.push(flight{size, now, Tick((free+999)/1000) + l.delayMS})
		}
		filled += inFlight
		behind += Tick(max(free/1000-int64(now), 0))
		if now%500 == 0 {
			fmt.Fprintf(&out, "%5.1f s %8d KiB/s %6d KiB under way, a write waits %3d ms  %s\n",
				float64(now)/1000, done*2>>10, filled/500>>10, behind/500, strings.Repeat("#", bits.Len64(done*2>>10)))
			done, filled, behind = 0, 0, 0
		}
	}
	return out.String()
}

// TestPacing shows what the options of the resync do on paths of different
// speed. The text is read by people: see whether it is what you would want.
func TestPacing(t *testing.T) {
	none := func(Tick) uint64 { return 0 }
	const path1G, pathWAN, pathFast = 110 << 10, 10 << 10, 800 << 10 // bytes per ms
	var out strings.Builder
	for _, tt := range []struct {
		name   string
		change func(*DiskOptions)
		path   path
		ms     Tick
		load   func(Tick) uint64
	}{
		{"defaults, 1 Gbit/s, 1 ms: c-max-rate is the limit", func(*DiskOptions) {}, path{perMS: path1G, delayMS: 1}, 2000, none},
		{"c-max-rate 4 GiB/s, a fast path: max-buffers is the limit", func(o *DiskOptions) { o.CMaxRateKiB = 4 << 20 }, path{perMS: pathFast, delayMS: 1}, 1000, none},
		{"defaults, 10 MiB/s, 20 ms: the path is the limit, and its queue stays short", func(*DiskOptions) {}, path{perMS: pathWAN, delayMS: 20}, 6000, none},
		{"c-fill-target 0, c-delay-target 1 s on the same path: more may wait", func(o *DiskOptions) { o.CFillTarget = 0 }, path{perMS: pathWAN, delayMS: 20}, 3000, none},
		{"c-plan-ahead 0, resync-rate 8 MiB/s", func(o *DiskOptions) { o.CPlanAhead, o.ResyncRateKiB = 0, 8<<10 }, path{perMS: path1G, delayMS: 1}, 1500, none},
		{"an application writes 4 MiB/s from 1 s to 4 s: c-min-rate 250 KiB/s", func(*DiskOptions) {}, path{perMS: path1G, delayMS: 1}, 6000, func(now Tick) uint64 {
			if now > 1000 && now <= 4000 {
				return 8
			}
			return 0
		}},
		{"c-min-rate 0 never gives way", func(o *DiskOptions) { o.CMinRateKiB = 0 }, path{perMS: path1G, delayMS: 1}, 1000, func(Tick) uint64 { return 8 }},
		{"a light load, 200 KiB/s, does not count", func(*DiskOptions) {}, path{perMS: path1G, delayMS: 1}, 1000, func(now Tick) uint64 {
			if now%20 == 0 {
				return 8
			}
			return 0
		}},
	} {
		o := DefaultDiskOptions()
		tt.change(&o)
		fmt.Fprintf(&out, "%s\n%s\n", tt.name, paced(o, tt.path, 4<<20, tt.ms, tt.load))
	}
	const golden = "testdata/pace.txt"
	if *rewritePace {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
