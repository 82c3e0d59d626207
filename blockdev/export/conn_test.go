package export_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/blocktest"
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// A held Backend keeps requests until the test lets them go.
type held struct {
	*blocktest.Backend
	mu   sync.Mutex
	reqs []*blockdev.Request
}

func (h *held) Submit(batch []*blockdev.Request) {
	h.mu.Lock()
	h.reqs = append(h.reqs, batch...)
	h.mu.Unlock()
}

func (h *held) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.reqs)
}

// finish completes the i-th request of those held, with err.
func (h *held) finish(i int, err error) {
	h.mu.Lock()
	r := h.reqs[i]
	h.reqs = append(h.reqs[:i:i], h.reqs[i+1:]...)
	h.mu.Unlock()
	r.Err = err
	sink := r.Sink // r is the connection's from Completed on
	sink.Completed(r)
	sink.Flush()
}

func heldRig(t *testing.T, cfg export.Config) (*rig, *held) {
	t.Helper()
	r := newRig(t, blocktest.NewMem(64<<20), cfg)
	h := &held{Backend: r.backend}
	if err := r.srv.Add("held", h); err != nil {
		t.Fatal(err)
	}
	return r, h
}

func TestOutOfOrder(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c := r.raw(t).enter("held")
	var b []byte
	for i := range uint64(8) {
		b = nbd.Request{Command: nbd.CmdRead, Cookie: i, Offset: i * 512, Length: 512}.Append(b)
	}
	c.send(b)
	waitFor(t, func() bool { return h.count() == 8 })
	for i := 7; i >= 0; i-- {
		h.finish(i, nil)
		rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize))
		if err != nil || rep.Error != nbd.OK || rep.Cookie != uint64(i) {
			t.Fatalf("%+v %v, want cookie %d", rep, err, i)
		}
		c.recv(512)
	}
}

func TestErrno(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c := r.raw(t).enter("held")
	for _, tt := range []struct {
		err  error
		want nbd.Errno
	}{
		{syscall.EIO, nbd.EIO},
		{errors.New("anything"), nbd.EIO},
		{syscall.ENOMEM, nbd.EIO},
		{syscall.EOPNOTSUPP, nbd.EIO},
		{fmt.Errorf("disk: %w", &blockdev.IOError{Err: syscall.ENOSPC}), nbd.ENOSPC},
		{syscall.EDQUOT, nbd.ENOSPC},
		{syscall.EROFS, nbd.EPERM},
		{syscall.EINVAL, nbd.EINVAL},
		{syscall.ESHUTDOWN, nbd.ESHUTDOWN},
		{nil, nbd.OK},
	} {
		c.send(append(nbd.Request{Command: nbd.CmdWrite, Cookie: 1, Length: 512}.Append(nil), make([]byte, 512)...))
		waitFor(t, func() bool { return h.count() == 1 })
		h.finish(0, tt.err)
		if rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize)); err != nil || rep.Error != tt.want {
			t.Errorf("%v: %+v %v, want %v", tt.err, rep, err, tt.want)
		}
	}
	// A failed read has no data behind its header, and the stream goes on.
	for range 2 {
		c.send(nbd.Request{Command: nbd.CmdRead, Cookie: 1, Length: 4096}.Append(nil))
		waitFor(t, func() bool { return h.count() == 1 })
		h.finish(0, syscall.EIO)
		if rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize)); err != nil || rep.Error != nbd.EIO {
			t.Errorf("%+v %v", rep, err)
		}
	}
}

