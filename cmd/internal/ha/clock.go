package ha

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A clock is where the runtime's time comes from; tests have another.
type clock interface {
	// now is in milliseconds, never goes back, and counts while the host sleeps:
	// a lease ends during a suspend as well.
	now() int64
	// alarm makes a timer that sends on its channel when the time given last to
	// set has come.
	alarm() (alarm, error)
}

// An alarm is one timer; set may be called at any time, also from another
// goroutine than the one that receives.
type alarm interface {
	set(at int64) // at or before now: at once; negative: never
	fired() <-chan struct{}
	close()
}

// bootClock is CLOCK_BOOTTIME. Go's own timers stand still while the host is
// suspended, so they can't measure a lease.
type bootClock struct{}

func (bootClock) now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("polluxha: clock_gettime(CLOCK_BOOTTIME): %v", err)) // since Linux 2.6.39 it can't
	}
	return ts.Nano() / int64(time.Millisecond)
}

func (bootClock) alarm() (alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd: %w", err)
	}
	a := &bootAlarm{f: os.NewFile(uintptr(fd), "timerfd"), c: make(chan struct{}, 1)}
	go a.run()
	return a, nil
}

type bootAlarm struct {
	f *os.File
	c chan struct{}
}

func (a *bootAlarm) set(at int64) {
	var spec unix.ItimerSpec // zero: off
	if at >= 0 {
		spec.Value = unix.NsecToTimespec(max(at, 1) * int64(time.Millisecond))
	}
	conn, err := a.f.SyscallConn()
	if err == nil { // else it is closed: nobody waits any more
		_ = conn.Control(func(fd uintptr) { // as above
			_ = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil) // fails on a wrong spec only
		})
	}
}

func (a *bootAlarm) fired() <-chan struct{} { return a.c }
func (a *bootAlarm) close()                 { a.f.Close() } //nolint:errcheck // nothing was written

func (a *bootAlarm) run() {
	var count [8]byte
	for {
		if _, err := a.f.Read(count[:]); err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECANCELED) {
				continue
			}
			return // closed
		}
		select {
		case a.c <- struct{}{}:
		default: // one is waiting already
		}
	}
}
