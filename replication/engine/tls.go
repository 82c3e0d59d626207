package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tlsLayer is TLS on one socket. crypto/tls makes and reads the records; the
// wire below it decides when they go out and whether a read may wait.
type tlsLayer struct {
	conn  *tls.Conn
	wire  *wire
	early []byte // read by readAhead, not yet by Read
	fault error  // why readAhead found the connection ended, in our words
	words func(error) error
	until time.Time // this node's certificate is valid so long
}

// startTLS does the handshake on a socket. Its time is bounded by the deadline
// of the socket, and by ctx, whose end closes it.
func (e *Engine) startTLS(ctx context.Context, s *sock, t *TLS, dialled bool) error {
	c, err := t.load()
	if err != nil {
		return err
	}
	w := &wire{TCPConn: s.TCPConn}
	layer := &tlsLayer{wire: w, until: c.own.Leaf.NotAfter, words: func(err error) error { return c.explain(err, e.cfg.PeerName) }}
	if dialled {
		layer.conn = tls.Client(w, c.config(e.cfg.PeerName))
	} else {
		layer.conn = tls.Server(w, c.config(e.cfg.PeerName))
	}
	if err := layer.conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return layer.words(err)
	}
	s.tls = layer
	return nil
}

// errPeerHasTLS is for a peer that starts TLS on a node without.
func errPeerHasTLS(peer string) error {
	return tlsErrorf("peer %s speaks TLS: net option tls has to be set on both nodes", peer)
}

// startsTLS reports whether first is the head of a TLS handshake: a record of
// type 22, version 3 (RFC 8446, 5.1). Packets of DRBD begin with 0x83 or 0x86.
func startsTLS(first []byte) bool { return first[0] == 22 && first[1] == 3 }

// tlsStatus is for Status; under the lock.
func (e *Engine) tlsStatus() *TLSStatus {
	if e.tls.Load() == nil {
		return nil
	}
	if e.link == nil || e.link.dataConn.tls == nil {
		return new(TLSStatus)
	}
	return e.link.dataConn.tls.status()
}

func (t *tlsLayer) status() *TLSStatus {
	s := t.conn.ConnectionState()
	return &TLSStatus{Cipher: tls.CipherSuiteName(s.CipherSuite), Until: t.until, PeerUntil: s.PeerCertificates[0].NotAfter}
}

// soon is how long before its end a certificate is worth a warning.
const soon = 14 * 24 * time.Hour

// greetTLS logs what a new connection is protected by. It outlives its
// certificates: the keys were made when they were valid.
func (e *Engine) greetTLS(t *tlsLayer) {
	s := t.status()
	e.log.Info().Str("peer", e.cfg.PeerName).Str("cipher", s.Cipher).Time("until", s.Until).Time("peer-until", s.PeerUntil).Msg("connected with TLS 1.3")
	for _, c := range []struct {
		whose string
		until time.Time
	}{{"this node's certificate", s.Until}, {"the certificate of peer " + e.cfg.PeerName, s.PeerUntil}} {
		if time.Until(c.until) < soon {
			e.log.Warn().Msg(c.whose + " expires on " + stamp(c.until) + ": renew it; this connection goes on, a later one is refused")
		}
	}
}

// refused ends a connection of the peer, which this node could not come to
// terms with.
func (e *Engine) refused(ctx context.Context, c *sock, err error) {
	var fault *tlsError
	if lost := errors.As(err, &fault) && fault.lost; !lost && ctx.Err() == nil {
		e.complain(err) // one that is lost may just be an attempt that another one has overtaken
	}
	c.hangUp(ctx)
}

// noteFault returns err, unless it is a fault of TLS: that is said, and the
// next attempt waits longer.
func (e *Engine) noteFault(p *pair, err error) error {
	p.fault = nil
	var fault *tlsError
	if !errors.As(err, &fault) {
		return err
	}
	p.faults++
	e.complain(err)
	return nil
}

// faultPause is how long the peer is not dialled after faults of TLS: a second,
// doubled for each one in a row, up to connect-int. It may connect meanwhile.
func (e *Engine) faultPause(p *pair) time.Duration {
	if p.faults == 0 {
		return 0
	}
	longest := time.Duration(e.net.Load().ConnectIntMS) * time.Millisecond
	return min(retryPause<<min(p.faults-1, 10), max(longest, retryPause))
}

// maxComplaints bounds the different reasons that are logged of one search for
// the peer: with them their number is finite.
const maxComplaints = 32

// complain has status show why there is no connection; the log hears each
// reason once for as long as the peer is looked for.
func (e *Engine) complain(err error) {
	text := err.Error()
	e.mu.Lock()
	e.connectError = text
	is := e.complaints[text] || len(e.complaints) >= maxComplaints
	if !is {
		e.complaints[text] = true
	}
	e.mu.Unlock()
	if !is {
		e.log.Warn().Str("peer", e.cfg.Peer.String()).Msg("connect: " + text + "; connecting goes on")
	}
}

