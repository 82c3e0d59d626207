package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// sample measures a workload on place, an NBD URI or a file, with the client of
// package load. servers are charged for the CPU time between warm-up and end.
// What the sample's target is, is for the caller to say; keep adds it.
func (s *session) sample(ctx context.Context, w result.Workload, place string, round int, servers []*process) (result.Sample, error) {
	var before, after int64
	var began, ended time.Duration // CPU time of this program
	var beforeErr, afterErr, beganErr, endedErr error
	others := watchOthers(s.lab)
	res, err := load.Run(ctx, place, load.Spec{
		Workload: w, SizeBytes: int64(s.cfg.SizeMiB) * mib, Seed: uint64(round),
		Warmup: seconds(s.cfg.Warmup), Duration: seconds(s.cfg.Seconds), Count: s.cfg.Count,
		Begin: func() {
			before, beforeErr = cpuTicks(servers)
			began, beganErr = cpuTime(unix.RUSAGE_SELF)
			others.begin()
		},
		End: func() {
			after, afterErr = cpuTicks(servers)
			ended, endedErr = cpuTime(unix.RUSAGE_SELF)
			others.end()
		},
	})
	if err = errors.Join(err, beforeErr, afterErr, beganErr, endedErr); err != nil {
		return result.Sample{}, fmt.Errorf("%s: %w", w.Name, err)
	}
	if res.Ops == 0 {
		return result.Sample{}, fmt.Errorf("%s on %s: nothing was answered in %v: %w", w.Name, place, seconds(s.cfg.Seconds), errors.Join(res.Refusal, errSilent))
	}
	if res.Errors > 0 {
		s.note("%s on %s: %d requests were answered with errors, the first: %v", w.Name, place, res.Errors, res.Refusal)
	}
	return result.Sample{
		Round: round, Workload: w.Name, Client: result.ClientGo, Seconds: res.Seconds, Ops: res.Ops, Bytes: res.Bytes, Errors: res.Errors, Latency: res.Latency,
		CPUMicros: (time.Duration(after-before) * tick).Seconds() * 1e6 / float64(res.Ops), ClientMicros: float64((ended - began).Microseconds()) / float64(res.Ops), OthersCPUs: others.cpus(),
	}, nil
}

// errSilent is a target that answers nothing, or nothing well.
var errSilent = errors.New("no answer without an error")

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// keep adds a sample to the result and says so.
func (s *session) keep(w result.Workload, target string, sample result.Sample) {
	sample.Target = target
	sample.Latency.Compact()
	s.out.AddWorkload(w)
	s.out.Samples = append(s.out.Samples, sample)
	if show, ok := s.cfg.Progress.(stepper); ok {
		show.Figures(sample.IOPS(), sample.Latency.PMicros(0.5), sample.Latency.PMicros(0.99))
	}
	client := ""
	if sample.Client != result.ClientGo {
		client = " by " + sample.Client
	}
	s.say("round %d of %d  %-29s %-16s %8.0f IOPS  p50 %8.1f  p99 %8.1f us%s", sample.Round, s.cfg.Rounds, w.Name, target,
		sample.IOPS(), sample.Latency.PMicros(0.5), sample.Latency.PMicros(0.99), client)
}
