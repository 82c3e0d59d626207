package engine

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// tcpPair is a connection whose buffers hold little.
func tcpPair(t *testing.T) (from, to *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	from, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	if to, err = ln.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(from.SetWriteBuffer(64<<10), to.SetReadBuffer(64<<10)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close(); to.Close() })
	return from, to
}

// startOut is an out on a connection, with what it reports.
func startOut(t *testing.T, conn *net.TCPConn, may patience) (o *out, blocks *atomic.Int32, failed chan error) {
	t.Helper()
	o, err := newOut(&sock{TCPConn: conn}, func() patience { return may })
	if err != nil {
		t.Fatal(err)
	}
	blocks, failed = new(atomic.Int32), make(chan error, 1)
	o.onError = func(err error) { failed <- err }
	o.onBlock = func() { blocks.Add(1) }
	o.onSent = func(uint64, bool) {}
	var wg sync.WaitGroup
	wg.Go(o.run)
	t.Cleanup(func() { conn.Close(); close(o.done); wg.Wait() })
	return o, blocks, failed
}

// A peer that takes nothing is asked whether it lives at each timeout, and given
// up after ko-count of them.
func TestSendKoCount(t *testing.T) {
	from, _ := tcpPair(t)
	o, blocks, failed := startOut(t, from, patience{20 * time.Millisecond, 3})
	began := time.Now()
	o.file(make([]byte, 8<<20), nil, "")
	o.flush()
	err := <-failed
	if !errors.Is(err, errSendTimeout) || blocks.Load() < 2 {
		t.Errorf("got %v after %d pings, want %v after 2 at least", err, blocks.Load(), errSendTimeout)
	}
	if took := time.Since(began); took < 60*time.Millisecond {
		t.Errorf("gave up after %v, before 3 timeouts of 20 ms", took)
	}
}

// A slow peer is not a dead one: as long as it takes something in each timeout
// the send may last many times ko-count x timeout.
func TestSendSlowly(t *testing.T) {
	from, to := tcpPair(t)
	o, _, failed := startOut(t, from, patience{250 * time.Millisecond, 2})
	sent := bytes.Repeat([]byte("pollux"), 300_000)
	o.file(sent, nil, "")
	o.flush()
	got := make([]byte, 0, len(sent))
	step := make([]byte, 64<<10)
	for len(got) < len(sent) {
		n, err := io.ReadFull(to, step[:min(len(step), len(sent)-len(got))])
		got = append(got, step[:n]...)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		select {
		case err := <-failed:
			t.Fatalf("given up after %d bytes: %v", len(got), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if !bytes.Equal(got, sent) {
		t.Error("what arrived is not what was sent")
	}
}

// With ko-count 0 a blocked send waits for ever, pinging.
func TestSendWithoutKoCount(t *testing.T) {
	from, to := tcpPair(t)
	o, blocks, failed := startOut(t, from, patience{5 * time.Millisecond, 0})
	sent := make([]byte, 4<<20)
	o.file(sent, nil, "")
	o.flush()
	for blocks.Load() < 20 {
		select {
		case err := <-failed:
			t.Fatalf("given up: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if n, err := io.CopyN(io.Discard, to, int64(len(sent))); err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
}

// The limit of a send that had to wait says nothing of those that come later.
func TestSendAfterABlockedOne(t *testing.T) {
	from, to := tcpPair(t)
	const timeout = 50 * time.Millisecond
	o, _, failed := startOut(t, from, patience{timeout, 0})
	for range 3 {
		sent := make([]byte, 4<<20)
		o.file(sent, nil, "")
		o.flush()
		if n, err := io.CopyN(io.Discard, to, int64(len(sent))); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		select {
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(2 * timeout):
		}
	}
}

// Two writes of 1 MiB on their way need no new memory for those that follow.
func TestSendAllocs(t *testing.T) {
	from, to := tcpPair(t)
	o, _, _ := startOut(t, from, patience{20 * time.Second, 1})
	go io.Copy(io.Discard, to) //nolint:errcheck // until the test closes it
	head, data := make([]byte, 40), make([]byte, 1<<20)
	idle := func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return !o.flushing
	}
	send := func() {
		for range 2 {
			o.file(head, data, "")
		}
		o.flush()
		for !idle() {
			runtime.Gosched()
		}
	}
	send()
	send()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const rounds = 20
	for range rounds {
		send()
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / rounds; got > 64<<10 {
		t.Errorf("%d bytes are allocated for 2 writes of 1 MiB, want none for the data", got)
	}
}
