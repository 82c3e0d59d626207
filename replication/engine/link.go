package engine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// Sizes of the read buffers: large enough for a batch of small writes.
const (
	dataBuffer = 128 << 10
	metaBuffer = 16 << 10
)

// linkBatch is how many packets are stepped at once. At depth 32, 16 gave 1.02 to
// 1.15 times the IOPS of 8, and took 0.9 of its CPU time; 32 was no better.
const linkBatch = 16

// link is one connection to the peer: both sockets, after the handshake that
// precedes P_PROTOCOL.
type link struct {
	e          *Engine
	info       replication.Link
	data, meta *out
	dataConn   *sock
	metaConn   *sock
	resumed    chan struct{} // capacity 1
	gone       chan struct{}
	dataDone   chan struct{} // the data socket's reader has ended
	metaDone   chan struct{} // likewise
	once       sync.Once
	integrity  integrity      // of the data socket's reader
	low        *lowReader     // likewise; nil with TLS
	samplers   []perf.Sampler // likewise; of the peer's writes, by volume
	readAt     [2]int64       // when the first packet of a batch was read, by socket; each reader's own
}

// newLink takes over two sockets.
func (e *Engine) newLink(s, m *sock, info replication.Link) (*link, error) {
	l := &link{e: e, info: info, dataConn: s, metaConn: m, resumed: make(chan struct{}, 1), gone: make(chan struct{}), dataDone: make(chan struct{}), metaDone: make(chan struct{})}
	for _, c := range []*sock{s, m} {
		c.SetDeadline(time.Time{}) //nolint:errcheck // a dead socket shows at the first read
	}
	var err error
	if l.data, err = newOut(s, e.dataPatience); err != nil {
		return nil, err
	}
	if l.meta, err = newOut(m, e.metaPatience); err != nil {
		return nil, err
	}
	l.initPerf()
	l.data.onError = func(err error) {
		l.lost(sendFailure(err, drbd.BrokenPipe), fmt.Errorf("send on the data socket: %w", err))
	}
	l.meta.onError = func(err error) {
		l.lost(sendFailure(err, drbd.NetworkFailure), fmt.Errorf("send on the meta socket: %w", err))
	}
	if s.tls == nil {
		l.data.lender = &e.loans
	}
	l.data.onBlock, l.meta.onBlock = l.blocked, func() {}
	l.data.onSent, l.meta.onSent = l.sent, func(uint64, bool) {}
	return l, nil
}

// dataPatience is ko-count tries of timeout each; ko-count 0 never gives up.
func (e *Engine) dataPatience() patience {
	n := e.net.Load()
	return patience{time.Duration(n.TimeoutMS) * time.Millisecond, n.KoCount}
}

// metaPatience: acknowledgements that cannot be sent for one timeout end the connection.
func (e *Engine) metaPatience() patience {
	return patience{time.Duration(e.net.Load().TimeoutMS) * time.Millisecond, 1}
}

func sendFailure(err error, plain drbd.ConnState) drbd.ConnState {
	if errors.Is(err, errSendTimeout) {
		return drbd.Timeout
	}
	return plain
}

// blocked has the peer asked whether it is alive.
func (l *link) blocked() {
	e := l.e
	b := e.newBatch()
	e.mu.Lock()
	if l.isCurrent() {
		b.ev = replication.Event{Kind: replication.SendBlocked}
		e.step(b, &b.ev)
	}
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
}

// run steps the core into the handshake and reads until the connection ends.
func (l *link) run() {
	e := l.e
	var wg sync.WaitGroup
	defer e.loans.forget(l.data)
	for _, f := range []func(){l.data.run, l.meta.run, l.readData, l.readMeta} {
		wg.Add(1)
		go func() { defer wg.Done(); f() }()
	}
	wg.Wait()
	e.connWG.Done()
}

// isCurrent reports whether the core still knows this connection; under the lock.
func (l *link) isCurrent() bool { return l.e.link == l }

// retire closes the sockets after what is filed was handed over; under the
// lock, so the work is left to the batch.
func (l *link) retire(b *batch) {
	b.cold = append(b.cold, func() {
		l.once.Do(func() {
			l.meta.flush()
			l.data.flush()
			close(l.data.done)
			close(l.meta.done)
			close(l.gone)
			go l.linger()
		})
	})
}

// lingerTime is how long a connection that was given up is still listened to;
// a living peer closes its side much sooner.
const lingerTime = 2 * time.Second

// linger closes the sockets so that the peer gets to read what was sent: a
// close with unread input would reset the connection and take the peer's last
// packets away, and with them the reason that both must see. The data socket
// goes first, and the meta socket only when the peer has closed data: a kernel
// that finds meta closed takes it for a failed network at once, reads no more
// data, and so never learns of a split brain.
func (l *link) linger() {
	end := time.Now().Add(lingerTime)
	for _, o := range []*out{l.data, l.meta} {
		o.conn.SetDeadline(end) //nolint:errcheck // it may be dead
		o.closeWrite()
		o.conn.discard()
		o.conn.Close() //nolint:errcheck // nothing more is expected of it
	}
}