func TestRequestFields(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c := r.raw(t).enter("held")
	for _, tt := range []struct {
		q    nbd.Request
		want blockdev.Request
	}{
		{nbd.Request{Command: nbd.CmdWrite, Flags: nbd.FlagFUA, Offset: 1024, Length: 512}, blockdev.Request{Op: blockdev.OpWrite, FUA: true, Offset: 1024, Length: 512}},
		{nbd.Request{Command: nbd.CmdRead, Offset: 1000, Length: 100}, blockdev.Request{Op: blockdev.OpRead, Offset: 512, Length: 1024}},
		{nbd.Request{Command: nbd.CmdFlush}, blockdev.Request{Op: blockdev.OpFlush}},
		{nbd.Request{Command: nbd.CmdTrim, Offset: 100, Length: 2000}, blockdev.Request{Op: blockdev.OpTrim, Offset: 512, Length: 1536}},
		{nbd.Request{Command: nbd.CmdWriteZeroes, Flags: nbd.FlagNoHole, Offset: 512, Length: 1536}, blockdev.Request{Op: blockdev.OpZero, NoUnmap: true, Offset: 512, Length: 1536}},
		{nbd.Request{Command: nbd.CmdWriteZeroes, Flags: nbd.FlagFUA, Offset: 512, Length: 1536}, blockdev.Request{Op: blockdev.OpZero, FUA: true, Offset: 512, Length: 1536}},
	} {
		b := tt.q.Append(nil)
		data := 0
		switch tt.q.Command {
		case nbd.CmdWrite:
			b = append(b, bytes.Repeat([]byte{3}, int(tt.q.Length))...)
		case nbd.CmdRead:
			data = int(tt.q.Length)
		}
		c.send(b)
		waitFor(t, func() bool { return h.count() == 1 })
		got := h.reqs[0]
		if got.Op != tt.want.Op || got.FUA != tt.want.FUA || got.NoUnmap != tt.want.NoUnmap || got.Offset != tt.want.Offset || got.Length != tt.want.Length {
			t.Errorf("%v: got %+v", tt.q.Command, got)
		}
		if hasData := got.Op == blockdev.OpRead || got.Op == blockdev.OpWrite; hasData && len(got.Data) != int(got.Length) || !hasData && got.Data != nil {
			t.Errorf("%v: %d bytes of data", tt.q.Command, len(got.Data))
		}
		h.finish(0, nil)
		c.recv(nbd.SimpleReplySize + data)
	}
}

// Requests that arrive together go to the Backend together.
func TestBatch(t *testing.T) {
	const n = 32
	r := memRig(t, 8<<20)
	c := r.raw(t).enter("web-root")
	before, _ := r.backend.Batches()
	var b []byte
	for i := range uint64(n) {
		b = nbd.Request{Command: nbd.CmdRead, Cookie: i, Offset: i << 12, Length: 4096}.Append(b)
	}
	c.send(b)
	for range n {
		c.recv(nbd.SimpleReplySize + 4096)
	}
	// One write to a unix socket is one read from it.
	if after, _ := r.backend.Batches(); after-before != 1 {
		t.Errorf("%d batches for %d requests of one write, want 1", after-before, n)
	}
}

// A client that sends and does not read is stopped at the limit of bytes in
// flight, and served on when it reads.
func TestBoundedInFlight(t *testing.T) {
	const n = 400
	r := newRig(t, blocktest.NewMem(8<<20), export.Config{MaxInFlight: 1 << 20})
	c := r.raw(t).enter("web-root")
	sent := make(chan error, 1)
	go func() {
		var b []byte
		for i := range uint64(n) {
			b = nbd.Request{Command: nbd.CmdRead, Cookie: i, Length: 256 << 10}.Append(b)
		}
		_, err := c.Write(b)
		sent <- err
	}()
	// The socket's buffer, what is in flight, and one batch: far below n.
	waitFor(t, func() bool { _, reqs := r.backend.Batches(); return reqs >= 3 })
	if _, reqs := r.backend.Batches(); reqs > 16 {
		t.Errorf("%d reads of 256 KiB were started for a client that does not read", reqs)
	}
	for i := range uint64(n) {
		rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize))
		if err != nil || rep.Error != nbd.OK || rep.Cookie != i {
			t.Fatalf("reply %d: %+v %v", i, rep, err)
		}
		c.recv(256 << 10)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// Many clients that send and do not read share one bound: those that come late
