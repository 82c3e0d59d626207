package qemu

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
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
	// defaultReconnectDelay: a restart or an upgrade of the NBD server never
	// needs a hand; an outage that lasts longer becomes visible as a paused VM.
	defaultReconnectDelay = 5 * time.Minute
	// monitorTimeout bounds a question to the monitor when the caller's ctx
	// doesn't. QEMU answers within milliseconds unless another client is served.
	monitorTimeout = 3 * time.Second
	// pressEvery: a guest that is still booting loses the power button's event.
	pressEvery = 5 * time.Second
	lockPoll   = 20 * time.Millisecond
	maxMessage = 2000 //  bytes of QEMU's own words that go into an error
)

// Config says how VMs are run. The zero value lacks RunDir only.
type Config struct {
	// RunDir holds one directory per VM; created with mode 0700. It must be
	// the same for all programs that shall see the same VMs, and its path must
	// be absolute and short, because it ends in unix sockets (107 bytes in all).
	RunDir string
	// Binary is QEMU's program; "" = qemu-system-x86_64 from the PATH. Its file
	// name must start with "qemu".
	Binary string
	// ReconnectDelay is how long the guest's requests wait for the NBD server
	// to come back before the guest is paused; 0 = 5 minutes. Whole seconds.
	ReconnectDelay time.Duration
	// Closed, if not nil, is called with the disks of a VM whose process has
	// ended, before Stop, Kill or EventGone say so. It has to return when the NBD
	// server has no connection to these exports any more: what such a process
	// sent last may still be on its way to the disk.
	Closed func(ctx context.Context, disks []hypervisor.Disk) error
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.RunDir):
		return fmt.Errorf("run directory %q: want an absolute path", c.RunDir)
	case c.ReconnectDelay < 0 || c.ReconnectDelay%time.Second != 0:
		return fmt.Errorf("reconnect delay %v: want whole seconds", c.ReconnectDelay)
	case c.Binary != "" && !strings.HasPrefix(filepath.Base(c.Binary), "qemu"):
		return fmt.Errorf("binary %q: want a file name that starts with qemu", c.Binary)
	}
	return nil
}

// QEMU is the adapter. What it keeps of its VMs is a look at the machine's
// processes, for a second; it needs no closing.
type QEMU struct {
	cfg  Config
	seen sight
}

var _ hypervisor.Hypervisor = (*QEMU)(nil)

// New returns an adapter. Nothing is started, created or looked for yet.
func New(cfg Config) (*QEMU, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if cfg.Binary == "" {
		cfg.Binary = "qemu-system-x86_64"
	}
	if cfg.ReconnectDelay == 0 {
		cfg.ReconnectDelay = defaultReconnectDelay
	}
	return &QEMU{cfg: cfg, seen: sight{each: eachQEMU}}, nil
}

// pidFileName is the last element of a pid file's path; RUNDIR/NAME comes before it.
const pidFileName = "pid"

// paths are the files of one VM.
type paths struct{ dir, lock, pid, monitor, events, agent, log string }

// runDir returns the one spelling of RunDir that command lines are made of and
// compared with: /run/x and /var/run/x must not be two different VMs.
func (q *QEMU) runDir() string {
	dir := filepath.Clean(q.cfg.RunDir)
	for there := dir; ; there = filepath.Dir(there) {
		// What doesn't exist (yet, or any more) is no link.
		if real, err := filepath.EvalSymlinks(there); err == nil {
			return filepath.Join(real, strings.TrimPrefix(dir, there))
		} else if there == filepath.Dir(there) {
			return dir
		}
	}
}

func (q *QEMU) paths(name string) paths {
	dir := filepath.Join(q.runDir(), name)
	return paths{
		dir: dir, lock: filepath.Join(dir, "lock"), pid: filepath.Join(dir, pidFileName),
		monitor: filepath.Join(dir, "qmp"), events: filepath.Join(dir, "events"), agent: filepath.Join(dir, "agent"), log: filepath.Join(dir, "log"),
	}
}

// Installed says why no VM can be started on this machine, or nil.
func (q *QEMU) Installed() error {
	_, err := q.binary()
	return err
}

func (q *QEMU) binary() (string, error) {
	path, err := exec.LookPath(q.cfg.Binary)
	if err != nil {
		return "", fmt.Errorf("%w; is the package qemu-system-x86 installed?", err)
	}
	return path, nil
}

// Start implements [hypervisor.Hypervisor].
func (q *QEMU) Start(ctx context.Context, g hypervisor.Guest) error {
	if err := g.Validate(); err != nil {
		return fail("start", g.Name, err)
	}
	return fail("start", g.Name, q.start(ctx, g))
}

