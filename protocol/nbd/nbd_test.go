package nbd_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/protocol/nbd"
)

func TestRequestRoundTrip(t *testing.T) {
	q := nbd.Request{Flags: nbd.FlagFUA, Command: nbd.CmdWriteZeroes, Cookie: 0x0102030405060708, Offset: 1 << 40, Length: 77}
	b := q.Append(nil)
	if len(b) != nbd.RequestSize {
		t.Fatalf("%d bytes", len(b))
	}
	got, err := nbd.DecodeRequest(b)
	if err != nil || got != q {
		t.Errorf("%+v %v", got, err)
	}
	b[0] ^= 1
	var pe *nbd.ProtocolError
	if _, err := nbd.DecodeRequest(b); !errors.As(err, &pe) || pe.Field != "magic" {
		t.Errorf("wrong magic: %v", err)
	}
}

func TestInRange(t *testing.T) {
	const size = 1 << 20
	for _, tt := range []struct {
		off  uint64
		n    uint32
		want bool
	}{
		{0, size, true},
		{size, 0, true},
		{size - 1, 1, true},
		{size, 1, false},
		{0, size + 1, false},
		{^uint64(0), 1, false},
		{^uint64(0), 0xffffffff, false},
		{1 << 63, 0, false},
		{^uint64(0) - 511, 512, false},
	} {
		if got := (nbd.Request{Offset: tt.off, Length: tt.n}).InRange(size); got != tt.want {
			t.Errorf("%d+%d: %v", tt.off, tt.n, got)
		}
	}
}

func TestReplies(t *testing.T) {
	rep, err := nbd.DecodeSimpleReply(nbd.AppendSimpleReply(nil, nbd.ENOSPC, 99))
	if err != nil || rep != (nbd.SimpleReply{Error: nbd.ENOSPC, Cookie: 99}) {
		t.Errorf("%+v %v", rep, err)
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want nbd.Chunk
	}{
		{"data", nbd.AppendDataChunk(nil, 5, 4096, 512, true), nbd.Chunk{Flags: nbd.ChunkDone, Type: nbd.ChunkOffsetData, Cookie: 5, Length: 520}},
		{"more data", nbd.AppendDataChunk(nil, 5, 4096, 512, false), nbd.Chunk{Type: nbd.ChunkOffsetData, Cookie: 5, Length: 520}},
		{"error", nbd.AppendErrorChunk(nil, 6, nbd.EIO), nbd.Chunk{Flags: nbd.ChunkDone, Type: nbd.ChunkError, Cookie: 6, Length: 6}},
		{"none", nbd.AppendNoneChunk(nil, 7), nbd.Chunk{Flags: nbd.ChunkDone, Type: nbd.ChunkNone, Cookie: 7}},
		{"status", nbd.AppendBlockStatus(nil, 8, 1, []nbd.Extent{{Length: 512}, {Length: 1024, Flags: 3}}), nbd.Chunk{Flags: nbd.ChunkDone, Type: nbd.ChunkBlockStatus, Cookie: 8, Length: 20}},
	} {
		got, err := nbd.DecodeChunk(tt.b)
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v %v", tt.name, got, err)
		}
	}
}

func TestInfoRequest(t *testing.T) {
	want := nbd.InfoRequest{Name: "web-root/0", Types: []nbd.InfoType{nbd.InfoBlockSize, nbd.InfoName}}
	got, err := nbd.DecodeInfoRequest(want.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !got.Wants(nbd.InfoName) || got.Wants(nbd.InfoDescription) {
		t.Error("Wants")
	}
	// Every shorter or longer form is refused: lengths must fit exactly.
	whole := want.Append(nil)
	for n := range whole {
		if _, err := nbd.DecodeInfoRequest(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes were accepted", n, len(whole))
		}
	}
	if _, err := nbd.DecodeInfoRequest(append(whole, 0)); err == nil {
		t.Error("a byte more was accepted")
	}
}

func TestExportInfo(t *testing.T) {
	var e nbd.ExportInfo
	for _, b := range [][]byte{
		nbd.AppendInfoExport(nil, 1<<30, nbd.HasFlags|nbd.SendFlush),
		nbd.AppendInfoBlockSize(nil, nbd.BlockSizes{Minimum: 512, Preferred: 4096, Maximum: 32 << 20}),
		nbd.AppendInfoText(nil, nbd.InfoDescription, "text"),
		nbd.AppendInfoText(nil, nbd.InfoName, "name"),
		{0x7f, 0xff, 1, 2, 3},
	} {
		if err := e.Add(b); err != nil {
			t.Fatal(err)
		}
	}
	want := nbd.ExportInfo{Size: 1 << 30, Flags: nbd.HasFlags | nbd.SendFlush, Blocks: nbd.BlockSizes{Minimum: 512, Preferred: 4096, Maximum: 32 << 20}, Name: "name", Description: "text"}
	if d := cmp.Diff(want, e); d != "" {
		t.Error(d)
	}
	for _, b := range [][]byte{nil, {0}, {0, 0, 1}, {0, 3, 1}} {
		if err := e.Add(b); err == nil {
			t.Errorf("%x was accepted", b)
		}
	}
}

func TestHostileMetaContext(t *testing.T) {
	for _, b := range [][]byte{
		nil,
		{0xff, 0xff, 0xff, 0xff},
		{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		{0, 0, 0, 0, 0, 0, 0, 1},
		{0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xfc},
		{0, 0, 0, 0, 0, 0, 0, 0, 1},
	} {
		var oe *nbd.OptionError
		if _, err := nbd.DecodeMetaContextRequest(b); !errors.As(err, &oe) || oe.Type != nbd.RepErrInvalid {
			t.Errorf("%x: %v", b, err)
		}
	}
}

func TestOptionErrorText(t *testing.T) {
	long := make([]byte, 3*nbd.MaxString)
	for i := range long {
		long[i] = 0xc3 // half a rune each
	}
	b := nbd.AppendOptionError(nil, nbd.OptGo, &nbd.OptionError{Type: nbd.RepErrPolicy, Text: "a\x00b" + string(long)})
	h, err := nbd.DecodeOptionReplyHeader(b)
	if err != nil || h.Type != nbd.RepErrPolicy || h.Length > nbd.MaxString || int(h.Length) != len(b)-nbd.OptionReplyHeaderSize {
		t.Fatalf("%+v %v", h, err)
	}
	if _, err := nbd.DecodeName(b[nbd.OptionReplyHeaderSize:]); err != nil {
		t.Errorf("the text is no string of the protocol: %v", err)
	}
}

func FuzzDecodeOptions(f *testing.F) {
	f.Add(nbd.InfoRequest{Name: "r0", Types: []nbd.InfoType{3}}.Append(nil))
	f.Add([]byte{0, 0, 0, 2, 'r', '0', 0, 0, 0, 1, 0, 0, 0, 5, 'b', 'a', 's', 'e', ':'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := nbd.DecodeInfoRequest(b); err == nil {
			if d := cmp.Diff(b, r.Append(nil)); d != "" {
				t.Error(d)
			}
		}
		if r, err := nbd.DecodeMetaContextRequest(b); err == nil && len(r.Queries)*4 > len(b) {
			t.Errorf("%d queries from %d bytes", len(r.Queries), len(b))
		}
		var e nbd.ExportInfo
		_ = e.Add(b) // must not panic; any result will do
		if len(b) >= nbd.RequestSize {
			if q, err := nbd.DecodeRequest(b); err == nil && string(q.Append(nil)) != string(b[:nbd.RequestSize]) {
				t.Error("request does not come back")
			}
		}
	})
}
