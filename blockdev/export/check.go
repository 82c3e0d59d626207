package export

import (
	"bufio"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// check decides whether a request can be done at all.
func (c *conn) check(q nbd.Request) nbd.Errno {
	allowed := nbd.FlagFUA // on every command, once it is advertised
	isChange := false
	pastEnd := nbd.EINVAL
	switch q.Command {
	case nbd.CmdDisc:
		return nbd.OK
	case nbd.CmdRead:
		if c.structured {
			allowed |= nbd.FlagDF
		}
	case nbd.CmdWrite:
		isChange, pastEnd = true, nbd.ENOSPC
	case nbd.CmdWriteZeroes:
		isChange, pastEnd = true, nbd.ENOSPC
		allowed |= nbd.FlagNoHole
	case nbd.CmdTrim:
		isChange = true
	case nbd.CmdFlush, nbd.CmdCache:
	case nbd.CmdBlockStatus:
		if !c.allocation {
			return nbd.EINVAL
		}
		allowed |= nbd.FlagReqOne
	default:
		return nbd.EINVAL
	}
	isData := q.Command == nbd.CmdRead || q.Command == nbd.CmdWrite
	misaligned := (q.Offset|uint64(q.Length))%sectorSize != 0
	switch {
	case q.Flags&^allowed != 0:
		return nbd.EINVAL
	case isChange && c.flags&nbd.ReadOnly != 0:
		return nbd.EPERM
	case q.Command == nbd.CmdFlush:
		if q.Offset != 0 || q.Length != 0 {
			return nbd.EINVAL
		}
		return nbd.OK
	case isData && q.Length > nbd.MaxPayload:
		return nbd.EINVAL
	case !q.InRange(c.size):
		return pastEnd
	case misaligned && (q.Command == nbd.CmdWrite || q.Command == nbd.CmdWriteZeroes):
		return nbd.EINVAL
	case q.Command == nbd.CmdBlockStatus && q.Length == 0:
		return nbd.EINVAL
	case q.Flags&nbd.FlagDF != 0 && isLarge(q):
		return nbd.EOVERFLOW
	}
	return nbd.OK
}

// widen returns the sectors that a read touches.
func widen(q nbd.Request) (start, end uint64) {
	return q.Offset &^ (sectorSize - 1), (q.Offset + uint64(q.Length) + sectorSize - 1) &^ (sectorSize - 1)
}

// isLarge reports whether a request must be split for the Backend.
func isLarge(q nbd.Request) bool {
	switch q.Command {
	case nbd.CmdRead, nbd.CmdWrite:
		start, end := widen(q)
		return end-start > blockdev.MaxRequest
	case nbd.CmdTrim, nbd.CmdWriteZeroes:
		return q.Length > blockdev.MaxDiscard
	}
	return false
}

// cost is the memory that a request will hold, in bytes.
func (c *conn) cost(q nbd.Request, errno nbd.Errno) int64 {
	switch {
	case errno != nbd.OK || isLarge(q):
	case q.Command == nbd.CmdRead, q.Command == nbd.CmdWrite:
		start, end := widen(q)
		return requestCost + classSize(int(end-start))
	case q.Command == nbd.CmdBlockStatus:
		return requestCost + classSize(statusBuffer)
	}
	return requestCost
}

// fits reports whether a further request can go into the batch now.
func (c *conn) fits(in *bufio.Reader, q nbd.Request, n int, cost int64) bool {
	payload := int64(0)
	if q.Command == nbd.CmdWrite {
		payload = int64(q.Length)
	}
	return n < batchRequests && n < c.slotsLeft && c.batchCost+cost <= c.room &&
		c.batchLength+payload <= batchBytes && int64(in.Buffered()) >= nbd.RequestSize+payload
}

// waitRoom waits until a request of a cost may be taken into flight. One
// always may when there is no other.
func (c *conn) waitRoom(cost int64) error {
	w := &c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	limit := c.limit()
	for w.failed == nil && w.count > 0 && (w.inFlight+cost > limit || w.count >= maxRequests) {
		w.waiters++
		w.changed.Wait()
		w.waiters--
		limit = c.limit()
	}
	c.room, c.slotsLeft = limit-w.inFlight, maxRequests-w.count
	if len(c.spare) == 0 {
		c.spare, w.idle = w.idle, c.spare
	}
	return w.failed
}

// limit is the most that this connection may have in flight now, in bytes; the
// caller holds the writer's lock.
func (c *conn) limit() int64 {
	others := c.srv.inFlight.Load() - c.w.inFlight
	return min(c.srv.cfg.MaxInFlight, max(totalInFlight-others, scarceInFlight))
}
