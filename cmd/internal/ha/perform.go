package ha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	arbfence "github.com/pollux-project/pollux/hypervisor/ha/arbiter/fence"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A heldOrder waits for a Persist that came before it.
type heldOrder struct {
	ha.Order
	step uint64
}

// overtakes reports whether an order never waits for what is to be remembered:
// those that end something, and those that are not about any object.
func overtakes(k ha.OrderKind) bool {
	switch k {
	case ha.KillService, ha.FreezeReads, ha.Watchdog, ha.Renew, ha.TellLease, ha.Observe, ha.SendBeat, ha.Note, ha.Answer:
		return true
	default:
		return false
	}
}

// dispatch begins one order of a step.
func (m *manager) dispatch(o ha.Order, step uint64) {
	if m.persist != 0 && !(overtakes(o.Kind) && step != m.persist) {
		m.held = append(m.held, heldOrder{o, step})
		return
	}
	switch o.Kind {
	case ha.Persist:
		m.persist = step
		m.save(o)
	case ha.SendBeat:
		m.sendBeat(o.Beat)
	case ha.Note:
		m.note(o.Note)
	case ha.Answer:
		m.answer(o)
	case ha.Hook:
		m.runHook(o)
	default:
		m.begin(o)
	}
}

// save carries out a Persist; one without an ID is a repetition of the manager's own.
func (m *manager) save(o ha.Order) {
	m.toSave = o.Saved
	m.lanes.do("saved", func() {
		err := m.saved.save(o.Saved)
		m.box.post(func() { m.isSaved(o, err) })
	})
}

func (m *manager) isSaved(o ha.Order, err error) {
	m.unsaved = err
	if h := m.health; (err != nil) != (h.Problem != "") {
		m.reportHealth(h.MemoryBytes, h.FreeBytes)
	}
	if o.ID == 0 {
		return
	}
	step := m.persist
	m.event(ha.Event{Kind: ha.OrderDone, Order: o.ID, Err: text(err)}) // what this orders comes behind what waits
	for len(m.held) > 0 {
		h := m.held[0]
		m.held = m.held[1:]
		if err != nil && h.step == step && !overtakes(h.Kind) {
			m.refuse(h.Order, fmt.Errorf("not done, as what has to be remembered first could not be written: %w", err))
			continue
		}
		m.persist = 0
		if m.dispatch(h.Order, h.step); m.persist != 0 {
			return // a Persist, for which the rest waits
		}
		m.persist = step
	}
	m.persist = 0
}

// refuse answers an order that is not carried out.
func (m *manager) refuse(o ha.Order, err error) {
	switch {
	case o.ID == 0:
	case o.Kind == ha.Claim:
		m.event(ha.Event{Kind: ha.ClaimDone, Order: o.ID, Outcome: ha.Unreachable, Err: err.Error()})
	case o.Kind == ha.Observe:
		m.event(ha.Event{Kind: ha.ArbiterViewed, Order: o.ID, Err: err.Error()})
	default:
		m.event(ha.Event{Kind: ha.OrderDone, Order: o.ID, Err: err.Error()})
	}
}

