package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/pollux-project/pollux/bench/result"
)

// clientsExperiment proves that our own client counts and times right: it and
// fio take turns on exports whose speed a delay in the server fixes. With
// processors to spare on both sides the cheaper client gains nothing by that.
var clientsExperiment = experiment{
	name: "clients", what: "our own NBD client beside fio, on exports whose speed a delay fixes", standard: true,
	run: func(ctx context.Context, s *session) error { return s.clients(ctx) },
}

// clientRounds are enough for a yardstick whose speed is fixed (our own).
const clientRounds = 3

// A yardstick is one workload of the cross-check and how long its server makes
// each request wait.
type yardstick struct {
	workload result.Workload
	delayMS  int
}

// yardsticks are all of them: 2 ms at depth 1, and 10 ms at depth 32, which
// leave most of two processors idle: 3200 requests a second (our own choice).
func yardsticks() (all []yardstick) {
	for _, op := range []string{result.OpWrite, result.OpRead} {
		for _, d := range []struct{ depth, connections, delayMS int }{{1, 1, 2}, {32, 1, 10}, {32, 4, 10}} {
			all = append(all, yardstick{workload(op, result.PatternRandom, 4096, d.depth, d.connections, result.ClassBuffered), d.delayMS})
		}
	}
	return append(all, yardstick{workload(result.OpWrite, result.PatternRandom, 4096, 1, 1, result.ClassFlush), 2})
}

// target is the export's name.
func (y yardstick) target() string {
	if y.workload.Class == result.ClassFlush {
		return fmt.Sprintf("delayed-flush-%dms", y.delayMS)
	}
	return fmt.Sprintf("delayed-%dms", y.delayMS)
}

// server is what nbdkit runs with: memory, and a delay before it. For flushes a
// write-back cache lies above the delay, so that only they wait. More threads
// than nbdkit's 16: it must take the whole depth.
func (y yardstick) server(sizeMiB int) []string {
	args := []string{"-t", "64"}
	plugin := []string{"--filter=delay", "memory", fmt.Sprintf("%dM", sizeMiB), fmt.Sprintf("wdelay=%dms", y.delayMS), fmt.Sprintf("rdelay=%dms", y.delayMS)}
	if y.workload.Class == result.ClassFlush {
		args, plugin[len(plugin)-1] = append(args, "--filter=cache"), "cache-min-block-size=4K" // a read for the cache does not wait
	}
	return append(args, plugin...)
}

func (s *session) clients(ctx context.Context) error {
	if text := lacking("nbdkit", "fio"); text != "" {
		for _, y := range yardsticks() {
			s.out.AddTarget(result.Target{Name: y.target(), Kind: result.KindYardstick, Detail: "to compare clients on", Skipped: text})
		}
		s.note("the figures are not cross-checked: %s", text)
		return nil
	}
	var do []func(context.Context, int) error
	for _, y := range yardsticks() {
		s.out.AddWorkload(y.workload)
		what := "request"
		if y.workload.Class == result.ClassFlush {
			what = "flush"
		}
		s.out.AddTarget(result.Target{Name: y.target(), Kind: result.KindYardstick, Detail: fmt.Sprintf("nbdkit memory, each %s delayed by %d ms: to compare clients on", what, y.delayMS)})
		for _, client := range []string{result.ClientGo, result.ClientFio} {
			do = append(do, func(ctx context.Context, round int) error { return s.yardstick(ctx, y, client, round) })
		}
	}
	if err := s.inTurn(ctx, min(s.cfg.Rounds, clientRounds), do...); err != nil {
		return err
	}
	for _, y := range yardsticks() {
		judgeYardstick(s.out, y)
	}
	return nil
}

