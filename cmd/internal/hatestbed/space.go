package hatestbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Space is a network and a mount namespace. It exists as long as this
// process holds it or anything runs in it.
type Space struct {
	name     string
	net, mnt *os.File
	inode    string // of the network namespace, as /proc shows it
}

// NewSpace makes one. prepare runs in it, on a thread of its own: what it
// mounts and configures stays.
func NewSpace(name string, prepare func() error) (*Space, error) {
	s := &Space{name: name}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if s.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if s.mnt, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		if s.inode, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return prepare()
	})
	if err != nil {
		return nil, fmt.Errorf("namespaces of %s: %w", name, err)
	}
	return s, nil
}

// onThread runs f on a thread that ends with it: its namespaces are its own.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread isn't used again
		done <- f()
	}()
	return <-done
}

// Do runs f in the namespaces.
func (s *Space) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("enter %s: %w", s.name, err)
		}
		for _, ns := range []struct {
			file *os.File
			kind int
		}{{s.net, unix.CLONE_NEWNET}, {s.mnt, unix.CLONE_NEWNS}} {
			if err := unix.Setns(int(ns.file.Fd()), ns.kind); err != nil {
				return fmt.Errorf("enter %s: %w", s.name, err)
			}
		}
		return f()
	})
}

// Start starts a program in the namespaces; its path must be absolute.
func (s *Space) Start(cmd *exec.Cmd) error { return s.Do(cmd.Start) }

// A proc is one process as /proc shows it.
type proc struct {
	pid   int
	state byte   // 'R', 'S', 'T' stopped by a signal, 'Z' dead and not buried, ...
	name  string // of the program, 15 bytes at most
}

// processes returns what runs in the namespace, whoever started it.
func (s *Space) processes() ([]proc, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []proc
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that ends meanwhile, or is dead, has no namespace any more.
		if ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net")); err != nil || ns != s.inode {
			continue
		}
		if p, ok := readProc(pid); ok && p.state != 'Z' && p.state != 'X' {
			list = append(list, p)
		}
	}
	return list, nil
}

// readProc reads /proc/PID/stat: "PID (NAME) STATE ...".
func readProc(pid int) (proc, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return proc{}, false
	}
	text := string(b)
	from, to := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if from < 0 || to < from || to+2 >= len(text) {
		return proc{}, false
	}
	return proc{pid: pid, state: text[to+2], name: text[from+1 : to]}, true
}

// settle is how long the processes of a space may take to obey a signal.
const settle = 10 * time.Second

// signalAll sends a signal to everything until done holds for what is left.
// New processes that an old one made meanwhile get it too.
func (s *Space) signalAll(signal unix.Signal, done func(proc) bool) error {
	deadline := time.Now().Add(settle)
	for {
		list, err := s.processes()
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, done)
		if len(list) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: process %d (%s, state %c) does not obey %v", s.name, list[0].pid, list[0].name, list[0].state, signal)
		}
		for _, p := range list {
			if err := unix.Kill(p.pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("%s: signal %v to process %d: %w", s.name, signal, p.pid, err)
			}
		}
		time.Sleep(time.Millisecond) // the kernel needs a moment; nobody tells when
	}
}

// Stop stops everything, as a hypervisor's snapshot stops a machine.
func (s *Space) Stop() error {
	return s.signalAll(unix.SIGSTOP, func(p proc) bool { return p.state == 'T' })
}

// Continue lets everything go on.
func (s *Space) Continue() error {
	return s.signalAll(unix.SIGCONT, func(p proc) bool { return p.state != 'T' })
}

// Kill is the power failure. All processes are stopped first: none sees
// another one die.
func (s *Space) Kill() error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.signalAll(unix.SIGKILL, func(proc) bool { return false })
}

// Close gives the namespaces back; they end with the last process in them.
func (s *Space) Close() error { return errors.Join(s.net.Close(), s.mnt.Close()) }
