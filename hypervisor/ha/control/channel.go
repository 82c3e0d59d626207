package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/conf"
)

// Version is the newest of this channel's languages, MinVersion the oldest that
// this program still speaks: two nodes use the newest that both do. MinVersion
// is never more than one below, so that nodes are upgraded one after the other.
const (
	Version    = 1
	MinVersion = 1
)

// Limits on connections; our own. A node has one per link and other node.
const (
	handshakeTime  = 5 * time.Second
	maxHandshakes  = 32 // at the same time
	maxOutFrames   = 64 // waiting for a slow peer; beyond them requests fail
	maxRequests    = 32 // of one peer that are worked on at the same time
	maxRequestTime = 10 * time.Minute
	strangerPause  = 10 * time.Second // between two log lines about strangers
)

// Config is what a Channel is made with. Session, Boot and Software are told to
// the others. None of the functions may block: they are called by the goroutines
// that serve the peers.
type Config struct {
	Store    Store
	Identity *Identity
	Cluster  *conf.Cluster
	Listen   netip.AddrPort // on the first link; zero: the link's own address
	Session  string         // of this run of the program: never the same again
	Boot     string         // the machine's boot ID
	Software string         // version, for people
	Log      zerolog.Logger

	// OnBeat is called for each heartbeat of a peer; of one peer, one at a time.
	OnBeat func(Beat)
	// OnLink is called when a link's connection stands or is broken.
	OnLink func(LinkChange)
	// OnCluster is called when cluster.toml was replaced: a node joined or left,
	// or another node had a newer one. It may lack this node, which was removed.
	OnCluster func(c *conf.Cluster)
	// Vital says that the part of the program that decides is alive: while it
	// says no, no heartbeats are sent, so that the others notice. nil: it is.
	Vital func() bool
	// Unfit says why the members can't be changed now, for this node's part: what
	// is ill here, or still runs on a node that leaves. It may take a second, and
	// is the one function that may block. nil: they always can.
	Unfit func(ctx context.Context, c Change) error

	now      func() time.Duration // nil: CLOCK_BOOTTIME
	versions [2]int               // oldest and newest; zero: MinVersion, Version
}

// Beat is one heartbeat of another node.
type Beat struct {
	Node    string
	Session string
	Boot    string
	Link    int
	// Version of the payload grows with each change, within one session.
	Version uint64
	Changed bool   // Payload is another one than in the Beat before
	Payload []byte // what the node has given to SetPayload; nil: nothing yet. Read only
}

// LinkChange is a link whose connection stands (Up) or is broken.
type LinkChange struct {
	Node string
	Link int
	Up   bool
	Why  string // it is broken
}

// Channel is this node's connections to all others: heartbeats over each link,
// requests over the first one that stands. All methods are safe for concurrent use.
type Channel struct {
	cfg    Config
	id     *Identity
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	handlers map[string]Handler // fixed when Start returns

	mu        sync.Mutex
	cluster   *conf.Cluster
	peers     map[string]*peer
	listeners map[netip.AddrPort]*listener
	conns     map[*conn]bool
	payload   []byte
	version   uint64 // of payload
	prepared  prepared
	isClosed  bool

	handshakes chan struct{}
	strangers  atomic.Int64 // when one was last told of, on the channel's clock

	saving sync.Mutex // of cluster.toml; with
	saved  int        // the serial that is on disk, if that is newer than the one in force
}

// bootTime counts also while the machine sleeps, and no one can set it.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("control: clock_gettime(CLOCK_BOOTTIME): %v", err)) // since Linux 2.6.39 it can't
	}
	return time.Duration(ts.Nano())
}

// Start opens the channel. handlers answer the requests of other nodes; names
// that begin with "_" are the channel's own. Addresses that this machine does not
// have yet are tried again until it does.
func Start(cfg Config, handlers map[string]Handler) (*Channel, error) {
	if cfg.Identity == nil || cfg.Cluster == nil || cfg.Session == "" {
		return nil, errors.New("control channel: identity, cluster and session are needed")
	}
	if cfg.Cluster.Node(cfg.Identity.Node) == nil {
		return nil, fmt.Errorf("control channel: cluster %q has no node %q", cfg.Cluster.Name, cfg.Identity.Node)
	}
	if cfg.now == nil {
		cfg.now = bootTime
	}
	if cfg.versions == [2]int{} {
		cfg.versions = [2]int{MinVersion, Version}
	}
	ch := &Channel{
		cfg: cfg, id: cfg.Identity,
		peers: map[string]*peer{}, listeners: map[netip.AddrPort]*listener{}, conns: map[*conn]bool{},
		handlers: maps.Clone(handlers), handshakes: make(chan struct{}, maxHandshakes),
	}
	if ch.handlers == nil {
		ch.handlers = map[string]Handler{}
	}
	ch.handlers[methodPrepare], ch.handlers[methodCommit], ch.handlers[methodAbort] = ch.servePrepare, ch.serveCommit, ch.serveAbort
	ch.strangers.Store(int64(-strangerPause))
	ch.ctx, ch.cancel = context.WithCancel(context.Background())
	ch.apply(cfg.Cluster)
	ch.wg.Go(ch.tick)
	return ch, nil
}

