package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// ConnectOptions are those of one connect command.
type ConnectOptions struct {
	DiscardMyData bool // a split brain is resolved at this node's cost; single shot
	Tentative     bool // dry run: say what would happen
}

// Pauses of our own between attempts. DRBD waits connect-int; a peer of our
// kind that comes up is found sooner.
const (
	redialMin  = 300 * time.Millisecond
	redialMax  = 1000 * time.Millisecond
	retryPause = time.Second
)

// errGiveUp marks failures that no retry can mend: the operator has to act.
var errGiveUp = errors.New("connection refused for good")

// startConnecting starts the connect loop; under the lock.
func (e *Engine) startConnecting() {
	if e.closed || e.connStop != nil {
		return
	}
	e.connCtx, e.connStop = context.WithCancel(context.Background())
	e.complaints = map[string]bool{}
	e.connWG.Add(1)
	go e.connectLoop(e.connCtx)
}

// stopConnecting ends it; under the lock.
func (e *Engine) stopConnecting() {
	if e.connStop != nil {
		e.connStop()
		e.connStop = nil
	}
}

// connectLoop tries until both sockets stand and features are agreed, then
// runs the connection. A broken connection makes the core ask for a new loop.
func (e *Engine) connectLoop(ctx context.Context) {
	defer e.connWG.Done()
	if !e.doPenance(ctx.Done()) {
		return
	}
	complained := ""
	for ctx.Err() == nil {
		l, err := e.establish(ctx)
		if err == nil {
			e.adopt(ctx, l)
			return
		}
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != complained {
			complained = text
			e.log.Warn().Str("peer", e.cfg.Peer.String()).Msg("connect: " + text)
			e.setConnectError(text)
		}
		e.mu.Lock()
		e.noteEnd(err, time.Now())
		pause := retryPause
		if e.violation.fresh {
			pause = max(pause, e.outcast(e.violation.row))
		}
		e.mu.Unlock()
		if errors.Is(err, errGiveUp) {
			e.giveUp(ctx, err)
			return
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// adopt hands a new connection to the core.
func (e *Engine) adopt(ctx context.Context, l *link) {
	b := e.newBatch()
	e.mu.Lock()
	if ctx.Err() != nil || e.closed {
		e.mu.Unlock()
		l.retire(b)
		e.finish(b)
		e.freeBatch(b)
		return
	}
	e.connStop() // the loop is over; a later Connect starts another
	e.connStop = nil
	l.info.DiscardMyData, l.info.DryRun = e.connOpts.DiscardMyData, e.connOpts.Tentative
	e.connOpts = ConnectOptions{}
	e.link, e.linkSince = l, time.Now()
	e.connectError = ""
	e.connWG.Add(1)
	e.loans.add(l.data)
	b.ev = replication.Event{Kind: replication.SocketsUp, Link: l.info}
	e.step(b, &b.ev)
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
	if l.dataConn.tls != nil {
		e.greetTLS(l.dataConn.tls)
	}
	go l.run()
}

func (e *Engine) giveUp(ctx context.Context, err error) {
	b := e.newBatch()
	e.mu.Lock()
	if ctx.Err() == nil {
		b.ev = replication.Event{Kind: replication.SocketsDown, Reason: drbd.Disconnecting, Err: err}
		e.step(b, &b.ev)
	}
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
}

func (e *Engine) setConnectError(text string) {
	e.mu.Lock()
	e.connectError = text
	e.mu.Unlock()
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// greeting is an accepted connection whose first packet has come.
type greeting struct {
	conn *sock
	cmd  drbd.Command
}

// listener accepts connections of the peer while no connection stands.
type listener struct {
	ln     *net.TCPListener
	came   chan greeting
	wg     sync.WaitGroup
	guests guests
}

func (e *Engine) listen(ctx context.Context) (*listener, error) {
	lc := net.ListenConfig{Control: e.sizeBuffers}
	ln, err := lc.Listen(ctx, "tcp", e.cfg.Local.String())
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w: another program uses the port, or the address is not this host's", e.cfg.Local, err)
	}
	l := &listener{ln: ln.(*net.TCPListener), came: make(chan greeting)}
	l.wg.Add(1)
	go e.accept(ctx, l)
	return l, nil
}

// accept takes connections of the peer's address only: a stranger is refused
// before a byte of his is read.
func (e *Engine) accept(ctx context.Context, l *listener) {
	defer l.wg.Done()
	for {
		c, err := l.ln.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !sleep(ctx, acceptPause) {
				return
			}
			continue // out of descriptors, most likely: it may pass
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if from != e.cfg.Peer.Addr().Unmap().WithZone(from.Zone()) {
			e.turnAway(c)
			continue
		}
		l.guests.enter(c)
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			defer l.guests.leave(c)
			e.greet(ctx, l, &sock{TCPConn: c})
		}()
	}
}

// greet reads the first packet, if need be out of TLS, and delivers the
// connection. One deadline holds for all of it.
func (e *Engine) greet(ctx context.Context, l *listener, c *sock) {
	c.SetDeadline(time.Now().Add(e.handshakeTime())) //nolint:errcheck // the read fails if this did
	if t := e.tls.Load(); t != nil {
		if err := e.startTLS(ctx, c, t, false); err != nil {
			e.refused(ctx, c, err)
			return
		}
	}
	var b [drbd.HeaderSize80]byte
	stop := context.AfterFunc(ctx, func() { c.Close() }) //nolint:errcheck // ends the read
	_, err := io.ReadFull(c, b[:])
	if !stop() || err != nil {
		c.Close() //nolint:errcheck // it said nothing
		return
	}
	if c.tls == nil && startsTLS(b[:]) {
		e.refused(ctx, c, errPeerHasTLS(e.cfg.PeerName))
		return
	}
	h, err := drbd.DecodeHeader80(b[:])
	if err != nil || h.Length != 0 || h.Command != drbd.CmdInitialData && h.Command != drbd.CmdInitialMeta {
		if n, ok := e.strange.may(time.Now(), strangerLog); ok {
			e.log.Warn().Str("from", c.RemoteAddr().String()).Hex("bytes", b[:]).Int("more", n).Msg("not a first packet of DRBD; closed")
		}
		c.Close() //nolint:errcheck // not a peer
		return
	}
	c.SetDeadline(time.Time{}) //nolint:errcheck // a dead socket shows later
	select {
	case l.came <- greeting{c, h.Command}:
	case <-ctx.Done():
		c.Close() //nolint:errcheck // too late
	}
}

func (l *listener) close() {
	l.ln.Close() //nolint:errcheck // nothing depends on it
	l.wg.Wait()
}

// handshakeTime bounds the packets before P_PROTOCOL (drbd84-protocol, 1.3).
func (e *Engine) handshakeTime() time.Duration {
	return max(4*e.pingTimeout(), time.Second)
}

func (e *Engine) pingTimeout() time.Duration {
	return time.Duration(e.net.Load().PingTimeoutMS) * time.Millisecond
}

// pair is the two sockets of an attempt.
type pair struct {
	data, meta *sock
	ownData    bool // this node dialled the data socket
	rc         bool // this node accepted the meta socket

	fault  error // why TLS ended one of them
	faults int   // in a row
}

func (p *pair) close() {
	for _, c := range []*sock{p.data, p.meta} {
		if c != nil {
			c.Close() //nolint:errcheck // given up
		}
	}
}

// establish is the connect loop of drbd84-protocol, 1.2.
func (e *Engine) establish(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ln, err := e.listen(ctx)
	if err != nil {
		return nil, err
	}
	defer ln.close()
	defer cancel()
	p := &pair{}
	for {
		err := e.noteFault(p, e.dialNext(ctx, p))
		for p.data == nil || p.meta == nil {
			if e.await(ctx, ln, p) {
				break // nobody came: dial again
			}
			if ctx.Err() != nil {
				p.close()
				return nil, ctx.Err()
			}
			if p.data != nil && p.meta == nil && !p.ownData {
				break // the peer opened the data socket: the meta socket is ours to open
			}
		}
		if p.data == nil || p.meta == nil {
			if err != nil {
				e.setConnectError(err.Error())
			}
			continue
		}
		if !sleep(ctx, e.graceTime()) {
			p.close()
			return nil, ctx.Err()
		}
		p.dropDead()
		if p.data != nil && p.meta != nil {
			break
		}
		e.noteFault(p, p.fault) //nolint:errcheck // nil, or noted
	}
	cancel()
	l, err := e.greetPeer(p)
	if err != nil {
		p.close()
		return nil, err
	}
	return l, nil
}

func (e *Engine) graceTime() time.Duration {
	if e.net.Load().SockCheckMS > 0 {
		return time.Duration(e.net.Load().SockCheckMS) * time.Millisecond
	}
	return e.pingTimeout()
}

// sizeBuffers applies sndbuf-size and rcvbuf-size, before the connection is
// made, so that the window is negotiated for them. An accepted socket has those
// of the listener; 0 leaves the size to the system.
func (e *Engine) sizeBuffers(_, _ string, c syscall.RawConn) error {
	n := e.net.Load()
	return c.Control(func(fd uintptr) {
		for _, o := range []struct{ option, bytes int }{{unix.SO_SNDBUF, n.SndbufBytes}, {unix.SO_RCVBUF, n.RcvbufBytes}} {
			if o.bytes > 0 {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.option, o.bytes) //nolint:errcheck // a tuning option
			}
		}
	})
}

// dialNext opens the socket that is missing.
func (e *Engine) dialNext(ctx context.Context, p *pair) error {
	if p.data != nil && p.meta != nil {
		return nil
	}
	d := net.Dialer{
		Timeout:   time.Duration(e.net.Load().ConnectIntMS) * time.Millisecond,
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.cfg.Local.Addr(), 0)),
		Control:   e.sizeBuffers,
	}
	c, err := d.DialContext(ctx, "tcp", e.cfg.Peer.String())
	if err != nil {
		return fmt.Errorf("peer %s at %s cannot be reached: %w", e.cfg.PeerName, e.cfg.Peer, err)
	}
	conn := &sock{TCPConn: c.(*net.TCPConn)}
	if t := e.tls.Load(); t != nil {
		conn.SetDeadline(time.Now().Add(e.handshakeTime())) //nolint:errcheck // the handshake fails if this did
		if err := e.startTLS(ctx, conn, t, true); err != nil {
			conn.hangUp(ctx)
			return err
		}
		conn.SetDeadline(time.Time{}) //nolint:errcheck // a dead socket shows at once
	}
	cmd := drbd.CmdInitialData
	if p.data != nil {
		cmd = drbd.CmdInitialMeta
	}
	if _, err := conn.Write(drbd.AppendHeader80(nil, cmd, 0)); err != nil {
		conn.Close() //nolint:errcheck // it is dead
		return err
	}
	if cmd == drbd.CmdInitialData {
		p.data, p.ownData = conn, true
	} else {
		p.meta, p.rc = conn, false
	}
	return nil
}

