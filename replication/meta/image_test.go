package meta_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
	"github.com/pollux-project/pollux/replication/repltest/hostile"
)

// image is a device in memory that notes what is written outside of its metadata.
type image struct {
	b        []byte
	from, to int64 // of the metadata
	outside  error
}

func (d *image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(d.b))-int64(len(p)) {
		return 0, fmt.Errorf("read of %d bytes at %d of %d: %w", len(p), off, len(d.b), io.EOF)
	}
	return copy(p, d.b[off:]), nil
}

func (d *image) WriteAt(p []byte, off int64) (int, error) {
	if off < d.from || off > d.to-int64(len(p)) {
		d.outside = fmt.Errorf("write of %d bytes at %d, the metadata are at %d to %d", len(p), off, d.from, d.to)
		return 0, d.outside
	}
	return copy(d.b[off:], p), nil
}

func (d *image) Sync() error { return nil }

// imageMemory is what looking at a damaged image may allocate, besides the
// image: its bitmap some times over, and texts.
const imageMemory = 48 << 20

// FuzzImage damages the metadata of a device and does with them all that the
// programs do: nothing panics, nothing is written outside of the metadata,
// nothing allocates by the word of a field, and what is loaded fits the device.
func FuzzImage(f *testing.F) {
	for placement := range byte(3) {
		f.Add(placement, []byte{})
		f.Add(placement, []byte{0x79, 0, 0x30, 16, 0x02, 17, 0xff})                           // sizes, offsets
		f.Add(placement, []byte{0x00, 13, 3, 0, 4, 0, 0, 0, 1, 0x0c, 1, 0, 12, 1, 2, 3, 4})   // flags, transactions
		f.Add(placement, []byte{0x80, 22, 0x70, 23, 5, 0, 0, 15, 255, 255, 255, 255, 255, 2}) // stripes, bits
	}
	f.Fuzz(func(t *testing.T, placement byte, program []byte) {
		d := &image{b: make([]byte, 4<<20)}
		d.to = int64(len(d.b))
		data := int64(64 << 20)
		p := []meta.Placement{meta.Internal, meta.FlexExternal, meta.Indexed}[placement%3]
		if p == meta.Internal {
			data = d.to
		}
		if p == meta.Indexed {
			d.b = make([]byte, 128<<20+8<<10)
			d.to = int64(len(d.b))
		}
		l, err := meta.NewLayout(p, 0, data, d.to, 1, 8)
		if err != nil {
			t.Fatal(err)
		}
		if err := meta.Create(d, l, meta.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		sb, _, err := meta.ReadSuperblock(d, l)
		if err != nil {
			t.Fatal(err)
		}
		sb.LASize, sb.Flags = l.Usable, meta.MDFConsistent|meta.MDFWasUpToDate|meta.MDFPrimaryInd
		if err := meta.WriteSuperblock(d, l, sb); err != nil {
			t.Fatal(err)
		}
		hostile.Spoil(d, l, program)
		if _, on, err := meta.ReadSuperblock(d, l); err == nil { // with the geometry that it says itself
			d.from, d.to = on.Start(), on.End()
		}
		fuzztest.Bounded(t, imageMemory, func() { useImage(t, d, l) })
		if d.outside != nil {
			t.Error(d.outside)
		}
	})
}

// useImage is what attach, dump-md, restore-md, resize and wipe-md do.
func useImage(t *testing.T, d *image, l meta.Layout) {
	meta.DetectContent(d, int64(len(d.b))) //nolint:errcheck // any answer will do, as below
	meta.Blank(d, int64(len(d.b)), l)      //nolint:errcheck // as above
	pending, _ := meta.PendingAL(d, l)     // as above
	applied, err := meta.ApplyAL(d, l)     // as above
	if err == nil && len(pending.Hot) != len(applied.Hot) {
		t.Errorf("%d extents are said to be hot, %d are applied", len(pending.Hot), len(applied.Hot))
	}
	if err != nil {
		mustSay(t, err)
	}
	sb, bm, err := meta.Load(d, l)
	if err != nil {
		mustSay(t, err)
		return
	}
	if room := uint64(l.BitmapBytes) * 8; bm.Bits() > room || bm.Weight() > bm.Bits() {
		t.Errorf("%d bits, %d of them set, in %d", bm.Bits(), bm.Weight(), room)
	}
	_, on, err := meta.ReadSuperblock(d, l)
	if err != nil {
		t.Fatal(err)
	}
	al := meta.NewActivityLog(min(max(int(sb.ALExtents), 7), meta.MaxALExtents(on.ALBlocks)), on.Stripes, on.StripeSize4k)
	if _, err := al.Begin(meta.ExtentsOf(0, 4096)); err == nil {
		b := make([]byte, meta.BlockSize)
		if ring, _ := al.Transaction(b); ring < 0 || ring >= on.ALBlocks {
			t.Errorf("block %d of a ring of %d", ring, on.ALBlocks)
		}
	}
	_ = meta.ShowGI(sb) + meta.GetGI(sb)
	if to, moved, err := on.Moved(on.DataBytes, on.MetaBytes); err == nil && moved && on.Placement == meta.Internal {
		t.Errorf("metadata that fit their device belong elsewhere: %+v", to)
	}
	if sb.LASize > 1<<20*drbd.Sector(1) {
		return // a text of that length takes long, and says nothing new
	}
	var text bytes.Buffer
	if err := meta.Dump(&text, d, l, meta.DumpInfo{}); err != nil {
		mustSay(t, err)
		return
	}
	back, err := meta.ParseDump(&text)
	if err != nil {
		t.Fatalf("the dump is not read: %v", err)
	}
	if err := meta.Restore(d, l, back); err != nil {
		t.Fatalf("the dump is not restored: %v", err)
	}
	if err := meta.Wipe(d, l); err != nil {
		mustSay(t, err)
	}
}

// mustSay: an error names what is wrong, and where.
func mustSay(t *testing.T, err error) {
	t.Helper()
	corrupt, isCorrupt := errors.AsType[*meta.CorruptError](err)
	_, isShrunk := errors.AsType[*meta.ShrunkError](err)
	if isCorrupt && corrupt.What == "" || !isCorrupt && !isShrunk && !errors.Is(err, meta.ErrUnclean) {
		t.Errorf("a damaged image gives %T: %v", err, err)
	}
}
