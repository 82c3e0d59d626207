package hvtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
)

// Machine is a pretended computer on which [Fake]s run VMs. Several Fakes on
// one Machine are several programs on one computer. Safe for concurrent use.
// The zero value is ready.
type Machine struct {
	mu      sync.Mutex
	lastPID int
	vms     map[string]*fakeVM
	deaf    map[string]bool
	refuse  map[string]error
	agents  map[string]bool
	calls   []string
}

type fakeVM struct {
	guest   hypervisor.Guest
	pid     int
	since   time.Time
	paused  string             // reason; "" = runs
	gone    chan struct{}      // closed at its end
	events  []hypervisor.Event // all that have happened
	changed chan struct{}      // closed and replaced at each of them
}

// happen files an event for all watchers.
func (vm *fakeVM) happen(kind hypervisor.EventKind, detail string) {
	vm.events = append(vm.events, hypervisor.Event{Name: vm.guest.Name, Kind: kind, Detail: detail, At: time.Now()})
	close(vm.changed)
	vm.changed = make(chan struct{})
}

// SetDeaf makes the guest name ignore its power button, or listen to it.
func (m *Machine) SetDeaf(name string, deaf bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deaf == nil {
		m.deaf = make(map[string]bool)
	}
	m.deaf[name] = deaf
}

// RefuseStart makes every start of name fail with err; nil ends that.
func (m *Machine) RefuseStart(name string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse == nil {
		m.refuse = make(map[string]error)
	}
	m.refuse[name] = err
}

// Pause stops the guest's CPUs, as QEMU does with reason "io-error". It tells
// whether the VM runs.
func (m *Machine) Pause(name, reason string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	vm := m.vms[name]
	if vm != nil {
		vm.paused = reason
		vm.happen(hypervisor.EventPaused, reason)
	}
	return vm != nil
}

// Die ends the VM from outside, as the kernel's killer of memory hogs does. It
// tells whether the VM ran.
func (m *Machine) Die(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.vms[name] == nil {
		return false
	}
	m.end(name)
	return true
}

// Happen reports an event to all who watch the VM. It tells whether it runs.
func (m *Machine) Happen(name string, kind hypervisor.EventKind, detail string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	vm := m.vms[name]
	if vm != nil {
		vm.happen(kind, detail)
	}
	return vm != nil
}

// SetAgent gives the guest name an agent that answers, or takes it away.
func (m *Machine) SetAgent(name string, answers bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.agents == nil {
		m.agents = make(map[string]bool)
	}
	m.agents[name] = answers
}

// Guest returns the description that the running VM was started with.
func (m *Machine) Guest(name string) (hypervisor.Guest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	vm, ok := m.vms[name]
	if !ok {
		return hypervisor.Guest{}, false
	}
	return vm.guest, true
}

// Calls returns what was asked of all Fakes that could change something, in
// order, as "start web", "stop web", "kill web", "resume web".
func (m *Machine) Calls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

func (m *Machine) end(name string) {
	m.vms[name].happen(hypervisor.EventGone, "")
	close(m.vms[name].gone)
	delete(m.vms, name)
}

// Fake implements [hypervisor.Hypervisor] on a Machine, without any process.
type Fake struct{ machine *Machine }

var _ hypervisor.Hypervisor = (*Fake)(nil)

// NewFake returns a Fake on m.
func NewFake(m *Machine) *Fake { return &Fake{machine: m} }

// Start implements [hypervisor.Hypervisor].
func (f *Fake) Start(ctx context.Context, g hypervisor.Guest) error {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, "start "+g.Name)
	err := errors.Join(g.Validate(), ctx.Err(), m.refuse[g.Name])
	if m.vms[g.Name] != nil {
		err = hypervisor.ErrRunning
	}
	if err != nil {
		return &hypervisor.VMError{Op: "start", Name: g.Name, Err: err}
	}
	if m.vms == nil {
		m.vms = make(map[string]*fakeVM)
	}
	m.lastPID++
	m.vms[g.Name] = &fakeVM{guest: g, pid: m.lastPID, since: time.Now(), gone: make(chan struct{}), changed: make(chan struct{})}
	return nil
}

// Stop implements [hypervisor.Hypervisor].
func (f *Fake) Stop(ctx context.Context, name string, grace time.Duration) error {
	gone, err := f.press(name)
	if err != nil {
		return &hypervisor.VMError{Op: "stop", Name: name, Err: err}
	}
	wait, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	select {
	case <-gone:
		return nil
	case <-wait.Done():
	}
	err = fmt.Errorf("%w (waited %v)", hypervisor.ErrStillRunning, grace)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return &hypervisor.VMError{Op: "stop", Name: name, Err: err}
}

