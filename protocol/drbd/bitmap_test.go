package drbd_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// naiveBits is the obvious bitmap: one bool per bit. It panics when it is asked
// for bits that it does not have.
type naiveBits struct{ set []bool }

func newNaiveBits(n uint64, set ...uint64) *naiveBits {
	b := &naiveBits{make([]bool, n)}
	for _, i := range set {
		b.set[i] = true
	}
	return b
}

func (b *naiveBits) Bits() uint64 { return uint64(len(b.set)) }

func (b *naiveBits) next(from uint64, want bool) uint64 {
	for from < b.Bits() && b.set[from] != want {
		from++
	}
	return from
}

func (b *naiveBits) NextSet(from uint64) uint64   { return b.next(from, true) }
func (b *naiveBits) NextClear(from uint64) uint64 { return b.next(from, false) }

func (b *naiveBits) Words(word uint64, dst []byte) {
	if len(dst) == 0 || len(dst)%8 != 0 || word+uint64(len(dst)/8) > (b.Bits()+63)/64 {
		panic(fmt.Sprintf("Words(%d, %d bytes) of %d bits", word, len(dst), b.Bits()))
	}
	clear(dst)
	for i := range dst {
		for j := range 8 {
			if n := word*64 + uint64(i*8+j); n < b.Bits() && b.set[n] {
				dst[i] |= 1 << j
			}
		}
	}
}

func (b *naiveBits) SetRange(first, last uint64) {
	if first > last {
		panic(fmt.Sprintf("SetRange(%d, %d)", first, last))
	}
	for i := first; i <= last; i++ {
		b.set[i] = true
	}
}

func (b *naiveBits) OrWords(word uint64, le []byte) {
	if len(le) == 0 || len(le)%8 != 0 {
		panic(fmt.Sprintf("OrWords(%d, %d bytes)", word, len(le)))
	}
	for i, v := range le {
		for j := range 8 {
			if v>>j&1 != 0 {
				b.set[word*64+uint64(i*8+j)] = true
			}
		}
	}
}

// runBits is a bitmap of any size, as the lengths of its runs; the first is of
// clear bits and may be 0.
type runBits []uint64

func (b runBits) Bits() (n uint64) {
	for _, run := range b {
		n += run
	}
	return n
}

func (b runBits) next(from uint64, want bool) uint64 {
	var at uint64
	for i, run := range b {
		if at += run; from < at && (i%2 == 1) == want {
			return max(from, at-run)
		}
	}
	return at
}

func (b runBits) NextSet(from uint64) uint64   { return b.next(from, true) }
func (b runBits) NextClear(from uint64) uint64 { return b.next(from, false) }
func (b runBits) Words(uint64, []byte)         { panic("runBits is only sent compressed") }

// runSink notes the runs that are set; its bitmap may have any size.
type runSink struct {
	bits uint64
	runs [][2]uint64
}

func (s *runSink) Bits() uint64                  { return s.bits }
func (s *runSink) SetRange(first, last uint64)   { s.runs = append(s.runs, [2]uint64{first, last}) }
func (s *runSink) OrWords(word uint64, _ []byte) { panic("runSink takes compressed packets only") }

type bitmapPacket struct {
	cmd     drbd.Command
	payload []byte
}

func (p bitmapPacket) String() string { return fmt.Sprintf("%v %x", p.cmd, p.payload) }

// sendAll is all packets of a bitmap.
func sendAll(src drbd.BitSource, useRLE bool) (packets []bitmapPacket) {
	s := drbd.NewBitmapSender(src, useRLE)
	buf := make([]byte, drbd.MaxBitmapSize)
	for done := false; !done; {
		var p bitmapPacket
		p.cmd, p.payload, done = s.Next(buf)
		p.payload = bytes.Clone(p.payload)
		packets = append(packets, p)
	}
	return packets
}

