package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"
)

// Our own constants. The head start is longer than a management board takes to cut
// the power once it was told: about a second.
const (
	DefaultHeadStart = 4 * time.Second
	askLimit         = time.Second // a peer that answers is not shot at, nor one whose answer takes half a second
)

// A Switch switches nodes off: hypervisor/ha/fence.Devices.
type Switch interface {
	// Off returns nil only if it is confirmed that the node is off.
	Off(ctx context.Context, node string) error
}

// Config describes one side.
type Config struct {
	Pair      pair.Config
	Switch    Switch        // required
	HeadStart time.Duration // 0 for DefaultHeadStart
}

// Arbiter is one side. All but fencing is package pair's.
type Arbiter struct {
	*pair.Arbiter
	cfg Config
}

// New reads the records, and does not wait for the peer.
func New(cfg Config) (*Arbiter, error) {
	if cfg.Switch == nil {
		return nil, errors.New("arbiter fence: nothing is configured that switches the other node off: add a [[fence]] table")
	}
	if cfg.HeadStart == 0 {
		cfg.HeadStart = DefaultHeadStart
	}
	cfg.Pair.Manual = false
	p, err := pair.New(cfg.Pair)
	if err != nil {
		return nil, err
	}
	return &Arbiter{Arbiter: p, cfg: cfg}, nil
}

// Fence switches the peer off, at most once under the same terms. When it returns
// nil, the peer is confirmed to be off, and claims of this node need not ask it. It
// takes as long as the head start and the agent; ctx cuts it off.
func (a *Arbiter) Fence(ctx context.Context, node string) error {
	if node != a.cfg.Pair.Peer {
		return fmt.Errorf("arbiter fence: %s is not the other node, %s is", node, a.cfg.Pair.Peer)
	}
	if err := a.wait(ctx, node); err != nil {
		return fmt.Errorf("arbiter fence: %w", err)
	}
	boot, isOff, err := a.Arm()
	if err != nil {
		return fmt.Errorf("arbiter fence: %w", err)
	}
	if isOff {
		return nil
	}
	if err := a.cfg.Switch.Off(ctx, node); err != nil {
		return fmt.Errorf("arbiter fence: %s is not confirmed to be off: %w", node, err)
	}
	if err := a.ConfirmOff(boot); err != nil {
		return fmt.Errorf("arbiter fence: %w", err)
	}
	return nil
}

// ErrAnswers is wrapped by Fence's error when no shot was fired, as the peer answers.
var ErrAnswers = errors.New("it answers: it is asked, and not shot at")

// wait gives the other side its head start, and sees all the while whether it is there.
func (a *Arbiter) wait(ctx context.Context, node string) error {
	own, peer := a.Owned()
	if own < peer || own == peer && a.cfg.Pair.Node > a.cfg.Pair.Peer {
		start := time.NewTimer(a.cfg.HeadStart)
		defer start.Stop()
		for isOver := false; !isOver; {
			if err := a.ask(ctx, node); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-start.C:
				isOver = true
			case <-time.After(askLimit):
			}
		}
	}
	return a.ask(ctx, node)
}

func (a *Arbiter) ask(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if a.Hears(ctx) {
		return fmt.Errorf("%s: %w", node, ErrAnswers)
	}
	return nil
}

// Confirmed says that a person, or an agent that was run by hand, has seen the peer
// off.
func (a *Arbiter) Confirmed(node string) error {
	if node != a.cfg.Pair.Peer {
		return fmt.Errorf("arbiter fence: %s is not the other node, %s is", node, a.cfg.Pair.Peer)
	}
	if err := a.ConfirmOff(a.PeerBoot()); err != nil {
		return fmt.Errorf("arbiter fence: %w", err)
	}
	return nil
}

var _ arbiter.Arbiter = (*Arbiter)(nil)
