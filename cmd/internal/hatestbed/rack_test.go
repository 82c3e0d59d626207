package hatestbed

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// All tests run in a sandbox, or not at all.
func TestMain(m *testing.M) {
	inside, code, err := Enter()
	switch {
	case inside:
		code = m.Run()
	case errors.Is(err, ErrNoRoot) && os.Getenv("CI") != "true":
		fmt.Println("skipped:", err)
	case err != nil:
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

func newTestRack(t *testing.T) *Rack {
	t.Helper()
	r, err := NewRack(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// dialFrom tells whether a host reaches an address.
func dialFrom(t *testing.T, h *Host, address string) error {
	t.Helper()
	return h.space.Do(func() error {
		c, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

func listenOn(t *testing.T, h *Host, link Link) string {
	t.Helper()
	var l net.Listener
	if err := h.space.Do(func() (err error) {
		l, err = net.Listen("tcp", h.Address(link)+":7000")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func TestCablesAreCutOneByOne(t *testing.T) {
	r := newTestRack(t)
	a, b := r.Hosts[0], r.Hosts[1]
	replication, management := listenOn(t, b, Replication), listenOn(t, b, Management)
	want := func(when string, repl, mgmt bool) {
		t.Helper()
		if err := dialFrom(t, a, replication); (err == nil) != repl {
			t.Errorf("%s: replication link: %v", when, err)
		}
		if err := dialFrom(t, a, management); (err == nil) != mgmt {
			t.Errorf("%s: management link: %v", when, err)
		}
	}
	want("at first", true, true)
	for _, step := range []struct {
		do         func(*Host, Link) error
		link       Link
		repl, mgmt bool
	}{
		{r.Cut, Replication, false, true},
		{r.Cut, Management, false, false},
		{r.Mend, Replication, true, false},
		{r.Mend, Management, true, true},
	} {
		if err := step.do(a, step.link); err != nil {
			t.Fatal(err)
		}
		want(fmt.Sprint("after ", step.link), step.repl, step.mgmt)
	}
}

func TestHostDiesAsAWhole(t *testing.T) {
	r := newTestRack(t)
	a, b := r.Hosts[0], r.Hosts[1]
	start := func(h *Host) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", "setsid sleep 1000 & sleep 1000")
		if err := h.space.Start(cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	start(a)
	start(b)
	names := func(h *Host) (list []string) {
		procs, err := h.space.processes()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range procs {
			list = append(list, fmt.Sprintf("%s %t", p.name, p.state == 'T'))
		}
		slices.Sort(list)
		return list
	}
	want := []string{"sh false", "sleep false", "sleep false"}
	for deadline := time.Now().Add(settle); !slices.Equal(names(a), want) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // the shell starts its children when it likes
	}
	if err := a.space.Stop(); err != nil {
		t.Fatal(err)
	}
	if got, want := names(a), []string{"sh true", "sleep true", "sleep true"}; !slices.Equal(got, want) {
		t.Errorf("stopped: %v, want %v", got, want)
	}
	if err := a.space.Continue(); err != nil {
		t.Fatal(err)
	}
	if got := names(a); !slices.Equal(got, want) {
		t.Errorf("continued: %v, want %v", got, want)
	}
	if err := a.space.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := names(a); len(got) != 0 {
		t.Errorf("killed: %v", got)
	}
	if got := names(b); len(got) == 0 || slices.Contains(got, "sh true") {
		t.Errorf("the other host has %v", got)
	}
}

func TestRebootHasAnotherBootID(t *testing.T) {
	h := newTestRack(t).Hosts[0]
	id := func() string {
		var b []byte
		if err := h.space.Do(func() (err error) { b, err = os.ReadFile(bootIDPath); return err }); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := id()
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if second := id(); first == second || len(second) != 37 {
		t.Errorf("boot id %q, then %q", first, second)
	}
	if outside, err := os.ReadFile(bootIDPath); err != nil || string(outside) == id() {
		t.Errorf("outside the host: %q, %v", outside, err)
	}
}

func TestDiskFails(t *testing.T) {
	d, err := NewDisk(filepath.Join(t.TempDir(), "disk"), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	user, err := os.OpenFile(d.Device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = user.Close() })
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	page[0] = 'x'
	if _, err := user.WriteAt(page, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Fail(); err != nil {
		t.Fatal(err)
	}
	if _, err := user.WriteAt(page, 8<<20); err == nil {
		t.Error("a write to a failed disk is no error")
	}
	if err := d.Repair(); err != nil {
		t.Fatal(err)
	}
	page[0] = 0
	if _, err := user.ReadAt(page, 8<<20); err != nil || page[0] != 'x' {
		t.Errorf("after the repair: %v, %q", err, page[0])
	}
}
