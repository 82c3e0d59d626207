package repltest

import (
	"errors"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// A link is one connection of the two nodes: two sockets, each with a stream
// in both directions. It dies on each side separately.
type link struct {
	id        int
	since     int64        // µs
	streams   [2][2]stream // by sender, by socket
	up        [2]bool      // the node has not been told that it is down, and has not closed it
	sent      [2]uint64    // bytes filed for the data socket
	feature   uint32
	integrity [2]integrity // by receiver
	early     [2]earlyAck  // by receiver
	timing    [2]bool      // the end of the node's patience is set
	hashed    map[hashedRange]uint32
}

// stalled reports whether a stream of l is dead.
func (l *link) stalled() bool {
	for i := range l.streams {
		if l.streams[i][0].dead || l.streams[i][1].dead {
			return true
		}
	}
	return false
}

// stallMS is how long a node's sockets take to give up.
const stallMS = 3000

// A stream is the packets of one direction of a socket that are under way.
type stream struct {
	q       []packet
	last    int64 // arrival time of the last one
	running bool
	dead    bool // nothing more arrives; the receiver learns it by a timeout
}

type packet struct {
	at    int64
	bytes []byte // header and fixed part
	data  []byte // payload
	eof   bool
	torn  bool // only a part of it arrives, and then the end
	// unstored is set for a word of a disk that is UpToDate whose superblock did
	// not say so when it was filed; sb is what that said.
	unstored bool
	sb       meta.Flags
}

// connectDelay is how long the two connect loops take to find one another.
const connectDelay = 5000 // µs

// maybeConnect begins a connection if both nodes want one and can see each other.
func (w *World) maybeConnect() {
	if w.connecting || !w.Reachable {
		return
	}
	for _, n := range w.Nodes {
		if !n.alive || !n.wantLink || n.link != nil {
			return
		}
	}
	w.connecting = true
	w.after(connectDelay+w.jitter(connectDelay), func() {
		w.connecting = false
		for _, n := range w.Nodes {
			if !n.alive || !n.wantLink || n.link != nil || !w.Reachable {
				w.maybeConnect()
				return
			}
		}
		w.connect()
	})
}

func (w *World) connect() {
	w.links++
	l := &link{id: w.links, since: w.now, feature: w.cfg.Features}
	rc := (w.cfg.Resolver + w.pick(2)) % 2 // who accepted the meta socket
	for i, n := range w.Nodes {
		n.link = l
		n.wantLink = false
		l.up[i] = true
	}
	for i, n := range w.Nodes {
		if n.link != l {
			continue // the other's half broke it already
		}
		discard := n.discard
		n.discard = false // one shot
		n.step(&replication.Event{Kind: replication.SocketsUp, Link: replication.Link{
			Version: w.version(), Features: w.cfg.Features, ResolveConflicts: i == rc, DiscardMyData: discard,
		}})
	}
}

// version is the protocol version that the nodes agree on.
func (w *World) version() int {
	if w.cfg.Version == 0 {
		return 101
	}
	return w.cfg.Version
}

// send files a packet.
func (n *Node) send(a *replication.Action) {
	l := n.link
	if l == nil || !l.up[n.id] {
		n.w.fail("%s: packet without a connection", n.name)
		return
	}
	if !l.early[n.id].sending(n, a) {
		return
	}
	n.file(l, a)
}

// file has a packet go its way.
func (n *Node) file(l *link, a *replication.Action) {
	b := n.w.mem.header(len(a.Bytes))
	copy(b, a.Bytes)
	if a.Socket == drbd.DataSocket {
		l.sent[n.id] += uint64(len(a.Bytes) + len(a.Data))
		pos := l.sent[n.id]
		n.w.after(10+n.w.jitter(100), n.awake(func() {
			if n.link == l {
				ev := n.event()
				*ev = replication.Event{Kind: replication.DataSent, Pos: pos}
				n.step(ev)
			}
		}))
	}
	if a.DigestAlg != "" {
		sum := digestOf(a.DigestAlg, n.w.mem.stampsOf(a.Data))
		copy(b[len(b)-len(sum):], sum)
	}
	n.w.tracePacket(n, a.Socket, b, a.Data)
	p := packet{bytes: b}
	if h, err := drbd.DecodeHeader100(b); err == nil {
		n.w.watchVerify(n, h, b[drbd.HeaderSize100:])
		p.unstored, p.sb = n.w.unstored(n, h, b[drbd.HeaderSize100:])
	}
	s := &l.streams[n.id][a.Socket]
	if s.dead {
		if !l.timing[n.id] && n.w.dice != nil { // what TCP says of bytes that nobody acknowledges
			l.timing[n.id] = true
			n.w.after(stallMS*1000, n.awake(func() { n.linkDown(l, drbd.Timeout) }))
		}
		return
	}
	s.last = max(s.last, n.w.now+n.w.netDelay()+n.w.delayed[n.id][a.Socket])
	p.at = s.last
	if a.Data != nil {
		p.data = n.w.mem.buffer(len(a.Data) / sectorSize)
		copyPayload(p.data, a.Data)
		if a.DigestAlg != "" && n.flips > 0 {
			n.flips--
			p.data[0] ^= 0x80 // no stamp is so large: a disk that holds this one is found out
			n.w.trace("%s a byte is flipped on the wire", n.name)
		}
	}
	s.q = append(s.q, p)
	n.w.pump(l, n.id, a.Socket)
}

// pump delivers what is at the head of a stream once its time has come.
func (w *World) pump(l *link, from int, sock drbd.Socket) {
	s := &l.streams[from][sock]
	if s.running || len(s.q) == 0 || s.dead {
		return
	}
	s.running = true
	to := w.Nodes[1-from]
	w.at(max(s.q[0].at, w.now), to.awake(func() {
		s.running = false
		if s.dead || to.link != l || !l.up[1-from] || len(s.q) == 0 {
			return
		}
		if sock == drbd.DataSocket && to.res.ReceivePaused() {
			to.pausedAt = l // ResumeReceive pumps again
			return
		}
		p := s.q[0]
		s.q = s.q[1:]
		if p.eof || p.torn {
			to.linkDown(l, drbd.BrokenPipe)
			return
		}
		if p.unstored {
			w.announced(to, p.bytes, p.sb)
		}
		to.receive(sock, p.bytes, p.data)
		w.pump(l, from, sock)
	}))
}

// receive checks a packet as the engine's reader does and steps it.
func (n *Node) receive(sock drbd.Socket, b, data []byte) {
	h, err := drbd.DecodeHeader100(b)
	if err == nil {
		err = drbd.CheckLength(h, n.link.feature&drbd.FeatureWSame != 0, sock)
	}
	if err != nil || int(h.Length) != len(b)+len(data)-drbd.HeaderSize100 {
		n.w.fail("%s received a malformed packet: %v (%d bytes): %v", n.name, h, len(b)+len(data), err)
		return
	}
	if err := n.link.integrity[n.id].receive(n, h, &b, data); err != nil {
		n.w.mem.free(data)
		n.linkDownBecause(n.link, drbd.ProtocolFailure, err)
		return
	}
	ev := n.event()
	*ev = replication.Event{Kind: replication.Received, Socket: sock, Header: h, Fixed: b[drbd.HeaderSize100:], Data: data}
	n.w.observe(n, h, ev)
	n.link.early[n.id].received(n, h, ev.Fixed)
	n.step(ev)
}

// closeLink is a node that closes its sockets: what it has filed still arrives,
// unless it is lost, and then the end of file.
func (n *Node) closeLink() {
	l := n.link
	if l == nil {
		return
	}
	n.link = nil
	l.up[n.id] = false
	n.pausedAt = nil
	for sock := range l.streams[n.id] {
		s := &l.streams[n.id][sock]
		if s.dead {
			continue
		}
		if n.w.chance(0.3) { // a reset overtakes what is under way
			s.q = s.q[:n.w.pick(len(s.q)+1)]
		}
		s.last = max(s.last, n.w.now+n.w.netDelay())
		s.q = append(s.q, packet{at: s.last, eof: true})
		n.w.pump(l, n.id, drbd.Socket(sock))
	}
}

// linkDown tells a node that its connection broke.
func (n *Node) linkDown(l *link, reason drbd.ConnState) {
	n.linkDownBecause(l, reason, errClosed)
}

var errClosed = errors.New("connection closed by the peer")

func (n *Node) linkDownBecause(l *link, reason drbd.ConnState, err error) {
	if n.link != l || !n.alive {
		return
	}
	n.link = nil
	l.up[n.id] = false
	n.pausedAt = nil
	for sock := range l.streams[n.id] { // its own half closes with it
		s := &l.streams[n.id][sock]
		s.last = max(s.last, n.w.now+n.w.netDelay())
		s.q = append(s.q, packet{at: s.last, eof: true})
		n.w.pump(l, n.id, drbd.Socket(sock))
	}
	n.step(&replication.Event{Kind: replication.SocketsDown, Reason: reason, Err: err})
}

// Cut breaks the connection for both nodes and keeps them apart until Heal.
// A silent cut is a cable pulled out: nobody is told.
func (w *World) Cut(silent bool) {
	w.Reachable = false
	w.breakLink(silent)
}

func (w *World) breakLink(silent bool) {
	l := w.Nodes[0].link
	if l == nil {
		l = w.Nodes[1].link
	}
	if l == nil {
		return
	}
	for i := range l.streams {
		for j := range l.streams[i] {
			l.streams[i][j].dead = true
		}
	}
	if silent {
		return
	}
	for _, n := range w.Nodes {
		w.after(w.netDelay(), n.awake(func() { n.linkDown(l, drbd.NetworkFailure) }))
	}
}

// Stall stops one stream for good: one socket in one direction.
func (w *World) Stall(from int, sock drbd.Socket) {
	if l := w.Nodes[from].link; l != nil {
		l.streams[from][sock].dead = true
	}
}

// CutOneWay loses what node from sends, on both sockets, until Heal.
func (w *World) CutOneWay(from int) {
	w.Reachable = false
	w.Stall(from, drbd.DataSocket)
	w.Stall(from, drbd.MetaSocket)
}

// tear ends the connection in the middle of one of the packets that node from
// has under way on a socket.
func (w *World) tear(from int, sock drbd.Socket) {
	l := w.Nodes[from].link
	if l == nil {
		return
	}
	s := &l.streams[from][sock]
	if len(s.q) == 0 {
		s.last = max(s.last, w.now+w.netDelay())
		s.q = append(s.q, packet{at: s.last, torn: true})
	} else {
		s.q = s.q[:1+w.pick(len(s.q))]
		s.q[len(s.q)-1].torn = true
	}
	w.pump(l, from, sock)
	w.after(w.netDelay(), func() { w.Nodes[from].linkDown(l, drbd.BrokenPipe) })
}

// Heal lets the nodes find each other again.
func (w *World) Heal() {
	w.Reachable = true
	w.maybeConnect()
}
