package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Conditions that callers tell apart with errors.Is. Adapters wrap them in a
// *VMError.
var (
	// ErrRunning says that the VM runs on this machine already.
	ErrRunning = errors.New("it is already running on this node")
	// ErrNotRunning says that there is nothing to stop, kill or resume.
	ErrNotRunning = errors.New("it is not running on this node")
	// ErrStillRunning says that the guest did not stop within the time given.
	ErrStillRunning = errors.New("the guest did not shut down in time and is still running")
	// ErrPaused says that the guest stands still and so can't react.
	ErrPaused = errors.New("the guest is paused and can't react")
	// ErrNoAgent says that there is nobody who could answer for the guest: no
	// agent is installed, or it has not started yet, or hangs.
	ErrNoAgent = errors.New("the guest's agent does not answer")
	// ErrDisksOpen says that the VM itself has ended, for good, but that the NBD
	// server has not been seen to have closed its disks.
	ErrDisksOpen = errors.New("it has ended, but its disks may still be open")
)

// A VMError says what could not be done to which virtual machine.
type VMError struct {
	Op   string // "start", "stop", "kill", "resume", "query", "watch", "ask the agent"
	Name string // the VM
	Err  error
}

func (e *VMError) Error() string { return fmt.Sprintf("vm %s: %s: %v", e.Name, e.Op, e.Err) }

// Unwrap returns the reason.
func (e *VMError) Unwrap() error { return e.Err }

// Hypervisor runs virtual machines on this machine. All methods are safe for
// concurrent use, also by several processes, and give up when ctx is done.
// What package units runs in a VM's place is called a VM here as well.
type Hypervisor interface {
	// Start boots g and returns when the hypervisor has opened its disks and
	// the guest's CPUs run. It refuses with ErrRunning if a VM of this name
	// runs here, whoever started it. On any error nothing is left running.
	Start(ctx context.Context, g Guest) error

	// Stop presses the guest's power button and waits at most grace for the VM
	// to be gone; then it returns ErrStillRunning and leaves the VM alone, so
	// that killing stays the caller's decision. A paused guest can't react:
	// ErrPaused comes at once. When Stop returns nil, the VM has closed its disks.
	Stop(ctx context.Context, name string, grace time.Duration) error

	// Kill ends the VM as a power failure would and returns when it is gone
	// and its disks are closed. A VM that doesn't run is ErrNotRunning; one that
	// is gone while its disks may be open is ErrDisksOpen, as with Stop.
	Kill(ctx context.Context, name string) error

	// Resume lets a paused guest go on: the one that was stopped because its
	// disk failed repeats the failed requests. Resuming a running guest is no error.
	Resume(ctx context.Context, name string) error

	// State tells how the VM is. One that doesn't run, or that nobody has
	// ever heard of, is Stopped and no error.
	State(ctx context.Context, name string) (State, error)

	// List returns the VMs that run here, paused ones included, sorted by name.
	List(ctx context.Context) ([]State, error)

	// Watch calls report for what happens to the VM, in order and one at a
	// time: EventWatched at once, EventGone at the end. It returns nil after
	// that, or ctx's error. A VM that doesn't run is ErrNotRunning and no
	// event. One program watches a VM at a time; a second one waits. report may
	// use the adapter, but should not take long.
	Watch(ctx context.Context, name string, report func(Event)) error

	// AskAgent returns nil if a program inside the guest has answered by the
	// time that ctx is done, else ErrNoAgent.
	AskAgent(ctx context.Context, name string) error
}

// Phase is what a virtual machine is doing.
type Phase uint8

// The phases. The zero value is Stopped.
const (
	Stopped Phase = iota // no process, no open disk
	Running              // the CPUs run
	Paused               // exists, but its CPUs stand still; State.Reason says why
	Unknown              // exists, but its hypervisor gives no answer
)

func (p Phase) String() string {
	switch p {
	case Stopped:
		return "stopped"
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Unknown:
		return "unknown"
	default:
		return fmt.Sprintf("Phase(%d)", uint8(p))
	}
}

// State describes a VM at the moment of the question.
type State struct {
	Name   string
	Phase  Phase
	Reason string    // for Paused and Unknown: why, in the hypervisor's words ("io-error")
	PID    int       // of the hypervisor's process; 0 when Stopped
	Since  time.Time // start of that process, to the precision of a clock tick; zero when Stopped

	// Disks are the NBD exports that it was started with: after a restart of
	// the program that started it they tell which incarnation runs.
	Disks []Disk
	// MemoryBytes is what it occupies of this machine's memory now; 0 = not known.
	MemoryBytes int64
}
