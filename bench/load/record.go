package load

import (
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// A Result is what a load came to.
type Result struct {
	Ops     int64 // that were answered without an error while it was recorded
	Bytes   int64 // that they moved
	Errors  int64 // that were answered with one
	Refusal error // the first of these errors; nil if there was none
	Seconds float64
	Latency *result.Histogram // of the operations in Ops
	Started time.Time         // when the first request went, warm-up included
	Trace   []Completion      // if Spec.Trace: of all operations, warm-up included, in no order
}

// A Completion is when an operation ended and what it had taken.
type Completion struct {
	At   time.Duration // since Result.Started
	Took time.Duration
}

// clock is what all connections of one load go by.
type clock struct {
	start  time.Time     // first request
	record time.Duration // since start: recording begins
	end    time.Duration // since start: it ends; 0 = by count
}

// recorder belongs to one connection.
type recorder struct {
	clock   clock
	latency *result.Histogram
	trace   []Completion
	isTrace bool
	ops     int64
	bytes   int64
	errors  int64
	refusal error
	last    time.Duration // since start: the last recorded operation
}

// took notes an operation that ended at now. began and now count from the
// clock's start.
func (r *recorder) took(began, now time.Duration, bytes int) {
	if r.isTrace {
		r.trace = append(r.trace, Completion{now, now - began})
	}
	if now < r.clock.record || r.clock.end > 0 && now > r.clock.end {
		return
	}
	r.latency.Record(now - began)
	r.ops++
	r.bytes += int64(bytes)
	r.last = now
}

// refused notes an operation that was answered with an error.
func (r *recorder) refused(err error) {
	r.errors++
	if r.refusal == nil {
		r.refusal = err
	}
}

// isOver reports whether no further request may go.
func (r *recorder) isOver(now time.Duration) bool { return r.clock.end > 0 && now >= r.clock.end }
