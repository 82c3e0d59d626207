package meta

import (
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/pollux-project/pollux/protocol/drbd"
)

var (
	_ drbd.BitSource = (*Bitmap)(nil)
	_ drbd.BitSink   = (*Bitmap)(nil)
)

// naiveBitmap is the twin: one bool per bit, in memory and on disk.
type naiveBitmap struct {
	bits, disk []bool
}

func (n *naiveBitmap) next(from int, want bool) uint64 {
	for i := from; i < len(n.bits); i++ {
		if n.bits[i] == want {
			return uint64(i)
		}
	}
	return uint64(len(n.bits))
}

func TestBitmapTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1, 8, 9, 500, 512, 8 * bitsPerPage, 8*bitsPerPage + 1, 20 * bitsPerPage}).Draw(t, "sectors")
		b := NewBitmap(drbd.Sector(size))
		twin := &naiveBitmap{bits: make([]bool, b.Bits()), disk: make([]bool, b.Bits())}
		disk := make([]byte, b.Pages()*BlockSize)
		draw := func(t *rapid.T) (first, last uint64) {
			first = rapid.Uint64Range(0, b.Bits()-1).Draw(t, "first")
			most := rapid.SampledFrom([]uint64{0, 70, bitsPerPage, 1 << 40}).Draw(t, "most")
			return first, min(b.Bits()-1, first+rapid.Uint64Range(0, min(most, b.Bits())).Draw(t, "more"))
		}
		change := func(t *rapid.T, first, last uint64, to bool, changed uint64) {
			want := uint64(0)
			for i := first; i <= last; i++ {
				if twin.bits[i] != to {
					twin.bits[i] = to
					want++
				}
			}
			if changed != want {
				t.Fatalf("changed = %d, want %d", changed, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				first, last := draw(t)
				change(t, first, last, true, b.Set(first, last))
			},
			"clear": func(t *rapid.T) {
				first, last := draw(t)
				change(t, first, last, false, b.Clear(first, last))
			},
			"or": func(t *rapid.T) {
				words := rapid.SliceOfN(rapid.Uint64(), 1, 20).Draw(t, "words")
				at := rapid.Uint64Range(0, b.Bits()/64).Draw(t, "at")
				var le []byte
				for i, w := range words {
					le = binary.LittleEndian.AppendUint64(le, w)
					for j := range uint64(64) {
						if bit := (at+uint64(i))*64 + j; w>>j&1 != 0 && bit < b.Bits() {
							twin.bits[bit] = true
						}
					}
				}
				b.OrWords(at, le)
			},
			"write": func(t *rapid.T) {
				for _, p := range b.DirtyPages(nil) {
					b.EncodePage(p, disk[p*BlockSize:])
					if rapid.Bool().Draw(t, "completes") {
						b.MarkClean(p)
						copy(twin.disk[p*bitsPerPage:], twin.bits[p*bitsPerPage:min(len(twin.bits), (p+1)*bitsPerPage)])
					}
				}
			},
			"resize": func(t *rapid.T) {
				size = rapid.IntRange(1, 20*bitsPerPage).Draw(t, "sectors")
				set := rapid.Bool().Draw(t, "setNew")
				old := len(twin.bits)
				b.Resize(drbd.Sector(size), set)
				for len(twin.bits) < int(b.Bits()) {
					twin.bits = append(twin.bits, set)
				}
				twin.bits = twin.bits[:b.Bits()]
				twin.disk = make([]bool, b.Bits())
				disk = make([]byte, b.Pages()*BlockSize)
				if len(b.DirtyPages(nil)) != b.Pages() {
					t.Fatalf("resize from %d bits: not all pages dirty", old)
				}
			},
			"reload": func(t *rapid.T) {
				for p := range b.Pages() {
					if !b.PageDirty(p) {
						junk := slices.Clone(disk[p*BlockSize:][:BlockSize])
						if p == b.Pages()-1 { // surplus bits are masked
							for i := b.Bits() - uint64(p)*bitsPerPage; i < bitsPerPage; i++ {
								junk[i/8] |= 1 << (i % 8)
							}
						}
						b.LoadPage(p, junk)
					}
				}
			},
			"": func(t *rapid.T) { compareTwin(t, b, twin, rapid.Uint64Range(0, b.Bits()).Draw(t, "from")) },
		})
	})
}

