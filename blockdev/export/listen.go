package export

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Listener says where a server listens.
type Listener struct {
	Network string // "unix" or "tcp"
	Address string // socket path, or IP:PORT
	// Plaintext and Allow are both needed for a TCP address beyond loopback:
	// NBD has neither encryption nor authentication here.
	Plaintext bool
	Allow     []netip.Prefix // clients that may connect by TCP; empty: loopback only
}

// maxSocketPath is the room in a sockaddr_un (unix(7)), less the final zero.
const maxSocketPath = 107

// Validate checks the listener without touching anything.
func (l Listener) Validate() error {
	switch l.Network {
	case "unix":
		if l.Address == "" || len(l.Address) > maxSocketPath {
			return fmt.Errorf("nbd listener %q: a socket path has 1 to %d bytes", l.Address, maxSocketPath)
		}
		return nil
	case "tcp":
		return l.validateTCP()
	}
	return fmt.Errorf("nbd listener %q: network %q is neither unix nor tcp", l.Address, l.Network)
}

func (l Listener) validateTCP() error {
	ap, err := l.tcpAddr()
	if err != nil {
		return err
	}
	if ap.Addr().IsLoopback() {
		return nil
	}
	switch {
	case !l.Plaintext:
		return fmt.Errorf("nbd listener %s: refused: beyond loopback all data would travel unencrypted; "+
			"use a unix socket or a tunnel, or set plaintext = true and an allow list", l.Address)
	case len(l.Allow) == 0:
		return fmt.Errorf("nbd listener %s: refused: plaintext = true needs an allow list of client networks, "+
			"for example allow = [\"10.0.0.0/24\"]", l.Address)
	}
	return nil
}

func (l Listener) tcpAddr() (netip.AddrPort, error) {
	s := l.Address
	if rest, ok := strings.CutPrefix(s, "localhost:"); ok {
		s = "127.0.0.1:" + rest
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return ap, fmt.Errorf("nbd listener %q: want IP:PORT, for example 127.0.0.1:10809", l.Address)
	}
	return ap, nil
}

// allows reports whether a client may connect.
func (l Listener) allows(remote net.Addr) bool {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return true // the unix socket's mode decides
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if len(l.Allow) == 0 {
		return ip.IsLoopback()
	}
	for _, p := range l.Allow {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// open starts to listen.
func (l Listener) open() (net.Listener, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	if l.Network == "unix" {
		return listenUnix(l.Address)
	}
	ap, err := l.tcpAddr()
	if err != nil {
		return nil, err
	}
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(ap))
	if err != nil {
		return nil, fmt.Errorf("nbd listener %s: %w", l.Address, lastCause(err))
	}
	return ln, nil
}

// listenUnix listens on a socket of mode 0600. A socket that nobody listens on
// any more is removed first; anything else at the path is left alone.
func listenUnix(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// Linux gives the file the mode of the socket's own inode, so that
		// there is no moment at which others could connect, whatever the umask.
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("nbd listener %s: %w", path, lastCause(err))
	}
	st, err := os.Lstat(path)
	if err == nil && st.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("the socket's mode is %v instead of 0600", st.Mode().Perm())
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("nbd listener %s: %w", path, err)
	}
	return ln, nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("nbd listener %s: %w", path, lastCause(err))
	case st.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("nbd listener %s: a file that is not a socket is in the way", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("nbd listener %s: another process listens there already", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("nbd listener %s: %w", path, lastCause(err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("nbd listener %s: remove the stale socket: %w", path, lastCause(err))
	}
	return nil
}

// lastCause returns the system error without the operation and address that
// our own text names already.
func lastCause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
