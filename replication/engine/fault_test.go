package engine

import (
	"bytes"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// faults says which operations of a disk fail; it outlives the attach.
type faults struct {
	mu                sync.Mutex
	read, write, sync bool
	below             int64         // only requests that begin below are hit: not the metadata
	slow              time.Duration // a read takes as much longer
}

// faulty is a device whose operations fail on demand.
type faulty struct {
	blockdev.Device
	faults *faults
}

func (f *faults) set(read, write, sync bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read, f.write, f.sync = read, write, sync
}

func (f *faults) fails(flag *bool, off int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *flag && off < f.below
}

func (f *faulty) ReadAt(p []byte, off int64) (int, error) {
	if f.faults.fails(&f.faults.read, off) {
		return 0, syscall.EIO
	}
	if f.faults.slow > 0 && off < f.faults.below {
		time.Sleep(f.faults.slow) // a busy disk
	}
	return f.Device.ReadAt(p, off)
}

func (f *faulty) WriteAt(p []byte, off int64) (int, error) {
	if f.faults.fails(&f.faults.write, off) {
		return 0, syscall.EIO
	}
	return f.Device.WriteAt(p, off)
}

func (f *faulty) WriteFUA(p []byte, off int64) error {
	if f.faults.fails(&f.faults.write, off) {
		return syscall.EIO
	}
	return f.Device.WriteFUA(p, off)
}

func (f *faulty) Sync() error {
	if f.faults.fails(&f.faults.sync, 0) {
		return syscall.EIO
	}
	return f.Device.Sync()
}

// faultyPair is a synced pair whose disks can be made to fail.
func faultyPair(t *testing.T) (a, b *node, fa, fb *faults) {
	t.Helper()
	a, b = newPair(t, nil)
	fa, fb = &faults{below: 15 << 20}, &faults{below: 15 << 20}
	for _, x := range []struct {
		n *node
		f *faults
	}{{a, fa}, {b, fb}} {
		x.n.open1 = func(path string, o blockdev.Options) (blockdev.Device, error) {
			dev, err := blockdev.Open(path, o)
			return &faulty{Device: dev, faults: x.f}, err
		}
		x.n.up()
	}
	a.await("connection", isConnected)
	if err := a.Primary(true); err != nil {
		t.Fatal(err)
	}
	a.await("first sync", inSync)
	b.await("first sync", inSync)
	return a, b, fa, fb
}

func TestFailingDiskOfThePrimary(t *testing.T) {
	for name, fail := range map[string]func(*faults){
		"write": func(f *faults) { f.set(false, true, false) },
		"read":  func(f *faults) { f.set(true, false, false) },
		"sync":  func(f *faults) { f.set(false, false, true) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, fa, _ := faultyPair(t)
			c := a.open()
			want := pattern(7, 8192)
			c.write(0, want)
			fail(fa)
			c.write(1<<20, want)
			c.read(0, 4096)
			c.flush()
			a.await("detach", func(s Status) bool {
				return s.Volumes[0].Disk == drbd.Diskless && s.Role == drbd.Primary && isConnected(s)
			})
			for _, off := range []int64{0, 1 << 20} {
				if !bytes.Equal(c.read(off, 8192), want) {
					t.Fatalf("the peer's copy lacks the write at %d", off)
				}
			}
			b.await("news of the detach", func(s Status) bool { return s.Volumes[0].PeerDisk == drbd.Diskless })
			if got := a.Status().LastError; got == "" {
				t.Fatal("status does not say why the disk is gone")
			}
			fa.set(false, false, false)
			if err := a.Attach(0); err != nil {
				t.Fatal(err)
			}
			a.await("resync after the repair", inSync)
			b.await("resync after the repair", inSync)
			c.finish(b)
		})
	}
}

