package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/pollux-project/pollux/blockdev/attach"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// attachTimeout bounds the making and the removal of one block device.
const attachTimeout = 30 * time.Second

// attachRetry is how long a device that could not be made is left alone. The
// users of one that an earlier polluxd has made wait for it, for 30 s at most.
const attachRetry = time.Second

// A blockDevice is what attach-device has made of a volume.
type blockDevice struct {
	dev     attach.Device // nil if there is none
	path    string        // the device node
	problem string        // why there is none
	patient bool          // its requests wait without limit
	retry   *time.Timer   // of the next attempt; nil if there is a device
}

// A deviceMaker makes block devices of the volumes of Primary resources, as
// attach-device says. On a Secondary there are none, because nobody may open
// its volumes, not even to read.
type deviceMaker struct {
	attacher attach.Attacher // nil: attach-device = "none"
	socket   string          // of the NBD server

	mu      sync.Mutex
	stopped bool
	work    sync.WaitGroup // changes under way
}

func newDeviceMaker(s *conf.Daemon) (*deviceMaker, error) {
	m := &deviceMaker{socket: s.NBD.Socket}
	if s.AttachDevice == "none" {
		return m, nil
	}
	if s.NBD.Socket == "" {
		return nil, fmt.Errorf("%s: attach-device = %q needs nbd.socket: the block devices are clients of it", s.File, s.AttachDevice)
	}
	var err error
	m.attacher, err = attach.New(attach.Config{Mode: attach.Mode(s.AttachDevice), RunDir: AttachDir(s)})
	return m, err
}

// AttachDir is where the notes about block devices are, which outlive a polluxd.
func AttachDir(s *conf.Daemon) string { return filepath.Join(filepath.Dir(s.ControlSocket), "attach") }

// begin counts a change in; false after stop.
func (m *deviceMaker) begin() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped || m.attacher == nil {
		return false
	}
	m.work.Add(1)
	return true
}

// stop waits for what is under way and lets nothing more begin. The devices
// stay: the kernel holds their users' requests for the next polluxd.
func (m *deviceMaker) stop() {
	m.mu.Lock()
	m.stopped = true
	m.mu.Unlock()
	m.work.Wait()
}

// roleMayHaveChanged makes the block devices follow the role when it changed
// without a command: a former Primary that went on, a demotion by the peer's policy.
func (r *resource) roleMayHaveChanged() {
	if !r.d.devices.begin() {
		return
	}
	go func() {
		defer r.d.devices.work.Done()
		r.devMu.Lock()
		defer r.devMu.Unlock()
		if !r.devHeld {
			r.followRole()
		}
	}()
}

// syncDevices makes the block devices agree with the role, and ends what
// releaseDevices began.
func (r *resource) syncDevices() {
	if !r.d.devices.begin() {
		return
	}
	defer r.d.devices.work.Done()
	r.devMu.Lock()
	defer r.devMu.Unlock()
	r.devHeld = false
	r.followRole()
}

// followRole attaches on a Primary and detaches elsewhere. What can't be
// attached is tried again: just after a resumption the engine may still refuse
// clients, and no other change of status need follow. Needs devMu.
func (r *resource) followRole() {
	eng, spec := r.engine(), r.runningSpec()
	if eng == nil {
		return
	}
	status := eng.Status()
	isPrimary := status.Role == "Primary"
	for _, v := range spec.Volumes {
		have := r.device(v.Number)
		switch {
		case isPrimary && have.dev == nil:
			if have.retry != nil {
				have.retry.Stop() // this is the attempt
			}
			b := r.attachDevice(spec, v, have.problem)
			if b.dev == nil {
				b.retry = time.AfterFunc(attachRetry, r.roleMayHaveChanged)
			}
			r.setDevice(v.Number, b)
			if b.dev != nil {
				r.setPatience(v.Number, b, len(status.Suspended) > 0)
			}
		case isPrimary:
			r.setPatience(v.Number, have, len(status.Suspended) > 0)
		case !isPrimary && have.dev != nil:
			if err := r.detachDevice(v.Number, have); err != nil {
				r.log.Error().Err(err).Int("vol", v.Number).Msg("block device")
			}
		}
	}
}

