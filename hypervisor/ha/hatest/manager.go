package hatest

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// A manager is polluxha on one host: ha.Core and what the runtime around it does.
type manager struct {
	h     *Host
	w     *World
	core  decider  // nil: it does not run
	life  int      // of the process
	since int64    // when it was started, µs
	saved ha.Saved // on disk

	beat      *ha.Beat            // what heartbeats carry; nil before the first order. It never changes
	queues    map[string][]func() // of the orders for one object; the first one is under way
	starting  map[string]func(error)
	links     [lanes]map[string]bool
	told      map[string]ha.Storage
	seen      map[string]ha.Seen
	answers   map[uint64]string // of the operator's commands: how they ended
	sessions  int
	wanted    []ha.Command // by the operator, so far
	wish      int          // number of the service's wish that was the last one given here
	commands  uint64
	stepping  bool
	pending   []ha.Event
	asleep    int64 // until when it stands still
	kept      []func()
	takes     map[string]string // of each service what this manager said when it took it last
	leaseEnds int64             // µs: what polluxd was told last; survives the manager
}

// A decider is what decides: ha.Core, but for the tests of this package's own checks.
type decider interface {
	Step(now ha.Tick, e ha.Event) []ha.Order
	Snapshot() ha.Snapshot
}

func newManager(h *Host) *manager {
	return &manager{h: h, w: h.w, answers: map[uint64]string{}, takes: map[string]string{}}
}

// start starts polluxha, crash ends it, die too.
func (m *manager) start() {
	if m.core != nil || !m.h.power {
		return
	}
	cfg := m.w.cfg.cluster(m.w, m.h)
	var core decider
	if m.w.decide != nil {
		core = m.w.decide()
	} else if c, err := ha.New(cfg); err != nil {
		m.w.fail("%s: the core refuses its configuration: %v", m.h.name, err)
		return
	} else {
		core = c
	}
	if half := m.h.half; half != nil {
		if err := half.open(); err != nil {
			m.w.trace("%s: polluxha does not start: %v", m.h.name, err)
			m.w.after(second, m.h.awake(m.start))
			return
		}
	}
	m.core, m.since = core, m.w.now
	m.life++
	m.sessions++
	m.beat = nil
	m.queues, m.starting = map[string][]func(){}, map[string]func(error){}
	m.told, m.seen = map[string]ha.Storage{}, map[string]ha.Seen{}
	for l := range m.links {
		m.links[l] = map[string]bool{}
	}
	m.w.trace("%s: polluxha starts", m.h.name)
	m.step(ha.Event{Kind: ha.Started, Session: fmt.Sprintf("%s%d", m.h.name, m.sessions), Boot: m.h.bootID(), Saved: m.saved})
	m.step(ha.Event{Kind: ha.HealthChanged, Health: ha.Health{MemoryBytes: 16 << 30, FreeBytes: 8 << 30}})
	for _, p := range m.h.pairs {
		m.storage(p)
	}
	for _, s := range m.w.Services {
		if s.has(m.h) {
			m.service(s)
		}
	}
	m.w.after(0, m.awake(m.ticks))
	m.w.after(m.w.dice.between(0, 200*millisecond), m.awake(m.beats))
	m.w.after(pollEvery, m.awake(m.polls))
}

func (m *manager) crash() {
	if m.core != nil {
		m.w.trace("%s: polluxha crashes", m.h.name)
		m.die()
	}
}

func (m *manager) die() {
	if m.core != nil {
		m.core = nil
		m.asleep, m.kept = 0, nil
		m.life++
		if m.h.half != nil {
			m.h.half.close()
		}
	}
}

// awake is f for the time when this process runs.
func (m *manager) awake(f func()) func() {
	life := m.life
	return m.h.awake(func() {
		switch {
		case m.core == nil || m.life != life:
		case m.w.now < m.asleep:
			m.kept = append(m.kept, f)
		default:
			f()
		}
	})
}

// pause stops this process, and no other one of its host, as SIGSTOP does.
func (m *manager) pause(ms int64) {
	if m.core == nil || !m.h.power {
		return
	}
	m.w.trace("%s: polluxha stands still for %d ms", m.h.name, ms)
	m.asleep = m.w.now + ms*millisecond
	life := m.life
	m.w.at(m.asleep, m.h.awake(func() {
		if m.life != life || m.w.now < m.asleep {
			return
		}
		m.w.trace("%s: polluxha goes on", m.h.name)
		m.since = m.w.now
		kept := m.kept
		m.kept = nil
		for _, f := range kept {
			f()
		}
	}))
}

// awakeWith is awake for one who is told something.
func (m *manager) awakeWith(f func(answer)) func(answer) {
	life := m.life
	boot := m.h.boot
	return func(x answer) {
		if m.life == life && m.h.boot == boot {
			m.awake(func() { f(x) })()
		}
	}
}

