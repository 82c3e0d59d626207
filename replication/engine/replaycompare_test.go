package engine

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

type authTexts struct{ engine, peer []byte } // challenges

// hear takes one packet of the engine in: what is free is dealt with at once,
// the others wait for the capture to come to them.
func (r *replayed) hear(h heard) {
	if h.from != r.peer.data && h.from != r.peer.meta {
		return // of a connection that is over
	}
	if h.err != nil {
		h.from.ended = true
		return
	}
	if r.silent {
		return
	}
	r.numberOf(h)
	switch cmd := h.header.Command; {
	case cmd == drbd.CmdBarrier:
		h.writes, h.count, r.epoch, r.epochSize = r.epoch, r.epochSize, nil, 0
	case isWrite(cmd):
		r.keep(h)
	}
	for i, f := range freedoms {
		if f.engine != nil && f.engine(r, h) {
			r.used[i]++
			return
		}
	}
	r.got[h.from.sock] = append(r.got[h.from.sock], h)
}

// numberOf notes the sequence number of a packet.
func (r *replayed) numberOf(h heard) {
	var n uint32
	p, _, err := drbd.Decode(h.header, h.payload, r.prefix&drbd.FeatureWSame != 0)
	if err != nil {
		r.stopf("the engine's %v: %v", h.header.Command, err)
	}
	switch p := p.(type) {
	case *drbd.Data:
		n = p.Seq
	case *drbd.Trim:
		n = p.Seq
	case *drbd.BlockAck:
		n = p.Seq
	}
	if n == 0 {
		return
	}
	v := h.header.Volume
	if r.seqs[v] == nil {
		r.seqs[v] = map[uint32]bool{}
	}
	if r.seqs[v][n] {
		r.diff("%v has number %d again", h.header.Command, n)
	}
	r.seqs[v][n] = true
}

// play sends a packet of the peer's node, with this run's values in it.
func (r *replayed) play(e wiretest.Event) {
	h, err := e.DecodeHeader()
	r.check(err)
	if c := r.connOf(e.Conn); c == nil || c.closed {
		return // said to a dead node, or behind the end
	}
	if h.Command == drbd.CmdPing { // the peer goes on when it has the answer
		r.pings++
		r.check(r.peer.send(drbd.MetaSocket, drbd.CmdPing, 0, nil))
		r.pump("the answer to a ping", func() bool { return r.pings == 0 || r.peer.meta.ended })
		return
	}
	for i, f := range freedoms {
		if f.peer != nil && f.peer(r, e, h) {
			r.used[i]++
			return
		}
	}
	p, rest, err := drbd.Decode(h, e.Payload, r.prefix&drbd.FeatureWSame != 0)
	r.check(err)
	payload := e.Payload
	switch p := p.(type) {
	case *drbd.Features:
		r.prefix = r.features(p.Flags & 0xf)
	case *drbd.ProtocolPacket:
		r.alg, r.protocol = p.IntegrityAlg, e.Payload
	case *drbd.BlockRequest:
		if h.Command != drbd.CmdDataRequest {
			r.requested[p.Sector] = true
		}
	case *drbd.StatePacket:
		r.peerDiskless = drbd.StateOf(p.Word).Disk <= drbd.Failed
	case *drbd.UUIDs:
		for _, u := range []*uint64{&p.Current, &p.Bitmap, &p.History[0], &p.History[1]} {
			*u = r.here(*u)
		}
		payload = p.Append(nil)
	case *drbd.SyncUUID:
		r.newResync()
		p.UUID = r.here(p.UUID)
		payload = p.Append(nil)
	case *drbd.Data:
		p.Seq = r.next(h.Volume)
		payload = append(p.Append(nil), rest...)
		r.store(h.Volume, p.Sector, rest[r.digestSize():])
	case *drbd.Trim:
		p.Seq = r.next(h.Volume)
		payload = p.Append(nil)
		r.store(h.Volume, p.Sector, make([]byte, p.Size))
	case *drbd.BlockAck:
		if p.BlockID != drbd.ResyncID && h.Command != drbd.CmdOVResult {
			id, ok := r.ids[p.BlockID]
			if !ok {
				r.stopf("the capture's %v is for a write that the engine has not sent", h.Command)
			}
			p.BlockID = id
			r.acked[id] = true
		} else {
			r.mark(p.Sector, p.Size)
		}
		p.Seq = r.next(h.Volume)
		payload = p.Append(nil)
	case *drbd.BarrierAck:
		b, ok := r.bars[p.Barrier]
		if !ok {
			r.stopf("the capture's P_BARRIER_ACK is for an epoch that the engine has not closed")
		}
		if b.writes != p.SetSize {
			r.diff("the epoch has %d writes, the kernel's %d", b.writes, p.SetSize)
		}
		r.ackedStrict(b.handle)
		payload = drbd.BarrierAck{Barrier: b.handle, SetSize: b.writes}.Append(nil)
	case drbd.Empty:
		switch h.Command { // the others are as they are
		case drbd.CmdAuthChallenge:
			r.auth.peer = payload
		case drbd.CmdAuthResponse:
			payload = r.authResponse()
		}
	}
	if a, ok := p.(*drbd.ReqStateReply); ok && r.endFirst && h.Command == drbd.CmdConnStChgReply && a.Code > 0 {
		r.peer.data.hangUp()
		polls := 0
		r.pump("the engine to read the end", func() bool { polls++; return polls > 25 })
	}
	if err := r.peer.send(e.Socket, h.Command, h.Volume, payload); err != nil {
		r.stopf("send %v: %v; the engine: %s", h.Command, err, r.describe())
	}
	r.ackLoose()
}

