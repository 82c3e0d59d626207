package daemon

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// prctl operations that x/sys/unix may not name (linux/prctl.h).
const (
	prSetIOFlusher = 57
	prGetIOFlusher = 58
)

// timerSlack is how much later than asked for a thread's timers may fire, ns. The
// monitor thread of Go's scheduler sleeps 20 us at a time while there is work, by
// default with 50 us of slack: beside a write that takes 100 us, on both nodes,
// that is half of all context switches. Nothing here needs a finer clock; what
// waits for the monitor is a goroutine while all of Go's processors are held by
// system calls that wait.
const timerSlack = 1_000_000

// prepareThreads marks all threads of this process (prctl PR_SET_IO_FLUSHER) as
// ones that write on behalf of the kernel's memory reclaim, so that an
// allocation made while one serves a write never waits for that same write, and
// gives them their timerSlack.
//
// Both belong to a thread, and Go has started some by now; they survive execve,
// so the program starts itself once more. Without CAP_SYS_RESOURCE the mark is
// left out and the error says so. It returns only if there was nothing left to do
// or it failed.
func prepareThreads() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the own program: %w", err)
	}
	// RawSyscall and Exec stay on this thread: nothing in between can park
	// the goroutine.
	isNew := false
	if ns, _, errno := syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_TIMERSLACK, 0, 0); errno == 0 && ns != timerSlack {
		_, _, errno = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, timerSlack, 0)
		isNew = errno == 0
	}
	on, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, prGetIOFlusher, 0, 0, 0, 0, 0)
	switch {
	case errno == syscall.EINVAL: // a kernel before 5.6
	case errno != 0:
		err = fmt.Errorf("PR_GET_IO_FLUSHER: %w", errno)
	case on == 0:
		if _, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, prSetIOFlusher, 1, 0, 0, 0, 0); errno != 0 {
			err = fmt.Errorf("PR_SET_IO_FLUSHER: %w", errno)
		} else {
			isNew = true
		}
	}
	if !isNew {
		return err
	}
	return fmt.Errorf("start %s again: %w", exe, syscall.Exec(exe, os.Args, os.Environ()))
}

// protectProcess keeps the daemon alive and answering under memory pressure.
// Each measure needs a privilege; a missing one is a warning, since running
// as an ordinary user is supported.
func protectProcess(log zerolog.Logger) {
	if err := lockMemory(); err != nil {
		log.Warn().Err(err).Msg("memory is not locked: under memory pressure polluxd may be slow or deadlock with its own writes")
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		log.Warn().Err(err).Msg("polluxd is not exempt from the OOM killer")
	}
}

// lockMemory pins all pages, present and future ones when they are first
// used (MCL_ONFAULT: the address space that Go reserves stays free).
// With a limit on locked memory MCL_FUTURE would let a later allocation of
// the Go runtime fail, which is fatal; so it needs the privilege or no limit.
func lockMemory() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("RLIMIT_MEMLOCK: %w", err)
	}
	if limit.Cur != unix.RLIM_INFINITY && !hasCapability(unix.CAP_IPC_LOCK) {
		return fmt.Errorf("mlockall: neither CAP_IPC_LOCK nor LimitMEMLOCK=infinity")
	}
	err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	if err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}

// hasCapability reports whether this process may use capability c now.
func hasCapability(c uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}

// What a node may hold in memory: 48 MiB and 32 KiB per GiB of storage. Go gets
// the larger part, its stacks and tables included; the program's own pages, 10 MiB,
// and what the collector comes too late for the rest.
const (
	heapBaseBytes   = 28 << 20
	heapPerGiBBytes = 28 << 10
	// An idle resource with its connection takes a third of a MiB. Without room for
	// those beyond fewResources the collector would run all the time.
	fewResources         = 8
	heapPerResourceBytes = 640 << 10
	gcPercent            = 50 // our own: a small heap collects often but cheaply
)

// minProcs is the least number of Go's processors. One that waits in a durable
// write, or in any on an O_DIRECT disk without aio, stays taken for a while: with
// 2 cores, 4 processors gave 1.36 times the IOPS of 2 at depth 32. Where there is
// but one core each that idles costs switches, of which the second is worth its
// own: 4.2 by write with 4 processors, 3.3 with 2.
const (
	minProcs    = 4
	singleProcs = 2
)

// tuneScheduler sets GOMAXPROCS, unless the environment does.
func tuneScheduler() {
	want := minProcs
	if runtime.NumCPU() == 1 {
		want = singleProcs
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
}
