package engine

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// out is a combining writer for one socket: whoever files bytes and finds no
// flush under way writes them itself, in one system call; the others leave
// theirs to it. It never waits for the peer: what the socket does not take at
// once goes to a goroutine of its own, so that two nodes that send to one
// another cannot block each other's readers.
type out struct {
	conn     *sock
	raw      syscall.RawConn
	patience func() patience // asked anew whenever a send blocks

	mu       sync.Mutex
	filed    load // not yet taken
	going    load // being sent: by who flushes, then by the goroutine
	pos      int  // bytes of going that the socket has taken
	flushing bool
	failed   error
	sent     uint64 // bytes handed to the socket
	want     bool   // someone waits for the output to be short
	timed    []timed
	backlog  int

	rest    chan struct{} // the goroutine is to send the rest of going
	done    chan struct{}
	onError func(error)
	onBlock func() // a send took nothing for one timeout, and is tried again
	onSent  func(pos uint64, drained bool)
	wantPos atomic.Bool // onSent is wanted after every flush (protocol A)

	lender *lender // nil: everything is copied

	// Of the flush under way.
	digest digester
	p      []byte
	n      int
	err    error
	try    func(fd uintptr) bool // sends what the socket takes at once
	wait   func(fd uintptr) bool // the same, and false if that is nothing
	left   []byte                // with TLS: records that the socket has not taken
	io     sync.Mutex            // held while the kernel reads what was lent
	vecs   []unix.Iovec
}

// A load is a run of bytes on its way to the socket.
type load struct {
	buf   []byte // what was copied
	loans []loan // what was not, in between
	gone  int    // loans that are over
	seals []seal // of buf
	size  int    // of all, bytes
}

// patience is how long a socket that takes nothing is waited for
// (drbd84-protocol, 3.11).
type patience struct {
	timeout time.Duration // one try; 0 = for ever
	tries   int           // without any progress, then the connection is given up; 0 = for ever
}

// errSendTimeout: the socket has taken nothing for all of its tries.
var errSendTimeout = errors.New("the peer takes nothing")

// sendChunk is how much is encrypted and sent as one with TLS.
const sendChunk = 128 << 10

// Output above which a buffer is not kept, and below which it counts as short.
const (
	keepOutput  = 3 << 20 // two writes of 1 MiB, as append makes room for them
	shortOutput = 256 << 10
)

func newOut(conn *sock, p func() patience) (*out, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if conn.tls != nil {
		conn.tls.wire.startGathering()
	}
	o := &out{conn: conn, raw: raw, patience: p, rest: make(chan struct{}, 1), done: make(chan struct{})}
	o.try = func(fd uintptr) bool {
		for {
			if len(o.going.loans) == 0 {
				o.n, o.err = writeNow(fd, o.p)
			} else {
				o.n, o.err = o.writeLent(fd)
			}
			if o.err != unix.EINTR {
				return true
			}
		}
	}
	o.wait = func(fd uintptr) bool { return o.try(fd) && o.err != unix.EAGAIN }
	return o, nil
}

// file appends a packet. The bytes are copied, but for large data if there is a
// lender: they are lent until they are sent, or until the lender recalls them. If
// alg names a digest, head ends with room for that of data.
func (o *out) file(head, data []byte, alg string) {
	o.mu.Lock()
	f := &o.filed
	f.buf = append(f.buf, head...)
	f.size += len(head) + len(data)
	o.backlog += len(head) + len(data)
	switch {
	case alg != "":
		f.seals = append(f.seals, seal{alg, len(f.buf), len(data)})
	case len(data) >= lendFrom && o.lender != nil && o.failed == nil:
		o.lend(data)
		data = nil
	}
	f.buf = append(f.buf, data...)
	o.mu.Unlock()
}

// A seal is a digest that a filed packet lacks: it is computed by who sends the
// packet, from the copy that is sent, and not under the resource's lock.
type seal struct {
	alg  string
	at   int // where the data begin
	size int // of the data
}

// seal fills in the digests of what was taken. There is one flush at a time.
func (o *out) seal() {
	p := o.going.buf
	for i := range o.going.seals {
		s := &o.going.seals[i]
		o.digest.set(s.alg)
		o.digest.digest(p[s.at : s.at+s.size])
		copy(p[s.at-o.digest.size:], o.digest.sum[:o.digest.size])
	}
}

// size is the number of bytes filed and not handed to the socket.
func (o *out) size() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.backlog
}

