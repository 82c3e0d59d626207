package export

import (
	"sync"

	"github.com/pollux-project/pollux/blockdev"
)

// classes are the sizes of pooled buffers, in bytes, and how many idle ones
// are kept of each: 13 MiB in all at most.
var classes = [...]struct{ size, idle int }{
	{4 << 10, 512},
	{16 << 10, 64},
	{64 << 10, 32},
	{256 << 10, 16},
	{1 << 20, 4},
}

// A bufferPool keeps aligned buffers of a server's connections for reuse. What
// is in use is bounded by the connections' limits of bytes in flight.
type bufferPool struct {
	classes [len(classes)]struct {
		mu   sync.Mutex
		idle [][]byte
	}
}

// get returns a buffer of n bytes, 0 < n <= blockdev.MaxRequest, with a
// capacity of its class. Its contents are arbitrary.
func (p *bufferPool) get(n int) []byte {
	for i := range classes {
		if n > classes[i].size {
			continue
		}
		c := &p.classes[i]
		c.mu.Lock()
		if last := len(c.idle) - 1; last >= 0 {
			b := c.idle[last]
			c.idle = c.idle[:last]
			c.mu.Unlock()
			return b[:n]
		}
		c.mu.Unlock()
		return blockdev.AlignedBuffer(classes[i].size)[:n]
	}
	panic("export: buffer larger than a request")
}

// put takes a buffer of get back.
func (p *bufferPool) put(b []byte) {
	b = b[:cap(b)]
	for i := range classes {
		if len(b) != classes[i].size {
			continue
		}
		c := &p.classes[i]
		c.mu.Lock()
		if len(c.idle) < classes[i].idle {
			c.idle = append(c.idle, b)
		}
		c.mu.Unlock()
		return
	}
	panic("export: buffer of no class")
}

// classSize is the capacity of the buffer that get returns for n bytes.
func classSize(n int) int64 {
	for i := range classes {
		if n <= classes[i].size {
			return int64(classes[i].size)
		}
	}
	panic("export: buffer larger than a request")
}