// features are those of the kernel's that the engine offers.
func (r *replayed) features(flags uint32) uint32 {
	if r.cfg.Net.DataIntegrityAlg != "" {
		r.grant("features: P_ZEROES beside data-integrity-alg")
		flags &^= drbd.FeatureWZeroes
	}
	return flags
}

func (r *replayed) newResync() {
	r.auto, r.requested, r.done = false, map[drbd.Sector]bool{}, map[drbd.Sector]bool{}
	r.replied, r.allowed, r.all = map[drbd.Sector]heard{}, map[drbd.Sector]bool{}, false
}

func (r *replayed) next(volume uint16) uint32 {
	r.seq[volume]++
	return r.seq[volume]
}

func (r *replayed) digestSize() int {
	if r.alg == "" {
		return 0
	}
	d, err := drbd.NewDigest(r.alg)
	r.check(err)
	return d.Size()
}

// here is a UUID of the capture in this run: the same, unless the engine has
// made it, or it is the sync UUID of one that the engine has made.
func (r *replayed) here(u uint64) uint64 {
	id := u &^ 1
	if id == 0 || id == 4 {
		return u
	}
	if to, ok := r.uuids[id]; ok {
		return to | u&1
	}
	const step = 1 << 48
	if to, ok := r.uuids[id-step]; ok {
		r.uuids[id] = to + step
		return to + step | u&1
	}
	r.uuids[id] = id
	return u
}

// same reports whether got is what the kernel's want is in this run; a UUID that
// is new in both is taken for it.
func (r *replayed) same(want, got uint64) bool {
	id := want &^ 1
	if id == 0 || id == 4 {
		return want == got
	}
	if r.anyBit[id] {
		want, got = id, got&^1
	}
	to, ok := r.uuids[id]
	if !ok {
		if from, ok := r.uuids[id-1<<48]; ok {
			to = from + 1<<48
		} else {
			for _, used := range r.uuids {
				if used == got&^1 {
					return false
				}
			}
			to = got &^ 1
		}
		r.uuids[id] = to
	}
	return to|want&1 == got
}