// Close ends all connections, and waits until nothing is called any more.
func (ch *Channel) Close() error {
	ch.mu.Lock()
	ch.isClosed = true
	ch.cancel()
	for _, l := range ch.listeners {
		l.close()
	}
	for c := range ch.conns {
		c.bye("it was stopped")
	}
	ch.mu.Unlock()
	ch.wg.Wait()
	return nil
}

// SetPayload is what heartbeats carry from now on; the next one is sent at once.
// It is not copied, and must not be changed any more. The error is a payload of
// more than MaxBody bytes, which leaves the old one.
func (ch *Channel) SetPayload(b []byte) error {
	if len(b) > MaxBody {
		return fmt.Errorf("heartbeat: payload of %d bytes, at most %d are allowed", len(b), MaxBody)
	}
	ch.mu.Lock()
	ch.payload = b
	ch.version++
	ch.mu.Unlock()
	ch.beat(false)
	return nil
}

// Cluster returns the description that is in force. Read only.
func (ch *Channel) Cluster() *conf.Cluster {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.cluster
}

// Reload puts a cluster.toml in force that was edited. Its id must be the same and
// it must have this node. It reaches other nodes if its serial is higher.
func (ch *Channel) Reload(c *conf.Cluster) error {
	switch old := ch.Cluster(); {
	case c.ID != old.ID:
		return fmt.Errorf("%s: id is %s, and this node is in the cluster with id %s", c.File, c.ID, old.ID)
	case c.Node(ch.id.Node) == nil:
		return fmt.Errorf("%s has no node %q, which is this one: polluxadm cluster leave takes a node out", c.File, ch.id.Node)
	}
	ch.apply(c)
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for conn := range ch.conns {
		conn.offerCluster(c)
	}
	return nil
}

// apply makes listeners and peers fit a description.
func (ch *Channel) apply(c *conf.Cluster) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.isClosed {
		return
	}
	ch.cluster = c
	self := c.Node(ch.id.Node)
	var links []netip.AddrPort
	if self != nil {
		links = slices.Clone(self.Links)
		if ch.cfg.Listen.IsValid() && len(links) > 0 {
			links[0] = ch.cfg.Listen
		}
	}
	for addr, l := range ch.listeners {
		if !slices.Contains(links, addr) {
			l.close()
			delete(ch.listeners, addr)
		}
	}
	for _, addr := range links {
		if ch.listeners[addr] == nil {
			// The first try is made here, so that who comes at once is heard.
			l := &listener{addr: addr}
			nl, err := net.Listen("tcp", addr.String())
			l.l = nl
			ch.listeners[addr] = l
			ch.wg.Go(func() { ch.listen(l, nl, err) })
		}
	}
	for name, p := range ch.peers {
		if n := c.Node(name); self == nil || n == nil || n.Name != name || !p.fits(self, n) {
			p.end(fmt.Sprintf("cluster.toml has changed on %s", ch.id.Node))
			delete(ch.peers, name)
		}
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if self != nil && n.Name != ch.id.Node && ch.peers[n.Name] == nil {
			ch.peers[n.Name] = ch.newPeer(self, n)
		}
	}
}

// heartbeat returns the times in force.
func (ch *Channel) heartbeat() conf.Heartbeat {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.cluster.Heartbeat
}

// tick sends heartbeats.
func (ch *Channel) tick() {
	every := ch.heartbeat().Keepalive.Duration
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ch.ctx.Done():
			return
		case <-t.C:
		}
		if now := ch.heartbeat().Keepalive.Duration; now != every {
			every = now
			t.Reset(every)
		}
		ch.beat(true)
	}
}