// begin gives an order to its lane.
func (m *manager) begin(o ha.Order) {
	ctx, cancel := context.WithTimeout(m.ctx, timeoutOf(o))
	run := func(f func(context.Context, ha.Order) ha.Event) func() {
		return func() {
			defer cancel()
			e := f(ctx, o)
			if o.ID != 0 && m.ctx.Err() == nil {
				e.Order = o.ID
				m.post(e)
			}
		}
	}
	done := func(f func(context.Context, ha.Order) error) func() {
		return run(func(ctx context.Context, o ha.Order) ha.Event {
			return ha.Event{Kind: ha.OrderDone, Err: text(f(ctx, o))}
		})
	}
	switch o.Kind {
	case ha.Renew:
		m.lanes.do("lease", done(m.renew))
	case ha.Resign:
		m.lanes.do("lease", done(func(ctx context.Context, o ha.Order) error {
			return m.arbiter.Resign(ctx, m.self, o.Session)
		}))
	case ha.Observe:
		m.lanes.do("observe", run(m.observe))
	case ha.Claim:
		m.lanes.do("resource "+o.Claim.Resource, run(m.claim))
	case ha.Release:
		m.lanes.do("resource "+o.Resource, done(func(ctx context.Context, o ha.Order) error {
			return m.arbiter.Release(ctx, o.Resource, m.self, o.Term)
		}))
	case ha.PromiseTerm, ha.Promote, ha.Demote, ha.Export, ha.Unexport, ha.Failsafe:
		m.lanes.do("resource "+o.Resource, done(m.toStorage))
	case ha.FreezeReads:
		m.worker(done(m.toStorage))
	case ha.TellLease:
		m.lanes.do("told lease", done(m.tellLease))
	case ha.StartService, ha.StopService, ha.KillService, ha.AddIPs, ha.RemoveIPs:
		m.toService(o, done)
	case ha.Fence:
		m.lanes.do("fence "+o.Node, run(func(ctx context.Context, o ha.Order) ha.Event {
			err := m.fence(ctx, o.Node)
			return ha.Event{Kind: ha.OrderDone, Err: text(err), Spared: errors.Is(err, arbfence.ErrAnswers)}
		}))
	case ha.ConfirmOff:
		m.lanes.do("fence "+o.Node, done(func(_ context.Context, o ha.Order) error { return m.confirm(o.Node) }))
	case ha.Watchdog:
		m.worker(done(m.reset))
	default:
		cancel()
		panic(fmt.Sprintf("polluxha: no case for order %v", o.Kind))
	}
}

