package meta

import (
	"encoding/hex"
	"errors"
	"testing"
)

func testTerm() TermRecord {
	return TermRecord{
		Seq: 9, Volume: 3, NameHash: NameHash("r0"), DeviceUUID: 0x0102030405060708, CurrentUUID: 0x1111111111111110,
		Term: 7, Promised: 8, Sole: 0x1111111111111110, SoleTerm: 7, Unknown: true,
	}
}

// The bytes on disk, as docs/formats.md has them: they outlive this program.
func TestTermRecordBytes(t *testing.T) {
	const want = "504c585445524d00" + "00000001" + "00000003" + "0000000000000009" + "08dc8407b57be91f" + "0102030405060708" +
		"1111111111111110" + "0000000000000007" + "0000000000000008" + "1111111111111110" + "0000000000000007" + "00000001"
	rec := testTerm()
	b := make([]byte, TermRecordSize)
	rec.Encode(b)
	if got := hex.EncodeToString(b[:84]); got != want {
		t.Errorf("record:\n got %s\nwant %s", got, want)
	}
	for i, c := range b[84:124] {
		if c != 0 {
			t.Errorf("reserved byte %d is %#x", 84+i, c)
		}
	}
	got, err := DecodeTermRecord(b)
	if err != nil || got != rec {
		t.Errorf("decoded: %+v, %v", got, err)
	}
}

// One flipped bit anywhere makes the record damaged or none, never another one.
func TestTermRecordDamaged(t *testing.T) {
	rec := testTerm()
	b := make([]byte, TermRecordSize)
	for i := range 8 * TermRecordSize {
		rec.Encode(b)
		b[i/8] ^= 1 << (i % 8)
		got, err := DecodeTermRecord(b)
		_, corrupt := errors.AsType[*CorruptError](err)
		if got != (TermRecord{}) || !corrupt && !errors.Is(err, ErrNoTermRecord) {
			t.Fatalf("bit %d flipped: %+v, %v", i, got, err)
		}
	}
	for n := range TermRecordSize {
		if _, err := DecodeTermRecord(b[:n]); !errors.Is(err, ErrNoTermRecord) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

// The record lies in the superblock's reserved bytes and changes no other.
func TestTermRecordInSuperblock(t *testing.T) {
	l, err := NewLayout(Internal, 0, 64<<20, 0, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	plain, with := make([]byte, BlockSize), make([]byte, BlockSize)
	sb := NewSuperblock(l)
	sb.Encode(plain)
	sb.Term = testTerm()
	sb.Encode(with)
	for i := range plain {
		if plain[i] != with[i] && (i < termRecordOffset || i >= termRecordOffset+TermRecordSize) {
			t.Fatalf("byte %d differs with a term record", i)
		}
	}
	if got, err := DecodeSuperblock(with); err != nil || got != sb {
		t.Errorf("decoded: %+v, %v", got, err)
	}
	if termRecordOffset < superblockFields || termRecordOffset+TermRecordSize > 512 {
		t.Error("the record is not in the reserved part of the first sector")
	}
	with[termRecordOffset+50] ^= 1
	sb.Term = TermRecord{}
	if got, err := DecodeSuperblock(with); err != nil || got != sb {
		t.Errorf("with a damaged record: %+v, %v; want a superblock without one", got, err)
	}
}

func FuzzTermRecord(f *testing.F) {
	rec := testTerm()
	b := make([]byte, TermRecordSize)
	rec.Encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := DecodeTermRecord(in)
		if err != nil {
			if got != (TermRecord{}) {
				t.Fatalf("%v, but %+v", err, got)
			}
			return
		}
		out := make([]byte, TermRecordSize)
		got.Encode(out)
		if again, err := DecodeTermRecord(out); err != nil || again != got {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}
