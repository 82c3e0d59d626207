package daemon

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/protocol/adm"
)

// A resource is one resource of the configuration, whether it runs or not.
type resource struct {
	d    *Daemon
	name string
	log  zerolog.Logger

	// admin is held by the command that changes the resource: one at a time.
	// Status doesn't take it, so that a long command can be watched.
	admin sync.Mutex

	seqMu sync.Mutex // held while a status is made: the one with the higher number is the newer one
	seq   uint64

	devMu   sync.Mutex // held while block devices are made or removed
	devHeld bool       // releaseDevices was called: none is made; guarded by devMu

	mu      sync.Mutex          // guards what follows; never held while an engine is called
	spec    resourceSpec        // as configured now
	eng     engineAPI           // nil unless up
	running resourceSpec        // what eng runs with; differs from spec after a refused adjust
	devices map[int]blockDevice // by volume
	closed  bool                // the process ends: nothing comes up any more
	unsub   func()
	state   string // adm.State...
	reason  error  // why state is StateFailed
	inc     *incarnation
	// leftovers are exports of incarnations that are over, some of whose requests
	// were under way when they ended.
	leftovers []string
}

// newResource returns a resource that is down.
func newResource(d *Daemon, spec resourceSpec) *resource {
	return &resource{
		d: d, name: spec.Name, spec: spec, state: adm.StateDown,
		log: d.log.With().Str("res", spec.Name).Logger(),
	}
}

func (r *resource) engine() engineAPI {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.eng
}

func (r *resource) currentSpec() resourceSpec {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spec
}

func (r *resource) runningSpec() resourceSpec {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running
}

func (r *resource) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// up brings the resource up: attach every volume, serve it, connect. If any
// part fails everything is undone and status says why. On a resource that is
// up it only adds what is missing, like adjust.
func (r *resource) up() error {
	if r.engine() != nil {
		return r.complete()
	}
	spec, closed := r.currentSpec(), r.isClosed()
	if closed {
		return &adm.Error{Exit: adm.ExitEnvironment, Text: r.name + ": polluxd is about to stop"}
	}
	eng, err := r.d.newEngine(spec, r.d.log)
	if err != nil {
		return r.failed(fmt.Errorf("%s: can't be started: %w", r.name, err))
	}
	if err := r.start(eng, spec); err != nil {
		if cerr := eng.Close(); cerr != nil {
			err = errors.Join(err, cerr)
		}
		return r.failed(err)
	}
	r.mu.Lock()
	r.eng, r.running, r.state, r.reason = eng, spec, adm.StateUp, nil
	r.unsub = eng.Subscribe(func() { r.d.statusChanged(r) })
	r.mu.Unlock()
	r.d.retuneMemory()
	eng.Started()
	r.syncDevices()
	for _, text := range ignoredOptions(spec) {
		r.log.Warn().Msg(text)
	}
	r.log.Info().Msg("resource is up")
	r.d.hub.changed(r.name)
	r.d.syncOrder.check(r.d)
	return nil
}

func (r *resource) start(eng engineAPI, spec resourceSpec) error {
	for _, v := range spec.Volumes {
		if v.Disk == "" {
			continue // diskless by configuration
		}
		if err := eng.Attach(v.Number); err != nil {
			return err
		}
	}
	if err := r.serve(eng, spec); err != nil {
		return err
	}
	if err := r.resumeIncarnation(eng, spec); err != nil {
		return errors.Join(err, r.unserve(spec))
	}
	if err := eng.Connect(false, false); err != nil {
		return errors.Join(err, r.unserve(spec))
	}
	return nil
}

// failed notes why the resource isn't up, and returns it.
func (r *resource) failed(err error) error {
	r.mu.Lock()
	r.state, r.reason = adm.StateFailed, err
	r.mu.Unlock()
	r.log.Error().Err(err).Msg("resource could not be brought up; the others are not affected")
	r.d.hub.changed(r.name)
	return err
}

// complete attaches the volumes that have no disk and connects if the
// resource is StandAlone.
func (r *resource) complete() error { return r.completeParts(false, false) }

