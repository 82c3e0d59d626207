package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
)

const (
	// rewatchDelay is how long Watch waits before it connects again to a QEMU
	// that lives but has closed the connection: rare, and only time is lost.
	rewatchDelay = time.Second
	// drainLimit bounds the wait for QEMU's last words after its end. They are
	// in the socket's buffer by then.
	drainLimit = time.Second
)

// Watch implements [hypervisor.Hypervisor]. It has a monitor of its own, so that
// questions are answered meanwhile. Of a VM that has none (an earlier version
// started it) only the end is reported.
func (q *QEMU) Watch(ctx context.Context, name string, report func(hypervisor.Event)) error {
	return fail("watch", name, q.watch(ctx, name, report))
}

func (q *QEMU) watch(ctx context.Context, name string, report func(hypervisor.Event)) error {
	ps, err := q.running(name)
	if err != nil {
		return err
	}
	disks := ps[0].disks()
	w := &watch{q: q, name: name, events: make(chan hypervisor.Event), gone: make(chan struct{})}
	ctx2, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	var waitErr error
	wg.Go(func() {
		waitErr = waitGone(ctx2, ps)
		close(w.gone)
	})
	wg.Go(func() { w.feed(ctx2) })
	for e := range w.events {
		report(e)
	}
	<-w.gone
	if err := errors.Join(ctx.Err(), waitErr); err != nil {
		return ctx.Err()
	}
	last := hypervisor.Event{Name: name, Kind: hypervisor.EventGone, At: time.Now()}
	if err := q.closed(ctx, disks); err != nil {
		last.Detail = err.Error()
	}
	report(last)
	return nil
}

// A watch is one run of Watch.
type watch struct {
	q      *QEMU
	name   string
	events chan hypervisor.Event // closed by feed
	gone   chan struct{}         // closed when the processes have ended, or ctx has

	mu   sync.Mutex
	held []hypervisor.Event // those before EventWatched
	live bool               // EventWatched was reported
	why  string             // of the next pause, from the event before it
}

// feed files events until the VM is gone.
func (w *watch) feed(ctx context.Context) {
	defer close(w.events)
	told := false
	for {
		m, err := DialMonitor(ctx, w.q.paths(w.name).events, func(e Event) { w.on(ctx, e) })
		switch {
		case err == nil:
			told = w.follow(ctx, m) || told
		case errors.Is(err, os.ErrNotExist):
			if !told {
				w.send(ctx, hypervisor.Event{Name: w.name, Kind: hypervisor.EventWatched, Detail: hypervisor.Unknown.String(), At: time.Now()})
			}
			<-w.gone
			return
		}
		select {
		case <-time.After(rewatchDelay):
		case <-w.gone:
			return
		}
	}
}

// follow files what comes over one connection, and tells whether any did.
func (w *watch) follow(ctx context.Context, m *Monitor) bool {
	defer func() { _ = m.Close() }() // nothing is left to be said
	w.hold()
	limited, cancel := context.WithTimeout(ctx, monitorTimeout)
	s, err := runState(limited, m)
	cancel()
	if err != nil {
		return false
	}
	w.release(ctx, hypervisor.Event{Name: w.name, Kind: hypervisor.EventWatched, Detail: s.phase().String(), At: time.Now()})
	select {
	case <-m.Done():
	case <-w.gone:
		select {
		case <-m.Done():
		case <-time.After(drainLimit):
		}
	}
	return true
}

func (w *watch) hold() {
	w.mu.Lock()
	w.live = false
	w.mu.Unlock()
}

// release files first, and then what was held back.
func (w *watch) release(ctx context.Context, first hypervisor.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.send(ctx, first)
	for _, e := range w.held {
		w.send(ctx, e)
	}
	w.held, w.live = nil, true
}

func (w *watch) send(ctx context.Context, e hypervisor.Event) {
	select {
	case w.events <- e:
	case <-ctx.Done():
	}
}

// on takes an event of QEMU, on the monitor's reading goroutine.
func (w *watch) on(ctx context.Context, e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out, ok := translate(e, &w.why)
	if !ok {
		return
	}
	out.Name, out.At = w.name, e.At
	if w.live {
		w.send(ctx, out)
	} else if len(w.held) < maxHeld {
		w.held = append(w.held, out)
	}
}

// maxHeld bounds what is kept until query-status is answered.
const maxHeld = 256

// eventData has those members of the events' data that we look at. Source:
// QEMU's QMP reference, events.
type eventData struct {
	Action    string `json:"action"`
	Device    string `json:"device"`
	NodeName  string `json:"node-name"`
	Operation string `json:"operation"`
	Reason    string `json:"reason"`
}

// translate gives an event of QEMU our kind. QEMU's STOP does not say why: the
// event before it does, which why remembers.
func translate(e Event, why *string) (hypervisor.Event, bool) {
	var d eventData
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &d) != nil {
		d = eventData{} // the name alone counts
	}
	out := hypervisor.Event{}
	switch e.Name {
	case "SHUTDOWN":
		out.Kind, out.Detail, *why = hypervisor.EventShutdown, d.Reason, "shutdown"
	case "STOP":
		out.Kind, out.Detail = hypervisor.EventPaused, *why
		if out.Detail == "" {
			out.Detail = "paused"
		}
	case "RESUME":
		out.Kind, *why = hypervisor.EventResumed, ""
	case "BLOCK_IO_ERROR":
		out.Kind, out.Detail = hypervisor.EventDiskError, fmt.Sprintf("%s: %s: %s", diskName(d), d.Operation, d.Reason)
		if d.Action == "stop" {
			*why = "io-error"
		}
	case "RESET":
		out.Kind, out.Detail = hypervisor.EventReset, d.Reason
	case "GUEST_PANICKED":
		out.Kind, out.Detail = hypervisor.EventPanicked, d.Action
		if d.Action == "pause" {
			*why = "guest-panicked"
		}
	case "WATCHDOG":
		out.Kind, out.Detail = hypervisor.EventWatchdog, d.Action
		if d.Action == "pause" {
			*why = "watchdog"
		}
	default:
		return out, false
	}
	return out, true
}

// diskName is the guest's name of the disk: our nodes are disk0, disk1, …
func diskName(d eventData) string {
	name := d.NodeName
	if name == "" {
		name = d.Device
	}
	if n, ok := strings.CutPrefix(name, "disk"); ok && len(n) <= 2 {
		var i int
		if _, err := fmt.Sscan(n, &i); err == nil && i < 26 {
			return "vd" + string(rune('a'+i))
		}
	}
	return name
}
