package engine

import "github.com/pollux-project/pollux/blockdev"

// pool has payload buffers for the peer's packets, of this process's pool: what
// one resource leaves idle serves another. What is in use is bounded by the core,
// which stops reading the peer.
type pool struct{}

func (pool) get(n int) []byte { return blockdev.Buffers.Get(n) }

// put takes a buffer back if it is one of get's.
func (pool) put(b []byte) { blockdev.Buffers.Put(b) }
