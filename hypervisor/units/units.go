package units

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
)

// Our own tuning.
const (
	// cleanTime is for taking back a start that failed, and for the reaping of
	// units that died; both go on when the caller has given up.
	cleanTime = 30 * time.Second
	killPoll  = 50 * time.Millisecond
	lockPoll  = 20 * time.Millisecond
)

// Config says where things are. The zero value lacks RunDir only.
type Config struct {
	// RunDir holds two small files for each VM; created with mode 0700. It has
	// to be cleared by a reboot.
	RunDir string
	// CgroupRoot is where control groups (version 2) are mounted; "" = /sys/fs/cgroup.
	CgroupRoot string
	// Systemctl is the program; "" = systemctl from the PATH.
	Systemctl string
	// Closed, if not nil, is called with the disks of a VM that has ended, before
	// Stop, Kill or EventGone say so; see package qemu's Config.
	Closed func(ctx context.Context, disks []hypervisor.Disk) error
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.RunDir) {
		return fmt.Errorf("run directory %q: want an absolute path", c.RunDir)
	}
	return nil
}

// Units is the adapter. It holds no state and needs no closing.
type Units struct {
	cfg   Config
	known hypervisor.Guest // what For was told
}

var _ hypervisor.Hypervisor = (*Units)(nil)

// New returns an adapter. Nothing is started or looked for yet.
func New(cfg Config) (*Units, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("units: %w", err)
	}
	if cfg.CgroupRoot == "" {
		cfg.CgroupRoot = "/sys/fs/cgroup"
	}
	if cfg.Systemctl == "" {
		cfg.Systemctl = "systemctl"
	}
	return &Units{cfg: cfg}, nil
}

// For returns the adapter as it is for one VM, whose units and directories of mounts it
// knows: while one of those units lives it runs, whether or not its record is there.
func (u *Units) For(g hypervisor.Guest) hypervisor.Hypervisor {
	return &Units{cfg: u.cfg, known: g}
}

// Installed says why no unit can be started on this machine, or nil.
func (u *Units) Installed() error {
	if _, err := exec.LookPath(u.cfg.Systemctl); err != nil {
		return fmt.Errorf("%w; units need systemd", err)
	}
	return nil
}

// A record is what was started under a name. It is written before anything is
// done and removed when all is undone.
type record struct {
	Units  []string           `json:"units"`
	Mounts []hypervisor.Mount `json:"mounts,omitempty"`
	Disks  []hypervisor.Disk  `json:"disks,omitempty"`
	Since  time.Time          `json:"since"`
	lost   bool               // nothing is written down: it is what For was told
}

const recordSuffix = ".json"

func (u *Units) path(name string) string { return filepath.Join(u.cfg.RunDir, name+recordSuffix) }

