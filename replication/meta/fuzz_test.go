package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

func FuzzSuperblock(f *testing.F) {
	for _, p := range []Placement{Internal, FlexExternal} {
		l, err := NewLayout(p, 0, 1<<30, 1<<20, 1, 8)
		if err != nil {
			f.Fatal(err)
		}
		sb := NewSuperblock(l)
		b := make([]byte, BlockSize)
		sb.Encode(b)
		f.Add(b[:superblockFields])
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		b := make([]byte, BlockSize)
		copy(b, head)
		sb, err := DecodeSuperblock(b)
		if err != nil {
			if _, ok := errors.AsType[*CorruptError](err); !ok {
				t.Fatalf("error is a %T", err)
			}
			return
		}
		again := make([]byte, BlockSize)
		sb.Encode(again)
		if back, err := DecodeSuperblock(again); err != nil || back != sb {
			t.Fatalf("decoded again: %+v, %v", back, err)
		}
		// Whatever it says, loading it from a small device must end well.
		d := newMemDevice(2 << 20)
		for _, p := range []Placement{Internal, FlexExternal} {
			l := layoutFor(t, d, p, 0)
			if _, err := d.WriteAt(b, l.Superblock); err != nil {
				t.Fatal(err)
			}
			if _, bm, err := Load(d, l); err == nil && bm.Bits() > uint64(l.BitmapBytes)*8 {
				t.Fatalf("%d bits in %d bytes", bm.Bits(), l.BitmapBytes)
			}
		}
	})
}

// FuzzALBlock replays a ring in which one block is arbitrary but has a valid
// checksum.
func FuzzALBlock(f *testing.F) {
	m := newALMachine(1237, 1, 8)
	for i := range 3 {
		if _, err := m.al.Begin(Extent(i), Extent(i)+20); err != nil {
			f.Fatal(err)
		}
		b := make([]byte, BlockSize)
		m.al.Transaction(b)
		m.al.Committed()
		f.Add(b, uint8(i), true)
	}
	base := newALMachine(1237, 1, 8)
	for i := range 5 {
		if _, err := base.al.Begin(Extent(i), Extent(i)); err != nil {
			f.Fatal(err)
		}
		b := make([]byte, BlockSize)
		k, _ := base.al.Transaction(b)
		base.ring[k] = b
		base.al.Committed()
	}
	f.Fuzz(func(t *testing.T, raw []byte, at uint8, sum bool) {
		ring := slices.Clone(base.ring)
		b := make([]byte, BlockSize)
		copy(b, raw)
		if sum {
			binary.BigEndian.PutUint32(b, alMagic)
			binary.BigEndian.PutUint32(b[alOffCRC:], alCRC(b))
		}
		ring[at%8] = b
		if _, err := base.replay(ring); err != nil {
			if _, ok := errors.AsType[*CorruptError](err); !ok {
				t.Fatalf("error is a %T", err)
			}
		}
	})
}

func FuzzParseDump(f *testing.F) {
	for _, name := range []string{
		"m01-v08-internal-fresh.dump", "m02-v08-internal-bits.dump", "m03-v08-external-flexible.dump",
		"m06-v08-al-hot.dump", "m08-v09-internal-fresh.dump", "m02-v08-internal-bits.restore-input.txt",
	} {
		f.Add(readText(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDump(bytes.NewReader([]byte(text)))
		if err != nil {
			if _, ok := errors.AsType[*ParseError](err); !ok {
				t.Fatalf("error is a %T: %v", err, err)
			}
			return
		}
		if d.LASize > 1<<20 {
			return // slow, and nothing new
		}
		dev := newMemDevice(1 << 20)
		l := layoutFor(t, dev, FlexExternal, 0)
		if err := Restore(dev, l, d); err != nil {
			return
		}
		var out bytes.Buffer
		if err := Dump(&out, dev, l, DumpInfo{}); err != nil {
			t.Fatal(err)
		}
		back, err := ParseDump(&out)
		if err != nil {
			t.Fatal(err)
		}
		if back.UUIDs != d.UUIDs || back.LASize != d.LASize || back.Flags != d.Flags|MDFALClean {
			t.Fatalf("restored %+v, dumped %+v", d, back)
		}
	})
}
