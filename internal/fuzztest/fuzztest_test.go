package fuzztest

import (
	"bytes"
	"testing"
)

// TestProgram: what is read is what stands there, then zeroes; the fuzzer's bytes
// stay as they are, whatever is done with the parts.
func TestProgram(t *testing.T) {
	b := []byte{1, 2, 3, 4, 5, 6}
	p := NewProgram(b)
	if x := p.Byte(); x != 1 {
		t.Errorf("first byte: %d", x)
	}
	two := append(p.Take(2), 9)
	if !bytes.Equal(two, []byte{2, 3, 9}) || !bytes.Equal(b, []byte{1, 2, 3, 4, 5, 6}) {
		t.Errorf("took %v, left %v", two, b)
	}
	if x := p.Uint32(); x != 0x04050600 || p.Left() != 0 {
		t.Errorf("number over the end: %#x, %d left", x, p.Left())
	}
	if rest := p.Take(3); len(rest) != 0 || p.Byte() != 0 {
		t.Errorf("behind the end: %v", rest)
	}
}

// failures counts what a test would report.
type failures struct {
	testing.TB
	n int
}

func (f *failures) Helper()               {}
func (f *failures) Errorf(string, ...any) { f.n++ }

var kept []byte

func TestBounded(t *testing.T) {
	for _, tt := range []struct{ size, fails int }{{1 << 10, 0}, {8 << 20, 1}} {
		f := &failures{TB: t}
		Bounded(f, 4<<20, func() { kept = make([]byte, tt.size) })
		if f.n != tt.fails {
			t.Errorf("%d bytes of 4 MiB: %d failures, want %d", tt.size, f.n, tt.fails)
		}
	}
}
