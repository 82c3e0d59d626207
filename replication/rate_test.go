package replication

import (
	"testing"

	"pgregory.net/rapid"
)

// TestPlan follows the first steps by hand: c-plan-ahead 20, c-fill-target 100 sectors.
func TestPlan(t *testing.T) {
	c := NewRateController(20, 10, 100)
	for i, step := range []struct{ in, waiting, want int }{
		{20480, 0, 5}, // 100 more may wait: 5 in each of 20 steps
		// Of 4100 waiting 4000 are too many, and 95 are still to come: (-4000-95)/20 is
		// -204 on each of the next 20 steps, of which this one had 5.
		{10000, 4100, -199},
		{9000, 3900, -199}, // as planned: nothing to correct
	} {
		if got := c.Next(step.in, step.waiting); got != step.want {
			t.Errorf("step %d: %+d sectors, want %+d", i, got, step.want)
		}
	}
}

func TestDelayTarget(t *testing.T) {
	c := NewRateController(20, 10, 0)
	if got := c.Want(2048); got != 20480 {
		t.Errorf("%d sectors may wait at 2048 per step, want those of c-delay-target, 1 s", got)
	}
}

// TestPlanSettles: whatever there is at first, within three times c-plan-ahead
// the target waits.
func TestPlanSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plan := rapid.Uint32Range(1, 300).Draw(t, "plan")
		fill := rapid.Uint32Range(1, 1<<20).Draw(t, "fill")
		c := NewRateController(plan, 10, fill)
		waiting := rapid.IntRange(0, 1<<21).Draw(t, "waiting")
		for range 3 * plan {
			waiting = max(waiting+c.Next(100, waiting), 0)
		}
		if off := waiting - int(fill); off > int(plan) || off < -int(plan) {
			t.Fatalf("%d sectors wait, target %d", waiting, fill)
		}
	})
}
