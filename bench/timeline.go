package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/bench/load"
	"github.com/pollux-project/pollux/bench/result"
)

// timelineExperiment shows what a client of the Primary notices of the bad
// days: the peer's polluxd is killed and started again, the link is cut and
// comes back, and what was written meanwhile is resynced.
var timelineExperiment = experiment{
	name: "timeline", what: "a steady load while the peer dies and returns, and while the link is cut", standard: true,
	run: func(ctx context.Context, s *session) error { return s.timeline(ctx) },
}

// When what happens, since the load began.
const (
	timelineLength  = 32 * time.Second
	timelineBucket  = 100 * time.Millisecond
	timelineKill    = 4 * time.Second
	timelineRestart = 8 * time.Second
	timelineCut     = 18 * time.Second
	timelineRepair  = 23 * time.Second
)

// What is marked, by us.
const (
	textKill    = "kill -9 of the peer's polluxd"
	textRestart = "the peer's polluxd starts"
	textCut     = "the link is cut"
	textRepair  = "the link is back"
)

// timelineNet makes a cut link known within 2 s, instead of DRBD's 6, and tries
// again each 3 s: the same story in half a minute. The resync gets a share of
// the disks beside the load, as administrators give it (c-min-rate), or it
// would take longer than the picture.
const (
	timelineNet  = "timeout 20; ping-int 3; connect-int 3;"
	timelineDisk = "c-min-rate 50M;"
)

func (s *session) timeline(ctx context.Context) error {
	w := workload(result.OpWrite, result.PatternRandom, 4096, 4, 1, result.ClassBuffered)
	v := volume{name: "timeline", protocol: 'C', io: "buffered", bytes: int64(s.cfg.SizeMiB) * mib}
	p := s.pair("pair", v)
	p.net, p.disk = timelineNet, timelineDisk
	if err := checkRoom(s.lab.dir, 2*p.imageBytes()); err != nil {
		return err
	}
	if err := p.prepare(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	s.out.AddWorkload(w)
	s.out.AddTarget(result.Target{Name: targetPollux, Kind: result.KindPollux, Protocol: "C", Detail: "Pollux, protocol C"})
	t, err := s.eventful(ctx, p, v, w)
	if err != nil {
		return err
	}
	s.out.Timelines = append(s.out.Timelines, t)
	s.say("timeline: %d points, %d marks", len(t.Points), len(t.Marks))
	for _, m := range pauses(t, []string{textKill, textRestart, textCut, textRepair}) {
		s.measure(m)
	}
	return p.stop()
}

// eventful puts the load on the volume and has everything happen meanwhile.
func (s *session) eventful(ctx context.Context, p *pair, v volume, w result.Workload) (t result.Timeline, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	marks := &marker{began: time.Now()}
	watched, err := marks.watch(ctx, filepath.Join(p.bin, "polluxadm"), "--config", p.settings(nodeNames[0]), "events", "--timestamps", v.name)
	if err != nil {
		return t, err
	}
	var res *result.Timeline
	var g sync.WaitGroup
	var loadErr, happenErr error
	g.Go(func() {
		defer cancel() // nothing needs to happen any more
		r, err := load.Run(ctx, p.uri(v), load.Spec{Workload: w, SizeBytes: v.bytes, Duration: timelineLength, Seed: 1, Trace: true})
		if loadErr = err; err != nil {
			return
		}
		if r.Errors > 0 {
			s.note("timeline: %d writes were answered with an error, the first: %v", r.Errors, r.Refusal)
		}
		res = &result.Timeline{BucketSeconds: timelineBucket.Seconds(), Points: bucketed(r.Trace, timelineLength, timelineBucket)}
		marks.rebase(r.Started)
	})
	happenErr = s.happenings(ctx, p, marks)
	if happenErr != nil {
		cancel()
	}
	g.Wait()
	if err := errors.Join(happenErr, loadErr, watched()); err != nil {
		return t, err
	}
	t = *res
	t.Name, t.Target, t.Workload, t.Marks = "peer killed, link cut", targetPollux, w.Name, marks.sorted()
	return t, nil
}

// happenings does to the pair what the timeline is about.
func (s *session) happenings(ctx context.Context, p *pair, marks *marker) error {
	steps := []struct {
		at   time.Duration
		text string
		do   func(context.Context) error
	}{
		{timelineKill, textKill, func(context.Context) error { return p.kill(1) }},
		{timelineRestart, textRestart, func(context.Context) error { return p.revive(1) }},
		{timelineCut, textCut, func(ctx context.Context) error { return p.setLink(ctx, false) }},
		{timelineRepair, textRepair, func(ctx context.Context) error { return p.setLink(ctx, true) }},
	}
	if !s.cfg.Isolated {
		steps = steps[:2]
		s.note("timeline: without a network namespace of its own the link is not cut")
	}
	for _, step := range steps {
		select {
		case <-ctx.Done():
			return nil // the load says why
		case <-time.After(time.Until(marks.began.Add(step.at))):
		}
		marks.add(time.Now(), step.text)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.text, err)
		}
	}
	return nil
}

