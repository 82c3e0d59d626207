package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/hvtest"
	"github.com/pollux-project/pollux/hypervisor/qemu"
)

const (
	bootLimit = time.Minute
	poll      = 20 * time.Millisecond
)

// lab is a directory with VMs and NBD servers for their disks.
type lab struct {
	t   *testing.T
	dir string
}

// newLab skips the test where QEMU or the NBD server is absent; CI has both.
// The directory's path is short, because unix sockets are in it.
func newLab(t *testing.T) *lab {
	t.Helper()
	for _, tool := range []string{"qemu-system-x86_64", "nbdkit"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%v; CI must have it", err)
			}
			t.Skipf("%v; scripts/bootstrap installs it", err)
		}
	}
	dir, err := os.MkdirTemp("", "pollux-qemu-")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, dir: dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // only leaves rubbish behind
	t.Cleanup(l.killAll)
	return l
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) open() *qemu.QEMU {
	l.t.Helper()
	hv, err := qemu.New(qemu.Config{RunDir: l.path("vm"), ReconnectDelay: 30 * time.Second})
	if err != nil {
		l.t.Fatal(err)
	}
	return hv
}

// killAll ends what a failed test has left running.
func (l *lab) killAll() {
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	hv := l.open()
	list, err := hv.List(ctx)
	if err != nil {
		l.t.Errorf("clean up: %v", err)
	}
	for _, st := range list {
		if err := hv.Kill(ctx, st.Name); err != nil {
			l.t.Errorf("clean up: %v", err)
		}
	}
}

// serve runs an NBD server for the image of the guest name; options are nbdkit's.
func (l *lab) serve(name string, options ...string) (stop func()) {
	l.t.Helper()
	socket := l.path(name + ".sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	argv := []string{"--foreground", "--unix", socket, "--filter=error", "file", l.path(name + ".img")}
	cmd := exec.Command("nbdkit", append(argv, options...)...)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed, so it failed
		}
	}
	l.t.Cleanup(stop)
	waitFor(l.t, "the NBD server's socket", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	return stop
}

// guest describes the suite's guest on a disk of its own.
func (l *lab) guest(name string, temper byte) hypervisor.Guest {
	l.t.Helper()
	g := l.guestWithoutDisk(name, temper)
	l.serve(name)
	return g
}

