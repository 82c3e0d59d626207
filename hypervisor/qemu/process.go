package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/hypervisor"
)

// How often a process is looked at while waiting for its end, on a kernel
// before 5.10.
const exitPoll = 10 * time.Millisecond

// ticksPerSecond is the unit of start times in /proc/PID/stat: USER_HZ, which
// is 100 on every architecture that QEMU's hosts have.
const ticksPerSecond = 100

// A process is one QEMU. A process number alone says nothing, because numbers
// are used again: it is the pair with the start time that names a process, and
// the command line that says which VM it runs.
type process struct {
	pid   int
	start uint64 // ticks since boot
}

// processes finds the QEMU processes whose pid file would be pidFile. The pid
// file only serves as a hint: one that is stale, that names an unrelated
// process, or that somebody has deleted leads to a look at all processes.
// There is more than one only while a QEMU is being started or ends.
func processes(pidFile string) ([]process, error) {
	if p, ok := processOfPIDFile(pidFile); ok {
		return []process{p}, nil
	}
	return allProcesses(pidFile)
}

func processOfPIDFile(pidFile string) (process, bool) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return process{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 || pidFileOf(pid) != pidFile && !isEnding(pid) {
		return process{}, false
	}
	return lookAt(pid)
}

// isEnding reports whether pid is a QEMU that was killed and has a thread left, which
// waits for a disk: its command line is gone already.
func isEnding(pid int) bool {
	line, err := os.ReadFile(procFile(pid, "cmdline"))
	if err != nil || len(line) > 0 {
		return false
	}
	name, err := os.ReadFile(procFile(pid, "comm"))
	return err == nil && strings.HasPrefix(string(name), "qemu")
}

// allProcesses looks at every process of the machine.
func allProcesses(pidFile string) ([]process, error) {
	var found []process
	err := eachQEMU(func(pid int, file string) {
		if file != pidFile {
			return
		}
		if p, ok := lookAt(pid); ok {
			found = append(found, p)
		}
	})
	return found, err
}

