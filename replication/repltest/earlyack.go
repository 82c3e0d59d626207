package repltest

import (
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// An earlyAck makes a node answer a P_BARRIER as drbd.ko of Linux 6.1 does:
// P_BARRIER_ACK when the writes of the epoch are answered, the flush of its
// disks only then, and nothing more is read from the data socket meanwhile. The
// core flushes first; so what it sends later is taken away here. An epoch with a
// write that wants no P_WRITE_ACK (protocol A and B) is left to the core.
type earlyAck struct {
	size     uint32   // writes received since the last P_BARRIER
	silent   bool     // one of them has no answer
	open     []uint64 // ids of the writes that are not answered
	due      bool
	ack      drbd.BarrierAck
	swallows int // so many acknowledgements of the core are still to come
}

// received sees every packet for n before it is stepped.
func (e *earlyAck) received(n *Node, h drbd.Header, fixed []byte) {
	if !n.w.cfg.EarlyAck {
		return
	}
	switch h.Command {
	case drbd.CmdData, drbd.CmdTrim, drbd.CmdZeroes:
		var d drbd.Data
		if err := d.Decode(fixed[:24]); err != nil {
			n.w.fail("%s: %v", n.name, err)
		}
		e.size++
		if d.Flags&drbd.DPSendWriteAck != 0 {
			e.open = append(e.open, d.BlockID)
		} else {
			e.silent = true
		}
	case drbd.CmdBarrier:
		var b drbd.Barrier
		if err := b.Decode(fixed); err != nil {
			n.w.fail("%s: %v", n.name, err)
		}
		e.due, e.ack = e.size > 0 && !e.silent, drbd.BarrierAck{Barrier: b.Barrier, SetSize: e.size}
		e.size, e.silent = 0, false
		e.maybeAck(n)
	}
}

// sending sees every packet that n's core sends, and reports whether it goes out.
func (e *earlyAck) sending(n *Node, a *replication.Action) bool {
	if !n.w.cfg.EarlyAck || a.Socket != drbd.MetaSocket {
		return true
	}
	h, err := drbd.DecodeHeader100(a.Bytes)
	if err != nil {
		n.w.fail("%s: %v", n.name, err)
		return false
	}
	switch h.Command {
	case drbd.CmdWriteAck, drbd.CmdRSWriteAck, drbd.CmdNegAck:
		var ack drbd.BlockAck
		if err := ack.Decode(a.Bytes[drbd.HeaderSize100:]); err != nil {
			n.w.fail("%s: %v", n.name, err)
			return false
		}
		if i := slices.Index(e.open, ack.BlockID); i >= 0 {
			n.file(n.link, a)
			e.open = slices.Delete(e.open, i, i+1)
			e.maybeAck(n)
			return false
		}
	case drbd.CmdBarrierAck:
		if e.swallows > 0 {
			e.swallows--
			return false
		}
	}
	return true
}

func (e *earlyAck) maybeAck(n *Node) {
	if !e.due || len(e.open) > 0 {
		return
	}
	e.due = false
	e.swallows++
	b := drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdBarrierAck, Length: 8})
	n.file(n.link, &replication.Action{Kind: replication.Send, Socket: drbd.MetaSocket, Bytes: e.ack.Append(b)})
	if n.cutAtEarlyAck {
		n.cutAtEarlyAck = false
		n.w.after(1+n.w.jitter(400), func() { n.Kill(true, 0) })
	}
}
