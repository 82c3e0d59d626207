package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/bench/result"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// A server is an NBD server that remembers what it was asked, and may be told
// to answer wrongly.
type server struct {
	t      *testing.T
	uri    string
	size   uint64
	flags  nbd.TransmissionFlags
	answer func(n int, q nbd.Request) []byte // nil = as it should be; an empty slice ends the connection

	mu       sync.Mutex
	requests []nbd.Request
	payloads [][]byte // the first bytes of each write
	inFlight int      // most requests that were there before the first was answered
	conns    int
}

func serve(t *testing.T, s *server) *server {
	t.Helper()
	s.t = t
	if s.size == 0 {
		s.size = 1 << 20
	}
	s.flags |= nbd.HasFlags | nbd.SendFlush | nbd.SendFUA | nbd.CanMultiConn
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s.uri = "nbd+unix:///disk?socket=" + socket
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				s.session(c)
			})
		}
	})
	return s
}

func (s *server) session(c net.Conn) {
	if s.greet(c) != nil {
		return
	}
	s.mu.Lock()
	s.conns++
	s.mu.Unlock()
	var out []byte
	waiting := 0
	in := bufio.NewReader(c)
	for {
		// Answers go when nothing more comes for a moment: then the depth is full.
		if err := c.SetReadDeadline(time.Now().Add(2 * time.Millisecond)); err != nil {
			return
		}
		if _, err := in.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) {
			if _, err := c.Write(out); err != nil {
				return
			}
			out, waiting = out[:0], 0
			continue
		} else if err != nil {
			return
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			return
		}
		head := make([]byte, nbd.RequestSize)
		if _, err := io.ReadFull(in, head); err != nil {
			return
		}
		q, err := nbd.DecodeRequest(head)
		if err != nil {
			s.t.Error(err)
			return
		}
		if q.Command == nbd.CmdDisc {
			return
		}
		var payload []byte
		if q.Command == nbd.CmdWrite {
			payload = make([]byte, q.Length)
			if _, err := io.ReadFull(in, payload); err != nil {
				return
			}
		}
		waiting++
		answer := s.note(q, payload, waiting)
		if answer != nil && len(answer) == 0 {
			return
		}
		out = append(out, answer...)
	}
}

func (s *server) note(q nbd.Request, payload []byte, waiting int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, q)
	if payload != nil {
		s.payloads = append(s.payloads, payload[:min(len(payload), 64)])
	}
	s.inFlight = max(s.inFlight, waiting)
	if s.answer != nil {
		if a := s.answer(len(s.requests), q); a != nil {
			return a
		}
	}
	a := nbd.AppendSimpleReply(nil, nbd.OK, q.Cookie)
	if q.Command == nbd.CmdRead {
		a = append(a, make([]byte, q.Length)...)
	}
	return a
}

func (s *server) greet(c net.Conn) error {
	if _, err := c.Write(nbd.AppendGreeting(nil, nbd.FixedNewstyle|nbd.NoZeroes)); err != nil {
		return err
	}
	head := make([]byte, nbd.ClientFlagsSize+nbd.OptionHeaderSize)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	h, err := nbd.DecodeOptionHeader(head[nbd.ClientFlagsSize:])
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, c, int64(h.Length)); err != nil {
		return err
	}
	out := nbd.AppendOptionReply(nil, h.Option, nbd.RepInfo, nbd.AppendInfoExport(nil, s.size, s.flags))
	_, err = c.Write(nbd.AppendOptionReply(out, h.Option, nbd.RepAck, nil))
	return err
}

func (s *server) seen(command nbd.Command) (list []nbd.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.requests {
		if q.Command == command {
			list = append(list, q)
		}
	}
	return list
}

func spec(op, pattern string, block, depth, connections int, class string, count int64) Spec {
	return Spec{
		Workload:  result.Workload{Op: op, Pattern: pattern, BlockBytes: block, Depth: depth, Connections: connections, Class: class, ReadPercent: 50},
		SizeBytes: 1 << 20, Count: count, Seed: 7,
	}
}

// All of the range is reached, on multiples of the block, nothing outside.
func TestPlaces(t *testing.T) {
	for _, pattern := range []string{result.PatternRandom, result.PatternSequential} {
		for _, connections := range []int{1, 3} {
			s := spec(result.OpWrite, pattern, 4096, 4, connections, result.ClassBuffered, 1)
			s.OffsetBytes, s.SizeBytes = 1<<20, 60*4096+512
			hit := map[int64]int{}
			for n := range connections {
				p := newPlaces(&s, n)
				for range 2000 {
					at, isRead := p.take()
					if at < s.OffsetBytes || at+4096 > s.OffsetBytes+s.SizeBytes || (at-s.OffsetBytes)%4096 != 0 || isRead {
						t.Fatalf("%s: offset %d, read %v", pattern, at, isRead)
					}
					hit[at]++
				}
			}
			if len(hit) != 60 {
				t.Errorf("%s over %d connections reaches %d of 60 blocks", pattern, connections, len(hit))
			}
		}
	}
}

