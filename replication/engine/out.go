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
	buf      []byte // filed, not yet taken
	spare    []byte
	whole    []byte // of which the goroutine sends the rest
	seals    []seal // of buf
	sealing  []seal // of the buffer that is being sent
	flushing bool
	failed   error
	sent     uint64 // bytes handed to the socket
	want     bool   // someone waits for the output to be short
	timed    []timed
	backlog  int

	rest    chan []byte // to the goroutine
	done    chan struct{}
	onError func(error)
	onBlock func() // a send took nothing for one timeout, and is tried again
	onSent  func(pos uint64, drained bool)
	wantPos atomic.Bool // onSent is wanted after every flush (protocol A)

	// Of the flush under way.
	digest digester
	p      []byte
	n      int
	err    error
	try    func(fd uintptr) bool
	left   []byte // with TLS: records that the socket has not taken
}

// patience is how long a socket that takes nothing is waited for
// (drbd84-protocol, 3.11).
type patience struct {
	timeout time.Duration // one try; 0 = for ever
	tries   int           // without any progress, then the connection is given up; 0 = for ever
}

// errSendTimeout: the socket has taken nothing for all of its tries.
var errSendTimeout = errors.New("the peer takes nothing")

// sendChunk is how much is sent as one: progress is looked for after each.
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
	o := &out{conn: conn, raw: raw, patience: p, rest: make(chan []byte, 1), done: make(chan struct{})}
	o.try = func(fd uintptr) bool {
		for {
			o.n, o.err = writeNow(fd, o.p)
			if o.err != unix.EINTR {
				return true
			}
		}
	}
	return o, nil
}

// file appends a packet. The bytes are copied. If alg names a digest, head ends
// with room for that of data.
func (o *out) file(head, data []byte, alg string) {
	o.mu.Lock()
	o.buf = append(o.buf, head...)
	if alg != "" {
		o.seals = append(o.seals, seal{alg, len(o.buf), len(data)})
	}
	o.buf = append(o.buf, data...)
	o.backlog += len(head) + len(data)
	o.mu.Unlock()
}

// A seal is a digest that a filed packet lacks: it is computed by who sends the
// packet, from the copy that is sent, and not under the resource's lock.
type seal struct {
	alg  string
	at   int // where the data begin
	size int // of the data
}

// seal fills in the digests of p. There is one flush at a time.
func (o *out) seal(p []byte, seals []seal) {
	for i := range seals {
		s := &seals[i]
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
	if o.flushing || len(o.buf) == 0 || o.failed != nil {
		o.mu.Unlock()
		return
	}
	o.flushing = true
	for len(o.buf) > 0 && o.failed == nil {
		p := o.take()
		o.mu.Unlock()
		o.seal(p, o.sealing)
		n, err := o.write(p)
		o.mu.Lock()
		o.sent += uint64(n)
		if len(o.timed) > 0 {
			o.timeSent()
		}
		o.backlog -= n
		if err != nil {
			o.fail(err)
			return
		}
		if n < len(p) {
			o.whole = p
			o.rest <- p[n:] // flushing stays true: the goroutine goes on
			o.mu.Unlock()
			return
		}
		o.give(p)
	}
	o.flushing = false
	o.notify()
}

// take swaps the buffers; the caller holds the lock.
func (o *out) take() []byte {
	p := o.buf
	o.buf, o.spare = o.spare[:0], nil
	o.seals, o.sealing = o.sealing[:0], o.seals
	return p
}

func (o *out) give(p []byte) {
	if cap(p) <= keepOutput {
		o.spare = p[:0]
	}
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
func (o *out) write(p []byte) (int, error) {
	if o.conn.tls != nil {
		return o.writeTLS(p)
	}
	return o.writeRaw(p)
}

func (o *out) writeRaw(p []byte) (int, error) {
	o.p = p
	if err := o.raw.Write(o.try); err != nil {
		return 0, err
	}
	n, err := o.n, o.err
	o.p = nil
	if err == unix.EAGAIN {
		return 0, nil
	}
	if n < 0 {
		n = 0
	}
	return n, err
}

// run is the goroutine that waits for the socket in the others' stead. It ends
// when done is closed.
func (o *out) run() {
	for {
		select {
		case p := <-o.rest:
			o.drain(p)
		case <-o.done:
			return
		}
	}
}

func (o *out) drain(p []byte) {
	for {
		n, err := o.sendPart(p[:min(len(p), sendChunk)])
		p = p[n:]
		o.mu.Lock()
		o.sent += uint64(n)
		if len(o.timed) > 0 {
			o.timeSent()
		}
		o.backlog -= n
		if err != nil {
			o.fail(err)
			return
		}
		if len(p) > 0 {
			pos := o.sent
			o.mu.Unlock()
			if o.wantPos.Load() {
				o.onSent(pos, false)
			}
			continue
		}
		o.give(o.whole)
		o.whole = nil
		if len(o.buf) == 0 {
			o.flushing = false
			o.notify()
			return
		}
		p = o.take()
		o.whole = p
		o.mu.Unlock()
		o.seal(p, o.sealing)
	}
}

// send waits until the socket has taken p. Each timeout without any progress
// costs one of its tries.
func (o *out) send(p []byte) (sent int, err error) {
	failures := 0
	for {
		may := o.patience()
		var until time.Time
		if may.timeout > 0 {
			until = time.Now().Add(may.timeout)
		}
		o.conn.SetWriteDeadline(until) //nolint:errcheck // the write fails if this did
		n, err := o.conn.TCPConn.Write(p[sent:])
		sent += n
		switch {
		case err == nil:
			o.conn.SetWriteDeadline(time.Time{}) //nolint:errcheck // it would fail a later write that does not wait
			return sent, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return sent, err
		case n > 0:
			failures = 0
			continue
		}
		if failures++; may.tries > 0 && failures >= may.tries {
			return sent, fmt.Errorf("%w for %v", errSendTimeout, time.Duration(failures)*may.timeout)
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