// have one request in flight each.
func TestBoundedTogether(t *testing.T) {
	const clients, n = 24, 32
	r := newRig(t, blocktest.NewMem(8<<20), export.Config{})
	for range clients {
		c := r.raw(t).enter("web-root")
		var b []byte
		for i := range uint64(n) {
			b = nbd.Request{Command: nbd.CmdRead, Cookie: i, Length: 256 << 10}.Append(b)
		}
		_, before := r.backend.Batches()
		c.send(b)
		waitFor(t, func() bool { _, reqs := r.backend.Batches(); return reqs > before })
	}
	// 4 MiB of them, one for each client, and one whose reply the socket has taken.
	if _, reqs := r.backend.Batches(); reqs > 4<<20/(256<<10)+2*clients {
		t.Errorf("%d reads of 256 KiB were started for clients that do not read", reqs)
	}
}

func TestLarge(t *testing.T) {
	const size = 300 << 20
	dev, _ := fileDevice(t, size, false)
	r := newRig(t, dev, export.Config{})
	c := r.raw(t).enter("web-root")
	data := make([]byte, 32<<20)
	for i := range data {
		data[i] = byte(i>>9) ^ byte(i>>17)
	}
	const at = 512
	if e, _ := c.do(nbd.Request{Command: nbd.CmdWrite, Flags: nbd.FlagFUA, Offset: at, Length: 32 << 20}, data, 0); e != nbd.OK {
		t.Fatal(e)
	}
	if e, got := c.do(nbd.Request{Command: nbd.CmdRead, Offset: at, Length: 32 << 20}, nil, 32<<20); e != nbd.OK || !bytes.Equal(got, data) {
		t.Fatalf("%v, differs", e)
	}
	const skip, n = 77, 1<<20 + 1
	if e, got := c.do(nbd.Request{Command: nbd.CmdRead, Offset: at + skip, Length: n}, nil, n); e != nbd.OK || !bytes.Equal(got, data[skip:skip+n]) {
		t.Fatalf("%v, odd read differs", e)
	}
	if e, got := c.do(nbd.Request{Command: nbd.CmdRead, Offset: at + 1, Length: 1 << 20}, nil, 1<<20); e != nbd.OK || !bytes.Equal(got, data[1:1<<20+1]) {
		t.Fatalf("%v, 1 MiB at an odd offset differs", e)
	}
	before, _ := r.backend.Batches()
	if e, _ := c.do(nbd.Request{Command: nbd.CmdWriteZeroes, Length: size}, nil, 0); e != nbd.OK {
		t.Fatal(e)
	}
	if e, _ := c.do(nbd.Request{Command: nbd.CmdTrim, Length: size}, nil, 0); e != nbd.OK {
		t.Fatal(e)
	}
	if after, _ := r.backend.Batches(); after-before != 4 {
		t.Errorf("%d batches for twice 300 MiB, want 4", after-before)
	}
	if e, got := c.do(nbd.Request{Command: nbd.CmdRead, Length: 2 << 20}, nil, 2<<20); e != nbd.OK || !bytes.Equal(got, make([]byte, 2<<20)) {
		t.Fatalf("%v, not zero", e)
	}
}

func TestLargeErrors(t *testing.T) {
	mem := blocktest.NewMem(64 << 20)
	r := newRig(t, mem, export.Config{})
	c := r.raw(t).enter("web-root")
	bad := func(kind blocktest.Kind, off int64) {
		mem.ClearFaults()
		mem.Inject(blocktest.Fault{Kind: kind, Off: off, Length: 512})
	}
	bad(blocktest.Write, 9<<20)
	if e, _ := c.do(nbd.Request{Command: nbd.CmdWrite, Length: 20 << 20}, make([]byte, 20<<20), 0); e != nbd.EIO {
		t.Errorf("write: %v", e)
	}
	c.mustWork() // the payload was taken off the stream
	bad(blocktest.Zero, 1<<20)
	if e, _ := c.do(nbd.Request{Command: nbd.CmdWriteZeroes, Length: 64 << 20}, nil, 0); e != nbd.EIO {
		t.Errorf("zero: %v", e)
	}
	bad(blocktest.Read, 1<<20)
	if e, _ := c.do(nbd.Request{Command: nbd.CmdRead, Length: 8 << 20}, nil, 0); e != nbd.EIO {
		t.Errorf("read: %v", e)
	}
	c.mustWork()
	// The header has said 0 already: nothing is left but closing.
	bad(blocktest.Read, 7<<20)
	c.send(nbd.Request{Command: nbd.CmdRead, Length: 8 << 20}.Append(nil))
	if rep := c.recv(nbd.SimpleReplySize); binary.BigEndian.Uint32(rep[4:]) != 0 {
		t.Errorf("reply %x", rep)
	}
	c.recv(2 << 20)
	n := 0
	for buf := make([]byte, 1<<20); ; {
		k, err := c.Read(buf)
		n += k
		if err != nil {
			break
		}
	}
	if n >= 6<<20 {
		t.Errorf("%d more bytes although sector 7 MiB can't be read", n)
	}
}

