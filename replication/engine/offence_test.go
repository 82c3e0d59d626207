package engine

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
)

// primary is what a rawPeer says to be Primary.
var primary = word{state: func(s *drbd.State) { s.Role = drbd.Primary }}

// TestLiesToAPrimary: a peer that answers wrongly, or writes itself, costs the
// Primary its connection, and its client nothing.
func TestLiesToAPrimary(t *testing.T) {
	n := rawNode(t, nil)
	var events connEvents
	events.watch(n)
	c := n.open()
	data := pattern(1, 4096)
	for _, tt := range []struct {
		name string
		lie  func(p *rawPeer, d drbd.Data)
		want string
		conn drbd.ConnState
	}{
		{"ack of another sector", func(p *rawPeer, d drbd.Data) {
			p.say(drbd.CmdWriteAck, drbd.BlockAck{Sector: d.Sector + 8, BlockID: d.BlockID, Size: 4096, Seq: 1})
		}, "P_WRITE_ACK: block_id: wanted that of a write at sector 24, got 0x", drbd.NetworkFailure},
		{"ack of another size of an epoch", func(p *rawPeer, d drbd.Data) {
			p.say(drbd.CmdWriteAck, drbd.BlockAck{Sector: d.Sector, BlockID: d.BlockID, Size: 4096, Seq: 1})
			var b drbd.Barrier
			p.decode(&b, drbd.CmdBarrier)
			p.say(drbd.CmdBarrierAck, drbd.BarrierAck{Barrier: b.Barrier, SetSize: 77})
		}, "P_BARRIER_ACK: set_size: wanted 1, got 77", drbd.ProtocolFailure},
		{"ack of another epoch", func(p *rawPeer, d drbd.Data) {
			p.say(drbd.CmdWriteAck, drbd.BlockAck{Sector: d.Sector, BlockID: d.BlockID, Size: 4096, Seq: 1})
			var b drbd.Barrier
			p.decode(&b, drbd.CmdBarrier)
			p.say(drbd.CmdBarrierAck, drbd.BarrierAck{Barrier: b.Barrier + 1000, SetSize: 1})
		}, "P_BARRIER_ACK: barrier: wanted ", drbd.ProtocolFailure},
		{"ack of an epoch without its writes", func(p *rawPeer, _ drbd.Data) {
			p.send(drbd.CmdState, drbd.StatePacket{Word: 0x110aa})
			p.say(drbd.CmdBarrierAck, drbd.BarrierAck{})
		}, "P_BARRIER_ACK: barrier: wanted ", drbd.ProtocolFailure},
		{"conflict that is none", func(p *rawPeer, d drbd.Data) {
			p.say(drbd.CmdSuperseded, drbd.BlockAck{Sector: d.Sector, BlockID: d.BlockID, Size: 4096, Seq: 1})
		}, "P_SUPERSEDED: block_id: wanted none: the peer does not resolve conflicts, got 0x", drbd.NetworkFailure},
		{"a second Primary's write", func(p *rawPeer, d drbd.Data) {
			p.send(drbd.CmdData, drbd.Data{Sector: 8, BlockID: 1, Seq: 1, Flags: drbd.DPSendWriteAck}, make([]byte, 4096)...)
		}, "P_DATA: role: wanted none, as this node is the only Primary, got a write", drbd.ProtocolFailure},
		{"a second Primary discards everything", func(p *rawPeer, d drbd.Data) {
			p.send(drbd.CmdTrim, drbd.Trim{Data: drbd.Data{BlockID: 1, Seq: 1, Flags: drbd.DPSendWriteAck | drbd.DPDiscard}, Size: 8 << 20})
		}, "P_TRIM: role: wanted none, as this node is the only Primary, got a write", drbd.ProtocolFailure},
		{"a second Primary", func(p *rawPeer, _ drbd.Data) {
			s := drbd.State{Role: drbd.Primary, Peer: drbd.Primary, Conn: drbd.Connected, Disk: drbd.UpToDate, Pdsk: drbd.UpToDate}
			p.send(drbd.CmdState, drbd.StatePacket{Word: s.Word()})
		}, "P_STATE: role: wanted Secondary, as this node is Primary, got Primary", drbd.ProtocolFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t = t
			p := dialRaw(n, kernelFeatures)
			defer p.close()
			p.connect(word{}, drbd.Connected)
			events.reset()
			r := c.submit(blockdev.OpWrite, 16*512, data, len(data))
			var d drbd.Data
			p.decode(&d, drbd.CmdData)
			tt.lie(p, d)
			events.wait(t, tt.conn)
			if err := c.s.wait(r); err != nil {
				t.Errorf("the client's write: %v", err)
			}
			if s := n.Status(); !strings.Contains(s.LastError, tt.want) {
				t.Errorf("last error %q, want %q in it", s.LastError, tt.want)
			}
			if s := n.Status(); s.Role != drbd.Primary || s.Volumes[0].Disk != drbd.UpToDate {
				t.Errorf("this node is %v, %v", s.Role, s.Volumes[0].Disk)
			}
		})
	}
	if got := c.read(16*512, len(data)); string(got) != string(data) {
		t.Error("the write is not on the disk")
	}
}

