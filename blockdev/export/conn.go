package export

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// Tuning of our own.
const (
	handshakeBuffer = 4 << 10
	readBuffer      = 128 << 10 // 31 writes of 4 KiB; smaller ones cost a system call per payload
	batchRequests   = 256       // of one Submit
	batchBytes      = 2 << 20
	maxRequests     = 1024             // in flight on one connection
	requestCost     = 256              // bytes that a request counts for besides its buffer
	maxDrop         = 64 << 20         // payload of a refused write that we read and drop, bytes
	goodbyeTime     = 30 * time.Second // for a client that has said DISC to take its replies
)

// sectorSize is the unit of requests to a Backend, in bytes.
const sectorSize = 512

// errDisconnected is the end of a connection that the server closes.
var errDisconnected = errors.New("disconnected by the server")

// A conn is one client. Its reader goroutine owns everything but w, the slots'
// contents while they are with the Backend, and export (the server's lock).
type conn struct {
	srv    *Server
	nc     net.Conn
	remote string
	pid    int           // of the client's process; 0 unless it is known
	done   chan struct{} // closed when the connection has left the server

	from    net.Listener // nil if it was brought by ServeConn
	since   time.Time
	begun   bool // the handshake is over; under the server's lock, as the next
	evicted bool // closed in favour of another one

	export  *served
	release func()

	size        uint64 // bytes
	flags       nbd.TransmissionFlags
	structured  bool
	allocation  bool // base:allocation was selected
	backend     Backend
	sampler     perf.Sampler
	readAt      int64 // perf.Now of the batch
	gather      gather
	batch       []*blockdev.Request // to submit
	answered    []*request          // of the batch, without the Backend
	batchCost   int64
	batchLength int64
	room        int64 // bytes that may still be taken into flight
	slotsLeft   int   // and requests
	spare       []*request

	slots [maxRequests]*request // by Request.Cookie
	used  int                   // slots that exist
	r     reader
	w     replyWriter
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, done: make(chan struct{}), remote: nc.RemoteAddr().String()}
	if nc.RemoteAddr().Network() == "unix" {
		c.remote = "unix:" + nc.LocalAddr().String() // clients have no name of their own
		c.pid = PeerPID(nc)
	}
	c.r.init(nc)
	c.w.init(nc)
	return c
}

func (c *conn) log() *zerolog.Logger {
	l := c.srv.cfg.Log.With().Str("client", c.remote)
	if c.export != nil {
		l = l.Str("export", c.export.name)
	}
	log := l.Logger()
	return &log
}

// serve runs the connection from the greeting to the end.
func (c *conn) serve() {
	in := bufio.NewReaderSize(&c.r, handshakeBuffer)
	err := c.negotiate(in)
	if err == nil {
		c.log().Debug().Uint64("size", c.size).Msg("nbd: client connected")
		err = c.transmit(in)
	}
	c.finish(err)
}

// begin notes what the client was told when its handshake ends.
func (c *conn) begin(i Info, flags nbd.TransmissionFlags, structured, allocation bool) {
	c.backend = c.export.backend
	if p, ok := c.backend.(Measured); ok {
		c.sampler = p.Perf().NewSampler()
	}
	c.size, c.flags = uint64(usable(i)), flags
	c.structured, c.allocation = structured, structured && allocation
	c.gather.c = c
	c.srv.mu.Lock()
	c.begun = true
	c.srv.mu.Unlock()
}

// leave gives the volume back.
func (c *conn) leave() {
	if c.release != nil {
		c.release()
		c.release = nil
	}
	c.srv.unclaim(c)
}

// finish ends the connection and returns when no request is with the Backend.
func (c *conn) finish(err error) {
	isDrained := c.srv.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded)
	var pe *nbd.ProtocolError
	switch {
	case errors.Is(err, errEnded) || isDrained:
		if derr := c.nc.SetWriteDeadline(time.Now().Add(goodbyeTime)); derr != nil {
			c.fail(derr)
		}
	case errors.As(err, &pe):
		l := c.log().Sample(&c.srv.lines)
		l.Warn().Str("reason", pe.Error()).Msg("nbd: connection closed, the client broke the protocol")
		c.fail(err)
	default:
		c.log().Debug().Str("reason", err.Error()).Msg("nbd: connection closed")
		c.fail(err)
	}
	c.w.waitIdle()
	c.fail(errEnded)
	c.leave()
}

// drainThenStop ends the connection when nothing is in flight any more.
func (c *conn) drainThenStop() {
	c.w.waitIdle()
	if err := c.nc.SetReadDeadline(time.Unix(1, 0)); err != nil {
		c.fail(err)
	}
}

// transmit serves requests until the client ends or breaks the connection.
func (c *conn) transmit(handshake *bufio.Reader) error {
	var src io.Reader = &c.r
	if n := handshake.Buffered(); n > 0 {
		rest, err := handshake.Peek(n)
		if err != nil {
			return err
		}
		src = io.MultiReader(bytes.NewReader(bytes.Clone(rest)), &c.r)
	}
	in := bufio.NewReaderSize(src, readBuffer)
	if c.srv.draining.Load() { // the handshake has cleared Shutdown's deadline
		go c.drainThenStop()
	}
	for {
		if err := c.step(in); err != nil {
			return err
		}
	}
}

