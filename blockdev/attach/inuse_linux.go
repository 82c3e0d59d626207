package attach

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is how long udev and its kind may look at a device before that
// counts as use.
const settleTime = 2 * time.Second

// checkIdle returns an error that wraps ErrInUse if the block device is
// mounted, part of another device, or open in any process.
func checkIdle(ctx context.Context, path string) error {
	deadline := time.Now().Add(settleTime)
	for {
		by, err := user(path)
		if err != nil || by == "" {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w: %s", path, ErrInUse, by)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %w: %s", path, ErrInUse, by)
		}
	}
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// user says who has a block device in use; "" for nobody. Exclusive users
// (mounts, swap, device mapper, md) are found by asking to be one; programs
// that merely have it open by looking at every process's descriptors; and a
// loop device on top by its backing file.
func user(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err == unix.EBUSY {
		return "it is mounted, or part of another device", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: is it in use: %w", path, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	unix.Close(fd)
	if err != nil {
		return "", fmt.Errorf("%s: is it in use: %w", path, err)
	}
	if by := opener(st.Rdev); by != "" {
		return by, nil
	}
	return stackedLoop(path), nil
}

// opener finds a process that has a block device open. Processes that end
// meanwhile are skipped.
func opener(rdev uint64) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is right: no error
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(to, "/") {
			continue // a socket, a pipe
		}
		var st unix.Statx_t
		// DONT_SYNC: a network file system that hangs must not hang us.
		if unix.Statx(unix.AT_FDCWD, fd, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) != nil {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Mkdev(st.Rdev_major, st.Rdev_minor) != rdev {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm") // may be gone: the number will do
		return fmt.Sprintf("it is open in process %s (%s)", pid, strings.TrimSpace(string(name)))
	}
	return ""
}

// stackedLoop finds a loop device whose backing file is path.
func stackedLoop(path string) string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right: no error
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == path {
			return "/dev/" + strings.Split(f, "/")[3] + " is on it"
		}
	}
	return ""
}

// setReadOnly switches a block device; see Device.SetReadOnly.
func setReadOnly(ctx context.Context, path string, isReadOnly bool) error {
	if !isReadOnly {
		return roset(path, false)
	}
	// Read-only first: nobody can begin to write after the check.
	if err := roset(path, true); err != nil {
		return err
	}
	if err := checkIdle(ctx, path); err != nil {
		if back := roset(path, false); back != nil {
			return fmt.Errorf("%w; and it can't be made read-write again: %w", err, back)
		}
		return err
	}
	return nil
}

// roset is BLKROSET, with the cache dropped before a device becomes writable.
func roset(path string, isReadOnly bool) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: switch read-only or read-write: %w", path, err)
	}
	defer unix.Close(fd)
	value := 1
	if !isReadOnly {
		value = 0
		if err := unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0); err != nil {
			return fmt.Errorf("%s: drop cached data: %w", path, err)
		}
	}
	if err := unix.IoctlSetPointerInt(fd, unix.BLKROSET, value); err != nil {
		return fmt.Errorf("%s: switch read-only or read-write: %w", path, err)
	}
	return nil
}
