package hvtest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/hypervisor"
)

// What is running names the disks that it was started with.
func testDisks(t *testing.T, ctx context.Context, s Subject) {
	g := start(t, ctx, s, s.Open(), guestName, Deaf)
	var want []hypervisor.Disk
	for _, d := range g.Disks {
		want = append(want, hypervisor.Disk{Socket: d.Socket, Export: d.Export, Path: d.Path, ReadOnly: d.ReadOnly})
	}
	if diff := cmp.Diff(want, state(t, ctx, s.Open(), guestName).Disks); diff != "" {
		t.Errorf("State.Disks, seen by another adapter (-want +got):\n%s", diff)
	}
	kill(t, ctx, s.Open(), guestName)
}

// A watcher collects the events of one Watch.
type watcher struct {
	events chan hypervisor.Event // closed when Watch has returned
	ended  chan error
}

// watch starts a Watch and waits for its first event.
func watch(t *testing.T, ctx context.Context, hv hypervisor.Hypervisor, name string) *watcher {
	t.Helper()
	w := &watcher{events: make(chan hypervisor.Event, 64), ended: make(chan error, 1)}
	go func() {
		w.ended <- hv.Watch(ctx, name, func(e hypervisor.Event) { w.events <- e })
		close(w.events)
	}()
	w.want(t, ctx, name, hypervisor.EventWatched)
	return w
}

// want waits for an event of one of these kinds; others before it are passed over.
func (w *watcher) want(t *testing.T, ctx context.Context, name string, kinds ...hypervisor.EventKind) hypervisor.Event {
	t.Helper()
	for {
		select {
		case e, ok := <-w.events:
			if !ok {
				t.Fatalf("Watch ended with %v, before any of %v", <-w.ended, kinds)
			}
			if e.Name != name {
				t.Errorf("event %+v, want one of %s", e, name)
			}
			if slices.Contains(kinds, e.Kind) {
				return e
			}
			if e.Kind == hypervisor.EventGone {
				t.Fatalf("%v came, before any of %v", e, kinds)
			}
		case <-ctx.Done():
			t.Fatalf("no event of %v came", kinds)
		}
	}
}

// wantEnd: the last event was seen, and Watch returns nil.
func (w *watcher) wantEnd(t *testing.T, ctx context.Context) {
	t.Helper()
	select {
	case err := <-w.ended:
		if err != nil {
			t.Errorf("Watch = %v, want nil after %v", err, hypervisor.EventGone)
		}
	case <-ctx.Done():
		t.Error("Watch has not ended")
	}
	for e := range w.events {
		t.Errorf("%v came after the last event", e)
	}
}

func testWatch(t *testing.T, ctx context.Context, s Subject) {
	start(t, ctx, s, s.Open(), guestName, Attentive)
	if err := s.Booted(ctx, guestName); err != nil {
		t.Fatal(err)
	}
	hv := s.Open() // whoever watches need not have started it
	w := watch(t, ctx, hv, guestName)
	if s.Pause != nil {
		if err := s.Pause(ctx, guestName); err != nil {
			t.Fatal(err)
		}
		if e := w.want(t, ctx, guestName, hypervisor.EventPaused); e.Detail == "" {
			t.Errorf("%+v has no reason", e)
		}
		if err := hv.Resume(ctx, guestName); err != nil {
			t.Fatalf("Resume: %v", err)
		}
		w.want(t, ctx, guestName, hypervisor.EventResumed)
	}
	if st := state(t, ctx, s.Open(), guestName); st.Phase != hypervisor.Running {
		t.Errorf("State of a watched VM = %+v, want running", st)
	}
	if err := s.Open().Stop(ctx, guestName, stepLimit); err != nil {
		t.Fatalf("Stop of a watched VM: %v", err)
	}
	w.want(t, ctx, guestName, hypervisor.EventShutdown)
	w.want(t, ctx, guestName, hypervisor.EventGone)
	w.wantEnd(t, ctx)
}

func testWatchKill(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	start(t, ctx, s, hv, guestName, Deaf)
	w := watch(t, ctx, hv, guestName)
	kill(t, ctx, s.Open(), guestName)
	w.want(t, ctx, guestName, hypervisor.EventGone)
	w.wantEnd(t, ctx)
}

// A VM that dies is reported at once, and is gone when that is told.
func testWatchCrash(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	start(t, ctx, s, hv, guestName, Deaf)
	w := watch(t, ctx, hv, guestName)
	begin := time.Now()
	if err := s.Crash(ctx, guestName); err != nil {
		t.Fatal(err)
	}
	w.want(t, ctx, guestName, hypervisor.EventGone)
	if d := time.Since(begin); d > instantly {
		t.Errorf("the end was reported after %v", d)
	}
	wantStopped(t, ctx, hv, guestName)
	w.wantEnd(t, ctx)
	start(t, ctx, s, hv, guestName, Deaf)
	kill(t, ctx, hv, guestName)
}

// The end of a watch does nothing to the VM, and the next one sees it.
func testWatchCanceled(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	start(t, ctx, s, hv, guestName, Deaf)
	short, cancel := context.WithCancel(ctx)
	w := watch(t, short, hv, guestName)
	cancel()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v, want %v", err, context.Canceled)
	}
	if st := state(t, ctx, hv, guestName); st.Phase != hypervisor.Running {
		t.Errorf("State after a watch = %+v, want running", st)
	}
	again := watch(t, ctx, s.Open(), guestName)
	kill(t, ctx, hv, guestName)
	again.want(t, ctx, guestName, hypervisor.EventGone)
	again.wantEnd(t, ctx)
}

// The suite's guest has no agent, which is found out within the caller's time.
func testNoAgent(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	start(t, ctx, s, hv, guestName, Deaf)
	short, cancel := context.WithTimeout(ctx, deafGrace)
	defer cancel()
	begin := time.Now()
	wantError(t, "AskAgent", hv.AskAgent(short, guestName), hypervisor.ErrNoAgent, guestName)
	if d := time.Since(begin); d > instantly {
		t.Errorf("AskAgent took %v with a time limit of %v", d, deafGrace)
	}
	kill(t, ctx, hv, guestName)
}
