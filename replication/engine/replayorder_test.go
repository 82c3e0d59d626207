package engine

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// find is where among the engine's packets the one is that the kernel sent, -1
// if it has not come. Of packets whose order is free it need not be the first.
func (r *replayed) find(e wiretest.Event, h drbd.Header) int {
	for i, g := range r.got[e.Socket] {
		if g.header.Command == h.Command && g.header.Volume == h.Volume && r.isFor(e, h, g) {
			return i
		}
		if !r.mayPass(g, e, h) {
			return -1
		}
	}
	return -1
}

// unordered are the packets that answer blocks: in any order among themselves.
var unordered = map[drbd.Command]bool{
	drbd.CmdRecvAck: true, drbd.CmdWriteAck: true, drbd.CmdRSWriteAck: true, drbd.CmdNegAck: true, drbd.CmdSuperseded: true, drbd.CmdRetryWrite: true,
	drbd.CmdRSDataReply: true, drbd.CmdOVReply: true, drbd.CmdRSDeallocated: true, drbd.CmdRSIsInSync: true,
}

// mayPass reports whether the kernel's packet h may be found behind g: what is
// about different volumes, answers to blocks, writes that are under way
// together, and a write beside the answer for other blocks: that one waits for
// the disk.
func (r *replayed) mayPass(g heard, e wiretest.Event, h drbd.Header) bool {
	a, b := g.header.Command, h.Command
	switch {
	case g.header.Volume != h.Volume:
		return true
	case unordered[a] && unordered[b]:
		return true
	case isWrite(a) && readsBlocks[b], readsBlocks[a] && isWrite(b):
		return !r.overlap(g, e, h)
	}
	return r.parallel() && isWrite(a) && isWrite(b)
}

// readsBlocks are the answers that wait for a disk's read.
var readsBlocks = map[drbd.Command]bool{drbd.CmdRSDataReply: true, drbd.CmdOVReply: true, drbd.CmdRSDeallocated: true}

// overlap reports whether both packets are about the same blocks.
func (r *replayed) overlap(g heard, e wiretest.Event, h drbd.Header) bool {
	first, end := r.blocks(g.header, g.payload)
	from, to := r.blocks(h, e.Payload)
	return first < to && from < end
}

// blocks are the bytes on the device that a write or an answer is about.
func (r *replayed) blocks(h drbd.Header, payload []byte) (from, to int64) {
	from = drbd.Sector(binary.BigEndian.Uint64(payload)).Bytes()
	switch h.Command {
	case drbd.CmdRSDeallocated:
		return from, from + int64(binary.BigEndian.Uint32(payload[8:]))
	case drbd.CmdOVReply: // a digest follows, not the data
		return from, from + int64(binary.BigEndian.Uint32(payload[16:]))
	case drbd.CmdTrim, drbd.CmdZeroes:
		return from, from + int64(binary.BigEndian.Uint32(payload[24:]))
	}
	return from, from + int64(h.Length) - 24 - int64(r.ownDigestSize())
}

func isWrite(c drbd.Command) bool {
	return c == drbd.CmdData || c == drbd.CmdTrim || c == drbd.CmdZeroes
}

// isFor reports whether g is about the blocks of the kernel's packet.
func (r *replayed) isFor(e wiretest.Event, h drbd.Header, g heard) bool {
	switch cmd := h.Command; {
	case isWrite(cmd):
		return bytes.Equal(g.payload[:8], e.Payload[:8]) || !r.parallel()
	case cmd == drbd.CmdRSDataReply, cmd == drbd.CmdOVReply, cmd == drbd.CmdRSDeallocated, cmd == drbd.CmdRSIsInSync:
		return bytes.Equal(g.payload[:8], e.Payload[:8])
	case unordered[cmd]:
		return bytes.Equal(g.payload[8:16], e.Payload[8:16]) // the block id
	}
	return true
}

// provoke has the engine do what its node did unasked: a program wrote, or the
// operator acted when the capture was about to end.
func (r *replayed) provoke(e wiretest.Event, h drbd.Header) {
	if r.running != nil && !r.running.over || len(r.got[drbd.DataSocket]) > 0 {
		return
	}
	switch {
	case h.Command == drbd.CmdConnStChgReq && !strings.Contains(r.lastCommand(), "disconnect"):
		r.finishCommand()
		r.command(wiretest.Event{Kind: wiretest.Command, From: r.me, Line: e.Line, Text: "drbdadm disconnect r0"})
	case h.Command == drbd.CmdData && r.crash:
		var d drbd.Data
		r.check(d.Decode(e.Payload))
		data := e.Payload[24+r.ownDigestSize():]
		r.finishCommand()
		if r.explained(d.Sector.Bytes(), data[0]) {
			return
		}
		rows := [][]wiretest.Poke{{{Volume: int(h.Volume), Op: 'w', Offset: d.Sector.Bytes(), Length: int64(len(data)), Fill: data[0]}}}
		done := make(chan error, 1)
		r.rows = rows
		r.running = &running{event: wiretest.Event{From: r.me, Line: e.Line, Text: "a program's write"}, done: done}
		go func() { done <- r.poke(rows) }()
	}
}

// explained reports whether the last command writes this.
func (r *replayed) explained(off int64, fill byte) bool {
	for _, row := range r.rows {
		for _, p := range row {
			if p.Offset == off && p.Fill == fill {
				return true
			}
		}
	}
	return false
}

func (r *replayed) lastCommand() string {
	for i := r.at; i >= 0; i-- {
		if e := r.events[i]; e.Kind == wiretest.Command && e.From == r.me {
			return e.Text
		}
	}
	return ""
}
