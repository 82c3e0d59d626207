package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
)

// asEnding has this program play a QEMU that was killed while one of its threads waits
// for a disk: the process is a zombie without a command line, and not gone.
const asEnding = "POLLUX_QEMU_ENDING"

func init() {
	if os.Getenv(asEnding) == "" {
		return
	}
	go func() {
		<-time.After(time.Minute) // it is killed before
		os.Exit(0)
	}()
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0) // ends the first thread only; it does not return
}

// A VM that was killed is not gone while a thread of it is left, whoever asks, and
// how often.
func TestEndingIsNotGone(t *testing.T) {
	dir := t.TempDir()
	q, err := New(Config{RunDir: filepath.Join(dir, "vm")})
	if err != nil {
		t.Fatal(err)
	}
	p := q.paths("web")
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "qemu-ending")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-pidfile", p.pid)
	cmd.Env = append(os.Environ(), asEnding+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone
		<-ended
	})
	if err := os.WriteFile(p.pid, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for { // until the first thread has ended
		stat, err := os.ReadFile(procFile(cmd.Process.Pid, "cmdline"))
		if err != nil {
			t.Fatal(err)
		}
		if len(stat) == 0 {
			break
		}
		time.Sleep(time.Millisecond) // another process
	}
	if st, err := q.State(t.Context(), "web"); err != nil || st.Phase == hypervisor.Stopped {
		t.Errorf("its state is %v, %v; want anything but stopped", st.Phase, err)
	}
	// It can be killed after all: only then is it gone.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := q.Kill(ctx, "web"); err != nil {
		t.Errorf("kill: %v", err)
	}
	if _, ok := lookAt(cmd.Process.Pid); ok {
		t.Error("kill has returned, and a thread of it is left")
	}
	if err := q.Kill(ctx, "web"); !errors.Is(err, hypervisor.ErrNotRunning) {
		t.Errorf("a second kill: %v", err)
	}
}

// A run directory that was removed, and is reached by a link, has the name that command
// lines have: a VM that runs is found.
func TestRunDirGone(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("run", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	q, err := New(Config{RunDir: filepath.Join(dir, "link", "pollux", "vm")})
	if err != nil {
		t.Fatal(err)
	}
	gone := q.paths("web").pid
	if err := os.MkdirAll(q.cfg.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if there := q.paths("web").pid; gone != there {
		t.Errorf("without the directory its pid file is %s, with it %s", gone, there)
	}
}
