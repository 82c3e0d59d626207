package pair

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// message fills in who speaks; under the lock.
func (a *Arbiter) message(m message) message {
	m.Cluster, m.From, m.Boot, m.Run, m.Session = a.cfg.Cluster, a.cfg.Node, a.cfg.Boot, a.st.Run, a.session
	return m
}

// all is a message with all records, and the number under which proposals are
// taken from now on; under the lock.
func (a *Arbiter) all(kind string) message {
	a.made++
	a.accept = a.made
	return a.message(message{Kind: kind, Number: a.made, Entries: maps.Clone(a.st.Entries)})
}

// call sends a request and looks at who answers.
func (a *Arbiter) call(ctx context.Context, m message) (message, error) {
	a.mu.Lock()
	if m.From == "" {
		m = a.message(m)
	}
	err := a.ready()
	a.mu.Unlock()
	if err != nil {
		return message{}, err
	}
	answer, err := a.exchange(ctx, m)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		err = a.contact(&answer)
	}
	if err != nil {
		a.grant = 0
	}
	a.lost = err
	return answer, err
}

func (a *Arbiter) exchange(ctx context.Context, m message) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Attempt)
	defer cancel()
	data, err := json.Marshal(m)
	if err != nil {
		return message{}, err
	}
	data, err = a.cfg.Caller.Call(ctx, data)
	if err != nil {
		return message{}, err
	}
	return decode(data)
}

// contact notes that the peer has spoken, and drops what is late; under the lock.
// That the peer is back is on disk before anything is answered: with an answer it
// may make changes alone again.
func (a *Arbiter) contact(m *message) error {
	if m.Cluster != a.cfg.Cluster || m.From != a.cfg.Peer {
		return fmt.Errorf("%s of cluster %s is not %s of %s", m.From, m.Cluster, a.cfg.Peer, a.cfg.Cluster)
	}
	if m.Run < a.peerRun {
		return errors.New("a message from before it was started")
	}
	off, before := a.st.PeerOff, a.st.PeerBoot
	if off != nil {
		if m.Boot == off.Boot && (off.Fenced || m.Run <= off.Run) {
			a.late++
			return errLate
		}
		a.st.PeerOff = nil
	}
	if m.Run != a.peerRun {
		a.peerRun, a.grant, a.late = m.Run, 0, 0
	}
	a.peerName = m.Session
	a.st.PeerBoot = m.Boot
	if off != nil || before != m.Boot {
		return a.save()
	}
	return nil
}

// meet exchanges all records, unless that was done and nothing has come between.
func (a *Arbiter) meet(ctx context.Context) error {
	// First without records: what the peer is told makes it able to act alone, so
	// that it is back must be known before.
	a.mu.Lock()
	hasMet := a.grant != 0 && a.hasMet()
	isResigned := a.resigned != ""
	a.mu.Unlock()
	switch {
	case isResigned:
		return errors.New("this node has resigned")
	case hasMet:
		return nil
	}
	if _, err := a.call(ctx, message{Kind: kindHello}); err != nil {
		return err
	}
	a.mu.Lock()
	request := a.all(kindSync)
	a.mu.Unlock()
	answer, err := a.call(ctx, request)
	if err != nil {
		return err
	}
	if answer.Kind != kindOK {
		return fmt.Errorf("%s: %s", a.cfg.Peer, answer.Why)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.absorb(&answer)
}

// absorb takes the peer's records over where they hold; under the lock.
func (a *Arbiter) absorb(m *message) error {
	if m.Number <= a.taken || a.resigned != "" {
		return nil // a later one was here first
	}
	isChanged := a.st.Met != a.cfg.Boot
	a.st.Met = a.cfg.Boot
	names := slices.AppendSeq(slices.Collect(maps.Keys(a.st.Entries)), maps.Keys(m.Entries))
	for _, name := range names {
		mine := a.entry(name)
		theirs := m.Entries[name]
		if theirs == nil {
			theirs = &entry{}
		}
		if got := merge(mine, theirs); got != mine {
			a.st.Entries[name] = got
			isChanged = true
		}
	}
	a.taken, a.grant = m.Number, m.Number
	if isChanged {
		return a.save()
	}
	return nil
}

// Serve answers a request of the peer, as its Caller brought it.
func (a *Arbiter) Serve(ctx context.Context, request []byte) ([]byte, error) {
	m, err := decode(request)
	if err != nil {
		return nil, fmt.Errorf("arbiter of two nodes: %w", err)
	}
	answer, err := a.serve(ctx, &m)
	if err != nil {
		return nil, fmt.Errorf("arbiter of two nodes: %s: %w", a.cfg.Node, err)
	}
	return json.Marshal(answer)
}

func (a *Arbiter) serve(ctx context.Context, m *message) (message, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return message{}, err
	}
	if a.resigned != "" {
		return message{}, errors.New("has resigned")
	}
	if err := a.contact(m); err != nil {
		return message{}, err
	}
	switch m.Kind {
	case kindHello:
		return a.message(message{Kind: kindOK}), nil
	case kindSync:
		if err := a.absorb(m); err != nil {
			return message{}, err
		}
		return a.all(kindOK), nil
	case kindPropose:
		return a.proposed(ctx, m)
	case kindResign:
		a.st.PeerOff = &peerOff{Boot: m.Boot, Run: m.Run}
		a.grant = 0
		if err := a.save(); err != nil {
			return message{}, err
		}
		return a.message(message{Kind: kindOK}), nil
	}
	return message{}, fmt.Errorf("it does not know %q", m.Kind)
}

// proposed takes the peer's record over, if it was built on this node's; under the
// lock, which is left while this node's own proposal is under way.
func (a *Arbiter) proposed(ctx context.Context, m *message) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Attempt)
	defer cancel()
	for a.busy == m.Resource && a.entry(m.Resource).Doubt != nil && a.cfg.Node > a.cfg.Peer {
		// Two proposals cross. The first in the alphabet goes ahead and refuses the
		// other's, which then sees what came between.
		moved := a.moved
		a.mu.Unlock()
		var err error
		select {
		case <-moved:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		a.mu.Lock()
		if err = errors.Join(err, a.ready()); err != nil {
			return message{}, err
		}
	}
	e := a.entry(m.Resource)
	switch {
	case m.Number != a.accept || a.accept == 0:
		return a.message(message{Kind: kindRefused, Why: "it has to meet this node first"}), nil
	case e.Doubt != nil:
		return a.message(message{Kind: kindRefused, Why: "this node has made a claim itself"}), nil
	case e.ID != m.Old:
		return a.message(message{Kind: kindRefused, Why: "the record has changed"}), nil
	}
	next := &entry{Record: m.New.Record, ID: m.New.ID, Common: []string{e.ID, m.New.ID}, Floor: e.Floor}
	if err := a.keep(m.Resource, next); err != nil {
		return message{}, err
	}
	a.taken = max(a.taken, m.Made)
	return a.message(message{Kind: kindOK}), nil
}