// await waits for a connection of the peer; it reports whether none came.
func (e *Engine) await(ctx context.Context, ln *listener, p *pair) (nobody bool) {
	wait := redialMin + mrand.N(redialMax-redialMin)
	if p.data != nil {
		// Our data socket stands: the peer opens the meta socket. If it never
		// does, this node opens it, too.
		wait = time.Duration(e.net.Load().ConnectIntMS) * time.Millisecond
		wait += mrand.N(wait/7 + 1)
	}
	t := time.NewTimer(max(wait, e.faultPause(p)))
	defer t.Stop()
	check := time.NewTicker(redialMin)
	defer check.Stop()
	for {
		select {
		case g := <-ln.came:
			e.take(p, g)
			return false
		case <-check.C:
			if p.data != nil && !p.data.alive() {
				p.dropDead()
				if p.fault == nil {
					return true
				}
				e.noteFault(p, p.fault) //nolint:errcheck // nil, or noted
				t.Reset(e.faultPause(p))
			}
		case <-t.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// take files an accepted connection. If both nodes opened a data socket at the
// same time, both keep the one that the lower address opened.
func (e *Engine) take(p *pair, g greeting) {
	p.dropDead()
	if g.cmd == drbd.CmdInitialMeta {
		if p.meta != nil {
			p.meta.Close() //nolint:errcheck // replaced
		}
		p.meta, p.rc = g.conn, true
		return
	}
	if p.data != nil {
		if p.ownData && e.cfg.Local.Compare(e.cfg.Peer) < 0 {
			g.conn.Close() //nolint:errcheck // the peer keeps ours
			return
		}
		p.data.Close() //nolint:errcheck // replaced
	}
	p.data, p.ownData = g.conn, false
}

// dropDead forgets sockets that the peer has closed.
func (p *pair) dropDead() {
	for _, c := range []**sock{&p.data, &p.meta} {
		if *c == nil || (*c).alive() {
			continue
		}
		if err := (*c).fault(); err != nil {
			p.fault = err
		}
		(*c).Close() //nolint:errcheck // it is dead
		*c = nil
	}
}