// setLink cuts what is between the nodes, or repairs it. Without a link of its
// own that is the namespace's loopback, which carries nothing else: clients and
// orders come by unix sockets. Routes go with the device.
func (p *pair) setLink(ctx context.Context, up bool) error {
	switch {
	case p.link == nil && up:
		return acknowledgeAtOnce(ctx)
	case p.link == nil:
		return order(ctx, "ip", "link", "set", "lo", "down")
	case up:
		return errors.Join(order(ctx, "ip", "link", "set", linkNear, "up"),
			order(ctx, "ip", "route", "replace", "192.0.2.0/24", "dev", linkNear, "src", linkHosts[0], "quickack", "1"))
	default:
		return order(ctx, "ip", "link", "set", linkNear, "down")
	}
}

// kill ends a node's polluxd as a crash would.
func (p *pair) kill(node int) error {
	d := p.daemons[node]
	if err := d.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-d.ended
	return nil
}

// revive starts the polluxd of a node again.
func (p *pair) revive(node int) error {
	argv := p.link.onNode(node, filepath.Join(p.bin, "polluxd"), "--config", p.settings(nodeNames[node]))
	d, err := p.lab.start(argv[0], argv[1:]...)
	if err == nil {
		p.daemons[node] = d
	}
	return err
}

// A marker gathers what happens. It is safe for concurrent use.
type marker struct {
	mu     sync.Mutex
	began  time.Time // the timeline's start
	events []event
}

type event struct {
	at   time.Time
	text string
}

func (m *marker) add(at time.Time, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, event{at, text})
}

// rebase says when the load really began.
func (m *marker) rebase(began time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.began = began
}

func (m *marker) sorted() (marks []result.Mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		if t := e.at.Sub(m.began).Seconds(); t >= 0 {
			marks = append(marks, result.Mark{T: math.Round(t*1000) / 1000, Text: e.text})
		}
	}
	slices.SortStableFunc(marks, func(a, b result.Mark) int { return int(math.Copysign(1, a.T-b.T)) })
	return marks
}

// watch runs polluxadm events until ctx ends, and marks what it says; wait
// returns when it has ended, with what went wrong before that.
func (m *marker) watch(ctx context.Context, name string, args ...string) (wait func() error, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	lines, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var g sync.WaitGroup
	var readErr error
	g.Go(func() { readErr = m.read(lines) })
	return func() error {
		g.Wait()
		if err := cmd.Wait(); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		return readErr
	}, nil
}

// eventTime is how polluxadm events --timestamps begins a line.
const eventTime = "2006-01-02T15:04:05.000000-07:00"

// read marks the changes of the connection and of the replication.
func (m *marker) read(from io.Reader) error {
	replication := ""
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		stamp, rest, _ := strings.Cut(lines.Text(), " ")
		at, err := time.Parse(eventTime, stamp)
		if err != nil {
			return fmt.Errorf("polluxadm events: %w", err)
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[0] != "change" {
			continue
		}
		for _, f := range fields[2:] {
			switch key, value, _ := strings.Cut(f, ":"); {
			case fields[1] == "peer-device" && key == "replication":
				if text := resyncText(replication, value); text != "" {
					m.add(at, text)
				}
				replication = value
			case fields[1] == "connection" && key == "connection" && value == "Connected":
				m.add(at, "connected")
			case fields[1] == "path" && f == "established:no":
				m.add(at, "goes on alone")
			}
		}
	}
	return lines.Err()
}

// resyncText says what a change of the replication means, "" for nothing.
func resyncText(from, to string) string {
	isSync := func(state string) bool { return strings.HasPrefix(state, "Sync") }
	switch {
	case isSync(to) && !isSync(from):
		return "resync begins"
	case isSync(from) && to == "Established":
		return "resync ends"
	case isSync(from) && !isSync(to) && !strings.HasPrefix(to, "PausedSync"):
		return "resync breaks off"
	}
	return ""
}

// bucketed sums the operations up that ended within length, by width. It sorts
// trace.
func bucketed(trace []load.Completion, length, width time.Duration) []result.Point {
	slices.SortFunc(trace, func(a, b load.Completion) int { return int(a.At - b.At) })
	points := make([]result.Point, 0, length/width)
	var took []time.Duration
	next := 0
	for start := time.Duration(0); start+width <= length; start += width {
		took = took[:0]
		for ; next < len(trace) && trace[next].At < start+width; next++ {
			took = append(took, trace[next].Took)
		}
		p := result.Point{T: start.Seconds(), IOPS: float64(len(took)) / width.Seconds()}
		if len(took) > 0 {
			slices.Sort(took)
			rank := func(q float64) float64 {
				return float64(took[max(0, int(math.Ceil(q*float64(len(took))))-1)]) / float64(time.Microsecond)
			}
			p.P50Micros, p.P99Micros, p.MaxMicros = rank(0.5), rank(0.99), rank(1)
		}
		points = append(points, p)
	}
	return points
}

// pauses are the longest waits for an answer after each cause among the marks,
// until the next one.
func pauses(t result.Timeline, causes []string) (all []result.Measure) {
	var marks []result.Mark
	for _, m := range t.Marks {
		if slices.Contains(causes, m.Text) {
			marks = append(marks, m)
		}
	}
	for i, m := range marks {
		longest := 0.0
		for _, p := range t.Points {
			isBefore := i+1 == len(marks) || p.T+t.BucketSeconds <= marks[i+1].T
			if p.T+t.BucketSeconds > m.T && isBefore {
				longest = max(longest, p.MaxMicros)
			}
		}
		all = append(all, result.Measure{Name: "timeline: longest write", Target: t.Target, Value: longest / 1000, Unit: "ms", Detail: m.Text})
	}
	return all
}