func TestFailingDiskOfTheSecondary(t *testing.T) {
	for name, fail := range map[string]func(*faults){
		"write": func(f *faults) { f.set(false, true, false) },
		"sync":  func(f *faults) { f.set(false, false, true) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, _, fb := faultyPair(t)
			c := a.open()
			fail(fb)
			c.write(0, pattern(1, 8192))
			c.flush()
			b.await("detach", func(s Status) bool { return s.Volumes[0].Disk == drbd.Diskless })
			c.write(1<<20, pattern(2, 8192))
			c.flush()
			if !bytes.Equal(c.read(0, 8192), pattern(1, 8192)) {
				t.Fatal("acknowledged write is lost")
			}
			fb.set(false, false, false)
			if err := b.Attach(0); err != nil {
				t.Fatal(err)
			}
			a.await("resync after the repair", inSync)
			b.await("resync after the repair", inSync)
			c.finish(b)
		})
	}
}

// TestStrangersOnThePort: garbage and silence on the replication port neither
// harm the node nor keep its peer out.
func TestStrangersOnThePort(t *testing.T) {
	a, b := newPair(t, nil)
	a.up()
	var conns []net.Conn
	for i := range 40 {
		c, err := net.Dial("tcp", a.cfg.Local.String())
		if err != nil {
			break // closed while it greets others
		}
		conns = append(conns, c)
		if i%2 == 0 {
			c.Write(bytes.Repeat([]byte{0xff}, 64)) //nolint:errcheck // it may be closed already
		}
	}
	b.up()
	a.await("connection", isConnected)
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(10 * time.Second)) // the read fails if this did
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatal("a stranger is still connected")
		}
		c.Close()
	}
}

func isTimeout(err error) bool {
	n, ok := err.(net.Error) //nolint:errorlint // the error of a Read is not wrapped
	return ok && n.Timeout()
}

// TestGarbageAfterTheHandshake: a peer that breaks the protocol loses the
// connection with a reason that names packet and field; the node goes on.
func TestGarbageAfterTheHandshake(t *testing.T) {
	for name, tt := range map[string]struct {
		bytes []byte
		conn  drbd.ConnState
	}{
		"no header":      {bytes.Repeat([]byte{0xff}, 64), drbd.WFConnection},
		"hostile length": {drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdData, Length: 1 << 31}), drbd.WFConnection},
		"early data":     {append(drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdBarrier, Length: 8}), make([]byte, 8)...), drbd.WFConnection},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := newPair(t, nil)
			a.up()
			s, m := dialPair(t, a)
			defer s.Close()
			defer m.Close()
			f := drbd.Features{Min: 86, Max: 101, Flags: 0xf}.Append(nil)
			s.Write(append(drbd.AppendHeader80(nil, drbd.CmdConnectionFeatures, len(f)), f...)) //nolint:errcheck // read tells
			if _, err := io.ReadFull(s, make([]byte, 80)); err != nil {
				t.Fatal(err)
			}
			a.await("handshake", func(s Status) bool { return s.Conn == drbd.WFReportParams })
			if name == "early data" {
				p := drbd.ProtocolPacket{Protocol: drbd.ProtocolC}.Append(nil)
				s.Write(append(drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdProtocol, Length: uint32(len(p))}), p...)) //nolint:errcheck // likewise
				st := append(drbd.AppendHeader100(nil, drbd.Header{Command: drbd.CmdDataRequest, Length: 24}), make([]byte, 24)...)
				s.Write(st) //nolint:errcheck // likewise
			}
			s.Write(tt.bytes) //nolint:errcheck // likewise
			a.await("end of the connection", func(st Status) bool { return st.Conn == tt.conn && st.LastError != "" })
			if err := a.Primary(true); err != nil {
				t.Fatalf("the node does not go on: %v", err)
			}
		})
	}
}

// dialPair opens both sockets to n as a peer would.
func dialPair(t *testing.T, n *node) (s, m net.Conn) {
	t.Helper()
	dial := func(cmd drbd.Command) net.Conn {
		deadline := time.Now().Add(10 * time.Second)
		for {
			c, err := net.Dial("tcp", n.cfg.Local.String())
			if err == nil {
				if _, err = c.Write(drbd.AppendHeader80(nil, cmd, 0)); err == nil {
					return c
				}
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	s = dial(drbd.CmdInitialData)
	m = dial(drbd.CmdInitialMeta)
	return s, m
}
