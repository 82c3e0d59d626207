package hatestbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Stages of a program that runs in a sandbox; the environment variable tells
// which one a process is.
const (
	stageVariable = "POLLUX_HA_STAGE"
	stageInit     = "init"   // the first process of the PID namespace
	stageWorker   = "worker" // does the work
)

// ErrNoRoot says that this program cannot make namespaces.
var ErrNoRoot = errors.New("root is needed for network namespaces, tap and loop devices: run it as root (in a container: privileged)")

// Enter runs the calling program once more in namespaces of its own (PIDs,
// mounts, network) and returns how that ended; inside is true in that run,
// which is to go on with its work. Signals that ask for the end are handed on.
// Whatever is left in the namespaces when the inner run ends is killed by the
// kernel.
func Enter() (inside bool, exit int, err error) {
	switch os.Getenv(stageVariable) {
	case stageWorker:
		return true, 0, os.Unsetenv(stageVariable)
	case stageInit:
		exit, err = beInit()
		return false, exit, err
	}
	if os.Geteuid() != 0 {
		return false, 0, ErrNoRoot
	}
	// The init dies with this thread, so the thread must stay.
	runtime.LockOSThread()
	cmd := again(stageInit)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Setpgid:    true, // Ctrl-C reaches this process only, which hands it on
		Pdeathsig:  syscall.SIGKILL,
	}
	exit, err = runAndForward(cmd, cmd.Wait)
	if err != nil {
		err = fmt.Errorf("make namespaces: %w", err)
	}
	return false, exit, err
}

// again is this program in another stage.
func again(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVariable+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// runAndForward starts cmd, hands signals on and returns its exit status.
func runAndForward(cmd *exec.Cmd, wait func() error) (exit int, err error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may have ended just now
		case err := <-ended:
			var status *exec.ExitError
			if errors.As(err, &status) {
				if code := status.ExitCode(); code >= 0 {
					return code, nil
				}
			}
			return 0, err
		}
	}
}

// beInit is the first process: it has /proc show this namespace, starts the
// worker and buries whoever loses its parent, as QEMU does when it becomes a daemon.
func beInit() (exit int, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	cmd := again(stageWorker)
	return runAndForward(cmd, func() error {
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, 0, nil)
			switch {
			case errors.Is(err, syscall.EINTR):
			case err != nil:
				return fmt.Errorf("wait for the worker: %w", err)
			case pid != cmd.Process.Pid:
			case status.Signaled():
				return fmt.Errorf("the worker was killed: %v", status.Signal())
			default:
				os.Exit(status.ExitStatus()) // the kernel ends the rest
			}
		}
	})
}
