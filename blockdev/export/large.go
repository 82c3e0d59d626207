package export

import (
	"bufio"
	"sync"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// window is the number of pieces of a large request that are in flight at
// once: with blockdev.MaxRequest it bounds its memory.
const window = 2

// A gather is the Sink of a large request's pieces.
type gather struct {
	c    *conn
	left sync.WaitGroup
}

// Completed implements blockdev.Sink.
func (g *gather) Completed(*blockdev.Request) { g.left.Done() }

// Flush implements blockdev.Sink: the pieces have one reply, sent by large.
func (g *gather) Flush() {}

// large serves a request that is larger than a Backend takes: piece by piece,
// alone on its connection, with the memory of one window. The caller has
// submitted what came before.
func (c *conn) large(in *bufio.Reader, q nbd.Request) error {
	c.w.waitIdle()
	switch q.Command {
	case nbd.CmdRead:
		return c.largeRead(q)
	case nbd.CmdWrite:
		return c.largeWrite(in, q)
	}
	return c.largeDiscard(q)
}

// run submits the batch of pieces and waits for all of them.
func (c *conn) run(pieces []*request) error {
	c.gather.left.Add(len(pieces))
	for _, r := range pieces {
		r.Sink = &c.gather
		c.batch = append(c.batch, &r.Request)
	}
	c.submit()
	c.gather.left.Wait()
	var failed error
	for _, r := range pieces {
		r.takeBack()
		if failed == nil {
			failed = r.Err
		}
	}
	return failed
}

// piece makes a request for [start, end) of q.
func (c *conn) piece(q nbd.Request, op blockdev.Op, start, end uint64) *request {
	cost := int64(requestCost)
	isData := op == blockdev.OpRead || op == blockdev.OpWrite
	if isData {
		cost += classSize(int(end - start))
	}
	r := c.prepare(q, cost)
	r.Op, r.Offset, r.Length = op, int64(start), uint32(end-start)
	if isData {
		r.buf = c.srv.pool.get(int(end - start))
		r.Data = r.buf
	}
	return r
}

// windowCost is what the pieces of a window may cost, in bytes.
const windowCost = window * (blockdev.MaxRequest + requestCost)

// largeRead sends each window when it has been read. With simple replies, an
// error after the first one can only end the connection.
func (c *conn) largeRead(q nbd.Request) error {
	last := q.Offset + uint64(q.Length)
	start, end := widen(q)
	for at := start; at < end; {
		if err := c.waitRoom(windowCost); err != nil {
			return err
		}
		var pieces []*request
		for ; at < end && len(pieces) < window; at += blockdev.MaxRequest {
			r := c.piece(q, blockdev.OpRead, at, min(at+blockdev.MaxRequest, end))
			r.offset = max(at, q.Offset)
			r.skip = int(r.offset - at)
			r.want = int(min(at+blockdev.MaxRequest, last) - r.offset)
			pieces = append(pieces, r)
		}
		err := c.run(pieces)
		if err != nil && pieces[0].Offset != int64(start) && !c.structured {
			c.drop(pieces)
			return err
		}
		for i, r := range pieces {
			switch {
			case err != nil && i == 0:
				c.encode(r, errnoOf(err))
			case err != nil:
				r.headLen, r.body = 0, nil
			case c.structured:
				head := nbd.AppendDataChunk(r.head[:0], r.cookie, r.offset, uint32(r.want), r.offset+uint64(r.want) == last)
				r.headLen, r.body = len(head), r.buf[r.skip:r.skip+r.want]
			default:
				c.encode(r, nbd.OK)
				if r.Offset != int64(start) {
					r.headLen = 0 // the head says 0 and the whole length once
				}
			}
			c.w.file(r)
		}
		c.flush()
		if err != nil {
			return nil
		}
	}
	return nil
}

// drop takes pieces back without a reply.
func (c *conn) drop(pieces []*request) {
	for _, r := range pieces {
		r.headLen, r.body = 0, nil
		c.w.file(r)
	}
	c.flush()
}

// largeWrite reads and submits window after window; its one reply comes at the
// end. After an error the rest of the payload is only read.
func (c *conn) largeWrite(in *bufio.Reader, q nbd.Request) error {
	var failed error
	end := q.Offset + uint64(q.Length)
	for at := q.Offset; at < end; {
		if failed != nil {
			if _, err := in.Discard(int(end - at)); err != nil {
				return err
			}
			break
		}
		if err := c.waitRoom(windowCost); err != nil {
			return err
		}
		var pieces []*request
		var readErr error
		for ; at < end && len(pieces) < window && readErr == nil; at += blockdev.MaxRequest {
			r := c.piece(q, blockdev.OpWrite, at, min(at+blockdev.MaxRequest, end))
			readErr = c.readPayload(in, r.buf)
			pieces = append(pieces, r)
		}
		if readErr != nil {
			c.account(len(pieces))
			c.drop(pieces)
			return readErr
		}
		failed = c.run(pieces)
		c.drop(pieces)
	}
	return c.reply(q, errnoOf(failed))
}

// largeDiscard trims or zeroes in steps.
func (c *conn) largeDiscard(q nbd.Request) error {
	op := blockdev.OpZero
	start, end := q.Offset, q.Offset+uint64(q.Length)
	if q.Command == nbd.CmdTrim {
		op = blockdev.OpTrim
		start, end = (start+sectorSize-1)&^(sectorSize-1), end&^(sectorSize-1)
	}
	for at := start; at < end; {
		if err := c.waitRoom(window * requestCost); err != nil {
			return err
		}
		var pieces []*request
		for ; at < end && len(pieces) < window; at += blockdev.MaxDiscard {
			pieces = append(pieces, c.piece(q, op, at, min(at+blockdev.MaxDiscard, end)))
		}
		err := c.run(pieces)
		c.drop(pieces)
		if err != nil {
			return c.reply(q, errnoOf(err))
		}
	}
	return c.reply(q, nbd.OK)
}

// account counts pieces in flight that never went to the Backend.
func (c *conn) account(n int) {
	w := &c.w
	c.srv.inFlight.Add(c.batchCost)
	w.mu.Lock()
	w.inFlight += c.batchCost
	w.count += n
	w.mu.Unlock()
	c.batchCost = 0
}

// reply sends a large request's only reply.
func (c *conn) reply(q nbd.Request, errno nbd.Errno) error {
	if err := c.waitRoom(requestCost); err != nil {
		return err
	}
	r := c.prepare(q, requestCost)
	c.finishLocally(r, errno)
	c.submit()
	return nil
}
