package blockdev

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Sizes of pooled buffers: powers of two.
const (
	poolMinBits = 12 // 4 KiB
	poolMaxBits = 20 // MaxRequest
	poolClasses = poolMaxBits - poolMinBits + 1
)

// poolBytes is what buffers in use and idle ones may come to together before
// idle ones are given up, bytes (our own): more than is in use under any load that
// was seen, as what is given up and made again is garbage for a while.
const poolBytes = 18 << 20

// A Pool keeps buffers for requests, aligned as AlignedBuffer's, for reuse. What
// is in use is bounded by its users; what is idle by what that leaves of a fixed
// sum, whatever sizes were in demand before. The zero Pool is ready for use; it is
// safe for concurrent use.
type Pool struct {
	made    atomic.Int64 // bytes: in use, or idle
	classes [poolClasses]struct {
		mu   sync.Mutex
		idle [][]byte
	}
}

// Buffers is the one pool of this process: what one user leaves idle serves
// another.
var Buffers Pool

func poolClass(n int) int {
	if n <= 1<<poolMinBits {
		return 0
	}
	return bits.Len(uint(n-1)) - poolMinBits
}

// PooledSize is the capacity of the buffer that Get returns for n bytes, 0 < n <=
// MaxRequest.
func PooledSize(n int) int { return 1 << (poolClass(n) + poolMinBits) }

// Get returns a buffer of n bytes, 0 < n <= MaxRequest. Its contents are arbitrary.
func (p *Pool) Get(n int) []byte {
	c := &p.classes[poolClass(n)]
	c.mu.Lock()
	if last := len(c.idle) - 1; last >= 0 {
		b := c.idle[last]
		c.idle[last] = nil
		c.idle = c.idle[:last]
		c.mu.Unlock()
		return b[:n]
	}
	c.mu.Unlock()
	size := PooledSize(n)
	p.made.Add(int64(size))
	return AlignedBuffer(size)[:n]
}

// Put takes a buffer of Get back. It reports false, and does nothing, if b has no
// size of a pooled one.
func (p *Pool) Put(b []byte) bool {
	size := cap(b)
	if size < 1<<poolMinBits || size > 1<<poolMaxBits || size&(size-1) != 0 {
		return false
	}
	if p.made.Load() > poolBytes && !p.evict(size) {
		p.made.Add(-int64(size))
		return true
	}
	c := &p.classes[poolClass(size)]
	c.mu.Lock()
	c.idle = append(c.idle, b[:size])
	c.mu.Unlock()
	return true
}

// evict gives idle buffers of other sizes up until the sum is met: what was used
// last is in demand. It reports whether it is.
func (p *Pool) evict(size int) bool {
	for i := poolClasses - 1; i >= 0; i-- {
		c := &p.classes[i]
		if i == poolClass(size) {
			continue
		}
		c.mu.Lock()
		for last := len(c.idle) - 1; last >= 0 && p.made.Load() > poolBytes; last-- {
			p.made.Add(-int64(cap(c.idle[last])))
			c.idle[last] = nil
			c.idle = c.idle[:last]
		}
		c.mu.Unlock()
		if p.made.Load() <= poolBytes {
			return true
		}
	}
	return false
}