// receiveAll merges packets into sink; the last one, and no other, has to be
// the end of the bitmap.
func receiveAll(sink drbd.BitSink, packets []bitmapPacket) error {
	r := drbd.NewBitmapReceiver(sink)
	for i, p := range packets {
		done, err := r.Receive(p.cmd, p.payload)
		if err != nil {
			return fmt.Errorf("packet %d: %w", i, err)
		}
		if done != (i == len(packets)-1) {
			return fmt.Errorf("packet %d of %d: done is %v", i, len(packets), done)
		}
	}
	return nil
}

// TestBitmapWorked has the worked examples of drbd84-protocol, 6.4, and small
// ones made by hand.
func TestBitmapWorked(t *testing.T) {
	all := make([]uint64, 262144)
	for i := range all {
		all[i] = uint64(i)
	}
	for _, tt := range []struct {
		name   string
		bits   uint64
		set    []uint64
		useRLE bool
		want   []string // command and payload
	}{
		{"one run", 262144, []uint64{1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007}, true, []string{"P_COMPRESSED_BITMAP 123fb762ff7d6b0f"}},
		{"all set", 262144, all, true, []string{"P_COMPRESSED_BITMAP b27fcfde03"}},
		{"nothing set", 64, nil, false, []string{"P_BITMAP 0000000000000000", "P_BITMAP "}},
		{"ends inside a word", 65, []uint64{0, 64}, false, []string{"P_BITMAP 01000000000000000100000000000000", "P_BITMAP "}},
		{"short runs first", 64, []uint64{0, 2, 4, 6, 8, 10, 12}, true, []string{"P_COMPRESSED_BITMAP 820000007c02"}},
		{"incompressible", 16, []uint64{0, 2, 4, 6, 8, 10, 12}, true, []string{"P_BITMAP 5515000000000000", "P_BITMAP "}},
		{"no bits at all", 0, nil, true, []string{"P_BITMAP "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := newNaiveBits(tt.bits, tt.set...)
			packets := sendAll(src, tt.useRLE)
			var got []string
			for _, p := range packets {
				got = append(got, p.cmd.String()+" "+hex.EncodeToString(p.payload))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
			sink := newNaiveBits(tt.bits)
			if err := receiveAll(sink, packets); err != nil || !slices.Equal(sink.set, src.set) {
				t.Errorf("received: %v, equal %v", err, slices.Equal(sink.set, src.set))
			}
		})
	}
}

// drawBits draws a bitmap that has stretches of every kind: long runs, short
// ones and noise, so that streams mix both packets.
func drawBits(t *rapid.T, limit int) *naiveBits {
	var set []bool
	size := rapid.IntRange(0, limit).Draw(t, "bits")
	for len(set) < size {
		n := rapid.IntRange(1, max(1, limit/4)).Draw(t, "stretch")
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0, 1:
			v := rapid.Bool().Draw(t, "value")
			for range n {
				set = append(set, v)
			}
		case 2: // alternating: the worst case of the code
			for i := range n {
				set = append(set, i%2 == 0)
			}
		case 3:
			x := rapid.Uint64().Draw(t, "seed") | 1
			for range n {
				x ^= x << 13
				x ^= x >> 7
				x ^= x << 17
				set = append(set, x>>60 < 5)
			}
		}
	}
	return &naiveBits{set[:size]}
}

// TestBitmapTwin checks the sender against an encoder that builds texts of 0 and
// 1, and the receiver against the sent bitmap.
func TestBitmapTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := drawBits(t, 100_000)
		useRLE := rapid.Bool().Draw(t, "use-rle")
		packets := sendAll(src, useRLE)
		if diff := cmp.Diff(twinSend(src.set, useRLE), packets, cmp.AllowUnexported(bitmapPacket{})); diff != "" {
			t.Fatalf("packets (-twin +sender):\n%s", diff)
		}
		sink := newNaiveBits(src.Bits())
		want := slices.Clone(src.set)
		for i := range sink.set { // what is set already stays set
			if i%97 == 0 {
				sink.set[i], want[i] = true, true
			}
		}
		if err := receiveAll(sink, packets); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sink.set, want) {
			t.Fatal("the received bitmap is not the union")
		}
	})
}

