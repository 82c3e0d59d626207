package meta

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Units of the bitmap. Source: drbd84-protocol 6.1 and 8.7; DRBD 8.4
// drbd_int.h, BM_BLOCK_SIZE and BM_PAGE_*.
const (
	sectorsPerBit = bytesPerBit / sectorSize
	bitsPerWord   = 64
	bitsPerPage   = BlockSize * 8
	wordsPerPage  = bitsPerPage / bitsPerWord
)

// A Bit numbers one 4 KiB block of the device.
type Bit uint64

// Sector is the first sector of the block.
func (b Bit) Sector() drbd.Sector { return drbd.Sector(b) * sectorsPerBit }

// BitOf is the block that holds sector s.
func BitOf(s drbd.Sector) Bit { return Bit(s / sectorsPerBit) }

// BitsOutward returns the first and last bit of all blocks that [s, s+size)
// touches: what has to be set. size is in bytes, > 0.
func BitsOutward(s drbd.Sector, size uint32) (first, last uint64) {
	if size == 0 {
		panic(fmt.Sprintf("meta: BitsOutward(%d, 0)", s))
	}
	end := uint64(s) + (uint64(size)+sectorSize-1)/sectorSize
	return uint64(s) / sectorsPerBit, (end - 1) / sectorsPerBit
}

// A page is one 4 KiB block of the bitmap on disk. Most pages are all clear or
// all set, and have no words of their own.
type page struct {
	words  *[wordsPerPage]uint64 // nil if the weight says everything
	weight uint16                // set bits, 0..32768
	flags  pageFlags
}

type pageFlags uint8

const (
	pageSets        pageFlags = 1 << iota // bits set since the page was encoded
	pageClears                            // bits cleared since
	pageSetsEnc                           // encoded, not yet marked clean: sets
	pageClearsEnc                         // encoded, not yet marked clean: clears
	pageAnySets     = pageSets | pageSetsEnc
	pageAnyClears   = pageClears | pageClearsEnc
	pageFlagsNew    = pageSets | pageClears
	pageEncodeShift = 2
)

// A Bitmap is the quick-sync bitmap in memory: bit n stands for the 4 KiB
// block n of the device and is 1 if that block may differ from the peer's.
// It knows which of its pages differ from the disk, and how: a page with sets
// is a promise still to be kept, a page with clears may be written only once
// the data of those blocks is on stable storage.
//
// It is used under the resource's lock. Ranges are inclusive and must lie
// within the device, or the method panics. It satisfies drbd.BitSource and
// drbd.BitSink. Memory: 16 bytes per page, which is 128 MiB of the device (2 MiB
// for 16 TiB), and 4 KiB for each page that is neither all clear nor all set.
type Bitmap struct {
	size   drbd.Sector
	bits   uint64
	weight uint64
	pages  []page
	dirty  []uint64 // a bit for each page: it has flags
	dirtyN int      // pages with flags
	// spare are words that were let go, so that a page that is filled and emptied
	// over and over costs no garbage.
	spare []*[wordsPerPage]uint64
}

// maxSpare bounds Bitmap.spare.
const maxSpare = 8

// NewBitmap returns a bitmap for a device of size sectors, all clear, all
// pages counting as equal to the disk.
func NewBitmap(size drbd.Sector) *Bitmap {
	b := &Bitmap{}
	b.allocate(size)
	return b
}

func (b *Bitmap) allocate(size drbd.Sector) {
	b.size = size
	b.bits = (uint64(size) + sectorsPerBit - 1) / sectorsPerBit
	b.pages = make([]page, (b.bits+bitsPerPage-1)/bitsPerPage)
	b.weight, b.dirtyN = 0, 0
	b.dirty = make([]uint64, (len(b.pages)+63)/64)
}

// capacity is the number of bits of the device that page p has.
func (b *Bitmap) capacity(p uint64) uint16 {
	return uint16(min(bitsPerPage, b.bits-p*bitsPerPage))
}

// uniform is a word of a page that has none: all clear, or all set.
func (b *Bitmap) uniform(pg *page, w uint64) uint64 {
	if pg.weight == 0 || w*bitsPerWord >= b.bits {
		return 0
	}
	return wordMask(w, 0, b.bits-1)
}

// word is 64-bit word w of the bitmap, 0 beyond the device.
func (b *Bitmap) word(w uint64) uint64 {
	if w*bitsPerWord >= b.bits {
		return 0
	}
	pg := &b.pages[w/wordsPerPage]
	if pg.words != nil {
		return pg.words[w%wordsPerPage]
	}
	return b.uniform(pg, w)
}