// able reports whether the manager has been able to act since t.
func (m *manager) able(t int64) bool {
	h := m.h
	return m.core != nil && h.running() && m.w.now >= m.asleep && m.since <= t && h.woke <= t && h.unkillable == 0
}

// step gives the core an event and begins what it orders.
func (m *manager) step(e ha.Event) {
	if m.core == nil || m.w.failure != nil {
		return
	}
	if m.w.now < m.asleep {
		life := m.life
		m.kept = append(m.kept, func() {
			if m.life == life {
				m.step(e)
			}
		})
		return
	}
	if m.stepping { // what an order brings about at once
		m.pending = append(m.pending, e)
		return
	}
	m.stepping = true
	life := m.life
	for m.life == life {
		if m.w.ring != nil && e.Kind != ha.Ticked && e.Kind != ha.Heartbeat {
			m.w.trace("%s: > %s", m.h.name, eventText(&e))
		}
		m.carryOut(m.core.Step(ha.Tick(m.h.tick()), e))
		if len(m.pending) == 0 {
			break
		}
		e = m.pending[0]
		m.pending = m.pending[1:]
	}
	m.pending, m.stepping = nil, false
}

// carryOut begins orders. Those after a Persist wait for it.
func (m *manager) carryOut(orders []ha.Order) {
	for i := range orders {
		o := &orders[i]
		if m.w.ring != nil && o.Kind != ha.SendBeat && o.Kind != ha.Renew && o.Kind != ha.TellLease && o.Kind != ha.Observe {
			m.w.trace("%s: < %s", m.h.name, orderText(o))
		}
		if m.w.resting != nil {
			m.w.resting(m.h, o)
		}
		switch o.Kind {
		case ha.Persist:
			rest := slices.Clone(orders[i+1:])
			m.persist(*o, func() { m.carryOut(rest) })
			return
		case ha.Renew, ha.Observe, ha.TellLease: // these come all the time
			m.often(o)
		case ha.Note:
			m.noted(o)
		case ha.Hook:
		default:
			m.do(*o)
		}
	}
}

func (m *manager) persist(o ha.Order, then func()) {
	m.w.after(m.w.dice.between(500, 4000), m.awake(func() {
		err := ""
		if m.h.fullDisk > 0 {
			err = "no space left on device"
		} else {
			m.saved = ha.Saved{
				Boot: o.Saved.Boot, Met: slices.Clone(o.Saved.Met), Left: slices.Clone(o.Saved.Left), Wishes: slices.Clone(o.Saved.Wishes),
				Shots: slices.Clone(o.Saved.Shots), Overrides: slices.Clone(o.Saved.Overrides),
			}
		}
		then()
		m.step(ha.Event{Kind: ha.OrderDone, Order: o.ID, Err: err})
	}))
}

// ticks lets time pass.
func (m *manager) ticks() {
	m.step(ha.Event{Kind: ha.Ticked, Minute: int(m.w.now / second / 60 % 1440)})
	m.w.after(m.w.cfg.Tick*millisecond*9/10+m.w.dice.between(0, m.w.cfg.Tick*millisecond/10), m.awake(m.ticks))
}

// clockJumped: the next tick is much later.
func (m *manager) clockJumped() { m.w.after(0, m.awake(func() { m.step(ha.Event{Kind: ha.Ticked}) })) }

// beats sends heartbeats over both lanes.
func (m *manager) beats() {
	m.sendBeats()
	m.lookAtLinks()
	m.w.after(int64(m.w.cfg.Timing.Keepalive)*millisecond, m.awake(m.beats))
}

// pollEvery is how often polluxha looks at what it knows by events, too, µs: not
// every number of a status has one.
const pollEvery = 10 * second

func (m *manager) polls() {
	for _, p := range m.h.pairs {
		m.storage(p)
	}
	m.w.after(pollEvery, m.awake(m.polls))
}

func (m *manager) sendBeats() {
	beat := m.beat
	if beat == nil {
		return
	}
	for _, o := range m.w.Hosts {
		if o == m.h {
			continue
		}
		for l := range lanes {
			to := o.manager
			m.w.net.send(l, m.h.id, o.id, func() {
				hear := func() {
					to.step(ha.Event{Kind: ha.Heartbeat, Node: m.h.name, Link: int(l), Beat: *beat})
				}
				switch {
				case to.core == nil:
				case to.h.running():
					hear()
				default:
					to.awake(hear)()
				}
			})
		}
	}
}

