package hatest

import (
	"context"
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/fence"
	"github.com/pollux-project/pollux/replication"
)

var errTimeout = errors.New("it was not done in time")

// do begins an order that is no Persist.
func (m *manager) do(o ha.Order) {
	w, h := m.w, m.h
	switch o.Kind {
	case ha.Resign:
		m.ask(o, func() answer { w.Arbiter.resign(h.name, o.Session); return answer{} },
			func(ctx context.Context, s side) answer { return answer{err: s.Resign(ctx, h.name, o.Session)} }, m.answered(o))
	case ha.Claim:
		m.line(o.Claim.Resource, func(next func()) {
			m.ask(o, func() answer {
				rec, err := w.Arbiter.acquire(o.Claim)
				return answer{rec: rec, err: err}
			}, func(ctx context.Context, s side) answer {
				rec, err := s.Acquire(ctx, o.Claim)
				return answer{rec: rec, err: err}
			}, func(x answer) {
				next()
				if w.duo != nil && x.err == nil {
					w.duo.granted(x.rec)
				}
				m.step(claimed(o.ID, x))
			})
		})
	case ha.Release:
		m.line(o.Resource, func(next func()) {
			m.ask(o, func() answer { return answer{err: w.Arbiter.release(o.Resource, h.name, o.Term)} },
				func(ctx context.Context, s side) answer {
					return answer{err: s.Release(ctx, o.Resource, h.name, o.Term)}
				},
				func(x answer) { next(); m.answered(o)(x) })
		})
	case ha.PromiseTerm, ha.Promote, ha.Demote, ha.Export, ha.Unexport, ha.Failsafe:
		m.line(o.Resource, func(next func()) {
			m.polluxd(o, func(err error) { next(); m.done(o, err) })
		})
	case ha.FreezeReads:
		m.polluxd(o, func(err error) { m.done(o, err) })
	case ha.StartService, ha.StopService, ha.AddIPs, ha.RemoveIPs:
		m.line("/"+o.Service, func(next func()) {
			m.hypervisor(o, func(err error) { next(); m.done(o, err) })
		})
	case ha.KillService:
		m.hypervisor(o, func(err error) { m.done(o, err) })
	case ha.Fence:
		m.fence(o)
	case ha.ConfirmOff:
		m.confirmOff(o)
	case ha.Watchdog:
		w.after(w.dice.between(10*millisecond, 500*millisecond), h.awake(h.Reset))
	case ha.SendBeat:
		m.beat = &o.Beat
		m.sendBeats()
	case ha.Answer:
		if o.Done {
			m.answers[o.Command] = o.Err
			m.commandEnded(o)
		}
	default:
		w.fail("%s: no case for order %d", h.name, o.Kind)
	}
}

// often carries out what is ordered every other second: it keeps nothing of o.
func (m *manager) often(o *ha.Order) {
	a, id, session, resources := m.w.Arbiter, o.ID, o.Session, o.Resources
	switch o.Kind {
	case ha.Renew:
		m.ask(*o, func() answer { a.renew(m.h.name, session); return answer{} }, func(ctx context.Context, s side) answer {
			return answer{err: s.Renew(ctx, m.h.name, session)}
		}, func(x answer) {
			m.step(ha.Event{Kind: ha.OrderDone, Order: id, Err: errText(x.err)})
		})
	case ha.Observe:
		m.ask(*o, func() answer { return answer{view: a.observe(resources)} }, func(ctx context.Context, s side) answer {
			v, err := s.Observe(ctx, resources...)
			return answer{view: v, err: err}
		}, func(x answer) {
			m.step(ha.Event{Kind: ha.ArbiterViewed, Order: id, View: x.view, Err: errText(x.err)})
		})
	default:
		m.tellLease(o.Until)
	}
}

// answered is what the answer to a plain question to the arbiter does.
func (m *manager) answered(o ha.Order) func(answer) {
	return func(x answer) { m.step(ha.Event{Kind: ha.OrderDone, Order: o.ID, Err: errText(x.err)}) }
}