// expect waits for the packet that the kernel sent here and compares it.
func (r *replayed) expect(e wiretest.Event) {
	h, err := e.DecodeHeader()
	r.check(err)
	if h.Command == drbd.CmdInitialData || h.Command == drbd.CmdInitialMeta {
		r.matched++ // connect has compared it
		return
	}
	for i, f := range freedoms {
		if f.kernel != nil && f.kernel(r, e, h) {
			r.used[i]++
			return
		}
	}
	if h.Command == drbd.CmdProtocol || h.Command == drbd.CmdProtocolUpdate {
		r.protocol, r.ownProtocol = e.Payload, e.Payload
	}
	if isWrite(h.Command) && r.parallel() {
		r.kernelLoose = true
	}
	q := &r.got[e.Socket]
	i := -1
	r.pump(fmt.Sprintf("%v %x", h.Command, e.Payload[:min(len(e.Payload), 48)]), func() bool {
		if i = r.find(e, h); i < 0 {
			r.provoke(e, h)
		}
		c := r.peer.conn(e.Socket)
		if i < 0 && len(*q) > 0 && !r.mayPass((*q)[0], e, h) {
			r.stopf("the engine sends %v, the kernel sent %v: %x", (*q)[0].header.Command, h.Command, (*q)[0].payload[:min(64, len((*q)[0].payload))])
		}
		if i < 0 && (c == nil || c.ended) {
			r.stopf("the engine closed the connection, the kernel sent %v; the engine: %s", h.Command, r.describe())
		}
		return i >= 0
	})
	got := (*q)[i]
	*q = append((*q)[:i:i], (*q)[i+1:]...)
	r.matched++
	r.received(got)
	r.compare(e, h, got)
}

// compare holds a packet of the engine against the kernel's.
func (r *replayed) compare(e wiretest.Event, h drbd.Header, got heard) {
	cmd := h.Command
	wsame := r.prefix&drbd.FeatureWSame != 0
	wp, wrest, err := drbd.Decode(h, e.Payload, cmd != drbd.CmdSizes || wsame)
	r.check(err)
	gp, grest, err := drbd.Decode(got.header, got.payload, cmd != drbd.CmdSizes || wsame)
	r.check(err)
	unlike := func() { r.diff("%v is %+v, the kernel's %+v", cmd, gp, wp) }
	switch w := wp.(type) {
	case *drbd.Features:
		g := gp.(*drbd.Features)
		if want := r.features(w.Flags); g.Max != w.Max || g.Flags&0xf != want {
			unlike()
		}
	case *drbd.StatePacket:
		if g := gp.(*drbd.StatePacket); g.Word != w.Word {
			r.diff("P_STATE %08x %v, the kernel's %08x %v", g.Word, drbd.StateOf(g.Word), w.Word, drbd.StateOf(w.Word))
		}
	case *drbd.Sizes:
		if !r.sameSizes(w, *gp.(*drbd.Sizes)) {
			unlike()
		}
	case *drbd.SyncParam89:
		if !r.sameSyncParam(h.Volume, w, *gp.(*drbd.SyncParam89)) {
			unlike()
		}
	case *drbd.UUIDs:
		if g := gp.(*drbd.UUIDs); !r.sameUUIDs(w, g) {
			r.diff("P_UUIDS %x, the kernel's %x", *g, *w)
		}
	case *drbd.SyncUUID:
		r.newResync()
		if id := w.UUID &^ 1; r.uuids[id] == 0 && r.uuids[id-1<<48] == 0 {
			r.grant("bit 0 of a random sync UUID")
			r.anyBit[id] = true
		}
		if g := gp.(*drbd.SyncUUID); !r.same(w.UUID, g.UUID) {
			r.diff("P_SYNC_UUID %x, the kernel's %x", g.UUID, w.UUID)
		}
	case *drbd.Data:
		g := gp.(*drbd.Data)
		r.compareData(h, w, g, len(wrest), !e.Whole() || bytes.Equal(wrest, grest))
	case *drbd.Trim:
		g := gp.(*drbd.Trim)
		r.compareData(h, &w.Data, &g.Data, int(w.Size), w.Size == g.Size)
	case *drbd.Barrier:
		r.bars[w.Barrier] = closedHere{gp.(*drbd.Barrier).Barrier, got.count}
	case *drbd.BlockAck:
		g := gp.(*drbd.BlockAck)
		if cmd == drbd.CmdRSIsInSync && g.BlockID != w.BlockID {
			r.grant("block_id of P_RS_IS_IN_SYNC")
			g.BlockID = w.BlockID
		}
		if g.Sector != w.Sector || g.Size != w.Size || g.BlockID != w.BlockID {
			unlike()
		}
	case *drbd.BlockRequest:
		g := gp.(*drbd.BlockRequest)
		if g.Sector != w.Sector || g.Size != w.Size || !bytes.Equal(wrest, grest) {
			unlike()
		}
	case *drbd.BlockDesc:
		g := gp.(*drbd.BlockDesc)
		if g.Sector != w.Sector || g.Size != w.Size {
			unlike()
		}
	case drbd.Empty:
		switch cmd { // the others have no fields
		case drbd.CmdAuthChallenge:
			r.auth.engine = got.payload
		case drbd.CmdAuthResponse:
			if want, err := drbd.AuthResponse(r.cfg.Net.CramHMACAlg, r.cfg.Net.SharedSecret, r.auth.peer); err != nil || !bytes.Equal(want, got.payload) {
				r.diff("P_AUTH_RESPONSE %x, want %x", got.payload, want)
			}
		default:
			if !bytes.Equal(got.payload, e.Payload) {
				r.diff("%v %x, the kernel's %x", cmd, got.payload, e.Payload)
			}
		}
	default:
		if !bytes.Equal(got.payload, e.Payload) {
			unlike()
		}
		if w, ok := wp.(*drbd.ReqStateReply); ok && cmd == drbd.CmdConnStChgReply && w.Code > 0 {
			r.granted = true
		}
	}
}