// read returns the record of name, or nil.
func (u *Units) read(name string) (*record, error) {
	if !hypervisor.ValidName(name) {
		return nil, nil
	}
	text, err := os.ReadFile(u.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil || len(r.Units) == 0 {
		return nil, fmt.Errorf("%s is damaged (%w): stop its units by hand and remove it", u.path(name), err)
	}
	return &r, nil
}

// find returns the record of name; if there is none, one of what is known of name, whose
// units may live nevertheless; or nil.
func (u *Units) find(name string) (*record, error) {
	r, err := u.read(name)
	if err == nil && r == nil && name == u.known.Name && len(u.known.Units) > 0 && u.Installed() == nil {
		r = &record{Units: u.known.Units, Mounts: u.known.Mounts, lost: true}
	}
	return r, err
}

func (u *Units) write(name string, r record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := u.path(name)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (u *Units) forget(name string) error {
	if err := os.Remove(u.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Start implements [hypervisor.Hypervisor]. It refuses units that run already,
// are enabled, or are not known to systemd.
func (u *Units) Start(ctx context.Context, g hypervisor.Guest) error {
	err := g.Validate()
	if err == nil && len(g.Units) == 0 {
		err = errors.New("no units")
	}
	if err == nil {
		err = u.start(ctx, g)
	}
	return fail("start", g.Name, err)
}

func (u *Units) start(ctx context.Context, g hypervisor.Guest) error {
	unlock, err := u.lock(ctx, g.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := u.mayStart(ctx, g); err != nil {
		return err
	}
	r := record{Units: g.Units, Mounts: g.Mounts, Since: time.Now()}
	for _, d := range g.Disks {
		d.Serial = ""
		r.Disks = append(r.Disks, d)
	}
	if err := u.write(g.Name, r); err != nil {
		return err
	}
	if err := u.startAll(ctx, r); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		return errors.Join(err, u.end(clean, g.Name, r))
	}
	return nil
}

// mayStart refuses what must not be started; leftovers of an earlier run, whose
// units have died, are removed.
func (u *Units) mayStart(ctx context.Context, g hypervisor.Guest) error {
	old, err := u.read(g.Name)
	if err != nil {
		return err
	}
	list, err := u.show(ctx, g.Units)
	if err != nil {
		return err
	}
	for _, s := range list {
		switch {
		case s.LoadState != "loaded":
			return fmt.Errorf("unit %s: systemd has it as %q; install it, or correct units", s.ID, s.LoadState)
		case s.FileState == "enabled" || s.FileState == "enabled-runtime":
			return fmt.Errorf("unit %s is enabled: systemd starts it at boot, on both nodes; systemctl disable %s", s.ID, s.ID)
		case s.isLive():
			return fmt.Errorf("%w: unit %s is %s", hypervisor.ErrRunning, s.ID, s.ActiveState)
		}
	}
	if old == nil {
		return nil
	}
	was, err := u.show(ctx, old.Units)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(was, unit.isLive) {
		return hypervisor.ErrRunning
	}
	return u.end(ctx, g.Name, *old)
}

func (u *Units) startAll(ctx context.Context, r record) error {
	for _, m := range r.Mounts {
		if err := u.mount(ctx, m); err != nil {
			return err
		}
	}
	for _, name := range r.Units {
		// What failed often is not started again by systemd until this; whether
		// it may be is our caller's decision.
		_ = u.systemctl(ctx, "reset-failed", name) // an error if it has not failed
		if err := u.systemctl(ctx, "start", name); err != nil {
			return fmt.Errorf("start unit %s: %w", name, err)
		}
	}
	list, err := u.show(ctx, r.Units)
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.ActiveState != "active" {
			return fmt.Errorf("start unit %s: it is %s after its start (%s)", s.ID, s.ActiveState, s.Result)
		}
	}
	return nil
}

// Stop implements [hypervisor.Hypervisor]: the units are stopped in the reverse
// order, then what was mounted is unmounted.
func (u *Units) Stop(ctx context.Context, name string, grace time.Duration) error {
	return fail("stop", name, u.stop(ctx, name, grace))
}

func (u *Units) stop(ctx context.Context, name string, grace time.Duration) error {
	r, unlock, err := u.running(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	limited, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for _, unit := range slices.Backward(r.Units) {
		err := u.systemctl(limited, "stop", unit)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case limited.Err() != nil:
			return fmt.Errorf("%w: unit %s (waited %v)", hypervisor.ErrStillRunning, unit, grace)
		default:
			return fmt.Errorf("stop unit %s: %w", unit, err)
		}
	}
	return u.release(ctx, name, *r)
}

// Kill implements [hypervisor.Hypervisor] with SIGKILL for every process of the
// units' control groups.
func (u *Units) Kill(ctx context.Context, name string) error {
	r, unlock, err := u.running(ctx, name)
	if err == nil {
		err = u.end(ctx, name, *r)
		unlock()
	}
	return fail("kill", name, err)
}

// running returns the record of what runs, or has left something behind, with
// its lock; else ErrNotRunning.
func (u *Units) running(ctx context.Context, name string) (*record, func(), error) {
	r, err := u.find(name)
	if err == nil && r == nil {
		err = hypervisor.ErrNotRunning
	}
	if err != nil {
		return nil, nil, err
	}
	unlock, err := u.lock(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	// Another program may have ended it while we waited for the lock.
	if r, err = u.find(name); err == nil && r == nil {
		err = hypervisor.ErrNotRunning
	}
	if err == nil {
		var s hypervisor.State
		if s, err = u.state(ctx, name, r); err == nil && s.Phase == hypervisor.Stopped {
			err = errors.Join(hypervisor.ErrNotRunning, u.forget(name))
		}
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return r, unlock, nil
}

// end kills what is left of a run and unmounts.
func (u *Units) end(ctx context.Context, name string, r record) error {
	// The queued stop keeps systemd from starting again what is killed.
	for _, unit := range slices.Backward(r.Units) {
		if err := u.systemctl(ctx, "stop", "--no-block", unit); err != nil {
			return fmt.Errorf("stop unit %s: %w", unit, err)
		}
	}
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for {
		list, err := u.show(ctx, r.Units)
		if err != nil {
			return err
		}
		live := ""
		for _, s := range list {
			if !s.isLive() && !u.isPopulated(s) {
				continue
			}
			live = s.ID
			// It may end by itself just now; the next look tells.
			_ = u.systemctl(ctx, "kill", "--signal=SIGKILL", s.ID)
		}
		if live == "" {
			return u.release(ctx, name, r)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("unit %s has not ended: %w", live, ctx.Err())
		}
	}
}

// release unmounts, last one first, and forgets the run.
func (u *Units) release(ctx context.Context, name string, r record) error {
	for _, m := range slices.Backward(r.Mounts) {
		if err := u.unmount(ctx, m); err != nil {
			return err
		}
	}
	if u.cfg.Closed != nil && len(r.Disks) > 0 {
		if err := u.cfg.Closed(ctx, r.Disks); err != nil {
			return fmt.Errorf("%w: %w", hypervisor.ErrDisksOpen, err)
		}
	}
	return u.forget(name)
}

// Resume implements [hypervisor.Hypervisor]: units are never paused.
func (u *Units) Resume(ctx context.Context, name string) error {
	s, err := u.State(ctx, name)
	if err == nil && s.Phase == hypervisor.Stopped {
		err = hypervisor.ErrNotRunning
	}
	return fail("resume", name, err)
}

// AskAgent implements [hypervisor.Hypervisor]: units have no agent.
func (u *Units) AskAgent(ctx context.Context, name string) error {
	if err := u.Resume(ctx, name); err != nil {
		return fail("ask the agent", name, unwrapVM(err))
	}
	return fail("ask the agent", name, hypervisor.ErrNoAgent)
}

// State implements [hypervisor.Hypervisor]. Running means that every unit is
// active; Unknown that some are not, or that a mount has outlived them.
func (u *Units) State(ctx context.Context, name string) (hypervisor.State, error) {
	r, err := u.find(name)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return hypervisor.State{}, fail("query", name, err)
	}
	s, err := u.state(ctx, name, r)
	if err != nil && r.lost && ctx.Err() == nil {
		return hypervisor.State{Name: name}, nil // where systemd is not at work it has started nothing
	}
	return s, fail("query", name, err)
}

func (u *Units) state(ctx context.Context, name string, r *record) (hypervisor.State, error) {
	stopped := hypervisor.State{Name: name}
	if r == nil {
		return stopped, nil
	}
	list, err := u.show(ctx, r.Units)
	if err != nil {
		return hypervisor.State{}, err
	}
	s := hypervisor.State{Name: name, Phase: hypervisor.Running, Since: r.Since, Disks: r.Disks}
	var ill []string
	live := false
	for _, x := range list {
		live = live || x.isLive()
		s.MemoryBytes += x.Memory
		if s.PID == 0 {
			s.PID = x.MainPID
		}
		if x.ActiveState != "active" {
			ill = append(ill, fmt.Sprintf("unit %s is %s", x.ID, x.ActiveState))
		}
	}
	if !live && !r.lost { // what is mounted without a unit may be somebody else's
		for _, m := range r.Mounts {
			switch is, err := isMounted(m.Dir); {
			case err != nil:
				return hypervisor.State{}, err
			case is:
				ill = append(ill, m.Dir+" is still mounted")
				live = true
			}
		}
	}
	if !live {
		return stopped, nil
	}
	if len(ill) > 0 {
		s.Phase, s.Reason = hypervisor.Unknown, strings.Join(ill, ", ")
	}
	return s, nil
}

// List implements [hypervisor.Hypervisor].
func (u *Units) List(ctx context.Context) ([]hypervisor.State, error) {
	entries, err := os.ReadDir(u.cfg.RunDir) // sorted
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the units: %w", err)
	}
	var list []hypervisor.State
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok {
			continue
		}
		s, err := u.State(ctx, name)
		if err != nil {
			return nil, err
		}
		if s.Phase != hypervisor.Stopped {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b hypervisor.State) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// lock takes the flock of a VM, waiting for another program until ctx ends.
func (u *Units) lock(ctx context.Context, name string) (unlock func(), err error) {
	if err := os.MkdirAll(u.cfg.RunDir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(u.cfg.RunDir, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing gives the lock back
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close() // never locked
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close() // never locked
			return nil, fmt.Errorf("wait for another start or stop of it: %w", ctx.Err())
		}
	}
}

func fail(op, name string, err error) error {
	var vm *hypervisor.VMError
	if err == nil || errors.As(err, &vm) && vm.Op == op {
		return err
	}
	return &hypervisor.VMError{Op: op, Name: name, Err: err}
}

// unwrapVM takes the operation off an error that is reported as another one's.
func unwrapVM(err error) error {
	var vm *hypervisor.VMError
	if errors.As(err, &vm) {
		return vm.Err
	}
	return err
}
