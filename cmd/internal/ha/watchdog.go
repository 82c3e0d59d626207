package ha

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watchdogSeconds is what the device is asked for: longer than any pause of this
// process that is no fault, shorter than a fence agent's patience.
const watchdogSeconds = 30

// A watchdog resets this machine unless it is fed. It is armed only when a VM
// whose lease has ended could not be killed, the last resort, so that a crash of
// polluxha never costs a host.
type watchdog struct {
	path string // "": none

	mu  sync.Mutex
	f   *os.File
	vms map[string]bool // that could not be killed
}

// arm opens the device, which starts it, and never feeds it: the machine is reset
// within the device's timeout unless disarm comes first for every vm.
func (w *watchdog) arm(vm string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.path == "" {
		return errors.New("no watchdog is configured (ha.watchdog in pollux.toml)")
	}
	if w.vms == nil {
		w.vms = map[string]bool{}
	}
	w.vms[vm] = true
	if w.f != nil {
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

// disarm stops it again once no vm is left that it was armed for: they are gone
// after all. 'V' is the magic close of the kernel's watchdog interface
// (Documentation/watchdog/watchdog-api.rst).
func (w *watchdog) disarm(vm string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.vms, vm)
	if w.f == nil || len(w.vms) > 0 {
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