// The limits of the backing device are those of this machine.
func (r *replayed) sameSizes(w *drbd.Sizes, g drbd.Sizes) bool {
	r.grant("P_SIZES: limits of the backing device")
	g.PhysicalBlockSize, g.LogicalBlockSize, g.IOMin, g.IOOpt = w.PhysicalBlockSize, w.LogicalBlockSize, w.IOMin, w.IOOpt
	if w.DSize == 0 && g.DSize == 0 {
		r.grant("P_SIZES, P_SYNC_PARAM89 of a diskless node")
		g.DiscardEnabled = w.DiscardEnabled
	}
	return g == *w
}

func (r *replayed) sameSyncParam(vol uint16, w *drbd.SyncParam89, g drbd.SyncParam89) bool {
	if st := r.eng.Status(); st.volume(int(vol)).Disk == drbd.Diskless {
		r.grant("P_SIZES, P_SYNC_PARAM89 of a diskless node")
		g = drbd.SyncParam89{ResyncRate: 250, VerifyAlg: g.VerifyAlg, CsumsAlg: g.CsumsAlg, CPlanAhead: 20, CDelayTarget: 10, CFillTarget: 100, CMaxRate: 102400}
	}
	return g == *w
}

func (r *replayed) sameUUIDs(w, g *drbd.UUIDs) bool {
	ok := r.same(w.Current, g.Current) && r.same(w.Bitmap, g.Bitmap) && r.same(w.History[0], g.History[0]) && r.same(w.History[1], g.History[1])
	bits := g.DirtyBits
	if bits > w.DirtyBits && r.peerDiskless {
		r.grant("P_UUIDS: bits of a write that the peer has just refused")
		bits = w.DirtyBits
	}
	return ok && bits == w.DirtyBits && g.Flags == w.Flags
}

// hints are flags of a write that change nothing.
const hints = drbd.DPRWSync | drbd.DPUnplug

func (r *replayed) compareData(h drbd.Header, w, g *drbd.Data, n int, same bool) {
	if h.Command == drbd.CmdData || h.Command == drbd.CmdTrim || h.Command == drbd.CmdZeroes {
		r.ids[w.BlockID] = g.BlockID
	} else if w.BlockID != g.BlockID {
		same = false
	}
	if h.Command == drbd.CmdRSDataReply && w.Sector+8 > r.size[h.Volume] {
		r.grant("data of space that was added")
		same = true
	}
	if g.Flags != w.Flags {
		r.grant("dp_flags that are hints")
	}
	if !same || g.Sector != w.Sector || g.Flags&^hints != w.Flags&^hints {
		r.diff("%v at sector %d, flags %#x, the kernel's at %d, flags %#x, %d bytes; alike otherwise: %t", h.Command, g.Sector, g.Flags, w.Sector, w.Flags, n, same)
	}
}