// twinLevels are the prefixes and data widths of drbd84-protocol, 6.4, as they
// pass over the wire.
var twinLevels = []struct {
	prefix string
	data   int
	min    int
}{
	{"0", 1, 1},
	{"10", 1, 3},
	{"110", 2, 5},
	{"1110", 3, 9},
	{"11110", 5, 17},
	{"111110", 8, 49},
	{"11111100", 13, 305},
	{"11111110", 21, 8497},
}

func twinCode(run int) string {
	for i := len(twinLevels) - 1; ; i-- {
		if l := twinLevels[i]; run >= l.min {
			code := l.prefix
			for bit := range l.data {
				code += string(rune('0' + (run-l.min)>>bit&1))
			}
			return code
		}
	}
}

// twinSend is the algorithm of drbd84-protocol, 6.3, in the plainest words.
func twinSend(set []bool, useRLE bool) (packets []bitmapPacket) {
	at := 0
	for {
		if useRLE && at < len(set) {
			code, end := []byte(nil), at
			for end < len(set) {
				next := end
				for next < len(set) && set[next] == set[end] {
					next++
				}
				word := twinCode(next - end)
				if len(code)+len(word) > 4079*8 {
					break
				}
				code, end = append(code, word...), next
			}
			pad := (8 - len(code)%8) % 8
			if end-at >= len(code)+pad {
				payload := []byte{byte(2 | pad<<4)}
				if set[at] {
					payload[0] |= 0x80
				}
				packets = append(packets, bitmapPacket{drbd.CmdCompressedBitmap, append(payload, twinBytes(code)...)})
				if at = end; at == len(set) {
					return packets
				}
				continue
			}
		}
		if at == len(set) {
			return append(packets, bitmapPacket{drbd.CmdBitmap, []byte{}})
		}
		at = at / 64 * 64
		end := min(at+510*64, len(set))
		var text []byte
		for _, v := range set[at:end] {
			if v {
				text = append(text, '1')
			} else {
				text = append(text, '0')
			}
		}
		for len(text)%64 != 0 {
			text = append(text, '0')
		}
		packets = append(packets, bitmapPacket{drbd.CmdBitmap, twinBytes(text)})
		at = end
	}
}

// twinBytes is a text of bits, first bit lowest, as bytes.
func twinBytes(text []byte) []byte {
	b := make([]byte, (len(text)+7)/8)
	for i, c := range text {
		if c == '1' {
			b[i/8] |= 1 << (i % 8)
		}
	}
	return b
}

// TestBitmapLevels sends runs at the borders of all levels of the code, which
// takes bitmaps of up to 2^55 bits.
func TestBitmapLevels(t *testing.T) {
	borders := []uint64{1, 3, 5, 9, 17, 49, 305, 8497, 2105649, 17181974833, 1 << 55}
	bits := []int{2, 3, 5, 7, 10, 14, 21, 29, 42, 64}
	for level, low := range borders[:len(borders)-1] {
		for _, run := range []uint64{low, borders[level+1] - 1} {
			src := runBits{run, 1 << 20} // the second run makes it worth compressing
			packets := sendAll(src, true)
			if len(packets) != 1 || packets[0].cmd != drbd.CmdCompressedBitmap {
				t.Fatalf("run %d: packets %v", run, packets)
			}
			p := packets[0].payload
			if got := 8*(len(p)-1) - int(p[0]>>4&7) - 29; got != bits[level] {
				t.Errorf("run %d takes %d bits, want %d", run, got, bits[level])
			}
			sink := &runSink{bits: src.Bits()}
			if err := receiveAll(sink, packets); err != nil {
				t.Errorf("run %d: %v", run, err)
			}
			if want := [][2]uint64{{run, run + 1<<20 - 1}}; !slices.Equal(sink.runs, want) {
				t.Errorf("run %d: set %v, want %v", run, sink.runs, want)
			}
		}
	}
}

