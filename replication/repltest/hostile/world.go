package hostile

import (
	"container/heap"
	"fmt"
	"io"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// Bounds that no input may break.
const (
	maxActions   = 40_000    // of one step: all of a full table of the peer's requests, answered
	maxHeld      = 16 << 20  // bytes of buffers in a core: max-buffers, and what one packet may add
	maxUnacked   = 2048 + 65 // requests of the peer
	maxEvents    = 2_000_000 // of a whole run
	maxPerMS     = 50_000    // events at one millisecond: more is a livelock
	netDelay     = 100       // µs
	diskDelay    = 150       // µs
	connectDelay = 5000      // µs
)

// world is two nodes, and what is between them. Time is in microseconds.
type world struct {
	cfg     config
	nodes   [2]*node // a is the one under attack
	now     int64
	seq     uint64
	queue   queue
	events  int
	perMS   int
	link    *link
	links   uint32
	ghost   *ghost // stands in for node b, nil if b is there
	apart   bool   // no connection is made
	log     io.Writer
	failure error
	seen    []packet // the last ones that a has sent
	said    []packet // and b
}

// A packet is header and payload as they are on the wire.
type packet struct {
	sock  drbd.Socket
	bytes []byte
}

func (p packet) header() drbd.Header {
	h, err := drbd.DecodeHeader100(p.bytes)
	if err != nil {
		panic(err) // a core sends no other
	}
	return h
}

func (p packet) payload() []byte { return p.bytes[drbd.HeaderSize100:] }

type item struct {
	at  int64
	seq uint64
	f   func()
}

type queue []item

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(item)) }
func (q *queue) Pop() any {
	old := *q
	it := old[len(old)-1]
	*q = old[:len(old)-1]
	return it
}

func (w *world) after(us int64, f func()) {
	w.seq++
	heap.Push(&w.queue, item{w.now + us, w.seq, f})
}

func (w *world) tick() replication.Tick { return replication.Tick(w.now/1000) + 1 }

func (w *world) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("at %d.%03d ms: %s", w.now/1000, w.now%1000, fmt.Sprintf(format, args...))
		w.trace("FAILED %v", w.failure)
	}
}

func (w *world) trace(format string, args ...any) {
	if w.log != nil {
		fmt.Fprintf(w.log, "%9.3f ", float64(w.now)/1000)
		fmt.Fprintf(w.log, format+"\n", args...) // a trace for people
	}
}

// run lets so many milliseconds pass, or less if done.
func (w *world) run(ms int64, done func() bool) {
	for end := w.now + ms*1000; w.failure == nil; {
		if done != nil && done() {
			return
		}
		if len(w.queue) == 0 || w.queue[0].at > end {
			w.now = end
			return
		}
		it := heap.Pop(&w.queue).(item)
		if it.at/1000 > w.now/1000 {
			w.perMS = 0
		}
		w.now = max(w.now, it.at)
		w.events++
		w.perMS++
		if w.perMS > maxPerMS {
			w.fail("%d events in one millisecond: a livelock", w.perMS)
			return
		}
		if w.events > maxEvents {
			return // enough was seen; what follows is cut short
		}
		it.f()
	}
}

// A link is one connection: two sockets, and a stream in each direction.
type link struct {
	number   uint32
	up       [2]bool // by node: it has not been closed there
	streams  [2][2]stream
	incoming [2]integrity // by receiver
	change   func(p packet) []packet
	asked    bool // the peer has asked for a change of state
}

// A stream is what one node has sent on a socket and is under way.
type stream struct {
	q       []packet
	running bool
	eof     bool
}

// connect makes a connection once both ends want one.
func (w *world) connect() {
	if w.link != nil || w.apart || !w.nodes[0].wantLink {
		return
	}
	if w.ghost == nil && !w.nodes[1].wantLink {
		return
	}
	w.after(connectDelay, func() {
		a, b := w.nodes[0], w.nodes[1]
		if w.link != nil || w.apart || !a.wantLink || !a.alive || w.ghost == nil && (!b.wantLink || !b.alive) {
			return
		}
		w.links++
		l := &link{number: w.links, up: [2]bool{true, w.ghost == nil}}
		w.link = l
		w.trace("-- connection %d, ghost %v", l.number, w.ghost != nil)
		for _, n := range w.nodes {
			if !l.up[n.id] || w.link != l {
				continue
			}
			n.wantLink = false
			discard := n.discard
			n.discard = false
			n.step(&replication.Event{Kind: replication.SocketsUp, Link: replication.Link{
				Version: 101, Features: w.cfg.features, ResolveConflicts: n.id == w.cfg.resolver, DiscardMyData: discard,
			}})
		}
		if w.ghost != nil && w.link == l {
			w.ghost.greet(w)
		}
	})
}

// file has a packet go its way to the other node.
func (w *world) file(from int, p packet) {
	l := w.link
	if l == nil {
		return
	}
	if from == 0 {
		w.seen = remember(w.seen, p)
	} else {
		w.said = remember(w.said, p)
	}
	if from == 0 && !l.up[1] {
		if w.ghost != nil {
			w.ghost.heard(w, p)
		}
		return
	}
	ps := []packet{p}
	if from == 1 && l.change != nil {
		ps = l.change(p)
	}
	for _, p := range ps {
		w.push(l, from, p)
	}
}

func remember(list []packet, p packet) []packet {
	if len(list) == 64 {
		list = list[:copy(list, list[1:])]
	}
	return append(list, p)
}

// push puts bytes into a stream; they need not be a packet.
func (w *world) push(l *link, from int, p packet) {
	s := &l.streams[from][p.sock]
	if s.eof {
		return
	}
	s.q = append(s.q, p)
	w.pump(l, from, p.sock)
}

func (w *world) pump(l *link, from int, sock drbd.Socket) {
	s := &l.streams[from][sock]
	if s.running || len(s.q) == 0 && !s.eof {
		return
	}
	s.running = true
	w.after(netDelay, func() {
		s.running = false
		to := w.nodes[1-from]
		switch {
		case w.link != l || !l.up[to.id]:
		case len(s.q) == 0:
			if s.eof {
				to.down(l, drbd.BrokenPipe, errClosed)
			}
		case sock == drbd.DataSocket && to.res.ReceivePaused():
			to.paused = true // ResumeReceive pumps again
		default:
			p := s.q[0]
			s.q = s.q[1:]
			to.receive(l, p)
			w.pump(l, from, sock)
		}
	})
}

// closed is node id that has let go of l: the other reads what is under way, and
// then the end.
func (w *world) closed(l *link, id int) {
	l.up[id] = false
	if !l.up[1-id] {
		w.link = nil
		w.after(1, w.connect)
		return
	}
	for sock := range l.streams[id] {
		l.streams[id][sock].eof = true
		w.pump(l, id, drbd.Socket(sock))
	}
}

// cut breaks the connection for both at once.
func (w *world) cut() {
	l := w.link
	if l == nil {
		return
	}
	for _, n := range w.nodes {
		if l.up[n.id] {
			n.down(l, drbd.NetworkFailure, errClosed)
		}
	}
	w.link = nil
	w.after(1, w.connect)
}

// deafen takes node b out of the connection, without a's notice.
func (w *world) deafen(g *ghost) {
	w.ghost = g
	if l := w.link; l != nil && l.up[1] {
		l.streams[1] = [2]stream{}
		l.up[1] = false
		b := w.nodes[1]
		b.paused = false
		b.step(&replication.Event{Kind: replication.SocketsDown, Reason: drbd.NetworkFailure, Err: errClosed})
		if !l.up[0] {
			w.link = nil
		}
	}
}
