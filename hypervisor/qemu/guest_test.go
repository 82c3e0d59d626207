package qemu_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/hvtest"
	"github.com/pollux-project/pollux/hypervisor/qemu"
)

// follow watches a VM; the channel is closed when Watch returns.
func (l *lab) follow(hv hypervisor.Hypervisor, name string) <-chan hypervisor.Event {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	l.t.Cleanup(cancel)
	events := make(chan hypervisor.Event, 256)
	go func() {
		defer close(events)
		if err := hv.Watch(ctx, name, func(e hypervisor.Event) { events <- e }); err != nil {
			l.t.Errorf("Watch: %v", err)
		}
	}()
	return events
}

// next waits for an event. Any other before it is an error, but for those that
// come as often as they like: QEMU tells of each request that failed, and the
// firmware resets the machine once more by itself.
func next(t *testing.T, events <-chan hypervisor.Event, want hypervisor.EventKind, detail string) {
	t.Helper()
	for e := range events {
		if e.Kind == want {
			if detail != "" && e.Detail != detail {
				t.Errorf("%v, want %q", e, detail)
			}
			return
		}
		if e.Kind != hypervisor.EventDiskError && e.Kind != hypervisor.EventReset {
			t.Errorf("%v, want %v", e, want)
		}
	}
	t.Fatalf("Watch has ended, want %v", want)
}

// The story of a disk that fails and comes back, as the manager hears it.
func TestWatchDiskError(t *testing.T) {
	l := newLab(t)
	g := l.guestWithoutDisk("web", hvtest.Attentive)
	fail := l.path("fail")
	l.serve("web", "error-pread=EIO", "error-pread-rate=100%", "error-pread-file="+fail)
	hv := l.open()
	if err := hv.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l.booted("web")
	events := l.follow(hv, "web")
	next(t, events, hypervisor.EventWatched, "running")
	if err := os.WriteFile(fail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	next(t, events, hypervisor.EventDiskError, "vda: read: Input/output error")
	next(t, events, hypervisor.EventPaused, "io-error")
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	if err := hv.Resume(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	next(t, events, hypervisor.EventResumed, "")
	if err := l.monitorCommand(t.Context(), "web", "system_reset"); err != nil {
		t.Fatal(err)
	}
	next(t, events, hypervisor.EventReset, "host-qmp-system-reset")
	l.booted("web")
	if err := hv.Stop(t.Context(), "web", bootLimit); err != nil {
		t.Fatal(err)
	}
	next(t, events, hypervisor.EventShutdown, "guest-shutdown")
	next(t, events, hypervisor.EventGone, "")
	if _, more := <-events; more {
		t.Error("an event after the last one")
	}
}

// A disk that does not answer at all (a frozen resource) leaves the guest where
// it is: it neither fails nor pauses, and can be killed.
func TestFrozenDisk(t *testing.T) {
	l := newLab(t)
	g := l.guestWithoutDisk("web", hvtest.Attentive)
	l.serve("web", "--filter=delay", "rdelay=0")
	hv := l.open()
	if err := hv.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l.booted("web")
	server, err := exec.Command("pgrep", "-f", "nbdkit.*"+l.path("web.sock")).Output()
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(server)) {
		if out, err := exec.Command("kill", "-STOP", pid).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		defer func() { _ = exec.Command("kill", "-KILL", pid).Run() }() // it may be gone by then
	}
	length, same := 0, 0
	waitFor(t, "the guest standing still", func() bool {
		same++
		if now := len(l.console("web")); now != length {
			length, same = now, 0
		}
		return same > 20 // several of the guest's rounds
	})
	if st, err := hv.State(t.Context(), "web"); err != nil || st.Phase != hypervisor.Running {
		t.Errorf("State with a frozen disk = %+v, %v, want running", st, err)
	}
	if text := l.console("web"); strings.ContainsRune(text, hvtest.CharReadError) {
		t.Errorf("the guest has seen a read error: %q", text)
	}
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Errorf("Kill with a frozen disk: %v", err)
	}
}