func (m *manager) done(o ha.Order, err error) {
	m.step(ha.Event{Kind: ha.OrderDone, Order: o.ID, Err: errText(err)})
}

// ask asks the arbiter: the single one, or this host's half.
func (m *manager) ask(o ha.Order, single func() answer, half func(context.Context, side) answer, hear func(answer)) {
	if m.h.half != nil {
		m.h.half.ask(m.timeout(&o), half, hear)
		return
	}
	m.w.Arbiter.ask(m.h, m.timeout(&o), single, hear)
}

// timeout is how long an order may take, µs.
func (m *manager) timeout(o *ha.Order) int64 {
	if o.Timeout == 0 {
		return 10 * second
	}
	return int64(o.Timeout) * millisecond
}

// line begins f when the orders before it for the same object have ended; f calls
// next when it has.
func (m *manager) line(object string, f func(next func())) {
	next := func() {
		q := m.queues[object][1:]
		m.queues[object] = q
		if len(q) > 0 {
			m.w.after(0, m.awake(q[0]))
		}
	}
	q := append(m.queues[object], func() { f(next) })
	m.queues[object] = q
	if len(q) == 1 {
		q[0]()
	}
}

// limited is a done that is called once, at the latest when the order's time is over.
func (m *manager) limited(o ha.Order, done func(error)) func(error) {
	over := false
	once := m.life
	end := func(err error) {
		if !over && m.life == once {
			over = true
			done(err)
		}
	}
	m.w.after(m.timeout(&o), m.awake(func() { end(errTimeout) }))
	return end
}

// polluxd carries out an order for a resource.
func (m *manager) polluxd(o ha.Order, done func(error)) {
	w, h := m.w, m.h
	var p *Pair
	for _, x := range h.pairs {
		if x.name == o.Resource {
			p = x
		}
	}
	if p == nil {
		w.fail("%s: an order for %q, which has no copy here", h.name, o.Resource)
		return
	}
	done = m.limited(o, done)
	// Whatever has changed by it is reported before the answer.
	end := func(err error) {
		w.after(w.dice.between(200, 1500), m.awake(func() { m.storage(p); done(err) }))
	}
	w.after(w.dice.between(100, 1000), m.awake(func() {
		n := p.node(h)
		if !n.Alive() {
			end(fmt.Errorf("polluxd does not answer"))
			return
		}
		i := p.side(h)
		switch o.Kind {
		case ha.PromiseTerm:
			n.Command(replication.Command{Kind: replication.CmdPromiseTerm, Term: o.Term}, end)
		case ha.Promote:
			n.Command(replication.Command{Kind: replication.CmdPrimary, Term: o.Term, Sole: o.Sole}, func(err error) {
				if err == nil {
					p.thaw(i)
				}
				end(err)
			})
		case ha.Demote:
			n.Command(replication.Command{Kind: replication.CmdSecondary}, func(err error) {
				if err == nil {
					p.thaw(i)
				}
				end(err)
			})
		case ha.Failsafe:
			kind := replication.CmdFailsafeOver
			if o.On {
				kind = replication.CmdFailsafe
			}
			n.Command(replication.Command{Kind: kind}, end)
		case ha.Export:
			p.export[i] = o.Incarnation
			end(nil)
		case ha.Unexport:
			p.unexport(i)
			end(nil)
		case ha.FreezeReads:
			p.frozen[i] = true
			end(nil)
		default:
			panic(fmt.Sprintf("%v is no order for storage", o.Kind))
		}
	}))
}

// thaw: a new term, or the end of the role, ends what froze the reads.
func (p *Pair) thaw(i int) { p.frozen[i] = false }

// unexport ends every connection of a client on side i.
func (p *Pair) unexport(i int) {
	p.export[i] = ""
	p.closeClient(i)
}

