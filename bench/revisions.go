package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// revisionRows are what two revisions are compared by: the write path at low and
// high depth, group commit, and throughput.
func revisionRows() []result.Workload {
	return []result.Workload{
		workload(result.OpWrite, result.PatternRandom, 4096, 1, 1, result.ClassBuffered),
		workload(result.OpWrite, result.PatternRandom, 4096, 32, 1, result.ClassBuffered),
		workload(result.OpWrite, result.PatternRandom, 4096, 32, 4, result.ClassBuffered),
		workload(result.OpWrite, result.PatternRandom, 4096, 16, 1, result.ClassFlush),
		workload(result.OpWrite, result.PatternSequential, mib, 4, 1, result.ClassBuffered),
	}
}

// Revisions measures two builds of Pollux, the one in the directory base and the
// one in cfg.Bin, in one session: a pair of each runs all the time, and each round
// takes every workload on both, one after the other, in turning order. Each has a result of its own,
// for result.Compare.
func Revisions(ctx context.Context, cfg Config, base string) (was, is *result.Run, err error) {
	cfg.setDefaults()
	older := cfg
	older.Bin = base
	if err := errors.Join(cfg.Validate(), older.Validate()); err != nil {
		return nil, nil, err
	}
	if cfg.Isolated {
		if err := acknowledgeAtOnce(ctx); err != nil {
			return nil, nil, err
		}
	}
	l, err := newLab(cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.close(err != nil)) }()
	if err := checkRoom(l.dir, 4*(int64(cfg.SizeMiB)*mib+metaRoom)); err != nil {
		return nil, nil, err
	}
	var sessions []*session
	var pairs []*pair
	var images []string
	for _, c := range []Config{older, cfg} {
		s := &session{cfg: c, lab: l, out: newRun(ctx, c), doing: "revisions", began: time.Now()}
		s.out.AddTarget(result.Target{Name: targetPollux, Kind: result.KindPollux, Protocol: "C", Detail: "two polluxd of " + filepath.Clean(c.Bin)})
		p := s.pair(fmt.Sprintf("p%d", len(pairs)), volume{name: "r", protocol: 'C', io: "buffered", bytes: int64(c.SizeMiB) * mib})
		sessions, pairs = append(sessions, s), append(pairs, p)
		if err := p.prepare(ctx); err != nil {
			return nil, nil, err
		}
		if err := p.start(ctx); err != nil {
			return nil, nil, err
		}
		images = append(images, p.images(nil)...)
	}
	var do []func(context.Context, int) error
	for _, w := range revisionRows() {
		do = append(do, func(ctx context.Context, round int) error {
			for i := range pairs {
				n := (i + round) % len(pairs) // each is the first one in every second round
				s, p := sessions[n], pairs[n]
				// All of them: one must not write while the other's pages go to the disk.
				if err := settle(images); err != nil {
					return err
				}
				sample, err := s.sample(ctx, w, p.uri(p.volumes[0]), round, p.daemons)
				if err != nil {
					return err
				}
				s.keep(w, targetPollux, sample)
			}
			return nil
		})
	}
	err = sessions[0].inTurn(ctx, cfg.Rounds, do...)
	for i := range pairs {
		err = errors.Join(err, pairs[i].stop())
		sessions[i].out.Ended = time.Now().UTC().Truncate(time.Second)
		sessions[i].out.Command = os.Args
	}
	return sessions[0].out, sessions[1].out, err
}