// lookAtLinks says which control channels stand.
func (m *manager) lookAtLinks() {
	for _, o := range m.w.Hosts {
		if o == m.h {
			continue
		}
		for l := range lanes {
			up := m.w.net.open(l, m.h.id, o.id) && m.w.net.open(l, o.id, m.h.id) && o.running() && o.manager.core != nil
			if up != m.links[l][o.name] {
				m.links[l][o.name] = up
				m.step(ha.Event{Kind: ha.LinkChanged, Node: o.name, Link: int(l), Up: up})
			}
		}
	}
}

// statusChanged: polluxd's event stream says so, a moment later.
func (h *Host) statusChanged(p *Pair) {
	m := h.manager
	if m.core != nil {
		h.w.after(h.w.dice.between(200, 3000), m.awake(func() { m.storage(p) }))
	}
}

// storage reports a resource, if it is not as it was told.
func (m *manager) storage(p *Pair) {
	s := p.storage(m.h)
	if m.told[p.name] == s {
		return
	}
	m.told[p.name] = s
	m.step(ha.Event{Kind: ha.StorageChanged, Storage: s})
}

// storage is what polluxd on h says of p.
func (p *Pair) storage(h *Host) ha.Storage {
	i := p.side(h)
	n := p.w.Nodes[i]
	s := ha.Storage{Resource: p.name, Role: "", Disk: ha.Diskless, PeerDisk: ha.DUnknown}
	if !n.Alive() {
		s.Problem = "polluxd does not answer"
		return s
	}
	snap := n.Snapshot()
	v, t := snap.Volumes[pairVolume], snap.Term
	s.Up, s.Role = true, ha.Role(snap.Role.String())
	s.Disk, s.PeerDisk = ha.Disk(v.State.Disk.String()), ha.Disk(v.State.Pdsk.String())
	if s.Connected = snap.Conn >= drbd.Connected; s.Connected {
		s.PeerRole = ha.Role(snap.PeerRole.String())
	}
	s.DirtyBytes, s.Generation = v.OutOfSyncBytes, v.UUIDs.Current&^1
	s.Term, s.Promised, s.Owned, s.Sole, s.Marked = t.Term, t.Promised, t.Owned, t.Sole, t.Marked
	s.TermUnknown, s.Frozen = t.Unknown, t.Frozen
	s.StandsBack, s.AsksPeer, s.PeerStandsBack = t.StandsBack, t.AsksPeer, t.PeerStandsBack
	if p.role[i].wants {
		s.Frozen = "this node was Primary before polluxd was restarted"
	}
	s.ReadsFrozen, s.Incarnation = p.frozen[i], p.export[i]
	if p.client[i] != nil {
		s.Clients = 1
	}
	return s
}

// service reports a service, if it is not as it was told.
func (m *manager) service(s *Service) {
	seen := ha.Seen{Phase: ha.PhaseStopped, Addresses: m.h.addresses[s.id]}
	if v := m.h.vm(s); v != nil && v.phase != vmBooting {
		seen.Phase, seen.Incarnation = ha.PhaseRunning, v.inc
	}
	if old, ok := m.seen[s.name]; ok && old == seen {
		return
	}
	m.seen[s.name] = seen
	m.step(ha.Event{Kind: ha.ServiceChanged, Service: s.name, Seen: seen})
}

// vmEnded: the hypervisor says so.
func (m *manager) vmEnded(s *Service) {
	if m.core != nil {
		m.w.after(m.w.dice.between(200, 20000), m.awake(func() { m.service(s) }))
	}
}

// arbiterChanged: the arbiter's Watch has called.
func (m *manager) arbiterChanged() {
	if m.core != nil {
		m.awake(func() { m.step(ha.Event{Kind: ha.ArbiterChanged}) })()
	}
}

// arbiterChangedHere: this host's half of the arbiter has written something.
func (m *manager) arbiterChangedHere() {
	if m.core != nil {
		m.w.after(m.w.dice.between(0, millisecond), m.awake(func() { m.step(ha.Event{Kind: ha.ArbiterChanged}) }))
	}
}

// claimed is the event that answers a claim.
func claimed(id ha.OrderID, x answer) ha.Event {
	e := ha.Event{Kind: ha.ClaimDone, Order: id, Record: x.rec, Outcome: ha.Granted}
	if x.err == nil {
		return e
	}
	e.Err = x.err.Error()
	if refused := (*arbiter.RefusedError)(nil); errors.As(x.err, &refused) {
		e.Record = refused.Record
	}
	e.Outcome = ha.Unreachable
	for _, c := range []struct {
		err error
		out ha.Outcome
	}{{arbiter.ErrChanged, ha.Changed}, {arbiter.ErrHeld, ha.Held}, {arbiter.ErrStale, ha.Stale}, {arbiter.ErrBehind, ha.Behind}, {arbiter.ErrInvalid, ha.Invalid}} {
		if errors.Is(x.err, c.err) {
			e.Outcome = c.out
		}
	}
	return e
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
