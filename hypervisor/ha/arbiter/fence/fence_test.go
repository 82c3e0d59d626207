package fence_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/arbitertest"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/fence"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair/pairtest"
)

// gun takes the power of a host away, unless it is broken.
type gun struct {
	rig      *pairtest.Rig
	isBroken atomic.Bool
	shots    atomic.Int32
}

func (g *gun) Off(_ context.Context, node string) error {
	g.shots.Add(1)
	if g.isBroken.Load() {
		return errors.New("no route to the board")
	}
	g.rig.PowerOff(node)
	return nil
}

func newRig(t *testing.T) (*pairtest.Rig, *gun) {
	t.Helper()
	g := new(gun)
	g.rig = pairtest.NewRig(t, func(cfg pair.Config) (pairtest.Side, error) {
		return fence.New(fence.Config{Pair: cfg, Switch: g, HeadStart: 20 * time.Millisecond})
	})
	return g.rig, g
}

func side(rig *pairtest.Rig, node string) *fence.Arbiter { return rig.Side(node).(*fence.Arbiter) }

func TestConformance(t *testing.T) {
	arbitertest.Run(t, func(t *testing.T) arbitertest.Subject {
		rig, _ := newRig(t)
		s := rig.Subject(t)
		s.Means = arbitertest.ByFence
		s.Fence = func(t *testing.T, node string) {
			rig.Cut(true)
			if err := side(rig, pairtest.Other(node)).Fence(t.Context(), node); err != nil {
				t.Fatal(err)
			}
			rig.Cut(false)
		}
		return s
	})
}

func claim(node string, seen uint64, in ...string) arbiter.Claim {
	return arbiter.Claim{Resource: "r", Node: node, Session: "s", Seen: seen, InSync: in, Members: []string{"a", "b"}}
}

func acquire(t *testing.T, at arbiter.Arbiter, c arbiter.Claim) arbiter.Record {
	t.Helper()
	rec, err := at.Acquire(t.Context(), c)
	if err != nil {
		t.Fatalf("Acquire %+v: %v", c, err)
	}
	return rec
}

// TestCableCut: both lose each other. The owner shoots first, and its victim does
// not shoot back when it has booted, but learns what has happened.
func TestCableCut(t *testing.T) {
	rig, g := newRig(t)
	ctx := t.Context()
	a, b := rig.Open(t, "a"), rig.Open(t, "b")
	rec := acquire(t, a, claim("a", 0, "a", "b"))
	rig.Cut(true)
	if _, err := a.Acquire(ctx, claim("a", rec.Term, "a")); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("the owner goes on without a fence: %v", err)
	}
	if v, err := a.Observe(ctx, "r"); err != nil || v.Records[0].Sole() || !strings.Contains(v.Detail, "b can't be asked") {
		t.Errorf("in doubt it sees %+v, %v", v, err)
	}
	byForeign := claim("a", rec.Term, "a")
	byForeign.Fenced = "b"
	if _, err := a.Acquire(ctx, byForeign); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("a fence that nobody has confirmed: %v", err)
	}
	both := make(chan error, 2)
	for _, node := range []string{"a", "b"} {
		s := side(rig, node)
		go func() { both <- s.Fence(ctx, pairtest.Other(node)) }()
	}
	won := 0
	for range 2 {
		if <-both == nil {
			won++
		}
	}
	if won != 1 || g.shots.Load() != 1 || rig.Side("a") == nil || rig.Side("b") != nil {
		t.Fatalf("%d won with %d shots; a runs %v, b runs %v", won, g.shots.Load(), rig.Side("a") != nil, rig.Side("b") != nil)
	}
	alone := acquire(t, a, claim("a", rec.Term, "a"))
	if !alone.Sole() || alone.Term <= rec.Term {
		t.Fatalf("the owner, alone: %+v", alone)
	}
	// b boots, and the cable is still cut.
	rig.Start(t, "b")
	if err := side(rig, "b").Fence(ctx, "a"); err == nil || g.shots.Load() != 1 {
		t.Errorf("a node that has booted shoots: %v, %d shots", err, g.shots.Load())
	}
	if _, err := b.Acquire(ctx, claim("b", rec.Term, "b")); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("a node that has booted takes over: %v", err)
	}
	rig.Cut(false)
	if err := b.Renew(ctx, "b", "b2"); err != nil {
		t.Fatal(err)
	}
	if v, err := b.Observe(ctx, "r"); err != nil || v.Records[0].Term != alone.Term || v.Records[0].Counts("b") {
		t.Errorf("b, connected again, sees %+v, %v", v, err)
	}
	// All is well again, and the other one may be shot at again, once.
	rec = acquire(t, a, claim("a", alone.Term, "a", "b"))
	rig.Cut(true)
	g.isBroken.Store(true)
	for range 3 {
		if err := side(rig, "b").Fence(ctx, "a"); err == nil {
			t.Error("a shot that was not confirmed counts")
		}
	}
	if n := g.shots.Load(); n != 2 {
		t.Errorf("%d shots, want one more for the new term", n)
	}
	if _, err := b.Acquire(ctx, claim("b", rec.Term, "b")); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("takeover without a confirmed fence: %v", err)
	}
	// Nor after the manager has started anew.
	rig.Stop("b")
	rig.Start(t, "b")
	if err := side(rig, "b").Fence(ctx, "a"); err == nil || g.shots.Load() != 2 {
		t.Errorf("a restart fires again: %v, %d shots", err, g.shots.Load())
	}
	// A person has looked.
	if err := side(rig, "b").Confirmed("a"); err != nil {
		t.Fatal(err)
	}
	over := acquire(t, b, claim("b", rec.Term, "b"))
	if over.Owner != "b" || !over.Sole() {
		t.Errorf("takeover after a person has looked: %+v", over)
	}
}