// Read returns what is there of as many records as have arrived, so that
// small packets are stepped in batches as they are without TLS.
func (t *tlsLayer) Read(p []byte) (int, error) {
	if len(t.early) > 0 {
		n := copy(p, t.early)
		t.early = t.early[n:]
		return n, nil
	}
	n, err := t.read(p)
	if err != nil {
		return n, t.inWords(err)
	}
	t.wire.mode = readWhole
	for n < len(p) && t.wire.whole > 0 {
		var more int
		if more, err = t.read(p[n:]); err != nil {
			break // one that is final comes again
		}
		n += more
	}
	t.wire.mode = readWaits
	return n, nil
}

// inWords explains an alert of the peer; other errors stay what they are.
func (t *tlsLayer) inWords(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return t.words(err)
	}
	return err
}

// read reads from one record and keeps count of them. The count is too high
// after a record without data, which the wire sets right.
func (t *tlsLayer) read(p []byte) (int, error) {
	n, err := t.conn.Read(p)
	if n < len(p) && t.wire.whole > 0 {
		t.wire.whole--
	}
	return n, err
}

// readAhead takes what has arrived, without waiting: an alert, by which the
// peer refuses this node's certificate, is found only by reading. It reports
// whether the connection goes on. It is for connections that do not stand yet.
func (t *tlsLayer) readAhead() bool {
	if t.fault != nil || len(t.early) > 0 {
		return t.fault == nil
	}
	var b [256]byte
	t.wire.mode = readOnce
	n, err := t.conn.Read(b[:])
	t.wire.mode = readWaits
	if err == nil {
		t.early = append(t.early, b[:n]...)
		return true
	}
	if errors.Is(err, errNoMore) {
		return true
	}
	t.fault = t.words(err)
	return false
}

// readMode says what a read of the wire does if nothing has arrived.
type readMode uint8

const (
	readWaits readMode = iota // waits
	readOnce                  // asks the socket, and returns errNoMore
	readWhole                 // returns errNoMore: only what crypto/tls has
)

// errNoMore ends a read that is not to wait. crypto/tls goes on after an error
// that says it is temporary.
var errNoMore net.Error = noMore{}

type noMore struct{}

func (noMore) Error() string   { return "nothing more has arrived" }
func (noMore) Timeout() bool   { return true }
func (noMore) Temporary() bool { return true }

// A wire is the TCP connection as crypto/tls sees it.
type wire struct {
	*net.TCPConn

	// Of the reader: how it reads, and the records that crypto/tls was given
	// whole and has not been asked for.
	mode   readMode
	whole  int
	head   [tlsHeader]byte
	inHead int // bytes of head
	left   int // bytes that the record lacks

	mu     sync.Mutex
	gather bool   // an out sends what is written
	buf    []byte // written, not taken
	other  []byte // taken last
}

// tlsHeader is the size of a record's header: type, version, length (RFC 8446, 5.1).
const tlsHeader = 5

func (w *wire) Read(p []byte) (n int, err error) {
	switch w.mode {
	case readWhole:
		w.whole = 0
		return 0, errNoMore
	case readOnce:
		n, err = w.readNow(p)
	case readWaits:
		n, err = w.TCPConn.Read(p)
	}
	w.count(p[:n])
	return n, err
}

// readNow reads without waiting.
func (w *wire) readNow(p []byte) (n int, err error) {
	raw, err := w.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		n, readErr = unix.Read(int(fd), p)
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case readErr == unix.EAGAIN || readErr == unix.EINTR:
		return 0, errNoMore
	case readErr != nil:
		return 0, readErr
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// count follows the records in what was read.
func (w *wire) count(p []byte) {
	for len(p) > 0 {
		if w.left == 0 {
			n := copy(w.head[w.inHead:], p)
			p, w.inHead = p[n:], w.inHead+n
			if w.inHead < tlsHeader {
				return
			}
			w.inHead, w.left = 0, int(w.head[3])<<8|int(w.head[4])
			if w.left == 0 {
				w.whole++
			}
			continue
		}
		n := min(w.left, len(p))
		p, w.left = p[n:], w.left-n
		if w.left == 0 {
			w.whole++
		}
	}
}

// Write sends, or leaves it to the out.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.gather {
		w.buf = append(w.buf, p...)
		w.mu.Unlock()
		return len(p), nil
	}
	w.mu.Unlock()
	return w.TCPConn.Write(p)
}

func (w *wire) startGathering() {
	w.mu.Lock()
	w.gather = true
	w.mu.Unlock()
}

// take returns what was written. It is valid until the next call.
func (w *wire) take() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf, w.other = w.other[:0], w.buf
	return w.other
}
