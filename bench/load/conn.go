package load

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// inputBytes is the size of a connection's buffer for answers (our own): the
// data of a read in one piece, or the answers of a whole depth.
const inputBytes = 256 << 10

// A slot is one of a connection's requests in flight.
type slot struct {
	head    [nbd.RequestSize]byte
	began   time.Duration // the operation, not its flush
	cookie  uint64        // 0 = idle
	command nbd.Command
	flushed bool // the flush after the write is under way
}

// conn is one connection to an export. It belongs to one goroutine; only stop
// may be called from another.
type conn struct {
	fd      int
	places  *places
	noise   *payloads
	rec     recorder
	slots   []slot
	idle    []int        // slots that are free
	out     []unix.Iovec // what is to be sent, in order
	sent    int          // how many of out have gone whole
	in      []byte       // input[r:w] is not looked at yet
	r, w    int
	skip    int   // bytes of read data that belong to skipFor and are still to come
	skipFor *slot // whose answer is complete when skip is 0
	serial  uint64
	reads   int   // in flight, or with data to come
	left    int64 // operations that may still begin; -1 = any number
	block   int
	flags   nbd.CommandFlags
	flushes bool
	poll    [1]unix.PollFd
	stopped atomic.Bool
}

func newConn(fd int, s *Spec, n int, noise *payloads) *conn {
	w := s.Workload
	depth := share(w.Depth, w.Connections, n)
	c := &conn{
		fd: fd, places: newPlaces(s, n), noise: noise, slots: make([]slot, depth), in: make([]byte, inputBytes),
		out: make([]unix.Iovec, 0, 2*depth), left: -1, block: w.BlockBytes, flushes: w.Class == result.ClassFlush,
		rec: recorder{latency: result.NewHistogram(), isTrace: s.Trace},
	}
	if w.Class == result.ClassFUA {
		c.flags = nbd.FlagFUA
	}
	if s.Count > 0 {
		c.left = int64(share(int(s.Count), w.Connections, n))
	}
	for i := range c.slots {
		c.idle = append(c.idle, len(c.slots)-1-i)
	}
	return c
}

// stop has run end with an error soon, whatever the server does.
func (c *conn) stop() {
	c.stopped.Store(true)
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // a socket that is gone has stopped
}

// run keeps the depth until the load is over, then waits for what is in flight.
func (c *conn) run(k clock) error {
	c.rec.clock = k
	now := time.Since(k.start)
	for {
		for len(c.idle) > 0 && c.left != 0 && !c.rec.isOver(now) {
			c.begin(now)
		}
		if len(c.idle) == len(c.slots) {
			return c.leave()
		}
		if err := c.send(); err != nil {
			return c.broken("send requests", err)
		}
		if err := c.receive(); err != nil {
			return c.broken("wait for answers", err)
		}
		now = time.Since(k.start)
		if err := c.answers(now); err != nil {
			return err
		}
	}
}

// begin files a new operation for sending.
func (c *conn) begin(now time.Duration) {
	i := c.idle[len(c.idle)-1]
	c.idle = c.idle[:len(c.idle)-1]
	if c.left > 0 {
		c.left--
	}
	s := &c.slots[i]
	offset, isRead := c.places.take()
	s.began, s.flushed = now, false
	q := nbd.Request{Command: nbd.CmdWrite, Flags: c.flags, Offset: uint64(offset), Length: uint32(c.block)}
	if isRead {
		q.Command, q.Flags = nbd.CmdRead, 0
		c.reads++
	}
	c.file(i, q)
	if !isRead {
		c.push(c.noise.cut(c.places.rng, c.block))
	}
}

// file appends a request's head to what is to be sent.
func (c *conn) file(i int, q nbd.Request) {
	s := &c.slots[i]
	c.serial++
	q.Cookie = c.serial<<8 | uint64(i)
	s.cookie, s.command = q.Cookie, q.Command
	c.push(q.Append(s.head[:0]))
}

func (c *conn) push(b []byte) {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	c.out = append(c.out, v)
}

// send sends all that is filed. While reads are in flight it doesn't block: the
// server may wait for us to take their data before it takes more requests.
func (c *conn) send() error {
	for c.sent < len(c.out) {
		flags := unix.MSG_NOSIGNAL
		if c.reads > 0 {
			flags |= unix.MSG_DONTWAIT
		}
		n, err := sendVectors(c.fd, c.out[c.sent:], flags)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && c.reads > 0:
			if err := c.takeOrWait(); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		c.advance(n)
	}
	c.out, c.sent = c.out[:0], 0
	return nil
}