// lost tells the core that the connection broke.
func (l *link) lost(reason drbd.ConnState, err error) {
	e := l.e
	b := e.newBatch()
	e.mu.Lock()
	if l.isCurrent() {
		b.ev = replication.Event{Kind: replication.SocketsDown, Reason: reason, Err: err}
		e.step(b, &b.ev)
	}
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
}

// sent steps what the output of the data socket has to tell.
func (l *link) sent(pos uint64, drained bool) {
	e := l.e
	b := e.newBatch()
	e.mu.Lock()
	if l.isCurrent() {
		b.ev = replication.Event{Kind: replication.DataSent, Pos: pos}
		e.step(b, &b.ev)
		if drained {
			b.ev = replication.Event{Kind: replication.Drained}
			e.step(b, &b.ev)
		}
	}
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
}

func (l *link) resumeReceive() {
	select {
	case l.resumed <- struct{}{}:
	default:
	}
}

// packet is one that has been read and not stepped.
type packet struct {
	header drbd.Header
	fixed  []byte
	data   []byte
	store  [24 + drbd.MaxDigestSize]byte // holds fixed if it is short
	stamp  int64                         // when it was read, if it is a write that is measured
}

// hasPayload lists the packets whose data are read into a buffer of their own.
func hasPayload(c drbd.Command) bool {
	return c == drbd.CmdData || c == drbd.CmdDataReply || c == drbd.CmdRSDataReply
}

func (l *link) readData() {
	src := l.dataConn.reader()
	l.low, _ = src.(*lowReader)
	br := bufio.NewReaderSize(src, dataBuffer)
	err := l.readLoop(br, drbd.DataSocket)
	close(l.dataDone)
	if err != nil {
		if reasonOf(err, drbd.BrokenPipe) == drbd.BrokenPipe && l.awaitsReply() {
			// A peer that grants a disconnect says so on the meta socket and closes
			// data: the end must not overtake what was granted, such as that this
			// node's disk is outdated now.
			l.orEnd(l.metaDone)
		}
		l.lost(reasonOf(err, drbd.BrokenPipe), fmt.Errorf("data socket: %w", err))
	}
}

// awaitsReply reports whether the peer owes the answer to a change of state.
func (l *link) awaitsReply() bool {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	return l.e.core.AwaitsReply()
}

// orEnd waits for the end of the other socket's reader, or of the connection,
// for as long as a living peer may take.
func (l *link) orEnd(done chan struct{}) {
	t := time.NewTimer(l.e.pingTimeout())
	defer t.Stop()
	select {
	case <-done:
	case <-l.gone:
	case <-t.C:
	}
}

func (l *link) readMeta() {
	br := bufio.NewReaderSize(l.metaConn.reader(), metaBuffer)
	err := l.readLoop(br, drbd.MetaSocket)
	close(l.metaDone)
	if err != nil {
		if reasonOf(err, drbd.BrokenPipe) == drbd.BrokenPipe {
			l.orEnd(l.dataDone) // if the peer closed both, its last words are on the data socket
		}
		l.lost(reasonOf(err, drbd.NetworkFailure), fmt.Errorf("meta socket: %w", err))
	}
}

// reasonOf maps a reader's error to the state that DRBD goes to (4.7): an
// unknown packet on the meta socket is final, other violations are retried.
func reasonOf(err error, plain drbd.ConnState) drbd.ConnState {
	var p *drbd.ProtocolError
	if !errors.As(err, &p) {
		return plain
	}
	if plain == drbd.NetworkFailure {
		if p.Field == "command" || p.Field == "socket" {
			return drbd.Disconnecting
		}
		return drbd.NetworkFailure
	}
	return drbd.ProtocolFailure
}

// readLoop reads packets and steps them in batches: the first one, then all
// that are already whole in the buffer.
func (l *link) readLoop(br *bufio.Reader, sock drbd.Socket) error {
	packets := make([]packet, linkBatch)
	for {
		n := 0
		for n < len(packets) {
			if n > 0 && !wholePacket(br) {
				break
			}
			if err := l.readPacket(br, sock, &packets[n]); err != nil {
				l.stepPackets(packets[:n], sock)
				return err
			}
			if n == 0 {
				l.timeBatch(sock)
			}
			l.timePacket(&packets[n])
			n++
		}
		if !l.stepPackets(packets[:n], sock) {
			return nil
		}
		if sock == drbd.DataSocket && l.data.size() > maxOutput && !l.waitOutput(l.data, maxOutput/2) {
			return nil
		}
		if l.meta.size() > maxAnswers && !l.waitOutput(l.meta, maxAnswers/2) {
			return nil
		}
	}
}

// maxOutput is how much may wait for the data socket before the peer is not
// listened to: it asks for blocks faster than it takes them.
const maxOutput = 32 << 20

// maxAnswers is the same for the meta socket, of either socket's reader: a peer
// of good will has no more under way than a tenth of these acknowledgements.
const maxAnswers = 16 << 20