func (f *Fake) press(name string) (gone chan struct{}, err error) {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, "stop "+name)
	vm := m.vms[name]
	switch {
	case vm == nil:
		return nil, hypervisor.ErrNotRunning
	case vm.paused != "":
		return nil, fmt.Errorf("%w (%s)", hypervisor.ErrPaused, vm.paused)
	case !m.deaf[name]:
		vm.happen(hypervisor.EventShutdown, "guest-shutdown")
		m.end(name)
	}
	return vm.gone, nil
}

// Kill implements [hypervisor.Hypervisor].
func (f *Fake) Kill(ctx context.Context, name string) error {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, "kill "+name)
	err := ctx.Err()
	if m.vms[name] == nil {
		err = hypervisor.ErrNotRunning
	}
	if err != nil {
		return &hypervisor.VMError{Op: "kill", Name: name, Err: err}
	}
	m.end(name)
	return nil
}

// Resume implements [hypervisor.Hypervisor].
func (f *Fake) Resume(ctx context.Context, name string) error {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, "resume "+name)
	err := ctx.Err()
	if m.vms[name] == nil {
		err = hypervisor.ErrNotRunning
	}
	if err != nil {
		return &hypervisor.VMError{Op: "resume", Name: name, Err: err}
	}
	if vm := m.vms[name]; vm.paused != "" {
		vm.paused = ""
		vm.happen(hypervisor.EventResumed, "")
	}
	return nil
}

// State implements [hypervisor.Hypervisor].
func (f *Fake) State(ctx context.Context, name string) (hypervisor.State, error) {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return hypervisor.State{}, &hypervisor.VMError{Op: "query", Name: name, Err: err}
	}
	return m.state(name), nil
}

// List implements [hypervisor.Hypervisor].
func (f *Fake) List(ctx context.Context) ([]hypervisor.State, error) {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var list []hypervisor.State
	for _, name := range slices.Sorted(maps.Keys(m.vms)) {
		list = append(list, m.state(name))
	}
	return list, nil
}

func (m *Machine) state(name string) hypervisor.State {
	vm := m.vms[name]
	if vm == nil {
		return hypervisor.State{Name: name}
	}
	s := hypervisor.State{Name: name, Phase: hypervisor.Running, Reason: vm.paused, PID: vm.pid, Since: vm.since}
	s.Disks, s.MemoryBytes = slices.Clone(vm.guest.Disks), vm.guest.MemoryBytes
	if vm.paused != "" {
		s.Phase = hypervisor.Paused
	}
	return s
}

// Watch implements [hypervisor.Hypervisor]. Several may watch one VM.
func (f *Fake) Watch(ctx context.Context, name string, report func(hypervisor.Event)) error {
	m := f.machine
	m.mu.Lock()
	vm := m.vms[name]
	if vm == nil {
		m.mu.Unlock()
		return &hypervisor.VMError{Op: "watch", Name: name, Err: hypervisor.ErrNotRunning}
	}
	next, first := len(vm.events), m.state(name)
	m.mu.Unlock()
	report(hypervisor.Event{Name: name, Kind: hypervisor.EventWatched, Detail: first.Phase.String(), At: time.Now()})
	for {
		m.mu.Lock()
		events, changed := vm.events[next:], vm.changed
		m.mu.Unlock()
		for _, e := range events {
			if err := ctx.Err(); err != nil {
				return &hypervisor.VMError{Op: "watch", Name: name, Err: err}
			}
			report(e)
			if e.Kind == hypervisor.EventGone {
				return nil
			}
		}
		next += len(events)
		if len(events) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &hypervisor.VMError{Op: "watch", Name: name, Err: ctx.Err()}
		}
	}
}

// AskAgent implements [hypervisor.Hypervisor].
func (f *Fake) AskAgent(ctx context.Context, name string) error {
	m := f.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	vm := m.vms[name]
	err := ctx.Err()
	switch {
	case vm == nil:
		err = hypervisor.ErrNotRunning
	case !m.agents[name] || vm.paused != "":
		err = hypervisor.ErrNoAgent
	}
	if err != nil {
		return &hypervisor.VMError{Op: "ask the agent", Name: name, Err: err}
	}
	return nil
}
