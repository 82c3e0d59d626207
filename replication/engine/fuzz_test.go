package engine

import (
	"encoding/binary"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// What one run of FuzzEnginePeer may cost.
const (
	fuzzMemory   = 96 << 20    // bytes allocated: disks, buffers of the sockets, and no more for whatever a length says
	fuzzPatience = time.Minute // of a busy machine
)

// FuzzEnginePeer greets a real engine over loopback as a peer has to, in some
// role and state, and then sends what the bytes say: packets that are cut, whose
// length lies, that come in pieces or on the wrong socket; then it is gone.
// What must hold: no panic, no hang, no goroutine left, nothing allocated by the
// word of a header; the node still serves its client.
func FuzzEnginePeer(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 16, 0x10, 24, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 1, 2, 5, 0, 1, 4, 40, 3, 3, 0, 0, 1, 0x16, 24, 0, 0, 0, 24})
	f.Add([]byte{2, 2, 1, 0, 3, 4, 200, 1, 1, 1, 1, 1, 1, 1, 1, 5, 0, 6, 1})
	f.Add([]byte{3, 0, 1, 1, 1, 9, 2, 0, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 0, 0})
	f.Add([]byte{32, 0, 0, 0, 12, 0x83, 0x74, 0x02, 0x67, 0xff, 0xfe, 0, 72, 0, 0, 0, 101})
	f.Add([]byte{32, 1, 3, 1, 16, 0, 0x31, 16, 24, 1, 2, 3, 4, 5, 6, 7, 8, 7})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 4096 {
			return
		}
		watchdog := time.AfterFunc(4*fuzzPatience, func() { panic("an engine does not come to its end") })
		defer watchdog.Stop()
		before := runtime.NumGoroutine()
		fuzztest.Bounded(t, fuzzMemory, func() { fuzzEngine(t, fuzztest.NewProgram(program)) })
		for end := time.Now().Add(fuzzPatience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				var s strings.Builder
				pprof.Lookup("goroutine").WriteTo(&s, 1) //nolint:errcheck // into memory
				t.Fatalf("%d goroutines are left of %d:\n%s", runtime.NumGoroutine(), before, &s)
			}
		}
	})
}

// fuzzNode is a node that nothing slows down.
func fuzzNode(t *testing.T, in *fuzztest.Program) *node {
	ports := freePorts(t, 2)
	at := func(port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
	}
	cfg := Config{
		Resource: "r0", Node: "alpha", PeerName: "beta", Net: replication.DefaultNetOptions(), BootID: "boot-1",
		Local: at(ports[0]), Peer: at(ports[1]), Log: zerolog.Nop(),
		Volumes: []VolumeConfig{{Disk: filepath.Join(t.TempDir(), "a.img"), MetaIndex: -1, Options: replication.DefaultDiskOptions()}},
	}
	cfg.Net.SockCheckMS, cfg.Net.PingTimeoutMS = 1, 100
	b := in.Byte()
	cfg.Net.Protocol = "CABC"[b&3]
	if b&4 != 0 {
		cfg.Net.DataIntegrityAlg = "crc32c"
	}
	if b&8 != 0 {
		cfg.Net.VerifyAlg, cfg.Net.CsumsAlg = "md5", "crc32c"
	}
	if b&16 != 0 {
		cfg.Net.AllowTwoPrimaries, cfg.Net.Protocol = true, 'C'
	}
	if b&32 != 0 {
		cfg.Net.CramHMACAlg, cfg.Net.SharedSecret = "sha256", "none of yours"
	}
	createDisk(t, cfg.Volumes[0].Disk, 4<<20)
	return &node{t: t, cfg: cfg}
}

func fuzzEngine(t *testing.T, in *fuzztest.Program) {
	n := fuzzNode(t, in)
	n.up()
	b := in.Byte()
	isPrimary := b&1 != 0
	if isPrimary {
		if err := n.Primary(true); err != nil {
			t.Fatal(err)
		}
	}
	p := fuzzGreet(n, in, b)
	var c *client
	if isPrimary {
		c = n.open()
		for i := range int(b >> 4) {
			c.submit(blockdev.OpWrite, int64(i)*8192, make([]byte, 4096), 4096)
		}
	}
	fuzzSend(p, in)
	p.close()
	n.Disconnect(true) //nolint:errcheck // it may be StandAlone
	if isPrimary {
		fuzzServe(t, n, c)
		c.release()
	}
	closed := make(chan error, 1)
	go func() { closed <- n.Close() }()
	select {
	case <-closed: //nolint:errcheck // it may say that a disk was not what it has to be
	case <-time.After(fuzzPatience):
		t.Fatalf("the engine does not close: %+v", n.Status())
	}
}

