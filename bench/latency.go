package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

// latencyExperiment is the heart of the suite: what one request costs, on a
// pair of Pollux and on everything beside it.
var latencyExperiment = experiment{
	name: "latency", what: "latency and IOPS of a Pollux pair beside qemu's network RAID-1 and single copies", standard: true,
	run: func(ctx context.Context, s *session) error { return s.latency(ctx) },
}

// A row is one workload and the targets that are compared under it.
type row struct {
	workload result.Workload
	targets  []string
	fio      bool // measured with fio as well, on the first target
	extra    bool // for plots and looking: not in a quick run, and in every second round only
}

// rows are what the latency experiment measures, in the table's order.
func rows(isolated, quick bool) (all []row) {
	write := func(depth, connections int, class string, beside ...string) *row {
		w := workload(result.OpWrite, result.PatternRandom, 4096, depth, connections, class)
		all = append(all, row{workload: w, targets: slices.Concat([]string{"pollux-c"}, rivals(class, isolated), beside)})
		return &all[len(all)-1]
	}
	extra := func(w result.Workload, targets ...string) {
		all = append(all, row{workload: w, targets: targets, extra: true})
	}
	buffered := result.ClassBuffered
	write(1, 1, buffered, "nbdkit-file", "qemu-nbd", "file", "pollux-alone", "pollux-b", "pollux-a", "pollux-c-tls").fio = true
	write(32, 1, buffered, "nbdkit-file", "qemu-nbd", "file", "pollux-alone", "pollux-c-tls").fio = true
	write(32, 4, buffered, "nbdkit-file")
	write(1, 1, result.ClassDirect, "qemu-nbd", "file")
	write(16, 1, result.ClassDirect, "qemu-nbd", "file").fio = true
	write(1, 1, result.ClassFlush, "nbdkit-file", "file")
	write(16, 1, result.ClassFlush, "nbdkit-file", "file")
	if quick {
		return all
	}
	compared := []string{"pollux-c", "quorum-nbdkit", "nbdkit-file"}
	extra(workload(result.OpWrite, result.PatternRandom, 4096, 1, 1, result.ClassFUA), compared...)
	extra(workload(result.OpWrite, result.PatternRandom, 64<<10, 8, 1, buffered), compared...)
	extra(workload(result.OpWrite, result.PatternSequential, mib, 4, 1, buffered), append(compared, "pollux-c-tls")...)
	for _, depth := range []int{1, 32} {
		extra(workload(result.OpRead, result.PatternRandom, 4096, depth, 1, buffered), compared...)
	}
	extra(mixed(70, result.PatternRandom, 4096, 32, 1, buffered), compared...)
	for _, depth := range []int{4, 16, 128} {
		extra(workload(result.OpWrite, result.PatternRandom, 4096, depth, 1, buffered), compared...)
	}
	return all
}

// latencyRun is the experiment under way.
type latencyRun struct {
	s        *session
	rows     []row
	pair     *pair
	quorum   *quorum
	single   string // the file behind targets with one copy
	subjects map[string]*subject
}

// customRow sets a workload that the user chose beside all that are fair.
func customRow(w result.Workload, isolated bool) row {
	beside := []string{"nbdkit-file", "qemu-nbd", "file"}
	if w.Class == result.ClassDirect {
		beside = beside[1:] // nbdkit's file plugin has no O_DIRECT
	}
	return row{workload: w, targets: slices.Concat([]string{"pollux-c"}, rivals(w.Class, isolated), beside), fio: w.Class != result.ClassFUA}
}

func (s *session) latency(ctx context.Context) error {
	r := &latencyRun{s: s, rows: rows(s.cfg.Isolated, s.cfg.Quick), single: s.lab.path("single.raw")}
	if s.cfg.Custom != nil {
		r.rows = []row{customRow(*s.cfg.Custom, s.cfg.Isolated)}
	}
	if err := r.prepare(ctx); err != nil {
		return err
	}
	var do []func(context.Context, int) error
	for _, row := range r.rows {
		for _, target := range row.targets {
			if r.subjects[target].Skipped != "" {
				continue
			}
			do = append(do, func(ctx context.Context, round int) error { return r.measure(ctx, row, target, result.ClientGo, round) })
			if row.fio && target == row.targets[0] && lacking("fio") == "" {
				do = append(do, func(ctx context.Context, round int) error {
					return r.measure(ctx, row, target, result.ClientFio, round)
				})
			}
		}
	}
	if err := s.inTurn(ctx, s.cfg.Rounds, do...); err != nil {
		return err
	}
	judgeLatency(s.out)
	for _, row := range r.rows {
		s.judgeClients(row.workload)
	}
	return r.pair.stop()
}

// prepare makes all images and starts the pair.
func (r *latencyRun) prepare(ctx context.Context) error {
	s, size := r.s, int64(r.s.cfg.SizeMiB)*mib
	r.pair, r.quorum = s.pair("pair"), &quorum{lab: s.lab, link: s.link, bytes: size}
	r.subjects = s.subjects(r.pair, r.quorum, r.single)
	for _, row := range r.rows {
		s.out.AddWorkload(row.workload)
		for _, target := range row.targets {
			if v := volumeOf(target, row.workload.Class, size); strings.HasPrefix(target, "pollux-") && r.pair.volume(v.name) == nil {
				r.pair.volumes = append(r.pair.volumes, v)
			}
			if x := r.subjects[target]; s.out.Target(target) == nil {
				s.out.AddTarget(x.Target)
				if x.Skipped != "" {
					s.say("skipped: %s: %s", target, x.Skipped)
				}
			}
		}
	}
	room := 2*r.pair.imageBytes() + 3*size
	if err := checkRoom(s.lab.dir, room); err != nil {
		return err
	}
	s.say("writing images, %d MiB in %s", room/mib, s.lab.dir)
	if err := errors.Join(r.pair.prepare(ctx), r.quorum.prepare(), makeImage(r.single, size, 0)); err != nil {
		return err
	}
	s.say("starting two polluxd, first sync of %d volumes", len(r.pair.volumes))
	if err := r.pair.start(ctx); err != nil {
		return err
	}
	if alone := volumeOf("pollux-alone", result.ClassBuffered, size); r.pair.volume(alone.name) != nil {
		return r.pair.adm(ctx, nodeNames[0], "disconnect", alone.name)
	}
	return nil
}

// measure takes one sample.
func (r *latencyRun) measure(ctx context.Context, row row, target, client string, round int) (err error) {
	if row.extra && round%2 == 0 {
		return nil
	}
	if err := settle(append(append(r.pair.images(nil), r.quorum.images()...), r.single)); err != nil {
		return err
	}
	x := r.subjects[target]
	if x.close != nil {
		defer func() { err = errors.Join(err, x.close()) }()
	}
	place, servers, err := x.open(ctx, row.workload.Class)
	if err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	var sample result.Sample
	if client == result.ClientFio {
		sample, err = r.s.fio(ctx, row.workload, place, round, servers)
	} else {
		sample, err = r.s.sample(ctx, row.workload, place, round, servers)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	r.s.keep(row.workload, target, sample)
	return nil
}