// advance drops n bytes of what is to be sent.
func (c *conn) advance(n int) {
	for n > 0 {
		first := &c.out[c.sent]
		if have := int(first.Len); n >= have {
			n -= have
			c.sent++
			continue
		}
		first.Base = (*byte)(unsafe.Add(unsafe.Pointer(first.Base), n))
		first.SetLen(int(first.Len) - n)
		n = 0
	}
}

// takeOrWait waits until the socket takes more or has answers, and deals with
// the answers.
func (c *conn) takeOrWait() error {
	c.poll[0] = unix.PollFd{Fd: int32(c.fd), Events: unix.POLLOUT | unix.POLLIN}
	n, err := unix.Poll(c.poll[:], int(answerTime.Milliseconds()))
	switch {
	case err == unix.EINTR:
		return nil
	case err != nil:
		return err
	case n == 0:
		return unix.EAGAIN
	case c.poll[0].Revents&unix.POLLIN == 0:
		return nil
	}
	if err := c.receive(); err != nil {
		return err
	}
	return c.answers(time.Since(c.rec.clock.start))
}

// receive reads what is there; it blocks until something is.
func (c *conn) receive() error {
	if c.r > 0 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	for {
		n, err := unix.Read(c.fd, c.in[c.w:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		c.w += n
		return nil
	}
}

// answers deals with all that has come whole.
func (c *conn) answers(now time.Duration) error {
	for {
		if c.skipFor != nil {
			n := min(c.skip, c.w-c.r)
			c.r += n
			if c.skip -= n; c.skip > 0 {
				return nil
			}
			c.done(c.skipFor, now)
			c.skipFor = nil
		}
		if c.w-c.r < nbd.SimpleReplySize {
			return nil
		}
		a, err := nbd.DecodeSimpleReply(c.in[c.r:c.w])
		if err != nil {
			return err
		}
		c.r += nbd.SimpleReplySize
		i := int(a.Cookie & 0xff)
		if a.Cookie == 0 || i >= len(c.slots) || c.slots[i].cookie != a.Cookie {
			return &nbd.ProtocolError{Where: "reply", Field: "cookie", Got: a.Cookie, Want: "one of a request in flight"}
		}
		s := &c.slots[i]
		switch {
		case s.command == nbd.CmdRead && a.Error == nbd.OK:
			c.skip, c.skipFor = c.block, s
		case a.Error != nbd.OK:
			c.rec.refused(fmt.Errorf("%v was answered with %v", s.command, a.Error))
			c.free(s)
		case s.command == nbd.CmdWrite && c.flushes:
			c.file(i, nbd.Request{Command: nbd.CmdFlush})
		default:
			c.done(s, now)
		}
	}
}

// done ends an operation that went well.
func (c *conn) done(s *slot, now time.Duration) {
	c.rec.took(s.began, now, c.block)
	c.free(s)
}

func (c *conn) free(s *slot) {
	if s.command == nbd.CmdRead {
		c.reads--
	}
	i := int(s.cookie & 0xff)
	s.cookie = 0
	c.idle = append(c.idle, i)
}

// leave ends the session as the protocol wants it.
func (c *conn) leave() error {
	_, err := unix.Write(c.fd, nbd.Request{Command: nbd.CmdDisc}.Append(nil))
	if err != nil && !errors.Is(err, unix.EPIPE) && !c.stopped.Load() {
		return c.broken("disconnect", err)
	}
	return nil
}

func (c *conn) broken(doing string, err error) error {
	switch {
	case c.stopped.Load():
		return errStopped
	case errors.Is(err, unix.EAGAIN):
		err = fmt.Errorf("the server is stuck: nothing for %v", answerTime)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		err = errors.New("the server has closed the connection")
	}
	return fmt.Errorf("%s: %w (%d requests in flight)", doing, err, len(c.slots)-len(c.idle))
}

// sendVectors is sendmsg without what x/sys allocates for it.
func sendVectors(fd int, vec []unix.Iovec, flags int) (int, error) {
	m := unix.Msghdr{Iov: &vec[0]}
	m.SetIovlen(len(vec))
	n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
