package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// hello is the first thing that each side says. Unknown fields are ignored.
type hello struct {
	Min      int    `json:"min"` // languages that it speaks
	Max      int    `json:"max"`
	Node     string `json:"node"`
	Link     int    `json:"link"` // of the side that dialled
	Session  string `json:"session"`
	Boot     string `json:"boot"`
	Software string `json:"software"`
	Serial   int    `json:"serial"` // of its cluster.toml
	Hash     string `json:"hash"`
}

const maxHelloText = 256

func decodeHello(b []byte) (hello, error) {
	var h hello
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&h); err != nil {
		return h, protocolErrorf("greeting that is no JSON")
	}
	for _, s := range []string{h.Node, h.Session, h.Boot, h.Software, h.Hash} {
		if len(s) > maxHelloText {
			return h, protocolErrorf("greeting with a text of %d bytes", len(s))
		}
	}
	if h.Node == "" || h.Session == "" || h.Min < 1 || h.Max < h.Min || h.Serial < 0 {
		return h, protocolErrorf("greeting without a name, a session or versions")
	}
	return h, nil
}

// agree returns the newest language that both speak.
func agree(own [2]int, h hello) (int, error) {
	v := min(own[1], h.Max)
	if v < max(own[0], h.Min) {
		older := "upgrade it first"
		if h.Min > own[1] {
			older = "upgrade this node first"
		}
		return 0, fmt.Errorf("%s (%s) speaks versions %d to %d of the control channel, this node %d to %d: %s", h.Node, printable(h.Software), h.Min, h.Max, own[0], own[1], older)
	}
	return v, nil
}

// A refusal is why the peer has ended the connection, in its words.
type refusal struct{ text string }

func (e *refusal) Error() string { return "it says: " + e.text }

// conn is one connection. Its reader is the goroutine that calls run; a second
// one writes.
type conn struct {
	ch       *Channel
	nc       *tls.Conn
	isServer bool
	expect   string // the peer's name: known before by the side that dials
	n        int    // number of the link
	version  int
	session  string // of the process at the other end
	peer     *peer  // from attach on
	link     *link

	met       func() bool   // the handshake is over: no more limits on its time
	out       chan []byte   // frames that wait
	beatDue   chan struct{} // a heartbeat is to be sent
	closed    chan struct{}
	closeOnce sync.Once
	why       error // of the side that closes; before closed

	mu       sync.Mutex
	stamp    uint64 // of the peer's newest heartbeat
	stampAt  time.Duration
	nextID   uint64
	waiting  map[uint64]*call // requests of this node; nil: closed
	serving  map[uint64]context.CancelFunc
	sentBeat uint64 // version of the payload that the peer has; writer only
	hasSent  bool   // writer only
}

// meet finds out who is at the other end, before anything else is said.
func (c *conn) meet() error {
	node, err := c.ch.id.peer(c.ch.Cluster(), c.nc.ConnectionState().PeerCertificates)
	if err != nil {
		return err
	}
	if !c.isServer && node.Name != c.expect {
		return fmt.Errorf("node %q answers there, not %q: correct the addresses in cluster.toml", node.Name, c.expect)
	}
	c.expect = node.Name
	cl := c.ch.Cluster()
	own := hello{
		Min: c.ch.cfg.versions[0], Max: c.ch.cfg.versions[1], Node: c.ch.id.Node, Link: c.n,
		Session: c.ch.cfg.Session, Boot: c.ch.cfg.Boot, Software: c.ch.cfg.Software, Serial: cl.Serial, Hash: cl.Hash(),
	}
	text, err := json.Marshal(own)
	if err != nil {
		return fmt.Errorf("encode a greeting: %w", err)
	}
	if _, err := c.nc.Write(appendFrame(nil, frameHello, text)); err != nil {
		return fmt.Errorf("greeting: %w", unwrapNet(err))
	}
	kind, body, err := readFrame(c.nc, nil, maxHello)
	switch {
	case err != nil:
		return fmt.Errorf("greeting: %w", unwrapNet(err))
	case kind == frameBye:
		return &refusal{printable(string(body))}
	case kind != frameHello:
		return protocolErrorf("frame %d before a greeting", kind)
	}
	h, err := decodeHello(body)
	if err != nil {
		return err
	}
	if h.Node != node.Name {
		return protocolErrorf("it calls itself %q, its certificate %q", printable(h.Node), node.Name)
	}
	if c.version, err = agree(c.ch.cfg.versions, h); err != nil {
		return err
	}
	c.session = h.Session
	if c.isServer {
		c.n = h.Link
	}
	c.out = make(chan []byte, maxOutFrames)
	c.beatDue, c.closed = make(chan struct{}, 1), make(chan struct{})
	c.waiting, c.serving = map[uint64]*call{}, map[uint64]context.CancelFunc{}
	if err := c.ch.attach(c, h); err != nil {
		return err
	}
	if h.Serial < cl.Serial {
		c.offerCluster(cl)
	}
	return nil
}