func (q *QEMU) start(ctx context.Context, g hypervisor.Guest) error {
	if err := os.MkdirAll(q.cfg.RunDir, 0o700); err != nil {
		return err
	}
	p := q.paths(g.Name)
	if err := checkSockets(p, g); err != nil {
		return err
	}
	binary, err := q.binary()
	if err != nil {
		return err
	}
	accel, err := accelArgs(g.Accel, KVMUsable())
	if err != nil {
		return err
	}
	argv, err := args(g, p, accel, q.cfg.ReconnectDelay)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(ctx, p.lock)
	if err != nil {
		return err
	}
	defer unlock()
	running, err := processes(p.pid)
	if err != nil {
		return err
	}
	if len(running) > 0 {
		return hypervisor.ErrRunning
	}
	defer q.seen.starting()()
	return launch(ctx, binary, argv, p)
}

// launch runs QEMU until it has become a daemon: by then it has opened the
// disks and the guest's CPUs run, or it has said why not.
func launch(ctx context.Context, binary string, argv []string, p paths) error {
	// A message of an earlier run must not be taken for this one's.
	if err := os.Remove(p.log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, argv...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second // the daemon may hold on to its standard error
	err := cmd.Run()
	if err == nil {
		return nil
	}
	// Interrupted half-way, the daemon-to-be lives on without its parent.
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), monitorTimeout)
	defer cancel()
	_, killErr := killAll(cleanup, p)
	if ctx.Err() != nil {
		return errors.Join(fmt.Errorf("QEMU was not ready in time: %w", ctx.Err()), killErr)
	}
	return errors.Join(fmt.Errorf("QEMU: %w: %s", err, said(stderr.String(), p.log)), killErr)
}

// said returns what QEMU has to say for itself, on one line.
func said(stderr, log string) string {
	// With -D the later messages go to the log instead; an unreadable log has none.
	if text, err := os.ReadFile(log); err == nil {
		stderr += string(text)
	}
	var lines []string
	for line := range strings.Lines(stderr) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, strings.TrimPrefix(line, "qemu-system-x86_64: "))
		}
	}
	all := strings.Join(lines, "; ")
	if len(all) > maxMessage {
		all = all[:maxMessage] + "…"
	}
	return cmp.Or(all, "no reason given")
}

// Stop implements [hypervisor.Hypervisor]. The guest sees ACPI's power button.
func (q *QEMU) Stop(ctx context.Context, name string, grace time.Duration) error {
	running, err := q.running(name)
	if err != nil {
		return fail("stop", name, err)
	}
	disks := running[0].disks()
	waiting, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for {
		if err := q.press(waiting, name); err != nil && waiting.Err() == nil && anyAlive(running) {
			return fail("stop", name, err)
		}
		round, cancel := context.WithTimeout(waiting, pressEvery)
		err := waitGone(round, running)
		cancel()
		switch {
		case err == nil:
			return fail("stop", name, q.closed(ctx, disks))
		case ctx.Err() != nil:
			return fail("stop", name, ctx.Err())
		case waiting.Err() != nil:
			return fail("stop", name, fmt.Errorf("%w (waited %v)", hypervisor.ErrStillRunning, grace))
		}
	}
}

// press pushes the power button of a guest that can feel it.
func (q *QEMU) press(ctx context.Context, name string) error {
	return q.monitor(ctx, name, func(ctx context.Context, m *Monitor) error {
		s, err := runState(ctx, m)
		if err != nil {
			return err
		}
		if s.phase() == hypervisor.Paused {
			return fmt.Errorf("%w (%s)", hypervisor.ErrPaused, s.Status)
		}
		return m.Execute(ctx, "system_powerdown", nil, nil)
	})
}

// Kill implements [hypervisor.Hypervisor] with SIGKILL.
func (q *QEMU) Kill(ctx context.Context, name string) error {
	if !hypervisor.ValidName(name) {
		return fail("kill", name, hypervisor.ErrNotRunning)
	}
	p := q.paths(name)
	running, err := processes(p.pid)
	if err != nil {
		return fail("kill", name, err)
	}
	var disks []hypervisor.Disk
	if len(running) > 0 {
		disks = running[0].disks()
	}
	killed, err := killAll(ctx, p)
	switch {
	case err != nil:
	case killed == 0:
		err = hypervisor.ErrNotRunning
	default:
		err = q.closed(ctx, disks)
	}
	return fail("kill", name, err)
}

// closed waits until the NBD server has noticed the end of a VM.
func (q *QEMU) closed(ctx context.Context, disks []hypervisor.Disk) error {
	if q.cfg.Closed == nil || len(disks) == 0 {
		return nil
	}
	if err := q.cfg.Closed(ctx, disks); err != nil {
		return fmt.Errorf("%w: %w", hypervisor.ErrDisksOpen, err)
	}
	return nil
}

