package export

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/nbd"
)

// Config holds a server's limits; a zero field takes its default.
type Config struct {
	Log              zerolog.Logger
	MaxConnections   int           // of one listener, default 64, of a unix socket 1024; see admit
	HandshakeTimeout time.Duration // from accept to the end of the options, default 10 s
	// MaxInFlight bounds the bytes of requests and replies that one connection
	// keeps in memory; a client that has more outstanding is not read from
	// until some are answered. Default 4 MiB, at least one request of 1 MiB.
	MaxInFlight int64
}

// Tuning of our own.
const (
	defaultConnections = 64
	// A unix socket is this machine's: hundreds of VMs have a few disks each.
	defaultUnixConnections = 1024
	defaultHandshake       = 10 * time.Second
	defaultInFlight        = 4 << 20
	// All connections together may have totalInFlight bytes in flight; what the
	// others leave of it is one's own limit, but each may have scarceInFlight: many
	// clients slow down rather than grow. It is 59 writes of 4 KiB.
	totalInFlight  = 4 << 20
	scarceInFlight = 256 << 10
	// Log lines about refused connections: so many in each period.
	refusalLines  = 5
	refusalPeriod = 10 * time.Second
	// maxLeaving times that many bounds what one listener has together with
	// the connections that were told to go, which takes a moment.
	maxLeaving = 16
)

// ErrNoExport says that a name is not served.
var ErrNoExport = errors.New("no such export")

// A Server serves exports on its listeners. It is safe for concurrent use.
type Server struct {
	cfg      Config
	lines    zerolog.BurstSampler // bounds log lines that anybody can cause by connecting
	refused  zerolog.Logger       // samples by it
	pool     bufferPool
	inFlight atomic.Int64 // bytes, all connections
	draining atomic.Bool
	group    sync.WaitGroup // accept loops and connections

	mu        sync.Mutex
	exports   map[string]*served
	conns     map[*conn]struct{}
	listeners map[net.Listener]struct{}
}

// A served is a registered Backend.
type served struct {
	name    string
	backend Backend
}

// New returns a server without exports or listeners.
func New(cfg Config) *Server {
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = defaultHandshake
	}
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = defaultInFlight
	}
	s := &Server{
		cfg:       cfg,
		lines:     zerolog.BurstSampler{Burst: refusalLines, Period: refusalPeriod},
		exports:   make(map[string]*served),
		conns:     make(map[*conn]struct{}),
		listeners: make(map[net.Listener]struct{}),
	}
	s.refused = cfg.Log.Sample(&s.lines)
	return s
}

// Add serves b under a name. One Backend, which must be comparable (a
// pointer), may have several names. While only one Backend is served, the
// empty name means it as well.
func (s *Server) Add(name string, b Backend) error {
	if name == "" || len(name) > nbd.MaxString {
		return fmt.Errorf("nbd export %q: a name has 1 to %d bytes", name, nbd.MaxString)
	}
	if _, err := nbd.DecodeName([]byte(name)); err != nil {
		return fmt.Errorf("nbd export %q: the name is not UTF-8 text without NUL", name)
	}
	if size := b.Info().Size; size < 0 {
		return fmt.Errorf("nbd export %q: its size is %d", name, size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[name] != nil {
		return fmt.Errorf("nbd export %q: is served already", name)
	}
	s.exports[name] = &served{name: name, backend: b}
	return nil
}

// Remove stops serving a name: new clients are refused, present ones are
// disconnected as by Disconnect.
func (s *Server) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	if s.exports[name] == nil {
		s.mu.Unlock()
		return fmt.Errorf("nbd export %q: %w", name, ErrNoExport)
	}
	delete(s.exports, name)
	s.mu.Unlock()
	return s.Disconnect(ctx, name)
}

// Disconnect closes the connections of an export's clients and waits until all
// their requests have come back from the Backend, or ctx ends.
func (s *Server) Disconnect(ctx context.Context, name string) error {
	s.mu.Lock()
	var gone []*conn
	for c := range s.conns {
		if c.export != nil && c.export.name == name {
			gone = append(gone, c)
		}
	}
	s.mu.Unlock()
	for _, c := range gone {
		c.fail(errDisconnected)
	}
	for _, c := range gone {
		select {
		case <-c.done:
		case <-ctx.Done():
			return fmt.Errorf("nbd export %q: disconnect clients: %w", name, ctx.Err())
		}
	}
	return nil
}

// Clients is the number of connections that use an export.
func (s *Server) Clients(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for c := range s.conns {
		if c.export != nil && c.export.name == name {
			n++
		}
	}
	return n
}

// Listen opens a listener and serves it until Shutdown. The address returned
// has the port that the kernel chose for port 0.
func (s *Server) Listen(l Listener) (net.Addr, error) {
	ln, err := l.open()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		ln.Close()
		return nil, fmt.Errorf("nbd listener %s: the server is shutting down", l.Address)
	}
	s.listeners[ln] = struct{}{}
	s.group.Go(func() { s.accept(ln, l) })
	return ln.Addr(), nil
}

