package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// An experiment measures one thing and appends what it finds to the session's
// result. Each stands in a file of its own.
type experiment struct {
	name     string // one word or two, such as "write-latency"; -only picks by it
	what     string // one line for people
	standard bool   // part of `make bench`; the others run when -only names them
	// run measures. What it starts by session.lab is ended afterwards, and the
	// lab's directory removed. An error ends this experiment, not the others.
	run func(context.Context, *session) error
}

// experiments are all of them, in the order in which they run.
var experiments = []experiment{
	latencyExperiment,
	clientsExperiment,
	resyncExperiment,
	verifyExperiment,
	streamExperiment,
	foregroundExperiment,
	footprintExperiment,
	memoryExperiment,
	timelineExperiment,
	alCostExperiment,
	alRangeExperiment,
	growthExperiment,
	scaleExperiment,
	guestsExperiment,
}

// chosen are the experiments that cfg asks for.
func chosen(cfg Config) (list []experiment) {
	if cfg.Target != "" {
		return []experiment{runningExperiment}
	}
	if cfg.Only == nil && (cfg.Custom != nil || cfg.DelayMicros > 0 || cfg.BandwidthMbit > 0) {
		return []experiment{latencyExperiment}
	}
	for _, e := range experiments {
		if cfg.Only == nil && e.standard || cfg.Only != nil && cfg.Only.MatchString(e.name) || cfg.Guests && e.name == guestsExperiment.name {
			list = append(list, e)
		}
	}
	return list
}

// List writes the names of all experiments and what they are.
func List(w io.Writer) {
	for _, e := range experiments {
		also := ""
		if !e.standard {
			also = " (only when named)"
		}
		fmt.Fprintf(w, "%-16s %s%s\n", e.name, e.what, also)
	}
}

// session is one benchmark under way, as an experiment sees it.
type session struct {
	cfg    Config
	lab    *lab        // of this experiment alone
	target *running    // that Config.Target names; nil = none
	link   *link       // between the nodes of all pairs; nil = loopback
	out    *result.Run // what was found so far
	doing  string      // the experiment's name
	began  time.Time
}

// Run runs the experiments that cfg asks for. It ends everything it has
// started, also when ctx is cancelled. The result holds what was measured even
// if the error is not nil; the directory of an experiment that failed stays,
// with the servers' logs.
func Run(ctx context.Context, cfg Config) (out *result.Run, err error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Isolated {
		if err := acknowledgeAtOnce(ctx); err != nil {
			return nil, err
		}
	}
	list := chosen(cfg)
	if len(list) == 0 {
		return nil, fmt.Errorf("no experiment has a name that %q matches: see -list", cfg.Only)
	}
	var target *running
	if cfg.Target != "" {
		if target, err = checkRunning(ctx, cfg); err != nil {
			return nil, err
		}
	}
	s := &session{cfg: cfg, target: target, out: newRun(ctx, cfg), began: time.Now()}
	if cfg.DelayMicros > 0 || cfg.BandwidthMbit > 0 {
		l, err := newLink(ctx, cfg)
		if errors.Is(err, errNoLink) {
			s.out.AddTarget(result.Target{Name: "pollux-c", Kind: result.KindPollux, Protocol: "C", Detail: "two polluxd in two network namespaces", Skipped: err.Error()})
			s.note("nothing was measured: %v", err)
			return s.out, nil
		} else if err != nil {
			return nil, err
		}
		s.link = l
		defer func() { err = errors.Join(err, l.close()) }()
	}
	var errs []error
	for _, e := range list {
		if err := s.perform(ctx, e); err != nil {
			s.note("%s failed: %v", e.name, err)
			errs = append(errs, fmt.Errorf("%s: %w", e.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	s.judgeLoad()
	s.out.Machine.LoadAfter = loadAverage()
	s.out.Ended = time.Now().UTC().Truncate(time.Second)
	return s.out, errors.Join(errs...)
}

func (s *session) perform(ctx context.Context, e experiment) (err error) {
	if s.lab, err = newLab(s.cfg.Dir); err != nil {
		return err
	}
	s.doing = e.name
	s.say("%s: %s", e.name, e.what)
	defer func() {
		err = errors.Join(err, s.lab.close(err != nil))
		if err != nil {
			s.say("%s: what was made is in %s", e.name, s.lab.dir)
		}
	}()
	return e.run(ctx, s)
}

// A stepper is a Config.Progress that shows how far the benchmark is.
type stepper interface {
	Plan(steps int)
	Step(text string)
	Figures(iops, p50, p99 float64) // of the latest sample; latencies in microseconds
}

// say writes a line of progress.
func (s *session) say(format string, args ...any) {
	fmt.Fprintf(s.cfg.Progress, "%6.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// note adds what a reader of the figures must know, once.
func (s *session) note(format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	for _, have := range s.out.Notes {
		if have == text {
			return
		}
	}
	s.out.Notes = append(s.out.Notes, text)
	s.say("note: %s", text)
}

// measure adds a figure that is no latency workload's. round is 0 if there are
// no rounds.
func (s *session) measure(m result.Measure) {
	s.out.Measures = append(s.out.Measures, m)
	text := m.Name
	if m.Detail != "" {
		text += ", " + m.Detail
	}
	s.say("round %d  %-44s %12.4g %s", m.Round, text+" ("+m.Target+")", m.Value, m.Unit)
}

// bar adds a demand and what was found.
func (s *session) bar(met bool, ratio float64, what, want, format string, args ...any) {
	s.out.AddBar(result.Bar{What: what, Want: want, Got: fmt.Sprintf(format, args...), Ratio: ratio, Met: met})
}

// inTurn calls all the functions once a round, each round beginning with
// another one, so that none always follows the same one: what the machine does
// to one it does to all.
func (s *session) inTurn(ctx context.Context, rounds int, do ...func(ctx context.Context, round int) error) error {
	show, ok := s.cfg.Progress.(stepper)
	if ok {
		show.Plan(rounds * len(do))
	}
	for round := 1; round <= rounds; round++ {
		for i := range do {
			if err := ctx.Err(); err != nil {
				return err
			}
			if ok {
				show.Step(fmt.Sprintf("%s: round %d of %d, sample %d of %d", s.doing, round, rounds, i+1, len(do)))
			}
			if err := do[(i+(round-1)*max(1, len(do)/rounds))%len(do)](ctx, round); err != nil {
				return err
			}
		}
	}
	return nil
}