// yardstick takes one sample.
func (s *session) yardstick(ctx context.Context, y yardstick, client string, round int) (err error) {
	socket := s.lab.path("delayed.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	uri, stop, err := s.nbdkit(ctx, socket, y.server(s.cfg.SizeMiB)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	measure := s.sample
	if client == result.ClientFio {
		measure = s.fio
	}
	sample, err := measure(ctx, y.workload, uri, round, s.lab.running)
	if err == nil {
		s.keep(y.workload, y.target(), sample)
	}
	return err
}

// depthKept is how many requests were in flight, by Little's law: those that
// end in a second times the seconds that one takes.
func depthKept(s *result.Sample) float64 { return s.IOPS() * s.Latency.Mean().Seconds() }

// judgeYardstick demands the same figures of both clients, and of ours exactly
// the depth. fio counts no flush into a write's latency; there the IOPS speak.
func judgeYardstick(run *result.Run, y yardstick) {
	c := compareClients(run, y.workload.Name, y.target())
	if c == nil {
		return
	}
	kept := result.MedianOf(run.SamplesOf(y.workload.Name, y.target(), result.ClientGo), depthKept)
	worst, text := math.Abs(c.iops-1), fmt.Sprintf("IOPS %s", percentOf(c.iops))
	if y.workload.Class != result.ClassFlush {
		worst = max(worst, math.Abs(c.p50-1), math.Abs(c.p99-1))
		text += fmt.Sprintf(", p50 %s, least p99 %s", percentOf(c.p50), percentOf(c.p99))
	}
	run.AddBar(result.Bar{
		What: "own client and fio, delayed export, " + y.workload.Name, Want: fmt.Sprintf("within %.0f %%, depth kept within %.0f %%", agreementBar*100, depthBar*100),
		Got: fmt.Sprintf("%s; ours kept %.2f in flight", text, kept), Ratio: 1 + worst,
		Met: worst <= agreementBar && math.Abs(kept/float64(y.workload.Depth)-1) <= depthBar,
	})
}

// A clientRatio is what our own client measured divided by what fio did:
// medians, of p99 the least of the rounds, as what disturbs a machine only adds
// to that. And what a request cost each client and the servers, microseconds.
type clientRatio struct {
	iops, p50, p99                     float64
	client, server, fio, serverWithFio float64
}

// compareClients is nil if one of them did not measure.
func compareClients(run *result.Run, workload, target string) *clientRatio {
	ours, theirs := run.SamplesOf(workload, target, result.ClientGo), run.SamplesOf(workload, target, result.ClientFio)
	if len(ours) == 0 || len(theirs) == 0 {
		return nil
	}
	ratio := func(m result.Metric) float64 {
		value := func(s *result.Sample) float64 { return s.Value(m) }
		return result.MedianOf(ours, value) / result.MedianOf(theirs, value)
	}
	least := func(all []*result.Sample) float64 {
		p99 := math.Inf(1)
		for _, s := range all {
			p99 = min(p99, s.Value(result.MetricP99))
		}
		return p99
	}
	client := func(s *result.Sample) float64 { return s.ClientMicros }
	server := func(s *result.Sample) float64 { return s.CPUMicros }
	return &clientRatio{
		iops: ratio(result.MetricIOPS), p50: ratio(result.MetricP50), p99: least(ours) / least(theirs),
		client: result.MedianOf(ours, client), server: result.MedianOf(ours, server), fio: result.MedianOf(theirs, client), serverWithFio: result.MedianOf(theirs, server),
	}
}

// percentOf writes a ratio as a difference.
func percentOf(ratio float64) string { return fmt.Sprintf("%+.1f %%", (ratio-1)*100) }

// judgeClients demands that both clients agree on a pair at depth 1, where a
// processor is free for each. At depth it only tells what both found: there
// client and servers share the processors, and the client's own work is a part
// of the figure.
func (s *session) judgeClients(w result.Workload) {
	c := compareClients(s.out, w.Name, "pollux-c")
	if c == nil {
		return
	}
	text := fmt.Sprintf("IOPS %s, p50 %s; CPU per request: client %.1f us (servers %.1f) with ours, %.1f (%.1f) with fio", percentOf(c.iops), percentOf(c.p50), c.client, c.server, c.fio, c.serverWithFio)
	if w.Depth > 1 {
		s.note("own client beside fio on a pair, %s, for information: %s. Both share the processors with both servers here: what a client takes the servers lack, so the cheaper client sees more IOPS, and neither measures wrongly", w.Name, text)
		return
	}
	worst := max(math.Abs(c.iops-1), math.Abs(c.p50-1))
	s.bar(worst <= agreementBar, 1+worst, "own client and fio on a pair, "+w.Name, fmt.Sprintf("within %.0f %%", agreementBar*100), "%s", text)
}
