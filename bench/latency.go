package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

// latencyExperiment is the heart of the suite: what one request costs, on a
// pair of Pollux and on everything beside it.
var latencyExperiment = experiment{
	name: "latency", what: "latency and IOPS of a Pollux pair beside qemu's network RAID-1", standard: true,
	run: func(ctx context.Context, s *session) error { return s.latency(ctx) },
}

// A row is one workload and the targets that are compared under it.
type row struct {
	workload result.Workload
	targets  []string
}

// rows are what the latency experiment measures, in the table's order.
func rows(isolated bool) (all []row) {
	add := func(op, pattern string, block, depth, connections int, class string, targets ...string) {
		for _, r := range rivals(class, isolated) {
			targets = append(targets, r.target())
		}
		all = append(all, row{workload(op, pattern, block, depth, connections, class), targets})
	}
	for _, class := range []string{result.ClassBuffered, result.ClassDirect, result.ClassFlush} {
		for _, depth := range []int{1, 32} {
			targets := []string{"pollux-c"}
			if class == result.ClassBuffered {
				targets = append(targets, "pollux-c-tls")
			}
			if depth == 1 && class != result.ClassFlush {
				targets = append(targets, "pollux-b", "pollux-a")
			}
			add(result.OpWrite, result.PatternRandom, 4096, depth, 1, class, targets...)
		}
	}
	return all
}

func (s *session) latency(ctx context.Context) error {
	list := rows(s.cfg.Isolated)
	size := int64(s.cfg.SizeMiB) * mib
	p, q := s.pair("pair"), &quorum{lab: s.lab, bytes: size}
	for _, r := range list {
		s.out.AddWorkload(r.workload)
		for _, target := range r.targets {
			v, ok := volumeOf(target, r.workload.Class, size)
			if ok && p.volume(v.name) == nil {
				p.volumes = append(p.volumes, v)
			}
		}
	}
	if err := checkRoom(s.lab.dir, 2*p.imageBytes()+2*size); err != nil {
		return err
	}
	s.say("writing images of %d MiB", (2*p.imageBytes()+2*size)/mib)
	if err := errors.Join(p.prepare(ctx), q.prepare()); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	var do []func(context.Context, int) error
	for _, r := range list {
		for _, target := range r.targets {
			do = append(do, func(ctx context.Context, round int) error { return s.latencySample(ctx, p, q, r, target, round) })
		}
	}
	if err := s.inTurn(ctx, s.cfg.Rounds, do...); err != nil {
		return err
	}
	return p.stop()
}

func (s *session) latencySample(ctx context.Context, p *pair, q *quorum, r row, target string, round int) (err error) {
	if err := settle(append(p.images(nil), q.images()...)); err != nil {
		return err
	}
	var sample result.Sample
	if v, ok := volumeOf(target, r.workload.Class, int64(s.cfg.SizeMiB)*mib); ok {
		s.out.AddTarget(result.Target{Name: target, Kind: result.KindPollux, Protocol: string(v.protocol), Detail: "Pollux, protocol " + string(v.protocol)})
		if sample, err = s.fio(ctx, r.workload, p.uri(v), round, p.daemons); err != nil {
			return err
		}
	} else {
		defer func() { err = errors.Join(err, q.stop()) }()
		for _, rival := range rivals(r.workload.Class, s.cfg.Isolated) {
			if rival.target() != target {
				continue
			}
			s.out.AddTarget(result.Target{Name: target, Kind: result.KindPair, Detail: "qemu's quorum, " + rival.name})
			uri, err := q.start(ctx, rival)
			if err != nil {
				return err
			}
			if sample, err = s.fio(ctx, r.workload, uri, round, q.servers); err != nil {
				return err
			}
		}
	}
	sample.Target = target
	sample.Latency.Compact()
	s.out.Samples = append(s.out.Samples, sample)
	s.say("round %d  %-32s %-16s %8.0f IOPS  p50 %7.1f  p99 %7.1f us", round, r.workload.Name, target, sample.IOPS(), sample.Latency.PMicros(0.5), sample.Latency.PMicros(0.99))
	return nil
}

// volumeOf is the resource behind a target of Pollux, for a class of I/O.
func volumeOf(target, class string, size int64) (volume, bool) {
	rest, ok := strings.CutPrefix(target, "pollux-")
	if !ok {
		return volume{}, false
	}
	io := result.ClassBuffered
	if class == result.ClassDirect {
		io = result.ClassDirect
	}
	protocol, tls := strings.CutSuffix(rest, "-tls")
	return volume{name: fmt.Sprintf("%s-%s", io, rest), protocol: protocol[0] &^ 0x20, io: io, bytes: size, tls: tls}, true
}
