package export

import "github.com/pollux-project/pollux/blockdev"

// bufferPool is this process's pool, with the bound of what is in use kept by the
// connections' limits of bytes in flight.
type bufferPool struct{}

// get returns a buffer of n bytes, 0 < n <= blockdev.MaxRequest. Its contents are
// arbitrary.
func (bufferPool) get(n int) []byte { return blockdev.Buffers.Get(n) }

// put takes a buffer of get back.
func (bufferPool) put(b []byte) {
	if !blockdev.Buffers.Put(b) {
		panic("export: buffer of no class")
	}
}

// classSize is the capacity of the buffer that get returns for n bytes.
func classSize(n int) int64 { return int64(blockdev.PooledSize(n)) }
