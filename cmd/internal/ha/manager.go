package ha

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/hook"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Times of the manager, our own; milliseconds where a Tick.
const (
	tickEvery    ha.Tick = 100 // the core's contract
	pollEvery            = 10 * time.Second
	orderTimeout         = 30 * time.Second // of an order that names none
)

// storage is polluxd, as the manager needs it.
type storage interface {
	do(ctx context.Context, req adm.Request, data any) error
	watch(ctx context.Context, w storageWatcher)
	close()
}

// peers is the control channel to the other nodes, as the manager needs it.
type peers interface {
	// setBeat is what heartbeats carry from now on; the next one goes at once.
	setBeat(beat []byte)
	// ask sends a request to another node's polluxha and returns its answer.
	ask(ctx context.Context, node, method string, body []byte) ([]byte, error)
	// links tells how each path to a node is.
	links(node string) []adm.HALink
	version(node string) string
	close()
}

// parts are what a manager works with; tests have others.
type parts struct {
	settings *conf.Daemon
	storage  storage
	arbiter  arbiter.Arbiter
	peers    peers
	work     func(v *conf.VM) workload // of this node; nil if it has no copy
	ips      addresses
	leaderIP floating // of the cluster's leader; zero: none
	saved    store[ha.Saved]
	events   *eventLog
	audit    *auditLog
	watchdog *watchdog
	fence    func(ctx context.Context, node string) error
	confirm  func(node string) error // that a node is off, to the arbiter that fences
	hook     func(key string, name ha.HookName, tables []conf.Hooks, in hook.Input)
	selfTest func() *time.Time        // of the fence agents; the result is nil if there was none
	playDead func(hold time.Duration) // the end of this process, for a drill
	clock    clock
	wall     func() time.Time
	log      zerolog.Logger
}

// A manager runs one core: its run is the only goroutine that touches it.
type manager struct {
	parts
	core    *ha.Core
	self    string // this node
	name    string // of the cluster
	session string
	boot    string
	box     *mailbox
	lanes   lanes
	ctx     context.Context // of everything that runs for the manager
	cancel  context.CancelFunc
	workers sync.WaitGroup

	lastStep atomic.Int64 // clock, ms: heartbeats stop when the core does

	// Of run's goroutine.
	conf     *configuration
	nextTick ha.Tick
	step     uint64 // number of the last Step
	persist  uint64 // the step whose Persist is under way; 0: none
	held     []heldOrder
	seen     map[string]ha.Seen
	stores   map[string]ha.Storage
	seqs     map[string]uint64 // of the statuses that stores were made of
	health   ha.Health
	downText string // why polluxd does not answer, as it was logged
	unsaved  error  // why Saved could not be written
	toSave   ha.Saved
	commands map[uint64]chan ha.Order
	lastID   uint64
	beats    map[string]beatID
	windows  map[string]bool // of each service: its failback window holds
	services map[string]*watcher
	lives    map[string]*life // of services, also of those that have another watcher by now

	total, available uint64 // this machine's memory, and what of it is free, as last measured; bytes
}

// beatID names a heartbeat's content.
type beatID struct {
	session string
	seq     uint64
	raw     string
}

