package hvtest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/hypervisor"
)

// Time limits of the suite: generous, for emulated guests on a busy machine.
const (
	stepLimit  = time.Minute
	deafGrace  = 300 * time.Millisecond
	statePoll  = 20 * time.Millisecond
	instantly  = 5 * time.Second // what must not wait for a guest
	starters   = 4
	guestName  = "suite"
	otherGuest = "other.guest-2"
)

// Subject is one machine with the adapter under test.
type Subject struct {
	// Open returns a new adapter that shares no memory with the ones before,
	// as another program, or the restarted one, would have it.
	Open func() hypervisor.Hypervisor
	// Guest describes a guest that can be started; it listens to its power
	// button as temper says: Attentive or Deaf.
	Guest func(name string, temper byte) hypervisor.Guest
	// Broken describes a guest whose start fails on the machine.
	Broken func(name string) hypervisor.Guest
	// Booted waits until the guest would feel its power button.
	Booted func(ctx context.Context, name string) error
	// Pause stops the guest's CPUs from outside; nil if the adapter has nothing
	// that can be paused.
	Pause func(ctx context.Context, name string) error
	// Crash ends the VM from outside, without a word to the adapter.
	Crash func(ctx context.Context, name string) error
}

// Run runs the suite. open makes a machine on which nothing runs; it must
// clean up with t.Cleanup whatever a failed test may leave.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, c := range []struct {
		name string
		test func(*testing.T, context.Context, Subject)
	}{
		{"Lifecycle", testLifecycle},
		{"NotRunning", testNotRunning},
		{"NeverTwice", testNeverTwice},
		{"ConcurrentStarts", testConcurrentStarts},
		{"StopDeaf", testStopDeaf},
		{"CallerRestarts", testCallerRestarts},
		{"Paused", testPaused},
		{"FailedStart", testFailedStart},
		{"Refused", testRefused},
		{"Canceled", testCanceled},
		{"Disks", testDisks},
		{"Watch", testWatch},
		{"WatchKill", testWatchKill},
		{"WatchCrash", testWatchCrash},
		{"WatchCanceled", testWatchCanceled},
		{"NoAgent", testNoAgent},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
			defer cancel()
			c.test(t, ctx, open(t))
		})
	}
}

func testLifecycle(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	wantList(t, ctx, hv)
	before := time.Now().Add(-time.Second) // Since is precise to a clock tick only
	start(t, ctx, s, hv, guestName, Attentive)
	start(t, ctx, s, hv, otherGuest, Deaf)
	wantList(t, ctx, hv, otherGuest, guestName)

	st := state(t, ctx, hv, guestName)
	if st.Phase != hypervisor.Running || st.PID == 0 || st.Reason != "" {
		t.Errorf("State of a started VM = %+v, want running, with a process", st)
	}
	if st.Since.Before(before) || st.Since.After(time.Now().Add(time.Second)) {
		t.Errorf("Since = %v, want about %v", st.Since, before)
	}

	if err := s.Booted(ctx, guestName); err != nil {
		t.Fatal(err)
	}
	if err := hv.Stop(ctx, guestName, stepLimit); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	wantStopped(t, ctx, hv, guestName)
	wantList(t, ctx, hv, otherGuest)

	if err := hv.Kill(ctx, otherGuest); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	wantStopped(t, ctx, hv, otherGuest)
	wantList(t, ctx, hv)

	start(t, ctx, s, hv, guestName, Attentive)
	if again := state(t, ctx, hv, guestName); again.PID == st.PID {
		t.Errorf("PID of the second run = %d, that of the first one", again.PID)
	}
	if err := hv.Kill(ctx, guestName); err != nil {
		t.Fatalf("Kill: %v", err)
	}
}