// allNames returns the sorted names of the VMs with a directory below runDir
// that have a process, whether or not that directory is still there.
func allNames(runDir string) ([]string, error) {
	var names []string
	err := eachQEMU(func(pid int, file string) {
		dir, base := filepath.Split(file)
		parent, name := filepath.Split(filepath.Clean(dir))
		if base == pidFileName && filepath.Clean(parent) == runDir {
			names = append(names, name)
		}
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// eachQEMU calls f for every process that is a QEMU with a pid file.
func eachQEMU(f func(pid int, pidFile string)) error {
	dir, err := os.Open("/proc")
	if err != nil {
		return fmt.Errorf("look at the processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("look at the processes: %w", err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if file := pidFileOf(pid); file != "" {
			f(pid, file)
		}
	}
	return nil
}

// pidFileOf returns the pid file that the command line of pid names if it is
// that of a QEMU, else "". A process that has ended has no command line.
func pidFileOf(pid int) string {
	argv := argvOf(pid)
	for i := 1; i+1 < len(argv); i++ {
		if argv[i] == "-pidfile" {
			return argv[i+1]
		}
	}
	return ""
}

// argvOf returns the command line of pid if it is that of a QEMU, else nil.
func argvOf(pid int) []string {
	line, err := os.ReadFile(procFile(pid, "cmdline"))
	if err != nil {
		return nil
	}
	argv := strings.Split(string(line), "\x00")
	// A debugger or a shell that was given QEMU's command line is not QEMU.
	if !strings.HasPrefix(filepath.Base(argv[0]), "qemu") {
		return nil
	}
	return argv
}

// disks reads from the command line what diskArgs has put there.
func (p process) disks() []hypervisor.Disk {
	var disks []hypervisor.Disk
	argv := argvOf(p.pid)
	for i := 1; i+1 < len(argv); i++ {
		var b struct {
			Driver   string                `json:"driver"`
			Node     string                `json:"node-name"`
			Export   string                `json:"export"`
			ReadOnly bool                  `json:"read-only"`
			Server   struct{ Path string } `json:"server"`
			File     struct {
				Filename string `json:"filename"`
			} `json:"file"`
		}
		// The user's own -blockdev, in extra-args, has another form or name.
		if argv[i] != "-blockdev" || json.Unmarshal([]byte(argv[i+1]), &b) != nil || !strings.HasPrefix(b.Node, "disk") {
			continue
		}
		switch b.Driver {
		case "nbd":
			disks = append(disks, hypervisor.Disk{Socket: b.Server.Path, Export: b.Export, ReadOnly: b.ReadOnly})
		case "raw":
			disks = append(disks, hypervisor.Disk{Path: b.File.Filename, ReadOnly: b.ReadOnly})
		}
	}
	return disks
}

// memory returns the bytes of this machine's memory that p occupies; 0 if it
// has ended.
func (p process) memory() int64 {
	text, err := os.ReadFile(procFile(p.pid, "statm"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text)) // size and resident, in pages; proc(5)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// lookAt returns the process with this number unless it has ended. Zombies
// have ended, but one with threads left still holds its files open.
func lookAt(pid int) (process, bool) {
	stat, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return process{}, false
	}
	// The name in parentheses may itself hold blanks and parentheses.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return process{}, false
	}
	const state, startTime = 0, 19 // fields 3 and 22 of proc(5), counted after the name
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) <= startTime {
		return process{}, false
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return process{}, false
	}
	if s := fields[state]; s == "Z" || s == "X" {
		tasks, err := os.ReadDir(procFile(pid, "task"))
		if err != nil || len(tasks) <= 1 {
			return process{}, false
		}
	}
	return process{pid: pid, start: start}, true
}

// alive tells whether exactly this process still exists.
func (p process) alive() bool {
	now, ok := lookAt(p.pid)
	return ok && now.start == p.start
}

// since returns the time of day at which p started.
func (p process) since() (time.Time, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(stat)) {
		if sec, ok := strings.CutPrefix(line, "btime "); ok {
			boot, err := strconv.ParseInt(strings.TrimSpace(sec), 10, 64)
			if err != nil {
				return time.Time{}, fmt.Errorf("/proc/stat: %w", err)
			}
			return time.Unix(boot, 0).Add(time.Duration(p.start) * (time.Second / ticksPerSecond)), nil
		}
	}
	return time.Time{}, errors.New("/proc/stat: no line btime")
}

// kill sends SIGKILL to p and to nothing else: os.FindProcess pins the process
// by a pidfd, and only then the start time is compared. A process that has
// ended is no error.
func (p process) kill() error {
	pinned, err := os.FindProcess(p.pid)
	if err != nil {
		return err
	}
	defer func() { _ = pinned.Release() }() // frees the pidfd only
	if !p.alive() {
		return nil
	}
	if err := pinned.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// waitGone waits until all of ps have ended and so have closed their files.
func waitGone(ctx context.Context, ps []process) error {
	for _, p := range ps {
		if err := p.wait(ctx); err != nil {
			return fmt.Errorf("process %d has not ended: %w", p.pid, err)
		}
	}
	return nil
}

// wait sleeps until p has ended: until its pidfd says so, which costs nothing
// meanwhile. A kernel without pidfd is asked again and again.
func (p process) wait(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK)
	if err == nil {
		_ = p.waitOn(ctx, os.NewFile(uintptr(fd), "pidfd")) // whatever it says, p is looked at below
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	tick := time.NewTicker(exitPoll)
	defer tick.Stop()
	for p.alive() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// waitOn waits for the end of p on its pidfd, which it closes. The number was
// p's when it was opened only if p is alive now, or has ended, which is what is
// waited for.
func (p process) waitOn(ctx context.Context, pidfd *os.File) error {
	defer func() { _ = pidfd.Close() }() // of a handle; nothing was written
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) }) // the past: wakes the reader
	defer stop()
	isFirst := true
	return conn.Read(func(uintptr) bool {
		// False sleeps until the descriptor is readable, which is when all
		// threads have ended. That is told once only: whatever is seen then, the
		// rest is the caller's.
		done := !isFirst || !p.alive()
		isFirst = false
		return done
	})
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }
