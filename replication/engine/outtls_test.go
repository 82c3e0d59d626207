package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// secure makes both ends of a connection speak TLS.
func secure(t testing.TB, from, to *net.TCPConn) (a, b *sock) {
	t.Helper()
	ca := newTestCA(t, "test CA")
	a, b = &sock{TCPConn: from}, &sock{TCPConn: to}
	ea, eb := &Engine{cfg: Config{PeerName: "beta"}, log: zerolog.Nop()}, &Engine{cfg: Config{PeerName: "alpha"}, log: zerolog.Nop()}
	done := make(chan error, 1)
	go func() { done <- eb.startTLS(context.Background(), b, ca.node("beta", "alpha", nil), false) }()
	if err := ea.startTLS(context.Background(), a, ca.node("alpha", "beta", nil), true); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return a, b
}

func startSecureOut(t *testing.T, may patience) (o *out, to *sock, blocks *atomic.Int32, failed chan error) {
	t.Helper()
	a, b := tcpPair(t)
	from, to := secure(t, a, b)
	o, err := newOut(from, func() patience { return may })
	if err != nil {
		t.Fatal(err)
	}
	blocks, failed = new(atomic.Int32), make(chan error, 1)
	o.onError = func(err error) { failed <- err }
	o.onBlock = func() { blocks.Add(1) }
	o.onSent = func(uint64, bool) {}
	var wg sync.WaitGroup
	wg.Go(o.run)
	t.Cleanup(func() { a.Close(); close(o.done); wg.Wait() })
	return o, to, blocks, failed
}

// What a slow peer takes little by little arrives whole and in order, be it
// sent by whoever filed it or by the goroutine that waits.
func TestSendTLSSlowly(t *testing.T) {
	o, to, _, failed := startSecureOut(t, patience{250 * time.Millisecond, 2})
	var sent []byte
	for i := range 30 {
		p := pattern(uint64(i), 70_001)
		sent = append(sent, p...)
		o.file(p[:3], p[3:], "")
		o.flush()
	}
	got := make([]byte, 0, len(sent))
	step := make([]byte, 100_000)
	for len(got) < len(sent) {
		n, err := to.reader().Read(step)
		got = append(got, step[:n]...)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		select {
		case err := <-failed:
			t.Fatalf("given up after %d bytes: %v", len(got), err)
		case <-time.After(3 * time.Millisecond): // a slow peer
		}
	}
	if !bytes.Equal(got, sent) {
		t.Error("what arrived is not what was sent")
	}
	if n := o.size(); n != 0 {
		t.Errorf("%d bytes count as not sent", n)
	}
}

// A peer that takes nothing is given up after ko-count timeouts, as without TLS.
func TestSendTLSKoCount(t *testing.T) {
	o, _, blocks, failed := startSecureOut(t, patience{20 * time.Millisecond, 3})
	o.file(make([]byte, 8<<20), nil, "")
	o.flush()
	if err := <-failed; !errors.Is(err, errSendTimeout) || blocks.Load() < 2 {
		t.Errorf("got %v after %d pings, want %v after 2 at least", err, blocks.Load(), errSendTimeout)
	}
}

// A batch goes out in records that are full, and a reader gets as many of them
// at once as have arrived.
func TestTLSRecordsAreFull(t *testing.T) {
	a, b := socketPair(t)
	from, to := secure(t, a, b)
	o, err := newOut(from, func() patience { return patience{} })
	if err != nil {
		t.Fatal(err)
	}
	o.onSent = func(uint64, bool) {}
	const records = 4
	o.file(make([]byte, 100), make([]byte, records*16<<10-100), "")
	o.flush()
	to.tls.wire.TCPConn.SetReadDeadline(time.Now().Add(20 * time.Second))
	first := make([]byte, 8)
	if _, err := io.ReadFull(to.reader(), first[:1]); err != nil { // the first one has arrived
		t.Fatal(err)
	}
	got, reads := 1, 0
	p := make([]byte, dataBuffer)
	for got < records*16<<10 {
		n, err := to.reader().Read(p)
		if err != nil {
			t.Fatal(err)
		}
		got += n
		reads++
	}
	if w := to.tls.wire; reads > records || w.left != 0 || w.inHead != 0 {
		t.Errorf("%d reads for %d records; %d bytes are left", reads, records, w.left)
	}
}

// The end of a connection with TLS is said by a close_notify on the data socket
// first; the meta socket stays until the peer has closed data.
func TestLingerTLS(t *testing.T) {
	ends := func() (l, p *sock) {
		a, b := socketPair(t)
		return secure(t, a, b)
	}
	data, peerData := ends()
	meta, peerMeta := ends()
	l := &link{}
	for _, x := range []struct {
		s *sock
		o **out
	}{{data, &l.data}, {meta, &l.meta}} {
		o, err := newOut(x.s, func() patience { return patience{} })
		if err != nil {
			t.Fatal(err)
		}
		o.onSent = func(uint64, bool) {}
		*x.o = o
	}
	l.data.file([]byte("last "), []byte("words"), "")
	l.data.flush()
	done := make(chan struct{})
	go func() { defer close(done); l.linger() }()
	if b, err := io.ReadAll(peerData.reader()); string(b) != "last words" || err != nil {
		t.Fatalf("data socket: read %q, error %v", b, err)
	}
	if peerData.tls.wire.whole != 0 || peerData.tls.wire.left != 0 {
		t.Error("the connection ended within a record")
	}
	peerMeta.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var one [1]byte
	if _, err := peerMeta.TCPConn.Read(one[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("meta socket ended (%v) while data was open on the peer's side", err)
	}
	peerData.Close()
	peerMeta.SetReadDeadline(time.Now().Add(lingerTime))
	if _, err := peerMeta.reader().Read(one[:]); !errors.Is(err, io.EOF) {
		t.Fatalf("meta socket: %v, want its end after data was closed", err)
	}
	peerMeta.Close()
	<-done
}