func newManager(p parts, c *configuration, cfg ha.Config, session, boot string) (*manager, error) {
	core, err := ha.New(cfg)
	if err != nil {
		return nil, err
	}
	m := &manager{
		parts: p, core: core, self: c.self(), name: c.cluster.Name, session: session, boot: boot, box: newMailbox(), conf: c,
		seen: map[string]ha.Seen{}, stores: map[string]ha.Storage{}, seqs: map[string]uint64{}, commands: map[uint64]chan ha.Order{},
		beats: map[string]beatID{}, windows: map[string]bool{}, services: map[string]*watcher{}, lives: map[string]*life{},
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

func (m *manager) now() ha.Tick { return max(1, ha.Tick(m.clock.now())) }

// run steps the core until ctx is done. It leaves everything as it is: VMs run
// on, the lease ends by itself, and polluxd goes on.
func (m *manager) run(ctx context.Context, saved ha.Saved) error {
	alarm, err := m.clock.alarm()
	if err != nil {
		return err
	}
	defer alarm.close()
	defer m.stop()
	m.event(ha.Event{Kind: ha.Started, Session: m.session, Boot: m.boot, Saved: saved})
	m.toSave = saved
	m.start()
	m.nextTick = m.now()
	for {
		alarm.set(int64(m.nextTick))
		select {
		case <-ctx.Done():
			return nil
		case <-m.box.wake:
		case <-alarm.fired():
		}
		for _, f := range m.box.take() {
			f()
		}
		now := m.now()
		m.lastStep.Store(int64(now))
		if now >= m.nextTick {
			m.nextTick = now + tickEvery
			t := m.wall()
			m.event(ha.Event{Kind: ha.Ticked, Minute: 60*t.Hour() + t.Minute()})
		}
	}
}

// start begins to look at everything.
func (m *manager) start() {
	if m.conf.cluster.Node(m.self).Kind != conf.NodeWitness {
		m.worker(func() { m.storage.watch(m.ctx, m) })
	}
	m.worker(func() { m.arbiter.Watch(m.ctx, func() { m.post(ha.Event{Kind: ha.ArbiterChanged}) }) })
	m.watchServices()
	m.remember()
	m.worker(m.poll)
}

func (m *manager) stop() {
	m.cancel()
	m.workers.Wait()
	m.lanes.wait()
	for _, c := range m.commands {
		close(c)
	}
	m.commands = nil
}

// worker runs f beside the manager, until that stops.
func (m *manager) worker(f func()) {
	m.workers.Add(1)
	go func() {
		defer m.workers.Done()
		f()
	}()
}

// post brings an event in, from any goroutine.
func (m *manager) post(e ha.Event) { m.box.post(func() { m.event(e) }) }

// do runs f on the manager's goroutine and waits for it. It reports false if the
// manager has stopped.
func (m *manager) do(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	m.box.post(func() {
		f()
		close(done)
	})
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-m.ctx.Done():
	}
	return false
}

// event steps the core and begins what it orders.
func (m *manager) event(e ha.Event) {
	m.step++
	orders := m.core.Step(m.now(), e)
	for i := range orders {
		m.dispatch(orders[i], m.step)
	}
}

// poll is the backstop behind everything that is told by events.
func (m *manager) poll() {
	for {
		m.measureMemory()
		m.box.post(m.pollAll)
		select {
		case <-m.ctx.Done():
			return
		case <-time.After(pollEvery):
		}
	}
}

// pollAll looks at windows, and at what could not be saved.
func (m *manager) pollAll() {
	if m.unsaved != nil && m.persist == 0 {
		m.save(ha.Order{Kind: ha.Persist, Saved: m.toSave})
	}
	m.forgetRemoved()
	if m.windowsChanged() {
		m.reconfigure(m.conf) //nolint:errcheck // it was valid before
	}
}

// windowsChanged reports whether a failback window has begun or ended.
func (m *manager) windowsChanged() bool {
	now, changed := m.wall(), false
	for _, v := range m.conf.vms {
		if holds := v.FailbackWindow.Holds(now); holds != m.windows[v.Name] {
			m.windows[v.Name], changed = holds, true
		}
	}
	return changed
}

// reconfigure hands the core a configuration that was checked.
func (m *manager) reconfigure(c *configuration) error {
	cfg, err := c.core(m.wall())
	if err != nil {
		return err
	}
	m.conf = c
	m.event(ha.Event{Kind: ha.Reconfigured, Config: &cfg})
	// What is new to the core may have been seen long ago.
	for _, name := range sortedKeys(m.stores) {
		if m.manages(name) {
			m.event(ha.Event{Kind: ha.StorageChanged, Storage: m.stores[name]})
		}
	}
	for _, name := range sortedKeys(m.seen) {
		if c.vm(name) != nil {
			m.event(ha.Event{Kind: ha.ServiceChanged, Service: name, Seen: m.seen[name]})
		}
	}
	m.watchServices()
	m.remember()
	return nil
}

// reportHealth tells the core what this node has left, in steps that are worth a heartbeat.
func (m *manager) reportHealth(total, free uint64) {
	h := ha.Health{MemoryBytes: total, FreeBytes: free}
	if m.unsaved != nil {
		h.Problem = fmt.Sprintf("what must be remembered can't be written: %v: make room in %s", m.unsaved, m.settings.StateDir)
	}
	if diff := max(h.FreeBytes, m.health.FreeBytes) - min(h.FreeBytes, m.health.FreeBytes); diff < memoryStep &&
		h.Problem == m.health.Problem && h.MemoryBytes == m.health.MemoryBytes {
		return
	}
	m.health = h
	m.event(ha.Event{Kind: ha.HealthChanged, Health: h})
}

// memoryStep is by how much free memory must have changed to be told, bytes.
const memoryStep = 64 << 20