// expand gives page p words of its own.
func (b *Bitmap) expand(p uint64) *[wordsPerPage]uint64 {
	pg := &b.pages[p]
	if pg.words != nil {
		return pg.words
	}
	if n := len(b.spare); n > 0 {
		pg.words, b.spare = b.spare[n-1], b.spare[:n-1]
	} else {
		pg.words = new([wordsPerPage]uint64)
	}
	for i := range pg.words {
		pg.words[i] = b.uniform(pg, p*wordsPerPage+uint64(i))
	}
	return pg.words
}

// reweigh notes the new weight of page p, and lets its words go if they say no more.
func (b *Bitmap) reweigh(p uint64, weight uint16) {
	pg := &b.pages[p]
	b.weight += uint64(weight) - uint64(pg.weight)
	pg.weight = weight
	if pg.words == nil || weight != 0 && weight != b.capacity(p) {
		return
	}
	if len(b.spare) < maxSpare {
		b.spare = append(b.spare, pg.words)
	}
	pg.words = nil
}

// Size is the device's size in sectors.
func (b *Bitmap) Size() drbd.Sector { return b.size }

// Bits is the number of bits.
func (b *Bitmap) Bits() uint64 { return b.bits }

// Weight is the number of set bits; it is kept up to date, not counted.
func (b *Bitmap) Weight() uint64 { return b.weight }

// BitsInward returns the first and last bit of all blocks that lie wholly in
// [s, s+size): what may be cleared. The last, partial block of the device
// counts as whole. size is in bytes; ok is false if there is no such block.
func (b *Bitmap) BitsInward(s drbd.Sector, size uint32) (first, last uint64, ok bool) {
	end := uint64(s) + uint64(size)/sectorSize
	first = (uint64(s) + sectorsPerBit - 1) / sectorsPerBit
	stop := end / sectorsPerBit
	if end >= uint64(b.size) {
		stop = b.bits
	}
	if first >= stop {
		return 0, 0, false
	}
	return first, stop - 1, true
}

func (b *Bitmap) mustContain(op string, first, last uint64) {
	if first > last || last >= b.bits {
		panic(fmt.Sprintf("meta: Bitmap.%s(%d, %d) of %d bits", op, first, last, b.bits))
	}
}

// wordMask covers the bits of word w that are within [first, last].
func wordMask(w, first, last uint64) uint64 {
	m := ^uint64(0)
	if base := w * bitsPerWord; first > base {
		m <<= first - base
	}
	if end := w*bitsPerWord + bitsPerWord - 1; last < end {
		m &= ^uint64(0) >> (end - last)
	}
	return m
}

func (b *Bitmap) mark(p uint64, f pageFlags) {
	if b.pages[p].flags == 0 {
		b.dirtyN++
		b.dirty[p/64] |= 1 << (p % 64)
	}
	b.pages[p].flags |= f
}

// clean notes that page p has no flags any more.
func (b *Bitmap) clean(p int) {
	b.dirtyN--
	b.dirty[p/64] &^= 1 << (p % 64)
}

// within is the part of [first, last] that lies in page p.
func within(p, first, last uint64) (from, to uint64) {
	return max(first, p*bitsPerPage), min(last, p*bitsPerPage+bitsPerPage-1)
}

// Set sets the bits first to last and returns how many were clear.
func (b *Bitmap) Set(first, last uint64) (changed uint64) {
	b.mustContain("Set", first, last)
	for p := first / bitsPerPage; p <= last/bitsPerPage; p++ {
		from, to := within(p, first, last)
		full, old := b.capacity(p), b.pages[p].weight
		weight := old
		switch {
		case old == full:
			continue
		case to-from+1 == uint64(full):
			weight = full
		default:
			words := b.expand(p)
			for w := from / bitsPerWord; w <= to/bitsPerWord; w++ {
				v := &words[w%wordsPerPage]
				add := wordMask(w, from, to) &^ *v
				*v |= add
				weight += uint16(bits.OnesCount64(add))
			}
		}
		if weight != old {
			b.reweigh(p, weight)
			b.mark(p, pageSets)
			changed += uint64(weight - old)
		}
	}
	return changed
}

func (b *Bitmap) orWord(w, mask uint64) {
	p := w / wordsPerPage
	add := mask &^ b.word(w)
	if add == 0 {
		return
	}
	b.expand(p)[w%wordsPerPage] |= add
	b.reweigh(p, b.pages[p].weight+uint16(bits.OnesCount64(add)))
	b.mark(p, pageSets)
}

// Clear clears the bits first to last and returns how many were set.
func (b *Bitmap) Clear(first, last uint64) (changed uint64) {
	b.mustContain("Clear", first, last)
	for p := first / bitsPerPage; p <= last/bitsPerPage; p++ {
		from, to := within(p, first, last)
		old := b.pages[p].weight
		weight := old
		switch {
		case old == 0:
			continue
		case to-from+1 == uint64(b.capacity(p)):
			weight = 0
		default:
			words := b.expand(p)
			for w := from / bitsPerWord; w <= to/bitsPerWord; w++ {
				v := &words[w%wordsPerPage]
				gone := wordMask(w, from, to) & *v
				*v &^= gone
				weight -= uint16(bits.OnesCount64(gone))
			}
		}
		if weight != old {
			b.reweigh(p, weight)
			b.mark(p, pageClears)
			changed += uint64(old - weight)
		}
	}
	return changed
}

