package engine

import (
	"math/bits"
	"sync"

	"github.com/pollux-project/pollux/blockdev"
)

// pool keeps payload buffers of the peer's packets by size class: powers of
// two from 4 KiB to 1 MiB, aligned for O_DIRECT. What is idle is bounded; what
// is in use is bounded by the core, which stops reading the peer.
type pool struct {
	mu   sync.Mutex
	free [poolClasses][][]byte
}

const (
	poolMinBits = 12 // 4 KiB
	poolMaxBits = 20 // 1 MiB
	poolClasses = poolMaxBits - poolMinBits + 1
	poolIdle    = 1 << 20 // bytes kept per class
)

func classOf(n int) int {
	if n <= 1<<poolMinBits {
		return 0
	}
	return bits.Len(uint(n-1)) - poolMinBits
}

func (p *pool) get(n int) []byte {
	c := classOf(n)
	p.mu.Lock()
	if k := len(p.free[c]); k > 0 {
		b := p.free[c][k-1]
		p.free[c] = p.free[c][:k-1]
		p.mu.Unlock()
		return b[:n]
	}
	p.mu.Unlock()
	return blockdev.AlignedBuffer(1 << (c + poolMinBits))[:n]
}

func (p *pool) put(b []byte) {
	c := classOf(cap(b))
	if cap(b) != 1<<(c+poolMinBits) {
		return // not one of ours
	}
	p.mu.Lock()
	if len(p.free[c])<<(c+poolMinBits) < poolIdle {
		p.free[c] = append(p.free[c], b)
	}
	p.mu.Unlock()
}
