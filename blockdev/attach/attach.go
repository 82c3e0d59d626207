// Package attach gives a served volume a kernel block device, for mkfs, mount
// and other programs that do not speak NBD: /dev/drbdN is then a symbolic link
// to it.
//
// Two ways lead there. The kernel's nbd driver is told by generic netlink
// which socket to use; requests wait for a bounded time when the daemon is
// gone, and go on after a restart. Where the kernel has no nbd driver, nbdfuse
// shows the export as a file and a loop device stands on that: some 100 us
// slower, and a restart of the daemon fails what is mounted.
//
//	a, err := attach.New(attach.Config{Mode: attach.ModeNBD})
//	dev, err := a.Attach(ctx, attach.Volume{Resource: "web", Minor: 1, Socket: "/run/pollux/nbd.sock", Export: "web"})
//	…                                         // promoted: /dev/drbd1 can be mounted
//	if err := dev.SetReadOnly(ctx, true); err != nil {
//		return err // ErrInUse: no demotion while it is open
//	}
//	err = dev.Detach(ctx)
package attach

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Mode is the attach-device setting.
type Mode string

// Modes.
const (
	ModeNone Mode = "none" // no block devices
	ModeNBD  Mode = "nbd"  // the kernel's nbd driver; loop where it is missing
	ModeLoop Mode = "loop" // nbdfuse and a loop device
)

// Config says how and where devices are attached.
type Config struct {
	Mode   Mode   // "" is none
	Dir    string // where the links go, default /dev
	RunDir string // mount points and notes about what is attached, default /run/pollux/attach
	// DeadTime is how long requests to a kernel nbd device wait for the daemon
	// to come back, in whole seconds; after that they fail. What was under way
	// when it died begins to wait 45 s after it was sent. Default 30 s.
	DeadTime time.Duration
}

// Validate checks the settings without touching anything.
func (c Config) Validate() error {
	switch c.Mode {
	case "", ModeNone, ModeNBD, ModeLoop:
	default:
		return fmt.Errorf("attach-device: %q is none of none, nbd and loop", c.Mode)
	}
	if c.DeadTime < 0 || c.DeadTime%time.Second != 0 {
		return fmt.Errorf("attach-device: a waiting time of %v, want whole seconds", c.DeadTime)
	}
	return nil
}

// A Volume is what is to be attached.
type Volume struct {
	Resource string
	Number   int
	// Implicit says that the resource has one volume that the configuration
	// does not number: its link is by-res/RES instead of by-res/RES/VOL.
	Implicit bool
	Minor    int    // of /dev/drbdN
	Socket   string // path of the unix socket that serves the export
	Export   string
}

func (v Volume) validate() error {
	for _, s := range []string{v.Resource, v.Export} {
		if s == "" || strings.ContainsRune(s, 0) {
			return fmt.Errorf("attach: a volume without a name")
		}
	}
	if strings.Contains(v.Resource, "/") || v.Resource == "." || v.Resource == ".." {
		return fmt.Errorf("attach %s: the resource's name can't be part of a path", v.Resource)
	}
	if v.Minor < 0 || v.Number < 0 || v.Socket == "" {
		return fmt.Errorf("attach %s/%d: minor %d on socket %q", v.Resource, v.Number, v.Minor, v.Socket)
	}
	return nil
}

// name is the volume in texts and in RunDir.
func (v Volume) name() string { return fmt.Sprintf("drbd%d", v.Minor) }

// A Device is an attached volume. Its methods are not for concurrent use.
type Device interface {
	// Path is the kernel's device, "/dev/nbd0"; "" with ModeNone.
	Path() string
	// SetReadOnly switches the device, at promotion and demotion. Making it
	// read-only is refused with ErrInUse while anybody has it open, or it is
	// mounted; it stays read-write then. Making it read-write drops what the
	// kernel remembers of the data, which the peer may have changed.
	SetReadOnly(ctx context.Context, isReadOnly bool) error
	// SetPatient says whether requests wait without limit for a server that is
	// there but does not answer, as it is with a frozen resource. Without it the
	// kernel's nbd fails them after 45 s and Config.DeadTime. Attach undoes it.
	SetPatient(isPatient bool) error
	// Detach removes the links and the device; ErrInUse as above.
	Detach(ctx context.Context) error
}

// An Attacher attaches volumes by one Mode.
type Attacher interface {
	// Attach connects a volume, which must be open to clients, and makes the
	// links. What an earlier process left attached for the same minor is taken
	// over (nbd) or taken down (loop) first.
	Attach(ctx context.Context, v Volume) (Device, error)
}

// ErrInUse says that a block device is open or mounted; errors that wrap it
// say by whom.
var ErrInUse = errors.New("the device is in use")

// New returns the Attacher for a Config. ModeNBD falls back to a loop device
// when the kernel has no nbd driver.
func New(c Config) (Attacher, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Dir == "" {
		c.Dir = "/dev"
	}
	if c.RunDir == "" {
		c.RunDir = "/run/pollux/attach"
	}
	if c.DeadTime == 0 {
		c.DeadTime = 30 * time.Second
	}
	switch c.Mode {
	case ModeNBD:
		a, err := newKernel(c)
		if err == nil || !errors.Is(err, errNoDriver) {
			return a, err
		}
		return &looper{cfg: c}, nil
	case ModeLoop:
		return &looper{cfg: c}, nil
	default:
		return none{}, nil
	}
}

// none attaches nothing.
type none struct{}

func (none) Attach(context.Context, Volume) (Device, error) { return none{}, nil }
func (none) Path() string                                   { return "" }
func (none) SetReadOnly(context.Context, bool) error        { return nil }
func (none) SetPatient(bool) error                          { return nil }
func (none) Detach(context.Context) error                   { return nil }
