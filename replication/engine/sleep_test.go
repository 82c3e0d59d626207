package engine

import (
	"testing"
	"time"
)

// TestSuspendEndsLease: the core's clock counts the time in which the host was
// suspended, as soon as a lease was told, and neither a wall clock that is set nor one
// that is slewed changes it.
func TestSuspendEndsLease(t *testing.T) {
	wall, boot := 1000*time.Hour, 5*time.Hour
	since := time.Minute
	questions := 0
	e := &Engine{}
	e.slept.wall = func() time.Duration { return wall + since }
	e.slept.boot = func() time.Duration { questions++; return boot + since }
	pass := func(d time.Duration) int64 {
		since += d
		return int64(e.tick(since))
	}
	if got := pass(time.Second); got != 61_001 || questions != 0 {
		t.Fatalf("without a lease: tick %d, %d questions", got, questions)
	}
	e.sleeps = true
	if got := pass(time.Second); got != 62_001 {
		t.Fatalf("a lease: tick %d", got)
	}
	for range 1000 {
		wall += time.Millisecond / 10 // slewed
		pass(time.Millisecond)
	}
	if got := pass(0); got != 63_001 || questions > 3 {
		t.Fatalf("after a second: tick %d, %d questions", got, questions)
	}
	wall -= time.Hour // set
	if got := pass(0); got != 63_001 {
		t.Fatalf("after the wall clock was set: tick %d", got)
	}
	wall, boot = wall+30*time.Second, boot+30*time.Second // suspended
	if got := pass(time.Millisecond); got != 93_002 {
		t.Fatalf("after 30 s of sleep: tick %d, want 93002", got)
	}
	wall -= 40 * time.Second
	if got := pass(0); got != 93_002 {
		t.Fatalf("the clock went back to %d", got)
	}
}

// TestBootClock: the real clocks agree as long as nobody sleeps.
func TestBootClock(t *testing.T) {
	e := &Engine{start: time.Now(), sleeps: true}
	first := e.now()
	e.slept.jump += time.Hour // have it look again
	if d := e.now() - first; e.slept.base <= 0 || d < 0 || d > 10_000 {
		t.Errorf("base %v, %d ms later", e.slept.base, d)
	}
}
