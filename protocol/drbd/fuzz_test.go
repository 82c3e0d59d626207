package drbd_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// seed gives f every capture's first packet of each kind.
func seed(f *testing.F, add func(e wiretest.Event, h drbd.Header)) {
	seen := make(map[drbd.Command]bool)
	for _, name := range wiretest.Names(f) {
		for _, e := range wiretest.Load(f, name) {
			if e.Kind != wiretest.Packet {
				continue
			}
			h, err := e.DecodeHeader()
			if err != nil {
				f.Fatal(err)
			}
			if !seen[h.Command] {
				seen[h.Command] = true
				add(e, h)
			}
		}
	}
}

// FuzzDecode: no payload makes Decode panic; what it takes encodes to a packet
// that decodes to the same, and no more bytes come out than went in, except that
// fields which are sent as zero replace what was there.
func FuzzDecode(f *testing.F) {
	seed(f, func(e wiretest.Event, h drbd.Header) {
		f.Add(uint16(h.Command), e.Payload[:min(len(e.Payload), 200)], true)
	})
	f.Add(uint16(drbd.CmdTerm), drbd.TermPacket{Term: 7, Promised: 9, Flags: 1}.Append(nil), false)
	f.Fuzz(func(t *testing.T, cmd uint16, payload []byte, wsame bool) {
		h := drbd.Header{Command: drbd.Command(cmd), Length: uint32(len(payload))}
		for _, s := range []drbd.Socket{drbd.DataSocket, drbd.MetaSocket} {
			if err := drbd.CheckLength(h, wsame, s); err == nil && len(payload) > drbd.MaxRequestSize+128 {
				t.Fatalf("%v of %d bytes is taken", h.Command, len(payload))
			}
		}
		p, rest, err := drbd.Decode(h, payload, wsame)
		if err != nil {
			if p != nil || rest != nil {
				t.Fatalf("%v with error %v", p, err)
			}
			return
		}
		again := append(p.Append(nil), rest...)
		if len(again) != len(payload) {
			t.Fatalf("%v: %d bytes became %d", h.Command, len(payload), len(again))
		}
		q, rest2, err := drbd.Decode(h, again, wsame)
		if err != nil || !bytes.Equal(rest, rest2) || !cmp.Equal(p, q) {
			t.Fatalf("%v: %+v became %+v, %v", h.Command, p, q, err)
		}
	})
}

// FuzzHeader: every header that is taken encodes back to its bytes.
func FuzzHeader(f *testing.F) {
	seed(f, func(e wiretest.Event, _ drbd.Header) { f.Add(e.Header) })
	f.Add([]byte{0x83, 0x5a, 0, 0, 0, 1, 0, 0x18})
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := drbd.DecodeHeader80(b); err == nil && b[1] == 0x74 {
			if got := drbd.AppendHeader80(nil, h.Command, int(h.Length)); !bytes.Equal(got, b[:8]) {
				t.Errorf("h80 %x became %x", b, got)
			}
		}
		h, err := drbd.DecodeHeader100(b)
		if err != nil {
			return
		}
		if got := drbd.AppendHeader100(nil, h); !bytes.Equal(got, b[:16]) {
			t.Errorf("h100 %x became %x", b, got)
		}
		for _, s := range []drbd.Socket{drbd.DataSocket, drbd.MetaSocket} {
			if drbd.CheckLength(h, true, s) == nil && h.Length > 24+drbd.MaxDigestSize+drbd.MaxRequestSize {
				t.Errorf("a %v of %d bytes is taken", h.Command, h.Length)
			}
		}
	})
}

// FuzzBitmap takes the input both as a bitmap, which has to arrive as it was
// sent, and as packets, which must not touch bits beyond the end (the sink
// panics then).
func FuzzBitmap(f *testing.F) {
	f.Add(uint32(262144), []byte{0x12, 0x3f, 0xb7, 0x62, 0xff, 0x7d, 0x6b, 0x0f}, true)
	f.Add(uint32(65), bytes.Repeat([]byte{0xaa}, 16), false)
	seed(f, func(e wiretest.Event, h drbd.Header) {
		f.Add(uint32(63989), e.Payload[:min(len(e.Payload), 4080)], h.Command == drbd.CmdCompressedBitmap)
	})
	f.Fuzz(func(t *testing.T, bits uint32, b []byte, useRLE bool) {
		b = b[:min(len(b), 2*drbd.MaxBitmapSize)] // the naive bitmaps are slow
		src := newNaiveBits(uint64(len(b)) * 8)
		if len(b) > 0 {
			src.OrWords(0, append(bytes.Clone(b), make([]byte, (8-len(b)%8)%8)...))
		}
		sink := newNaiveBits(src.Bits())
		if err := receiveAll(sink, sendAll(src, useRLE)); err != nil || !slices.Equal(src.set, sink.set) {
			t.Fatalf("sent %x, use-rle %v: %v", b, useRLE, err)
		}

		r := drbd.NewBitmapReceiver(newNaiveBits(uint64(bits % (1 << 17))))
		for rest := b; len(rest) > 0; {
			cmd := drbd.CmdCompressedBitmap
			if rest[0]&0x0f != 2 {
				cmd = drbd.CmdBitmap
			}
			n := min(len(rest), drbd.MaxBitmapSize)
			if done, err := r.Receive(cmd, rest[:n]); done || err != nil {
				return
			}
			rest = rest[n:]
		}
	})
}
