package export_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/protocol/nbd"
)

const sessionSize = 1 << 20 // of the export

// FuzzSession is a client on a real socket: options in any order, then requests
// of any kind at the bounds of the export, many in flight, and an end at any
// place. As long as the client keeps to the protocol its replies have to fit its
// requests; in any case the memory is bounded, and the next client is served.
func FuzzSession(f *testing.F) {
	f.Add([]byte{3, 0, 8, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 5, 2, 0})
	f.Add([]byte{1, 4, 1, 2, 3, 0, 6, 0, 4, 3, 6, 0, 9, 12, 7, 0, 0, 5, 1, 0, 8, 11})
	f.Add([]byte{0, 9, 9, 200, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{7, 2, 5, 6, 0, 1, 1, 0, 3, 3, 4, 0, 4, 0, 5, 1, 0, 0, 9, 9, 9})
	r := memRig(f, sessionSize)
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 4096 {
			return
		}
		fuzztest.Bounded(t, memoryBound, func() {
			s := &session{in: fuzztest.NewProgram(program), sent: map[uint64]nbd.Request{}, t: t}
			s.run(r.dial(t))
			for end := time.Now().Add(20 * time.Second); r.backend.Opens() > 0; time.Sleep(100 * time.Microsecond) {
				if time.Now().After(end) {
					t.Fatal("the volume stays open")
				}
			}
			c := r.raw(t).enter("web-root")
			block := make([]byte, 512)
			copy(block, program)
			if e, _ := c.do(nbd.Request{Command: nbd.CmdWrite, Length: 512}, block, 0); e != nbd.OK {
				t.Fatalf("the next client's write: %v", e)
			}
			if e, got := c.do(nbd.Request{Command: nbd.CmdRead, Length: 512}, nil, 512); e != nbd.OK || string(got) != string(block) {
				t.Fatalf("the next client's read: %v, %x", e, got)
			}
			c.Close()
		})
	})
}

// session is the client.
type session struct {
	t          *testing.T
	in         *fuzztest.Program
	structured bool
	broken     bool // it has not kept to the protocol: what comes back is no matter
	sent       map[uint64]nbd.Request
}

func (s *session) run(c net.Conn) {
	defer c.Close()
	style := s.in.Byte()
	canonical := style&3 == 3
	if canonical {
		raw := (&raw{c, s.t}).greet(nbd.FixedNewstyle | nbd.NoZeroes)
		if s.structured = style&4 != 0; s.structured {
			raw.option(nbd.OptStructuredReply, nil)
			raw.option(nbd.OptSetMetaContext, []byte("\x00\x00\x00\x08web-root\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"))
		}
		raw.option(nbd.OptGo, nbd.InfoRequest{Name: "web-root"}.Append(nil))
	} else {
		s.options(c, style)
	}
	out, n := s.requests()
	drained := make(chan error, 1)
	go func() { drained <- s.replies(c, canonical && !s.broken, n) }()
	c.Write(out) //nolint:errcheck // the server may close at any byte
	if canonical && !s.broken && style&128 == 0 {
		if err := <-drained; err != nil {
			s.t.Fatal(err)
		}
		return
	}
	c.Close() // in the middle of whatever it is
	<-drained //nolint:errcheck // whatever ended it
}

// options haggles: right and wrong ones, and some whose length lies.
func (s *session) options(c net.Conn, style byte) {
	b := nbd.AppendClientFlags(nil, nbd.HandshakeFlags(style>>2&7))
	for range 1 + int(style>>5) {
		o := nbd.Option(s.in.Byte() % 14)
		data := s.in.Take(int(s.in.Byte() & 31))
		switch s.in.Byte() & 7 {
		case 0, 1:
			data = nbd.InfoRequest{Name: "web-root", Types: []nbd.InfoType{3, 0, nbd.InfoType(s.in.Byte())}}.Append(nil)
		case 2:
			data = append([]byte("\x00\x00\x00\x08web-root"), data...)
		case 3:
			data = nil
		}
		b = nbd.AppendOption(b, o, data)
		if s.in.Byte() == 0xff {
			binary.BigEndian.PutUint32(b[len(b)-len(data)-4:], 0xffffffff)
		}
	}
	c.Write(nbd.AppendOption(b, nbd.OptGo, nbd.InfoRequest{Name: "web-root"}.Append(nil))) //nolint:errcheck // as above
}

