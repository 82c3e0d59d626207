package ha

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watchdogSeconds is what the device is asked for: longer than any pause of this
// process that is no fault, shorter than a fence agent's patience.
const watchdogSeconds = 30

// A watchdog resets this machine unless it is fed. It is armed only when a VM
// whose lease has ended could not be killed (failover.md, I7: the last resort),
// so that a crash of polluxha never costs a host.
type watchdog struct {
	path string // "": none

	mu sync.Mutex
	f  *os.File
}

// arm opens the device, which starts it, and never feeds it: the machine is reset
// within the device's timeout unless disarm comes first.
func (w *watchdog) arm() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.path == "":
		return errors.New("no watchdog is configured (ha.watchdog in pollux.toml)")
	case w.f != nil:
		return nil
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	w.f = f
	// A device that does not know the request keeps its own timeout.
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, watchdogSeconds)
	return nil
}

// disarm stops it again: the VM is gone after all. 'V' is the magic close of the
// kernel's watchdog interface (Documentation/watchdog/watchdog-api.rst).
func (w *watchdog) disarm() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return nil
	}
	_, err := w.f.Write([]byte("V"))
	err = errors.Join(err, w.f.Close())
	w.f = nil
	if err != nil {
		return fmt.Errorf("watchdog: stop it: %w", err)
	}
	return nil
}

// check says whether the device could be armed, without doing so.
func (w *watchdog) check() error {
	if w.path == "" {
		return nil
	}
	fi, err := os.Stat(w.path)
	if err == nil && fi.Mode()&os.ModeCharDevice == 0 {
		err = fmt.Errorf("%s is no character device", w.path)
	}
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	return nil
}

// killWait is how long a process may take to end after SIGKILL before the
// watchdog is armed: one in an uninterruptible wait for a disk.
const killWait = 10 * time.Second
