package engine

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"
)

// lendingOut is an out with a lender, on a connection whose buffers hold little.
func lendingOut(t *testing.T) (o *out, l *lender, received func(n int) []byte) {
	t.Helper()
	from, to := tcpPair(t)
	l = &lender{pool: new(pool)}
	o, _, _ = startOut(t, from, patience{time.Minute, 1})
	o.lender = l
	l.add(o)
	return o, l, func(n int) []byte {
		t.Helper()
		got := make([]byte, n)
		if _, err := io.ReadFull(to, got); err != nil {
			t.Fatal(err)
		}
		return got
	}
}

// What is lent arrives between what is copied, whatever the socket takes at once.
func TestLentOrder(t *testing.T) {
	o, l, received := lendingOut(t)
	var want []byte
	for i := range 200 {
		head, data := pattern(uint64(i), 24+i), pattern(uint64(1000+i), []int{0, 4096, lendFrom, 300 << 10}[i%4])
		want = append(append(want, head...), data...)
		o.file(head, data, "")
		if i%7 == 0 {
			o.flush()
		}
	}
	o.flush()
	if got := received(len(want)); !bytes.Equal(got, want) {
		t.Fatal("the stream is not what was filed")
	}
	deadline := time.Now().Add(5 * time.Second)
	for l.count.Load() != 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond) // the sender accounts for it a moment after the receiver has it
	}
	if n := l.count.Load(); n != 0 {
		t.Errorf("%d loans are left after all was sent", n)
	}
}

// A client's memory may change once it is recalled, though it was not sent yet.
func TestLentRecalled(t *testing.T) {
	o, l, received := lendingOut(t)
	first, second := pattern(1, 8<<20), pattern(2, 1<<20)
	want := append(bytes.Clone(first), second...)
	o.file(nil, first, "") // more than the socket takes
	o.file(nil, second, "")
	o.flush()
	for _, data := range [][]byte{first, second} {
		l.recall(data)
		clear(data)
	}
	if got := received(len(want)); !bytes.Equal(got, want) {
		t.Fatal("the peer got what was written to the memory after it was recalled")
	}
}

// A buffer of the pool goes back when it is sent, not before.
func TestLentFreed(t *testing.T) {
	o, l, received := lendingOut(t)
	block := pattern(1, 8<<20)
	o.file(nil, block, "")
	b := l.pool.get(256 << 10)
	copy(b, pattern(2, len(b)))
	o.file(nil, b, "")
	o.flush()
	l.free(b)
	if other := l.pool.get(256 << 10); &other[0] == &b[0] {
		t.Fatal("the pool gives out a buffer that is still to be sent")
	}
	received(len(block) + len(b))
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if other := l.pool.get(256 << 10); &other[0] == &b[0] {
			return
		}
		time.Sleep(time.Millisecond) // as above: nothing tells of a buffer's return
	}
	t.Error("the buffer that was sent never came back to the pool")
}

// A connection that is over has nothing of anybody, and sends nothing more: a
// payload that was taken back must not be filled up with the next packet.
func TestLentForgotten(t *testing.T) {
	o, l, _ := lendingOut(t)
	b := l.pool.get(256 << 10)
	o.file(nil, b, "")
	l.free(b)
	l.forget(o)
	if n := l.count.Load(); n != 0 {
		t.Errorf("%d loans are left", n)
	}
	if other := l.pool.get(256 << 10); &other[0] != &b[0] {
		t.Error("the buffer is not back in the pool")
	}
	o.mu.Lock()
	o.take()
	o.mu.Unlock()
	if n, err := o.write(); n != 0 || !errors.Is(err, errOutClosed) {
		t.Errorf("sent %d bytes with %v, want none with %v", n, err, errOutClosed)
	}
}
