package engine

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// What strangers and a peer that breaks the protocol may cost. Our own choice.
const (
	maxGreeting  = 32               // connections whose first packet is awaited; one more ends the oldest
	strangerLog  = 10 * time.Second // one log line about refused strangers for so long
	maxOutcast   = 30 * time.Second // longest pause before a peer that broke the protocol is looked for again
	goodConduct  = time.Minute      // a connection that held so long makes up for earlier violations
	reportBurst  = 200              // log lines that the peer may cause at once,
	reportEvery  = time.Second / 10 // and one more after each of these
	acceptPause  = 100 * time.Millisecond
	firstOutcast = time.Second
)

// guests are the connections whose first packet is awaited, oldest first. They
// come from the peer's address, but anybody there may open them: when there are
// too many the oldest goes, since the peer itself speaks at once.
type guests struct {
	mu    sync.Mutex
	conns []net.Conn
}

// enter adds c, and closes the oldest one if there are too many.
func (g *guests) enter(c net.Conn) {
	g.mu.Lock()
	g.conns = append(g.conns, c)
	var oldest net.Conn
	if len(g.conns) > maxGreeting {
		oldest = g.conns[0]
		g.conns = append(g.conns[:0], g.conns[1:]...)
	}
	g.mu.Unlock()
	if oldest != nil {
		oldest.Close() // whoever it is has had its time
	}
}

func (g *guests) leave(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, have := range g.conns {
		if have == c {
			g.conns = append(g.conns[:i], g.conns[i+1:]...)
			return
		}
	}
}

// An occasional lets something be said once in a while, and counts what was left out.
type occasional struct {
	mu    sync.Mutex
	next  time.Time
	quiet int
}

// may reports whether it may be said now, and how often it was not since.
func (o *occasional) may(now time.Time, every time.Duration) (suppressed int, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Before(o.next) {
		o.quiet++
		return 0, false
	}
	suppressed, o.quiet = o.quiet, 0
	o.next = now.Add(every)
	return suppressed, true
}

// turnAway closes the connection of a stranger, of which not a byte was read.
func (e *Engine) turnAway(c net.Conn) {
	from := c.RemoteAddr().String()
	c.Close() // a stranger's
	if n, ok := e.strangers.may(time.Now(), strangerLog); ok {
		e.log.Warn().Str("from", from).Str("peer", e.cfg.Peer.Addr().String()).Int("more", n).
			Msg("connection of a stranger refused: only the peer's address may connect")
	}
}

// A violation is how often, and how, the peer has broken the protocol.
type violation struct {
	text  string
	count int // since the operator's last connect
	last  time.Time
	row   int  // in a row, without a connection that held
	fresh bool // the last connection ended so
}

// noteEnd looks at the end of a connection that began at since: one that the
// peer broke the protocol on counts against it. Under the lock.
func (e *Engine) noteEnd(err error, since time.Time) {
	w, now := &e.violation, time.Now()
	if now.Sub(since) >= goodConduct {
		w.row = 0
	}
	var p *drbd.ProtocolError
	if w.fresh = errors.As(err, &p); !w.fresh {
		return
	}
	w.text, w.last = p.Error(), now
	w.count++
	w.row++
}

// outcast is how long the peer is not looked for after n violations in a row.
// The first one is forgiven, as DRBD does: it connects again at once.
func outcast(n int) time.Duration {
	if n < 2 {
		return 0
	}
	d := firstOutcast
	for range min(n-2, 16) {
		d *= 2
	}
	return min(d, maxOutcast)
}

// doPenance waits as long as the peer's conduct demands. There is no listener
// meanwhile, so the peer is refused by the kernel. It reports false if ctx ended.
func (e *Engine) doPenance(done <-chan struct{}) bool {
	e.mu.Lock()
	n, text, fresh := e.violation.row, e.violation.text, e.violation.fresh
	e.mu.Unlock()
	d := e.outcast(n)
	if d <= 0 || !fresh {
		return true
	}
	e.log.Warn().Str("peer", e.cfg.PeerName).Int("times", n).Dur("pause", d).Str("reason", text).
		Msg("the peer broke the protocol again; it is looked for after a pause: is its software damaged, or does something else use its address?")
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return false
	case <-t.C:
		return true
	}
}

// A loudness bounds the log lines that the peer's packets can cause: a bucket
// of reportBurst that fills by one each reportEvery.
type loudness struct {
	used  int
	since time.Time
	quiet int
}

// may reports whether one more line may be written, and how many were left out
// before it; under the resource's lock.
func (l *loudness) may(now time.Time) (suppressed int, ok bool) {
	if n := int(now.Sub(l.since) / reportEvery); n > 0 {
		l.used = max(l.used-n, 0)
		l.since = now
	}
	if l.used >= reportBurst {
		l.quiet++
		return 0, false
	}
	l.used++
	suppressed, l.quiet = l.quiet, 0
	return suppressed, true
}

// suppressed tells of log lines that were left out.
func suppressed(n int) func(*zerolog.Event) {
	return func(l *zerolog.Event) {
		if n > 0 {
			l.Int("suppressed", n)
		}
	}
}
