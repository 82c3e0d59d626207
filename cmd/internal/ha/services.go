package ha

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
)

// workload is one VM, or the units in its place, on this machine. Its methods are
// safe for concurrent use.
type workload interface {
	// check says why it can't be started here, whatever the storage says.
	check(ctx context.Context) error
	start(ctx context.Context, incarnation string) error
	// stop asks the guest and waits; one that is not there is stopped.
	stop(ctx context.Context) error
	// kill returns when it is gone for certain.
	kill(ctx context.Context) error
	// look finds out what runs. An error means that nobody knows.
	look(ctx context.Context) (ha.Seen, error)
	// untouched is the memory that it was promised and has not taken yet, in bytes,
	// when look looked last; 0 if it did not run.
	untouched() uint64
	// watch calls changed whenever look may have something new to tell, until it
	// is gone or ctx is done.
	watch(ctx context.Context, changed func()) error
	// probe asks whether it serves; nil says that it does, or that nobody asks.
	probe(ctx context.Context) error
	// addressesFree says who else on the network has one of its addresses.
	addressesFree(ctx context.Context) error
	addIPs(ctx context.Context) error
	removeIPs(ctx context.Context) error
}

// lookTimeout is how long a hypervisor may take to say how a VM is. Our own.
const lookTimeout = 5 * time.Second

// A watcher looks after one service on this node: whatever happens to it is
// reported when it happens, and every pollEvery besides.
type watcher struct {
	m      *manager
	vm     *conf.VM
	work   workload
	wake   chan struct{}
	cancel context.CancelFunc
	life   *life
}

// A life is what is being done to one service of this machine, whoever watches it: a
// watcher is replaced when the VM's file has changed.
type life struct {
	mu    sync.Mutex
	kills uint64     // that were ordered: a start from before one is not begun any more
	under *operation // start or stop that is under way
}

// An operation can be cut off by a kill.
type operation struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

func (m *manager) lifeOf(service string) *life {
	if m.lives[service] == nil {
		m.lives[service] = &life{}
	}
	return m.lives[service]
}

func (l *life) killed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kills
}

// watchServices has a watcher for each service of the configuration, and no other.
func (m *manager) watchServices() {
	wanted := map[string]bool{}
	for _, v := range m.conf.vms {
		wanted[v.Name] = true
		if !m.conf.isMine(v) {
			continue
		}
		work := m.work(v)
		if work == nil {
			continue // the core hears of no state, and starts nothing
		}
		if old := m.services[v.Name]; old != nil {
			if old.vm.Hash() == v.Hash() {
				continue
			}
			old.cancel()
		}
		w := &watcher{m: m, vm: v, work: work, wake: make(chan struct{}, 1), life: m.lifeOf(v.Name)}
		ctx, cancel := context.WithCancel(m.ctx)
		w.cancel = cancel
		m.services[v.Name] = w
		m.worker(func() { w.run(ctx) })
	}
	for name, w := range m.services {
		if !wanted[name] {
			w.cancel()
			delete(m.services, name)
			delete(m.seen, name)
		}
	}
}

// run looks whenever there is a reason to.
func (w *watcher) run(ctx context.Context) {
	var events func() // ends the watch of a running VM
	watchEnd := make(chan struct{}, 1)
	defer func() {
		if events != nil {
			events()
			<-watchEnd
		}
	}()
	p := prober{w: w}
	for ctx.Err() == nil {
		seen := w.look(ctx)
		if seen.Phase == ha.PhaseRunning {
			p.apply(&seen)
		} else {
			p.reset()
		}
		w.report(ctx, seen)
		if seen.Phase != ha.PhaseStopped && seen.Phase != ha.PhaseUnknown && events == nil {
			watchCtx, stop := context.WithCancel(ctx)
			events = stop
			go func() {
				if err := w.work.watch(watchCtx, w.again); err != nil && watchCtx.Err() == nil {
					w.m.log.Debug().Str("vm", w.vm.Name).Err(err).Msg("its events can't be followed; it is polled")
				}
				watchEnd <- struct{}{}
			}()
		}
		next := time.NewTimer(p.pause(seen))
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-next.C:
			p.due(ctx, seen)
		case <-watchEnd:
			events()
			events = nil
		}
		next.Stop()
	}
}

