package drbd_test

import (
	"slices"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// A write is one that was sent, and its answers.
type write struct {
	span
	flags   drbd.DPFlags
	answers []drbd.Command
}

// lostConflict reports whether it was superseded, or is to be sent again.
func (w *write) lostConflict() bool {
	return slices.Contains(w.answers, drbd.CmdSuperseded) || slices.Contains(w.answers, drbd.CmdRetryWrite)
}

type closedEpoch struct {
	handle uint32
	writes []*write
}

// at is the map of a volume's things, made at its first use.
func at[K comparable, V any](m map[volumeOf]map[K]V, k volumeOf) map[K]V {
	if m[k] == nil {
		m[k] = map[K]V{}
	}
	return m[k]
}

// traffic checks what comes after, and with, the greeting.
func (r *replay) traffic(e wiretest.Event, h drbd.Header, p drbd.Packet, data []byte) {
	s, own := r.session, volumeOf{e.From, h.Volume}
	switch p := p.(type) {
	case *drbd.UUIDs:
		r.uuidsOf(e, h, p)
	case *drbd.SyncUUID:
		r.syncUUIDOf(e, h, p)
	case *drbd.StatePacket:
		r.stateOf(e, h, p)
	case *drbd.ReqState:
		r.request(e, h, p)
	case *drbd.ReqStateReply:
		want := map[drbd.Command]drbd.Command{drbd.CmdStateChgReply: drbd.CmdStateChgReq, drbd.CmdConnStChgReply: drbd.CmdConnStChgReq}[h.Command]
		i := slices.Index(s.asked[e.To], want)
		r.rule(e, i >= 0 && p.Code <= 4 && p.Code >= -21 && p.Code != 0, "a reply answers a request", "code %d, asked %v", p.Code, s.asked[e.To])
		if i >= 0 {
			s.asked[e.To] = slices.Delete(s.asked[e.To], i, i+1)
		}
		if h.Command == drbd.CmdConnStChgReply && p.Code > 0 {
			r.lostContact()
		}
	case *drbd.Data:
		r.dataOf(e, h, p, data)
	case *drbd.Trim:
		r.writeOf(e, h, &p.Data, p.Size, nil)
	case *drbd.Barrier:
		writes := s.epoch[e.From]
		r.rule(e, len(writes) > 0 || s.cut, "no barrier for an empty epoch", "%#x", p.Barrier)
		nr := littleEndian(p.Barrier)
		last, told := s.lastBar[e.From]
		r.rule(e, !told || nr > last, "barrier numbers grow", "%d after %d", nr, last)
		s.lastBar[e.From], s.epoch[e.From] = nr, nil
		s.barriers[e.From] = append(s.barriers[e.From], closedEpoch{p.Barrier, writes})
	case *drbd.BarrierAck:
		r.barrierAck(e, p)
	case *drbd.BlockAck:
		r.ack(e, h, p)
	case *drbd.BlockRequest:
		r.blockRequest(e, h, p, data)
	case *drbd.BlockDesc:
		r.blockDesc(e, h, p)
	case drbd.Empty:
		switch h.Command { // the others say nothing more
		case drbd.CmdPing:
			s.pings[e.From]++
		case drbd.CmdPingAck:
			s.pings[e.To]--
			r.rule(e, s.pings[e.To] >= 0, "a ping was sent", "by %s", e.To)
		case drbd.CmdBitmap, drbd.CmdCompressedBitmap:
			r.bitmap(e, own, h)
		}
	}
}

func littleEndian(v uint32) uint32 { return v>>24 | v>>8&0xff00 | v<<8&0xff0000 | v<<24 }

// wishes are the requests for a change of state that a command may lead to.
var wishes = map[string][]drbd.ReqState{
	"primary":           {{Mask: 3, Val: 1}, {Mask: 0x1e03, Val: 0x1001}},
	"detach":            {{Mask: 0x1e00, Val: 0x400}},
	"disconnect":        {{Mask: 0x1f0, Val: 0x10}, {Mask: 0x1e1f0, Val: 0xa010}, {Mask: 0x1ff0, Val: 0xa10}},
	"down":              {{Mask: 0x1f0, Val: 0x10}},
	"verify":            {{Mask: 0x1f0, Val: 0x120}},
	"invalidate":        {{Mask: 0x1f0, Val: 0xc0}},
	"invalidate-remote": {{Mask: 0x1f0, Val: 0xb0}},
}

func (r *replay) request(e wiretest.Event, h drbd.Header, p *drbd.ReqState) {
	r.rule(e, p.Val&^p.Mask == 0, "val within mask", "%x %x", p.Mask, p.Val)
	verb := "disconnect" // what an end of the capture does unseen
	if words := strings.Fields(r.command[e.From]); words[0] == "drbdadm" && h.Command == drbd.CmdStateChgReq {
		verb = words[1]
	}
	r.rule(e, slices.Contains(wishes[verb], *p), "the operator wanted the state change", "%x %x after %q", p.Mask, p.Val, r.command[e.From])
	r.session.asked[e.From] = append(r.session.asked[e.From], h.Command)
}

// number takes a sequence number into account.
func (r *replay) number(e wiretest.Event, v uint16, seq uint32) {
	s, k := r.session, volumeOf{e.From, v}
	seen := at(s.seqs, k)
	r.rule(e, seq > 0 && !seen[seq], "sequence number used once", "%d", seq)
	seen[seq] = true
	sock := socketOf{k, e.Socket}
	r.rule(e, seq > s.lastSeq[sock], "sequence numbers grow on a socket", "%d after %d", seq, s.lastSeq[sock])
	s.lastSeq[sock] = seq
}

// ended checks what a whole connection must have.
func (r *replay) ended() {
	if r.session.cut || strings.Contains(r.t.Name(), "crash") {
		return
	}
	for k, seen := range r.session.seqs {
		for seq := range uint32(len(seen)) {
			r.rule(wiretest.Event{}, seen[seq+1], "sequence numbers without a gap", "%v has no %d", k, seq+1)
		}
	}
}

func (r *replay) dataOf(e wiretest.Event, h drbd.Header, p *drbd.Data, data []byte) {
	s, own, to := r.session, volumeOf{e.From, h.Volume}, volumeOf{e.To, h.Volume}
	if h.Command == drbd.CmdData {
		r.writeOf(e, h, p, uint32(len(data)), data)
		return
	}
	r.rule(e, p.Seq == 0 && p.Flags == 0, "an answer has no number", "%d %d", p.Seq, p.Flags)
	got := span{p.Sector, uint32(e.Length) - 24 - uint32(r.digestSize(e.From))}
	if h.Command == drbd.CmdDataReply {
		q, asked := at(s.reads, to)[p.BlockID]
		r.rule(e, asked && got == (span{q.Sector, q.Size}), "an answer to a request", "%v, id %x: asked for %+v", got, p.BlockID, q)
	} else {
		r.rule(e, p.BlockID == drbd.ResyncID, "all ones in resync packets only", "%x", p.BlockID)
		r.answered(e, to, got)
	}
	if !e.Whole() {
		return
	}
	img := r.image(own)
	r.rule(e, img.holds(p.Sector, data), "data are those of the sender's disk", "at sector %d", p.Sector)
	img.write(p.Sector, data)
	if h.Command == drbd.CmdRSDataReply {
		r.image(to).write(p.Sector, data)
	}
}

func (r *replay) digestSize(node string) int {
	for k, s := range r.streams {
		if strings.HasPrefix(k, node) && s.integrity != "" {
			d, err := drbd.NewDigest(s.integrity)
			if err != nil {
				r.t.Fatal(err)
			}
			return d.Size()
		}
	}
	return 0
}

// answered takes a request of a resync or verify off the list.
func (r *replay) answered(e wiretest.Event, k volumeOf, got span) {
	asked := at(r.session.wanted, k)
	r.rule(e, asked[got] > 0 || r.session.cut, "an answer to a request", "%v", got)
	if asked[got]--; asked[got] <= 0 {
		delete(asked, got)
	}
}

func (r *replay) writeOf(e wiretest.Event, h drbd.Header, p *drbd.Data, size uint32, data []byte) {
	s, own, to := r.session, volumeOf{e.From, h.Volume}, volumeOf{e.To, h.Volume}
	r.number(e, h.Volume, p.Seq)
	r.rule(e, p.BlockID != drbd.ResyncID, "block id of a write", "all ones")
	known := drbd.DPRWSync | drbd.DPMaySetInSync | drbd.DPFUA | drbd.DPFlush | drbd.DPDiscard | drbd.DPSendReceiveAck | drbd.DPSendWriteAck | drbd.DPZeroes
	kind := map[drbd.Command]drbd.DPFlags{drbd.CmdTrim: drbd.DPDiscard, drbd.CmdZeroes: drbd.DPZeroes}[h.Command]
	r.rule(e, p.Flags&^known == 0 && p.Flags&kind == kind, "flags of a write", "%v with %#x", h.Command, p.Flags)
	want := map[uint32]drbd.DPFlags{drbd.ProtocolB: drbd.DPSendReceiveAck, drbd.ProtocolC: drbd.DPSendWriteAck}[s.protocol[e.From]]
	if p.Flags&drbd.DPMaySetInSync != 0 {
		want |= drbd.DPSendWriteAck
	}
	asked := p.Flags & (drbd.DPSendReceiveAck | drbd.DPSendWriteAck)
	r.rule(e, asked == want, "ack flags of the protocol", "%#x with protocol %d", p.Flags, s.protocol[e.From])
	end := p.Sector + drbd.Sector(size/512)
	r.rule(e, size%512 == 0 && end <= r.nodes[e.From].size[h.Volume], "a write inside the device", "%d bytes at sector %d", size, p.Sector)
	w := &write{span: span{p.Sector, size}, flags: p.Flags}
	at(s.writes, own)[p.BlockID] = w
	s.epoch[e.From] = append(s.epoch[e.From], w)
	if data == nil {
		data = make([]byte, size)
	}
	for _, k := range []volumeOf{own, to} {
		if r.nodes[k.node].attached(k.volume) {
			r.image(k).write(p.Sector, data)
		}
	}
}

func (r *replay) barrierAck(e wiretest.Event, p *drbd.BarrierAck) {
	s := r.session
	queue := s.barriers[e.To]
	for len(queue) > 1 && queue[0].handle != p.Barrier && !slices.ContainsFunc(queue[0].writes, func(w *write) bool { return !w.lostConflict() }) {
		r.rule(e, true, "an epoch that lost a conflict is passed over", "")
		queue = queue[1:]
	}
	if len(queue) == 0 {
		r.rule(e, s.cut, "P_BARRIER_ACK in order, handle echoed", "%#x without a P_BARRIER", p.Barrier)
		return
	}
	first := queue[0]
	s.barriers[e.To] = queue[1:]
	r.rule(e, p.Barrier == first.handle, "P_BARRIER_ACK in order, handle echoed", "%#x, due is %#x", p.Barrier, first.handle)
	r.rule(e, int(p.SetSize) == len(first.writes) || s.cut, "set_size = writes of the epoch", "%d, want %d", p.SetSize, len(first.writes))
	for _, w := range first.writes {
		if asked := w.flags&(drbd.DPSendReceiveAck|drbd.DPSendWriteAck) != 0; asked && !s.cut {
			r.rule(e, len(w.answers) > 0, "acks before their epoch's P_BARRIER_ACK", "write at sector %d", w.sector)
		}
	}
}

func (r *replay) ack(e wiretest.Event, h drbd.Header, p *drbd.BlockAck) {
	s, to := r.session, volumeOf{e.To, h.Volume}
	r.number(e, h.Volume, p.Seq)
	got := span{p.Sector, p.Size}
	switch {
	case h.Command == drbd.CmdOVResult:
		r.rule(e, p.BlockID == drbd.OVInSync || p.BlockID == drbd.OVOutOfSync, "result of a verify", "%d", p.BlockID)
		if s.cut {
			return
		}
		same := slices.Equal(r.image(volumeOf{e.From, h.Volume}).read(got), r.image(to).read(got))
		r.rule(e, same == (p.BlockID == drbd.OVInSync), "the verdict fits both disks", "%d at sector %d, equal is %v", p.BlockID, p.Sector, same)
	case h.Command == drbd.CmdRSIsInSync:
		r.answered(e, to, got)
		same := slices.Equal(r.image(volumeOf{e.From, h.Volume}).read(got), r.image(to).read(got))
		r.rule(e, same, "the verdict fits both disks", "P_RS_IS_IN_SYNC at sector %d", p.Sector)
	case p.BlockID == drbd.ResyncID:
		ok := slices.Contains([]drbd.Command{drbd.CmdRSWriteAck, drbd.CmdNegAck}, h.Command)
		r.rule(e, ok, "all ones in resync packets only", "%v", h.Command)
	default:
		w := at(s.writes, to)[p.BlockID]
		if w == nil {
			r.rule(e, s.cut, "an ack repeats sector and size", "no write has id %x", p.BlockID)
			return
		}
		r.rule(e, w.span == got, "an ack repeats sector and size", "%v of %v", got, w.span)
		w.answers = append(w.answers, h.Command)
		asked := map[drbd.Command]drbd.DPFlags{
			drbd.CmdRecvAck: drbd.DPSendReceiveAck, drbd.CmdWriteAck: drbd.DPSendWriteAck, drbd.CmdRSWriteAck: drbd.DPSendWriteAck | drbd.DPMaySetInSync,
		}[h.Command]
		r.rule(e, w.flags&asked == asked, "an ack that was asked for", "%v with flags %#x", h.Command, w.flags)
	}
}

func (r *replay) blockRequest(e wiretest.Event, h drbd.Header, p *drbd.BlockRequest, digest []byte) {
	s, own := r.session, volumeOf{e.From, h.Volume}
	got := span{p.Sector, p.Size}
	end := p.Sector + drbd.Sector(p.Size/512)
	r.rule(e, p.Size > 0 && end <= r.nodes[e.From].size[h.Volume], "a request inside the device", "%v", got)
	if h.Command == drbd.CmdDataRequest {
		at(s.reads, own)[p.BlockID] = *p
		return
	}
	r.rule(e, p.BlockID == drbd.ResyncID, "all ones in resync packets only", "%x", p.BlockID)
	blocks := uint64(p.Size+4095) / 4096
	first := uint64(p.Sector) / 8
	switch h.Command { // of the others below
	case drbd.CmdRSDataRequest, drbd.CmdRSThinReq, drbd.CmdCsumRSRequest:
		ok := p.Sector%8 == 0 && p.Sector>>15 == (end-1)>>15
		for grown := uint64(1); grown < blocks; grown *= 2 { // it grows beyond a power of two only if aligned to the next
			ok = ok && first%(2*grown) == 0
		}
		r.rule(e, ok, "resync request: extent and alignment", "%d blocks from %d", blocks, first)
		at(s.wanted, own)[got]++
		if rs := s.resync[h.Volume]; rs != nil {
			for i := range blocks {
				rs.asked[first+i] = true
			}
		}
	case drbd.CmdOVReply:
		r.answered(e, volumeOf{e.To, h.Volume}, got)
	default: // P_OV_REQUEST
		at(s.wanted, own)[got]++
	}
	alg := map[drbd.Command]string{drbd.CmdOVReply: s.verify, drbd.CmdCsumRSRequest: s.csums}[h.Command]
	if alg == "" {
		return
	}
	d, err := drbd.NewDigest(alg)
	if err != nil {
		r.t.Fatal(err)
	}
	d.Write(r.image(own).read(got))
	r.rule(e, slices.Equal(d.Sum(nil), digest), "digest is that of the sender's disk", "%s of %v is %x, the packet has %x", alg, got, d.Sum(nil), digest)
}

func (r *replay) blockDesc(e wiretest.Event, h drbd.Header, p *drbd.BlockDesc) {
	own, to := volumeOf{e.From, h.Volume}, volumeOf{e.To, h.Volume}
	if h.Command == drbd.CmdOutOfSync {
		conn := r.session.state[own].Conn
		r.rule(e, conn == drbd.Ahead || conn == drbd.WFBitMapS, "out of sync in the peer's file", "sent in %v", conn)
		r.image(own).forget(span{p.Sector, p.Size})
		return
	}
	got := span{p.Sector, p.Size}
	r.answered(e, to, got)
	zero := make([]byte, p.Size)
	r.rule(e, r.image(own).holds(p.Sector, zero), "a deallocated range is zero there", "%v", got)
	r.image(to).write(p.Sector, zero)
}
