package export_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/pollux-project/pollux/protocol/nbd"
)

// A raw is a client that sends any bytes.
type raw struct {
	net.Conn
	t testing.TB
}

func (r *rig) raw(t testing.TB) *raw { return &raw{r.dial(t), t} }

func (c *raw) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *raw) recv(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return b
}

// mustEnd checks that the server closes the connection.
func (c *raw) mustEnd() {
	c.t.Helper()
	b, err := io.ReadAll(c)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		c.t.Fatal("the connection stays open")
	}
	if len(b) != 0 {
		c.t.Errorf("%d more bytes before the end: %x", len(b), b[:min(len(b), 64)])
	}
}

// greet takes the greeting and answers it.
func (c *raw) greet(flags nbd.HandshakeFlags) *raw {
	c.t.Helper()
	offered, err := nbd.DecodeGreeting(c.recv(nbd.GreetingSize))
	if err != nil || offered != nbd.FixedNewstyle|nbd.NoZeroes {
		c.t.Fatalf("greeting: %v %v", offered, err)
	}
	c.send(nbd.AppendClientFlags(nil, flags))
	return c
}

type answer struct {
	t    nbd.ReplyType
	data []byte
}

// option sends an option and returns its answers.
func (c *raw) option(o nbd.Option, data []byte) []answer {
	c.t.Helper()
	c.send(nbd.AppendOption(nil, o, data))
	return c.answers(o)
}

func (c *raw) answers(o nbd.Option) []answer {
	c.t.Helper()
	var all []answer
	for {
		h, err := nbd.DecodeOptionReplyHeader(c.recv(nbd.OptionReplyHeaderSize))
		if err != nil || h.Option != o || h.Length > 1<<16 {
			c.t.Fatalf("answer to %v: %+v, %v", o, h, err)
		}
		all = append(all, answer{h.Type, c.recv(int(h.Length))})
		if h.Type == nbd.RepAck || h.Type.IsError() {
			return all
		}
	}
}

// enter starts transmission.
func (c *raw) enter(name string) *raw {
	c.t.Helper()
	c.greet(nbd.FixedNewstyle | nbd.NoZeroes)
	a := c.option(nbd.OptGo, nbd.InfoRequest{Name: name}.Append(nil))
	if last := a[len(a)-1]; last.t != nbd.RepAck {
		c.t.Fatalf("GO: %v %q", last.t, last.data)
	}
	return c
}

// do sends a request and returns its simple reply's error, with dataLen bytes
// of data if there is none.
func (c *raw) do(q nbd.Request, payload []byte, dataLen int) (nbd.Errno, []byte) {
	c.t.Helper()
	q.Cookie = 0xfeedface00000000 | uint64(q.Command)
	c.send(append(q.Append(nil), payload...))
	rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize))
	if err != nil || rep.Cookie != q.Cookie {
		c.t.Fatalf("reply to %+v: %+v, %v", q, rep, err)
	}
	if rep.Error != nbd.OK {
		return rep.Error, nil
	}
	return nbd.OK, c.recv(dataLen)
}

// mustWork checks that the connection still serves.
func (c *raw) mustWork() {
	c.t.Helper()
	if e, _ := c.do(nbd.Request{Command: nbd.CmdRead, Length: 512}, nil, 512); e != nbd.OK {
		c.t.Fatalf("the next read: %v", e)
	}
}

func u16(n int) []byte    { return binary.BigEndian.AppendUint16(nil, uint16(n)) }
func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func join(b ...[]byte) []byte { return bytes.Join(b, nil) }

