package load

import (
	"errors"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// Limits of a Spec. Source: the NBD protocol's largest payload that a server
// need not refuse is 32 MiB; the others are our own.
const (
	MinBlock       = 512
	MaxBlock       = 4 << 20
	MaxDepth       = 256
	MaxConnections = 16
)

// A Spec is what to do to a device.
type Spec struct {
	Workload    result.Workload // its name is of no account
	OffsetBytes int64           // where the range begins that is used
	SizeBytes   int64           // of that range: nothing outside is read or written
	StrideBytes int64           // from one place to the next, a multiple of the block; 0 = the block: places adjoin
	Warmup      time.Duration   // at the beginning, not recorded
	Duration    time.Duration   // that is recorded
	Count       int64           // operations, all connections together; > 0 = instead of Duration and Warmup
	Seed        uint64          // of places and payloads
	Trace       bool            // keep when each operation ended, see Result.Trace

	// Begin and End are called when recording begins and when it is over, from
	// one goroutine: for reading the servers' CPU times. nil = nobody wants to know.
	Begin, End func()
}

// Validate reports everything that is wrong with a spec.
func (s *Spec) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	w := s.Workload
	switch w.Op {
	case result.OpWrite, result.OpRead, result.OpMixed:
	default:
		bad("operation %q: there are write, read and mixed", w.Op)
	}
	if w.Op == result.OpMixed && (w.ReadPercent < 1 || w.ReadPercent > 99) {
		bad("%d %% of reads in a mixed workload: 1 to 99 are possible", w.ReadPercent)
	}
	if w.Pattern != result.PatternRandom && w.Pattern != result.PatternSequential {
		bad("pattern %q: there are random and sequential", w.Pattern)
	}
	switch w.Class {
	case result.ClassBuffered, result.ClassDirect, result.ClassFlush, result.ClassFUA:
	default:
		bad("class %q: there are buffered, direct, flush and fua", w.Class)
	}
	if w.BlockBytes < MinBlock || w.BlockBytes > MaxBlock || w.BlockBytes%MinBlock != 0 {
		bad("blocks of %d bytes: multiples of %d up to %d are possible", w.BlockBytes, MinBlock, MaxBlock)
	}
	if w.Connections < 1 || w.Connections > MaxConnections {
		bad("%d connections: 1 to %d are possible", w.Connections, MaxConnections)
	}
	if w.Depth < max(1, w.Connections) || w.Depth > MaxDepth {
		bad("a depth of %d: %d (one for each connection) to %d is possible", w.Depth, max(1, w.Connections), MaxDepth)
	}
	if s.OffsetBytes < 0 || s.OffsetBytes%MinBlock != 0 {
		bad("an offset of %d bytes: it must be a multiple of %d", s.OffsetBytes, MinBlock)
	}
	if len(errs) == 0 && s.StrideBytes%int64(w.BlockBytes) != 0 || s.StrideBytes < 0 {
		bad("places %d bytes apart: it must be a multiple of the block, %d", s.StrideBytes, w.BlockBytes)
	}
	if len(errs) == 0 && s.SizeBytes/s.stride() < int64(w.Connections) {
		bad("a range of %d bytes: it must hold a block of %d bytes for each connection", s.SizeBytes, w.BlockBytes)
	}
	if s.Count < 0 || s.Warmup < 0 || s.Count == 0 && s.Duration <= 0 {
		bad("a duration of %v after %v of warm-up, or %d operations: one of duration and operations must be above 0", s.Duration, s.Warmup, s.Count)
	}
	return errors.Join(errs...)
}

// stride is the distance of two neighbouring places, in bytes.
func (s *Spec) stride() int64 { return max(s.StrideBytes, int64(s.Workload.BlockBytes)) }

// share is what part n gets of total when parts get it as evenly as possible.
func share(total, parts, n int) int {
	if n < total%parts {
		return total/parts + 1
	}
	return total / parts
}