func TestBitmapRefuses(t *testing.T) {
	full := make([]byte, 4080)
	for _, tt := range []struct {
		name  string
		bits  uint64
		sent  []string // taken before
		cmd   drbd.Command
		bytes []byte
		field string
	}{
		{"other packet", 64, nil, drbd.CmdState, make([]byte, 4), "command"},
		{"plain too short", 65, nil, drbd.CmdBitmap, full[:8], "length"},
		{"plain too long", 64, nil, drbd.CmdBitmap, full[:16], "length"},
		{"plain not in words", 64, nil, drbd.CmdBitmap, full[:7], "length"},
		{"plain larger than a packet", 1 << 20, nil, drbd.CmdBitmap, make([]byte, 4088), "length"},
		{"empty at the start", 64, nil, drbd.CmdBitmap, nil, "length"},
		{"plain after the end", 64, []string{"P 0000000000000000"}, drbd.CmdBitmap, full[:8], "length"},
		{"compressed after the end", 64, []string{"P 0000000000000000"}, drbd.CmdCompressedBitmap, []byte{0x62, 0}, "end of the run at bit 64"},
		{"after the empty one", 64, []string{"P 0000000000000000", "P "}, drbd.CmdBitmap, nil, "command"},
		{"empty after compressed", 64, []string{"C 22df03"}, drbd.CmdBitmap, nil, "command"},
		{"no code", 64, nil, drbd.CmdCompressedBitmap, []byte{0x02}, "length"},
		{"no encoding", 64, nil, drbd.CmdCompressedBitmap, nil, "length"},
		{"too much code", 1 << 40, nil, drbd.CmdCompressedBitmap, append([]byte{0x02}, full...), "length"},
		{"other code", 64, nil, drbd.CmdCompressedBitmap, []byte{0x03, 0}, "code"},
		{"code word cut off", 64, nil, drbd.CmdCompressedBitmap, []byte{0x02, 0xff}, "last code word"},
		{"one bit too few", 1 << 20, nil, drbd.CmdCompressedBitmap, []byte{0x12, 0}, "last code word"},
		{"pad not zero", 64, nil, drbd.CmdCompressedBitmap, []byte{0x72, 0x02}, "pad bits"},
		{"set run past the end", 4, nil, drbd.CmdCompressedBitmap, []byte{0xb2, 0x03}, "end of the run at bit 0"},
		{"clear run past the end", 4, nil, drbd.CmdCompressedBitmap, []byte{0x32, 0x03}, "end of the run at bit 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := drbd.NewBitmapReceiver(newNaiveBits(min(tt.bits, 1<<20)))
			if tt.bits > 1<<20 {
				r = drbd.NewBitmapReceiver(&runSink{bits: tt.bits})
			}
			for _, s := range tt.sent {
				cmd := map[byte]drbd.Command{'P': drbd.CmdBitmap, 'C': drbd.CmdCompressedBitmap}[s[0]]
				if _, err := r.Receive(cmd, unhex(t, s[2:])); err != nil {
					t.Fatal(err)
				}
			}
			done, err := r.Receive(tt.cmd, tt.bytes)
			var pe *drbd.ProtocolError
			if !errors.As(err, &pe) || done || pe.Field != tt.field || pe.Packet != tt.cmd {
				t.Errorf("done %v, error %v, want one about %q of %v", done, err, tt.field, tt.cmd)
			}
		})
	}
}

// TestBitmapSurplus: bits beyond the end of the bitmap never reach the sink, and
// the packet itself is left as it is.
func TestBitmapSurplus(t *testing.T) {
	payload := bytes.Repeat([]byte{0xff}, 16)
	sink := newNaiveBits(70) // panics if it is given bit 70
	if _, err := drbd.NewBitmapReceiver(sink).Receive(drbd.CmdBitmap, payload); err != nil {
		t.Fatal(err)
	}
	if sink.NextClear(0) != 70 || !bytes.Equal(payload, bytes.Repeat([]byte{0xff}, 16)) {
		t.Errorf("first clear bit %d, payload %x", sink.NextClear(0), payload)
	}
}

func TestBitmapSenderAfterEnd(t *testing.T) {
	s := drbd.NewBitmapSender(newNaiveBits(262144), true)
	if _, _, done := s.Next(nil); !done {
		t.Fatal("an empty bitmap takes more than one packet")
	}
	defer func() {
		if recover() == nil {
			t.Error("Next after the last packet does not panic")
		}
	}()
	s.Next(nil)
}
