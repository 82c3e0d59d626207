package perf

import (
	"math/bits"
	"sync/atomic"
)

// Layout of a Histogram: buckets of unit ns up to 16 units, then 16 for each
// power of two, up to 2^36 ns = 68 s. What is longer counts in the last one.
const (
	unitBits = 6 // 64 ns: below what the clock can tell of a system call
	subBits  = 4
	sub      = 1 << subBits
	maxBits  = 36
	buckets  = (maxBits-unitBits-subBits)*sub + sub
)

// A Histogram counts durations in nanoseconds. The zero value is empty; it is
// safe for concurrent use.
type Histogram struct {
	counts [buckets]atomic.Uint64
	sum    atomic.Int64
	max    atomic.Int64
}

// Add counts one duration, in ns. A negative one counts as 0.
func (h *Histogram) Add(ns int64) {
	ns = max(ns, 0)
	h.counts[index(ns)].Add(1)
	h.sum.Add(ns)
	for {
		m := h.max.Load()
		if ns <= m || h.max.CompareAndSwap(m, ns) {
			return
		}
	}
}

// index is the bucket of a duration.
func index(ns int64) int {
	u := uint64(ns) >> unitBits
	if u < sub {
		return int(u)
	}
	e := bits.Len64(u) - subBits - 1
	return min((e+1)<<subBits+int(u>>e)&(sub-1), buckets-1)
}

// lower is the smallest duration of a bucket, in ns.
func lower(i int) int64 {
	if i < sub {
		return int64(i) << unitBits
	}
	e := i>>subBits - 1
	return int64(sub+i&(sub-1)) << e << unitBits
}

// middle is the duration that a bucket's samples are taken for, in ns.
func middle(i int) int64 { return (lower(i) + lower(i+1)) / 2 }

// Snapshot is what h has counted.
func (h *Histogram) Snapshot() Snapshot {
	var s Snapshot
	if h == nil {
		return s
	}
	s.Sum, s.Max = h.sum.Load(), h.max.Load()
	for i := range h.counts {
		if n := h.counts[i].Load(); n > 0 {
			s.Buckets = append(s.Buckets, Bucket{NS: middle(i), Count: n})
			s.Count += n
		}
	}
	return s
}

// A Bucket is that Count samples took about NS nanoseconds.
type Bucket struct {
	NS    int64
	Count uint64
}

// A Snapshot is what a Histogram had counted at one time. While requests go on
// its fields may be a few samples apart.
type Snapshot struct {
	Count   uint64
	Sum     int64    // ns
	Max     int64    // ns
	Buckets []Bucket // ascending, none with a count of 0
}

// Percentile is the duration, in ns, that q of 100 samples did not exceed; 0 if
// there are none.
func (s Snapshot) Percentile(q float64) int64 {
	var all uint64
	for _, b := range s.Buckets {
		all += b.Count
	}
	if all == 0 {
		return 0
	}
	rank := uint64(q / 100 * float64(all))
	if float64(rank) < q/100*float64(all) {
		rank++
	}
	rank = max(rank, 1)
	var seen uint64
	for _, b := range s.Buckets {
		if seen += b.Count; seen >= rank {
			return min(b.NS, s.Max)
		}
	}
	return s.Max
}

// Mean is the average in ns.
func (s Snapshot) Mean() int64 {
	if s.Count == 0 {
		return 0
	}
	return s.Sum / int64(s.Count)
}

// Since is what was counted after old, which is an earlier Snapshot of the same
// histogram. Its Max is that of the highest bucket.
func (s Snapshot) Since(old Snapshot) Snapshot {
	if len(old.Buckets) == 0 {
		return s
	}
	d := Snapshot{Sum: s.Sum - old.Sum}
	i := 0
	for _, b := range s.Buckets {
		for i < len(old.Buckets) && old.Buckets[i].NS < b.NS {
			i++
		}
		if i < len(old.Buckets) && old.Buckets[i].NS == b.NS {
			b.Count -= min(old.Buckets[i].Count, b.Count)
		}
		if b.Count > 0 {
			d.Buckets = append(d.Buckets, b)
			d.Count += b.Count
			d.Max = min(lower(index(b.NS)+1), s.Max)
		}
	}
	return d
}

// Merge is what both have counted.
func (s Snapshot) Merge(o Snapshot) Snapshot {
	m := Snapshot{Count: s.Count + o.Count, Sum: s.Sum + o.Sum, Max: max(s.Max, o.Max)}
	a, b := s.Buckets, o.Buckets
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].NS < b[0].NS:
			m.Buckets, a = append(m.Buckets, a[0]), a[1:]
		case len(a) == 0 || b[0].NS < a[0].NS:
			m.Buckets, b = append(m.Buckets, b[0]), b[1:]
		default:
			m.Buckets = append(m.Buckets, Bucket{a[0].NS, a[0].Count + b[0].Count})
			a, b = a[1:], b[1:]
		}
	}
	return m
}

// Below is how many samples were shorter than 2^power ns, which is the edge of
// a bucket from 64 ns on.
func (s Snapshot) Below(power int) uint64 {
	var n uint64
	for _, b := range s.Buckets {
		if b.NS < 1<<power {
			n += b.Count
		}
	}
	return n
}