func TestStructured(t *testing.T) {
	mem := blocktest.NewMem(64 << 20)
	r := newRig(t, mem, export.Config{})
	c := r.raw(t).greet(nbd.FixedNewstyle | nbd.NoZeroes)
	if a := c.option(nbd.OptStructuredReply, nil); a[0].t != nbd.RepAck {
		t.Fatal(a)
	}
	query := func(q string) []byte { return join(u32(0), u32(1), u32(uint32(len(q))), []byte(q)) }
	for _, tt := range []struct {
		opt  nbd.Option
		data []byte
		want int // answers
	}{
		{nbd.OptListMetaContext, join(u32(0), u32(0)), 2},
		{nbd.OptListMetaContext, query("base:"), 2},
		{nbd.OptListMetaContext, query("qemu:"), 1},
		{nbd.OptSetMetaContext, query("base:"), 1},
		{nbd.OptSetMetaContext, query("x-unknown:thing"), 1},
		{nbd.OptSetMetaContext, query(nbd.BaseAllocation), 2},
	} {
		if a := c.option(tt.opt, tt.data); len(a) != tt.want || a[len(a)-1].t != nbd.RepAck {
			t.Errorf("%v %q: %v", tt.opt, tt.data, a)
		}
	}
	a := c.option(nbd.OptGo, join(u32(0), u16(0)))
	if a[len(a)-1].t != nbd.RepAck {
		t.Fatal(a)
	}
	chunk := func() (nbd.Chunk, []byte) {
		t.Helper()
		h, err := nbd.DecodeChunk(c.recv(nbd.ChunkHeaderSize))
		if err != nil || h.Length > 33<<20 {
			t.Fatalf("%+v %v", h, err)
		}
		return h, c.recv(int(h.Length))
	}
	send := func(q nbd.Request) { c.send(q.Append(nil)) }

	send(nbd.Request{Command: nbd.CmdRead, Flags: nbd.FlagDF, Offset: 1000, Length: 5000})
	if h, p := chunk(); h.Type != nbd.ChunkOffsetData || h.Flags != nbd.ChunkDone || len(p) != 5008 || binary.BigEndian.Uint64(p) != 1000 {
		t.Errorf("%+v", h)
	}
	send(nbd.Request{Command: nbd.CmdRead, Flags: nbd.FlagDF, Length: 8 << 20})
	if h, p := chunk(); h.Type != nbd.ChunkError || binary.BigEndian.Uint32(p) != uint32(nbd.EOVERFLOW) {
		t.Errorf("%+v", h)
	}
	send(nbd.Request{Command: nbd.CmdRead, Length: 0})
	if h, _ := chunk(); h.Type != nbd.ChunkNone || h.Flags != nbd.ChunkDone {
		t.Errorf("%+v", h)
	}
	mem.Inject(blocktest.Fault{Kind: blocktest.Read, Off: 7 << 20, Length: 512})
	send(nbd.Request{Command: nbd.CmdRead, Length: 8 << 20})
	for got := 0; ; {
		h, p := chunk()
		if h.Type == nbd.ChunkError {
			if h.Flags != nbd.ChunkDone || got > 7<<20 || binary.BigEndian.Uint32(p) != uint32(nbd.EIO) {
				t.Errorf("%+v after %d", h, got)
			}
			break
		}
		if h.Flags != 0 || binary.BigEndian.Uint64(p) != uint64(got) {
			t.Fatalf("%+v after %d", h, got)
		}
		got += len(p) - 8
	}
	mem.ClearFaults()
	send(nbd.Request{Command: nbd.CmdRead, Offset: 3, Length: 8 << 20})
	for got := 0; got < 8<<20; {
		h, p := chunk()
		got += len(p) - 8
		if isLast := got == 8<<20; h.Type != nbd.ChunkOffsetData || isLast != (h.Flags == nbd.ChunkDone) {
			t.Fatalf("%+v after %d", h, got)
		}
	}
	send(nbd.Request{Command: nbd.CmdBlockStatus, Length: 1 << 20})
	if h, p := chunk(); h.Type != nbd.ChunkBlockStatus || len(p) != 12 || binary.BigEndian.Uint32(p[4:]) != 1<<20 || binary.BigEndian.Uint32(p[8:]) != 0 {
		t.Errorf("%+v %x", h, p)
	}
}

