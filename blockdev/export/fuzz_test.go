package export_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev/blocktest"
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// memoryBound is what a connection may allocate, whatever it is sent: buffers
// in flight, its reader's buffer, and room for what else the process does.
const memoryBound = 48 << 20

// feed sends bytes to a fresh connection and waits for its end.
func feed(t *testing.T, srv *export.Server, b []byte) {
	ours, theirs := net.Pipe()
	srv.ServeConn(theirs)
	drained := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, ours) // any answer will do
		close(drained)
	}()
	if err := ours.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = ours.Write(b) // the server may close at any byte
	ours.Close()
	<-drained
}

func fuzzServer(t testing.TB) *export.Server {
	srv := export.New(export.Config{})
	b := blocktest.NewBackend(blocktest.NewMem(1<<20), false)
	if err := srv.Add("r0", b); err != nil {
		t.Fatal(err)
	}
	return srv
}

// FuzzHandshake sends any options: no panic, and no memory sized by a length.
func FuzzHandshake(f *testing.F) {
	flags := nbd.AppendClientFlags(nil, nbd.FixedNewstyle|nbd.NoZeroes)
	f.Add(flags)
	f.Add(nbd.AppendOption(flags, nbd.OptGo, nbd.InfoRequest{Name: "r0", Types: []nbd.InfoType{3}}.Append(nil)))
	f.Add(nbd.AppendOption(nbd.AppendOption(flags, nbd.OptList, nil), nbd.OptExportName, []byte("r0")))
	f.Add(append(flags, []byte("IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff\xff\xff\xff\xff")...))
	srv := fuzzServer(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, memoryBound, func() { feed(t, srv, b) })
	})
}

// FuzzTransmission sends any requests after a proper handshake.
func FuzzTransmission(f *testing.F) {
	head := nbd.AppendClientFlags(nil, nbd.FixedNewstyle|nbd.NoZeroes)
	simple := nbd.AppendOption(head, nbd.OptGo, nbd.InfoRequest{}.Append(nil))
	structured := nbd.AppendOption(nbd.AppendOption(head, nbd.OptStructuredReply, nil), nbd.OptSetMetaContext,
		[]byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"))
	structured = nbd.AppendOption(structured, nbd.OptGo, nbd.InfoRequest{}.Append(nil))
	write := append(nbd.Request{Command: nbd.CmdWrite, Offset: 512, Length: 512}.Append(nil), make([]byte, 512)...)
	f.Add(false, write)
	f.Add(true, nbd.Request{Command: nbd.CmdRead, Length: 1 << 20}.Append(write))
	f.Add(true, nbd.Request{Command: nbd.CmdBlockStatus, Length: 1 << 20}.Append(nil))
	f.Add(false, nbd.Request{Command: nbd.CmdWrite, Length: 0xffffffff}.Append(nil))
	f.Add(false, nbd.Request{Command: nbd.CmdWriteZeroes, Offset: 1 << 63, Length: 0xfffffe00}.Append(nil))
	srv := fuzzServer(f)
	f.Fuzz(func(t *testing.T, isStructured bool, b []byte) {
		all := simple
		if isStructured {
			all = structured
		}
		fuzztest.Bounded(t, memoryBound, func() { feed(t, srv, append(all[:len(all):len(all)], b...)) })
	})
}
