package manual_test

import (
	"errors"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/arbitertest"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/manual"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair/pairtest"
)

func newSide(cfg pair.Config) (pairtest.Side, error) { return manual.New(cfg) }

func TestConformance(t *testing.T) {
	arbitertest.Run(t, func(t *testing.T) arbitertest.Subject {
		s := pairtest.NewRig(t, newSide).Subject(t)
		s.Means, s.Cut = arbitertest.ByForce, nil // without the peer an owner goes on
		return s
	})
}

func claim(node string, seen uint64, in ...string) arbiter.Claim {
	return arbiter.Claim{Resource: "r", Node: node, Session: "s", Seen: seen, InSync: in, Members: []string{"a", "b"}}
}

// TestAlone: the owner goes on alone, the other one never by itself, and after both
// did, because a person said so, neither does.
func TestAlone(t *testing.T) {
	rig := pairtest.NewRig(t, newSide)
	ctx := t.Context()
	a, b := rig.Open(t, "a"), rig.Open(t, "b")
	rec, err := a.Acquire(ctx, claim("a", 0, "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	rig.Cut(true)
	alone, err := a.Acquire(ctx, claim("a", rec.Term, "a"))
	if err != nil || !alone.Sole() {
		t.Fatalf("the owner, alone: %+v, %v", alone, err)
	}
	over := claim("b", rec.Term, "b")
	if _, err := b.Acquire(ctx, over); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("the other one, alone: %v, want ErrUnreachable", err)
	}
	rig.Cut(false)
	over.Seen = alone.Term
	if _, err := b.Acquire(ctx, over); !errors.Is(err, arbiter.ErrStale) {
		t.Errorf("the other one, when it has heard of it: %v, want ErrStale", err)
	}
	rig.Cut(true)
	over.Force = true
	if _, err := b.Acquire(ctx, over); err != nil {
		t.Fatalf("by force: %v", err)
	}
	if alone, err = a.Acquire(ctx, claim("a", alone.Term, "a")); err != nil {
		t.Fatalf("the owner does not know of it: %v", err)
	}
	rig.Cut(false)
	for node, at := range map[string]arbiter.Arbiter{"a": a, "b": b} {
		c := claim(node, 0, node)
		c.MinTerm = alone.Term
		if _, err := at.Acquire(ctx, c); !errors.Is(err, arbiter.ErrBehind) {
			t.Errorf("%s, after both went on alone: %v, want ErrBehind", node, err)
		}
	}
	c := claim("a", 0, "a", "b")
	c.MinTerm = alone.Term
	if got, err := a.Acquire(ctx, c); err != nil || got.Term <= alone.Term {
		t.Errorf("all copies together: %+v, %v", got, err)
	}
	// A node that has booted can't know whether the other one was forced meanwhile.
	rig.PowerOff("a")
	rig.PowerOff("b")
	rig.Start(t, "a")
	v, err := a.Observe(ctx, "r")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Acquire(ctx, claim("a", v.Records[0].Term, "a")); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("the owner, booted, alone: %v, want ErrUnreachable", err)
	}
}
