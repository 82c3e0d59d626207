package blockdev

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// held is ErrHeld with whoever holds the path named, as far as that can be seen.
func held(path string) error {
	if by := holder(path); by != "" {
		return fmt.Errorf("%w: %s", ErrHeld, by)
	}
	return fmt.Errorf("%w, or mounted, or part of another device", ErrHeld)
}

// holder says what uses a plain file or a block device: a device on top of it, a
// mount, or a process that has it open; "" if none of these can be seen. The
// kernel's DRBD shows in no such place.
func holder(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	if isBlock := st.Mode&unix.S_IFMT == unix.S_IFBLK; isBlock {
		number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		if by := deviceAbove("/sys/dev/block/" + number); by != "" {
			return by
		}
		if by := mountOf(number); by != "" {
			return by
		}
	}
	if by := openerOf(&st); by != "" {
		return by
	}
	if _, err := os.Stat("/sys/module/drbd"); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return "no process has it open, so it is the kernel's DRBD perhaps (/proc/drbd)"
	}
	return ""
}

// deviceAbove is the device that the device mapper or md has made of one.
func deviceAbove(sysfs string) string {
	above, err := filepath.Glob(sysfs + "/holders/*") // the pattern is right: no error
	if err != nil || len(above) == 0 {
		return ""
	}
	name := filepath.Base(above[0])
	if b, err := os.ReadFile(above[0] + "/dm/name"); err == nil {
		name += " (" + strings.TrimSpace(string(b)) + ")"
	}
	return "it is part of /dev/" + name
}

// mountOf finds where a device is mounted (proc(5), mountinfo: field 3 is its
// number, field 5 the place).
func mountOf(number string) string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) > 4 && w[2] == number {
			return "it is mounted on " + w[4]
		}
	}
	return ""
}

// openerOf finds a process that has the file or device open for writing, else any
// that has it open. Processes that end meanwhile are skipped.
func openerOf(want *unix.Stat_t) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is right: no error
	if err != nil {
		return ""
	}
	reader := ""
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || !strings.HasPrefix(to, "/") {
			continue // a socket, a pipe
		}
		var st unix.Statx_t
		// DONT_SYNC: a network file system that hangs must not hang us.
		if unix.Statx(unix.AT_FDCWD, fd, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st) != nil || !sameFile(want, &st) {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		by := fmt.Sprintf("process %s (%s) has it open", pid, processName(pid))
		if fi, err := os.Lstat(fd); err == nil && fi.Mode().Perm()&0o200 != 0 { // the link's mode is that of the descriptor
			return by
		}
		reader = by
	}
	return reader
}

func sameFile(want *unix.Stat_t, st *unix.Statx_t) bool {
	if uint32(st.Mode)&unix.S_IFMT != want.Mode&unix.S_IFMT {
		return false
	}
	if want.Mode&unix.S_IFMT == unix.S_IFBLK {
		return unix.Mkdev(st.Rdev_major, st.Rdev_minor) == want.Rdev
	}
	return st.Ino == want.Ino && unix.Mkdev(st.Dev_major, st.Dev_minor) == want.Dev
}

func processName(pid string) string {
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return "which has ended" // meanwhile
	}
	return strings.TrimSpace(string(name))
}