func TestHandshakeTable(t *testing.T) {
	r := memRig(t, 1<<20)
	long := bytes.Repeat([]byte("x"), 5000)
	for _, tt := range []struct {
		name string
		opt  nbd.Option
		data []byte
		want []nbd.ReplyType
	}{
		{"LIST", nbd.OptList, nil, []nbd.ReplyType{nbd.RepServer, nbd.RepAck}},
		{"LIST with data", nbd.OptList, []byte("x"), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"INFO", nbd.OptInfo, join(u32(8), []byte("web-root"), u16(0)), []nbd.ReplyType{nbd.RepInfo, nbd.RepInfo, nbd.RepAck}},
		{"INFO of the default", nbd.OptInfo, join(u32(0), u16(0)), []nbd.ReplyType{nbd.RepInfo, nbd.RepInfo, nbd.RepAck}},
		{"INFO with name and text", nbd.OptInfo, join(u32(0), u16(3), u16(1), u16(2), u16(999)), []nbd.ReplyType{nbd.RepInfo, nbd.RepInfo, nbd.RepInfo, nbd.RepInfo, nbd.RepAck}},
		{"INFO of nothing", nbd.OptInfo, join(u32(4), []byte("none"), u16(0)), []nbd.ReplyType{nbd.RepErrUnknown}},
		{"GO of nothing", nbd.OptGo, join(u32(4), []byte("none"), u16(0)), []nbd.ReplyType{nbd.RepErrUnknown}},
		{"INFO, name too long for option", nbd.OptInfo, join(u32(0xfffffff0), []byte("web-root"), u16(0)), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"INFO, name length wraps", nbd.OptInfo, join(u32(0xfffffffe), u16(0)), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"INFO, count too large", nbd.OptInfo, join(u32(0), u16(65535)), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"INFO, count too small", nbd.OptInfo, join(u32(0), u16(0), u16(1)), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"INFO, no data", nbd.OptInfo, nil, []nbd.ReplyType{nbd.RepErrInvalid}},
		{"INFO, long name", nbd.OptInfo, join(u32(5000), long, u16(0)), []nbd.ReplyType{nbd.RepErrTooBig}},
		{"INFO, NUL in name", nbd.OptInfo, join(u32(3), []byte("a\x00b"), u16(0)), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"INFO, no UTF-8", nbd.OptInfo, join(u32(2), []byte{0xff, 0xfe}, u16(0)), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"STARTTLS", nbd.OptStartTLS, nil, []nbd.ReplyType{nbd.RepErrUnsup}},
		{"SET_META before structured", nbd.OptSetMetaContext, join(u32(0), u32(0)), []nbd.ReplyType{nbd.RepErrInvalid}},
		{"STRUCTURED with data", nbd.OptStructuredReply, []byte{1}, []nbd.ReplyType{nbd.RepErrInvalid}},
		{"EXTENDED_HEADERS", nbd.OptExtendedHeaders, nil, []nbd.ReplyType{nbd.RepErrUnsup}},
		{"unknown option", 4711, []byte("skip exactly this"), []nbd.ReplyType{nbd.RepErrUnsup}},
		{"unknown option, 20 KiB", 4711, bytes.Repeat([]byte{1}, 20<<10), []nbd.ReplyType{nbd.RepErrTooBig}},
		{"unknown option, 64 KiB", 4711, bytes.Repeat([]byte{1}, 64<<10), []nbd.ReplyType{nbd.RepErrTooBig}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := r.raw(t).greet(nbd.FixedNewstyle | nbd.NoZeroes)
			for range 2 { // in step: the same again
				var got []nbd.ReplyType
				for _, a := range c.option(tt.opt, tt.data) {
					got = append(got, a.t)
				}
				if len(got) != len(tt.want) {
					t.Fatalf("answers %v, want %v", got, tt.want)
				}
				for i := range got {
					if got[i] != tt.want[i] {
						t.Fatalf("answers %v, want %v", got, tt.want)
					}
				}
			}
			a := c.option(nbd.OptGo, join(u32(0), u16(0)))
			if a[len(a)-1].t != nbd.RepAck {
				t.Fatalf("GO afterwards: %v", a)
			}
			c.mustWork()
		})
	}
}

func TestHandshakeEnds(t *testing.T) {
	r := memRig(t, 1<<20)
	t.Run("unknown client flag", func(t *testing.T) { r.raw(t).greet(1 << 2).mustEnd() })
	t.Run("wrong option magic", func(t *testing.T) {
		c := r.raw(t).greet(nbd.FixedNewstyle)
		c.send(bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 1))
		c.mustEnd()
	})
	t.Run("option of 4 GiB", func(t *testing.T) {
		c := r.raw(t).greet(nbd.FixedNewstyle)
		c.send(join([]byte("IHAVEOPT"), u32(6), u32(0xffffffff)))
		c.mustEnd()
	})
	t.Run("ABORT", func(t *testing.T) {
		c := r.raw(t).greet(nbd.FixedNewstyle)
		if a := c.option(nbd.OptAbort, []byte("ignored")); a[0].t != nbd.RepAck {
			t.Error(a)
		}
		c.mustEnd()
	})
	t.Run("EXPORT_NAME unknown", func(t *testing.T) {
		c := r.raw(t).greet(nbd.FixedNewstyle)
		c.send(nbd.AppendOption(nil, nbd.OptExportName, []byte("none")))
		c.mustEnd()
	})
	t.Run("EXPORT_NAME refused", func(t *testing.T) {
		r.backend.Refuse(errSecondary{})
		defer r.backend.Refuse(nil)
		c := r.raw(t).greet(nbd.FixedNewstyle)
		c.send(nbd.AppendOption(nil, nbd.OptExportName, []byte("web-root")))
		c.mustEnd()
	})
	t.Run("too many options", func(t *testing.T) {
		c := r.raw(t).greet(nbd.FixedNewstyle)
		for range 128 {
			c.option(nbd.OptList, nil)
		}
		c.mustEnd()
	})
	t.Run("GO refused, and again", func(t *testing.T) {
		r.backend.Refuse(errSecondary{})
		c := r.raw(t).greet(nbd.FixedNewstyle)
		for _, o := range []nbd.Option{nbd.OptInfo, nbd.OptGo} {
			a := c.option(o, nbd.InfoRequest{Name: "web-root"}.Append(nil))
			if a[0].t != nbd.RepErrPolicy || string(a[0].data) != (errSecondary{}).Error() {
				t.Errorf("%v: %v %q", o, a[0].t, a[0].data)
			}
		}
		r.backend.Refuse(nil)
		a := c.option(nbd.OptGo, nbd.InfoRequest{Name: "web-root"}.Append(nil))
		if a[len(a)-1].t != nbd.RepAck {
			t.Error(a)
		}
		c.mustWork()
	})
}