// A QEMU that is itself stopped answers nobody; it is seen, not taken for dead,
// not started twice, and killed.
func TestStoppedProcess(t *testing.T) {
	l := newLab(t)
	g := l.guest("web", hvtest.Deaf)
	hv := l.open()
	if err := hv.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	st, err := hv.State(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	events := l.follow(hv, "web")
	next(t, events, hypervisor.EventWatched, "running")
	if err := syscall.Kill(st.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if st, err := hv.State(t.Context(), "web"); err != nil || st.Phase != hypervisor.Unknown || st.Reason == "" {
		t.Errorf("State of a stopped process = %+v, %v, want unknown with a reason", st, err)
	}
	if err := hv.Start(t.Context(), g); !errors.Is(err, hypervisor.ErrRunning) {
		t.Errorf("Start = %v, want %v", err, hypervisor.ErrRunning)
	}
	began := time.Now()
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Errorf("Kill of a stopped process: %v", err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("Kill took %v", d)
	}
	next(t, events, hypervisor.EventGone, "")
}

// Kill and Stop say that the disks are closed only after the NBD server has.
func TestClosed(t *testing.T) {
	l := newLab(t)
	var asked []hypervisor.Disk
	var answer error
	hv, err := qemu.New(qemu.Config{RunDir: l.path("vm"), Closed: func(_ context.Context, disks []hypervisor.Disk) error {
		asked = disks
		return answer
	}})
	if err != nil {
		t.Fatal(err)
	}
	g := l.guest("web", hvtest.Attentive)
	g.Disks[0].Export = "web/0@17"
	want := []hypervisor.Disk{{Socket: g.Disks[0].Socket, Export: "web/0@17"}}
	for _, end := range []string{"kill", "stop"} {
		asked, answer = nil, nil
		if end == "kill" {
			answer = errors.New("it has a client")
		}
		if err := hv.Start(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if end == "kill" {
			err = hv.Kill(t.Context(), "web")
		} else {
			l.booted("web")
			err = hv.Stop(t.Context(), "web", bootLimit)
		}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Errorf("%s asks about (-want +got):\n%s", end, diff)
		}
		if !errors.Is(err, answer) || (answer != nil) != errors.Is(err, hypervisor.ErrDisksOpen) {
			t.Errorf("%s = %v, want %v", end, err, answer)
		}
		if st, err := hv.State(t.Context(), "web"); err != nil || st.Phase != hypervisor.Stopped {
			t.Errorf("after %s: %+v, %v", end, st, err)
		}
	}
}

// A local disk is one of the guest's, behind those that are replicated.
func TestLocalDisk(t *testing.T) {
	l := newLab(t)
	d := hypervisor.LocalDisk{Path: l.path("swap"), SizeBytes: 1 << 20, Swap: true}
	if err := hypervisor.PrepareLocalDisk(d); err != nil {
		t.Fatal(err)
	}
	g := l.guest("web", hvtest.Attentive)
	g.Disks = append(g.Disks, hypervisor.Disk{Path: d.Path})
	hv := l.open()
	if err := hv.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l.booted("web")
	st, err := hv.State(t.Context(), "web")
	if err != nil || len(st.Disks) != 2 || st.Disks[1].Path != d.Path {
		t.Errorf("%+v, %v", st, err)
	}
	if st.MemoryBytes < 1<<20 {
		t.Errorf("it occupies %d bytes", st.MemoryBytes)
	}
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Error(err)
	}
}

// A VM that an earlier version started has no second monitor: its end is still told.
func TestWatchWithoutMonitor(t *testing.T) {
	l := newLab(t)
	hv := l.open()
	if err := hv.Start(t.Context(), l.guest("web", hvtest.Deaf)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.path("vm"), "web", "events")); err != nil {
		t.Fatal(err)
	}
	events := l.follow(hv, "web")
	next(t, events, hypervisor.EventWatched, "unknown")
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	next(t, events, hypervisor.EventGone, "")
}

func BenchmarkState(b *testing.B) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		b.Skip(err)
	}
	dir, err := os.MkdirTemp("", "pollux-qemu-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	hv, err := qemu.New(qemu.Config{RunDir: dir})
	if err != nil {
		b.Fatal(err)
	}
	kernelless := hypervisor.Guest{
		Name: "web", MemoryBytes: 16 << 20, VCPUs: 1, Accel: hypervisor.AccelTCG,
		Disks: []hypervisor.Disk{{Path: filepath.Join(dir, "disk")}}, ExtraArgs: []string{"-S"},
	}
	if err := os.WriteFile(kernelless.Disks[0].Path, hvtest.BootDisk(hvtest.Deaf), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := hv.Start(b.Context(), kernelless); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = hv.Kill(context.Background(), "web") }() // the benchmark's directory goes with it
	for b.Loop() {
		if st, err := hv.State(b.Context(), "web"); err != nil || st.Phase != hypervisor.Paused {
			b.Fatalf("%+v, %v", st, err)
		}
	}
}