// With a stride only the first block of each is used.
func TestPlacesApart(t *testing.T) {
	s := spec(result.OpWrite, result.PatternRandom, 4096, 4, 1, result.ClassBuffered, 1)
	s.SizeBytes, s.StrideBytes = 40<<20, 4<<20
	hit := map[int64]int{}
	for p, i := newPlaces(&s, 0), 0; i < 500; i++ {
		at, _ := p.take()
		if at%(4<<20) != 0 {
			t.Fatalf("offset %d is no multiple of 4 MiB", at)
		}
		hit[at]++
	}
	if len(hit) != 10 {
		t.Errorf("%d of 10 places are reached", len(hit))
	}
}

func TestMixedReadsAsOftenAsAsked(t *testing.T) {
	s := spec(result.OpMixed, result.PatternRandom, 4096, 1, 1, result.ClassBuffered, 1)
	s.Workload.ReadPercent = 70
	p, reads := newPlaces(&s, 0), 0
	for range 10000 {
		if _, isRead := p.take(); isRead {
			reads++
		}
	}
	if reads < 6700 || reads > 7300 {
		t.Errorf("%d of 10000 were reads, want 70 %%", reads)
	}
}

func TestValidate(t *testing.T) {
	good := spec(result.OpWrite, result.PatternRandom, 4096, 4, 2, result.ClassBuffered, 1)
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		spoil func(*Spec)
		want  string
	}{
		{func(s *Spec) { s.Workload.Op = "trim" }, `operation "trim"`},
		{func(s *Spec) { s.Workload.Op, s.Workload.ReadPercent = result.OpMixed, 100 }, "100 % of reads"},
		{func(s *Spec) { s.Workload.Pattern = "" }, `pattern ""`},
		{func(s *Spec) { s.Workload.Class = "sync" }, `class "sync"`},
		{func(s *Spec) { s.StrideBytes = 5000 }, "places 5000 bytes apart"},
		{func(s *Spec) { s.Workload.BlockBytes = 1000 }, "blocks of 1000 bytes"},
		{func(s *Spec) { s.Workload.BlockBytes = 8 << 20 }, "blocks of 8388608 bytes"},
		{func(s *Spec) { s.Workload.Depth = 1 }, "a depth of 1"},
		{func(s *Spec) { s.Workload.Connections = 17 }, "17 connections"},
		{func(s *Spec) { s.SizeBytes = 4096 }, "a range of 4096 bytes"},
		{func(s *Spec) { s.OffsetBytes = 100 }, "an offset of 100 bytes"},
		{func(s *Spec) { s.Count = 0 }, "a duration of 0s"},
	} {
		s := good
		tt.spoil(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want %q, got %v", tt.want, err)
		}
	}
}