// fuzzGreet is the handshake of a peer in some role and with some disk. If the
// node wants a secret, the peer has none and says what it likes instead.
func fuzzGreet(n *node, in *fuzztest.Program, b byte) *rawPeer {
	features := []uint32{kernelFeatures, kernelFeatures | drbd.FeaturePollux, kernelFeatures | drbd.FeaturePollux | drbd.FeatureTerm, 0}[b>>1&3]
	state := in.Byte()
	if n.cfg.Net.CramHMACAlg != "" {
		p := newRawPeer(n, features)
		for end := time.Now().Add(fuzzPatience); p.open() != nil; time.Sleep(time.Millisecond) {
			if p.close(); time.Now().After(end) {
				n.t.Fatal("the node cannot be reached")
			}
		}
		if state&1 != 0 && p.greet() == nil && state&2 != 0 {
			p.raw(p.data, header(drbd.CmdAuthChallenge, 0, 64), make([]byte, 64))
		}
		return p
	}
	p := dialRaw(n, features)
	p.handshake(word{state: func(s *drbd.State) {
		s.Disk = []drbd.DiskState{drbd.UpToDate, drbd.Inconsistent, drbd.Diskless, drbd.Outdated, drbd.Consistent, drbd.Negotiating}[state%6]
		if state&64 != 0 {
			s.Role = drbd.Primary
		}
	}, uuids: func(u *drbd.UUIDs) {
		if state&128 != 0 {
			u.Current = 4
		}
	}})
	return p
}

// fuzzServe has the node answer its client, with a success or an error.
func fuzzServe(t *testing.T, n *node, c *client) {
	n.ResumeIO() //nolint:errcheck // it may not be frozen
	r := c.submit(blockdev.OpWrite, 0, make([]byte, 4096), 4096)
	done := make(chan struct{})
	go func() { _ = c.s.wait(r); close(done) }() // with a success or an error
	select {
	case <-done:
	case <-time.After(fuzzPatience):
		t.Fatalf("a client is not answered: %+v", n.Status())
	}
}

// fuzzSend is the program behind the handshake.
func fuzzSend(p *rawPeer, in *fuzztest.Program) {
	for range 64 {
		if in.Left() == 0 {
			return
		}
		op := in.Byte()
		conn := []net.Conn{p.data, p.meta}[op>>7]
		switch op & 7 {
		case 0: // bytes as they are
			p.raw(conn, in.Take(int(in.Byte())))
		case 1, 2, 3, 4: // a packet whose length may lie
			cmd, body := drbd.Command(in.Byte()), in.Take(int(in.Byte()))
			length := len(body)
			switch op >> 3 & 7 {
			case 5:
				length = int(binary.BigEndian.Uint16(append(in.Take(2), 0, 0)[:2]))
			case 6:
				length = 0xffffffff
			case 7:
				length = 24 + 1<<20
			}
			if cmd == drbd.CmdData && op&7 == 1 { // with as much data as it says
				body = append(append([]byte(nil), body...), make([]byte, 24+4096)...)[:24+4096]
				length = len(body)
			}
			b := append(header(cmd, uint16(op>>6&1), length), body...)
			if op&7 == 4 { // in two pieces
				cut := int(in.Byte()) % len(b)
				p.raw(conn, b[:cut])
				time.Sleep(time.Millisecond) // so that they are two reads
				b = b[cut:]
			}
			p.raw(conn, b)
		case 5: // until it is all read
			time.Sleep(time.Millisecond) // there is no sign of it
		case 6: // half of the connection is over
			if c, ok := conn.(*net.TCPConn); ok {
				c.CloseWrite() //nolint:errcheck // the node may have closed it
			}
		case 7: // this socket is gone
			conn.Close()
		}
	}
}
