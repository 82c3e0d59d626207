package pair

import (
	"context"
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Renew notes this node's session and looks whether the peer is there; that it is
// not is no error. No lease ends by time: silence says nothing on two nodes.
func (a *Arbiter) Renew(ctx context.Context, node, session string) error {
	a.mu.Lock()
	err := errors.Join(ctx.Err(), a.ready())
	switch {
	case err != nil:
	case node != a.cfg.Node:
		err = fmt.Errorf("%s renews by way of %s", node, a.cfg.Node)
	case a.resigned == session && session != "":
		err = errors.New("this session has resigned")
	case a.resigned != "":
		// Another process would have a run of its own, too.
		a.resigned = ""
		if err = a.newRun(); err != nil {
			a.broken = err
		}
	}
	if err != nil {
		a.mu.Unlock()
		return unreachable("%w", err)
	}
	a.session = session
	hasMet := a.grant != 0 && a.hasMet()
	a.mu.Unlock()
	if hasMet {
		_, _ = a.call(ctx, message{Kind: kindHello}) // Observe tells
	} else {
		_ = a.meet(ctx) // Observe tells
	}
	return nil
}

// Resign ends this node's lease: it has stopped what it ran, and makes no change
// alone until it has met its peer again. If the peer can't be told, it has to fence
// this node all the same, and the error wraps arbiter.ErrUnreachable.
func (a *Arbiter) Resign(ctx context.Context, node, session string) error {
	select {
	case a.op <- struct{}{}:
		defer func() { <-a.op }()
	case <-ctx.Done():
		return unreachable("%w", context.Cause(ctx))
	}
	a.mu.Lock()
	if err := errors.Join(ctx.Err(), a.ready()); err != nil {
		a.mu.Unlock()
		return unreachable("%w", err)
	}
	if node != a.cfg.Node || session != a.session {
		a.mu.Unlock()
		return nil // that one has ended
	}
	a.resigned, a.session, a.accept, a.grant = session, "", 0, 0
	a.st.Met = ""
	request := a.message(message{Kind: kindResign})
	err := a.save() // before the peer relies on it
	a.mu.Unlock()
	if err == nil {
		_, err = a.call(ctx, request)
	}
	if err != nil {
		return unreachable("%s does not know that this node has resigned: %w", a.cfg.Peer, err)
	}
	return nil
}

// Arm prepares a fence shot at the peer: it is noted, durably, before it is fired.
// isOff says that it is off already. It is refused for the second time under the
// same terms, and on a node that has not met its peer since it booted: what it
// knows may be old, and both would go on shooting each other.
func (a *Arbiter) Arm() (boot string, isOff bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return "", false, err
	}
	off := a.st.PeerOff
	switch {
	case off != nil && off.Fenced:
		return "", true, nil
	case !a.hasMet():
		return "", false, fmt.Errorf("no shot at %s: this node has not met it since it booted, so its own records may be old: connect them, or look at %s and use force", a.cfg.Peer, a.cfg.Peer)
	}
	era := a.era()
	if s := a.st.Shot; s != nil && era <= s.Era {
		return "", false, fmt.Errorf("no second shot at %s: the first one under these terms was not confirmed: look at the machine, and use force", a.cfg.Peer)
	}
	a.st.Shot = &Shot{Era: era, Boot: a.st.PeerBoot}
	if err := a.save(); err != nil {
		return "", false, err
	}
	return a.st.PeerBoot, false, nil
}

// era is the sum of the terms of all records, plus 1; under the lock.
func (a *Arbiter) era() uint64 {
	n := uint64(1)
	for _, e := range a.st.Entries {
		n += e.Term
	}
	return n
}

// ConfirmOff says that the peer was off after Arm had returned this boot of it. If
// it has been heard of in another boot since, it is not off any more.
func (a *Arbiter) ConfirmOff(boot string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return err
	}
	if a.st.PeerBoot != boot || !a.hasMet() {
		return fmt.Errorf("%s was off, and has booted again", a.cfg.Peer)
	}
	a.st.PeerOff = &peerOff{Boot: boot, Fenced: true}
	if a.st.Shot != nil {
		shot := *a.st.Shot
		shot.Done = true
		a.st.Shot = &shot
	}
	a.grant, a.late = 0, 0
	return a.save()
}

// LastShot is the last fence shot at the peer; ok is false if there was none.
func (a *Arbiter) LastShot() (s Shot, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.st.Shot == nil {
		return Shot{}, false
	}
	return *a.st.Shot, true
}

// PeerBoot is the boot in which the peer was last heard of; "" is never.
func (a *Arbiter) PeerBoot() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.st.PeerBoot
}

// Owned counts the records that name each node as the owner that may be writing.
func (a *Arbiter) Owned() (own, peer int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.st.Entries {
		switch {
		case e.Released:
		case e.Owner == a.cfg.Node:
			own++
		case e.Owner == a.cfg.Peer:
			peer++
		}
	}
	return own, peer
}

// Hears asks the peer for a sign of life.
func (a *Arbiter) Hears(ctx context.Context) bool {
	_, err := a.call(ctx, message{Kind: kindHello})
	return err == nil
}

var _ arbiter.Arbiter = (*Arbiter)(nil)
