package engine

import (
	"bytes"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) lines(with string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range strings.Split(l.b.String(), "\n") {
		if strings.Contains(line, with) {
			n++
		}
	}
	return n
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// awaitListener waits until something listens at an address: the state says
// WFConnection a moment earlier.
func awaitListener(t *testing.T, to string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := dialFrom(t, "127.0.0.9", to); err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nothing listens at %s", to)
		}
	}
}

// dialFrom connects from one of loopback's many addresses.
func dialFrom(t *testing.T, from, to string) (net.Conn, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	return d.Dial("tcp", to)
}

// strangers opens n connections from an address that is not the peer's and
// reports how many were accepted; each must end without a byte.
func strangers(t *testing.T, n int, to string) (accepted int) {
	t.Helper()
	for range n {
		c, err := dialFrom(t, "127.0.0.9", to)
		if err != nil {
			continue // no listener just now, which is as good
		}
		accepted++
		c.Write(drbd.AppendHeader80(nil, drbd.CmdInitialData, 0)) //nolint:errcheck // it may be closed already
		c.SetReadDeadline(time.Now().Add(10 * time.Second))       // the read fails if this did
		if b, err := io.ReadAll(c); len(b) > 0 || os.IsTimeout(err) {
			t.Fatalf("a stranger got %x, %v", b, err)
		}
		c.Close()
	}
	return accepted
}

// A node that waits for its peer turns 5,000 strangers away without a
// goroutine, descriptor or log line for each, and finds its peer all the same.
func TestStrangersAreTurnedAway(t *testing.T) {
	var log logBuffer
	a, b := newPair(t, func(c *Config) {
		if c.Node == "beta" {
			c.Log = zerolog.New(&log)
		}
	})
	b.up()
	awaitListener(t, b.cfg.Local.String())
	files, routines := openFiles(t), runtime.NumGoroutine()
	n := 5000
	if testing.Short() {
		n = 500
	}
	if got := strangers(t, n, b.cfg.Local.String()); got < n/2 {
		t.Errorf("%d of %d strangers got through to the listener: nothing was tested", got, n)
	}
	if got := log.lines("connection of a stranger refused"); got < 1 || got > 20 {
		t.Errorf("%d log lines about %d strangers, want 1 to 20", got, n)
	}
	if got := openFiles(t) - files; got > 20 {
		t.Errorf("%d more files are open", got)
	}
	if got := runtime.NumGoroutine() - routines; got > 20 {
		t.Errorf("%d more goroutines run", got)
	}
	a.up()
	a.await("connection", isConnected)
}

// Connections from the peer's address that never finish their first packet do
// not keep the peer out: the oldest ones go.
func TestSlowLorisDoesNotKeepThePeerOut(t *testing.T) {
	a, b := newPair(t, nil)
	b.up()
	awaitListener(t, b.cfg.Local.String())
	var held []net.Conn
	for range 4 * maxGreeting {
		c, err := dialFrom(t, "127.0.0.1", b.cfg.Local.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{0x83, 0x74}) //nolint:errcheck // what counts is that it does not go on
		held = append(held, c)
	}
	held[0].SetReadDeadline(time.Now().Add(time.Second)) // the read fails if this did
	if _, err := held[0].Read(make([]byte, 1)); os.IsTimeout(err) {
		t.Error("the oldest of too many connections is still open")
	}
	began := time.Now()
	a.up()
	a.await("connection", isConnected)
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took the peer %v to get through", d)
	}
}

// A pair that replicates has no listener: strangers are refused by the kernel.
func TestStrangersWhileConnected(t *testing.T) {
	a, b := syncedPair(t, nil)
	c := a.open()
	files := openFiles(t)
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				if conn, err := dialFrom(t, "127.0.0.9", []string{a.cfg.Local.String(), b.cfg.Local.String()}[i%2]); err == nil {
					conn.Close()
				}
			}
		}
	}()
	data := pattern(3, 4096)
	for i := range 500 {
		c.write(int64(i)*4096, data)
	}
	close(stop)
	<-over
	if got := openFiles(t) - files; got > 20 {
		t.Errorf("%d more files are open", got)
	}
	c.finish(b)
}

func TestOutcast(t *testing.T) {
	var last time.Duration
	for n, want := range []time.Duration{0, 0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, maxOutcast} {
		if last = outcast(n); last != want {
			t.Errorf("after %d violations in a row: a pause of %v, want %v", n, last, want)
		}
	}
	if got := outcast(1 << 30); got != maxOutcast {
		t.Errorf("after very many: %v, want %v", got, maxOutcast)
	}
}

func TestLoudness(t *testing.T) {
	var l loudness
	now := time.Now()
	written := 0
	for range 10 * reportBurst {
		if _, ok := l.may(now); ok {
			written++
		}
	}
	if written != reportBurst {
		t.Errorf("%d lines at once, want %d", written, reportBurst)
	}
	left, ok := l.may(now.Add(reportEvery))
	if !ok || left != 9*reportBurst {
		t.Errorf("later: %v with %d left out, want true with %d", ok, left, 9*reportBurst)
	}
	if _, ok := l.may(now.Add(reportEvery)); ok {
		t.Error("two lines for the time of one")
	}
}
