package engine

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// lowPair is a connection with a lowReader at one end.
func lowPair(t *testing.T) (*lowReader, *net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second)) // a test that hangs would only say so later
	return newLowReader(c.(*net.TCPConn)), c.(*net.TCPConn), w.(*net.TCPConn)
}

// started starts a Read and returns when it waits with that SO_RCVLOWAT.
func (r *lowReader) started(t *testing.T, c *net.TCPConn, low int) <-chan string {
	t.Helper()
	done := make(chan string, 1)
	go func() {
		b := make([]byte, 1<<20)
		n, err := r.Read(b)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- string(b[:n])
	}()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for set, end := 0, time.Now().Add(20*time.Second); set != low; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("SO_RCVLOWAT is %d, want %d", set, low)
		}
		raw.Control(func(fd uintptr) { //nolint:errcheck // err says it
			set, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return done
}

// TestLowReader: a payload is waited for as a whole, and what comes instead of
// it or after it does not wait.
func TestLowReader(t *testing.T) {
	r, c, w := lowPair(t)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	send := func(b []byte) {
		t.Helper()
		for len(b) > 0 { // as a network with small segments would bring it
			n, err := w.Write(b[:min(len(b), 1400)])
			if err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
	}
	r.need(len(payload))
	done := r.started(t, c, len(payload))
	send(payload)
	if got := <-done; got != string(payload) {
		t.Errorf("woken for %d of %d bytes", len(got), len(payload))
	}
	done = r.started(t, c, 1)
	send([]byte("short"))
	if got := <-done; got != "short" {
		t.Errorf("read %q behind a payload, want %q", got, "short")
	}
	r.need(lowatFrom - 1)
	done = r.started(t, c, 1)
	send([]byte("half"))
	if got := <-done; got != "half" {
		t.Errorf("read %q of a small payload, want %q", got, "half")
	}
	r.need(len(payload))
	done = r.started(t, c, len(payload))
	send([]byte("cut"))
	w.Close()
	if got := <-done; got != "cut" {
		t.Errorf("read %q of a payload that is cut off, want %q", got, "cut")
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d bytes, error %v, want %v", n, err, io.EOF)
	}
}

// TestKernelBarrier: a kernel peer's epoch is on disk, and acknowledged, before
// a write of the next one is taken; the reader sees to it by itself.
func TestKernelBarrier(t *testing.T) {
	t.Run("buffered", func(t *testing.T) { testKernelBarrier(t, false) })
	t.Run("direct", func(t *testing.T) { testKernelBarrier(t, true) })
}

func testKernelBarrier(t *testing.T, direct bool) {
	n := rawNode(t, func(c *Config) { c.Volumes[0].Direct = direct })
	n.singleCPU = direct
	if err := n.Secondary(); err != nil {
		t.Fatal(err)
	}
	p := dialRaw(n, kernelFeatures)
	defer p.close()
	p.connect(word{state: func(s *drbd.State) { s.Role = drbd.Primary }}, drbd.Connected)
	const epochs = 50
	var b []byte
	for i := range uint32(epochs) {
		b = append(b, header(drbd.CmdData, 0, 24+4096)...)
		b = drbd.Data{Sector: drbd.Sector(i * 8), BlockID: uint64(i + 1), Seq: i + 1, Flags: drbd.DPSendWriteAck}.Append(b)
		b = append(b, make([]byte, 4096)...)
		b = drbd.Barrier{Barrier: i}.Append(append(b, header(drbd.CmdBarrier, 0, 8)...))
	}
	p.raw(p.data, b)
	var order []drbd.Command
	p.n.await("all acknowledgements", func(Status) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		order = order[:0]
		for _, k := range p.got {
			if k.Command == drbd.CmdWriteAck || k.Command == drbd.CmdBarrierAck {
				order = append(order, k.Command)
			}
		}
		return len(order) == 2*epochs
	})
	for i, got := range order {
		if want := []drbd.Command{drbd.CmdWriteAck, drbd.CmdBarrierAck}[i%2]; got != want {
			t.Fatalf("acknowledgement %d is %v, want %v", i, got, want)
		}
	}
}
