package perf

import (
	"sync/atomic"
	"time"
)

// base is the origin of Now.
var base = time.Now()

// Now is the clock of all Points: nanoseconds, monotonic, only differences mean
// anything. One call reads the machine's clock without a system call.
func Now() int64 { return int64(time.Since(base)) }

// At is what Now was at t, which has a monotonic reading.
func At(t time.Time) int64 { return int64(t.Sub(base)) }

// A Point is something that happens to a request once.
type Point uint8

// The points of a client's request.
const (
	Read       Point = iota // off the client's socket
	Submitted               // the engine has the lock and looks at it
	Waits                   // for a transaction of the activity log
	Started                 // ordered: from the disk, the peer, or both
	LocalBegun              // its system call
	LocalDone               // its result is stepped
	AckRead                 // the peer's answer was read
	Acked                   // and is stepped
	Completed
	points
)

// A Trace is the times of one request. The zero value is ready for Begin. All
// but Sent is for whoever owns the request at that time.
type Trace struct {
	at   [points]int64
	gen  uint16
	sent atomic.Uint64 // generation<<48 | the time, 0 = not yet
}

// Begin starts anew: the request was read at this time.
func (t *Trace) Begin(read int64) {
	t.at = [points]int64{Read: read}
	t.gen++
	t.sent.Store(uint64(t.gen) << timeBits)
}

// Set notes the time of a point.
func (t *Trace) Set(p Point, ns int64) { t.at[p] = ns }

const (
	timeBits = 48 // of ns: 78 hours
	timeMask = 1<<timeBits - 1
)

// A Sending is a packet of a request on its way into the socket. That may end
// after the request: what comes too late for its Trace is dropped.
type Sending struct {
	t   *Trace
	gen uint16
}

// Sending returns what is to be told that the packet is in the socket.
func (t *Trace) Sending() Sending { return Sending{t, t.gen} }

// Sent notes the time. Safe for concurrent use with everything else.
func (s Sending) Sent(ns int64) {
	g := uint64(s.gen) << timeBits
	s.t.sent.CompareAndSwap(g, g|uint64(ns)&timeMask|1)
}

func (t *Trace) isSent() bool { return t.sent.Load()&timeMask != 0 }

// sentAt is when the packet was handed to the socket, and not later than limit;
// limit if that is not known: the peer's answer may be read before the sender
// gets to look at the clock.
func (t *Trace) sentAt(limit int64) int64 {
	s := t.sent.Load() & timeMask
	if s == 0 {
		return limit
	}
	ago := (uint64(limit) - s) & timeMask
	if ago > timeMask/2 { // after limit
		return limit
	}
	return max(limit-int64(ago), t.at[Started])
}