// refuse tells the peer why there is no connection, unless it said so itself.
func (c *conn) refuse(why error) {
	var theirs *refusal
	if !errors.As(why, &theirs) {
		_, _ = c.nc.Write(appendFrame(nil, frameBye, []byte(cut(why.Error())))) // it may be gone
	}
	c.nc.NetConn().Close()
}

// cut keeps a reason within what a greeting may have.
func cut(s string) string { return s[:min(len(s), 1024)] }

// run serves the connection to its end, and says why that came.
func (c *conn) run() error {
	c.met()
	c.nc.NetConn().SetDeadline(time.Time{})
	c.notify(true, "")
	c.signalBeat()
	c.ch.wg.Go(c.write)
	err := c.read()
	c.close(err)
	err = c.why
	why := fmt.Sprintf("connection lost: %v", unwrapNet(err))
	c.endCalls(fmt.Errorf("%s: connection lost: %w", c.peer.name, err))
	if c.ch.detach(c, why) {
		c.notify(false, why)
	}
	return err
}

func (c *conn) notify(up bool, why string) {
	if c.ch.cfg.OnLink != nil {
		c.ch.cfg.OnLink(LinkChange{Node: c.peer.name, Link: c.n, Up: up, Why: why})
	}
}

func (c *conn) close(why error) {
	c.closeOnce.Do(func() {
		c.why = why
		close(c.closed)
		c.nc.NetConn().Close()
	})
}

// bye ends the connection and tells the peer why, if it listens. It does not
// block.
func (c *conn) bye(why string) {
	select {
	case c.out <- appendFrame(nil, frameBye, []byte(cut(why))):
	default:
		c.close(errors.New(why)) // it is slow: it need not know
		return
	}
	// The writer closes behind it; if it can't write, then this does.
	time.AfterFunc(time.Second, func() { c.close(errors.New(why)) })
}

// send files a frame for the writer. False: the peer is too slow.
func (c *conn) send(frame []byte) bool {
	select {
	case <-c.closed:
		return false
	default:
	}
	select {
	case c.out <- frame:
		return true
	default:
		return false
	}
}

func (c *conn) signalBeat() {
	select {
	case c.beatDue <- struct{}{}:
	default: // the one before has not been sent: it will be as new as this
	}
}

func (c *conn) offerCluster(cl *conf.Cluster) {
	c.send(appendFrame(nil, frameCluster, cl.Text())) // a slow one hears of it when it connects anew
}

// write sends what waits. A peer that takes nothing for deadtime is given up.
func (c *conn) write() {
	var buf []byte
	for {
		var frame []byte
		select {
		case <-c.closed:
			return
		case frame = <-c.out:
		case <-c.beatDue:
			buf = c.appendBeat(buf[:0])
			frame = buf
		}
		c.nc.NetConn().SetWriteDeadline(time.Now().Add(c.ch.heartbeat().Deadtime.Duration))
		if _, err := c.nc.Write(frame); err != nil {
			c.close(fmt.Errorf("send: %w", unwrapNet(err)))
			return
		}
		if frameKind(frame[4]) == frameBye {
			c.close(errors.New(string(frame[headerSize:])))
			return
		}
	}
}

// appendBeat makes the heartbeat that is sent now.
func (c *conn) appendBeat(dst []byte) []byte {
	ch := c.ch
	now := ch.cfg.now()
	ch.mu.Lock()
	h := beatHeader{seq: c.link.seqOut, stamp: uint64(now), version: ch.version}
	payload := ch.payload
	ch.mu.Unlock()
	if h.seq == 0 {
		h.seq = 1 // the first one, before the first tick
	}
	c.mu.Lock()
	if c.stamp != 0 {
		h.echo, h.held = c.stamp, uint64(now-c.stampAt)
	}
	c.mu.Unlock()
	h.hasPayload = h.version > 0 && (!c.hasSent || c.sentBeat != h.version)
	if h.hasPayload {
		c.hasSent, c.sentBeat = true, h.version
	} else {
		payload = nil
	}
	var head [beatSize]byte
	return appendFrame(dst, frameBeat, h.append(head[:0]), payload)
}

