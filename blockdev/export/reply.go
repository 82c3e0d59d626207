package export

import (
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// A request is one of a connection's requests, from the moment it is read
// until its reply is in the socket. Its connection owns and reuses it.
type request struct {
	blockdev.Request
	command nbd.Command
	cookie  uint64 // the client's
	cost    int64  // bytes of memory that it counts for
	offset  uint64 // of the first byte wanted, for a structured reply
	skip    int    // bytes of Data before the first one wanted: reads are widened to sectors
	want    int    // bytes wanted
	buf     []byte // from the pool, or nil
	isOut   bool   // with the Backend
	trace   perf.Trace

	head    [headRoom]byte // of the reply
	headLen int
	body    []byte // of the reply, inside buf
}

// headRoom is enough for each reply's head.
const headRoom = nbd.DataChunkHead

// A replyWriter is the combining writer of one connection: completers file
// replies, and whoever finds no write in progress writes all that are filed.
// A socket that takes no more is left to a goroutine that lives until it has
// taken everything.
type replyWriter struct {
	mu       sync.Mutex
	changed  *sync.Cond // inFlight has become less, or failed is set
	waiters  int        // on changed
	pending  []*request // filed, not being written
	idle     []*request // answered, for reuse
	inFlight int64      // bytes of requests read and not yet answered
	count    int        // number of them
	writing  bool       // somebody owns current and iov
	failed   error      // the connection is dead: replies are dropped

	current []*request
	iov     []unix.Iovec
	next    int // first of iov that is not written completely
	left    int // bytes of iov that are not

	nc  net.Conn
	raw syscall.RawConn // nil if nc has no descriptor
	// try and finish write iov, once or until it is done; kept here because a
	// closure made for each write would be garbage.
	try, finish func(fd uintptr) bool
	werr        error
	blocked     bool
}

// maxRounds bounds how often one completer writes what others file meanwhile.
const maxRounds = 8

// shortReply is what a call may have to write of which the scheduler is not told
// (see reader), bytes: the garbage collector waits for such a call.
const shortReply = 20 << 10

// maxIovecs is the kernel's UIO_MAXIOV.
const maxIovecs = 1024

func (w *replyWriter) init(nc net.Conn) {
	w.changed = sync.NewCond(&w.mu)
	w.nc = nc
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	w.try = func(fd uintptr) bool {
		w.blocked, w.werr = w.writev(int(fd))
		return true
	}
	w.finish = func(fd uintptr) bool {
		w.blocked, w.werr = w.writev(int(fd))
		return !w.blocked
	}
}

// file adds a finished request's reply.
func (w *replyWriter) file(r *request) {
	w.mu.Lock()
	w.pending = append(w.pending, r)
	w.mu.Unlock()
}

// flush writes what is filed unless somebody is writing: then that one will.
func (c *conn) flush() {
	w := &c.w
	w.mu.Lock()
	if w.writing || len(w.pending) == 0 {
		w.mu.Unlock()
		return
	}
	w.writing = true
	for round := 0; len(w.pending) > 0; round++ {
		w.take()
		if w.raw == nil || round == maxRounds {
			w.mu.Unlock()
			go c.drain()
			return
		}
		isDead := w.failed != nil
		w.mu.Unlock()
		if !isDead && !c.write(w.try) {
			go c.drain()
			return
		}
		c.retire()
		w.mu.Lock()
	}
	w.writing = false
	w.mu.Unlock()
}

// drain goes on where flush could not, and waits for the client.
func (c *conn) drain() {
	w := &c.w
	for {
		w.mu.Lock()
		isDead := w.failed != nil
		w.mu.Unlock()
		switch {
		case isDead:
		case w.raw != nil:
			c.write(w.finish)
		default:
			c.writePlain()
		}
		c.retire()
		w.mu.Lock()
		if len(w.pending) == 0 {
			w.writing = false
			w.mu.Unlock()
			return
		}
		w.take()
		w.mu.Unlock()
	}
}

// take makes the pending replies current; the caller holds mu and has set
// writing.
func (w *replyWriter) take() {
	w.current, w.pending = w.pending, w.current[:0]
	w.iov = w.iov[:0]
	w.next, w.left = 0, 0
	for _, r := range w.current {
		if r.headLen > 0 {
			w.iov = appendIovec(w.iov, r.head[:r.headLen])
			w.left += r.headLen
		}
		if len(r.body) > 0 {
			w.iov = appendIovec(w.iov, r.body)
			w.left += len(r.body)
		}
	}
}

func appendIovec(iov []unix.Iovec, b []byte) []unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(iov, v)
}

// write writes the current replies by f; false means that the socket takes no
// more now. A failure ends the connection.
func (c *conn) write(f func(fd uintptr) bool) bool {
	w := &c.w
	err := w.raw.Write(f)
	if err == nil {
		err = w.werr
	}
	if err != nil {
		c.fail(err)
		return true
	}
	return !w.blocked
}

// writev writes as much of iov as the socket takes.
func (w *replyWriter) writev(fd int) (isBlocked bool, err error) {
	for w.next < len(w.iov) {
		some := w.iov[w.next:min(len(w.iov), w.next+maxIovecs)]
		call := unix.Syscall
		if w.left <= shortReply {
			call = unix.RawSyscall
		}
		n, _, errno := call(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&some[0])), uintptr(len(some)))
		switch errno {
		case 0:
			w.advance(int(n))
		case unix.EINTR:
		case unix.EAGAIN:
			return true, nil
		default:
			return false, errno
		}
	}
	return false, nil
}

// advance takes n written bytes off iov.
func (w *replyWriter) advance(n int) {
	w.left -= n
	for n > 0 {
		v := &w.iov[w.next]
		size := int(v.Len)
		if n < size {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(size - n)
			return
		}
		n -= size
		w.next++
	}
}

// writePlain writes the current replies to a connection without a descriptor.
func (c *conn) writePlain() {
	var bufs net.Buffers
	for _, r := range c.w.current {
		bufs = append(bufs, r.head[:r.headLen], r.body)
	}
	if _, err := bufs.WriteTo(c.w.nc); err != nil {
		c.fail(err)
	}
}

// retire takes back the requests whose replies are written or dropped.
func (c *conn) retire() {
	w := &c.w
	var bytes int64
	for _, r := range w.current {
		if r.buf != nil {
			c.srv.pool.put(r.buf)
		}
		if r.Trace != nil && r.Err == nil {
			c.sampler.Volume().Fold(dirs[r.Op], r.Trace, perf.Now())
		}
		r.buf, r.body, r.Data, r.headLen = nil, nil, nil, 0
		bytes += r.cost
	}
	clear(w.iov) // the buffers are others' now
	c.srv.inFlight.Add(-bytes)
	w.mu.Lock()
	w.idle = append(w.idle, w.current...)
	w.inFlight -= bytes
	w.count -= len(w.current)
	if w.waiters > 0 {
		w.changed.Broadcast()
	}
	w.mu.Unlock()
}

// fail declares the connection dead, once, and wakes its reader.
func (c *conn) fail(err error) {
	w := &c.w
	w.mu.Lock()
	isFirst := w.failed == nil
	if isFirst {
		w.failed = err
		w.changed.Broadcast()
	}
	w.mu.Unlock()
	if isFirst {
		c.nc.Close() // its error would only repeat the first one
	}
}

// waitIdle waits until no request is in flight: all have come back from the
// Backend, and their replies are in the socket or dropped.
func (w *replyWriter) waitIdle() {
	w.mu.Lock()
	w.waiters++
	for w.count > 0 {
		w.changed.Wait()
	}
	w.waiters--
	w.mu.Unlock()
}
