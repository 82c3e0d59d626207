package export_test

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev/blocktest"
	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/protocol/nbd"
)

// logLines counts log lines.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), "\n")
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// 5,000 connections from an address that is not allowed get nothing, and cost
// neither descriptors nor goroutines nor log lines; a client works meanwhile.
func TestStrangers(t *testing.T) {
	var log logLines
	r := newRig(t, blocktest.NewMem(1<<20), export.Config{Log: zerolog.New(&log).Level(zerolog.WarnLevel)})
	addr, err := r.srv.Listen(export.Listener{
		Network: "tcp", Address: "127.0.0.1:0", Plaintext: true,
		Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	})
	if err != nil {
		t.Fatal(err)
	}
	client := r.raw(t).enter("web-root")
	files, routines := openFiles(t), runtime.NumGoroutine()
	n := 5000
	if testing.Short() {
		n = 500
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.9")}, Timeout: 10 * time.Second}
	for i := range n {
		c, err := d.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if b, err := io.ReadAll(c); len(b) > 0 || os.IsTimeout(err) {
			t.Fatalf("a stranger got %x, %v", b, err)
		}
		c.Close()
		if i%100 == 0 {
			client.mustWork()
		}
	}
	if got := log.count(); got < 1 || got > 100 {
		t.Errorf("%d log lines about %d strangers", got, n)
	}
	if got := openFiles(t) - files; got > 20 {
		t.Errorf("%d more files are open", got)
	}
	if got := runtime.NumGoroutine() - routines; got > 20 {
		t.Errorf("%d more goroutines run", got)
	}
}

// Connections that stay in the handshake keep nobody out: on a full listener the
// oldest of them goes. Clients that have finished theirs stay.
func TestSlowLoris(t *testing.T) {
	const most = 8
	var log logLines
	r := newRig(t, blocktest.NewMem(1<<20), export.Config{MaxConnections: most, Log: zerolog.New(&log).Level(zerolog.WarnLevel)})
	early := r.raw(t).enter("web-root")
	var slow []*raw
	for range 10 * most {
		c := r.raw(t)
		c.Write([]byte{0}) //nolint:errcheck // it may be closed: the first byte of its flags, and no more
		slow = append(slow, c)
	}
	if _, err := io.Copy(io.Discard, slow[0]); os.IsTimeout(err) {
		t.Error("the oldest of too many connections in their handshake stays open")
	}
	late := r.raw(t).enter("web-root")
	late.mustWork()
	early.mustWork()
	if got := log.count(); got > 20 {
		t.Errorf("%d log lines", got)
	}
}

// Clients on one listener, whatever they do, leave room on the others.
func TestListenersHaveRoomOfTheirOwn(t *testing.T) {
	const most = 4
	r := newRig(t, blocktest.NewMem(1<<20), export.Config{MaxConnections: most})
	addr, err := r.srv.Listen(export.Listener{Network: "tcp", Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	dial := func() *raw {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return &raw{c, t}
	}
	for range most {
		dial().enter("web-root")
	}
	dial().mustEnd() // nobody is in the handshake: it is full
	r.raw(t).enter("web-root").mustWork()
}

// An option that announces gigabytes is not waited for; many options end.
func TestOptionFlood(t *testing.T) {
	r := memRig(t, 1<<20)
	c := r.raw(t).greet(nbd.FixedNewstyle | nbd.NoZeroes)
	c.send(nbd.AppendOption(nil, nbd.OptList, nil)[:12])
	c.send([]byte{0xff, 0xff, 0xff, 0xff})
	c.mustEnd()
	c = r.raw(t).greet(nbd.FixedNewstyle | nbd.NoZeroes)
	var b []byte
	for range 100000 {
		b = nbd.AppendOption(b, nbd.OptList, nil)
	}
	go c.Write(b) //nolint:errcheck // fails when the server has had enough
	n, _ := io.Copy(io.Discard, c)
	if n > 1<<20 {
		t.Errorf("%d bytes of answers to one client that only asks for the list", n)
	}
	r.raw(t).enter("web-root").mustWork()
}
