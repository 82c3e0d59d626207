package drbd

import (
	"encoding/binary"
	"fmt"
)

// A BitSource is a bitmap to be sent: one bit for every 4096 bytes of the volume
// (drbd84-protocol, 6.1).
type BitSource interface {
	// Bits is the number of bits.
	Bits() uint64
	// NextSet and NextClear are the first bit of their kind at or after
	// from, Bits() if there is none.
	NextSet(from uint64) uint64
	NextClear(from uint64) uint64
	// Words fills dst with len(dst)/8 64-bit words from the given word on: a
	// little-endian bit stream whose bits beyond the last one are 0.
	Words(word uint64, dst []byte)
}

// A BitSink is the bitmap that a received one is merged into.
type BitSink interface {
	// Bits is the number of bits.
	Bits() uint64
	// SetRange sets the bits first to last, inclusive; last < Bits().
	SetRange(first, last uint64)
	// OrWords sets the bits that are set in le, len(le)/8 64-bit words for
	// the given word and those after it, in the form of BitSource.Words. It
	// does not keep le.
	OrWords(word uint64, le []byte)
}

// What a packet of a bitmap with its h100 header in front may hold.
const (
	wordSize     = 8 // bytes
	bitsPerWord  = 64
	plainWords   = MaxBitmapSize / wordSize // 510
	maxCodeBytes = MaxBitmapSize - 1        // 4079: the first byte is the encoding
)

// Fields of the encoding byte of P_COMPRESSED_BITMAP.
// Source: drbd_protocol.h, enum drbd_bitmap_code; drbd_receiver.c, dcbp_*.
const (
	codeRLEVLI  = 2    // bits 0 to 3: the code, the only one there is
	codeMask    = 0x0f //
	padShift    = 4    // bits 4 to 6: unused bits at the end of the last byte
	padMask     = 7    //
	firstRunSet = 0x80 // bit 7: the first run is of set bits
)

// A BitmapSender turns a bitmap into the packets that carry it. It is used by
// one goroutine at a time; the source must not change during a call of Next, and
// between calls bits may only be set.
type BitmapSender struct {
	src    BitSource
	useRLE bool
	bits   uint64
	words  uint64
	bit    uint64 // everything below is sent
	word   uint64 // bit/64, rounded up once the last plain packet is out
	done   bool
}

// NewBitmapSender begins with the first bit of src. useRLE is the option
// use-rle: without it all packets are plain.
func NewBitmapSender(src BitSource, useRLE bool) *BitmapSender {
	n := src.Bits()
	return &BitmapSender{src: src, useRLE: useRLE, bits: n, words: wordsOf(n)}
}

// wordsOf is the number of 64-bit words that hold n bits.
func wordsOf(n uint64) uint64 { return (n + bitsPerWord - 1) / bitsPerWord }

// Next is the payload of the next packet; done says that it is the last one,
// after which Next must not be called. The payload overwrites dst from its
// start if dst has a capacity of MaxBitmapSize, and is allocated if it has less.
//
// A packet is compressed if that makes it no longer than the bits themselves.
// If not, it is a plain one that starts with the word of the first bit to send,
// so that some bits may be sent twice. A bitmap that ends with a plain packet is
// closed with an empty one.
func (s *BitmapSender) Next(dst []byte) (cmd Command, payload []byte, done bool) {
	if s.done {
		panic("drbd: BitmapSender.Next after the last packet")
	}
	if cap(dst) < MaxBitmapSize {
		dst = make([]byte, 0, MaxBitmapSize)
	}
	if s.useRLE && s.bit < s.bits {
		if payload, ok := s.compress(dst[:0]); ok {
			s.done = s.bit == s.bits
			return CmdCompressedBitmap, payload, s.done
		}
	}
	n := min(plainWords, s.words-s.word)
	payload = dst[:n*wordSize]
	if n > 0 {
		s.src.Words(s.word, payload)
	}
	s.word += n
	s.bit = min(s.word*bitsPerWord, s.bits)
	s.done = n == 0
	return CmdBitmap, payload, s.done
}

// compress appends the runs from s.bit on, as many as fit, and moves on behind
// them. If they take more bytes than the bits themselves would it reports false
// and goes back to the start of the word.
func (s *BitmapSender) compress(dst []byte) ([]byte, bool) {
	w := bitWriter{buf: append(dst, codeRLEVLI), limit: 1 + maxCodeBytes, used: 8}
	start, at := s.bit, s.bit
	isSet := s.src.NextSet(at) == at
	if isSet {
		w.buf[0] |= firstRunSet
	}
	for ; at < s.bits; isSet = !isSet {
		end := s.src.NextSet
		if isSet {
			end = s.src.NextClear
		}
		next := end(at)
		if next <= at || next > s.bits {
			panic(fmt.Sprintf("drbd: a run of bits from %d to %d of %d", at, next, s.bits))
		}
		code, n := vliEncode(next - at)
		if !w.put(code, n) {
			break
		}
		at = next
	}
	if codeBytes := uint64(len(w.buf) - 1); at-start < 8*codeBytes {
		s.word = start / bitsPerWord
		s.bit = s.word * bitsPerWord
		return nil, false
	}
	s.bit, s.word = at, at/bitsPerWord
	w.buf[0] |= byte(8-w.used) << padShift
	return w.buf, true
}