func (r *replayed) authResponse() []byte {
	secret := r.cfg.Net.SharedSecret
	if r.peerSecret != "" {
		secret = r.peerSecret
	}
	b, err := drbd.AuthResponse(r.cfg.Net.CramHMACAlg, secret, r.auth.engine)
	r.check(err)
	return b
}

// compareGI waits until the metadata are as the kernel's were.
func (r *replayed) compareGI(gi wiretest.GI) {
	text := ""
	ok := r.await(func() bool {
		st := r.eng.Status()
		if st.volume(gi.Volume).Disk <= drbd.Failed {
			r.grant("metadata of a disk that is not in use")
			return true
		}
		v := st.volume(gi.Volume)
		text = fmt.Sprintf("%x %x %x", v.UUIDs.Current, v.UUIDs.Bitmap, v.UUIDs.History)
		if u := v.UUIDs; gi.Bitmap != 0 && u.Bitmap == 0 && r.same(gi.Current, u.Current) && r.same(gi.Bitmap, u.History[0]) {
			r.grant("where the UUID of a resync stands of which the target has asked for nothing")
			return true
		}
		return r.same(gi.Current, v.UUIDs.Current) && r.same(gi.Bitmap, v.UUIDs.Bitmap) &&
			r.same(gi.History[0], v.UUIDs.History[0]) && r.same(gi.History[1], v.UUIDs.History[1])
	})
	if !ok {
		r.diff("UUIDs on disk are %s, the kernel's %x %x %x", text, gi.Current, gi.Bitmap, gi.History)
	}
}

// compareProc waits until the state is as the kernel's was.
func (r *replayed) compareProc(p wiretest.Proc) {
	text := ""
	want := fmt.Sprintf("%s %s/%s %s/%s oos:%d", p.Conn, p.Role, p.Peer, p.Disk, p.PeerDisk, p.OutOfSyncKiB)
	ok := r.await(func() bool {
		s := r.eng.Status()
		if len(s.Volumes) > 1 {
			return true // the line does not say which it is about
		}
		v := s.Volumes[0]
		conn := v.Conn
		if s.Conn < drbd.Connected {
			conn = s.Conn
		}
		text = fmt.Sprintf("%v %v/%v %v/%v oos:%d", conn, s.Role, s.PeerRole, v.Disk, v.PeerDisk, v.OutOfSyncBytes>>10)
		if s.Conn >= drbd.Connected && v.Conn > drbd.Connected {
			r.grant("how far a resync has come")
			text, _, _ = strings.Cut(text, " oos")
			want, _, _ = strings.Cut(want, " oos")
		}
		return text == want
	})
	if !ok {
		r.diff("state is %s, the kernel's %s", text, want)
	}
	if p.Conn == "Connected" && p.Disk == "UpToDate" && p.PeerDisk == "UpToDate" && p.OutOfSyncKiB == 0 {
		r.compareDisks()
	}
}

// await is pump for what may never come: it gives up after a second.
func (r *replayed) await(cond func() bool) bool {
	polls := 0
	met := false
	r.pump("nothing", func() bool {
		met = cond()
		polls++
		return met || polls > 500
	})
	return met
}

// grow has the backing devices grow.
func (r *replayed) grow(e wiretest.Event) {
	f := strings.Fields(e.Text)
	mib, err := strconv.ParseInt(f[len(f)-2], 10, 64)
	r.check(err)
	if e.From == r.me {
		r.check(os.Truncate(r.cfg.Volumes[0].Disk, mib<<20))
	}
	r.image[0] = append(r.image[0], make([]byte, max(0, mib<<20-int64(len(r.image[0]))))...)
}
