package meta

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "|", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The worked superblocks of drbd84-protocol A.13: 1 GiB, internal.
func TestSuperblockGolden(t *testing.T) {
	l, err := NewLayout(Internal, 0, 1<<30, 0, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	fresh := NewSuperblock(l)
	inUse := fresh
	inUse.LASize, inUse.UUIDs.Current = 0x1fff78, 0x1122334455667788
	inUse.Flags, inUse.Unclean = MDFConsistent|MDFWasUpToDate, true
	inUse.ALExtents, inUse.PeerMaxBio = 1237, 1<<20
	for _, tt := range []struct {
		name string
		sb   Superblock
		want string
	}{
		{"after create-md", fresh, "00000000 00000000 | 00000000 00000004 |" + strings.Repeat("00", 24) +
			"| 00000000 00000000 | 00000000 00000000 | 00000080 | 8374026b | 00000088 | ffffffc0 | 00000101 | ffffff80 | 00001000 | 00000000 | 00000001 | 00000008"},
		{"in use", inUse, "00000000 001fff78 | 11223344 55667788 |" + strings.Repeat("00", 24) +
			"| 00000000 00000000 | 00000000 00000000 | 00000011 | 8374026c | 00000088 | ffffffc0 | 000004d5 | ffffff80 | 00001000 | 00100000 | 00000001 | 00000008"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := make([]byte, BlockSize)
			tt.sb.Encode(got)
			want := append(unhex(t, tt.want), make([]byte, BlockSize-superblockFields)...)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			back, err := DecodeSuperblock(got)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.sb, back); diff != "" {
				t.Errorf("decoded again (-want +got)\n%s", diff)
			}
			if err := l.Check(back); err != nil {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

func TestALChecksum(t *testing.T) {
	b := make([]byte, BlockSize)
	InitialALBlock(b)
	if got := binary.BigEndian.Uint32(b[alOffCRC:]); got != 0x709cc651 {
		t.Errorf("initialised block: CRC %#x, want 0x709cc651", got)
	}
	if _, initialised, err := decodeALBlock(b); err != nil || !initialised {
		t.Errorf("decode: initialised=%v, err=%v", initialised, err)
	}
}

// The example of drbd84-protocol 9.5: the first write after attach.
func TestTransactionGolden(t *testing.T) {
	al := NewActivityLog(1237, 1, 8)
	first, last := ExtentsOf(204800, 4096)
	if first != 25 || last != 25 {
		t.Fatalf("ExtentsOf = %d, %d, want 25", first, last)
	}
	if ready, err := al.Begin(first, last); ready || err != nil {
		t.Fatalf("Begin = %v, %v", ready, err)
	}
	got := make([]byte, BlockSize)
	at, evicted := al.Transaction(got)
	if at != 0 || len(evicted) != 0 {
		t.Errorf("ring block %d, evicted %v", at, evicted)
	}
	want := unhex(t, "69cb65a2 00000000 f97ff5b9 00000001 04d50000"+strings.Repeat("00", 16)+
		"0000"+strings.Repeat("ffff", 63)+"00000019"+strings.Repeat("ff", BlockSize-alOffExtent-4))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if al.Ready(first, last) {
		t.Error("ready before Committed")
	}
	al.Committed()
	if !al.Ready(first, last) {
		t.Error("not ready after Committed")
	}
}

// Placement: the examples of drbd84-protocol 8.4 and 8.5.
func TestNewLayout(t *testing.T) {
	const s = 512
	type where struct{ sb, al, bm, md, usable int64 }
	for _, tt := range []struct {
		name       string
		p          Placement
		index      int
		data, meta int64
		want       where // sectors
	}{
		{"internal 1 GiB", Internal, 0, 2097152 * s, 0, where{2097144, 2097080, 2097016, 136, 2097016}},
		{"internal 1 GiB and a sector", Internal, 0, 2097153 * s, 0, where{2097144, 2097080, 2097008, 144, 2097008}},
		{"flexible 1 MiB", FlexExternal, 0, 1 << 30, 1 << 20, where{0, 8, 72, 2048, 2097152}},
		{"flexible, bitmap is the limit", FlexExternal, 0, 1 << 40, 1 << 20, where{0, 8, 72, 2048, (2048 - 72) * 32768}},
		{"flexible, data not known", FlexExternal, 0, 0, 1 << 20, where{0, 8, 72, 2048, (2048 - 72) * 32768}},
		{"indexed 1", Indexed, 1, 1 << 50, 256 << 20, where{262144, 262152, 262216, 262144, 8587575296}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := NewLayout(tt.p, tt.index, tt.data, tt.meta, 1, 8)
			if err != nil {
				t.Fatal(err)
			}
			got := where{l.Superblock / s, l.AL / s, l.Bitmap / s, int64(l.MDSize), int64(l.Usable)}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if err := l.Check(NewSuperblock(l)); err != nil {
				t.Errorf("Check of its own superblock: %v", err)
			}
		})
	}
}

func TestRingOrder(t *testing.T) {
	l, err := NewLayout(Internal, 0, 1<<30, 0, 4, 16)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for i := range uint32(64) {
		seen[l.RingOrder(i)] = true
	}
	if len(seen) != 64 {
		t.Errorf("64 transactions go to %d blocks", len(seen))
	}
	for number, want := range map[uint32]int{0: 0, 1: 16, 2: 32, 3: 48, 4: 1, 63: 63, 64: 0, 69: 17} {
		if got := l.RingOrder(number); got != want {
			t.Errorf("transaction %d at block %d, want %d", number, got, want)
		}
	}
}

func TestBits(t *testing.T) {
	b := NewBitmap(81) // 11 bits, the last of one sector
	if b.Bits() != 11 || b.Pages() != 1 {
		t.Fatalf("%d bits, %d pages", b.Bits(), b.Pages())
	}
	for _, tt := range []struct {
		s          drbd.Sector
		size       uint32
		out0, out1 uint64
		in0, in1   uint64
		in         bool
	}{
		{0, 4096, 0, 0, 0, 0, true},
		{0, 512, 0, 0, 0, 0, false},
		{4, 4096, 0, 1, 0, 0, false},
		{4, 8192, 0, 2, 1, 1, true},
		{8, 8192, 1, 2, 1, 2, true},
		{79, 1024, 9, 10, 10, 10, true}, // to the end of the device
		{80, 512, 10, 10, 10, 10, true},
	} {
		if f, l := BitsOutward(tt.s, tt.size); f != tt.out0 || l != tt.out1 {
			t.Errorf("BitsOutward(%d, %d) = %d, %d, want %d, %d", tt.s, tt.size, f, l, tt.out0, tt.out1)
		}
		if f, l, ok := b.BitsInward(tt.s, tt.size); f != tt.in0 || l != tt.in1 || ok != tt.in {
			t.Errorf("BitsInward(%d, %d) = %d, %d, %v, want %d, %d, %v", tt.s, tt.size, f, l, ok, tt.in0, tt.in1, tt.in)
		}
	}
}
