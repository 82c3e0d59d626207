package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/conf"
)

// SettingsPath is the absolute path of the pollux.toml to read: flag, else
// $POLLUX_CONFIG, else the default. named reports whether somebody asked for
// it, so that it must exist.
func SettingsPath(flag string) (path string, named bool, err error) {
	path = flag
	if path == "" {
		path = os.Getenv("POLLUX_CONFIG")
	}
	if path == "" {
		return conf.DefaultDaemonFile, false, nil
	}
	path, err = filepath.Abs(path)
	return path, true, err
}

// BootID identifies this boot of the machine. A former Primary behaves
// differently after a restart of the daemon than after one of the machine.
func BootID() (string, error) {
	const path = "/proc/sys/kernel/random/boot_id"
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", fmt.Errorf("boot id: %s is empty", path)
	}
	return id, nil
}

// LockStateDir creates dir if need be and claims it for this process, one of each
// program. The claim ends with the process, however that ends.
func LockStateDir(dir, program string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(dir, program+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory: lock %s: %w", path, err)
		}
		holder := make([]byte, 16)
		n, _ := f.ReadAt(holder, 0) // who it is only decorates the message
		return nil, fmt.Errorf("state directory %s: another %s (process %s) uses it", dir, program,
			strings.TrimSpace(string(holder[:n])))
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid()) // for people only: the lock is what counts
	}
	return func() { _ = f.Close() }, nil // the lock is let go with it
}

// MonotonicMicros is the clock that systemd's reload protocol wants.
func MonotonicMicros() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return "0"
	}
	return strconv.FormatInt(ts.Nano()/1000, 10)
}