func testNotRunning(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	for _, name := range []string{"never-seen", "../etc", "", "a b"} {
		wantStopped(t, ctx, hv, name)
		wantError(t, "Stop", hv.Stop(ctx, name, time.Second), hypervisor.ErrNotRunning, name)
		wantError(t, "Kill", hv.Kill(ctx, name), hypervisor.ErrNotRunning, name)
		wantError(t, "Resume", hv.Resume(ctx, name), hypervisor.ErrNotRunning, name)
		wantError(t, "AskAgent", hv.AskAgent(ctx, name), hypervisor.ErrNotRunning, name)
		err := hv.Watch(ctx, name, func(e hypervisor.Event) { t.Errorf("Watch(%q) reports %v", name, e) })
		wantError(t, "Watch", err, hypervisor.ErrNotRunning, name)
	}
}

func testNeverTwice(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	g := start(t, ctx, s, hv, guestName, Deaf)
	first := state(t, ctx, hv, guestName)
	wantError(t, "Start", hv.Start(ctx, g), hypervisor.ErrRunning, guestName)
	wantError(t, "Start", s.Open().Start(ctx, g), hypervisor.ErrRunning, guestName)
	if diff := cmp.Diff(first, state(t, ctx, hv, guestName)); diff != "" {
		t.Errorf("refused starts changed the VM (-before +after):\n%s", diff)
	}
	kill(t, ctx, hv, guestName)
}

func testConcurrentStarts(t *testing.T, ctx context.Context, s Subject) {
	g := s.Guest(guestName, Deaf)
	errs := make([]error, starters)
	var wg sync.WaitGroup
	for i := range errs {
		hv := s.Open()
		wg.Go(func() { errs[i] = hv.Start(ctx, g) })
	}
	wg.Wait()
	started := 0
	for _, err := range errs {
		if err == nil {
			started++
			continue
		}
		wantError(t, "Start", err, hypervisor.ErrRunning, guestName)
	}
	if started != 1 {
		t.Errorf("%d of %d concurrent starts succeeded, want 1", started, starters)
	}
	kill(t, ctx, s.Open(), guestName)
}

func testStopDeaf(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	start(t, ctx, s, hv, guestName, Deaf)
	wantError(t, "Stop", hv.Stop(ctx, guestName, deafGrace), hypervisor.ErrStillRunning, guestName)
	if st := state(t, ctx, hv, guestName); st.Phase == hypervisor.Stopped {
		t.Error("after a Stop that timed out the VM is gone: killing is the caller's decision")
	}
	kill(t, ctx, hv, guestName)
}

func testCallerRestarts(t *testing.T, ctx context.Context, s Subject) {
	start(t, ctx, s, s.Open(), guestName, Attentive)
	before := state(t, ctx, s.Open(), guestName)
	if err := s.Booted(ctx, guestName); err != nil {
		t.Fatal(err)
	}
	hv := s.Open()
	wantList(t, ctx, hv, guestName)
	if diff := cmp.Diff(before, state(t, ctx, hv, guestName)); diff != "" {
		t.Errorf("another adapter sees another VM (-before +after):\n%s", diff)
	}
	if err := hv.Stop(ctx, guestName, stepLimit); err != nil {
		t.Errorf("Stop by another adapter: %v", err)
	}
	wantList(t, ctx, s.Open())
}

func testPaused(t *testing.T, ctx context.Context, s Subject) {
	if s.Pause == nil {
		return // nothing to see, and no test that was left out
	}
	hv := s.Open()
	start(t, ctx, s, hv, guestName, Attentive)
	if err := s.Booted(ctx, guestName); err != nil {
		t.Fatal(err)
	}
	if err := s.Pause(ctx, guestName); err != nil {
		t.Fatal(err)
	}
	if st := state(t, ctx, hv, guestName); st.Phase != hypervisor.Paused || st.Reason == "" {
		t.Errorf("State of a paused VM = %+v, want paused, with a reason", st)
	}
	wantList(t, ctx, hv, guestName)
	begin := time.Now()
	wantError(t, "Stop", hv.Stop(ctx, guestName, stepLimit), hypervisor.ErrPaused, guestName)
	if d := time.Since(begin); d > instantly {
		t.Errorf("Stop of a paused VM took %v, want no waiting", d)
	}
	for range 2 { // the second one finds it running
		if err := hv.Resume(ctx, guestName); err != nil {
			t.Fatalf("Resume: %v", err)
		}
		if st := state(t, ctx, hv, guestName); st.Phase != hypervisor.Running {
			t.Errorf("State after Resume = %+v, want running", st)
		}
	}
	if err := hv.Stop(ctx, guestName, stepLimit); err != nil {
		t.Errorf("Stop after Resume: %v", err)
	}
}