// requests are all that the client sends behind its options.
func (s *session) requests() (out []byte, n int) {
	offsets := []uint64{0, 4096, 512, 1, sessionSize - 512, sessionSize, sessionSize - 1, sessionSize + 512, 1 << 40, 1<<63 - 512, 1 << 63, 1<<64 - 512, 1<<64 - 1}
	lengths := []uint32{4096, 512, 1, 0, 65536, sessionSize, sessionSize - 4096, sessionSize + 1, 32 << 20, 1 << 31, 0xffffffff, 0xfffffe00}
	for s.in.Left() > 0 && n < 200 && len(out) < 4<<20 {
		q := nbd.Request{
			Command: nbd.Command(s.in.Byte() % 9), Flags: nbd.CommandFlags(s.in.Byte() & 31), Cookie: uint64(n) + 1,
			Offset: offsets[int(s.in.Byte())%len(offsets)], Length: lengths[int(s.in.Byte())%len(lengths)],
		}
		n++
		s.sent[q.Cookie] = q
		head := q.Append(nil)
		switch s.in.Byte() {
		case 0xff: // no request at all
			head[0] ^= 1
			s.broken = true
		case 0xfe:
			head = head[:len(head)/2]
			s.broken = true
		}
		out = append(out, head...)
		switch {
		case q.Command == nbd.CmdWrite && q.Length <= sessionSize:
			out = append(out, make([]byte, q.Length)...)
		case q.Command == nbd.CmdWrite: // it will not send so much
			s.broken = true
		case q.Command == nbd.CmdDisc:
			return out, n
		}
	}
	return append(out, nbd.Request{Command: nbd.CmdDisc}.Append(nil)...), n
}

// replies reads to the end; what does not fit a request is an error.
func (s *session) replies(c net.Conn, strict bool, n int) error {
	if !strict {
		io.Copy(io.Discard, c) //nolint:errcheck // any answer will do
		return nil
	}
	for {
		head := make([]byte, nbd.SimpleReplySize)
		if _, err := io.ReadFull(c, head); err == io.EOF {
			return nil // the server may end a conversation, but not within a reply
		} else if err != nil {
			return fmt.Errorf("after a part of %d replies: %w", n-len(s.sent), err)
		}
		if rep, err := nbd.DecodeSimpleReply(head); err == nil {
			q, ok := s.sent[rep.Cookie]
			if !ok || s.structured && q.Command == nbd.CmdRead {
				return fmt.Errorf("a simple reply to no request, or to a read: %+v", rep)
			}
			delete(s.sent, rep.Cookie)
			if q.Command == nbd.CmdRead && rep.Error == nbd.OK {
				if _, err := io.CopyN(io.Discard, c, int64(q.Length)); err != nil {
					return fmt.Errorf("data of %+v: %w", q, err)
				}
			}
			continue
		}
		rest := make([]byte, nbd.ChunkHeaderSize-nbd.SimpleReplySize)
		if _, err := io.ReadFull(c, rest); err != nil {
			return fmt.Errorf("header of a chunk: %w", err)
		}
		k, err := nbd.DecodeChunk(append(head, rest...))
		if err != nil {
			return err
		}
		q, ok := s.sent[k.Cookie]
		if !ok || !s.structured || k.Length > q.Length+64<<10 {
			return fmt.Errorf("chunk %+v for request %+v (%v)", k, q, ok)
		}
		if _, err := io.CopyN(io.Discard, c, int64(k.Length)); err != nil {
			return fmt.Errorf("data of %+v: %w", k, err)
		}
		if k.Flags&nbd.ChunkDone != 0 {
			delete(s.sent, k.Cookie)
		}
	}
}