func TestReadOnly(t *testing.T) {
	r := memRig(t, 1<<20)
	ro := blocktest.NewBackend(blocktest.NewMem(1<<20), true)
	if err := r.srv.Add("ro", ro); err != nil {
		t.Fatal(err)
	}
	c := r.raw(t).enter("ro")
	for _, cmd := range []nbd.Command{nbd.CmdWrite, nbd.CmdTrim, nbd.CmdWriteZeroes} {
		var payload []byte
		if cmd == nbd.CmdWrite {
			payload = make([]byte, 512)
		}
		if e, _ := c.do(nbd.Request{Command: cmd, Length: 512}, payload, 0); e != nbd.EPERM {
			t.Errorf("%v: %v", cmd, e)
		}
		c.mustWork()
	}
	if out := run(t, "nbdinfo", r.uri("ro")); !bytes.Contains([]byte(out), []byte("is_read_only: true")) {
		t.Error(out)
	}
}

func TestShutdown(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c := r.raw(t).enter("held")
	idle := r.raw(t).enter("web-root")
	early := r.raw(t) // has not said a word
	early.recv(nbd.GreetingSize)
	c.send(append(nbd.Request{Command: nbd.CmdWrite, Cookie: 7, Length: 512}.Append(nil), make([]byte, 512)...))
	waitFor(t, func() bool { return h.count() == 1 })

	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- r.srv.Shutdown(ctx)
	}()
	idle.mustEnd()
	early.mustEnd()
	// A new request gets no answer: the client shall repeat it elsewhere.
	c.send(nbd.Request{Command: nbd.CmdRead, Cookie: 8, Length: 512}.Append(nil))
	h.finish(0, nil)
	if rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize)); err != nil || rep.Error != nbd.OK || rep.Cookie != 7 {
		t.Errorf("request in flight: %+v %v", rep, err)
	}
	c.mustEnd()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestShutdownGivesUp(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c := r.raw(t).enter("held")
	c.send(nbd.Request{Command: nbd.CmdFlush}.Append(nil))
	waitFor(t, func() bool { return h.count() == 1 })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.srv.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.mustEnd()
	if h.Opens() != 1 {
		t.Error("the volume was released while it had a request")
	}
	h.finish(0, nil)
}