// again has the watcher look; from any goroutine.
func (w *watcher) again() {
	select {
	case w.wake <- struct{}{}:
	default: // it is about to
	}
}

func (w *watcher) look(ctx context.Context) ha.Seen {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	seen, err := w.work.look(ctx)
	if err != nil {
		return ha.Seen{Phase: ha.PhaseUnknown, Problem: err.Error()}
	}
	if seen.Phase == ha.PhaseStopped && seen.Problem == "" {
		seen.Problem = text(w.work.check(ctx))
	}
	return seen
}

// report tells the core if it is news.
func (w *watcher) report(ctx context.Context, seen ha.Seen) {
	if ctx.Err() != nil {
		return
	}
	w.m.box.post(func() {
		name := w.vm.Name
		if w.m.services[name] != w {
			return
		}
		if old, known := w.m.seen[name]; known && old == seen {
			return
		}
		w.m.seen[name] = seen
		if w.m.total > 0 {
			w.m.reportMemory() // before the core takes it for one that runs
		}
		w.m.event(ha.Event{Kind: ha.ServiceChanged, Service: name, Seen: seen})
	})
}

// A prober asks a running VM whether it serves, by its monitor. It is for the
// watcher's goroutine.
type prober struct {
	w       *watcher
	since   time.Time // it runs; zero: it does not
	wasWell bool      // since then
	failed  int       // probes in a row
	last    error
}

func (p *prober) reset() { *p = prober{w: p.w} }

// pause is the time until something is to be done unasked.
func (p *prober) pause(seen ha.Seen) time.Duration {
	if (seen.Phase == ha.PhaseRunning || seen.Phase == ha.PhaseFailed) && p.w.vm.Monitor.Kind != "process" {
		return p.w.vm.Monitor.Interval.Duration
	}
	return pollEvery
}

// due probes if the time has come. A VM that starts has start-timeout to serve.
func (p *prober) due(ctx context.Context, seen ha.Seen) {
	if p.since.IsZero() || p.w.vm.Monitor.Kind == "process" || seen.Phase == ha.PhaseStopped {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, p.w.vm.Monitor.Timeout.Duration)
	defer cancel()
	p.last = p.w.work.probe(ctx)
	switch {
	case p.last == nil:
		p.failed, p.wasWell = 0, true
	case p.wasWell || time.Since(p.since) > p.w.vm.StartTimeout.Duration:
		p.failed++
	}
}

// apply adds what the probes said to what is seen of a running VM.
func (p *prober) apply(seen *ha.Seen) {
	if p.since.IsZero() {
		p.since = time.Now()
	}
	if p.failed > 0 {
		seen.Monitor = fmt.Sprintf("%d of %d probes failed: %v", p.failed, p.w.vm.Monitor.Failures, p.last)
	}
	if p.failed >= p.w.vm.Monitor.Failures {
		seen.Phase = ha.PhaseFailed
	}
}

// toService carries out an order about a service. A kill ends the start or stop
// that is under way.
func (m *manager) toService(o ha.Order, done func(func(context.Context, ha.Order) error) func()) {
	if o.Service == ha.LeaderResource {
		m.lanes.do("leader", done(m.leaderAddress))
		return
	}
	w := m.services[o.Service]
	if w == nil {
		// Later: the core is in the midst of a step.
		m.box.post(func() { m.refuse(o, fmt.Errorf("vm %s: it is not configured on this node", o.Service)) })
		return
	}
	if o.Kind == ha.KillService {
		m.overtaken(o.Service)
		w.life.mu.Lock()
		w.life.kills++
		w.life.mu.Unlock()
		m.worker(done(func(ctx context.Context, o ha.Order) error {
			if err := w.kill(ctx); err != nil {
				return err
			}
			if err := m.watchdog.disarm(o.Service); err != nil {
				m.log.Error().Err(err).Str("vm", o.Service).Msg("the VM is gone, and this machine is reset nevertheless")
			}
			return nil
		}))
		return
	}
	killed := w.life.killed()
	m.lanes.do("vm "+o.Service, done(func(ctx context.Context, o ha.Order) error { return w.perform(ctx, o, killed) }))
}

