package repltest

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/pollux-project/pollux/replication/meta"
)

// ErrIO is what a failing disk answers.
var ErrIO = errors.New("input/output error")

// errPowerCut is the answer of a machine that is no more.
var errPowerCut = errors.New("power cut")

const (
	sectorSize = 512
	blockSize  = 4096
)

// A stamp is the content of one sector: the number of the write that put it
// there, 0 for zeroes.
type stamp = uint32

// dataDisk is the data of one volume: a stamp per sector, as it is read now
// and as it would be found after a power failure.
type dataDisk struct {
	now     []stamp
	durable []stamp
	version []uint32        // of each sector now: counts the writes
	synced  []uint32        // of each sector as it is durable
	cache   []sectorVersion // written since the last fdatasync, in this order
	writes  uint32
	twin    *dataDisk // of the other node
	differ  []uint64  // bit set: this sector is not what the twin has; both share it
}

// A sectorVersion is what one sector held at some time.
type sectorVersion struct {
	sector  uint32
	stamp   stamp
	version uint32
}

func newDataDisk(m *arena, sectors int) *dataDisk {
	d := &dataDisk{now: m.table(sectors), durable: m.table(sectors), version: m.table(sectors), synced: m.table(sectors)}
	m.lend(d)
	return d
}

// pair has two disks keep track of where they differ.
func pair(a, b *dataDisk) {
	a.differ = make([]uint64, (min(len(a.now), len(b.now))+63)/64)
	a.twin, b.twin, b.differ = b, a, a.differ
}

// put is what a sector is read as from now on.
func (d *dataDisk) put(sector int, s stamp) {
	d.now[sector] = s
	if d.twin == nil || sector >= len(d.twin.now) {
		return
	}
	if bit := uint64(1) << (sector & 63); d.twin.now[sector] != s {
		d.differ[sector>>6] |= bit
	} else {
		d.differ[sector>>6] &^= bit
	}
}

func (d *dataDisk) write(sector int, s []stamp) {
	d.writes++
	for i, x := range s {
		d.put(sector+i, x)
		d.version[sector+i] = d.writes
		d.cache = append(d.cache, sectorVersion{uint32(sector + i), x, d.writes})
	}
}

// writeThrough is write with FUA.
func (d *dataDisk) writeThrough(sector int, s []stamp) {
	d.write(sector, s)
	for i, x := range s {
		d.durable[sector+i], d.synced[sector+i] = x, d.writes
	}
	d.cache = d.cache[:len(d.cache)-len(s)]
}

// commit ends an fdatasync that began when so many writes were done.
func (d *dataDisk) commit(writes uint32) {
	n := 0
	for ; n < len(d.cache) && d.cache[n].version <= writes; n++ {
		if c := d.cache[n]; d.synced[c.sector] < c.version {
			d.durable[c.sector], d.synced[c.sector] = c.stamp, c.version
		}
	}
	d.cache = d.cache[:copy(d.cache, d.cache[n:])]
}

// CrashClone makes the disk what a clone of it would be after a power cut: of
// what was written to each sector since it was last synced, those versions are
// there that survive. They do so in any order among the sectors; an older
// version may be all that arrives.
func (d *dataDisk) CrashClone(survives func() bool) {
	for _, c := range d.cache {
		if survives() && d.synced[c.sector] < c.version {
			d.durable[c.sector], d.synced[c.sector] = c.stamp, c.version
		}
	}
	for _, c := range d.cache {
		d.put(int(c.sector), d.durable[c.sector])
		d.synced[c.sector] = d.version[c.sector]
	}
	d.cache = d.cache[:0]
}

// metaDisk is the metadata device of one volume, as bytes. It satisfies
// meta.Device for what happens at an attach.
type metaDisk struct {
	base     int // bytes of data in front, which are not kept here
	now      []byte
	durable  []byte
	unsynced []uint64  // a bit for each sector
	changes  [2]uint64 // how often each image has changed
	durably  func(commit func()) bool
}

func newMetaDisk(m *arena, base, end int) *metaDisk {
	size := end - base
	return &metaDisk{base: base, now: m.disk(size), durable: m.disk(size), unsynced: make([]uint64, (size/sectorSize+63)/64)}
}

// clone is a copy of a disk on which everything is durable.
func (d *metaDisk) clone(m *arena) *metaDisk {
	c := newMetaDisk(m, d.base, d.end())
	copy(c.now, d.now)
	copy(c.durable, d.durable)
	return c
}

func (d *metaDisk) end() int { return d.base + len(d.now) }

// durableAt is what would be found from off on after a power failure.
func (d *metaDisk) durableAt(off int64) []byte { return d.durable[int(off)-d.base:] }

// ReadAt is io.ReaderAt.
func (d *metaDisk) ReadAt(p []byte, off int64) (int, error) {
	if off -= int64(d.base); off < 0 || off+int64(len(p)) > int64(len(d.now)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(d.now))
	}
	return copy(p, d.now[off:]), nil
}

// WriteAt is io.WriterAt.
func (d *metaDisk) WriteAt(p []byte, off int64) (int, error) {
	if off -= int64(d.base); off < 0 || off%sectorSize != 0 || len(p)%sectorSize != 0 || off+int64(len(p)) > int64(len(d.now)) {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(p), off, len(d.now))
	}
	d.changes[now]++
	copy(d.now[off:], p)
	for i := int(off) / sectorSize; i < (int(off)+len(p))/sectorSize; i++ {
		d.unsynced[i>>6] |= 1 << (i & 63)
	}
	return len(p), nil
}

// Sync makes everything durable, unless the power goes before.
func (d *metaDisk) Sync() error {
	if d.durably == nil {
		d.commit()
		return nil
	}
	if !d.durably(d.commit) {
		return errPowerCut
	}
	return nil
}

func (d *metaDisk) commit() { d.destage(func() bool { return true }) }

// CrashClone makes the disk what a clone of it would be after a power cut.
func (d *metaDisk) CrashClone(survives func() bool) {
	d.changes[now]++
	d.destage(survives)
	copy(d.now, d.durable)
}

// destage writes those of the unsynced sectors that it is told to.
func (d *metaDisk) destage(write func() bool) {
	d.changes[durable]++
	for k, word := range d.unsynced {
		for ; word != 0; word &= word - 1 {
			if i := k*64 + bits.TrailingZeros64(word); write() {
				copy(d.durable[i*sectorSize:][:sectorSize], d.now[i*sectorSize:])
			}
		}
	}
	clear(d.unsynced)
}

// layoutOf is the layout of a volume's metadata on its own device, and how much
// of that is used: the smallest device is 1 MiB, nearly all of it empty. There is
// room for twice the size.
func layoutOf(sectors int) (l meta.Layout, used int) {
	const metaBytes = 1 << 20
	l, err := meta.NewLayout(meta.FlexExternal, 0, int64(sectors)*sectorSize, metaBytes, 1, 8)
	if err != nil {
		panic(err)
	}
	l.BitmapBytes = min(l.BitmapBytes, int64(2*sectors/(8*blockSize/sectorSize)/blockSize+1)*blockSize)
	return l, int(l.Bitmap + l.BitmapBytes)
}
