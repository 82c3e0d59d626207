package engine

import (
	"time"

	"golang.org/x/sys/unix"
)

// slept counts how long the host was suspended: Go's clock, CLOCK_MONOTONIC, stands
// still then. To ask CLOCK_BOOTTIME is a system call, which must not be made for each
// request; the wall clock is not, and jumps when the host wakes up (or when it is set:
// then the question was for nothing). Used under the engine's lock, and only while a
// lease was told.
type slept struct {
	total time.Duration // never less than before
	jump  time.Duration // wall clock less monotonic clock, as it was seen last
	base  time.Duration // of that, CLOCK_BOOTTIME less monotonic clock, at the first look

	wall, boot func() time.Duration // tests have others; nil: the host's
}

// jumpSize is by how much the clocks must part to be asked about. Our own: more than
// a clock that is slewed makes up between two looks, less than any lease.
const jumpSize = 100 * time.Millisecond

// look brings total up to date; since is the monotonic clock.
func (s *slept) look(since time.Duration) {
	if s.wall == nil {
		s.wall, s.boot = wallClock, bootClock
	}
	jump := s.wall() - since
	if d := jump - s.jump; s.base != 0 && d < jumpSize && d > -jumpSize {
		return
	}
	s.jump = jump
	gap := s.boot() - since
	if s.base == 0 {
		s.base = gap
	}
	s.total = max(s.total, gap-s.base)
}

func wallClock() time.Duration { return time.Duration(time.Now().UnixNano()) }

func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // since Linux 2.6.39 it can't fail; then nothing is added
	}
	return time.Duration(ts.Nano())
}
