package engine

import (
	"testing"
	"time"
)

// Timers that may be late are due at one time; none is early, and a short one is exact.
func TestTogether(t *testing.T) {
	for _, now := range []time.Duration{0, 1, 249 * time.Millisecond, 250 * time.Millisecond, time.Hour + 3*time.Millisecond} {
		for _, in := range []time.Duration{0, 500 * time.Millisecond, coarseFrom - 1, coarseFrom, 10 * time.Second, 10*time.Second + 1} {
			got := together(in, now)
			switch {
			case in < coarseFrom && got != in:
				t.Errorf("a timer of %v waits %v", in, got)
			case got < in || got-in >= timerGrid:
				t.Errorf("a timer of %v at %v waits %v, want up to %v more", in, now, got, timerGrid)
			case in >= coarseFrom && (now+got)%timerGrid != 0:
				t.Errorf("a timer of %v at %v is due at %v, want a multiple of %v", in, now, now+got, timerGrid)
			}
		}
	}
}