func testFailedStart(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	err := hv.Start(ctx, s.Broken(guestName))
	var vmErr *hypervisor.VMError
	if !errors.As(err, &vmErr) || errors.Is(err, hypervisor.ErrRunning) {
		t.Fatalf("Start = %v, want a *VMError with the reason", err)
	}
	wantStopped(t, ctx, hv, guestName)
	wantList(t, ctx, hv)
}

func testRefused(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	g := s.Guest(guestName, Deaf)
	g.Name = "a/b"
	if err := hv.Start(ctx, g); err == nil {
		t.Error("Start accepts an invalid description")
	}
	wantList(t, ctx, hv)
}

func testCanceled(t *testing.T, ctx context.Context, s Subject) {
	hv := s.Open()
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := hv.Start(gone, s.Guest(guestName, Deaf)); !errors.Is(err, context.Canceled) {
		t.Errorf("Start = %v, want %v", err, context.Canceled)
	}
	wantStopped(t, ctx, hv, guestName)

	start(t, ctx, s, hv, guestName, Deaf)
	if _, err := hv.State(gone, guestName); !errors.Is(err, context.Canceled) {
		t.Errorf("State = %v, want %v", err, context.Canceled)
	}
	soon, cancel := context.WithTimeout(ctx, deafGrace)
	defer cancel()
	if err := hv.Stop(soon, guestName, stepLimit); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop = %v, want %v", err, context.DeadlineExceeded)
	}
	kill(t, ctx, hv, guestName)
}

func start(t *testing.T, ctx context.Context, s Subject, hv hypervisor.Hypervisor, name string, temper byte) hypervisor.Guest {
	t.Helper()
	g := s.Guest(name, temper)
	if err := hv.Start(ctx, g); err != nil {
		t.Fatalf("Start: %v", err)
	}
	return g
}

func kill(t *testing.T, ctx context.Context, hv hypervisor.Hypervisor, name string) {
	t.Helper()
	if err := hv.Kill(ctx, name); err != nil {
		t.Errorf("Kill: %v", err)
	}
	wantStopped(t, ctx, hv, name)
}

func state(t *testing.T, ctx context.Context, hv hypervisor.Hypervisor, name string) hypervisor.State {
	t.Helper()
	st, err := hv.State(ctx, name)
	if err != nil {
		t.Fatalf("State: %v", err)
	}
	if st.MemoryBytes < 0 || st.Phase == hypervisor.Stopped && st.MemoryBytes != 0 {
		t.Errorf("State = %+v, with impossible memory", st)
	}
	st.MemoryBytes = 0 // differs from one moment to the next
	return st
}

func wantStopped(t *testing.T, ctx context.Context, hv hypervisor.Hypervisor, name string) {
	t.Helper()
	if diff := cmp.Diff(hypervisor.State{Name: name}, state(t, ctx, hv, name)); diff != "" {
		t.Errorf("State of a stopped VM (-want +got):\n%s", diff)
	}
}

func wantList(t *testing.T, ctx context.Context, hv hypervisor.Hypervisor, names ...string) {
	t.Helper()
	list, err := hv.List(ctx)
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	var got []string
	for _, st := range list {
		got = append(got, st.Name)
	}
	if diff := cmp.Diff(names, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

func wantError(t *testing.T, op string, err, want error, name string) {
	t.Helper()
	var vmErr *hypervisor.VMError
	if !errors.Is(err, want) || !errors.As(err, &vmErr) || vmErr.Name != name {
		t.Errorf("%s(%q) = %v, want a *VMError with %q", op, name, err, want)
	}
}
