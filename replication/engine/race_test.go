//go:build race

package engine

// underRace: the race detector has sync.Pool forget a part of what it is given,
// and crypto/tls keeps its buffers in one.
const underRace = true