// killAll kills every QEMU of p and waits for its end. It looks again until
// there is none, for a QEMU that is just becoming a daemon has two processes.
func killAll(ctx context.Context, p paths) (killed int, err error) {
	for {
		ps, err := processes(p.pid)
		if err != nil || len(ps) == 0 {
			return killed, err
		}
		for _, one := range ps {
			if err := one.kill(); err != nil {
				return killed, fmt.Errorf("kill process %d: %w", one.pid, err)
			}
			killed++
		}
		if err := waitGone(ctx, ps); err != nil {
			return killed, err
		}
	}
}

// Resume implements [hypervisor.Hypervisor].
func (q *QEMU) Resume(ctx context.Context, name string) error {
	if _, err := q.running(name); err != nil {
		return fail("resume", name, err)
	}
	return fail("resume", name, q.monitor(ctx, name, func(ctx context.Context, m *Monitor) error {
		return m.Execute(ctx, "cont", nil, nil)
	}))
}

// State implements [hypervisor.Hypervisor]. That a VM is stopped may be the answer
// of up to a second ago if another program has started it since and its pid file
// is not there.
func (q *QEMU) State(ctx context.Context, name string) (hypervisor.State, error) {
	if !hypervisor.ValidName(name) {
		return hypervisor.State{Name: name}, nil
	}
	ps, err := q.seen.processes(q.paths(name).pid)
	if err != nil {
		return hypervisor.State{}, fail("query", name, err)
	}
	if len(ps) == 0 {
		return hypervisor.State{Name: name}, nil
	}
	p := ps[0]
	state := hypervisor.State{Name: name, PID: p.pid, Disks: p.disks(), MemoryBytes: p.memory()}
	if state.Since, err = p.since(); err != nil {
		return hypervisor.State{}, fail("query", name, err)
	}
	var s status
	err = q.monitor(ctx, name, func(ctx context.Context, m *Monitor) error {
		s, err = runState(ctx, m)
		return err
	})
	switch {
	case err == nil:
		state.Phase, state.Reason = s.phase(), s.reason()
	case ctx.Err() != nil:
		return hypervisor.State{}, fail("query", name, ctx.Err())
	case !p.alive():
		return hypervisor.State{Name: name}, nil
	default:
		state.Phase, state.Reason = hypervisor.Unknown, err.Error()
	}
	return state, nil
}

// List implements [hypervisor.Hypervisor].
func (q *QEMU) List(ctx context.Context) ([]hypervisor.State, error) {
	names, err := allNames(q.runDir())
	if err != nil {
		return nil, fmt.Errorf("list the VMs: %w", err)
	}
	var list []hypervisor.State
	for _, name := range names {
		s, err := q.State(ctx, name)
		if err != nil {
			return nil, err
		}
		if s.Phase != hypervisor.Stopped {
			list = append(list, s)
		}
	}
	return list, nil
}

// running returns the VM's processes, or ErrNotRunning.
func (q *QEMU) running(name string) ([]process, error) {
	if !hypervisor.ValidName(name) {
		return nil, hypervisor.ErrNotRunning
	}
	ps, err := processes(q.paths(name).pid)
	if err == nil && len(ps) == 0 {
		err = hypervisor.ErrNotRunning
	}
	return ps, err
}

// monitor talks to the VM's monitor for a short time.
func (q *QEMU) monitor(ctx context.Context, name string, talk func(context.Context, *Monitor) error) error {
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	m, err := DialMonitor(ctx, q.paths(name).monitor, nil)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }() // everything was answered or has failed
	return talk(ctx, m)
}

// status is the answer to query-status.
type status struct {
	Status  string `json:"status"`
	Running bool   `json:"running"`
}

func runState(ctx context.Context, m *Monitor) (s status, err error) {
	err = m.Execute(ctx, "query-status", nil, &s)
	return s, err
}

func (s status) phase() hypervisor.Phase {
	if s.Running {
		return hypervisor.Running
	}
	return hypervisor.Paused
}

func (s status) reason() string {
	if s.Running {
		return ""
	}
	return s.Status
}

func anyAlive(ps []process) bool { return slices.ContainsFunc(ps, process.alive) }

// checkSockets refuses what bind(2) and connect(2) would, but says which path.
func checkSockets(p paths, g hypervisor.Guest) error {
	sockets := []string{p.monitor, p.events, p.agent}
	for _, d := range g.Disks {
		sockets = append(sockets, d.Socket) // "" for a local one
	}
	for _, s := range sockets {
		if len(s) > maxSunPath {
			return fmt.Errorf("the path of the unix socket %s has %d bytes, the system allows %d; choose a shorter directory", s, len(s), maxSunPath)
		}
	}
	return nil
}

// lock takes the flock on path, waiting for another starter until ctx ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
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
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close() // never locked
			return nil, fmt.Errorf("wait for another start of this VM: %w", ctx.Err())
		}
	}
}

func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &hypervisor.VMError{Op: op, Name: name, Err: err}
}