// A diskless node's read ends although the peer's answer is too short, and the
// connection with it.
func TestShortDataReply(t *testing.T) {
	n := rawNode(t, nil)
	p := dialRaw(n, kernelFeatures)
	p.connect(word{}, drbd.Connected)
	if err := n.Detach(context.Background(), 0, true); err != nil {
		t.Fatal(err)
	}
	c := n.open()
	r := c.submit(blockdev.OpRead, 0, make([]byte, 4096), 4096)
	var q drbd.BlockRequest
	p.decode(&q, drbd.CmdDataRequest)
	p.send(drbd.CmdDataReply, drbd.Data{Sector: q.Sector, BlockID: q.BlockID}, make([]byte, 512)...)
	over := make(chan error, 1)
	go func() { over <- c.s.wait(r) }()
	select {
	case err := <-over:
		if err == nil {
			t.Error("the read got data from nowhere")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the read never ends")
	}
	if got, want := n.Status().Violation, "P_DATA_REPLY: data size: wanted 4096, got 512"; got != want {
		t.Errorf("violation %q, want %q", got, want)
	}
}

// TestLiesInTheGreeting: what goes wrong before P_PROTOCOL ends StandAlone where
// a kernel gives up, and is tried again where it does.
func TestLiesInTheGreeting(t *testing.T) {
	n := rawNode(t, func(c *Config) { c.Net.CramHMACAlg, c.Net.SharedSecret = "sha256", "secret" })
	challenge := func(p *rawPeer, b []byte) {
		p.raw(p.data, header(drbd.CmdAuthChallenge, 0, len(b)), b)
	}
	for _, tt := range []struct {
		name  string
		lie   func(p *rawPeer)
		want  string
		alone bool
	}{
		{"not the features", func(p *rawPeer) { p.raw(p.data, drbd.AppendHeader80(nil, drbd.CmdProtocol, 72), make([]byte, 72)) }, "P_PROTOCOL: command: wanted P_CONNECTION_FEATURES, got P_PROTOCOL", true},
		{"features too short", func(p *rawPeer) {
			p.raw(p.data, drbd.AppendHeader80(nil, drbd.CmdConnectionFeatures, 8), make([]byte, 8))
		}, "P_CONNECTION_FEATURES: length: wanted 72, got 8", true},
		{"no common version", func(p *rawPeer) {
			p.raw(p.data, drbd.AppendHeader80(nil, drbd.CmdConnectionFeatures, 72), drbd.Features{Min: 110, Max: 120}.Append(nil))
		}, "no common protocol version: this node speaks 100..101, the peer 110..120", true},
		{"no header", func(p *rawPeer) { p.raw(p.data, make([]byte, 80)) }, "packet header: magic: wanted 0x83740267 or 0x835a (an 8-byte header), got 0x00000000", false},
		{"no authentication", func(p *rawPeer) {
			p.features80()
			p.raw(p.data, header(drbd.CmdProtocol, 0, 25), drbd.ProtocolPacket{Protocol: 3}.Append(nil))
		}, "P_PROTOCOL: command: wanted P_AUTH_CHALLENGE, got P_PROTOCOL: cram-hmac-alg must be configured on both nodes", true},
		{"challenge too short", func(p *rawPeer) { p.features80(); challenge(p, make([]byte, 16)) }, "P_AUTH_CHALLENGE: length: wanted 64 to 128, got 16", true},
		{"challenge too long", func(p *rawPeer) { p.features80(); challenge(p, make([]byte, 4096)) }, "P_AUTH_CHALLENGE: length: wanted 64 to 128, got 4096", true},
		{"our own challenge", func(p *rawPeer) {
			p.features80()
			challenge(p, p.readChallenge())
		}, "P_AUTH_CHALLENGE: challenge: wanted one of the peer's, got this node's own", true},
		{"response of another size", func(p *rawPeer) {
			p.features80()
			challenge(p, make([]byte, 64))
			p.raw(p.data, header(drbd.CmdAuthResponse, 0, 16), make([]byte, 16))
		}, "P_AUTH_RESPONSE: length: wanted 32, got 16: the peer has another cram-hmac-alg", false},
		{"wrong response", func(p *rawPeer) {
			p.features80()
			challenge(p, make([]byte, 64))
			p.raw(p.data, header(drbd.CmdAuthResponse, 0, 32), make([]byte, 32))
		}, "the peer has another shared-secret or cram-hmac-alg", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t = t
			if n.Status().Conn == drbd.StandAlone {
				if err := n.Connect(ConnectOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			deadline := time.Now().Add(20 * time.Second)
			for told := false; !told; time.Sleep(5 * time.Millisecond) {
				p := newRawPeer(n, 0)
				if p.open() == nil {
					tt.lie(p)
					p.data.SetReadDeadline(time.Now().Add(5 * time.Second)) // the read fails if this did
					for b := make([]byte, 512); ; {
						if _, err := p.data.Read(b); err != nil {
							break
						}
					}
				}
				p.close()
				s := n.Status()
				told = strings.Contains(s.LastError, tt.want)
				if time.Now().After(deadline) {
					t.Fatalf("last error %q, want %q in it", s.LastError, tt.want)
				}
			}
			want := drbd.WFConnection
			if tt.alone {
				want = drbd.StandAlone
			}
			n.await(fmt.Sprint(want), func(s Status) bool { return s.Conn == want })
		})
	}
}

func (p *rawPeer) features80() {
	body := drbd.Features{Min: 86, Max: 101, Flags: kernelFeatures}.Append(nil)
	p.raw(p.data, drbd.AppendHeader80(nil, drbd.CmdConnectionFeatures, len(body)), body)
}

// readChallenge is the node's challenge, behind its features.
func (p *rawPeer) readChallenge() []byte {
	b := make([]byte, drbd.HeaderSize80+72+drbd.HeaderSize100+drbd.AuthChallengeSize)
	for n := 0; n < len(b); {
		k, err := p.data.Read(b[n:])
		if err != nil {
			break
		}
		n += k
	}
	return b[len(b)-drbd.AuthChallengeSize:]
}

// A peer that connects and breaks the protocol again and again is looked for
// less and less often, and an honest one is then taken all the same.
func TestRepeatedViolations(t *testing.T) {
	n := rawNode(t, nil)
	const times = 8
	began := time.Now()
	for range times {
		p := dialRaw(n, kernelFeatures)
		p.send(drbd.CmdState, drbd.StatePacket{})
		p.await(drbd.CmdProtocol)
		n.await("the end", func(s Status) bool { return s.Conn == drbd.WFConnection })
		p.close()
	}
	p := dialRaw(n, kernelFeatures)
	defer p.close()
	p.connect(word{}, drbd.Connected)
	pauses := time.Duration(0)
	for i := range times + 1 {
		pauses += outcast(i) / shorter
	}
	if d := time.Since(began); d < pauses {
		t.Errorf("%d violations and an honest connection took %v only, with pauses of %v", times, d, pauses)
	}
	if s := n.Status(); s.Violations != times || s.LastError != "" {
		t.Errorf("%d violations, last error %q; want %d and none", s.Violations, s.LastError, times)
	}
}

// heapGrowth is how much more memory is in use than before.
func heapGrowth(before uint64) int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) - int64(before)
}

