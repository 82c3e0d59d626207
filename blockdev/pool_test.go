package blockdev

import (
	"testing"
	"unsafe"
)

func TestPool(t *testing.T) {
	for _, tt := range []struct{ n, capacity int }{{1, 4096}, {4096, 4096}, {4097, 8192}, {100_000, 128 << 10}, {MaxRequest, MaxRequest}} {
		var p Pool
		b := p.Get(tt.n)
		if len(b) != tt.n || cap(b) != tt.capacity || PooledSize(tt.n) != tt.capacity || uintptr(unsafe.Pointer(&b[0]))%4096 != 0 {
			t.Errorf("%d bytes: length %d, capacity %d, want %d, at %p", tt.n, len(b), cap(b), tt.capacity, &b[0])
		}
		if !p.Put(b[:1]) || &p.Get(tt.n)[0] != &b[0] {
			t.Errorf("%d bytes: the buffer does not come again", tt.n)
		}
	}
	var p Pool
	for _, n := range []int{0, 512, 4097, 2 * MaxRequest} {
		if p.Put(make([]byte, n)) {
			t.Errorf("a buffer of %d bytes was taken", n)
		}
	}
}

// Idle buffers and those in use share one bound; the sizes that are in demand
// push the others out.
func TestPoolBound(t *testing.T) {
	idle := func(p *Pool) (bytes int) {
		for i := range p.classes {
			for _, b := range p.classes[i].idle {
				bytes += cap(b)
			}
		}
		return bytes
	}
	var p Pool
	use := func(size int) (bufs [][]byte) {
		for range 2 * poolBytes / size {
			bufs = append(bufs, p.Get(size))
		}
		return bufs
	}
	for _, size := range []int{1 << 20, 4096, 64 << 10} {
		for _, b := range use(size) {
			p.Put(b)
		}
		if got := idle(&p); got > poolBytes || got < poolBytes/2 || p.made.Load() != int64(got) {
			t.Errorf("after buffers of %d bytes: %d bytes are idle, %d counted, the bound is %d", size, got, p.made.Load(), poolBytes)
		}
		if n := len(p.classes[poolClass(size)].idle); n < poolBytes/size/2 {
			t.Errorf("only %d buffers of %d bytes are idle after their use", n, size)
		}
	}
}
