package repltest

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// The invariant of all resyncs, which holds at any moment and not only at rest:
// a block that differs between the two disks of a pair is marked on one of them.
// It is checked twice. As the nodes are, what a running one has in memory
// counts (marksMustHold). As if the power of both went now, only the metadata on
// disk does, and each disk may be found with or without what is not synced yet
// (I2, I3; crashMarksMustHold).

// checkMarks is called now and then, and before and after each crash.
func (w *World) checkMarks(when string) {
	if !w.judging || w.failure != nil {
		return
	}
	for i := range w.Nodes[0].Vols {
		if w.Model.vols[i].once = w.Model.vols[i].once || w.isPair(i); !w.Model.vols[i].once || w.Model.renamed {
			continue
		}
		w.marksMustHold(i, when)
		w.crashMarksMustHold(i, when)
	}
}

// isPair reports whether both copies of volume i are Connected and UpToDate.
func (w *World) isPair(i int) bool {
	a, b := w.Nodes[0], w.Nodes[1]
	return a.alive && b.alive && a.link != nil && a.link == b.link && isPair(a.state(i)) && isPair(b.state(i))
}

// marksMustHold: what differs now is marked in the memory of a node that runs
// with its disk, on the disk of one that does not, or is being written. The
// activity log counts for what was not acknowledged by a peer that is out of
// reach, or under protocol A and B.
func (w *World) marksMustHold(vol int, when string) {
	var v [2]*Volume
	for i, n := range w.Nodes {
		v[i] = n.Vols[vol]
	}
	a, b := w.Nodes[0], w.Nodes[1]
	linked := a.alive && b.alive && a.link != nil && a.link == b.link && v[0].attached && v[1].attached &&
		a.state(vol).Conn >= drbd.Connected && b.state(vol).Conn >= drbd.Connected
	byLog := !linked || a.protocol != 'C' || b.protocol != 'C'
	end := w.fromTheFirst()
	for k, word := range v[0].data.differ {
		for ; word != 0; word &= word - 1 {
			i := k*64 + bits.TrailingZeros64(word)
			if i >= end || w.knows(0, v[0], i, byLog) || w.knows(1, v[1], i, byLog) || w.Model.beingWritten(vol, i) || w.Model.onItsWay(vol, i) ||
				w.Model.isPlanted(uint16(vol), i) || w.unrelated(v) {
				continue
			}
			w.fail("%s: sector %d of volume %d holds %d on node a and %d on node b, and neither marks it: a %s, b %s",
				when, i, vol, v[0].data.now[i], v[1].data.now[i], w.describe(0, vol), w.describe(1, vol))
			return
		}
	}
}

func (w *World) describe(node, vol int) string {
	n := w.Nodes[node]
	if !n.alive {
		return "is down"
	}
	return fmt.Sprint(n.state(vol))
}

// mustBeRemade: at the end of the resync that an invalidate asked for, nothing
// differs of what was there before, whatever the disks had lied about.
func (m *Model) mustBeRemade(n *Node, v *Volume) {
	until := m.vols[v.num].remade[n.id]
	pv := m.w.Nodes[1-n.id].Vols[v.num]
	for _, p := range slices.SortedFunc(maps.Keys(m.planted), func(x, y plant) int { return cmp.Or(x.vol-y.vol, x.block-y.block) }) {
		if p.vol != int(v.num) || m.planted[p] > until {
			continue
		}
		for i := p.block * 8; i < min(p.block*8+8, m.w.fromTheFirst()); i++ {
			if v.data.now[i] != pv.data.now[i] && !m.differMarked(v, pv, i) && !m.beingWritten(p.vol, i) {
				m.w.fail("%s/%d was invalidated and made anew, but sector %d holds %d, and %d on the other node", n.name, v.num, i, v.data.now[i], pv.data.now[i])
				return
			}
		}
	}
}

// fromTheFirst is how many sectors both disks have had from the beginning, in
// whole blocks: what they grow by has rules of its own.
func (w *World) fromTheFirst() int {
	n := w.cfg.Sectors
	if other := w.cfg.OtherSize; other != 0 {
		n = min(n, other)
	}
	return n / 8 * 8
}

// knows reports whether node n will have a sector resynced as it is now.
func (w *World) knows(n int, v *Volume, sector int, byLog bool) bool {
	if w.Nodes[n].alive && v.attached {
		if bit := uint64(sector / 8); bit >= v.bitmap.Bits() || v.bitmap.Test(bit) {
			return true
		}
		return byLog && v.known(now).names(sector)
	}
	k := v.known(now)
	return k.marks(sector) || k.names(sector)
}

