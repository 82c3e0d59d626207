package export

import (
	"bufio"
	"io"
	"net"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A reader reads a client's socket. Neither it nor the writer of the replies
// tells the scheduler of a call: the calls do not block, and each that the
// scheduler hears of after a pause wakes its monitor thread.
type reader struct {
	nc  net.Conn
	raw syscall.RawConn // nil if nc has no descriptor
	// amid is set while the client is in the middle of a request: a kernel sends
	// header and payload one after the other, so that the rest is due at once.
	amid    bool
	yielded bool // to the client, since the last read that brought something
	large   bool // the last payload was: the next one probably is

	// Of the read under way.
	p   []byte
	n   int
	err error
	try func(fd uintptr) bool
}

func (r *reader) init(nc net.Conn) {
	r.nc = nc
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			r.raw = raw
		}
	}
	r.try = r.once
}

func (r *reader) Read(p []byte) (int, error) {
	if r.raw == nil || len(p) == 0 {
		return r.nc.Read(p)
	}
	if r.large && len(p) > headRead {
		r.large, p = false, p[:headRead]
	}
	r.p = p
	err := r.raw.Read(r.try)
	r.p = nil
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, r.err
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// Payloads of which directFrom bytes are missing are read to where they belong,
// without a stay in the connection's buffer. What is read at once behind one of
// them is a request and little of the next payload, which would have to be copied.
const (
	directFrom = 32 << 10
	headRead   = 4 << 10
)

// readPayload reads all of p, which follows a request in in.
func (c *conn) readPayload(in *bufio.Reader, p []byte) error {
	here := in.Buffered()
	if len(p)-here < directFrom {
		_, err := io.ReadFull(in, p)
		return err
	}
	if _, err := io.ReadFull(in, p[:here]); err != nil {
		return err
	}
	for p = p[here:]; len(p) > 0; {
		c.r.large = false
		n, err := c.r.Read(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	c.r.large = true
	return nil
}

// once reads what is there; false means that there is nothing to read yet.
func (r *reader) once(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(r.p))), uintptr(len(r.p)))
		runtime.KeepAlive(r.p)
		switch errno {
		case 0:
			r.n, r.err, r.yielded = int(n), nil, false
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			if !r.amid || r.yielded {
				return false
			}
			// Once only: a client that sends half a request keeps nobody busy.
			r.yielded = true
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) //nolint:errcheck // it cannot fail
		default:
			r.n, r.err = 0, errno
			return true
		}
	}
}
