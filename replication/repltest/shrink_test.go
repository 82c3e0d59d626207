package repltest

import (
	"errors"
	"strings"
	"testing"
)

// TestShrink has histories fail for a reason of its own: two writes were
// answered, and somebody killed a node. The smaller one has just that.
func TestShrink(t *testing.T) {
	const cause = "kill a node"
	shrunk := 0
	for seed := uint64(1); seed <= 60 && shrunk < 4; seed++ {
		mem := &arena{}
		run := func(p *plan) error {
			s := newSim(p, mem)
			s.run()
			for i := range p.rounds {
				if tr := p.rounds[i].trouble; tr != nil && tr.name == cause && s.m.Acked >= 2 {
					return errors.New("at 12.345 ms: an artificial failure")
				}
			}
			return nil
		}
		whole := newPlan(seed)
		if run(whole) == nil {
			continue
		}
		shrunk++
		small, runs := shrink(whole, run)
		if run(small) == nil {
			t.Fatalf("seed %d: the smaller plan does not fail", seed)
		}
		parts := small.parts()
		for k, x := range parts {
			if x.round >= 0 && x.request < 0 && small.rounds[x.round].trouble == nil {
				continue // a round without a trouble
			}
			rest := append(append([]part{}, parts[:k]...), parts[k+1:]...)
			if run(small.only(rest)) != nil {
				t.Errorf("seed %d: after %d runs this could still be left out: %+v of\n%v", seed, runs, x, small)
			}
		}
		if !strings.Contains(small.String(), cause) {
			t.Errorf("seed %d: the script does not name %q:\n%v", seed, cause, small)
		}
	}
	if shrunk < 3 {
		t.Fatalf("only %d of the histories fail: choose other seeds", shrunk)
	}
}

// TestReplay: a seed gives the same history again, to the last line of its trace.
func TestReplay(t *testing.T) {
	trace := func(seed uint64) string {
		s := newSim(newPlan(seed), &arena{})
		s.w.KeepTrace()
		s.run()
		return s.w.LastTrace()
	}
	for seed := uint64(1); seed <= 10; seed++ {
		if a, b := trace(seed), trace(seed); a != b {
			t.Errorf("seed %d gives two histories", seed)
		}
	}
}