// overtaken drops the starts of a service that wait for a Persist: it is killed.
func (m *manager) overtaken(service string) {
	m.held = slices.DeleteFunc(m.held, func(h heldOrder) bool {
		isStart := h.Kind == ha.StartService && h.Service == service
		if isStart {
			m.box.post(func() { m.refuse(h.Order, errOvertaken) })
		}
		return isStart
	})
}

var errOvertaken = errors.New("it was to be ended before its start had begun")

// leaderAddress adds or removes the cluster's own floating address.
func (m *manager) leaderAddress(ctx context.Context, o ha.Order) error {
	if o.Kind == ha.AddIPs {
		return m.ips.take(ctx, m.leaderIP)
	}
	return m.ips.remove(ctx, m.leaderIP.prefix.Addr())
}

// giveUpLeaderAddress is for the end of the process: the next leader takes the address
// after the lease, and then nobody here could remove it.
func (m *manager) giveUpLeaderAddress() {
	if !m.leaderIP.prefix.IsValid() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endLimit/2)
	defer cancel()
	if err := m.ips.remove(ctx, m.leaderIP.prefix.Addr()); err != nil {
		m.log.Warn().Err(err).Msg("the management address stays on this node")
	}
}

// removeStrays takes away what an earlier configuration had put here: addresses that
// nothing names any more. While a file can't be read nobody knows what it names.
func removeStrays(ctx context.Context, ips addresses, c *configuration) error {
	if len(c.problems)+len(c.left) > 0 {
		return nil
	}
	held, err := ips.held(ctx)
	if err != nil {
		return err
	}
	named := map[netip.Addr]bool{c.cluster.LeaderIP.Addr(): true}
	for _, v := range c.vms {
		for _, ip := range v.IPs {
			named[ip.Address.Addr()] = true
		}
	}
	var errs []error
	for _, a := range held {
		if !named[a] {
			errs = append(errs, ips.remove(ctx, a))
		}
	}
	return errors.Join(errs...)
}

// perform carries out an order that was given when the service had been killed so often.
func (w *watcher) perform(ctx context.Context, o ha.Order, killed uint64) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("vm %s: its turn did not come in time", w.vm.Name)
	}
	if o.Kind == ha.StartService || o.Kind == ha.StopService {
		var end func()
		if ctx, end = w.life.begin(ctx, o.Kind == ha.StopService, killed); end == nil {
			return fmt.Errorf("vm %s: %w", w.vm.Name, errOvertaken)
		}
		defer end()
	}
	var err error
	switch o.Kind {
	case ha.StartService:
		// An address that somebody else has is not taken from him. An owner that was
		// deposed is known to be nobody: its kernel may still answer.
		if !o.Deposed {
			err = w.work.addressesFree(ctx)
		}
		if err == nil {
			err = w.work.start(ctx, o.Incarnation)
		}
	case ha.StopService:
		err = w.work.stop(ctx)
	case ha.AddIPs:
		err = w.work.addIPs(ctx)
	case ha.RemoveIPs:
		err = w.work.removeIPs(ctx)
	default:
		panic(fmt.Sprintf("polluxha: %v is no order for a service", o.Kind))
	}
	w.lookNow(ctx)
	return err
}

// begin makes an operation that kill can cut off. end is nil if a kill came first, which
// a stop need not mind.
func (l *life) begin(ctx context.Context, isStop bool, killed uint64) (_ context.Context, end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !isStop && l.kills != killed {
		return ctx, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	op := &operation{cancel, make(chan struct{})}
	l.under = op
	return ctx, func() {
		cancel()
		l.mu.Lock()
		l.under = nil
		l.mu.Unlock()
		close(op.ended)
	}
}

// lookNow reports what an operation has brought about before it is answered.
func (w *watcher) lookNow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()
	w.report(ctx, w.look(ctx))
	w.again()
}

// kill ends the VM and whatever is being done to it. It is killed once more when a
// start that was cut off has ended, which may have got so far meanwhile.
func (w *watcher) kill(ctx context.Context) error {
	w.life.mu.Lock()
	op := w.life.under
	w.life.mu.Unlock()
	if op != nil {
		op.cancel()
	}
	err := w.work.kill(ctx)
	if op != nil {
		select {
		case <-op.ended:
			err = w.work.kill(ctx)
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("vm %s: a start or stop does not end", w.vm.Name))
		}
	}
	w.lookNow(ctx)
	return err
}
