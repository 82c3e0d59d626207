package engine

import (
	"bytes"
	"os"
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// cut makes up for what a capture leaves out: as source of a resync the peer
// answers whatever it is asked; as target, or source of a verify, it does the
// rest of it by itself, block by block.
func (r *replayed) cut(e wiretest.Event) {
	if r.isTarget() {
		r.all = true
		r.answer()
		return
	}
	for _, cmd := range []drbd.Command{drbd.CmdRSDataRequest, drbd.CmdOVRequest} {
		if e.Left[cmd] > 0 {
			r.auto = true
			r.doTheRest(cmd)
		}
	}
}

// isTarget reports whether it is the engine that asks.
func (r *replayed) isTarget() bool {
	c := r.eng.Status().Volumes[0].Conn
	return c == drbd.SyncTarget || c == drbd.VerifyS
}

// doTheRest asks for all blocks that the peer has not acknowledged yet, and for
// whose answer it does not wait.
func (r *replayed) doTheRest(cmd drbd.Command) {
	for s := range r.requested {
		if !r.done[s] {
			r.gaps[s] = true
		}
	}
	for s, h := range r.replied {
		if !r.done[s] {
			r.gapAnswer(h)
		}
	}
	for i := 0; i < len(r.got[drbd.DataSocket]); { // answers that have come
		if h := r.got[drbd.DataSocket][i]; isBlockAnswer(h.header.Command) && r.gapAnswer(h) {
			r.got[drbd.DataSocket] = slices.Delete(r.got[drbd.DataSocket], i, i+1)
			continue
		}
		i++
	}
	few := func(n int) func() bool {
		return func() bool { return len(r.gaps) <= n || r.peer.data.ended }
	}
	for s := drbd.Sector(0); s < r.size[0]; s += 8 {
		if r.done[s] || r.gaps[s] {
			continue
		}
		n := min(8, r.size[0]-s)
		q := drbd.BlockRequest{Sector: s, BlockID: drbd.ResyncID, Size: uint32(n.Bytes())}
		r.gaps[s] = true
		r.check(r.peer.send(drbd.DataSocket, cmd, 0, q.Append(nil)))
		r.pump("the answer for a block that was cut", few(64))
	}
	r.pump("the answers for the blocks that were cut", few(0))
}

func isBlockAnswer(c drbd.Command) bool { return c == drbd.CmdRSDataReply || c == drbd.CmdOVReply }

// gapAnswer takes the engine's answer to doTheRest and says what the peer makes
// of it.
func (r *replayed) gapAnswer(h heard) bool {
	cmd := h.header.Command
	if !isBlockAnswer(cmd) {
		return false
	}
	var d drbd.Data // the sector is at the same place in both
	r.check(d.Decode(h.payload[:24]))
	if !r.gaps[d.Sector] {
		return false
	}
	delete(r.gaps, d.Sector)
	r.received(h)
	a := drbd.BlockAck{Sector: d.Sector, BlockID: drbd.ResyncID, Size: uint32(len(h.payload) - 24), Seq: r.next(0)}
	answer := drbd.CmdRSWriteAck
	if cmd == drbd.CmdOVReply {
		var q drbd.BlockRequest
		r.check(q.Decode(h.payload[:24]))
		answer, a.BlockID, a.Size = drbd.CmdOVResult, drbd.OVInSync, q.Size
		if !bytes.Equal(r.digest(r.cfg.Net.VerifyAlg, r.load(0, d.Sector, a.Size)), h.payload[24:]) {
			a.BlockID = drbd.OVOutOfSync
		}
	}
	r.mark(d.Sector, a.Size)
	r.check(r.peer.send(drbd.MetaSocket, answer, 0, a.Append(nil)))
	return true
}

// received has the peer's disk hold what a resync brings from the engine.
func (r *replayed) received(h heard) {
	switch h.header.Command { // the others bring nothing
	case drbd.CmdRSDataReply:
		var d drbd.Data
		r.check(d.Decode(h.payload))
		r.store(h.header.Volume, d.Sector, h.payload[24+r.ownDigestSize():])
		r.replied[d.Sector] = h
	case drbd.CmdOVReply:
		var q drbd.BlockRequest
		r.check(q.Decode(h.payload[:24]))
		r.replied[q.Sector] = h
	case drbd.CmdRSDeallocated:
		var d drbd.BlockDesc
		r.check(d.Decode(h.payload))
		r.store(h.header.Volume, d.Sector, make([]byte, d.Size))
	}
}

// mark notes what the peer has acknowledged.
func (r *replayed) mark(s drbd.Sector, size uint32) {
	for n := range drbd.SectorOf(int64(size)) {
		r.done[s+n] = true
	}
}

func (r *replayed) store(v uint16, s drbd.Sector, data []byte) {
	if end := s.Bytes() + int64(len(data)); end <= int64(len(r.image[v])) {
		copy(r.image[v][s.Bytes():end], data)
	}
}

func (r *replayed) load(v uint16, s drbd.Sector, n uint32) []byte {
	if end := s.Bytes() + int64(n); end > int64(len(r.image[v])) {
		r.stopf("the engine asks for sector %d, %d bytes: beyond the end", s, n)
	}
	return r.image[v][s.Bytes() : s.Bytes()+int64(n)]
}

// compareDisks holds the engine's disks against the peer's: both nodes say that
// they are in sync. Space that was added holds what it held.
func (r *replayed) compareDisks() {
	if r.racing() {
		return
	}
	for _, v := range r.cfg.Volumes {
		b, err := os.ReadFile(v.Disk)
		r.check(err)
		size := r.size[uint16(v.Number)].Bytes()
		for off := int64(0); off < size; off += 4096 {
			end := min(off+4096, size)
			if !bytes.Equal(b[off:end], r.image[uint16(v.Number)][off:end]) {
				r.diff("volume %d differs from the peer's at byte %d: %x, the peer has %x", v.Number, off, b[off:off+16], r.image[uint16(v.Number)][off:off+16])
				return
			}
		}
	}
}

// racing reports whether both nodes write at once: which write wins is not known
// to the peer, who only repeats its own.
func (r *replayed) racing() bool {
	s := r.eng.Status()
	return s.Role == drbd.Primary && s.PeerRole == drbd.Primary
}

// keep has the peer's disk hold a write of the engine.
func (r *replayed) keep(h heard) {
	var d drbd.Data
	r.check(d.Decode(h.payload))
	r.epochSize++
	if d.Flags&(drbd.DPSendReceiveAck|drbd.DPSendWriteAck) != 0 {
		r.epoch = append(r.epoch, d.BlockID)
	}
	r.looseEpochs = r.looseEpochs || r.parallel()
	if h.header.Command == drbd.CmdData {
		r.store(h.header.Volume, d.Sector, h.payload[24+r.ownDigestSize():])
		return
	}
	var t drbd.Trim
	r.check(t.Decode(h.payload))
	r.store(h.header.Volume, d.Sector, make([]byte, t.Size))
}

// ownDigestSize is that of the engine's packets.
func (r *replayed) ownDigestSize() int {
	if r.cfg.Net.DataIntegrityAlg == "" {
		return 0
	}
	d, err := drbd.NewDigest(r.cfg.Net.DataIntegrityAlg)
	r.check(err)
	return d.Size()
}

// peersCommand applies to the peer's disk what its operator did while nobody
// looked.
func (r *replayed) peersCommand(e wiretest.Event) {
	rows, _ := wiretest.Pokes(e.Text)
	for _, p := range slices.Concat(rows...) {
		if p.Op != 'r' && p.Op != 'f' && (p.Below || r.peer.data == nil || r.hungUp) {
			r.store(uint16(p.Volume), drbd.SectorOf(p.Offset), bytes.Repeat([]byte{p.Fill}, int(p.Length)))
		}
	}
}
