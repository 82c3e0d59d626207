package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// latencies draws n requests around p50 (us) with a tail, as servers have it:
// a body, a shoulder of waits for a core, a few flushes of the device.
func latencies(rng *rand.Rand, p50 float64, n int) *result.Histogram {
	h := result.NewHistogram()
	for range n {
		us := p50 * math.Exp(0.18*rng.NormFloat64())
		switch u := rng.Float64(); {
		case u < 0.0005:
			us += 4000 + rng.ExpFloat64()*3000
		case u < 0.02:
			us += p50 * (1 + 2*rng.ExpFloat64())
		}
		h.Record(time.Duration(us * 1000))
	}
	return h
}

// synthetic is a run as the suite makes it: all kinds of targets, a sweep over
// the depth, a throughput workload, timelines, measures, bars met and missed,
// a target that was skipped, names that HTML must escape.
func synthetic() *result.Run {
	rng := rand.New(rand.NewPCG(5, 5))
	start := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	run := &result.Run{
		Format: result.Format, Started: start, Ended: start.Add(7*time.Minute + 12*time.Second), Commit: "d53e7f2",
		Command: []string{"bin/pollux-bench", "run", "-only", "latency|resync", "-rounds", "5"},
		Machine: result.Machine{
			Kernel: "6.1.0-18-amd64", CPUModel: "Intel Xeon Platinum 8375C @ 2.90GHz", CPUs: 2, MemoryBytes: 8 << 30, LoadBefore: 0.12, LoadAfter: 2.4, Filesystem: "ext4 on /dev/vda1",
			Versions: []string{"polluxd 0.1.0-dev+d53e7f2", "qemu-storage-daemon 7.2.9", "nbdkit 1.32.5", "fio-3.33"},
		},
		Settings: result.Settings{Rounds: 5, Seconds: 1.5, WarmupSeconds: 0.3, SizeBytes: 256 << 20, Isolated: true},
		Targets: []result.Target{
			{Name: "pollux-c", Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C"},
			{Name: "pollux-b", Kind: result.KindPollux, Protocol: "B", Detail: "Pollux, protocol B"},
			{Name: "pollux-c-tls", Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C over TLS"},
			{Name: "pollux-alone", Kind: result.KindPollux, Detail: "polluxd, protocol C, its peer disconnected"},
			{Name: "quorum-nbdkit", Kind: result.KindPair, Detail: "qemu's quorum, remote copy by nbdkit"},
			{Name: "quorum-threads", Kind: result.KindPair, Detail: "qemu's quorum <aio=threads> & a qemu peer"},
			{Name: "nbdkit-file", Kind: result.KindCopy, Detail: "one copy, nbdkit file"},
			{Name: "qemu-nbd", Kind: result.KindCopy, Detail: "one copy, qemu-nbd"},
			{Name: "raw-file", Kind: result.KindFile, Detail: "the backing file itself"},
			{Name: "drbd-8.4", Kind: result.KindKernel, Detail: "kernel DRBD in guests", Skipped: "no qemu-system-x86_64: install qemu-system-x86 (scripts/bootstrap interop)"},
		},
		Notes: []string{"The machine was loaded before the run (load 0.12 on 2 CPUs is fine; this line is here so that a note is seen)."},
	}
	add := func(w result.Workload, base map[string]float64) {
		run.AddWorkload(w)
		for round := 1; round <= 5; round++ {
			machine := math.Exp(0.15 * rng.NormFloat64())
			for _, t := range run.Targets {
				p50, ok := base[t.Name]
				if !ok {
					continue
				}
				p50 *= machine * math.Exp(0.03*rng.NormFloat64())
				iops := 0.92 * 1e6 / p50 * float64(w.Depth)
				n := int64(iops * 1.5)
				run.Samples = append(run.Samples, result.Sample{
					Round: round, Workload: w.Name, Target: t.Name, Client: result.ClientGo, Seconds: 1.5, Ops: n, Bytes: n * int64(w.BlockBytes),
					Latency: latencies(rng, p50, int(min(n, 6000))), CPUMicros: p50 / float64(w.Depth) * 0.7, SyscallsPerOp: 9.5,
				})
			}
		}
	}
	speeds := map[string]float64{"pollux-c": 105, "pollux-b": 98, "pollux-c-tls": 128, "pollux-alone": 58, "quorum-nbdkit": 160, "quorum-threads": 171, "nbdkit-file": 52, "qemu-nbd": 104, "raw-file": 9}
	for _, depth := range []int{1, 4, 16, 32, 64, 128} {
		at := map[string]float64{}
		for name, p50 := range speeds {
			gain := map[string]float64{"pollux-c": 0.13, "pollux-b": 0.12, "pollux-c-tls": 0.16, "nbdkit-file": 0.25, "raw-file": 0.6}[name]
			if gain == 0 {
				gain = 0.55
			}
			at[name] = p50 * (1 + gain*float64(depth-1))
		}
		add(result.Workload{Name: fmt.Sprintf("randwrite-4k-qd%d-buffered", depth), Op: result.OpWrite, Pattern: result.PatternRandom, BlockBytes: 4096, Depth: depth, Connections: 1, Class: result.ClassBuffered}, at)
	}
	add(result.Workload{Name: "randwrite-4k-qd1-flush", Op: result.OpWrite, Pattern: result.PatternRandom, BlockBytes: 4096, Depth: 1, Connections: 1, Class: result.ClassFlush},
		map[string]float64{"pollux-c": 1150, "quorum-nbdkit": 1560, "quorum-threads": 1290})
	add(result.Workload{Name: "seqwrite-1m-qd4-buffered", Op: result.OpWrite, Pattern: result.PatternSequential, BlockBytes: 1 << 20, Depth: 4, Connections: 1, Class: result.ClassBuffered},
		map[string]float64{"pollux-c": 4700, "quorum-nbdkit": 7700, "nbdkit-file": 2900})
	for _, s := range run.Samples {
		if s.Workload == "randwrite-4k-qd1-buffered" && (s.Target == "pollux-c" || s.Target == "qemu-nbd") {
			s.Client, s.Ops = result.ClientFio, s.Ops*96/100
			if s.Target == "qemu-nbd" {
				s.Ops = s.Ops * 8 / 10
			}
			run.Samples = append(run.Samples, s)
		}
	}
	run.Timelines = []result.Timeline{timeline(rng)}
	addMeasures(rng, run)
	run.Bars = []result.Bar{
		{What: "4 KiB random write, C, buffered, QD 1", Want: ">= 1.2 × best quorum", Got: "1.52 × quorum-nbdkit", Ratio: 1.52, Met: true},
		{What: "4 KiB random write, C, buffered, QD 1, p99", Want: "<= 3 × p50", Got: "2.4 × (105 to 251 µs)", Ratio: 2.4, Met: true},
		{What: "4 KiB random write, C, buffered, QD 32, one connection", Want: ">= 2.5 × best quorum", Got: "2.31 × quorum-nbdkit: p50 of 530 against 2890 µs, three ways were tried", Ratio: 2.31},
		{What: "resync at c-max-rate", Want: ">= 0.9 × nbdcopy", Got: "0.96 × (712 to 741 MiB/s)", Ratio: 0.96, Met: true},
	}
	return run
}

func timeline(rng *rand.Rand) result.Timeline {
	t := result.Timeline{
		Name: "peer lost and resynced", Target: "pollux-c", Workload: "randwrite-4k-qd16-buffered", BucketSeconds: 0.25,
		Marks: []result.Mark{{T: 5, Text: "kill -9 of the peer's polluxd"}, {T: 5.2, Text: "goes on alone"}, {T: 9, Text: "connected"}, {T: 9.3, Text: "resync begins"}, {T: 11.5, Text: "resync ends"}},
	}
	for i := range 96 {
		at := float64(i) * 0.25
		p50, stall := 310.0, false
		switch {
		case at >= 5 && at < 5.5:
			stall = at < 5.25
			p50 = 400
		case at >= 5.5 && at < 9:
			p50 = 190
		case at >= 9.3 && at < 11.5:
			p50 = 470
		}
		p50 *= math.Exp(0.05 * rng.NormFloat64())
		q := result.Point{T: at, IOPS: 0.92 * 16e6 / p50, P50Micros: p50, P99Micros: p50 * (2.2 + 0.3*rng.Float64()), MaxMicros: p50 * 8}
		if stall {
			q = result.Point{T: at}
		}
		t.Points = append(t.Points, q)
	}
	return t
}

func addMeasures(rng *rand.Rand, run *result.Run) {
	for round := 1; round <= 5; round++ {
		noise := func() float64 { return math.Exp(0.05 * rng.NormFloat64()) }
		add := func(name, target, detail, unit string, value float64) {
			run.Measures = append(run.Measures, result.Measure{Name: name, Target: target, Round: round, Detail: detail, Unit: unit, Value: value})
		}
		add("resync", "pollux-c", "", "MiB/s", 712*noise())
		add("resync", "nbdkit-file", "nbdcopy", "MiB/s", 741*noise())
		add("verify", "pollux-c", "", "MiB/s", 1320*noise())
		add("memory, peak", "pollux-c", "node a", "bytes", 41e6*noise())
		add("memory, peak", "pollux-c", "node b", "bytes", 38e6*noise())
		add("longest write", "pollux-c", "kill -9 of the peer", "ms", 39*noise())
		add("longest write", "pollux-c", "the link is cut", "ms", 6111*noise())
		add("longest write", "pollux-c", "the link is back", "ms", 3.6*noise())
		for i, size := range []string{"1 GiB", "16 GiB", "256 GiB", "1 TiB", "4 TiB", "16 TiB"} {
			add("p50 over device size", "pollux-c", size, "us", (105+float64(i))*noise())
		}
	}
}