func TestWorkloadsOverNBD(t *testing.T) {
	for _, tt := range []struct {
		name    string
		spec    Spec
		writes  int
		reads   int
		flushes int
	}{
		{"depth 1", spec(result.OpWrite, result.PatternRandom, 4096, 1, 1, result.ClassBuffered, 20), 20, 0, 0},
		{"depth 32", spec(result.OpWrite, result.PatternRandom, 4096, 32, 1, result.ClassBuffered, 200), 200, 0, 0},
		{"four connections", spec(result.OpWrite, result.PatternRandom, 4096, 10, 4, result.ClassBuffered, 201), 201, 0, 0},
		{"reads", spec(result.OpRead, result.PatternSequential, 128<<10, 8, 1, result.ClassBuffered, 40), 0, 40, 0},
		{"flushes", spec(result.OpWrite, result.PatternRandom, 4096, 4, 1, result.ClassFlush, 40), 40, 0, 40},
		{"FUA", spec(result.OpWrite, result.PatternRandom, 4096, 4, 1, result.ClassFUA, 40), 40, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, &server{})
			res, err := Run(context.Background(), s.uri, tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			writes := s.seen(nbd.CmdWrite)
			if len(writes) != tt.writes || len(s.seen(nbd.CmdRead)) != tt.reads || len(s.seen(nbd.CmdFlush)) != tt.flushes {
				t.Errorf("%d writes, %d reads, %d flushes", len(writes), len(s.seen(nbd.CmdRead)), len(s.seen(nbd.CmdFlush)))
			}
			if n := int64(tt.writes + tt.reads); res.Ops != n || res.Latency.Count() != n || res.Bytes != n*int64(tt.spec.Workload.BlockBytes) || res.Errors != 0 || res.Seconds <= 0 {
				t.Errorf("got %+v", res)
			}
			if w := tt.spec.Workload; s.conns != w.Connections || s.inFlight != share(w.Depth, w.Connections, 0) {
				t.Errorf("%d connections with %d in flight, want %d with %d", s.conns, s.inFlight, w.Connections, share(w.Depth, w.Connections, 0))
			}
			for _, q := range writes {
				if (q.Flags == nbd.FlagFUA) != (tt.spec.Workload.Class == result.ClassFUA) || !q.InRange(1<<20) {
					t.Fatalf("request %+v", q)
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if slices.ContainsFunc(s.payloads, func(p []byte) bool { return bytes.Equal(p, make([]byte, len(p))) }) {
				t.Error("a payload is zeros")
			}
			if len(s.payloads) > 1 && bytes.Equal(s.payloads[0], s.payloads[1]) {
				t.Error("two payloads are the same")
			}
		})
	}
}

// Both sides have more to say than the socket takes: neither may wait for the
// other for ever.
func TestLargeMixedDoesNotLockUp(t *testing.T) {
	s := serve(t, &server{size: 64 << 20})
	sp := spec(result.OpMixed, result.PatternRandom, 1<<20, 32, 1, result.ClassBuffered, 100)
	sp.SizeBytes = 64 << 20
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := Run(ctx, s.uri, sp)
	if err != nil || res.Ops != 100 {
		t.Fatalf("%+v, %v", res, err)
	}
}

func TestAnswersThatAreErrors(t *testing.T) {
	s := serve(t, &server{answer: func(n int, q nbd.Request) []byte {
		if n%4 == 0 {
			return nbd.AppendSimpleReply(nil, nbd.ENOSPC, q.Cookie)
		}
		return nil
	}})
	res, err := Run(context.Background(), s.uri, spec(result.OpMixed, result.PatternRandom, 4096, 8, 1, result.ClassBuffered, 80))
	if err != nil {
		t.Fatal(err)
	}
	if res.Ops != 60 || res.Errors != 20 || res.Latency.Count() != 60 || res.Refusal == nil || !strings.Contains(res.Refusal.Error(), "ENOSPC") {
		t.Errorf("got %+v", res)
	}
}

func TestBrokenServers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(n int, q nbd.Request) []byte
		want   string
	}{
		{"hangs up", func(n int, _ nbd.Request) []byte {
			if n == 10 {
				return []byte{}
			}
			return nil
		}, "the server has closed the connection"},
		{"wrong magic", func(n int, _ nbd.Request) []byte {
			if n == 10 {
				return make([]byte, nbd.SimpleReplySize)
			}
			return nil
		}, "magic"},
		{"answers what nobody asked", func(_ int, q nbd.Request) []byte {
			return nbd.AppendSimpleReply(nil, nbd.OK, q.Cookie+1<<20)
		}, "cookie"},
		{"answers twice", func(n int, q nbd.Request) []byte {
			if n == 3 {
				a := nbd.AppendSimpleReply(nil, nbd.OK, q.Cookie)
				return nbd.AppendSimpleReply(a, nbd.OK, q.Cookie)
			}
			return nil
		}, "cookie"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, &server{answer: tt.answer})
			res, err := Run(context.Background(), s.uri, spec(result.OpWrite, result.PatternRandom, 4096, 4, 2, result.ClassBuffered, 100))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, %v, want an error with %q", res, err, tt.want)
			}
		})
	}
}