func (r *resource) completeParts(skipDisk, skipNet bool) error {
	eng, spec := r.engine(), r.runningSpec()
	st := eng.Status()
	for _, v := range spec.Volumes {
		i := slices.IndexFunc(st.Volumes, func(s adm.Volume) bool { return s.Volume == v.Number })
		if skipDisk || v.Disk == "" || (i >= 0 && st.Volumes[i].Disk != "Diskless") {
			continue
		}
		if err := eng.Attach(v.Number); err != nil {
			return err
		}
	}
	if st.Connection == "StandAlone" && !skipNet {
		return eng.Connect(false, false)
	}
	return nil
}

// down takes the resource down. It is refused while clients hold a volume
// open; a resource that isn't up is no error.
func (r *resource) down() error {
	eng := r.engine()
	if eng == nil {
		r.mu.Lock()
		r.state, r.reason = adm.StateDown, nil
		r.mu.Unlock()
		r.d.hub.changed(r.name)
		return nil
	}
	spec := r.runningSpec()
	some, err := r.releaseDevices()
	if err != nil {
		return err
	}
	if err := afterGoodbye(some, eng.Down); err != nil {
		r.syncDevices() // still up: give the block devices back
		return err
	}
	if err := errors.Join(r.unserve(spec), r.unexport("")); err != nil {
		r.log.Error().Err(err).Msg("NBD export")
	}
	r.dropEngine(adm.StateDown)
	r.log.Info().Msg("resource is down")
	r.d.hub.changed(r.name)
	return nil
}

// close stops the resource for the end of the process: nothing is demoted,
// what is durable stays as it is.
func (r *resource) close() {
	r.admin.Lock()
	defer r.admin.Unlock()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	eng := r.engine()
	if eng == nil {
		return
	}
	r.abandonDevices()
	if err := eng.Close(); err != nil {
		r.log.Error().Err(err).Msg("resource did not stop cleanly")
	}
	r.dropEngine(adm.StateDown)
}

func (r *resource) dropEngine(state string) {
	r.mu.Lock()
	unsub := r.unsub
	r.eng, r.unsub, r.state, r.reason = nil, nil, state, nil
	r.mu.Unlock()
	if unsub != nil {
		unsub()
	}
}

// status is what polluxadm shows of the resource.
func (r *resource) status() adm.Resource {
	r.seqMu.Lock()
	defer r.seqMu.Unlock()
	st := r.look()
	r.seq = max(r.seq+1, sinceBoot())
	st.Seq = r.seq
	return st
}

// sinceBoot is in ns and grows from one polluxd to the next, within one boot.
func sinceBoot() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // since Linux 2.6.39 it can't
	}
	return uint64(ts.Nano()) //nolint:gosec // not before the boot
}

// look is status without its number.
func (r *resource) look() adm.Resource {
	r.mu.Lock()
	eng, spec, state, reason := r.eng, r.spec, r.state, r.reason
	var changed []string
	if eng != nil {
		spec = r.running
		changed = changedOptions(r.running, r.spec)
	}
	devices := map[int]blockDevice{}
	for n, d := range r.devices {
		devices[n] = d
	}
	inc := r.inc
	r.mu.Unlock()

	st := adm.Resource{}
	if eng != nil {
		st = eng.Status()
	}
	st.Name, st.State, st.Changed, st.Manager = r.name, state, changed, spec.Manager
	st.Node, st.Peer = spec.Node, spec.Peer.Name
	st.Address, st.PeerAddress = spec.Local.Addr.String(), spec.Peer.Addr.String()
	if inc != nil {
		st.Incarnation = inc.name
	}
	if reason != nil {
		var e *adm.Error
		st.Reason = reason.Error()
		if errors.As(reason, &e) {
			st.Advice = e.Advice
		}
	}
	if eng == nil { // the configured volumes, so that status shows what is missing
		for _, v := range spec.Volumes {
			st.Volumes = append(st.Volumes, adm.Volume{Volume: v.Number, Minor: v.Minor, Device: v.Device, BackingDisk: v.Disk})
		}
	}
	for i := range st.Volumes {
		v := &st.Volumes[i]
		switch {
		case eng == nil:
		case inc != nil:
			v.Export = atIncarnation(exportName(spec, v.Volume), inc.name)
		case isBare(spec):
			v.Export = exportName(spec, v.Volume)
		}
		v.BlockDevice, v.AttachProblem = devices[v.Volume].path, devices[v.Volume].problem
	}
	return st
}