func (l *lab) guestWithoutDisk(name string, temper byte) hypervisor.Guest {
	l.t.Helper()
	if err := os.WriteFile(l.path(name+".img"), hvtest.BootDisk(temper), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return hypervisor.Guest{
		Name: name, MemoryBytes: 16 << 20, VCPUs: 1, Accel: hypervisor.AccelTCG,
		Disks:      []hypervisor.Disk{{Socket: l.path(name + ".sock"), Export: "root"}},
		ConsoleLog: l.path(name + ".console"),
	}
}

func (l *lab) console(name string) string {
	text, err := os.ReadFile(l.path(name + ".console"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	return string(text)
}

// booted waits until the guest has read its disk once in its present run.
func (l *lab) booted(name string) {
	l.t.Helper()
	waitFor(l.t, "the guest's sign of life", func() bool {
		text := l.console(name)
		_, run, up := cutLast(text, string(rune(hvtest.CharUp)))
		return up && strings.ContainsAny(run, "AD")
	})
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// waitFor polls, because real processes tell nobody when they are ready.
func waitFor(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline := time.Now().Add(bootLimit)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for !ready() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not seen within %v", what, bootLimit)
		}
		<-tick.C
	}
}

// monitorCommand sends one command to the VM's monitor from outside.
func (l *lab) monitorCommand(ctx context.Context, name, command string) error {
	m, err := qemu.DialMonitor(ctx, filepath.Join(l.path("vm"), name, "qmp"), nil)
	if err != nil {
		return err
	}
	return errors.Join(m.Execute(ctx, command, nil, nil), m.Close())
}

func TestConformance(t *testing.T) {
	hvtest.Run(t, func(t *testing.T) hvtest.Subject {
		l := newLab(t)
		return hvtest.Subject{
			Open:  func() hypervisor.Hypervisor { return l.open() },
			Guest: l.guest,
			Broken: func(name string) hypervisor.Guest {
				g := l.guest(name, hvtest.Attentive)
				g.ExtraArgs = []string{"-device", "no-such-device"}
				return g
			},
			Booted: func(_ context.Context, name string) error { l.booted(name); return nil },
			Pause: func(ctx context.Context, name string) error {
				return l.monitorCommand(ctx, name, "stop")
			},
			Crash: func(ctx context.Context, name string) error {
				st, err := l.open().State(ctx, name)
				if err != nil || st.PID == 0 {
					return fmt.Errorf("no process: %+v, %w", st, err)
				}
				return syscall.Kill(st.PID, syscall.SIGKILL)
			},
		}
	})
}

// A VM outlives a restart of the NBD server: its requests wait meanwhile.
func TestServerRestart(t *testing.T) {
	l := newLab(t)
	g := l.guestWithoutDisk("web", hvtest.Attentive)
	stop := l.serve("web")
	hv := l.open()
	if err := hv.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l.booted("web")
	stop()
	// What is in flight ends or hangs now; a guest that hangs writes nothing more.
	length, same := 0, 0
	waitFor(t, "the guest standing still", func() bool {
		same++
		if now := len(l.console("web")); now != length {
			length, same = now, 0
		}
		return same > 20 // several of the guest's rounds
	})
	before := len(l.console("web"))
	l.serve("web")
	waitFor(t, "the guest reading again", func() bool { return len(l.console("web")) > before+5 })
	if text := l.console("web"); strings.ContainsRune(text, hvtest.CharReadError) {
		t.Errorf("the guest has seen a read error: %q", text)
	}
	if err := hv.Stop(t.Context(), "web", bootLimit); err != nil {
		t.Error(err)
	}
}

// A volume that fails pauses the VM; after the repair it goes on, and the
// guest has noticed nothing.
func TestDiskErrorPauses(t *testing.T) {
	l := newLab(t)
	g := l.guestWithoutDisk("web", hvtest.Attentive)
	fail := l.path("fail")
	l.serve("web", "error-pread=EIO", "error-pread-rate=100%", "error-pread-file="+fail)
	hv := l.open()
	if err := hv.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l.booted("web")
	if err := os.WriteFile(fail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the VM paused", func() bool {
		st, err := hv.State(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		return st.Phase == hypervisor.Paused && st.Reason == "io-error"
	})
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	before := len(l.console("web"))
	if err := hv.Resume(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the guest reading again", func() bool { return len(l.console("web")) > before+5 })
	if text := l.console("web"); strings.ContainsRune(text, hvtest.CharReadError) {
		t.Errorf("the guest has seen a read error: %q", text)
	}
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Error(err)
	}
}

// Neither a pid file that names somebody else nor a lost directory deceives
// the adapter.
func TestStaleFiles(t *testing.T) {
	l := newLab(t)
	hv := l.open()
	dir := filepath.Join(l.path("vm"), "web")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// The pid file of a crashed run; its number now belongs to this very test.
	if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	if st, err := hv.State(t.Context(), "web"); err != nil || st.Phase != hypervisor.Stopped {
		t.Fatalf("State with a stale pid file = %+v, %v, want stopped", st, err)
	}
	if err := hv.Kill(t.Context(), "web"); !errors.Is(err, hypervisor.ErrNotRunning) {
		t.Fatalf("Kill with a stale pid file = %v, want %v", err, hypervisor.ErrNotRunning)
	}
	g := l.guest("web", hvtest.Deaf)
	if err := hv.Start(t.Context(), g); err != nil {
		t.Fatalf("Start with a stale pid file: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	list, err := hv.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Phase != hypervisor.Unknown {
		t.Errorf("List without the VM's directory = %+v, %v, want one VM that doesn't answer", list, err)
	}
	if err := hv.Start(t.Context(), g); !errors.Is(err, hypervisor.ErrRunning) {
		t.Errorf("Start without the VM's directory = %v, want %v", err, hypervisor.ErrRunning)
	}
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Errorf("Kill without the VM's directory: %v", err)
	}
}

// A run directory has one name only, whatever link leads to it.
func TestRunDirByLink(t *testing.T) {
	l := newLab(t)
	g := l.guest("web", hvtest.Deaf)
	if err := l.open().Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("vm", l.path("link")); err != nil {
		t.Fatal(err)
	}
	hv, err := qemu.New(qemu.Config{RunDir: l.path("link")})
	if err != nil {
		t.Fatal(err)
	}
	if err := hv.Start(t.Context(), g); !errors.Is(err, hypervisor.ErrRunning) {
		t.Errorf("Start through a link = %v, want %v", err, hypervisor.ErrRunning)
	}
	if err := hv.Kill(t.Context(), "web"); err != nil {
		t.Error(err)
	}
}

// The reason for a failed start is QEMU's or the NBD server's, in one sentence.
func TestStartErrors(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct {
		name   string
		change func(*hypervisor.Guest)
		want   string
	}{
		{"kernel", func(g *hypervisor.Guest) { g.Boot.Kernel = "/nonexistent/vmlinuz" }, "could not open kernel file"},
		{"device", func(g *hypervisor.Guest) { g.ExtraArgs = []string{"-device", "no-such"} }, "no-such"},
		{"writable", func(*hypervisor.Guest) {}, "read-only"},
		{"kvm", func(g *hypervisor.Guest) { g.Accel = hypervisor.AccelKVM }, "accel kvm"},
		{"long", func(g *hypervisor.Guest) { g.Disks[0].Socket = "/" + strings.Repeat("x", 200) }, "107"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "kvm" && qemu.KVMUsable() == nil {
				t.Skip("KVM is usable here")
			}
			g := l.guestWithoutDisk("vm-"+tt.name, hvtest.Deaf)
			l.serve("vm-"+tt.name, "--readonly")
			g.Disks[0].ReadOnly = tt.name != "writable"
			tt.change(&g)
			err := l.open().Start(t.Context(), g)
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), tt.want) {
				t.Errorf("Start = %v, want it to say %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("Start's error has several lines: %q", err)
			}
		})
	}
}

func ExampleQEMU_List() {
	hv, err := qemu.New(qemu.Config{RunDir: "/nonexistent/pollux/vm"})
	if err != nil {
		fmt.Println(err)
		return
	}
	list, err := hv.List(context.Background())
	fmt.Println(len(list), err)
	// Output: 0 <nil>
}