// crashMarksMustHold: whatever a power cut of both nodes leaves, a sector that
// may differ then is marked on a disk.
func (w *World) crashMarksMustHold(vol int, when string) {
	if !w.cfg.Disk[0].ALUpdates || w.cfg.Internal {
		return // without a log everything is resynced; and it may be on the move
	}
	v := [2]*Volume{w.Nodes[0].Vols[vol], w.Nodes[1].Vols[vol]}
	x, y := v[0].data, v[1].data
	end := w.fromTheFirst()
	look := func(i int) bool {
		if i >= end || x.now[i] == y.now[i] && x.now[i] == x.durable[i] && y.now[i] == y.durable[i] ||
			v[0].sure(i) || v[1].sure(i) || w.Model.isPlanted(uint16(vol), i) || w.unrelated(v) {
			return true
		}
		w.fail("%s: if the power of both nodes went now, sector %d of volume %d could be %d or %d on node a and %d or %d on node b, and no disk would mark it: a %s, b %s",
			when, i, vol, x.now[i], x.durable[i], y.now[i], y.durable[i], w.describe(0, vol), w.describe(1, vol))
		return false
	}
	for k, word := range x.differ {
		for ; word != 0; word &= word - 1 {
			if !look(k*64 + bits.TrailingZeros64(word)) {
				return
			}
		}
	}
	for _, d := range []*dataDisk{x, y} {
		for i := range d.cache {
			if !look(int(d.cache[i].sector)) {
				return
			}
		}
	}
}

// sure reports whether a sector is marked on this disk, whatever of the metadata
// survives.
func (v *Volume) sure(sector int) bool {
	for _, im := range []image{durable, now} {
		if k := v.known(im); !k.marks(sector) && !k.names(sector) {
			return false
		}
	}
	return true
}

// unrelated reports whether the generations on disk do not tell how the copies
// are related: a new disk, two generations apart, a split brain. Then there is
// no resync, or it is a full one.
func (w *World) unrelated(v [2]*Volume) bool {
	x, y := v[0].known(now).sb.UUIDs, v[1].known(now).sb.UUIDs
	same := func(p, q uint64) bool { return p&^1 == q&^1 }
	return !same(x.Current, y.Current) && !same(x.Bitmap, y.Current) && !same(x.Current, y.Bitmap) && !same(x.Bitmap, y.Bitmap)
}

// image is one of the two extremes of what is found after a power cut.
type image uint8

const (
	now     image = iota // everything that was written
	durable              // what was synced
)

// knowledge is what the metadata of a disk say, as an attach would find them.
type knowledge struct {
	disk   *metaDisk
	at     [2]uint64 // of d.changes
	sb     meta.Superblock
	all    bool // everything counts as marked
	bitmap []byte
	read   bool // hot is valid
	hot    []meta.Extent
	layout meta.Layout
	from   *metaImage
}

// metaImage reads one image of a metadata disk.
type metaImage struct {
	d *metaDisk
	b []byte
}

// ReadAt is io.ReaderAt.
func (m *metaImage) ReadAt(p []byte, off int64) (int, error) {
	off -= int64(m.d.base)
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(m.b))
	}
	return copy(p, m.b[off:]), nil
}

// known is what an image of v's metadata says. It is read again when that has changed.
func (v *Volume) known(im image) *knowledge {
	k, d := &v.knowledge[im], v.meta
	if k.disk == d && k.at == d.changes {
		return k
	}
	b := d.now
	if im == durable {
		b = d.durable
	}
	*k = knowledge{disk: d, at: d.changes, from: &metaImage{d, b}}
	sb, l, err := meta.ReadSuperblock(k.from, v.layout)
	if err != nil { // being moved, or made anew
		k.all = true
		return k
	}
	crashed := sb.Flags&(meta.MDFCrashedPrimary|meta.MDFPrimaryInd) != 0
	k.sb, k.layout = sb, l
	k.all = sb.Flags&meta.MDFFullSync != 0 || crashed && sb.Flags&meta.MDFALDisabled != 0
	k.bitmap = b[l.Bitmap-int64(d.base):]
	wrote := sb.Flags&meta.MDFPrimaryInd != 0 || sb.UUIDs.Bitmap != 0
	k.read = sb.Clean() || !wrote || sb.Unclean && sb.Flags&meta.MDFALClean != 0 // the log does not count
	return k
}

// marks reports whether a sector's bit is set.
func (k *knowledge) marks(sector int) bool {
	bit := sector / 8
	return k.all || bit/8 >= len(k.bitmap) || k.bitmap[bit/8]>>(bit%8)&1 != 0
}

// names reports whether the log names the extent of a sector, and will be applied.
func (k *knowledge) names(sector int) bool {
	if k.all {
		return true
	}
	if !k.read {
		k.read = true
		hot, err := meta.Replay(k.layout.ALBlocks, meta.ReadRing(k.from, k.layout))
		if err != nil {
			k.all = true // an attach reports it
			return true
		}
		k.hot = hot
	}
	_, ok := slices.BinarySearch(k.hot, meta.Extent(sector/extentSectors))
	return ok
}