// read takes what the peer sends. One that is silent for deadtime is given up.
func (c *conn) read() error {
	var buf []byte
	for {
		c.nc.NetConn().SetReadDeadline(time.Now().Add(c.ch.heartbeat().Deadtime.Duration))
		kind, body, err := readFrame(c.nc, buf, maxFrame)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errors.New("nothing came for deadtime")
		case errors.Is(err, io.EOF):
			return errors.New("the peer has closed it")
		case err != nil:
			return err
		}
		if cap(body) <= 64<<10 {
			buf = body // a larger one is not kept
		}
		if err := c.received(kind, body); err != nil {
			var wrong *ProtocolError
			if errors.As(err, &wrong) {
				c.ch.cfg.Log.Warn().Str("node", c.peer.name).Err(err).Msg("control channel: connection closed")
			}
			return err
		}
	}
}

func (c *conn) received(kind frameKind, body []byte) error {
	switch kind {
	case frameBeat:
		return c.receivedBeat(body)
	case frameRequest:
		return c.receivedRequest(body)
	case framePart, frameAnswer:
		return c.receivedReply(kind, body)
	case frameCluster:
		return c.receivedCluster(body)
	case frameBye:
		return &refusal{printable(string(body))}
	case frameHello:
		return protocolErrorf("a second greeting")
	}
	return nil // of a newer one, which knows that this one does not know it
}

func (c *conn) receivedBeat(body []byte) error {
	h, payload, err := decodeBeat(body)
	if err != nil {
		return err
	}
	ch, p, l := c.ch, c.peer, c.link
	now := ch.cfg.now()
	c.mu.Lock()
	c.stamp, c.stampAt = h.stamp, now
	c.mu.Unlock()
	p.deliver.Lock()
	defer p.deliver.Unlock()
	ch.mu.Lock()
	switch {
	case l.conn != c:
		ch.mu.Unlock()
		return errors.New("the link was connected anew")
	case c.session != p.hello.Session:
		// Its versions begin anew: a late one would pass for the newest for long.
		ch.mu.Unlock()
		return errors.New("it is of an earlier process of " + p.name)
	}
	if l.seqIn > 0 && h.seq > l.seqIn+1 {
		l.lost += h.seq - l.seqIn - 1
	}
	l.seqIn = max(h.seq, l.seqIn, 1)
	l.since, p.since = now, now
	if rtt := int64(now) - int64(h.echo) - int64(h.held); h.echo > 0 && rtt >= 0 && h.held < 1<<62 {
		l.rtt = time.Duration(rtt)
	}
	changed := h.hasPayload && h.version > p.seen
	if changed {
		p.seen, p.payload = h.version, bytes.Clone(payload)
	}
	b := Beat{
		Node: p.name, Session: p.hello.Session, Boot: p.hello.Boot, Link: l.n,
		Version: p.seen, Changed: changed, Payload: p.payload,
	}
	ch.mu.Unlock()
	if ch.cfg.OnBeat != nil {
		ch.cfg.OnBeat(b)
	}
	return nil
}

// receivedCluster takes a newer cluster.toml over.
func (c *conn) receivedCluster(text []byte) error {
	if len(text) > maxClusterFn {
		return protocolErrorf("cluster.toml of %d bytes, at most %d are allowed", len(text), maxClusterFn)
	}
	cl, err := conf.ParseCluster(c.ch.cfg.Store.File, text)
	if err != nil {
		return protocolErrorf("cluster.toml: %v", err)
	}
	return c.ch.adopt(cl, c.peer.name)
}

// adopt puts a newer description in force, on disk first.
func (ch *Channel) adopt(cl *conf.Cluster, from string) error {
	isNew, err := ch.save(cl)
	if isNew {
		ch.enact(cl, from)
	}
	return err
}

// save puts a description on disk, unless it was overtaken.
func (ch *Channel) save(cl *conf.Cluster) (isNew bool, err error) {
	ch.saving.Lock()
	defer ch.saving.Unlock()
	old := ch.Cluster()
	if cl.ID != old.ID {
		return false, protocolErrorf("cluster.toml of another cluster, %q", printable(cl.Name))
	}
	if cl.Serial <= max(old.Serial, ch.saved) {
		return false, nil
	}
	if err := ch.cfg.Store.Save(cl); err != nil {
		return false, err
	}
	ch.saved = cl.Serial
	return true, nil
}

// enact puts a description in force that is on disk, and passes it on.
func (ch *Channel) enact(cl *conf.Cluster, from string) {
	ch.cfg.Log.Info().Str("from", from).Int("serial", cl.Serial).Msg("cluster.toml replaced")
	ch.apply(cl)
	ch.mu.Lock()
	for c := range ch.conns {
		if c.peer.hello.Serial < cl.Serial && c.peer.name != from {
			c.offerCluster(cl)
		}
	}
	ch.mu.Unlock()
	if ch.cfg.OnCluster != nil {
		ch.cfg.OnCluster(cl)
	}
}
