package hostile

import (
	"encoding/binary"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// commands are all that a peer may send, with some more often.
var commands = []drbd.Command{
	drbd.CmdData, drbd.CmdData, drbd.CmdData, drbd.CmdDataReply, drbd.CmdRSDataReply, drbd.CmdBarrier, drbd.CmdBarrier, drbd.CmdBitmap, drbd.CmdUnplugRemote,
	drbd.CmdDataRequest, drbd.CmdRSDataRequest, drbd.CmdSyncParam, drbd.CmdProtocol, drbd.CmdUUIDs, drbd.CmdUUIDs, drbd.CmdSizes, drbd.CmdSizes,
	drbd.CmdState, drbd.CmdState, drbd.CmdState, drbd.CmdSyncUUID, drbd.CmdAuthChallenge, drbd.CmdStateChgReq, drbd.CmdStateChgReq, drbd.CmdPing, drbd.CmdPingAck,
	drbd.CmdRecvAck, drbd.CmdWriteAck, drbd.CmdWriteAck, drbd.CmdRSWriteAck, drbd.CmdSuperseded, drbd.CmdNegAck, drbd.CmdNegDReply, drbd.CmdNegRSDReply,
	drbd.CmdBarrierAck, drbd.CmdBarrierAck, drbd.CmdStateChgReply, drbd.CmdOVRequest, drbd.CmdOVReply, drbd.CmdOVResult, drbd.CmdCsumRSRequest,
	drbd.CmdRSIsInSync, drbd.CmdSyncParam89, drbd.CmdCompressedBitmap, drbd.CmdDelayProbe, drbd.CmdOutOfSync, drbd.CmdRSCancel,
	drbd.CmdConnStChgReq, drbd.CmdConnStChgReply, drbd.CmdRetryWrite, drbd.CmdProtocolUpdate, drbd.CmdTrim, drbd.CmdTrim, drbd.CmdRSThinReq,
	drbd.CmdRSDeallocated, drbd.CmdWSame, drbd.CmdZeroes, drbd.CmdTerm, drbd.CmdConnectionFeatures,
}

func onMeta(c drbd.Command) bool {
	return drbd.CheckLength(drbd.Header{Command: c, Length: uint32(max(drbd.FixedLen(c), 0))}, true, drbd.MetaSocket) == nil && c != drbd.CmdDelayProbe
}

// forge makes a packet, of command c unless that is NoCommand: mostly one that
// could be, with values at the bounds.
func (m *machine) forge(c drbd.Command) packet {
	in := m.in
	if c == drbd.NoCommand {
		c = pick(in, commands...)
	}
	p := packet{}
	if onMeta(c) {
		p.sock = drbd.MetaSocket
	}
	style := in.Byte()
	vol := uint16(0)
	if style&7 == 7 {
		vol = pick[uint16](in, 1, 0, 2, 0xffff)
	}
	body := m.payload(c, m.a.vols[int(vol)%len(m.a.vols)])
	p.bytes = append(drbd.AppendHeader100(nil, drbd.Header{Command: c, Volume: vol, Length: uint32(len(body))}), body...)
	if style>>3&7 == 7 {
		p = m.mutate(p)
	}
	if style>>6 == 3 {
		p.sock = 1 - p.sock
	}
	return p
}

func (m *machine) sector(v *volume) drbd.Sector {
	in, size := m.in, v.layout.Usable
	b := in.Byte()
	if b < 128 {
		return drbd.Sector(b) * 8
	}
	return []drbd.Sector{size - 8, size, size - 1, size + 1, 1, 7, 1<<51 - 8, 1 << 51, 1 << 63, 1<<64 - 8, 1 << 41, 0}[b%12]
}

func (m *machine) size() uint32 {
	return pick[uint32](m.in, 4096, 4096, 512, 8192, 65536, 4096, 32768, 1<<20, 0, 511, 513, 1<<20+512, 4<<20, 128<<20, 128<<20+512, 0xfffffe00, 0xffffffff)
}

// handle is what identifies a request: one that a has sent, or a wrong one.
func (m *machine) handle() (sector drbd.Sector, id uint64, size uint32, known bool) {
	b := m.in.Byte()
	if b >= 200 {
		return 0, []uint64{drbd.ResyncID, 0, 1, 1<<63 + 5, drbd.OVInSync, drbd.OVOutOfSync}[b%6], 4096, false
	}
	n := 0
	for i := range m.w.seen {
		p := m.w.seen[len(m.w.seen)-1-i]
		switch h := p.header(); h.Command {
		case drbd.CmdData, drbd.CmdTrim, drbd.CmdZeroes, drbd.CmdDataRequest, drbd.CmdRSDataRequest, drbd.CmdOVRequest, drbd.CmdCsumRSRequest, drbd.CmdRSThinReq, drbd.CmdOVReply, drbd.CmdRSDataReply:
			if n++; n <= int(b)%16 {
				continue
			}
			var d drbd.Data
			if d.Decode(p.payload()) != nil {
				continue
			}
			size := h.Length - uint32(drbd.FixedLen(h.Command))
			switch h.Command {
			case drbd.CmdData, drbd.CmdRSDataReply:
				size &^= 511
			case drbd.CmdTrim, drbd.CmdZeroes:
				size = binary.BigEndian.Uint32(p.payload()[24:])
			default:
				size = binary.BigEndian.Uint32(p.payload()[16:])
			}
			return d.Sector, d.BlockID, size, true
		}
	}
	return 0, drbd.ResyncID, 4096, false
}

// block is the answer to a request of a, right or nearly.
func (m *machine) block(v *volume) (drbd.Sector, uint64, uint32) {
	s, id, size, known := m.handle()
	b := m.in.Byte()
	if b&7 == 1 || !known {
		s = m.sector(v)
	}
	if b&7 == 2 {
		id ^= 1 << (b >> 3)
	}
	if b&7 == 3 {
		size = m.size()
	}
	return s, id, size
}

func (m *machine) uuid() uint64 {
	in := m.in
	b := in.Byte()
	var u uint64
	switch b & 7 {
	case 0, 1, 2, 3: // one that was said
		list := m.w.seen
		if b&1 != 0 {
			list = m.w.said
		}
		for i := range list {
			if p := list[len(list)-1-i]; p.header().Command == drbd.CmdUUIDs && len(p.payload()) >= 48 {
				u = binary.BigEndian.Uint64(p.payload()[int(b>>3&3)*8:])
				break
			}
		}
	case 4:
		u = 4
	case 5:
		u = 0x1111111111111110
	case 6:
		u = 0
	case 7:
		u = uint64(in.Byte()) << 56
	}
	return u ^ uint64(b>>7)
}

// state is a word of a state, mostly one that a node can be in.
func (m *machine) state() uint32 {
	in := m.in
	b := in.Byte()
	if b == 0xff {
		return in.Uint32()
	}
	s := drbd.State{
		Role: pick(in, drbd.Secondary, drbd.Primary), Peer: pick(in, drbd.Secondary, drbd.Primary),
		Conn: pick(in, drbd.Connected, drbd.WFConnection, drbd.WFReportParams, drbd.StartingSyncS, drbd.StartingSyncT, drbd.WFBitMapS, drbd.WFBitMapT,
			drbd.WFSyncUUID, drbd.SyncSource, drbd.SyncTarget, drbd.VerifyS, drbd.VerifyT, drbd.PausedSyncS, drbd.PausedSyncT, drbd.Ahead, drbd.Behind,
			drbd.TearDown, drbd.Disconnecting, drbd.StandAlone),
		Disk: pick(in, drbd.UpToDate, drbd.Inconsistent, drbd.Outdated, drbd.Consistent, drbd.Diskless, drbd.Negotiating, drbd.Failed, drbd.Attaching, drbd.DUnknown),
		Pdsk: pick(in, drbd.UpToDate, drbd.Inconsistent, drbd.DUnknown, drbd.Diskless),
	}
	s.Susp, s.AftrISP, s.PeerISP, s.UserISP, s.SuspNod, s.SuspFen = b&1 != 0, b&2 != 0, b&4 != 0, b&8 != 0, b&16 != 0, b&32 != 0
	return s.Word()
}

func (m *machine) protocol() drbd.ProtocolPacket {
	n := &m.a.net
	p := drbd.ProtocolPacket{Protocol: uint32(n.Protocol-'A') + drbd.ProtocolA, IntegrityAlg: n.DataIntegrityAlg}
	if n.AllowTwoPrimaries {
		p.TwoPrimaries = 1
	}
	switch in := m.in; in.Byte() % 12 {
	case 1:
		p.Protocol = pick[uint32](in, 0, 1, 2, 3, 4)
	case 2:
		p.TwoPrimaries ^= 1
	case 3:
		p.IntegrityAlg = pick(in, "", "sha512", "crc32c", "no such thing")
	case 4:
		p.AfterSB0P = in.Uint32()
	case 5:
		p.ConnFlags = uint32(in.Byte())
	case 6:
		p.AfterSB0P, p.AfterSB1P, p.AfterSB2P = uint32(in.Byte()%12), uint32(in.Byte()%12), uint32(in.Byte()%12)
	}
	return p
}

func (m *machine) sizes(v *volume) drbd.Sizes {
	in, size := m.in, v.layout.Usable
	p := drbd.Sizes{
		DSize: size, CSize: size, MaxBioSize: drbd.MaxRequestSize, WSame: m.w.cfg.features&drbd.FeatureWSame != 0,
		PhysicalBlockSize: 4096, LogicalBlockSize: 512,
	}
	values := []drbd.Sector{size, 0, 8, size - 8, size + 8, size * 2, 1 << 41, 1<<41 + 1, 1<<51 - 1, 1 << 51, 1 << 63, 1<<64 - 1}
	b := in.Byte()
	if b&1 != 0 {
		p.DSize = pick(in, values...)
	}
	if b&2 != 0 {
		p.USize = pick(in, values...)
	}
	if b&4 != 0 {
		p.CSize = pick(in, values...)
	}
	if b&8 != 0 {
		p.DDSFlags = uint16(in.Byte())
	}
	if b&16 != 0 {
		p.MaxBioSize = in.Uint32()
	}
	return p
}

// payload is what stands behind the header of a packet.
func (m *machine) payload(c drbd.Command, v *volume) []byte {
	in := m.in
	switch c {
	case drbd.CmdData, drbd.CmdTrim, drbd.CmdZeroes, drbd.CmdWSame:
		d := drbd.Data{Sector: m.sector(v), BlockID: uint64(in.Byte()), Seq: pick[uint32](in, 0, 1, 2, 3, 1<<31, 0xffffffff)}
		d.Flags = drbd.DPFlags(pick[uint32](in, 256, 256, 128, 0, 4, 16, 32, 64, 256|16|32, 256|4, 1024, 0xffffffff))
		size := m.size()
		if c != drbd.CmdData {
			b := drbd.Trim{Data: d, Size: size}.Append(nil)
			if c == drbd.CmdWSame {
				b = append(b, make([]byte, 512)...)
			}
			return b
		}
		return m.withData(d, size)
	case drbd.CmdDataReply, drbd.CmdRSDataReply:
		s, id, size := m.block(v)
		return m.withData(drbd.Data{Sector: s, BlockID: id}, size)
	case drbd.CmdBarrier:
		return drbd.Barrier{Barrier: pick[uint32](in, 0, 1, 2, 3, 0xffffffff, 1<<31)}.Append(nil)
	case drbd.CmdBarrierAck:
		return m.barrierAck().Append(nil)
	case drbd.CmdRecvAck, drbd.CmdWriteAck, drbd.CmdRSWriteAck, drbd.CmdSuperseded, drbd.CmdNegAck, drbd.CmdNegDReply, drbd.CmdNegRSDReply,
		drbd.CmdOVResult, drbd.CmdRSIsInSync, drbd.CmdRSCancel, drbd.CmdRetryWrite:
		s, id, size := m.block(v)
		if c == drbd.CmdOVResult {
			id = pick(in, drbd.OVInSync, drbd.OVOutOfSync, id)
		}
		return drbd.BlockAck{Sector: s, BlockID: id, Size: size, Seq: pick[uint32](in, 1, 0, 2, 1<<31, 0xffffffff)}.Append(nil)
	case drbd.CmdDataRequest, drbd.CmdRSDataRequest, drbd.CmdRSThinReq, drbd.CmdOVRequest:
		return drbd.BlockRequest{Sector: m.sector(v), BlockID: pick(in, drbd.ResyncID, 7, 0), Size: m.size()}.Append(nil)
	case drbd.CmdOVReply, drbd.CmdCsumRSRequest:
		s, id, size := m.block(v)
		if c == drbd.CmdCsumRSRequest {
			s, size = m.sector(v), m.size()
		}
		b := drbd.BlockRequest{Sector: s, BlockID: id, Size: size}.Append(nil)
		return append(b, make([]byte, pick(in, 4, 16, 1, 64, 65, 0))...)
	case drbd.CmdOutOfSync, drbd.CmdRSDeallocated:
		return drbd.BlockDesc{Sector: m.sector(v), Size: m.size()}.Append(nil)
	case drbd.CmdUUIDs:
		return m.uuids().Append(nil)
	case drbd.CmdSizes:
		return m.sizes(v).Append(nil)
	case drbd.CmdState:
		return drbd.StatePacket{Word: m.state()}.Append(nil)
	case drbd.CmdStateChgReq, drbd.CmdConnStChgReq:
		masks := []uint32{3, 31 << 4, 15 << 9, 15 << 13, 3 | 15<<9, 31<<4 | 15<<9, 0xffffffff, 0}
		return drbd.ReqState{Mask: pick(in, masks...), Val: m.state()}.Append(nil)
	case drbd.CmdStateChgReply, drbd.CmdConnStChgReply:
		return drbd.ReqStateReply{Code: pick[int32](in, 1, 2, 3, -1, -10, -19, 0, 1<<31-1, -1<<31)}.Append(nil)
	case drbd.CmdSyncUUID:
		return drbd.SyncUUID{UUID: m.uuid()}.Append(nil)
	case drbd.CmdProtocol, drbd.CmdProtocolUpdate:
		return m.protocol().Append(nil)
	case drbd.CmdSyncParam89:
		return m.syncParam().Append(nil)
	case drbd.CmdTerm:
		values := []uint64{0, 1, 2, 1 << 40, 1<<64 - 1}
		return drbd.TermPacket{Term: pick(in, values...), Promised: pick(in, values...), Flags: pick[uint32](in, 0, 1, 0xffffffff)}.Append(nil)
	case drbd.CmdBitmap, drbd.CmdCompressedBitmap:
		return m.bitmap(c, v)
	}
	b := make([]byte, max(drbd.FixedLen(c), 0))
	for i := range b {
		b[i] = in.Byte()
	}
	return b
}

func (m *machine) withData(d drbd.Data, size uint32) []byte {
	b := d.Append(nil)
	data := make([]byte, min(size, 1<<20+512))
	for i := 0; i+4 <= len(data); i += 512 {
		binary.BigEndian.PutUint32(data[i:], 0xeee00000|uint32(d.Sector)&0xffff)
	}
	if l := m.w.link; l != nil && l.incoming[0].size > 0 {
		b = append(b, digest(l.incoming[0].alg, data)...)
	}
	return append(b, data...)
}

// barrierAck is for the last epoch that a has closed, or for another.
func (m *machine) barrierAck() drbd.BarrierAck {
	var ack drbd.BarrierAck
	for _, p := range m.w.seen {
		switch p.header().Command {
		case drbd.CmdData, drbd.CmdTrim, drbd.CmdZeroes:
			ack.SetSize++
		case drbd.CmdBarrier:
			ack.Barrier = binary.BigEndian.Uint32(p.payload())
		}
	}
	switch b := m.in.Byte(); b & 7 {
	case 0, 1, 2:
		ack.SetSize = uint32(b >> 3)
	case 3:
		ack.Barrier += uint32(b >> 3)
	case 4:
		ack = drbd.BarrierAck{Barrier: m.in.Uint32(), SetSize: 0xffffffff}
	}
	return ack
}

func (m *machine) uuids() drbd.UUIDs {
	in := m.in
	p := drbd.UUIDs{Current: m.uuid(), Bitmap: m.uuid()}
	p.History = [2]uint64{m.uuid(), m.uuid()}
	p.DirtyBits = pick[uint64](in, 0, 1, 256, 1<<32, 1<<64-1)
	p.Flags = pick[uint64](in, 0, 1, 2, 4, 8, 16, 0xff, 1<<64-1)
	return p
}

func (m *machine) syncParam() drbd.SyncParam89 {
	in, n, d := m.in, &m.a.net, &m.a.disk
	p := drbd.SyncParam89{
		ResyncRate: d.ResyncRateKiB, VerifyAlg: n.VerifyAlg, CsumsAlg: n.CsumsAlg,
		CPlanAhead: d.CPlanAhead, CDelayTarget: d.CDelayTarget, CFillTarget: d.CFillTarget, CMaxRate: d.CMaxRateKiB,
	}
	switch in.Byte() % 6 {
	case 1:
		p.VerifyAlg = pick(in, "", "sha1", "none such")
	case 2:
		p.CsumsAlg = pick(in, "", "sha1", "none such")
	case 3:
		v := pick[uint32](in, 0, 1, 1<<31, 0xffffffff)
		p.ResyncRate, p.CPlanAhead, p.CDelayTarget, p.CFillTarget, p.CMaxRate = v, v, v, v, v
	case 4:
		p.ResyncRate, p.CPlanAhead, p.CDelayTarget, p.CFillTarget, p.CMaxRate = in.Uint32(), in.Uint32(), in.Uint32(), in.Uint32(), in.Uint32()
	}
	return p
}

// bitmap is a piece of one: of the right length or not, plain or as runs.
func (m *machine) bitmap(c drbd.Command, v *volume) []byte {
	in := m.in
	if c == drbd.CmdBitmap {
		words := (int(v.layout.Usable) + 511) / 512
		words += pick(in, 0, 0, 0, 1, -1, -words, 510-words)
		b := make([]byte, max(min(words, 510), 0)*8)
		fill := in.Byte()
		for i := range b {
			b[i] = fill
		}
		return b
	}
	bits := int(v.layout.Usable+7) / 8
	if in.Byte()&1 == 0 { // one run of the whole bitmap
		b := []byte{2 | in.Byte()&0x80, 0, 0, 0}
		code, n := uint64(bits-49)<<6|0x1f, 14 // 111110 in the order of the stream, and 8 bits
		if bits > 304 {
			code, n = uint64(bits-305)<<8|0x3f, 21
		}
		binary.LittleEndian.PutUint16(b[1:], uint16(code))
		b[3] = byte(code >> 16)
		b[0] |= byte(24-n) << 4 & 0x70
		return b
	}
	b := []byte{pick[byte](in, 2, 0x82, 0xf2, 0, 3)}
	for range in.Byte() {
		b = append(b, in.Byte())
	}
	return b
}

// mutate changes a copy of a packet.
func (m *machine) mutate(p packet) packet {
	in := m.in
	p.bytes = append([]byte(nil), p.bytes...)
	for range 1 + in.Byte()&1 {
		b := p.bytes
		if len(b) < drbd.HeaderSize100 {
			return p
		}
		switch in.Byte() % 8 {
		case 0: // a field of the payload
			if n := len(b) - drbd.HeaderSize100; n >= 4 {
				at := drbd.HeaderSize100 + int(in.Byte())*4%min(n-3, 160)
				copy(b[at:], pick(in, []byte{0, 0, 0, 0}, []byte{0xff, 0xff, 0xff, 0xff}, []byte{0x80, 0, 0, 0}, []byte{0, 0, 2, 0}, []byte{0, 0, 0, 1}))
			}
		case 1: // some bits
			at := int(in.Byte()) % min(len(b), 200)
			b[at] ^= in.Byte()
		case 2: // it is cut short
			p.bytes = b[:len(b)-min(len(b), 1+int(in.Byte()))]
		case 3: // the length lies
			binary.BigEndian.PutUint32(b[8:], pick[uint32](in, 0, 1, 24, 0xffffffff, 1<<31, 1<<20, 1<<20+24+64, 0x7fffffff))
		case 4: // more follows than it says
			p.bytes = append(b, make([]byte, in.Byte())...)
		case 5: // another command
			binary.BigEndian.PutUint16(b[6:], uint16(pick(in, commands...)))
		case 6: // another volume
			binary.BigEndian.PutUint16(b[4:], pick[uint16](in, 1, 0, 2, 0xffff))
		case 7: // the other socket
			p.sock = 1 - p.sock
		}
	}
	return p
}
