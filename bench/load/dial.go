package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/protocol/nbd"
)

// Our own times.
const (
	dialTime   = 10 * time.Second // for connecting and negotiating
	answerTime = 30 * time.Second // for an answer: a server that needs longer is stuck
)

// An Address is where an NBD export is.
type Address struct {
	Network string // "unix" or "tcp"
	Host    string // a socket's path, or host:port
	Export  string
}

// ParseURI takes nbd://HOST[:PORT]/EXPORT and nbd+unix:///EXPORT?socket=PATH.
// Port 10809 is the default, as IANA has it.
func ParseURI(uri string) (Address, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Address{}, fmt.Errorf("NBD URI: %w", err)
	}
	a := Address{Export: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd":
		if u.Hostname() == "" {
			return Address{}, fmt.Errorf("NBD URI %s: it names no host", uri)
		}
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		a.Network, a.Host = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix":
		if a.Network, a.Host = "unix", u.Query().Get("socket"); a.Host == "" {
			return Address{}, fmt.Errorf("NBD URI %s: it names no socket (nbd+unix:///EXPORT?socket=PATH)", uri)
		}
	default:
		return Address{}, fmt.Errorf("NBD URI %s: nbd:// and nbd+unix:// are known here", uri)
	}
	return a, nil
}

// Probe connects to an export, asks what it is and leaves.
func Probe(ctx context.Context, uri string) (nbd.ExportInfo, error) {
	a, err := ParseURI(uri)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	fd, info, err := dial(ctx, a)
	if err != nil {
		return info, err
	}
	_, err = unix.Write(fd, nbd.Request{Command: nbd.CmdDisc}.Append(nil))
	if errors.Is(err, unix.EPIPE) {
		err = nil // it has gone first
	}
	return info, errors.Join(err, unix.Close(fd))
}

// dial connects and negotiates. The descriptor is a blocking one: reads and
// writes cost one system call, none of the runtime's poller.
func dial(ctx context.Context, a Address) (fd int, info nbd.ExportInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, a.Network, a.Host)
	if err != nil {
		return -1, info, err
	}
	defer c.Close() // the descriptor below is another one
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return -1, info, err
	}
	if info, err = nbd.Negotiate(c, a.Export); err != nil {
		return -1, info, fmt.Errorf("export %q of %s: %w", a.Export, a.Host, err)
	}
	f, err := c.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return -1, info, err
	}
	defer f.Close()
	if fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return -1, info, err
	}
	limit := unix.NsecToTimeval(answerTime.Nanoseconds())
	if err := errors.Join(
		unix.SetNonblock(fd, false),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
	); err != nil {
		return -1, info, errors.Join(err, unix.Close(fd))
	}
	return fd, info, nil
}