// closeClient: the client on side i is gone.
func (p *Pair) closeClient(i int) {
	c := p.client[i]
	if c == nil {
		return
	}
	p.client[i] = nil
	if n := p.node(p.hosts[i]); n.Life() == c.life {
		n.Command(replication.Command{Kind: replication.CmdClose}, nil)
	}
}

// A client is what a VM has open.
type client struct {
	vm   *VM
	life int // of the polluxd that it is connected to
}

// tellLease: when the lease has ended and the manager is gone, polluxd freezes the
// Primaries that are without their peer; a new lease ends that.
func (m *manager) tellLease(end ha.Tick) {
	w, h := m.w, m.h
	until := h.booted + h.stood + (int64(end)-1000-h.skew)*millisecond
	m.leaseEnds = until
	for _, p := range h.pairs {
		p.leaseFrozen[p.side(h)] = false
		p.node(h).Command(replication.Command{Kind: replication.CmdLease, LeaseMS: uint64(max(1, (until-w.now)/millisecond))}, nil)
	}
	w.at(until, h.awake(func() {
		if m.leaseEnds != until || m.core != nil {
			return
		}
		for _, p := range h.pairs {
			i := p.side(h)
			if o := p.seen[i]; o.State[pairVolume].Conn < connected {
				w.trace("%s: polluxd freezes %s, nobody has prolonged the lease", h.name, p.name)
				p.leaseFrozen[i] = true
			}
		}
	}))
}

// hypervisor carries out an order for a service.
func (m *manager) hypervisor(o ha.Order, done func(error)) {
	w, h := m.w, m.h
	var s *Service
	for _, x := range w.Services {
		if x.name == o.Service {
			s = x
		}
	}
	if s == nil || !s.has(h) {
		w.fail("%s: an order for %q, which does not run here", h.name, o.Service)
		return
	}
	done = m.limited(o, done)
	end := func(err error) { m.service(s); done(err) }
	switch o.Kind {
	case ha.StartService:
		m.starting[s.name] = end
		h.startVM(s, o.Incarnation, m.hears(end))
	case ha.StopService:
		m.starting[s.name] = end
		h.stopVM(s, m.hears(end))
	case ha.KillService:
		if e := m.starting[s.name]; e != nil {
			delete(m.starting, s.name)
			w.after(0, m.awake(func() { e(fmt.Errorf("vm %s: it was killed", s.name)) }))
		}
		h.killVM(s, m.hears(end))
	case ha.AddIPs, ha.RemoveIPs:
		w.after(w.dice.between(1000, 20*millisecond), m.awake(func() {
			h.addresses[s.id] = o.Kind == ha.AddIPs
			end(nil)
		}))
	default:
		panic(fmt.Sprintf("%v is no order for a service", o.Kind))
	}
}

// hears is f for as long as this process runs.
func (m *manager) hears(f func(error)) func(error) {
	life := m.life
	return func(err error) {
		if m.core != nil && m.life == life {
			f(err)
		}
	}
}

// fence has another host powered off by its management board.
func (m *manager) fence(o ha.Order) {
	m.h.half.aims = true
	m.h.half.ask(m.timeout(&o), func(ctx context.Context, s side) answer {
		return answer{err: s.(*fence.Arbiter).Fence(ctx, o.Node)}
	}, func(x answer) {
		m.h.half.aims = false
		m.step(ha.Event{Kind: ha.OrderDone, Order: o.ID, Err: errText(x.err), Spared: errors.Is(x.err, fence.ErrAnswers)})
	})
}

// confirmOff: a person has seen a host off, or says so.
func (m *manager) confirmOff(o ha.Order) {
	other := m.h.half.other()
	m.h.half.ask(m.timeout(&o), func(_ context.Context, s side) answer {
		return answer{err: s.(*fence.Arbiter).Confirmed(o.Node)}
	}, func(x answer) {
		if other.off = other.off || x.err == nil; x.err == nil && other.h.power {
			m.w.trace("%s: %s is said to be off, and it is on", m.h.name, o.Node)
			m.w.duo.lie()
		}
		m.answered(o)(x)
	})
}