// An old client knows nothing but EXPORT_NAME.
func TestExportName(t *testing.T) {
	r := memRig(t, 1<<20)
	for _, tt := range []struct {
		flags nbd.HandshakeFlags
		size  int
	}{{nbd.FixedNewstyle, 134}, {0, 134}, {nbd.FixedNewstyle | nbd.NoZeroes, 10}} {
		c := r.raw(t).greet(tt.flags)
		c.send(nbd.AppendOption(nil, nbd.OptExportName, []byte("web-root")))
		b := c.recv(tt.size)
		if size := binary.BigEndian.Uint64(b); size != 1<<20 {
			t.Errorf("size %d", size)
		}
		if f := nbd.TransmissionFlags(binary.BigEndian.Uint16(b[8:])); f&nbd.HasFlags == 0 || f&nbd.SendFlush == 0 || f&nbd.SendDF != 0 {
			t.Errorf("flags %#x", f)
		}
		c.mustWork()
	}
}

// Requests that follow GO in the same packet must not be lost with the
// handshake's buffer.
func TestRequestsBehindGo(t *testing.T) {
	r := memRig(t, 1<<20)
	c := r.raw(t).greet(nbd.FixedNewstyle | nbd.NoZeroes)
	payload := bytes.Repeat([]byte{7}, 4096)
	b := nbd.AppendOption(nil, nbd.OptGo, join(u32(0), u16(0)))
	b = nbd.Request{Command: nbd.CmdWrite, Length: 4096, Cookie: 1}.Append(b)
	b = append(b, payload...)
	b = nbd.Request{Command: nbd.CmdRead, Offset: 512, Length: 512, Cookie: 2}.Append(b)
	c.send(b)
	c.answers(nbd.OptGo)
	seen := 0
	for range 2 {
		rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize))
		if err != nil || rep.Error != nbd.OK {
			t.Fatalf("%+v %v", rep, err)
		}
		seen += int(rep.Cookie)
		if rep.Cookie == 2 && !bytes.Equal(c.recv(512), payload[:512]) {
			t.Error("read differs")
		}
	}
	if seen != 3 {
		t.Errorf("cookies add up to %d", seen)
	}
}