// flush hands to the socket what it takes at once.
func (o *out) flush() {
	o.mu.Lock()
	if o.flushing || o.filed.size == 0 || o.failed != nil {
		o.mu.Unlock()
		return
	}
	o.flushing = true
	for o.filed.size > 0 && o.failed == nil {
		o.take()
		o.mu.Unlock()
		o.seal()
		n, err := o.write()
		o.mu.Lock()
		o.advance(n)
		if err != nil {
			o.fail(err)
			return
		}
		if o.pos < o.going.size {
			o.rest <- struct{}{} // flushing stays true: the goroutine goes on
			o.mu.Unlock()
			return
		}
	}
	o.flushing = false
	o.notify()
}

// take swaps the loads; the caller holds the lock.
func (o *out) take() {
	g := &o.going
	if cap(g.buf) > keepOutput {
		g.buf = nil
	}
	*g, o.filed = o.filed, load{buf: g.buf[:0], loans: g.loans[:0], seals: g.seals[:0]}
	o.pos = 0
}

// advance takes into account what was sent; the caller holds the lock.
func (o *out) advance(n int) {
	o.sent += uint64(n)
	if len(o.timed) > 0 {
		o.timeSent()
	}
	o.backlog -= n
	o.pos += n
	o.settleLoans()
}

// notify lets go of the lock and tells who wants to know.
func (o *out) notify() {
	sent, drained := o.sent, o.want && o.backlog < shortOutput
	if drained {
		o.want = false
	}
	tell := o.wantPos.Load() || drained
	o.mu.Unlock()
	if tell {
		o.onSent(sent, drained)
	}
}

// fail lets go of the lock.
func (o *out) fail(err error) {
	o.failed = err
	o.flushing = false
	o.mu.Unlock()
	o.onError(err)
}

// write tries once, without waiting.
func (o *out) write() (int, error) {
	if o.conn.tls != nil {
		return o.writeTLS(o.going.buf[o.pos:])
	}
	return o.writeRaw(o.unsent(), o.try)
}

// unsent is what is left of a load; nothing counts of it if there are loans.
func (o *out) unsent() []byte {
	if len(o.going.loans) > 0 {
		return nil
	}
	return o.going.buf[o.pos:]
}

// writeRaw has p sent, or what is left of a load with loans.
func (o *out) writeRaw(p []byte, try func(fd uintptr) bool) (int, error) {
	o.p = p
	err := o.raw.Write(try)
	o.p = nil
	if err != nil {
		return 0, err
	}
	n, err := o.n, o.err
	if err == unix.EAGAIN {
		return 0, nil
	}
	return max(n, 0), err
}

// run is the goroutine that waits for the socket in the others' stead. It ends
// when done is closed.
func (o *out) run() {
	for {
		select {
		case <-o.rest:
			o.drain()
		case <-o.done:
			return
		}
	}
}

func (o *out) drain() {
	for {
		n, err := o.sendPart()
		o.mu.Lock()
		o.advance(n)
		if err != nil {
			o.fail(err)
			return
		}
		if o.pos < o.going.size {
			pos := o.sent
			o.mu.Unlock()
			if o.wantPos.Load() {
				o.onSent(pos, false)
			}
			continue
		}
		if o.filed.size == 0 {
			o.flushing = false
			o.notify()
			return
		}
		o.take()
		o.mu.Unlock()
		o.seal()
	}
}

// send waits until the socket has taken something of p. Each timeout without any
// progress costs one of its tries.
func (o *out) send(p []byte) (sent int, err error) {
	failures := 0
	for {
		may := o.patience()
		var until time.Time
		if may.timeout > 0 {
			until = time.Now().Add(may.timeout)
		}
		o.conn.SetWriteDeadline(until) //nolint:errcheck // the write fails if this did
		n, err := o.writeRaw(p, o.wait)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			o.conn.SetWriteDeadline(time.Time{}) //nolint:errcheck // it would fail a later write that does not wait
			return n, err
		}
		if failures++; may.tries > 0 && failures >= may.tries {
			return 0, fmt.Errorf("%w for %v", errSendTimeout, time.Duration(failures)*may.timeout)
		}
		o.onBlock()
	}
}

// wantShort asks for onSent once the output is short.
func (o *out) wantShort() {
	o.mu.Lock()
	short := o.backlog < shortOutput && !o.flushing
	o.want = !short
	o.mu.Unlock()
	if short {
		o.onSent(o.sent, true)
	}
}
