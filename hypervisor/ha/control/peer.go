package control

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// LinkState is how a link is, by the times of the heartbeat.
type LinkState string

// The states of a link.
const (
	LinkOK   LinkState = "ok"   // heartbeats come
	LinkLate LinkState = "late" // none for warntime
	LinkDead LinkState = "dead" // none for deadtime, or none yet
)

// Peer is what is known of another node.
type Peer struct {
	Node     string
	Session  string // "": it was not heard of since this node started
	Boot     string
	Software string
	Version  int    // of the channel, as agreed
	Serial   int    // of its cluster.toml
	Hash     string // of its cluster.toml
	Silent   time.Duration
	Links    []Link
}

// State is that of the best link.
func (p Peer) State() LinkState {
	best := LinkDead
	for _, l := range p.Links {
		if l.State == LinkOK || l.State == LinkLate && best == LinkDead {
			best = l.State
		}
	}
	return best
}

// Link is one way to another node.
type Link struct {
	Local, Remote netip.AddrPort
	State         LinkState
	Silent        time.Duration // since the last heartbeat, or since this node began to listen for one
	RTT           time.Duration // of the last heartbeat; 0: not known
	Lost          uint64        // heartbeats of this session of the peer that did not come
	Why           string        // it is not "ok"
}

// peer and link are under the channel's lock.
type peer struct {
	ch    *Channel
	name  string
	links []*link
	ctx   context.Context // ends the goroutines that connect
	stop  context.CancelFunc

	hello   hello // of the session that was heard last
	version int
	since   time.Duration // when this node began to listen for it, or heard it last

	deliver sync.Mutex // OnBeat, one at a time; taken before the channel's lock
	seen    uint64     // version of payload
	payload []byte
}

type link struct {
	n             int
	local, remote netip.AddrPort
	conn          *conn
	since         time.Duration // as peer.since
	seqOut        uint64
	seqIn         uint64 // 0: none yet of this session
	rtt           time.Duration
	lost          uint64
	why           string
}

func (ch *Channel) newPeer(self, n *conf.ClusterNode) *peer {
	p := &peer{ch: ch, name: n.Name, since: ch.cfg.now()}
	p.ctx, p.stop = context.WithCancel(ch.ctx)
	for i := range min(len(self.Links), len(n.Links)) {
		l := &link{n: i, local: self.Links[i], remote: n.Links[i], since: p.since}
		p.links = append(p.links, l)
		// The one with the lesser name connects. The other one tries it, too, when
		// it has waited for deadtime in vain: it may be able to where the first is
		// not, and hears why if it is no member any more.
		isPatient := self.Name > n.Name
		l.why = "not connected yet"
		if isPatient {
			l.why = fmt.Sprintf("%s has not connected yet", n.Name)
		}
		ch.wg.Go(func() { p.dial(l, isPatient) })
	}
	return p
}

// fits reports whether the links are still those of cluster.toml.
func (p *peer) fits(self, n *conf.ClusterNode) bool {
	if len(p.links) != min(len(self.Links), len(n.Links)) {
		return false
	}
	return !slices.ContainsFunc(p.links, func(l *link) bool { return l.local != self.Links[l.n] || l.remote != n.Links[l.n] })
}

func (p *peer) end(why string) {
	p.stop()
	for _, l := range p.links {
		if l.conn != nil {
			l.conn.bye(why)
		}
	}
}

// dial keeps one link connected, until the peer is not wanted any more.
func (p *peer) dial(l *link, isPatient bool) {
	h := p.ch.heartbeat()
	for first := true; p.ctx.Err() == nil; first = false {
		// A peer that is back is found within a keepalive; two nodes that start
		// together do not knock in step.
		pause := h.Keepalive.Duration/2 + rand.N(h.Keepalive.Duration/2+1)
		if isPatient {
			pause = h.Deadtime.Duration
		}
		if !first || isPatient {
			select {
			case <-p.ctx.Done():
				return
			case <-time.After(pause):
			}
		}
		h = p.ch.heartbeat()
		if p.isConnected(l) {
			continue
		}
		err := p.connect(l)
		p.ch.mu.Lock()
		if l.conn == nil && err != nil {
			l.why = err.Error()
		}
		p.ch.mu.Unlock()
	}
}

