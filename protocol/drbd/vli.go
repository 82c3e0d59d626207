package drbd

import (
	"encoding/binary"
	"math/bits"
)

// A vliLevel is one size class of the variable length code for run lengths. A
// code word is the prefix, then run - min, both low bit first.
type vliLevel struct {
	bits       uint   // of the whole code word
	prefixBits uint   // of the prefix
	prefix     uint64 // sent low bit first
	min        uint64 // smallest run of the level
}

// vliLevels is the code, shortest runs first. Source: drbd_vli.h, VLI_L_1_2 to
// VLI_L_8_64; the smallest run of a level follows the largest of the one before.
var vliLevels = [...]vliLevel{
	{2, 1, 0x00, 1},
	{3, 2, 0x01, 3},
	{5, 3, 0x03, 5},
	{7, 4, 0x07, 9},
	{10, 5, 0x0f, 17},
	{14, 6, 0x1f, 49},
	{21, 8, 0x3f, 305},
	{29, 8, 0x7f, 8497},
	{42, 8, 0xbf, 2105649},
	{64, 8, 0xff, 17181974833},
}

// vliEncode is the code word of run, at least 1 and below 2^56, and its length
// in bits.
func vliEncode(run uint64) (code uint64, n uint) {
	i := len(vliLevels) - 1
	for run < vliLevels[i].min {
		i--
	}
	l := &vliLevels[i]
	return (run-l.min)<<l.prefixBits | l.prefix, l.bits
}

// vliDecode is the run whose code word starts at the lowest bit of code, and
// the length of that word in bits, 2 to 64.
func vliDecode(code uint64) (run uint64, n uint) {
	i := uint(bits.TrailingZeros64(^code))
	if i > 5 { // six ones: the next two bits tell the levels of 8-bit prefixes apart
		i = 6 + uint(code>>6&3)
	}
	l := &vliLevels[i]
	data := code >> l.prefixBits & (1<<(l.bits-l.prefixBits) - 1)
	return data + l.min, l.bits
}

// A bitWriter appends code words to buf, low bit of the first byte first, while
// the code fits into limit bytes of buf.
type bitWriter struct {
	buf   []byte
	limit int  // of len(buf)
	used  uint // bits used of the last byte, 1 to 8; 8 also while there is none
}

// put appends the n low bits of code, whose other bits are zero, or nothing if
// they do not all fit.
func (w *bitWriter) put(code uint64, n uint) bool {
	free := 8 - w.used
	if n > free && len(w.buf)+int((n-free+7)/8) > w.limit {
		return false
	}
	for n > 0 {
		if w.used == 8 {
			w.buf = append(w.buf, 0)
			w.used = 0
		}
		w.buf[len(w.buf)-1] |= byte(code << w.used)
		step := min(8-w.used, n)
		code >>= step
		n -= step
		w.used += step
	}
	return true
}

// peek is the 64 bits of b that start at the given bit; bits after the end of b
// are zero.
func peek(b []byte, bit uint) uint64 {
	i, off := bit/8, bit%8
	if i+9 <= uint(len(b)) {
		return binary.LittleEndian.Uint64(b[i:])>>off | uint64(b[i+8])<<(64-off)
	}
	var tail [9]byte
	copy(tail[:], b[i:])
	return binary.LittleEndian.Uint64(tail[:])>>off | uint64(tail[8])<<(64-off)
}