func TestDisconnect(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c, other := r.raw(t).enter("held"), r.raw(t).enter("web-root")
	c.send(nbd.Request{Command: nbd.CmdFlush}.Append(nil))
	waitFor(t, func() bool { return h.count() == 1 && r.srv.Clients("held") == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := r.srv.Remove(ctx, "held"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a request is still out: %v", err)
	}
	c.mustEnd()
	h.finish(0, nil)
	if err := r.srv.Disconnect(context.Background(), "held"); err != nil {
		t.Error(err)
	}
	if n := r.srv.Clients("held"); n != 0 {
		t.Errorf("%d clients", n)
	}
	if a := r.raw(t).greet(nbd.FixedNewstyle).option(nbd.OptGo, nbd.InfoRequest{Name: "held"}.Append(nil)); a[0].t != nbd.RepErrUnknown {
		t.Error(a)
	}
	if err := r.srv.Remove(context.Background(), "held"); !errors.Is(err, export.ErrNoExport) {
		t.Error(err)
	}
	other.mustWork()
}

// A client that dies in the middle gives everything back.
func TestClientDies(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c := r.raw(t).enter("held")
	c.send(append(nbd.Request{Command: nbd.CmdWrite, Length: 4096}.Append(nil), make([]byte, 4096)...))
	c.send(nbd.Request{Command: nbd.CmdWrite, Length: 4096}.Append(nil)) // without all of its payload
	waitFor(t, func() bool { return h.count() == 1 })
	c.Close()
	h.finish(0, nil)
	waitFor(t, func() bool { return h.Opens() == 0 && r.srv.Clients("held") == 0 })
}

func TestLimits(t *testing.T) {
	r := newRig(t, blocktest.NewMem(1<<20), export.Config{MaxConnections: 2, HandshakeTimeout: 50 * time.Millisecond})
	a := r.raw(t).enter("web-root")
	slow := r.raw(t)
	slow.recv(nbd.GreetingSize)
	slow.mustEnd() // the handshake's time is over
	b := r.raw(t).enter("web-root")
	full := r.raw(t)
	full.mustEnd()
	b.Close()
	waitFor(t, func() bool { return r.srv.Clients("web-root") == 1 })
	a.mustWork() // transmission has no time limit
	waitFor(t, func() bool {
		c := r.raw(t)
		_, err := c.Read(make([]byte, nbd.GreetingSize))
		return err == nil
	})
}

// TestManyClients: a node has hundreds of VMs, each with a few disks, on one unix socket.
func TestManyClients(t *testing.T) {
	r := memRig(t, 1<<20)
	const clients = 200
	for range clients {
		r.raw(t).enter("web-root")
	}
	if n := r.srv.Clients("web-root"); n != clients {
		t.Errorf("%d of %d clients are served", n, clients)
	}
}

func TestDefaultExport(t *testing.T) {
	r := memRig(t, 1<<20)
	if err := r.srv.Add("web-root/0", r.backend); err != nil { // another name of the same
		t.Fatal(err)
	}
	r.raw(t).enter("").mustWork()
	two := blocktest.NewBackend(blocktest.NewMem(1<<20), false)
	if err := r.srv.Add("db", two); err != nil {
		t.Fatal(err)
	}
	c := r.raw(t).greet(nbd.FixedNewstyle)
	if a := c.option(nbd.OptGo, join(u32(0), u16(0))); a[0].t != nbd.RepErrUnknown {
		t.Error(a)
	}
	if a := c.option(nbd.OptList, nil); len(a) != 4 || !bytes.Contains(a[0].data, []byte("db")) || !bytes.Contains(a[2].data, []byte("web-root/0")) {
		t.Error(a)
	}
	if err := r.srv.Add("db", two); err == nil {
		t.Error("two exports of one name")
	}
	for _, name := range []string{"", "a\x00b", string(bytes.Repeat([]byte("x"), 5000))} {
		if err := r.srv.Add(name, two); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

// A request whose memory a hanging disk has kept is answered from its new one,
// and the old one serves nobody else.
func TestMovedMemory(t *testing.T) {
	r, h := heldRig(t, export.Config{})
	c := r.raw(t).enter("held")
	taken := map[*byte]bool{}
	for i := range uint64(20) {
		c.send(nbd.Request{Command: nbd.CmdRead, Cookie: i, Offset: 0, Length: 4096}.Append(nil))
		waitFor(t, func() bool { return h.count() == 1 })
		h.mu.Lock()
		q := h.reqs[0]
		h.mu.Unlock()
		if q.Moved || taken[&q.Data[0]] {
			t.Fatalf("request %d has the memory of a disk that hangs", i)
		}
		taken[&q.Data[0]] = true
		q.Moved, q.Data = true, bytes.Repeat([]byte{byte(i + 1)}, 4096)
		h.finish(0, nil)
		rep, err := nbd.DecodeSimpleReply(c.recv(nbd.SimpleReplySize))
		if err != nil || rep.Error != nbd.OK {
			t.Fatalf("%+v %v", rep, err)
		}
		if got := c.recv(4096); !bytes.Equal(got, bytes.Repeat([]byte{byte(i + 1)}, 4096)) {
			t.Fatalf("request %d was answered with %d...", i, got[0])
		}
	}
}