// A BitmapReceiver merges the packets of a peer's bitmap into ours. It is used
// under the lock that guards the sink.
type BitmapReceiver struct {
	sink  BitSink
	bits  uint64
	words uint64
	bit   uint64 // everything below has been received
	word  uint64
	done  bool
	tail  [wordSize]byte // the last word, without bits beyond the end
}

// NewBitmapReceiver begins with the first bit of sink.
func NewBitmapReceiver(sink BitSink) *BitmapReceiver {
	n := sink.Bits()
	return &BitmapReceiver{sink: sink, bits: n, words: wordsOf(n)}
}

// Receive merges one packet; done says that it was the last one of the bitmap.
// While a bitmap is being received the data socket brings no other packets. The
// error is a *ProtocolError; some bits of the bad packet may have been set then,
// which costs a resync of blocks that are equal and nothing else.
func (r *BitmapReceiver) Receive(cmd Command, payload []byte) (done bool, err error) {
	switch {
	case cmd != CmdBitmap && cmd != CmdCompressedBitmap:
		return false, &ProtocolError{Packet: cmd, Field: "command", Got: cmd, Want: "P_BITMAP or P_COMPRESSED_BITMAP until the bitmap is complete"}
	case r.done:
		return false, &ProtocolError{Packet: cmd, Field: "command", Got: cmd, Want: "none: the bitmap is complete"}
	case len(payload) > MaxBitmapSize:
		return false, &ProtocolError{Packet: cmd, Field: "length", Got: len(payload), Want: span{0, MaxBitmapSize}}
	case cmd == CmdBitmap:
		err = r.plain(payload)
	default:
		err = r.compressed(payload)
	}
	return r.done && err == nil, err
}

// plain merges the payload of a P_BITMAP. Its length follows from the position.
func (r *BitmapReceiver) plain(payload []byte) error {
	n := min(plainWords, r.words-r.word)
	if uint64(len(payload)) != n*wordSize {
		return &ProtocolError{Packet: CmdBitmap, Field: "length", Got: len(payload), Want: n * wordSize}
	}
	if n == 0 {
		r.done = true
		return nil
	}
	if r.word+n == r.words { // the last word may have bits beyond the end
		n--
		last := binary.LittleEndian.Uint64(payload[n*wordSize:])
		last &= ^uint64(0) >> (r.words*bitsPerWord - r.bits)
		binary.LittleEndian.PutUint64(r.tail[:], last)
		r.sink.OrWords(r.word+n, r.tail[:])
		payload = payload[:n*wordSize]
	}
	if n > 0 {
		r.sink.OrWords(r.word, payload)
	}
	r.word = min(r.word+plainWords, r.words)
	r.bit = min(r.word*bitsPerWord, r.bits)
	return nil
}

// compressed merges the payload of a P_COMPRESSED_BITMAP.
func (r *BitmapReceiver) compressed(payload []byte) error {
	if len(payload) < 2 {
		return &ProtocolError{Packet: CmdCompressedBitmap, Field: "length", Got: len(payload), Want: span{2, MaxBitmapSize}}
	}
	encoding, code := payload[0], payload[1:]
	if encoding&codeMask != codeRLEVLI {
		return &ProtocolError{Packet: CmdCompressedBitmap, Field: "code", Got: encoding & codeMask, Want: codeRLEVLI}
	}
	pad := uint(encoding >> padShift & padMask)
	if code[len(code)-1]>>(8-pad) != 0 {
		return &ProtocolError{Packet: CmdCompressedBitmap, Field: "pad bits", Got: hex32(code[len(code)-1]), Want: "zeroes"}
	}
	bit, isSet := r.bit, encoding&firstRunSet != 0
	end := uint(len(code))*8 - pad
	for pos := uint(0); pos < end; isSet = !isSet {
		run, n := vliDecode(peek(code, pos))
		if n > end-pos {
			return &ProtocolError{Packet: CmdCompressedBitmap, Field: "last code word", Got: fmt.Sprintf("%d bits", end-pos), Want: fmt.Sprintf("%d bits", n)}
		}
		if run > r.bits-bit {
			return &ProtocolError{Packet: CmdCompressedBitmap, Field: "end of the run at bit " + fmt.Sprint(bit), Got: bit + run, Want: fmt.Sprintf("at most %d", r.bits)}
		}
		if isSet {
			r.sink.SetRange(bit, bit+run-1)
		}
		bit += run
		pos += n
	}
	r.bit, r.word = bit, bit/bitsPerWord
	r.done = bit == r.bits
	return nil
}