// TestPeerAnswers: whoever answers is not shot at.
func TestPeerAnswers(t *testing.T) {
	rig, g := newRig(t)
	a := rig.Open(t, "a")
	rig.Open(t, "b")
	acquire(t, a, claim("a", 0, "a", "b"))
	if err := side(rig, "a").Fence(t.Context(), "b"); err == nil || g.shots.Load() != 0 {
		t.Errorf("a peer that answers was shot at: %v, %d shots", err, g.shots.Load())
	}
	if err := side(rig, "a").Fence(t.Context(), "c"); err == nil {
		t.Error("a stranger was shot at")
	}
}

// TestLyingDevice: the device says off, and the host goes on. That is told, and what
// both have changed counts for nobody.
func TestLyingDevice(t *testing.T) {
	g := new(gun)
	rig := pairtest.NewRig(t, func(cfg pair.Config) (pairtest.Side, error) {
		return fence.New(fence.Config{Pair: cfg, Switch: liar{}, HeadStart: time.Millisecond})
	})
	g.rig = rig
	a, b := rig.Open(t, "a"), rig.Open(t, "b")
	rec := acquire(t, a, claim("a", 0, "a", "b"))
	rig.Cut(true)
	for _, node := range []string{"a", "b"} {
		if err := side(rig, node).Fence(t.Context(), pairtest.Other(node)); err != nil {
			t.Fatal(err)
		}
	}
	acquire(t, a, claim("a", rec.Term, "a"))
	acquire(t, b, claim("b", rec.Term, "b"))
	rig.Cut(false)
	if err := a.Renew(t.Context(), "a", "s"); err != nil {
		t.Fatal(err)
	}
	if v, err := b.Observe(t.Context(), "r"); err != nil || !strings.Contains(v.Detail, "does not do what it says") {
		t.Errorf("b sees %+v, %v", v, err)
	}
	// Both are booted, so that they listen to each other.
	for _, node := range []string{"a", "b"} {
		rig.PowerOff(node)
		rig.Start(t, node)
	}
	if err := a.Renew(t.Context(), "a", "s2"); err != nil {
		t.Fatal(err)
	}
	for _, at := range []arbiter.Arbiter{a, b} {
		if v, err := at.Observe(t.Context(), "r"); err != nil || v.Records[0].Term != 0 || !strings.Contains(v.Detail, "both nodes have changed") {
			t.Errorf("after both went on: %+v, %v", v, err)
		}
	}
}

type liar struct{}

func (liar) Off(context.Context, string) error { return nil }

// TestBothLosePower: each starts alone only what it was the only writer of.
func TestBothLosePower(t *testing.T) {
	rig, g := newRig(t)
	a, b := rig.Open(t, "a"), rig.Open(t, "b")
	rec := acquire(t, a, claim("a", 0, "a", "b"))
	shared := claim("b", 0, "a", "b")
	shared.Resource = "shared"
	sharedRec := acquire(t, b, shared)
	rec = acquire(t, a, claim("a", rec.Term, "a"))
	rig.PowerOff("a")
	rig.PowerOff("b")
	rig.Start(t, "a")
	if got := acquire(t, a, claim("a", rec.Term, "a")); !got.Sole() {
		t.Errorf("the only writer, alone after a boot: %+v", got)
	}
	over := claim("a", sharedRec.Term, "a")
	over.Resource = "shared"
	if _, err := a.Acquire(t.Context(), over); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("another's resource after a boot: %v, want ErrUnreachable", err)
	}
	if err := side(rig, "a").Fence(t.Context(), "b"); err == nil || g.shots.Load() != 0 {
		t.Errorf("a shot at start-up: %v", err)
	}
	rig.Start(t, "b")
	if err := b.Renew(t.Context(), "b", "b2"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Acquire(t.Context(), over); !errors.Is(err, arbiter.ErrHeld) {
		t.Errorf("with the owner back: %v, want ErrHeld", err)
	}
}