// waitOutput waits until no more than so many bytes wait for a socket.
func (l *link) waitOutput(o *out, bytes int) bool {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for o.size() > bytes {
		select {
		case <-l.gone:
			return false
		case <-t.C:
		}
	}
	return true
}

// wholePacket reports whether a whole packet is buffered, so that reading it
// does not wait.
func wholePacket(br *bufio.Reader) bool {
	if br.Buffered() < drbd.HeaderSize100 {
		return false
	}
	b, err := br.Peek(drbd.HeaderSize100)
	if err != nil {
		return false
	}
	h, err := drbd.DecodeHeader100(b)
	return err == nil && br.Buffered() >= drbd.HeaderSize100+int(h.Length)
}

// readPacket reads one packet. Its length is checked before it sizes anything.
func (l *link) readPacket(br *bufio.Reader, sock drbd.Socket, p *packet) error {
	head, err := br.Peek(drbd.HeaderSize100)
	if err != nil {
		if errors.Is(err, io.EOF) && len(head) == 0 {
			return errors.New("closed by the peer")
		}
		return err
	}
	h, err := drbd.DecodeHeader100(head)
	if err != nil {
		return err
	}
	if err := drbd.CheckLength(h, l.info.Features&drbd.FeatureWSame != 0, sock); err != nil {
		return err
	}
	br.Discard(drbd.HeaderSize100) //nolint:errcheck // it was peeked
	p.header, p.data = h, nil
	fixed := int(h.Length)
	if hasPayload(h.Command) {
		if _, err := drbd.DataSize(h, l.integrity.sumSize); err != nil {
			return err
		}
		fixed = drbd.FixedLen(h.Command)
	}
	if fixed <= len(p.store) {
		p.fixed = p.store[:fixed]
	} else {
		p.fixed = make([]byte, fixed) // control and bitmap packets: at most 4 KiB
	}
	if _, err := io.ReadFull(br, p.fixed); err != nil {
		return err
	}
	if !hasPayload(h.Command) {
		return l.integrity.observe(h, p.fixed)
	}
	if err := l.readPayload(br, p, int(h.Length)-fixed); err != nil {
		l.e.pool.put(p.data)
		p.data = nil
		return err
	}
	return nil
}

// readPayload reads digest and data, n bytes in all. Data that do not match
// their digest go no further: the connection breaks, and a resync repairs.
func (l *link) readPayload(br *bufio.Reader, p *packet, n int) error {
	in := &l.integrity
	p.data = l.e.pool.get(n - in.sumSize)
	l.low.need(n - br.Buffered())
	if _, err := io.ReadFull(br, in.want[:in.sumSize]); err != nil {
		return err
	}
	if err := l.readInto(br, p.data); err != nil {
		return err
	}
	return in.check(p)
}

// readInto reads all of data.
func (l *link) readInto(br *bufio.Reader, data []byte) error {
	if here := br.Buffered(); l.low != nil && len(data)-here >= directFrom {
		if _, err := io.ReadFull(br, data[:here]); err != nil {
			return err
		}
		return l.low.readAll(data[here:])
	}
	_, err := io.ReadFull(br, data)
	return err
}

// stepPackets steps what was read; it waits where the core wants nothing more
// for now. It reports false once the connection is not current any more.
func (l *link) stepPackets(ps []packet, sock drbd.Socket) bool {
	e := l.e
	for len(ps) > 0 {
		b := e.newBatch()
		b.isReader, b.readAt = sock == drbd.DataSocket, l.readAt[sock]
		e.mu.Lock()
		current, paused, i := l.isCurrent(), false, 0
		for current && !paused && i < len(ps) {
			p := &ps[i]
			b.ev = replication.Event{Kind: replication.Received, Socket: sock, Header: p.header, Fixed: p.fixed, Data: p.data, Stamp: p.stamp}
			p.data = nil
			e.step(b, &b.ev)
			i++
			current = l.isCurrent()
			paused = sock == drbd.DataSocket && e.core.ReceivePaused()
		}
		if paused {
			select { // what was resumed before does not count
			case <-l.resumed:
			default:
			}
		}
		e.mu.Unlock()
		e.finish(b)
		// A kernel peer's P_BARRIER: nothing is read before the disk has its epoch,
		// so nobody else needs to be woken for that.
		for _, v := range b.syncs {
			if !v.startSync() {
				v.sync()
			}
		}
		b.syncs = b.syncs[:0]
		e.freeBatch(b)
		ps = ps[i:]
		if !current {
			for j := range ps {
				if ps[j].data != nil {
					e.pool.put(ps[j].data)
				}
			}
			return false
		}
		if paused && !l.waitResumed() {
			return false
		}
	}
	return true
}

func (l *link) waitResumed() bool {
	for {
		l.e.mu.Lock()
		paused, current := l.e.core.ReceivePaused(), l.isCurrent()
		l.e.mu.Unlock()
		if !current || !paused {
			return current
		}
		select {
		case <-l.resumed:
		case <-l.gone:
			return false
		}
	}
}
