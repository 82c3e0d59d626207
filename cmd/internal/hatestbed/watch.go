package hatestbed

import (
	"context"
	"strings"
	"sync"
	"time"
)

// watchPeriod is how often processes are looked at.
const watchPeriod = 20 * time.Millisecond

// A Life is the time that a machine's process spent on a host.
type Life struct {
	Host       string
	PID        int
	Began, End time.Time // End is zero while it lives
}

// A Watcher looks at the machine's processes on all hosts. Two that run at the
// same time, stopped ones left out, are what must not be. Safe for concurrent use.
type Watcher struct {
	hosts []*Host

	mu       sync.Mutex
	lives    []*Life
	overlap  time.Duration // of the present stretch with two running
	longest  time.Duration // of all, since the last reset
	lastLook time.Time
}

// NewWatcher watches hosts.
func NewWatcher(hosts []*Host) *Watcher { return &Watcher{hosts: hosts} }

// Run watches until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			w.look(now)
		case <-ctx.Done():
			return
		}
	}
}

// machineProgram is how the kernel shortens the name of QEMU's program.
const machineProgram = "qemu-system"

func (w *Watcher) look(now time.Time) {
	alive := make(map[int]bool)
	running := 0
	var fresh []*Life
	for _, h := range w.hosts {
		procs, err := h.space.processes()
		if err != nil {
			return // an unreadable /proc shows at every other place
		}
		runs := false
		for _, p := range procs {
			if strings.HasPrefix(p.name, machineProgram) {
				alive[p.pid] = true
				runs = runs || p.state != 'T'
				fresh = append(fresh, &Life{Host: h.Name, PID: p.pid, Began: now})
			}
		}
		if runs {
			running++
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(alive, fresh, now)
	if running < 2 {
		w.overlap = 0
	} else if !w.lastLook.IsZero() {
		w.overlap += now.Sub(w.lastLook)
		w.longest = max(w.longest, w.overlap)
	}
	w.lastLook = now
}

func (w *Watcher) note(alive map[int]bool, fresh []*Life, now time.Time) {
	known := make(map[int]bool)
	for _, l := range w.lives {
		switch {
		case !l.End.IsZero():
		case alive[l.PID]:
			known[l.PID] = true
		default:
			l.End = now
		}
	}
	for _, l := range fresh {
		if !known[l.PID] {
			w.lives = append(w.lives, l)
		}
	}
}

// Overlap returns the longest time that two machines ran at once since the last
// call.
func (w *Watcher) Overlap() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := w.longest
	w.longest, w.overlap = 0, 0
	return longest
}

// Lives returns the processes that lived after a moment.
func (w *Watcher) Lives(after time.Time) (list []Life) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.lives {
		if l.End.IsZero() || l.End.After(after) {
			list = append(list, *l)
		}
	}
	return list
}
