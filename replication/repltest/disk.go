package repltest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

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
type stamp = uint64

// dataDisk is the data of one volume: a stamp per sector, as it is read now
// and as it would be found after a power failure.
type dataDisk struct {
	now      []stamp
	durable  []stamp
	unsynced map[int]struct{}
	version  []uint64 // of each sector now: counts the writes
	synced   []uint64 // of each sector as it is durable
	writes   uint64
}

func newDataDisk(sectors int) *dataDisk {
	return &dataDisk{
		now: make([]stamp, sectors), durable: make([]stamp, sectors), unsynced: map[int]struct{}{},
		version: make([]uint64, sectors), synced: make([]uint64, sectors),
	}
}

func (d *dataDisk) write(sector int, s []stamp) {
	d.writes++
	copy(d.now[sector:], s)
	for i := range s {
		d.unsynced[sector+i] = struct{}{}
		d.version[sector+i] = d.writes
	}
}

// writeThrough is write with FUA.
func (d *dataDisk) writeThrough(sector int, s []stamp) {
	d.write(sector, s)
	for i := range s {
		d.sync(sector+i, s[i], d.writes)
	}
}

func (d *dataDisk) sync(i int, s stamp, version uint64) {
	if d.synced[i] < version {
		d.durable[i], d.synced[i] = s, version
	}
	if d.version[i] == version {
		delete(d.unsynced, i)
	}
}

// A sectorVersion is what one sector held at some time.
type sectorVersion struct {
	sector  int
	stamp   stamp
	version uint64
}

// snapshot is what an fdatasync that begins now has to make durable.
func (d *dataDisk) snapshot() []sectorVersion {
	snap := make([]sectorVersion, 0, len(d.unsynced))
	for i := range d.unsynced {
		snap = append(snap, sectorVersion{i, d.now[i], d.version[i]})
	}
	return snap
}

func (d *dataDisk) commit(snap []sectorVersion) {
	for _, v := range snap {
		d.sync(v.sector, v.stamp, v.version)
	}
}

// crash is a power failure: each sector that is not synced survives with
// probability p.
func (d *dataDisk) crash(rng *dice, p float64) {
	for _, i := range sortedKeys(d.unsynced) {
		if rng.chance(p) {
			d.durable[i] = d.now[i]
		}
	}
	copy(d.now, d.durable)
	copy(d.synced, d.version)
	clear(d.unsynced)
}

// metaDisk is the metadata device of one volume, as bytes. It satisfies
// meta.Device for what happens at an attach.
type metaDisk struct {
	now      []byte
	durable  []byte
	unsynced map[int]struct{} // sectors
	durably  func(commit func()) bool
}

func newMetaDisk(size int) *metaDisk {
	return &metaDisk{now: make([]byte, size), durable: make([]byte, size), unsynced: map[int]struct{}{}}
}

// clone is a copy of a disk on which everything is durable.
func (d *metaDisk) clone() *metaDisk {
	return &metaDisk{now: slices.Clone(d.now), durable: slices.Clone(d.durable), unsynced: map[int]struct{}{}}
}

// ReadAt is io.ReaderAt.
func (d *metaDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(d.now)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(d.now))
	}
	return copy(p, d.now[off:]), nil
}

// WriteAt is io.WriterAt.
func (d *metaDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off%sectorSize != 0 || len(p)%sectorSize != 0 || off+int64(len(p)) > int64(len(d.now)) {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(p), off, len(d.now))
	}
	copy(d.now[off:], p)
	for i := range len(p) / sectorSize {
		d.unsynced[int(off)/sectorSize+i] = struct{}{}
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

func (d *metaDisk) commit() {
	for i := range d.unsynced {
		copy(d.durable[i*sectorSize:][:sectorSize], d.now[i*sectorSize:])
	}
	clear(d.unsynced)
}

func (d *metaDisk) crash(rng *dice, p float64) {
	for _, i := range sortedKeys(d.unsynced) {
		if rng.chance(p) {
			copy(d.durable[i*sectorSize:][:sectorSize], d.now[i*sectorSize:])
		}
	}
	copy(d.now, d.durable)
	clear(d.unsynced)
}

func sortedKeys(m map[int]struct{}) []int {
	keys := make([]int, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// stampsOf reads the stamps of a payload: the first 8 bytes of each sector.
func stampsOf(data []byte) []stamp {
	s := make([]stamp, len(data)/sectorSize)
	for i := range s {
		s[i] = binary.BigEndian.Uint64(data[i*sectorSize:])
	}
	return s
}

// payloadOf is a payload with these stamps.
func payloadOf(s []stamp) []byte {
	data := make([]byte, len(s)*sectorSize)
	for i, v := range s {
		binary.BigEndian.PutUint64(data[i*sectorSize:], v)
	}
	return data
}

// layoutOf is the layout of a volume's metadata on its own device.
func layoutOf(sectors int) (meta.Layout, int) {
	const metaBytes = 1 << 20
	l, err := meta.NewLayout(meta.FlexExternal, 0, int64(sectors)*sectorSize, metaBytes, 1, 8)
	if err != nil {
		panic(err)
	}
	return l, metaBytes
}
