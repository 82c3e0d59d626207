package engine

import (
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// A sock is one of the two sockets to the peer.
type sock struct {
	*net.TCPConn
}

// alive peeks at a socket: data, or nothing yet, is alive.
func (s *sock) alive() bool {
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

// reader is where the bytes of a connection that stands are read from.
func (s *sock) reader() io.Reader { return s.TCPConn }

// discard reads to the end of what the peer sends, which nobody wants to know.
func (s *sock) discard() { io.Copy(io.Discard, s.TCPConn) } //nolint:errcheck // until the peer closes or time is up