func (p *peer) isConnected(l *link) bool {
	p.ch.mu.Lock()
	defer p.ch.mu.Unlock()
	return l.conn != nil
}

// connect connects once, and serves the connection to its end.
func (p *peer) connect(l *link) error {
	ctx, cancel := context.WithTimeout(p.ctx, handshakeTime)
	defer cancel()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: l.local.Addr().AsSlice(), Zone: l.local.Addr().Zone()}}
	nc, err := d.DialContext(ctx, "tcp", l.remote.String())
	if err != nil {
		return fmt.Errorf("connect %s: %w", l.remote, unwrapNet(err))
	}
	stop := context.AfterFunc(p.ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	nc.SetDeadline(time.Now().Add(handshakeTime))
	tc := tls.Client(nc, p.ch.id.config(alpnNode))
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return fmt.Errorf("connect %s: TLS: %w", l.remote, unwrapNet(err))
	}
	c := &conn{ch: p.ch, nc: tc, met: stop, expect: p.name, n: l.n}
	if err := c.meet(); err != nil {
		c.refuse(err)
		return fmt.Errorf("%s: %w", l.remote, err)
	}
	return c.run()
}

// unwrapNet drops the addresses that net puts before an error.
func unwrapNet(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}

// Peers returns all other nodes, sorted by name.
func (ch *Channel) Peers() []Peer {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	now := ch.cfg.now()
	list := make([]Peer, 0, len(ch.peers))
	for _, p := range ch.peers {
		list = append(list, p.status(now))
	}
	slices.SortFunc(list, func(a, b Peer) int { return cmp.Compare(a.Node, b.Node) })
	return list
}

func (p *peer) status(now time.Duration) Peer {
	s := Peer{
		Node: p.name, Session: p.hello.Session, Boot: p.hello.Boot, Software: p.hello.Software,
		Version: p.version, Serial: p.hello.Serial, Hash: p.hello.Hash, Silent: now - p.since,
	}
	h := p.ch.cluster.Heartbeat
	for _, l := range p.links {
		x := Link{Local: l.local, Remote: l.remote, State: LinkDead, Silent: now - l.since, RTT: l.rtt, Lost: l.lost, Why: l.why}
		switch {
		case l.seqIn == 0: // nothing yet
		case x.Silent < h.Warntime.Duration:
			x.State = LinkOK
		case x.Silent < h.Deadtime.Duration:
			x.State = LinkLate
		}
		switch {
		case x.State == LinkOK:
			x.Why = ""
		case l.conn != nil:
			x.Why = fmt.Sprintf("connected, and no heartbeat for %v", x.Silent.Round(time.Millisecond))
		}
		s.Links = append(s.Links, x)
	}
	return s
}

// attach files a connection that has met its peer; what it replaces is closed.
func (ch *Channel) attach(c *conn, h hello) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	p := ch.peers[c.expect]
	switch {
	case ch.isClosed:
		return errors.New("this node stops")
	case p == nil:
		return fmt.Errorf("node %q is no member any more", c.expect)
	case c.n < 0 || c.n >= len(p.links):
		return fmt.Errorf("it connects as link %d, and cluster.toml has %d links between %s and %s: the files differ", c.n, len(p.links), ch.id.Node, p.name)
	}
	if p.hello.Session != h.Session {
		p.seen, p.payload = 0, nil
		for _, l := range p.links {
			l.seqIn, l.lost, l.rtt = 0, 0, 0
			if l.conn != nil {
				l.conn.bye("another process has connected as " + p.name)
			}
		}
	}
	p.hello, p.version = h, c.version
	l := p.links[c.n]
	if l.conn != nil {
		l.conn.bye("the link was connected anew")
	}
	c.peer, c.link, l.conn, l.why = p, l, c, ""
	ch.conns[c] = true
	if h.Serial == ch.cluster.Serial && h.Hash != ch.cluster.Hash() {
		ch.cfg.Log.Warn().Str("node", p.name).Int("serial", h.Serial).
			Msg("its cluster.toml differs from this node's, with the same serial: copy the right one to all nodes, serial one higher")
	}
	return nil
}

// detach files that a connection has ended, and says whether it was the link's.
func (ch *Channel) detach(c *conn, why string) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	delete(ch.conns, c)
	if c.link.conn != c {
		return false
	}
	c.link.conn, c.link.why = nil, why
	return true
}
