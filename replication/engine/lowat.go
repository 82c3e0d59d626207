package engine

import (
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Payloads of which so many bytes are missing are waited for as a whole: a
// network without large segments would wake the reader 28 times for 64 KiB.
// The most that is waited for at once leaves half of what the kernel then
// lets the peer send, so that the peer does not wait for this node.
const (
	lowatFrom = 8 << 10
	lowatMost = 128 << 10
)

// lowReader reads a TCP connection and is woken for as much as its owner still
// needs (SO_RCVLOWAT), not for each segment. What is there it takes at once,
// whatever was said to be missing.
type lowReader struct {
	conn    *net.TCPConn
	raw     syscall.RawConn // nil: the connection is closed already
	missing int             // bytes without which the owner cannot go on
	low     int             // SO_RCVLOWAT as it is set
	large   bool            // the last packet was: the next one probably is

	// Of the read under way.
	p   []byte
	n   int
	err error
	try func(fd uintptr) bool
}

func newLowReader(conn *net.TCPConn) *lowReader {
	r := &lowReader{conn: conn, low: 1}
	r.raw, _ = conn.SyscallConn() // then the first Read fails
	r.try = r.once
	return r
}

// Payloads of which directFrom bytes are missing are read to where they belong,
// without a stay in the reader's buffer. What is read at once behind one of them
// is a header and little of the next, which would have to be copied.
const (
	directFrom = 16 << 10
	headRead   = 4 << 10
)

// readAll reads all of p, bytes of a large payload; there is nothing in the
// buffer in front of r.
func (r *lowReader) readAll(p []byte) error {
	for len(p) > 0 {
		r.large = false
		n, err := r.Read(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	r.large = true
	return nil
}

// need says how many bytes, beyond what was read, the owner cannot do without.
func (r *lowReader) need(n int) {
	if r != nil {
		r.missing = n
	}
}

func (r *lowReader) Read(p []byte) (int, error) {
	if len(p) == 0 || r.raw == nil {
		return r.conn.Read(p)
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
	r.missing = max(r.missing-r.n, 0)
	return r.n, nil
}

// once reads what is there; false means that there is nothing to read yet.
func (r *lowReader) once(fd uintptr) bool {
	for {
		r.n, r.err = readNow(fd, r.p)
		switch {
		case r.err == unix.EINTR:
			continue
		case r.err != unix.EAGAIN:
			return true
		}
		low := 1
		if r.missing >= lowatFrom {
			low = min(r.missing, lowatMost)
		}
		if low == r.low {
			return false
		}
		// Read once more: what came before the change has woken nobody.
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, low); err != nil {
			return false // as before
		}
		r.low = low
	}
}

// shortSend is a few small writes with their headers, bytes.
const shortSend = 20 << 10

// readNow and writeNow are for sockets that do not block. The scheduler is not
// told, as it is of a call that may wait: after each pause that wakes its
// monitor thread, which then looks every 20 us whether the call still lasts. On
// a machine with one processor that is several context switches a write. But the
// garbage collector waits for who makes such a call: what takes longer, as a
// large send does, is made the ordinary way.
func readNow(fd uintptr, p []byte) (int, error) {
	return transferNow(unix.SYS_READ, fd, p)
}

func writeNow(fd uintptr, p []byte) (int, error) {
	if len(p) > shortSend {
		return unix.Write(int(fd), p)
	}
	return transferNow(unix.SYS_WRITE, fd, p)
}

func transferNow(call, fd uintptr, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
