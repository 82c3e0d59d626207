package engine

import (
	"context"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// A sock is one of the two sockets to the peer: TCP, and TLS on top of it if
// that is configured. What is hot goes to TCP directly where there is no TLS.
type sock struct {
	*net.TCPConn
	tls *tlsLayer // nil: plaintext
}

func (s *sock) Read(p []byte) (int, error) {
	if s.tls != nil {
		return s.tls.Read(p)
	}
	return s.TCPConn.Read(p)
}

// Write is for the packets in lock-step; later ones go through an out.
func (s *sock) Write(p []byte) (int, error) {
	if s.tls != nil {
		return s.tls.conn.Write(p)
	}
	return s.TCPConn.Write(p)
}

// alive peeks at a socket: data, or nothing yet, is alive.
func (s *sock) alive() bool {
	if s.tls != nil && !s.tls.readAhead() {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Read(func(fd uintptr) bool {
		var b [4]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ok = n > 0 || err == unix.EAGAIN || err == unix.EINTR
		return true
	})
	return ok && err == nil
}

// fault is why a socket that is not alive ended, or nil if it just did.
func (s *sock) fault() error {
	if s.tls == nil {
		return nil
	}
	return s.tls.fault
}

// reader is where the bytes of a connection that stands are read from.
func (s *sock) reader() io.Reader {
	if s.tls != nil {
		return s.tls
	}
	return newLowReader(s.TCPConn)
}

// hangUp closes a connection that TLS refused. The peer gets to read the alert
// that says why: a close with unread input would reset the connection. The
// deadline of the handshake, and ctx, bound the wait.
func (s *sock) hangUp(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { s.Close() })() //nolint:errcheck // ends the read
	s.CloseWrite()                                       //nolint:errcheck // it may be dead
	io.CopyN(io.Discard, s.TCPConn, maxRefusedUnread)    //nolint:errcheck // until the peer closes or the handshake's time is up
	s.Close()                                            //nolint:errcheck // nothing more is expected of it
}

// maxRefusedUnread is more than a peer sends before it hears that it is refused.
const maxRefusedUnread = 64 << 10

// discard reads to the end of what the peer sends, which nobody wants to know.
func (s *sock) discard() { io.Copy(io.Discard, s.TCPConn) } //nolint:errcheck // until the peer closes or time is up