// step waits for one request, takes it and all others that are whole in the
// buffer, and submits them.
func (c *conn) step(in *bufio.Reader) error {
	for n := 0; ; n++ {
		if n > 0 && in.Buffered() < nbd.RequestSize {
			break
		}
		head, err := in.Peek(nbd.RequestSize)
		if err != nil {
			return err // only for the first: there is nothing to submit
		}
		if n == 0 && c.sampler.Volume() != nil {
			c.readAt = perf.Now()
			c.sampler.Batch(c.readAt)
		}
		q, err := nbd.DecodeRequest(head)
		if err != nil {
			c.submit()
			return err
		}
		if c.srv.draining.Load() {
			// Not answered at all: ESHUTDOWN would be handed to the guest by qemu
			// and the kernel, while they repeat on the next connection what the
			// end of this one leaves unanswered.
			c.submit()
			return errEnded
		}
		errno := c.check(q)
		cost := c.cost(q, errno)
		if n == 0 {
			if err := c.waitRoom(cost); err != nil {
				return err
			}
		} else if !c.fits(in, q, n, cost) {
			break
		}
		if _, err := in.Discard(nbd.RequestSize); err != nil {
			return err
		}
		switch {
		case q.Command == nbd.CmdDisc:
			c.submit()
			return errEnded
		case errno == nbd.OK && isLarge(q):
			c.submit()
			return c.large(in, q)
		}
		if err := c.admit(in, q, errno, cost); err != nil {
			c.submit()
			return err
		}
	}
	c.submit()
	return nil
}

// take returns an unused request.
func (c *conn) take() *request {
	if len(c.spare) == 0 {
		// Those that came back since waitRoom, before new ones are made.
		c.w.mu.Lock()
		c.spare, c.w.idle = c.w.idle, c.spare
		c.w.mu.Unlock()
	}
	if n := len(c.spare); n > 0 {
		r := c.spare[n-1]
		c.spare = c.spare[:n-1]
		return r
	}
	r := &request{}
	r.Request.Cookie = uint64(c.used)
	c.slots[c.used] = r
	c.used++
	return r
}

// prepare returns a request for q, without anything from the Backend's part.
func (c *conn) prepare(q nbd.Request, cost int64) *request {
	r := c.take()
	r.command, r.cookie, r.offset, r.cost = q.Command, q.Cookie, q.Offset, cost
	r.skip, r.want = 0, 0
	r.Sink, r.Err, r.Moved, r.Trace = c, nil, false, nil
	r.FUA, r.NoUnmap = q.Flags&nbd.FlagFUA != 0, q.Flags&nbd.FlagNoHole != 0
	c.batchCost += cost
	return r
}

// admit takes a request that was checked into the batch, with its payload.
func (c *conn) admit(in *bufio.Reader, q nbd.Request, errno nbd.Errno, cost int64) error {
	if errno != nbd.OK || q.Length == 0 && q.Command != nbd.CmdFlush {
		return c.answer(in, q, errno, cost)
	}
	r := c.prepare(q, cost)
	start, end := q.Offset, q.Offset+uint64(q.Length)
	switch q.Command {
	case nbd.CmdRead:
		r.Op = blockdev.OpRead
		start, end = widen(q)
		r.skip, r.want = int(q.Offset-start), int(q.Length)
		r.buf = c.srv.pool.get(int(end - start))
	case nbd.CmdWrite:
		r.Op = blockdev.OpWrite
		r.buf = c.srv.pool.get(int(q.Length))
		c.r.amid = true
		err := c.readPayload(in, r.buf)
		c.r.amid = false
		if err != nil {
			c.finishLocally(r, nbd.EIO)
			return err
		}
		c.batchLength += int64(q.Length)
	case nbd.CmdFlush:
		r.Op = blockdev.OpFlush
	case nbd.CmdTrim:
		r.Op = blockdev.OpTrim
		start, end = (start+sectorSize-1)&^(sectorSize-1), end&^(sectorSize-1)
		if start >= end {
			c.finishLocally(r, nbd.OK)
			return nil
		}
	case nbd.CmdWriteZeroes:
		r.Op = blockdev.OpZero
	case nbd.CmdBlockStatus:
		c.blockStatus(r, q)
		return nil
	default: // CACHE: a hint that we do not need
		c.finishLocally(r, nbd.OK)
		return nil
	}
	r.Offset, r.Length, r.Data = int64(start), uint32(end-start), r.buf
	if c.sampler.Pick(dirs[r.Op]) {
		r.trace.Begin(c.readAt)
		r.Trace = &r.trace
	}
	r.isOut = true
	c.batch = append(c.batch, &r.Request)
	return nil
}