// TestFloods has a peer that keeps to the letter of the protocol, but asks
// without end and takes no answers, or acknowledges none.
func TestFloods(t *testing.T) {
	var log logBuffer
	n := rawNode(t, func(c *Config) { c.Log = zerolog.New(&log) })
	if err := n.Secondary(); err != nil {
		t.Fatal(err)
	}
	const bound = 80 << 20
	long := time.Second
	if testing.Short() {
		long /= 4
	}
	for _, tt := range []struct {
		name  string
		flood func(p *rawPeer) (packet []byte, meta bool)
		w     word
	}{
		{"P_PING", func(*rawPeer) ([]byte, bool) { return header(drbd.CmdPing, 0, 0), true }, word{}},
		{"P_DATA of a Primary", func(*rawPeer) ([]byte, bool) {
			d := drbd.Data{Sector: 8, BlockID: 1, Seq: 1, Flags: drbd.DPSendWriteAck}
			return append(d.Append(header(drbd.CmdData, 0, 24+512)), make([]byte, 512)...), false
		}, primary},
		{"P_DATA and P_BARRIER", func(*rawPeer) ([]byte, bool) {
			d := drbd.Data{Sector: 8, BlockID: 1, Seq: 1, Flags: drbd.DPSendReceiveAck}
			b := append(d.Append(header(drbd.CmdData, 0, 24+512)), make([]byte, 512)...)
			return append(append(b, header(drbd.CmdBarrier, 0, 8)...), make([]byte, 8)...), false
		}, primary},
		{"P_TRIM of everything", func(p *rawPeer) ([]byte, bool) {
			k := drbd.Trim{Data: drbd.Data{BlockID: 1, Seq: 1, Flags: drbd.DPSendWriteAck | drbd.DPDiscard}, Size: uint32(p.sectors()) * 512}
			return k.Append(header(drbd.CmdTrim, 0, 28)), false
		}, primary},
		{"P_DATA_REQUEST", func(*rawPeer) ([]byte, bool) {
			return drbd.BlockRequest{BlockID: 1, Size: 1 << 20}.Append(header(drbd.CmdDataRequest, 0, 24)), false
		}, primary},
		{"P_OV_REQUEST", func(*rawPeer) ([]byte, bool) {
			return drbd.BlockRequest{BlockID: drbd.ResyncID, Size: 4096}.Append(header(drbd.CmdOVRequest, 0, 24)), false
		}, word{}},
		{"P_STATE_CHG_REQ", func(*rawPeer) ([]byte, bool) {
			return drbd.ReqState{Mask: 1 << 30, Val: 1 << 30}.Append(header(drbd.CmdStateChgReq, 0, 8)), false
		}, word{}},
		{"P_STATE, to and fro", func(*rawPeer) ([]byte, bool) {
			a := drbd.StatePacket{Word: 0x0110aa}.Append(header(drbd.CmdState, 0, 4))
			return drbd.StatePacket{Word: 0x1110aa}.Append(append(a, header(drbd.CmdState, 0, 4)...)), false
		}, word{}},
		{"unknown volumes", func(*rawPeer) ([]byte, bool) {
			return drbd.StatePacket{Word: 0x0110aa}.Append(header(drbd.CmdState, 77, 4)), false
		}, word{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t = t
			p := dialRaw(n, kernelFeatures)
			defer p.close()
			p.connect(tt.w, drbd.Connected)
			p.deafen()
			before := uint64(heapGrowth(0))
			b, meta := tt.flood(p)
			c := p.data
			if meta {
				c = p.meta
			}
			for len(b) < 64<<10 {
				b = append(b, b...)
			}
			var worst, sent int64
			c.SetWriteDeadline(time.Now().Add(long)) // the flood would last longer
			for next := time.Now(); ; {
				k, err := c.Write(b)
				sent += int64(k)
				if err != nil {
					break
				}
				if time.Now().After(next) {
					worst = max(worst, heapGrowth(before))
					next = time.Now().Add(200 * time.Millisecond)
				}
			}
			worst = max(worst, heapGrowth(before))
			t.Logf("%d MiB sent, heap at most %d MiB more", sent>>20, worst>>20)
			if worst > bound {
				t.Errorf("the heap has grown by %d MiB, want at most %d", worst>>20, bound>>20)
			}
			began := time.Now()
			n.Status()
			if d := time.Since(began); d > time.Second {
				t.Errorf("the status took %v", d)
			}
		})
	}
	if got := log.lines(""); got > 3000 {
		t.Errorf("%d log lines about it all", got)
	}
}

