package hypervisor

import (
	"fmt"
	"time"
)

// An Event is something that has happened to a VM.
type Event struct {
	Name   string // the VM
	Kind   EventKind
	Detail string    // in the hypervisor's words; "" if there is nothing to add
	At     time.Time // by this machine's clock
}

func (e Event) String() string {
	if e.Detail == "" {
		return fmt.Sprintf("vm %s: %s", e.Name, e.Kind)
	}
	return fmt.Sprintf("vm %s: %s (%s)", e.Name, e.Kind, e.Detail)
}

// EventKind says what has happened.
type EventKind uint8

// The kinds. The zero value is no event.
const (
	_ EventKind = iota
	// EventWatched: Watch has begun; whatever happens from now on is reported.
	// Detail is the phase at this moment.
	EventWatched
	// EventShutdown: the guest is about to end. Detail is who wanted it:
	// "guest-shutdown" is the guest itself.
	EventShutdown
	// EventPaused: the CPUs stand still. Detail is the reason, as in State.
	EventPaused
	// EventResumed: the CPUs run again.
	EventResumed
	// EventDiskError: a request on a disk failed. Detail is disk and operation.
	EventDiskError
	// EventReset: the guest boots again; the VM stays.
	EventReset
	// EventPanicked: the guest's kernel has given up.
	EventPanicked
	// EventWatchdog: the guest no longer feeds its watchdog. Detail is what
	// the hypervisor does about it.
	EventWatchdog
	// EventGone: the VM has ended and closed its disks. The last event.
	EventGone
)

func (k EventKind) String() string {
	names := [...]string{"none", "watched", "shutdown", "paused", "resumed", "disk error", "reset", "panicked", "watchdog", "gone"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}
