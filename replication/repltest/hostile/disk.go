package hostile

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// disk is the data of a volume: of each sector its first four bytes, now and as
// they would be found after a power cut.
type disk struct {
	now, durable    []uint32
	version, synced []uint32 // number of the write that made them so
	writes          uint32
}

func newDisk(sectors int) *disk {
	table := func() []uint32 { return make([]uint32, sectors) }
	return &disk{now: table(), durable: table(), version: table(), synced: table()}
}

func (d *disk) write(sector drbd.Sector, stamps []uint32) {
	d.writes++
	for i, s := range stamps {
		d.now[int(sector)+i], d.version[int(sector)+i] = s, d.writes
	}
}

// sync begins an fdatasync; what it returns ends it.
func (d *disk) sync() func() {
	image, version := append([]uint32(nil), d.now...), append([]uint32(nil), d.version...)
	return func() {
		for i, v := range version {
			if v > d.synced[i] {
				d.durable[i], d.synced[i] = image[i], v
			}
		}
	}
}

// metadata is the device with the metadata of a volume, in memory.
type metadata struct{ b []byte }

func (m *metadata) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, len(m.b))
	}
	return copy(p, m.b[off:]), nil
}

func (m *metadata) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(p), off, len(m.b))
	}
	return copy(m.b[off:], p), nil
}

func (m *metadata) Sync() error { return nil }

// newMetadata is what create-md leaves; of a pair in sync also what its first
// sync does.
func newMetadata(sectors int, synced bool) (*metadata, meta.Layout) {
	l, err := meta.NewLayout(meta.FlexExternal, 0, int64(sectors)*512, 1<<20, 1, 8)
	if err != nil {
		panic(err)
	}
	l.BitmapBytes = min(l.BitmapBytes, (int64(sectors)/(8*4096*8)+1)*4096) // no more memory than a device of this size needs
	m := &metadata{make([]byte, l.Bitmap+l.BitmapBytes)}
	if err := meta.Create(m, l, meta.CreateOptions{}); err != nil {
		panic(err)
	}
	if !synced {
		return m, l
	}
	sb, _, err := meta.ReadSuperblock(m, l)
	if err != nil {
		panic(err)
	}
	sb.LASize = l.Usable
	sb.UUIDs = meta.UUIDs{Current: 0x1111111111111110, History: [2]uint64{0x2222222222222220, 4}}
	sb.Flags |= meta.MDFConsistent | meta.MDFWasUpToDate
	if err := meta.WriteSuperblock(m, l, sb); err != nil {
		panic(err)
	}
	return m, l
}
