package engine

import (
	"bytes"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// A freedom is a choice that the protocol leaves to each node, or one that we
// made otherwise than the kernel: its packets need no counterpart. Everything
// that no freedom is about must be as in the capture.
type freedom struct {
	name, why string
	// engine deals with a packet of the engine and reports whether it is its own choice.
	engine func(r *replayed, h heard) bool
	// kernel reports whether a packet of the kernel in the engine's place needs none here.
	kernel func(r *replayed, e wiretest.Event, h drbd.Header) bool
	// peer reports whether a packet of the peer is not sent: its time comes by what the engine does.
	peer func(r *replayed, e wiretest.Event, h drbd.Header) bool
}

// is makes a condition on a kernel's packet of commands.
func is(cmds ...drbd.Command) func(*replayed, wiretest.Event, drbd.Header) bool {
	return func(_ *replayed, _ wiretest.Event, h drbd.Header) bool { return slices.Contains(cmds, h.Command) }
}

// freedoms are all that a replay grants; TestReplay wants each to be used.
var freedoms = []freedom{
	{
		name: "pings", why: "each node asks when it likes; the answer is checked, since the peer goes on with it",
		engine: func(r *replayed, h heard) bool {
			switch h.header.Command { // no other
			case drbd.CmdPing:
				r.check(r.peer.send(drbd.MetaSocket, drbd.CmdPingAck, 0, nil))
				return true
			case drbd.CmdPingAck:
				r.pings--
				return true
			}
			return false
		},
		kernel: is(drbd.CmdPing, drbd.CmdPingAck), peer: is(drbd.CmdPingAck),
	},
	{
		name: "unplug hints", why: "P_UNPLUG_REMOTE is optional (section 3.5); we send none",
		engine: func(_ *replayed, h heard) bool { return h.header.Command == drbd.CmdUnplugRemote },
		kernel: is(drbd.CmdUnplugRemote),
	},
	{
		name: "resync requests", why: "order, size and pace are the target's (7.2); the peer answers from its disk, for the blocks for which it had answered by then",
		engine: func(r *replayed, h heard) bool {
			if slices.Contains(resyncRequests, h.header.Command) {
				r.asked = append(r.asked, h)
				r.answer()
				return true
			}
			return false
		},
		kernel: is(resyncRequests...),
		peer:   (*replayed).resyncAnswer,
	},
	{
		name: "acks of resync blocks", why: "they go with the requests",
		engine: func(r *replayed, h heard) bool {
			if !r.resyncAck(h.header.Command, h.payload) {
				return false
			}
			var a drbd.BlockAck
			r.check(a.Decode(h.payload))
			r.unacked -= int64(a.Size)
			return true
		},
		kernel: func(r *replayed, e wiretest.Event, h drbd.Header) bool { return r.resyncAck(h.Command, e.Payload) },
	},
	{
		name: "verify requests", why: "as resync requests; the results are compared by the bits that they set",
		engine: func(r *replayed, h heard) bool {
			if h.header.Command == drbd.CmdOVRequest {
				r.verifyReply(h)
				return true
			}
			return h.header.Command == drbd.CmdOVResult
		},
		kernel: is(drbd.CmdOVRequest, drbd.CmdOVResult), peer: is(drbd.CmdOVReply),
	},
	{
		name: "answers to what was cut", why: "the capture leaves packets out: the peer asks for those blocks at once",
		engine: (*replayed).gapAnswer,
		kernel: func(r *replayed, _ wiretest.Event, h drbd.Header) bool { return r.auto && isBlockAnswer(h.Command) },
		peer: func(r *replayed, e wiretest.Event, h drbd.Header) bool {
			return r.auto && (h.Command == drbd.CmdRSDataRequest || h.Command == drbd.CmdOVRequest || h.Command == drbd.CmdOVResult || r.resyncAck(h.Command, e.Payload))
		},
	},
	{
		name: "reads from the peer", why: "a client's read may be cut otherwise; and we read a little to prove a kernel's flush",
		engine: func(r *replayed, h heard) bool {
			if h.header.Command == drbd.CmdDataRequest {
				r.readReply(h)
				return true
			}
			return false
		},
		kernel: is(drbd.CmdDataRequest), peer: is(drbd.CmdDataReply),
	},
	{
		name: "epochs of writes that are under way together", why: "which of them the first completion ends depends on time (3.4); the peer acknowledges those that come",
		engine: func(r *replayed, h heard) bool { return h.header.Command == drbd.CmdBarrier && r.looseEpoch(h) },
		kernel: func(r *replayed, _ wiretest.Event, h drbd.Header) bool {
			if h.Command != drbd.CmdBarrier {
				return false
			}
			loose := r.kernelLoose
			r.kernelLoose = false
			return loose
		},
		peer: func(r *replayed, e wiretest.Event, h drbd.Header) bool {
			var b drbd.BarrierAck
			return h.Command == drbd.CmdBarrierAck && b.Decode(e.Payload) == nil && r.bars[b.Barrier].writes == 0
		},
	},
	{
		name: "a new generation that nobody hears of", why: "a Primary that grants a disconnect, or has a diskless peer, may say its new UUIDs (4.5); a diskless peer that is promoted needs them",
		engine: func(r *replayed, h heard) bool {
			return h.header.Command == drbd.CmdUUIDs && (r.granted || r.peerDiskless && r.at < len(r.events) && r.nextOwn() != drbd.CmdUUIDs)
		},
		kernel: func(r *replayed, _ wiretest.Event, h drbd.Header) bool {
			return h.Command == drbd.CmdUUIDs && r.granted
		},
	},
	{
		name: "P_PROTOCOL_UPDATE that changes nothing", why: "drbd.ko repeats it for each net-options; we say what has changed",
		kernel: func(r *replayed, e wiretest.Event, h drbd.Header) bool {
			var is, was drbd.ProtocolPacket
			return h.Command == drbd.CmdProtocolUpdate && bytes.Equal(e.Payload, r.protocol) &&
				is.Decode(e.Payload) == nil && was.Decode(r.ownProtocol) == nil && is.IntegrityAlg == was.IntegrityAlg
		},
	},
	{
		name: "one promotion for each volume", why: "drbdsetup promotes minor by minor; the role is the resource's, and one volume asks for it",
		kernel: func(_ *replayed, e wiretest.Event, h drbd.Header) bool {
			return h.Command == drbd.CmdStateChgReq && h.Volume > 0 && bytes.Equal(e.Payload, drbd.ReqState{Mask: 3, Val: 1}.Append(nil))
		},
		peer: func(r *replayed, _ wiretest.Event, h drbd.Header) bool {
			return h.Command == drbd.CmdStateChgReply && h.Volume > 0 && r.running != nil && strings.Contains(r.running.event.Text, "primary")
		},
	},
	{
		name: "answers to probes", why: "the replay asks for nothing (P_CONN_ST_CHG_REQ with an empty mask) to know that the engine has read on",
		engine: func(r *replayed, h heard) bool {
			if h.header.Command == drbd.CmdConnStChgReply && r.probes > 0 && h.payload[3] != 1 {
				r.probes--
				return true
			}
			return false
		},
	},
}

// fields are the fields, and lines about a node, that may differ, and why.
var fields = map[string]string{
	"P_SIZES: limits of the backing device":                                       "physical and logical block, io_min, io_opt are those of this machine's disk",
	"P_SIZES, P_SYNC_PARAM89 of a diskless node":                                  "drbd.ko keeps disk options with the disk and sends defaults, which its peer then takes over; we send what is configured",
	"P_UUIDS: bits of a write that the peer has just refused":                     "we mark at the P_NEG_ACK, drbd.ko at the end of the epoch",
	"bit 0 of a random sync UUID":                                                 "drbd.ko leaves it to chance; it has no meaning",
	"data of space that was added":                                                "what the disk held there",
	"dp_flags that are hints":                                                     "RW_SYNC says that the program waits: not known to us",
	"block_id of P_RS_IS_IN_SYNC":                                                 "a private handle of drbd.ko; we send all ones (2.4)",
	"features: P_ZEROES beside data-integrity-alg":                                "it breaks drbd.ko's connection (10.3), so we do not offer it then",
	"where the UUID of a resync stands of which the target has asked for nothing": "the target may not have its sync UUID: with hand-made metadata, as here, we keep both generations that it can be of",
	"how far a resync has come":                                                   "its pace",
	"metadata of a disk that is not in use":                                       "drbdmeta has read them, perhaps before the last change",
}

// byChance are the fields that differ only if the engine is quicker than the
// peer's next packet, as it is on most machines.
var byChance = map[string]bool{"P_UUIDS: bits of a write that the peer has just refused": true}

// grant notes that a field may differ here.
func (r *replayed) grant(name string) {
	if fields[name] == "" {
		r.stopf("not in the list of fields: %s", name)
	}
	r.fields[name]++
}

var resyncRequests = []drbd.Command{drbd.CmdRSDataRequest, drbd.CmdRSThinReq, drbd.CmdCsumRSRequest}

// resyncAck reports whether a packet acknowledges a block of a resync.
func (r *replayed) resyncAck(cmd drbd.Command, payload []byte) bool {
	var a drbd.BlockAck
	return (cmd == drbd.CmdRSWriteAck || cmd == drbd.CmdNegAck) && a.Decode(payload) == nil && a.BlockID == drbd.ResyncID
}

// resyncAnswer takes an answer of the peer for the permission to answer as much.
func (r *replayed) resyncAnswer(e wiretest.Event, h drbd.Header) bool {
	switch h.Command { // the others are no answers
	case drbd.CmdRSDataReply:
		var d drbd.Data
		r.check(d.Decode(e.Payload))
		n := r.digestSize()
		if e.Whole() {
			r.store(h.Volume, d.Sector, e.Payload[24+n:])
		}
		r.allow(d.Sector, uint32(e.Length-24-n))
	case drbd.CmdRSDeallocated:
		var d drbd.BlockDesc
		r.check(d.Decode(e.Payload))
		r.allow(d.Sector, d.Size)
	case drbd.CmdRSIsInSync:
		var a drbd.BlockAck
		r.check(a.Decode(e.Payload))
		r.allow(a.Sector, a.Size)
	default:
		return false
	}
	return true
}

// allow lets the peer answer for these blocks from now on.
func (r *replayed) allow(s drbd.Sector, size uint32) {
	for n := range drbd.SectorOf(int64(size)) {
		r.allowed[s+n] = true
	}
	r.answer()
}

// mayAnswer reports whether the capture's peer had answered for all of q by now.
func (r *replayed) mayAnswer(q drbd.BlockRequest) bool {
	if r.all {
		return true
	}
	for n := range drbd.SectorOf(int64(q.Size)) {
		if !r.allowed[q.Sector+n] {
			return false
		}
	}
	return true
}

// answer answers requests of a resync from the peer's disk.
func (r *replayed) answer() {
	waiting := r.asked
	r.asked = nil
	for _, h := range waiting {
		var q drbd.BlockRequest
		r.check(q.Decode(h.payload[:24]))
		if !r.mayAnswer(q) {
			r.asked = append(r.asked, h)
			continue
		}
		for n := range drbd.SectorOf(int64(q.Size)) {
			delete(r.allowed, q.Sector+n)
		}
		v := h.header.Volume
		data := r.load(v, q.Sector, q.Size)
		r.unacked += int64(q.Size)
		switch {
		case h.header.Command == drbd.CmdRSThinReq && len(bytes.Trim(data, "\x00")) == 0:
			r.check(r.peer.send(drbd.DataSocket, drbd.CmdRSDeallocated, v, drbd.BlockDesc{Sector: q.Sector, Size: q.Size}.Append(nil)))
		case h.header.Command == drbd.CmdCsumRSRequest && bytes.Equal(r.digest(r.cfg.Net.CsumsAlg, data), h.payload[24:]):
			a := drbd.BlockAck{Sector: q.Sector, BlockID: 0x1234, Size: q.Size, Seq: r.next(v)}
			r.unacked -= int64(q.Size) // nothing to write
			r.check(r.peer.send(drbd.MetaSocket, drbd.CmdRSIsInSync, v, a.Append(nil)))
		default:
			r.reply(drbd.CmdRSDataReply, v, drbd.Data{Sector: q.Sector, BlockID: q.BlockID}, data)
		}
	}
}

// reply sends data, with their digest if there is one.
func (r *replayed) reply(cmd drbd.Command, v uint16, d drbd.Data, data []byte) {
	b := d.Append(nil)
	if r.alg != "" {
		b = append(b, r.digest(r.alg, data)...)
	}
	r.check(r.peer.send(drbd.DataSocket, cmd, v, append(b, data...)))
}

// readReply answers a read: a client's, or one that proves a flush.
func (r *replayed) readReply(h heard) {
	var q drbd.BlockRequest
	r.check(q.Decode(h.payload))
	r.reply(drbd.CmdDataReply, h.header.Volume, drbd.Data{Sector: q.Sector, BlockID: q.BlockID}, r.load(h.header.Volume, q.Sector, q.Size))
}

// verifyReply answers a request of an online verify.
func (r *replayed) verifyReply(h heard) {
	var q drbd.BlockRequest
	r.check(q.Decode(h.payload))
	q.BlockID, q.Pad = drbd.ResyncID, 0
	b := append(q.Append(nil), r.digest(r.cfg.Net.VerifyAlg, r.load(h.header.Volume, q.Sector, q.Size))...)
	r.check(r.peer.send(drbd.DataSocket, drbd.CmdOVReply, h.header.Volume, b))
}

func (r *replayed) digest(alg string, data []byte) []byte {
	d, err := drbd.NewDigest(alg)
	r.check(err)
	d.Write(data)
	return d.Sum(nil)
}

// A looseBar is an epoch that the peer acknowledges when all of its writes are.
type looseBar struct {
	handle uint32
	writes []uint64 // block ids of those that the peer acknowledges
	count  uint32   // all
	strict bool     // the capture has its acknowledgement
}

// looseEpoch takes a P_BARRIER for which the capture has none.
func (r *replayed) looseEpoch(h heard) bool {
	loose := r.looseEpochs
	r.looseEpochs = false
	var b drbd.Barrier
	r.check(b.Decode(h.payload))
	r.loose = append(r.loose, looseBar{b.Barrier, h.writes, h.count, !loose})
	r.ackLoose()
	return loose
}

// ackedStrict takes an epoch off the list that the capture acknowledges.
func (r *replayed) ackedStrict(handle uint32) {
	r.loose = slices.DeleteFunc(r.loose, func(b looseBar) bool { return b.handle == handle })
}

// ackLoose acknowledges the epochs whose writes the peer has acknowledged.
func (r *replayed) ackLoose() {
	for len(r.loose) > 0 {
		b := r.loose[0]
		if b.strict {
			return
		}
		if slices.ContainsFunc(b.writes, func(id uint64) bool { return !r.acked[id] }) {
			return
		}
		r.loose = r.loose[1:]
		r.check(r.peer.send(drbd.MetaSocket, drbd.CmdBarrierAck, 0, drbd.BarrierAck{Barrier: b.handle, SetSize: b.count}.Append(nil)))
	}
}

// parallel reports whether the last command had writes under way together:
// under protocol A it always has.
func (r *replayed) parallel() bool {
	if r.cfg.Net.Protocol == 'A' {
		return true
	}
	for _, row := range r.rows {
		if len(row) > 1 || row[0].Op == 'w' && row[0].Length > largestWrite {
			return true
		}
	}
	return false
}

// nextOwn is the command of the next packet that the engine has to send on the
// data socket.
func (r *replayed) nextOwn() drbd.Command {
	for _, e := range r.events[r.at:] {
		if e.Kind == wiretest.Packet && e.From == r.me && e.Socket == drbd.DataSocket {
			h, err := e.DecodeHeader()
			r.check(err)
			if !is(drbd.CmdPing, drbd.CmdUnplugRemote, drbd.CmdDataRequest)(r, e, h) {
				return h.Command
			}
		}
	}
	return drbd.NoCommand
}