// accept takes connections until its listener is closed.
func (s *Server) accept(ln net.Listener, l Listener) {
	const maxPause = time.Second
	pause := time.Millisecond
	for {
		nc, err := ln.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors or memory: it may pass
			s.refused.Warn().Err(err).Str("listener", l.Address).Msg("nbd: accept")
			time.Sleep(pause)
			pause = min(2*pause, maxPause)
			continue
		case !l.allows(nc.RemoteAddr()):
			s.refused.Warn().Stringer("client", nc.RemoteAddr()).Str("listener", l.Address).Msg("nbd: client is not in the allow list")
			nc.Close()
			continue
		}
		pause = time.Millisecond
		s.serveConn(nc, ln)
	}
}

// ServeConn serves one connection in the background; the server closes it.
func (s *Server) ServeConn(nc net.Conn) { s.serveConn(nc, nil) }

func (s *Server) serveConn(nc net.Conn, ln net.Listener) {
	c := newConn(s, nc)
	c.from, c.since = ln, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() || !s.admit(ln) {
		s.refused.Warn().Str("client", c.remote).Int("connections", len(s.conns)).Msg("nbd: connection refused, the listener is full or ending")
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.group.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		close(c.done)
	})
}

// most is how many connections a listener takes.
func (c *Config) most(ln net.Listener) int {
	_, isUnix := ln.(*net.UnixListener)
	switch {
	case c.MaxConnections > 0:
		return c.MaxConnections
	case isUnix:
		return defaultUnixConnections
	}
	return defaultConnections
}

// admit reports whether a listener takes one more connection; under mu. Each has
// room of its own, so that nobody who connects by TCP keeps those of the unix
// socket out. On a full one the oldest connection goes that has not finished its
// handshake: clients need milliseconds for it.
func (s *Server) admit(ln net.Listener) bool {
	n := 0
	var oldest *conn
	for c := range s.conns {
		if c.from != ln {
			continue
		}
		n++
		if !c.begun && !c.evicted && (oldest == nil || c.since.Before(oldest.since)) {
			oldest = c
		}
	}
	most := s.cfg.most(ln)
	switch {
	case n < most:
		return true
	case oldest == nil || n >= maxLeaving*most:
		return false
	}
	oldest.evicted = true
	s.refused.Warn().Str("client", oldest.remote).Int("connections", n).Msg("nbd: connection closed before its handshake was over, the listener is full")
	oldest.fail(errDisconnected)
	return true
}

// lookup finds an export; the empty name is the only Backend there is.
func (s *Server) lookup(name string) *served {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "" {
		return s.exports[name]
	}
	var only *served
	for _, e := range s.exports {
		switch {
		case only == nil || only.backend == e.backend && e.name < only.name:
			only = e
		case only.backend != e.backend:
			return nil
		}
	}
	return only
}

// claim records that c uses e; false if e is not served any more. From then on
// Disconnect finds c.
func (s *Server) claim(c *conn, e *served) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[e.name] != e || s.draining.Load() {
		return false
	}
	c.export = e
	return true
}

// unclaim takes claim back when the Backend has refused.
func (s *Server) unclaim(c *conn) {
	s.mu.Lock()
	c.export = nil
	s.mu.Unlock()
}

// list returns all exports in the order of their names.
func (s *Server) list() []*served {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*served, 0, len(s.exports))
	for _, e := range s.exports {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *served) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return all
}

// Shutdown stops listening, takes no new requests, lets those in flight finish,
// and closes the connections: clients that reconnect repeat what was not
// answered and see no error. When ctx ends first, it closes them at once and
// returns ctx's error; requests may then still be with their Backends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for ln := range s.listeners {
		ln.Close() // removes a unix socket's file too; nothing can be done about an error
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()

	for _, c := range conns {
		go c.drainThenStop()
	}
	done := make(chan struct{})
	go func() {
		s.group.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		for _, c := range conns {
			c.fail(errDisconnected)
		}
		return fmt.Errorf("nbd server: shut down: %w", ctx.Err())
	}
}