// Test reports whether one bit is set.
func (b *Bitmap) Test(bit uint64) bool {
	b.mustContain("Test", bit, bit)
	return b.word(bit/bitsPerWord)>>(bit%bitsPerWord)&1 != 0
}

// Any reports whether a bit of first to last is set.
func (b *Bitmap) Any(first, last uint64) bool {
	b.mustContain("Any", first, last)
	return b.nextSet(first, last) <= last
}

// All reports whether every bit of first to last is set.
func (b *Bitmap) All(first, last uint64) bool {
	b.mustContain("All", first, last)
	return b.nextClear(first, last) > last
}

// Count returns the number of set bits of first to last.
func (b *Bitmap) Count(first, last uint64) (n uint64) {
	b.mustContain("Count", first, last)
	for w := first / bitsPerWord; w <= last/bitsPerWord; w++ {
		n += uint64(bits.OnesCount64(b.word(w) & wordMask(w, first, last)))
	}
	return n
}

// NextSet returns the first set bit at or after from, Bits() if there is none.
// Empty pages are skipped whole.
func (b *Bitmap) NextSet(from uint64) uint64 { return b.nextSet(from, b.bits) }

// nextSet looks no further than to the page of last: what it returns beyond that
// says only that there is none before.
func (b *Bitmap) nextSet(from, last uint64) uint64 {
	for p := from / bitsPerPage; p < uint64(len(b.pages)) && p <= last/bitsPerPage; p++ {
		pg := &b.pages[p]
		if pg.weight == 0 {
			continue
		}
		at := max(from, p*bitsPerPage)
		if pg.words == nil {
			return min(b.bits, at)
		}
		for w := at / bitsPerWord; w < (p+1)*wordsPerPage; w++ {
			if v := pg.words[w%wordsPerPage] & (^uint64(0) << (max(at, w*bitsPerWord) - w*bitsPerWord)); v != 0 {
				return w*bitsPerWord + uint64(bits.TrailingZeros64(v))
			}
		}
	}
	return b.bits
}

// NextClear returns the first clear bit at or after from, Bits() if there is
// none. Full pages are skipped whole.
func (b *Bitmap) NextClear(from uint64) uint64 { return b.nextClear(from, b.bits) }

// nextClear looks no further than to the page of last, as nextSet.
func (b *Bitmap) nextClear(from, last uint64) uint64 {
	for p := from / bitsPerPage; p < uint64(len(b.pages)) && p <= last/bitsPerPage; p++ {
		pg := &b.pages[p]
		if pg.weight == b.capacity(p) {
			continue
		}
		at := max(from, p*bitsPerPage)
		if pg.words == nil {
			return min(b.bits, at)
		}
		for w := at / bitsPerWord; w < (p+1)*wordsPerPage; w++ {
			if v := ^pg.words[w%wordsPerPage] & (^uint64(0) << (max(at, w*bitsPerWord) - w*bitsPerWord)); v != 0 {
				return min(b.bits, w*bitsPerWord+uint64(bits.TrailingZeros64(v)))
			}
		}
	}
	return b.bits
}

// Words copies the bitmap from 64-bit word number word on into dst as little
// endian bytes. len(dst) must be a multiple of 8; what lies beyond the device
// is zero.
func (b *Bitmap) Words(word uint64, dst []byte) {
	if len(dst)%8 != 0 {
		panic(fmt.Sprintf("meta: Bitmap.Words into %d bytes", len(dst)))
	}
	for ; len(dst) > 0; dst = dst[8:] {
		binary.LittleEndian.PutUint64(dst, b.word(word))
		word++
	}
}

// SetRange is Set without the count.
func (b *Bitmap) SetRange(first, last uint64) { b.Set(first, last) }

// OrWords sets the bits that are set in le, little endian bytes that begin at
// 64-bit word number word. Bits beyond the device are ignored. len(le) must be
// a multiple of 8.
func (b *Bitmap) OrWords(word uint64, le []byte) {
	if len(le)%8 != 0 {
		panic(fmt.Sprintf("meta: Bitmap.OrWords of %d bytes", len(le)))
	}
	for ; len(le) > 0 && word*bitsPerWord < b.bits; le = le[8:] {
		b.orWord(word, binary.LittleEndian.Uint64(le)&wordMask(word, 0, b.bits-1))
		word++
	}
}