// beat has each connection send a heartbeat now; due says that it is time for one.
func (ch *Channel) beat(due bool) {
	isVital := ch.cfg.Vital == nil || ch.cfg.Vital()
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for _, p := range ch.peers {
		for _, l := range p.links {
			if due {
				l.seqOut++
			}
			if l.conn != nil && isVital {
				l.conn.signalBeat()
			}
		}
	}
}

// A listener takes connections on one of this node's addresses.
type listener struct {
	addr     netip.AddrPort
	mu       sync.Mutex
	l        net.Listener
	isClosed bool
}

func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isClosed = true
	if l.l != nil {
		l.l.Close()
	}
}

func (l *listener) done() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isClosed
}

// set hands an open one over; it reports whether it is still wanted.
func (l *listener) set(nl net.Listener) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.l = nl
	return !l.isClosed
}

// listen accepts on nl, or says why there is none and tries again, until the
// listener is closed.
func (ch *Channel) listen(l *listener, nl net.Listener, err error) {
	told := ""
	for {
		if err == nil {
			told = ""
			err = ch.accept(nl)
		}
		if l.done() || ch.ctx.Err() != nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			ch.cfg.Log.Warn().Err(err).Stringer("address", l.addr).Msg("control channel: can't listen, will try again each second")
		}
		select {
		case <-ch.ctx.Done():
			return
		case <-time.After(time.Second):
		}
		nl, err = net.Listen("tcp", l.addr.String())
		if err == nil && !l.set(nl) {
			nl.Close()
			return
		}
	}
}

func (ch *Channel) accept(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			var temporary interface{ Timeout() bool }
			if errors.As(err, &temporary) && temporary.Timeout() {
				continue
			}
			l.Close()
			return err
		}
		if !ch.known(nc.RemoteAddr()) {
			nc.Close()
			ch.stranger(nc.RemoteAddr().String(), "its address is not among the links of any node")
			continue
		}
		select {
		case ch.handshakes <- struct{}{}:
		default:
			nc.Close()
			ch.stranger(nc.RemoteAddr().String(), fmt.Sprintf("%d others have not said who they are yet", maxHandshakes))
			continue
		}
		ch.wg.Go(func() {
			release := sync.OnceFunc(func() { <-ch.handshakes })
			defer release()
			stop := context.AfterFunc(ch.ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			ch.greet(nc, stop, release)
		})
	}
}

// known reports whether a host may knock at all: it is a member's, or somebody
// may join.
func (ch *Channel) known(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	for _, n := range ch.Cluster().Nodes {
		for _, l := range n.Links {
			if l.Addr().Unmap().WithZone("") == ip {
				return true
			}
		}
	}
	list, err := ch.cfg.Store.tokens(time.Now())
	return err == nil && len(list) > 0
}

// stranger tells of somebody who is not let in, seldom enough for any log.
func (ch *Channel) stranger(who, why string) {
	now, last := int64(ch.cfg.now()), ch.strangers.Load()
	if now-last < int64(strangerPause) || !ch.strangers.CompareAndSwap(last, now) {
		return
	}
	ch.cfg.Log.Warn().Str("from", who).Str("reason", why).Msg("control channel: connection refused")
}

// greet does the TLS handshake of a connection that came in.
func (ch *Channel) greet(nc net.Conn, met func() bool, release func()) {
	nc.SetDeadline(time.Now().Add(handshakeTime))
	tc := tls.Server(nc, ch.serverTLS())
	if err := tc.HandshakeContext(ch.ctx); err != nil {
		nc.Close()
		ch.stranger(nc.RemoteAddr().String(), printable(err.Error()))
		return
	}
	if tc.ConnectionState().NegotiatedProtocol == alpnJoin {
		ch.serveJoin(tc, met)
		return
	}
	c := &conn{ch: ch, nc: tc, met: met, isServer: true}
	if err := c.meet(); err != nil {
		ch.stranger(nc.RemoteAddr().String(), printable(err.Error()))
		c.refuse(err)
		return
	}
	release()
	_ = c.run() // told by the link
}

// serverTLS asks members for their certificates, and lets who has none do
// nothing but join. Certificates are looked at by meet, so that the other side
// hears a reason in words.
func (ch *Channel) serverTLS() *tls.Config {
	node := ch.id.config(alpnNode)
	join := ch.id.config(alpnJoin)
	join.ClientAuth = tls.NoClientCert
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			switch {
			case slices.Contains(h.SupportedProtos, alpnNode):
				return node, nil
			case slices.Contains(h.SupportedProtos, alpnJoin):
				return join, nil
			}
			return nil, errors.New("it is no node of a Pollux cluster")
		},
	}
}
