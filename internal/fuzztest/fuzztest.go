// Package fuzztest is what fuzz targets share: a fuzzer's bytes read as a program,
// and a bound on what one run may allocate.
package fuzztest

import (
	"encoding/binary"
	"runtime"
	"testing"
)

// A Program is the bytes of a fuzzer, of which each chooses something. It ends
// with zeroes, so that any bytes are one.
type Program struct{ rest []byte }

// NewProgram reads b from its beginning; b is not changed.
func NewProgram(b []byte) *Program { return &Program{b} }

// Left is how many bytes are left.
func (p *Program) Left() int { return len(p.rest) }

// Byte is the next byte, 0 behind the end.
func (p *Program) Byte() byte {
	if len(p.rest) == 0 {
		return 0
	}
	x := p.rest[0]
	p.rest = p.rest[1:]
	return x
}

// Uint32 is the next four bytes, big endian.
func (p *Program) Uint32() uint32 {
	return binary.BigEndian.Uint32([]byte{p.Byte(), p.Byte(), p.Byte(), p.Byte()})
}

// Take is the next n bytes, or as many as are left. Appending to them copies.
func (p *Program) Take(n int) []byte {
	n = min(n, len(p.rest))
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

// Bounded runs a function, and fails the test if more than limit bytes were
// allocated meanwhile, by whichever goroutine.
func Bounded(t testing.TB, limit uint64, run func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > limit {
		t.Errorf("%d bytes were allocated, want at most %d", n, limit)
	}
}