func TestOddRequests(t *testing.T) {
	const size = 1 << 20
	r := memRig(t, size)
	c := r.raw(t).enter("web-root")
	for _, tt := range []struct {
		name string
		q    nbd.Request
		want nbd.Errno
		data int
	}{
		{"read across the end", nbd.Request{Command: nbd.CmdRead, Offset: size - 512, Length: 1024}, nbd.EINVAL, 0},
		{"read at the end", nbd.Request{Command: nbd.CmdRead, Offset: size, Length: 512}, nbd.EINVAL, 0},
		{"read at 2^63", nbd.Request{Command: nbd.CmdRead, Offset: 1 << 63, Length: 512}, nbd.EINVAL, 0},
		{"read that wraps", nbd.Request{Command: nbd.CmdRead, Offset: ^uint64(0) - 100, Length: 512}, nbd.EINVAL, 0},
		{"read of 4 GiB", nbd.Request{Command: nbd.CmdRead, Length: 0xffffffff}, nbd.EINVAL, 0},
		{"read of one byte", nbd.Request{Command: nbd.CmdRead, Offset: 777, Length: 1}, nbd.OK, 1},
		{"read of the last byte", nbd.Request{Command: nbd.CmdRead, Offset: size - 1, Length: 1}, nbd.OK, 1},
		{"read of 1 MiB", nbd.Request{Command: nbd.CmdRead, Length: 1 << 20}, nbd.OK, 1 << 20},
		{"read of nothing", nbd.Request{Command: nbd.CmdRead, Offset: 3}, nbd.OK, 0},
		{"read with FUA", nbd.Request{Command: nbd.CmdRead, Flags: nbd.FlagFUA, Length: 512}, nbd.OK, 512},
		{"read with DF, not agreed on", nbd.Request{Command: nbd.CmdRead, Flags: nbd.FlagDF, Length: 512}, nbd.EINVAL, 0},
		{"read with an unknown flag", nbd.Request{Command: nbd.CmdRead, Flags: 1 << 9, Length: 512}, nbd.EINVAL, 0},
		{"write across the end", nbd.Request{Command: nbd.CmdWrite, Offset: size - 512, Length: 1024}, nbd.ENOSPC, 0},
		{"write at 2^63", nbd.Request{Command: nbd.CmdWrite, Offset: 1 << 63, Length: 1024}, nbd.ENOSPC, 0},
		{"write of 100 bytes", nbd.Request{Command: nbd.CmdWrite, Length: 100}, nbd.EINVAL, 0},
		{"write at an odd offset", nbd.Request{Command: nbd.CmdWrite, Offset: 100, Length: 512}, nbd.EINVAL, 0},
		{"write with NO_HOLE", nbd.Request{Command: nbd.CmdWrite, Flags: nbd.FlagNoHole, Length: 512}, nbd.EINVAL, 0},
		{"write of nothing", nbd.Request{Command: nbd.CmdWrite}, nbd.OK, 0},
		{"write of 33 MiB", nbd.Request{Command: nbd.CmdWrite, Length: 33 << 20}, nbd.EINVAL, 0},
		{"write of 2 MiB across the end", nbd.Request{Command: nbd.CmdWrite, Length: 2 << 20}, nbd.ENOSPC, 0},
		{"flush", nbd.Request{Command: nbd.CmdFlush}, nbd.OK, 0},
		{"flush with FUA", nbd.Request{Command: nbd.CmdFlush, Flags: nbd.FlagFUA}, nbd.OK, 0},
		{"flush with a range", nbd.Request{Command: nbd.CmdFlush, Length: 512}, nbd.EINVAL, 0},
		{"trim across the end", nbd.Request{Command: nbd.CmdTrim, Offset: size - 512, Length: 1024}, nbd.EINVAL, 0},
		{"trim of 4 GiB", nbd.Request{Command: nbd.CmdTrim, Length: 0xfffffe00}, nbd.EINVAL, 0},
		{"trim of part of a sector", nbd.Request{Command: nbd.CmdTrim, Offset: 10, Length: 600}, nbd.OK, 0},
		{"trim with FUA", nbd.Request{Command: nbd.CmdTrim, Flags: nbd.FlagFUA, Length: size}, nbd.OK, 0},
		{"zero across the end", nbd.Request{Command: nbd.CmdWriteZeroes, Offset: size - 512, Length: 1024}, nbd.ENOSPC, 0},
		{"zero of part of a sector", nbd.Request{Command: nbd.CmdWriteZeroes, Length: 600}, nbd.EINVAL, 0},
		{"zero with FAST_ZERO, not offered", nbd.Request{Command: nbd.CmdWriteZeroes, Flags: nbd.FlagFastZero, Length: 512}, nbd.EINVAL, 0},
		{"zero of everything", nbd.Request{Command: nbd.CmdWriteZeroes, Flags: nbd.FlagFUA | nbd.FlagNoHole, Length: size}, nbd.OK, 0},
		{"cache", nbd.Request{Command: nbd.CmdCache, Length: 4096}, nbd.OK, 0},
		{"block status, not agreed on", nbd.Request{Command: nbd.CmdBlockStatus, Length: 4096}, nbd.EINVAL, 0},
		{"unknown command", nbd.Request{Command: 99, Length: 4096}, nbd.EINVAL, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			var payload []byte
			if tt.q.Command == nbd.CmdWrite {
				payload = make([]byte, tt.q.Length)
			}
			if got, _ := c.do(tt.q, payload, tt.data); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
			c.mustWork()
		})
	}
	c.t = t
	c.send(nbd.Request{Command: nbd.CmdDisc}.Append(nil))
	c.mustEnd()

	c = r.raw(t).enter("")
	c.send(bytes.Repeat([]byte{0xaa}, nbd.RequestSize))
	c.mustEnd()
	c = r.raw(t).enter("")
	c.send(nbd.Request{Command: nbd.CmdWrite, Length: 0xffffffff}.Append(nil))
	c.mustEnd()
}
