package drbd_test

import (
	"bytes"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// An image is what a node's disk holds, as far as packets and commands say:
// zeroes at first.
type image struct {
	data    []byte
	unknown map[drbd.Sector]bool // may hold anything
}

func (r *replay) image(k volumeOf) *image {
	n := r.nodes[k.node]
	if n.image[k.volume] == nil {
		n.image[k.volume] = &image{unknown: map[drbd.Sector]bool{}}
	}
	i := n.image[k.volume]
	have, want := drbd.SectorOf(int64(len(i.data))), n.size[k.volume]
	if have < want {
		i.data = append(i.data, make([]byte, (want-have).Bytes())...)
		if have > 0 { // what it grew by held metadata, or anything
			i.forget(span{have, uint32((want - have).Bytes())})
		}
	}
	return i
}

func (i *image) write(s drbd.Sector, data []byte) {
	if end := int(s.Bytes()) + len(data); end > len(i.data) {
		i.data = append(i.data, make([]byte, end-len(i.data))...)
	}
	copy(i.data[s.Bytes():], data)
	for n := range drbd.SectorOf(int64(len(data))) {
		delete(i.unknown, s+n)
	}
}

func (i *image) read(s span) []byte { return i.data[s.sector.Bytes() : s.sector.Bytes()+int64(s.size)] }

// holds reports whether the image has data at s, or may have.
func (i *image) holds(s drbd.Sector, data []byte) bool {
	for n := range drbd.SectorOf(int64(len(data))) {
		if !i.unknown[s+n] && !bytes.Equal(i.read(span{s + n, 512}), data[n.Bytes():(n+1).Bytes()]) {
			return false
		}
	}
	return true
}

func (i *image) forget(s span) {
	for n := range drbd.Sector(s.size / 512) {
		i.unknown[s.sector+n] = true
	}
}

// poke applies the writes of a command that no packet tells of: those of a node
// that is alone, and those behind DRBD's back. Of the others it is not known
// when, and whether, they reach this disk, until their packet says so.
func (r *replay) poke(e wiretest.Event) {
	rows, _ := wiretest.Pokes(e.Text)
	for _, row := range rows {
		for _, p := range row {
			k := volumeOf{e.From, uint16(p.Volume)}
			if p.Op == 'f' || p.Op == 'r' || !p.Below && !r.nodes[e.From].attached(k.volume) {
				continue
			}
			if p.Below || !r.connected() {
				r.image(k).write(drbd.SectorOf(p.Offset), bytes.Repeat([]byte{p.Fill}, int(p.Length)))
			} else {
				r.image(k).forget(span{drbd.SectorOf(p.Offset), uint32(p.Length)})
			}
		}
	}
}

// A resynced is what a resync is about.
type resynced struct {
	source string
	union  map[uint64]bool // bits of both bitmaps
	asked  map[uint64]bool // blocks asked for
}

func (rs *resynced) bits() map[uint64]bool {
	if rs == nil {
		return nil
	}
	return rs.union
}

// began reports whether the target has its sync UUID.
func (rs *resynced) began() bool { return rs.asked != nil }

// bitmap takes one packet of a bitmap.
func (r *replay) bitmap(e wiretest.Event, k volumeOf, h drbd.Header) {
	s := r.session
	if s.bitmaps[k] == nil {
		s.bitmaps[k] = newReceived((uint64(r.nodes[k.node].size[k.volume]) + 7) / 8)
	}
	b := s.bitmaps[k]
	if !b.packet(r.t, e, h.Command) {
		return
	}
	delete(s.bitmaps, k)
	rs := s.resync[k.volume]
	if rs == nil || rs.began() {
		rs = &resynced{source: e.From, union: map[uint64]bool{}}
		s.resync[k.volume] = rs
		if u, told := s.uuids[k]; told {
			n := uint64(0)
			for _, set := range b.bits.set {
				if set {
					n++
				}
			}
			r.rule(e, n == u.DirtyBits, "the first bitmap has the bits that P_UUIDS announced", "%d, announced %d", n, u.DirtyBits)
		}
	}
	for i, set := range b.bits.set {
		if set {
			rs.union[uint64(i)] = true
		}
	}
}

// askedFor checks what was requested in a resync that has ended.
func (r *replay) askedFor(e wiretest.Event, rs *resynced) {
	if r.session.cut || len(rs.union) == 0 {
		return
	}
	same := len(rs.asked) == len(rs.union)
	for b := range rs.asked {
		same = same && rs.union[b]
	}
	r.rule(e, same, "the blocks asked for are the union of both bitmaps", "%d blocks, %d bits", len(rs.asked), len(rs.union))
}

// equalImages compares the copies, which are said to be in sync.
func (r *replay) equalImages(e wiretest.Event) {
	if r.session.cut || strings.Contains(r.t.Name(), "verify") && r.nodes["A"].role == drbd.Secondary {
		return // a verify compares them, or three blocks were changed
	}
	for v := range r.nodes["A"].size {
		a, b := r.image(volumeOf{"A", v}), r.image(volumeOf{"B", v})
		for s := range b.unknown {
			a.unknown[s] = true
		}
		r.rule(e, len(a.data) == len(b.data) && a.holds(0, b.data), "copies that are in sync are equal", "volume %d", v)
	}
}
