package hostile

import (
	"encoding/binary"

	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// ghost answers in the place of node b, as far as its flags let it: a peer that
// says yes to everything and has nothing behind it.
type ghost struct {
	m     *machine
	flags byte
	hello []byte // what its handshake is made of
	count uint32 // writes since the last barrier
}

// What a ghost leaves out.
const (
	noPong byte = 1 << iota
	noAcks
	noBarriers
	noReplies
	noData
	noGreeting
	noBitmap
)

func (m *machine) ghost() *ghost {
	g := &ghost{m: m, flags: m.in.Byte()}
	for range 24 {
		g.hello = append(g.hello, m.in.Byte())
	}
	return g
}

// say sends a packet to node a.
func (g *ghost) say(w *world, c drbd.Command, vol uint16, body []byte) {
	p := packet{bytes: append(drbd.AppendHeader100(nil, drbd.Header{Command: c, Volume: vol, Length: uint32(len(body))}), body...)}
	if onMeta(c) {
		p.sock = drbd.MetaSocket
	}
	w.push(w.link, 1, p)
}

// greet is the handshake of a peer in some role, with some disk.
func (g *ghost) greet(w *world) {
	if g.flags&noGreeting != 0 {
		return
	}
	m := &machine{in: fuzztest.NewProgram(g.hello), w: w, a: g.m.a, b: g.m.b}
	g.say(w, drbd.CmdProtocol, 0, m.protocol().Append(nil))
	for _, v := range m.a.vols {
		g.say(w, drbd.CmdSyncParam89, v.num, m.syncParam().Append(nil))
		g.say(w, drbd.CmdSizes, v.num, m.sizes(v).Append(nil))
		g.say(w, drbd.CmdUUIDs, v.num, m.uuids().Append(nil))
		g.say(w, drbd.CmdState, v.num, drbd.StatePacket{Word: m.state()}.Append(nil))
	}
}

// heard reacts to a packet of node a.
func (g *ghost) heard(w *world, p packet) {
	h, b := p.header(), p.payload()
	ack := func(c drbd.Command, size uint32) {
		g.say(w, c, h.Volume, drbd.BlockAck{Sector: drbd.Sector(binary.BigEndian.Uint64(b)), BlockID: binary.BigEndian.Uint64(b[8:]), Size: size, Seq: 1}.Append(nil))
	}
	switch c := h.Command; {
	case c == drbd.CmdPing && g.flags&noPong == 0:
		g.say(w, drbd.CmdPingAck, 0, nil)
	case c == drbd.CmdData || c == drbd.CmdTrim || c == drbd.CmdZeroes:
		g.count++
		if g.flags&noAcks != 0 {
			return
		}
		size := h.Length - 24
		if c != drbd.CmdData {
			size = binary.BigEndian.Uint32(b[24:])
		}
		ack(drbd.CmdWriteAck, size&^511)
	case c == drbd.CmdRSDataReply && g.flags&noAcks == 0:
		ack(drbd.CmdRSWriteAck, (h.Length-24)&^511)
	case c == drbd.CmdBarrier:
		if g.flags&noBarriers == 0 {
			g.say(w, drbd.CmdBarrierAck, 0, drbd.BarrierAck{Barrier: binary.BigEndian.Uint32(b), SetSize: g.count}.Append(nil))
		}
		g.count = 0
	case c == drbd.CmdStateChgReq && g.flags&noReplies == 0:
		g.say(w, drbd.CmdStateChgReply, h.Volume, drbd.ReqStateReply{Code: 1}.Append(nil))
	case c == drbd.CmdConnStChgReq && g.flags&noReplies == 0:
		g.say(w, drbd.CmdConnStChgReply, 0, drbd.ReqStateReply{Code: 1}.Append(nil))
	case (c == drbd.CmdDataRequest || c == drbd.CmdRSDataRequest || c == drbd.CmdRSThinReq || c == drbd.CmdCsumRSRequest) && g.flags&noData == 0:
		reply := drbd.CmdRSDataReply
		if c == drbd.CmdDataRequest {
			reply = drbd.CmdDataReply
		}
		d := drbd.Data{Sector: drbd.Sector(binary.BigEndian.Uint64(b)), BlockID: binary.BigEndian.Uint64(b[8:])}
		g.say(w, reply, h.Volume, g.m.withData(d, binary.BigEndian.Uint32(b[16:])))
	case c == drbd.CmdOVRequest && g.flags&noData == 0:
		g.say(w, drbd.CmdOVReply, h.Volume, append(append([]byte(nil), b[:24]...), 1, 2, 3, 4))
	case (c == drbd.CmdBitmap || c == drbd.CmdCompressedBitmap) && g.flags&noBitmap == 0:
		g.say(w, c, h.Volume, b)
	}
}