// SetAll sets every bit. All pages become dirty, whatever they held.
func (b *Bitmap) SetAll() {
	if b.bits > 0 {
		b.Set(0, b.bits-1)
	}
	b.markAll(pageSets)
}

// ClearAll clears every bit. All pages become dirty, whatever they held.
func (b *Bitmap) ClearAll() {
	if b.bits > 0 {
		b.Clear(0, b.bits-1)
	}
	b.markAll(pageClears)
}

func (b *Bitmap) markAll(f pageFlags) {
	for p := range b.pages {
		b.mark(uint64(p), f)
	}
}

// Resize changes the device's size, in sectors. Bits of blocks that are new
// are set if setNew, else clear. All pages become dirty, as the bitmap of
// internal metadata moves.
func (b *Bitmap) Resize(size drbd.Sector, setNew bool) {
	old := *b
	b.allocate(size)
	if n := len(old.pages); n > 0 {
		old.expand(uint64(n - 1)) // "all set" is going to mean more bits, or fewer
		if n > len(b.pages) && len(b.pages) > 0 {
			old.expand(uint64(len(b.pages) - 1))
		}
	}
	b.spare = old.spare
	copy(b.pages, old.pages)
	for p := range b.pages {
		pg := &b.pages[p]
		pg.flags = 0
		weight := pg.weight
		if pg.weight = 0; pg.words == nil {
			b.reweigh(uint64(p), weight)
			continue
		}
		b.replace(uint64(p), pg.words)
	}
	if setNew && b.bits > old.bits {
		b.Set(old.bits, b.bits-1)
	}
	b.markAll(pageSets | pageClears)
}

// replace makes words the content of page p, but for bits beyond the device.
func (b *Bitmap) replace(p uint64, words *[wordsPerPage]uint64) {
	n := 0
	for i := range words {
		if w := p*wordsPerPage + uint64(i); w*bitsPerWord < b.bits {
			words[i] &= wordMask(w, 0, b.bits-1)
		} else {
			words[i] = 0
		}
		n += bits.OnesCount64(words[i])
	}
	b.reweigh(p, uint16(n))
}

// Pages is the number of 4 KiB pages that the bitmap takes on disk.
func (b *Bitmap) Pages() int { return len(b.pages) }

// PageOf is the page that holds bit.
func PageOf(bit uint64) int { return int(bit / bitsPerPage) }

// DirtyPages appends to dst the pages that differ from the disk.
func (b *Bitmap) DirtyPages(dst []int) []int {
	for i, left := 0, b.dirtyN; left > 0; i++ {
		for w := b.dirty[i]; w != 0; w &= w - 1 {
			dst = append(dst, i*64+bits.TrailingZeros64(w))
			left--
		}
	}
	return dst
}

// PageDirty reports whether page p differs from the disk.
func (b *Bitmap) PageDirty(p int) bool { return b.pages[p].flags != 0 }

// PageHasSets reports whether page p has bits set that are clear on disk.
func (b *Bitmap) PageHasSets(p int) bool { return b.pages[p].flags&pageAnySets != 0 }

// PageHasClears reports whether page p has bits cleared that are set on disk:
// the data of these blocks must be stable before the page is written.
func (b *Bitmap) PageHasClears(p int) bool { return b.pages[p].flags&pageAnyClears != 0 }

// EncodePage writes page p as it goes to disk to dst[:BlockSize]. The page
// stays dirty until MarkClean; one page must not be encoded again before that
// unless the first copy is given up.
func (b *Bitmap) EncodePage(p int, dst []byte) {
	dst = dst[:BlockSize]
	for i := range wordsPerPage {
		binary.LittleEndian.PutUint64(dst[i*8:], b.word(uint64(p*wordsPerPage+i)))
	}
	// Flags of an earlier copy that never was marked clean are kept.
	f := &b.pages[p].flags
	*f = *f&^pageFlagsNew | *f&pageFlagsNew<<pageEncodeShift
}

// MarkClean tells that page p is on stable storage as EncodePage last gave it.
// Changes made since then stay dirty.
func (b *Bitmap) MarkClean(p int) {
	f := &b.pages[p].flags
	if *f == 0 {
		return
	}
	if *f &= pageFlagsNew; *f == 0 {
		b.clean(p)
	}
}

// LoadPage replaces page p by what the disk holds, src[:BlockSize]. Bits
// beyond the device, which DRBD may leave there, are ignored.
func (b *Bitmap) LoadPage(p int, src []byte) {
	src = src[:BlockSize]
	if allZero(src) {
		b.reweigh(uint64(p), 0)
	} else {
		words := b.expand(uint64(p))
		for i := range words {
			words[i] = binary.LittleEndian.Uint64(src[i*8:])
		}
		b.replace(uint64(p), words)
	}
	if b.pages[p].flags != 0 {
		b.pages[p].flags = 0
		b.clean(p)
	}
}