// dirs is what requests are measured as.
var dirs = [...]perf.Dir{
	blockdev.OpRead: perf.ReadDir, blockdev.OpWrite: perf.Write, blockdev.OpFlush: perf.Flush,
	blockdev.OpTrim: perf.Discard, blockdev.OpZero: perf.Discard,
}

// answer replies without the Backend. A write's payload is dropped first: a
// client need not expect a reply to what it is still sending.
func (c *conn) answer(in *bufio.Reader, q nbd.Request, errno nbd.Errno, cost int64) error {
	if q.Command == nbd.CmdWrite && q.Length > 0 {
		if q.Length > maxDrop {
			return &nbd.ProtocolError{Where: "NBD_CMD_WRITE", Field: "length", Got: uint64(q.Length), Want: fmt.Sprintf("at most %d", maxDrop)}
		}
		if in.Buffered() < int(q.Length) {
			c.submit() // what came before must not wait for a slow client
		}
		if _, err := in.Discard(int(q.Length)); err != nil {
			return err
		}
	}
	c.finishLocally(c.prepare(q, cost), errno)
	return nil
}

func (c *conn) finishLocally(r *request, errno nbd.Errno) {
	c.encode(r, errno)
	c.answered = append(c.answered, r)
}

// submit hands the batch over.
func (c *conn) submit() {
	n := len(c.batch) + len(c.answered)
	if n == 0 {
		return
	}
	w := &c.w
	c.srv.inFlight.Add(c.batchCost)
	w.mu.Lock()
	w.inFlight += c.batchCost
	w.count += n
	w.pending = append(w.pending, c.answered...)
	w.mu.Unlock()
	c.room -= c.batchCost
	c.slotsLeft -= n
	c.batchCost, c.batchLength = 0, 0
	if len(c.batch) > 0 {
		c.backend.Submit(c.batch)
	}
	if len(c.answered) > 0 {
		c.flush()
	}
	clear(c.batch)
	c.batch, c.answered = c.batch[:0], c.answered[:0]
}

// takeBack has r go on with the memory that it has now.
func (r *request) takeBack() {
	if r.Moved {
		r.buf = r.Data
	}
}

// Completed implements blockdev.Sink.
func (c *conn) Completed(b *blockdev.Request) {
	r := c.slots[b.Cookie]
	if &r.Request != b || !r.isOut {
		panic(fmt.Sprintf("export: request with cookie %d was completed twice, or is not this connection's", b.Cookie))
	}
	r.isOut = false
	r.takeBack()
	c.encode(r, errnoOf(b.Err))
	c.w.file(r)
}

// Flush implements blockdev.Sink.
func (c *conn) Flush() { c.flush() }

// encode makes a request's reply.
func (c *conn) encode(r *request, errno nbd.Errno) {
	head := r.head[:0]
	r.body = nil
	needsChunk := c.structured && (r.command == nbd.CmdRead || r.command == nbd.CmdBlockStatus)
	switch {
	case needsChunk && errno != nbd.OK:
		head = nbd.AppendErrorChunk(head, r.cookie, errno)
	case needsChunk && r.want == 0:
		head = nbd.AppendNoneChunk(head, r.cookie)
	case needsChunk:
		head = nbd.AppendDataChunk(head, r.cookie, r.offset, uint32(r.want), true)
		r.body = r.buf[r.skip : r.skip+r.want]
	default:
		head = nbd.AppendSimpleReply(head, errno, r.cookie)
		if errno == nbd.OK && r.want > 0 {
			r.body = r.buf[r.skip : r.skip+r.want]
		}
	}
	r.headLen = len(head)
}

// statusBuffer holds a block status reply; it bounds the number of extents.
const statusBuffer = 4 << 10

// blockStatus answers BLOCK_STATUS at once: what the Backend does not know
// counts as data.
func (c *conn) blockStatus(r *request, q nbd.Request) {
	most := (statusBuffer - nbd.ChunkHeaderSize - 4) / 8
	if q.Flags&nbd.FlagReqOne != 0 {
		most = 1
	}
	extents := make([]nbd.Extent, 0, 16)
	told := int64(0)
	if m, ok := c.backend.(Mapper); ok {
		err := m.Map(int64(q.Offset), int64(q.Length), func(length int64, isHole bool) bool {
			length = min(length, int64(q.Length)-told)
			if length <= 0 {
				return false
			}
			flags := uint32(0)
			if isHole {
				flags = nbd.StateHole | nbd.StateZero
			}
			if n := len(extents); n > 0 && extents[n-1].Flags == flags {
				extents[n-1].Length += uint32(length)
			} else if n == most {
				return false
			} else {
				extents = append(extents, nbd.Extent{Length: uint32(length), Flags: flags})
			}
			told += length
			return told < int64(q.Length)
		})
		if err != nil {
			extents = extents[:0]
		}
	}
	if len(extents) == 0 {
		extents = append(extents, nbd.Extent{Length: q.Length})
	}
	r.buf = c.srv.pool.get(statusBuffer)
	r.headLen = 0
	r.body = nbd.AppendBlockStatus(r.buf[:0], r.cookie, allocationContext, extents)
	c.answered = append(c.answered, r)
}
