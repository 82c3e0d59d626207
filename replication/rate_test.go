package replication

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drive runs c for so many steps. Each request is answered after delay steps,
// but no more than linkPerStep sectors per step. It returns the sectors
// requested in each step.
func drive(c *RateController, steps, delay, linkPerStep int) []int {
	sent := make([]int, 0, steps)
	backlog := 0
	for i := range steps {
		if i >= delay {
			backlog += sent[i-delay]
		}
		in := min(backlog, linkPerStep)
		backlog -= in
		n := c.Next(in)
		c.Sent(n)
		sent = append(sent, n)
	}
	return sent
}

func sum(ns []int) (total int) {
	for _, n := range ns {
		total += n
	}
	return total
}

func TestFixedRate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rate  uint32 // KiB/s
		first []int
		tenS  int // KiB in 10 s
	}{
		{"default 250K", 250, []int{48, 48, 48, 56}, 2500},
		{"200M", 204800, []int{40960, 40960}, 2048000},
		{"1K", 1, []int{0, 0}, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sent := drive(NewRateController(0, 10, 100, 102400, tt.rate), 100, 1, 1<<30)
			if diff := cmp.Diff(tt.first, sent[:len(tt.first)]); diff != "" {
				t.Errorf("first steps -want +got:\n%s", diff)
			}
			if got := sum(sent) / 2; got < tt.tenS || got > tt.tenS+40 {
				t.Errorf("%d KiB in 10 s, want %d", got, tt.tenS)
			}
		})
	}
}

// TestPlan follows the first steps by hand: resync-rate 250K, c-plan-ahead 20,
// c-fill-target 100 sectors, an answer in the step after the request.
func TestPlan(t *testing.T) {
	c := NewRateController(20, 10, 100, 102400, 250)
	// Start: want = 250*2/10*20 = 1000, 50 per step, 6 blocks of them requested.
	if n := c.Next(0); n != 48 {
		t.Fatalf("first step %d, want 48", n)
	}
	c.Sent(48)
	// 48 answered: want 100, in flight 0, plan 950: correction -850, -42 per step.
	// 48 + (50-42) = 56 sectors.
	if n := c.Next(48); n != 56 {
		t.Errorf("second step %d, want 56", n)
	}
	if c.InFlight() != 0 {
		t.Errorf("in flight %d", c.InFlight())
	}
}

func TestFillTarget(t *testing.T) {
	// Besides what the link answers in one step, the target stays under way.
	const target, link = 800, 256 // sectors
	c := NewRateController(20, 10, target, 102400, 10240)
	drive(c, 600, 1, link)
	if got := c.InFlight(); got < target || got > target+2*link {
		t.Errorf("settled at %d sectors under way, target %d", got, target)
	}
}

func TestDelayTarget(t *testing.T) {
	// The link does 2048 sectors per step; a delay target of 1 s allows ten
	// steps' worth of them under way, and keeps the link busy.
	c := NewRateController(20, 10, 0, 4194304, 250)
	sent := drive(c, 1000, 1, 2048)
	if got := sum(sent[900:]) / 100; got < 1800 || got > 2300 {
		t.Errorf("%d sectors per step over a link of 2048", got)
	}
	if c.InFlight() < 2048 || c.InFlight() > 4*20480 {
		t.Errorf("%d sectors under way, want about 20480", c.InFlight())
	}
}

func TestRateLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		maxRate := rapid.Uint32Range(250, 4194304).Draw(t, "max")
		plan := rapid.Uint32Range(0, 300).Draw(t, "plan")
		c := NewRateController(plan,
			rapid.Uint32Range(1, 100).Draw(t, "delay"), rapid.Uint32Range(0, 1048576).Draw(t, "fill"),
			maxRate, rapid.Uint32Range(1, 8388608).Draw(t, "rate"))
		pages := rapid.IntRange(32, 131072).Draw(t, "buffers")
		c.SetMaxBuffers(pages)
		link := rapid.IntRange(8, 1<<20).Draw(t, "link")
		backlog, total := 0, 0
		for range 400 {
			in := min(backlog, link)
			n := c.Next(in)
			backlog += n - in
			c.Sent(n)
			total += n
			if n < 0 || n%8 != 0 || c.InFlight() > pages/2*8 || c.InFlight() != backlog {
				t.Fatalf("step of %d sectors, %d of %d under way, %d buffers", n, c.InFlight(), backlog, pages)
			}
			if plan > 0 && n > int(maxRate)*2/10 {
				t.Fatalf("step of %d sectors at c-max-rate %d", n, maxRate)
			}
		}
		if total == 0 {
			t.Fatal("the resync stands still")
		}
	})
}