// A peer that takes blocks of a resync without end, and acknowledges none, is
// stopped before the list of them takes much memory.
func TestUnacknowledgedResync(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 262,144 blocks")
	}
	n := rawNode(t, nil)
	if err := n.Secondary(); err != nil {
		t.Fatal(err)
	}
	p := dialRaw(n, kernelFeatures)
	defer p.close()
	p.connect(word{}, drbd.Connected)
	close(p.thrown)
	b := drbd.BlockRequest{BlockID: drbd.ResyncID, Size: 512}.Append(header(drbd.CmdRSDataRequest, 0, 24))
	for len(b) < 64<<10 {
		b = append(b, b...)
	}
	go func() {
		for {
			if _, err := p.data.Write(b); err != nil {
				return
			}
		}
	}()
	const want = "P_RS_DATA_REQUEST: blocks under way: wanted less than 262144 without P_RS_WRITE_ACK, got "
	for end := time.Now().Add(2 * time.Minute); !strings.HasPrefix(n.Status().Violation, want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("violation %q, want %q...", n.Status().Violation, want)
		}
	}
}

// A verify whose source never says how its blocks compare holds a client's write
// up for ko-count x timeout, and no longer.
func TestVerifyWithoutResults(t *testing.T) {
	n := rawNode(t, func(c *Config) { c.Net.TimeoutMS, c.Net.KoCount, c.Net.PingIntMS = 500, 2, 60000 })
	c := n.open()
	p := dialRaw(n, kernelFeatures)
	defer p.close()
	p.connect(word{}, drbd.Connected)
	p.send(drbd.CmdStateChgReq, drbd.ReqState{Mask: 31 << 4, Val: uint32(drbd.VerifyS) << 4})
	var reply drbd.ReqStateReply
	p.decode(&reply, drbd.CmdStateChgReply)
	n.await("the verify", func(s Status) bool { return s.Volumes[0].Conn == drbd.VerifyT })
	p.send(drbd.CmdOVRequest, request(8))
	p.await(drbd.CmdOVReply)
	began := time.Now()
	if err := c.s.wait(c.submit(blockdev.OpWrite, 8*512, pattern(1, 4096), 4096)); err != nil {
		t.Errorf("the write: %v", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the write waited for %v", took)
	}
	if got := n.Status().LastError; !strings.Contains(got, "left a request unanswered") {
		t.Errorf("last error %q", got)
	}
}

// TestPeerMayNotCommand: a change that no node asks of its peer is refused, and
// changes nothing here.
func TestPeerMayNotCommand(t *testing.T) {
	n := rawNode(t, nil)
	if err := n.Secondary(); err != nil {
		t.Fatal(err)
	}
	p := dialRaw(n, kernelFeatures)
	defer p.close()
	p.connect(word{}, drbd.Connected)
	p.await(drbd.CmdState)
	before := n.Status().Volumes[0].State
	for _, tt := range []struct {
		what      string
		mask, val uint32
	}{
		{"be Primary", 3 << 2, uint32(drbd.Primary) << 2},
		{"fail its disk", 15 << 13, uint32(drbd.Failed) << 13},
		{"be diskless", 15 << 13, uint32(drbd.Diskless) << 13},
		{"be StandAlone", 31 << 4, uint32(drbd.StandAlone) << 4},
		{"disconnect one volume", 31 << 4, uint32(drbd.Disconnecting) << 4},
		{"go back to WFReportParams", 31 << 4, uint32(drbd.WFReportParams) << 4},
		{"be SyncTarget", 31 << 4, uint32(drbd.SyncSource) << 4},
		{"be Behind", 31 << 4, uint32(drbd.Ahead) << 4},
		{"freeze its clients", 1 << 17, 1 << 17},
		{"freeze them for fencing", 1 << 22, 1 << 22},
		{"take an unknown role for its peer's", 3, 0},
		{"be in a state that is none", 1<<31 | 31<<4, 30 << 4},
	} {
		p.send(drbd.CmdStateChgReq, drbd.ReqState{Mask: tt.mask, Val: tt.val})
		var reply drbd.ReqStateReply
		p.decode(&reply, drbd.CmdStateChgReply)
		if reply.Code >= 1 {
			t.Errorf("the peer may have this node %s: %d", tt.what, reply.Code)
		}
		if now := n.Status().Volumes[0].State; now != before {
			t.Fatalf("%s: %v now, %v before", tt.what, now, before)
		}
	}
}