func timeoutOf(o ha.Order) time.Duration {
	if o.Timeout <= 0 {
		return orderTimeout
	}
	return time.Duration(o.Timeout) * time.Millisecond
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (m *manager) renew(ctx context.Context, o ha.Order) error {
	return m.arbiter.Renew(ctx, m.self, o.Session)
}

func (m *manager) observe(ctx context.Context, o ha.Order) ha.Event {
	view, err := m.arbiter.Observe(ctx, o.Resources...)
	return ha.Event{Kind: ha.ArbiterViewed, View: view, Err: text(err)}
}

// claim asks the arbiter. What it says is told apart by its conditions; anything
// else leaves open whether the claim was carried out.
func (m *manager) claim(ctx context.Context, o ha.Order) ha.Event {
	rec, err := m.arbiter.Acquire(ctx, o.Claim)
	e := ha.Event{Kind: ha.ClaimDone, Record: rec, Err: text(err), Outcome: ha.Granted}
	var refused *arbiter.RefusedError
	switch {
	case err == nil:
	case errors.As(err, &refused):
		e.Record, e.Outcome = refused.Record, outcomeOf(refused)
	default:
		e.Record, e.Outcome = arbiter.Record{}, ha.Unreachable
	}
	return e
}

func outcomeOf(err error) ha.Outcome {
	for _, c := range []struct {
		err     error
		outcome ha.Outcome
	}{
		{arbiter.ErrChanged, ha.Changed},
		{arbiter.ErrHeld, ha.Held},
		{arbiter.ErrStale, ha.Stale},
		{arbiter.ErrBehind, ha.Behind},
		{arbiter.ErrInvalid, ha.Invalid},
	} {
		if errors.Is(err, c.err) {
			return c.outcome
		}
	}
	return ha.Unreachable
}

// toStorage carries out an order by polluxd.
func (m *manager) toStorage(ctx context.Context, o ha.Order) error {
	req := adm.Request{Resource: o.Resource}
	switch o.Kind {
	case ha.PromiseTerm:
		req.Cmd, req.Args.Term = adm.CmdPromiseTerm, o.Term
	case ha.Promote:
		req.Cmd, req.Args.Term, req.Args.Sole = adm.CmdPrimary, o.Term, o.Sole
		if o.Force {
			req.Args.Force, req.Args.Confirm = true, o.Resource // its operator has typed the VM's name
		}
	case ha.Demote:
		req.Cmd = adm.CmdSecondary
	case ha.Export:
		req.Cmd, req.Args.Incarnation = adm.CmdExport, o.Incarnation
	case ha.Unexport:
		req.Cmd = adm.CmdUnexport
	case ha.Failsafe:
		req.Cmd = adm.CmdFailsafeOver
		if o.On {
			req.Cmd = adm.CmdFailsafe
		}
	case ha.FreezeReads:
		req.Cmd = adm.CmdFreeze
	default:
		panic(fmt.Sprintf("polluxha: %v is no order for polluxd", o.Kind))
	}
	if err := m.storage.do(ctx, req, nil); err != nil {
		return withAdvice(err)
	}
	return m.lookAt(ctx, o.Resource)
}

// lookAt reports what an order has brought about before the order is answered;
// the event stream may be behind.
func (m *manager) lookAt(ctx context.Context, resource string) error {
	var st adm.Status
	if err := m.storage.do(ctx, adm.Request{Cmd: adm.CmdStatus, Resource: resource}, &st); err != nil {
		return nil //nolint:nilerr // the order was carried out; the event stream will tell what came of it
	}
	for _, r := range st.Resources {
		if r.Name == resource {
			m.storageStatus(r)
		}
	}
	return nil
}

// tellLease tells polluxd until when this node's lease lasts, for all resources.
func (m *manager) tellLease(ctx context.Context, o ha.Order) error {
	for range 3 { // on a machine that is slow all the time the next lease must have its turn
		before := m.clock.now()
		left := max(1, int64(o.Until)-before)
		err := m.storage.do(ctx, adm.Request{Cmd: adm.CmdLease, Args: adm.Args{LeaseMS: min(uint64(left), adm.MaxLeaseMS)}}, nil)
		// polluxd counts from when it hears of it. Who was stopped in between has told it
		// of a lease that lasts too long.
		if err != nil || m.clock.now()-before <= leaseSlack {
			return err
		}
	}
	return nil
}

// leaseSlack is by how much polluxd may take the lease to last longer than it does, ms.
// Our own: less than any margin.
const leaseSlack = 500

// withAdvice is a refusal of polluxd with its next step, for the core's sentences.
func withAdvice(err error) error {
	var refused *adm.Error
	if errors.As(err, &refused) && refused.Advice != "" {
		return fmt.Errorf("%w: %s", err, refused.Advice)
	}
	return err
}

// reset has the machine reset by its watchdog: a VM whose lease has ended can't be killed.
func (m *manager) reset(_ context.Context, o ha.Order) error {
	m.log.Error().Str("reason", o.Text).Msg("the watchdog is armed: this machine will be reset")
	return m.watchdog.arm(o.Service)
}

// sendBeat hands a heartbeat's content to the control channel.
func (m *manager) sendBeat(b ha.Beat) {
	raw, err := json.Marshal(b)
	if err != nil {
		panic(fmt.Sprintf("polluxha: a heartbeat can't be written: %v", err)) // plain values can
	}
	m.peers.setBeat(raw)
}

// note tells people.
func (m *manager) note(n ha.Notice) {
	ev := m.log.Info()
	switch {
	case n.Cleared:
	case n.Level == ha.Warning:
		ev = m.log.Warn()
	case n.Level == ha.Critical:
		ev = m.log.Error()
	}
	for _, f := range []struct{ key, value string }{{"vm", n.Service}, {"res", n.Resource}, {"peer", n.Node}, {"alarm", n.Key}} {
		if f.value != "" {
			ev = ev.Str(f.key, f.value)
		}
	}
	if n.Term != 0 {
		ev = ev.Uint64("term", n.Term)
	}
	if n.Cleared {
		ev = ev.Bool("cleared", true)
	}
	ev.Msg(n.Text)
	level := string(n.Level)
	if n.Cleared {
		level = adm.HALevelOK
	}
	m.events.add(adm.HAEvent{
		Level: level, Kind: string(n.Topic), VM: n.Service, Resource: n.Resource, Peer: n.Node, Term: n.Term, Text: n.Text,
	})
}

// answer passes the core's answer on to the client that waits for it.
func (m *manager) answer(o ha.Order) {
	c := m.commands[o.Command]
	if c == nil {
		return // the client did not wait
	}
	select {
	case c <- o:
	default: // a client that doesn't read misses progress, not the end
		if o.Done {
			<-c
			c <- o
		}
	}
	if o.Done {
		close(c)
		delete(m.commands, o.Command)
	}
}