func compareTwin(t *rapid.T, b *Bitmap, twin *naiveBitmap, from uint64) {
	weight := uint64(0)
	for _, set := range twin.bits {
		if set {
			weight++
		}
	}
	if b.Weight() != weight {
		t.Fatalf("Weight = %d, want %d", b.Weight(), weight)
	}
	if b.Bits() > 0 && b.Count(0, b.Bits()-1) != weight {
		t.Fatalf("Count = %d, want %d", b.Count(0, b.Bits()-1), weight)
	}
	if got, want := b.NextSet(from), twin.next(int(from), true); got != want {
		t.Fatalf("NextSet(%d) = %d, want %d", from, got, want)
	}
	if got, want := b.NextClear(from), twin.next(int(from), false); got != want {
		t.Fatalf("NextClear(%d) = %d, want %d", from, got, want)
	}
	if from >= b.Bits() {
		return
	}
	last := min(b.Bits()-1, from+rapid.Uint64Range(0, 2*bitsPerPage).Draw(t, "to"))
	if got, want := b.Any(from, last), twin.next(int(from), true) <= last; got != want {
		t.Fatalf("Any(%d, %d) = %v, want %v", from, last, got, want)
	}
	if got, want := b.All(from, last), twin.next(int(from), false) > last; got != want {
		t.Fatalf("All(%d, %d) = %v, want %v", from, last, got, want)
	}
	words := make([]byte, (b.Bits()+63)/64*8+8)
	b.Words(0, words)
	for i := range uint64(len(words) * 8) {
		if got := words[i/8]>>(i%8)&1 != 0; got != (i < b.Bits() && twin.bits[i]) {
			t.Fatalf("Words: bit %d is %v", i, got)
		}
	}
	dirty := b.DirtyPages(nil)
	for p := range b.Pages() {
		sets, clears := false, false
		for i := p * bitsPerPage; i < min(len(twin.bits), (p+1)*bitsPerPage); i++ {
			sets = sets || twin.bits[i] && !twin.disk[i]
			clears = clears || !twin.bits[i] && twin.disk[i]
		}
		if sets && !b.PageHasSets(p) || clears && !b.PageHasClears(p) {
			t.Fatalf("page %d: sets %v clears %v are not known", p, sets, clears)
		}
		if b.PageDirty(p) != slices.Contains(dirty, p) {
			t.Fatalf("page %d: DirtyPages and PageDirty differ", p)
		}
	}
}

func TestBitmapSetAll(t *testing.T) {
	b := NewBitmap(8*bitsPerPage*3 - 5)
	b.SetAll()
	if b.Weight() != b.Bits() || b.NextClear(0) != b.Bits() || len(b.DirtyPages(nil)) != 3 {
		t.Errorf("SetAll: weight %d of %d, dirty %v", b.Weight(), b.Bits(), b.DirtyPages(nil))
	}
	for _, p := range b.DirtyPages(nil) {
		b.MarkClean(p)
	}
	b.ClearAll()
	if b.Weight() != 0 || b.Any(0, b.Bits()-1) || !b.PageHasClears(1) || len(b.DirtyPages(nil)) != 3 {
		t.Errorf("ClearAll: weight %d, dirty %v", b.Weight(), b.DirtyPages(nil))
	}
	if empty := NewBitmap(0); empty.Bits() != 0 || empty.NextSet(0) != 0 {
		t.Error("empty bitmap")
	}
}

func TestBitmapAllocs(t *testing.T) {
	b := NewBitmap(1 << 24)
	page := make([]byte, BlockSize)
	var dirty []int
	at := uint64(0)
	allocs := testing.AllocsPerRun(1000, func() {
		b.Set(at, at+100)
		b.NextSet(at)
		b.Clear(at, at+50)
		dirty = b.DirtyPages(dirty[:0])
		for _, p := range dirty {
			b.EncodePage(p, page)
			b.MarkClean(p)
		}
		at += 997
	})
	if allocs > 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
}

func BenchmarkBitmapNextSetEmpty1TiB(b *testing.B) {
	m := NewBitmap(1 << 31)
	m.Set(m.Bits()-1, m.Bits()-1)
	for b.Loop() {
		m.NextSet(0)
	}
}

// What a write, a resync request or the timer that stores changes asks of a
// bitmap costs no more on a large device.
func BenchmarkBitmap16TiB(b *testing.B) {
	m := NewBitmap(16 << 31)
	b.Run("Any", func(b *testing.B) {
		for range b.N {
			m.Any(0, 7)
		}
	})
	m.Set(m.Bits()-1, m.Bits()-1)
	var pages []int
	b.Run("DirtyPages", func(b *testing.B) {
		for range b.N {
			pages = m.DirtyPages(pages[:0])
		}
	})
	m.SetAll()
	b.Run("All", func(b *testing.B) {
		for range b.N {
			m.All(0, 31)
		}
	})
}
