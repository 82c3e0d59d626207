package engine

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// socketPair returns both ends of a TCP connection.
func socketPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func lingering(t *testing.T, conn *net.TCPConn) *out {
	t.Helper()
	o, err := newOut(&sock{TCPConn: conn}, func() patience { return patience{} })
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestLingerKeepsMeta: the peer sees the end of the data socket first, and that
// of the meta socket only after it has closed data itself. drbd.ko loses what
// it has not read of data when meta ends.
func TestLingerKeepsMeta(t *testing.T) {
	data, peerData := socketPair(t)
	meta, peerMeta := socketPair(t)
	if _, err := data.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	l := &link{data: lingering(t, data), meta: lingering(t, meta)}
	go func() { defer close(done); l.linger() }()

	if b, err := io.ReadAll(peerData); string(b) != "last words" || err != nil {
		t.Fatalf("data socket: read %q, error %v", b, err)
	}
	peerMeta.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var one [1]byte
	if _, err := peerMeta.Read(one[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("meta socket ended (%v) while data was open on the peer's side", err)
	}
	peerData.Close()
	peerMeta.SetReadDeadline(time.Now().Add(lingerTime))
	if _, err := peerMeta.Read(one[:]); !errors.Is(err, io.EOF) {
		t.Fatalf("meta socket: %v, want its end after data was closed", err)
	}
	peerMeta.Close()
	<-done
}