func TestCancelledLoadEnds(t *testing.T) {
	s := serve(t, &server{answer: func(n int, q nbd.Request) []byte { return nil }})
	ctx, cancel := context.WithCancel(context.Background())
	sp := spec(result.OpWrite, result.PatternRandom, 4096, 4, 2, result.ClassBuffered, 0)
	sp.Duration, sp.Begin = time.Hour, cancel
	if _, err := Run(ctx, s.uri, sp); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What is measured lies between Begin and End, and only that.
func TestWarmupIsNotCounted(t *testing.T) {
	s := serve(t, &server{})
	sp := spec(result.OpWrite, result.PatternRandom, 4096, 1, 1, result.ClassBuffered, 0)
	sp.Warmup, sp.Duration, sp.Trace = 100*time.Millisecond, 150*time.Millisecond, true
	var begin, end time.Time
	sp.Begin, sp.End = func() { begin = time.Now() }, func() { end = time.Now() }
	res, err := Run(context.Background(), s.uri, sp)
	if err != nil {
		t.Fatal(err)
	}
	if d := end.Sub(begin); d < 100*time.Millisecond || begin.Sub(res.Started) < 100*time.Millisecond {
		t.Errorf("Begin %v after the start, End %v later", begin.Sub(res.Started), d)
	}
	inside := 0
	for _, c := range res.Trace {
		if c.At >= sp.Warmup && c.At <= sp.Warmup+sp.Duration {
			inside++
		}
	}
	if res.Seconds != 0.15 || res.Ops != int64(inside) || len(res.Trace) <= inside || res.Ops == 0 {
		t.Errorf("%d operations in %v s; %d traced, %d of them recorded", res.Ops, res.Seconds, len(res.Trace), inside)
	}
}

func TestExportThatDoesNotFit(t *testing.T) {
	for _, tt := range []struct {
		flags nbd.TransmissionFlags
		size  uint64
		op    string
		want  string
	}{
		{0, 1 << 19, result.OpRead, "the export has 524288 bytes"},
		{nbd.ReadOnly, 1 << 20, result.OpWrite, "read-only"},
		{nbd.ReadOnly, 1 << 20, result.OpRead, ""},
	} {
		s := serve(t, &server{size: tt.size, flags: tt.flags})
		_, err := Run(context.Background(), s.uri, spec(tt.op, result.PatternRandom, 4096, 1, 1, result.ClassBuffered, 3))
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want %q, got %v", tt.want, err)
		}
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	s := spec(result.OpWrite, result.PatternRandom, 4096, 4, 1, result.ClassFlush, 40)
	if _, err := Run(context.Background(), path, s); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a file that isn't there: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.OffsetBytes = 1 << 20
	res, err := Run(context.Background(), path, s)
	if err != nil || res.Ops != 40 || res.Errors != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blank := make([]byte, 1<<20)
	if !bytes.Equal(b[:1<<20], blank) || !bytes.Equal(b[2<<20:], blank) || bytes.Equal(b[1<<20:2<<20], blank) {
		t.Error("the file was written outside the range, or not in it")
	}
	s.SizeBytes = 4 << 20
	if _, err := Run(context.Background(), path, s); err == nil || !strings.Contains(err.Error(), "it has 3145728 bytes") {
		t.Error(err)
	}
}

func TestParseURI(t *testing.T) {
	for _, tt := range []struct {
		uri  string
		want Address
	}{
		{"nbd://node/r0", Address{"tcp", "node:10809", "r0"}},
		{"nbd://[::1]:7/r0", Address{"tcp", "[::1]:7", "r0"}},
		{"nbd+unix:///r0?socket=/run/a%20b", Address{"unix", "/run/a b", "r0"}},
	} {
		if got, err := ParseURI(tt.uri); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v", tt.uri, got, err)
		}
	}
	for _, bad := range []string{"http://a/b", "nbd:///r0", "nbd+unix:///r0", "%"} {
		if _, err := ParseURI(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A request costs the client no memory: what it measures must not be its own
// garbage collector.
func TestRequestsAllocateNothing(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	noise, err := newPayloads(1, 4096)
	if err != nil {
		t.Fatal(err)
	}
	sp := spec(result.OpWrite, result.PatternRandom, 4096, 8, 1, result.ClassFlush, 1)
	c := newConn(fds[0], &sp, 0, noise)
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	c.rec.clock, c.left = clock{start: time.Now()}, -1
	in, out := make([]byte, 1<<20), make([]byte, 0, 1<<10)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	// turn has the server answer the requests that are filed, of size bytes each.
	turn := func(size int) {
		must(c.send())
		n := 0
		for n < 8*size {
			m, err := unix.Read(fds[1], in[n:])
			must(err)
			n += m
		}
		out = out[:0]
		for at := 0; at < n; at += size {
			q, err := nbd.DecodeRequest(in[at:])
			must(err)
			out = nbd.AppendSimpleReply(out, nbd.OK, q.Cookie)
		}
		_, err := unix.Write(fds[1], out)
		must(err)
		must(c.receive())
		must(c.answers(1))
	}
	allocs := testing.AllocsPerRun(20, func() {
		for len(c.idle) > 0 {
			c.begin(0)
		}
		turn(nbd.RequestSize + 4096)
		turn(nbd.RequestSize) // the flushes
	})
	if allocs != 0 || c.rec.ops != 21*8 {
		t.Errorf("%v allocations for 8 writes with their flushes, %d operations", allocs, c.rec.ops)
	}
}