// setPatience lets the requests to a frozen resource wait without limit.
func (r *resource) setPatience(vol int, b blockDevice, isPatient bool) {
	if b.patient == isPatient {
		return
	}
	if err := b.dev.SetPatient(isPatient); err != nil {
		r.log.Error().Err(err).Int("vol", vol).Msg("block device")
		return
	}
	b.patient = isPatient
	r.setDevice(vol, b)
}

// attachDevice makes one block device; a problem that is known is not logged again.
func (r *resource) attachDevice(spec resourceSpec, v conf.Volume, known string) blockDevice {
	ctx, cancel := context.WithTimeout(context.Background(), attachTimeout)
	defer cancel()
	dev, err := r.d.devices.attacher.Attach(ctx, attach.Volume{
		Resource: spec.Name, Number: v.Number, Implicit: len(spec.Volumes) == 1 && v.Number == 0, Minor: v.Minor,
		Socket: r.d.devices.socket, Export: exportName(spec, v.Number),
	})
	if err == nil {
		if err = dev.SetReadOnly(ctx, false); err == nil {
			r.log.Info().Int("vol", v.Number).Str("device", dev.Path()).Msg("block device")
			return blockDevice{dev: dev, path: dev.Path()}
		}
		err = errors.Join(err, dev.Detach(ctx))
	}
	if err.Error() != known {
		r.log.Error().Err(err).Int("vol", v.Number).Msg("no block device; the NBD export works")
	}
	return blockDevice{problem: err.Error()}
}

func (r *resource) detachDevice(vol int, b blockDevice) error {
	ctx, cancel := context.WithTimeout(context.Background(), attachTimeout)
	defer cancel()
	if err := b.dev.Detach(ctx); err != nil {
		return err
	}
	r.setDevice(vol, blockDevice{})
	return nil
}

// releaseDevices gives the block devices up before a demotion. It is refused
// while one is in use; then all are as before. After it has succeeded nothing
// is attached until syncDevices. some reports whether there were any.
func (r *resource) releaseDevices() (some bool, err error) {
	if !r.d.devices.begin() {
		return false, nil
	}
	defer r.d.devices.work.Done()
	r.devMu.Lock()
	defer r.devMu.Unlock()
	for _, v := range r.runningSpec().Volumes {
		b := r.device(v.Number)
		if b.dev == nil {
			continue
		}
		some = true
		if err := r.detachDevice(v.Number, b); err != nil {
			r.followRole() // those before it come back
			return some, &adm.Error{
				Exit: adm.ExitStateChange, Number: inUse,
				Text:   fmt.Sprintf("%s: State change failed: (-12) Device is held open by someone: %v", r.name, err),
				Advice: fmt.Sprintf("umount or close %s and repeat the command", b.path),
			}
		}
	}
	r.devHeld = true
	return some, nil
}

// goodbyeTime is how long the end of a block device's connection may take to
// reach the NBD server, and goodbyePoll how often that is looked at.
const (
	goodbyeTime = 3 * time.Second
	goodbyePoll = 20 * time.Millisecond
)

// afterGoodbye runs a demotion. If block devices were given up just before, it is
// tried again while it is refused because a client has a volume open: the kernel
// says goodbye for them, and the server may not have heard it yet.
func afterGoodbye(some bool, demote func() error) error {
	for end := time.Now().Add(goodbyeTime); ; time.Sleep(goodbyePoll) {
		err := demote()
		var refused *adm.Error
		if !some || !errors.As(err, &refused) || refused.Number != inUse || time.Now().After(end) {
			return err
		}
	}
}

// inUse is DRBD's SS_DEVICE_IN_USE.
const inUse = -12

// abandonDevices leaves the block devices to their users for the next polluxd.
func (r *resource) abandonDevices() {
	r.devMu.Lock()
	defer r.devMu.Unlock()
	r.devHeld = true
}

func (r *resource) device(vol int) blockDevice {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.devices[vol]
}

func (r *resource) setDevice(vol int, b blockDevice) {
	r.mu.Lock()
	if r.devices == nil {
		r.devices = map[int]blockDevice{}
	}
	r.devices[vol] = b
	r.mu.Unlock()
	r.d.hub.changed(r.name)
}
