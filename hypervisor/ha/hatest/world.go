package hatest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/replication/repltest"
)

// Times of this package are µs since the beginning of a history.
const (
	millisecond = int64(1000)
	second      = 1000 * millisecond
)

// A World is some hosts with their disks, managers and virtual machines, what is
// between them, and an arbiter.
type World struct {
	Hosts    []*Host
	Pairs    []*Pair
	Services []*Service
	Arbiter  *Arbiter
	duo      *duo // the arbiter's place, if two hosts are it together; nil: they are not

	cfg     Config
	now     int64
	same    uint64 // how many events were due at this very time
	seq     uint64
	queue   repltest.Queue
	dice    *dice // nil: no chance
	net     network
	steps   int
	splits  int      // split brains that an operator has ended
	lost    uint64   // bytes that takeovers have lost, as declared
	sweeps  int      // marks of nothing that he has
	ring    []string // the last lines of the trace; nil: nobody reads them
	failure error
	decide  func() decider // nil: ha.Core
	// resting: storage is left out, and the VMs with it; every order is shown to it.
	resting func(*Host, *ha.Order)
	calm    int64 // until then virtual machines write often
}

// Memory is what a World is made of. One World after the other may have it.
type Memory struct{ pairs [maxPairs]repltest.Memory }

const maxPairs = 3

// newWorld returns a World in which nothing runs yet.
func newWorld(cfg Config, mem *Memory) *World {
	w := &World{cfg: cfg, now: 1000}
	if cfg.Seed != 0 {
		w.dice = &dice{cfg.Seed}
	}
	w.net = newNetwork(w, cfg.Hosts+1)
	w.Arbiter = newArbiter(w)
	if cfg.isDuo() {
		w.duo = newDuo(w)
	}
	for i := range cfg.Hosts {
		w.Hosts = append(w.Hosts, newHost(w, i))
		if w.duo != nil {
			w.duo.addHalf(w.Hosts[i])
		}
	}
	for i, s := range cfg.Services {
		svc := &Service{w: w, id: i, name: fmt.Sprintf("vm%d", i), hosts: s.Hosts}
		for k := range max(1, s.Resources) {
			svc.pairs = append(svc.pairs, newPair(w, fmt.Sprintf("r%d%c", i, 'a'+k), i, s.Hosts, &mem.pairs[len(w.Pairs)]))
			w.Pairs = append(w.Pairs, svc.pairs[k])
		}
		w.Services = append(w.Services, svc)
	}
	return w
}

func (w *World) at(t int64, f func()) {
	w.seq++
	w.queue.Push(repltest.Item{At: max(t, w.now), Seq: w.seq, F: f})
}

func (w *World) after(d int64, f func()) { w.at(w.now+d, f) }

// shake sets the clock. What an event draws depends on its time only.
func (w *World) shake(at int64) {
	if at > w.now {
		w.now, w.same = at, 0
	} else {
		w.same++
	}
	if w.dice != nil {
		w.dice.state = mix(w.cfg.Seed, 7, uint64(w.now), w.same)
	}
}

// Run lets so many milliseconds pass. It stops at the first failure.
func (w *World) Run(ms int64) { w.RunUntil(ms, nil) }

// RunUntil lets at most so many milliseconds pass, until done, which is asked
// after each event of this World, and when storage shows something new.
func (w *World) RunUntil(ms int64, done func() bool) bool {
	end := w.now + ms*millisecond
	if done != nil && done() {
		return true
	}
	for w.failure == nil {
		if w.duo != nil {
			w.duo.settle()
		}
		at, next := end+1, (*Pair)(nil)
		if len(w.queue) > 0 {
			at = min(at, w.queue[0].At)
		}
		for _, p := range w.Pairs {
			if w.resting != nil {
				break
			}
			if t, ok := p.w.Next(); ok && t <= at && t <= end {
				if next == nil || t < at {
					at, next = t, p
				}
			}
		}
		if w.duo != nil && w.duo.under > 0 && w.duo.advance(min(at, end)) {
			continue
		}
		if at > end {
			break
		}
		w.steps++
		if next != nil {
			w.shake(at)
			next.w.Step()
			if next.look() && done != nil && done() {
				return true
			}
			continue
		}
		it := w.queue.Pop()
		w.shake(it.At)
		it.F()
		for _, p := range w.Pairs {
			if p.touched {
				p.look()
			}
		}
		if done != nil && done() {
			return true
		}
	}
	if w.failure == nil {
		w.shake(max(w.now, end))
		return done != nil && done()
	}
	return false
}

// End ends what the history has begun beside itself.
func (w *World) End() {
	if w.duo != nil {
		w.duo.end()
	}
}

// Err is the first thing that went wrong.
func (w *World) Err() error { return w.failure }

func (w *World) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("at %d.%03d s: %s", w.now/second, w.now%second/millisecond, fmt.Sprintf(format, args...))
		w.trace("FAILED: %v", w.failure)
	}
}

// trace adds a line to the trace, if anybody reads it.
func (w *World) trace(format string, args ...any) {
	if w.ring == nil {
		return
	}
	if len(w.ring) >= 2*TraceLines {
		w.ring = slices.Delete(w.ring, 0, TraceLines)
	}
	w.ring = append(w.ring, fmt.Sprintf("%6d.%03d ", w.now/second, w.now%second/millisecond)+fmt.Sprintf(format, args...))
}

// TraceLines is how much of a history's trace is kept for a failure. If it is
// raised, the whole history is shown instead of a smaller one that fails alike.
var TraceLines = shortTrace

const shortTrace = 400

// KeepTrace has the last lines of the trace kept; Trace returns them. Of storage it
// has what changes; of a whole history (TraceLines) all.
func (w *World) KeepTrace() {
	w.ring = []string{}
	for _, p := range w.Pairs {
		p.w.TraceTo(func(line string) {
			_, what, _ := strings.Cut(line, " ")
			word, _, _ := strings.Cut(what, " ")
			if TraceLines > shortTrace || word == "report" || word == "disconnect" || word == "command-done" || strings.HasPrefix(line, "FAILED") {
				w.trace("%s: storage: %s", p.name, line)
			}
		})
	}
}

// Trace is the end of the kept trace.
func (w *World) Trace() string { return strings.Join(w.ring, "\n") }
