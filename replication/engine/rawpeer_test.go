package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// kernelFeatures are what a kernel peer offers.
const kernelFeatures = drbd.FeatureTrim | drbd.FeatureThinResync | drbd.FeatureWSame | drbd.FeatureWZeroes

// A rawPeer is the peer of a node under test, played packet by packet: it keeps
// to the protocol only as far as the test wants it to.
type rawPeer struct {
	t          testing.TB
	n          *node
	data, meta net.Conn
	features   uint32

	mu   sync.Mutex
	cond *sync.Cond
	got  []rawPacket // from the node, in order
	gone int         // sockets that the node has closed

	deaf   chan struct{} // closed: nothing more is read
	thrown chan struct{} // closed: what comes is thrown away
}

type rawPacket struct {
	drbd.Header
	body []byte
}

func newRawPeer(n *node, features uint32) *rawPeer {
	p := &rawPeer{t: n.t, n: n, features: features, deaf: make(chan struct{}), thrown: make(chan struct{})}
	p.cond = sync.NewCond(&p.mu)
	return p
}

// dialRaw greets a node: both sockets stand, version and features are agreed.
// As long as the node does not listen it is tried again.
func dialRaw(n *node, features uint32) *rawPeer {
	n.t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) { // its listening cannot be waited for
		p := newRawPeer(n, features)
		if err = p.open(); err == nil {
			if err = p.greet(); err == nil {
				return p
			}
		}
		p.close()
	}
	n.t.Fatalf("the node cannot be reached: %v", err)
	return nil
}

// open makes both sockets.
func (p *rawPeer) open() (err error) {
	to := p.n.cfg.Local.String()
	if p.data, err = net.DialTimeout("tcp", to, time.Second); err != nil {
		return err
	}
	if _, err = p.data.Write(drbd.AppendHeader80(nil, drbd.CmdInitialData, 0)); err != nil {
		return err
	}
	if p.meta, err = net.DialTimeout("tcp", to, time.Second); err != nil {
		return err
	}
	_, err = p.meta.Write(drbd.AppendHeader80(nil, drbd.CmdInitialMeta, 0))
	return err
}

// greet exchanges features and starts to listen to the node.
func (p *rawPeer) greet() error {
	body := drbd.Features{Min: 86, Max: 101, Flags: p.features}.Append(nil)
	if _, err := p.data.Write(append(drbd.AppendHeader80(nil, drbd.CmdConnectionFeatures, len(body)), body...)); err != nil {
		return err
	}
	p.data.SetReadDeadline(time.Now().Add(5 * time.Second)) // the read fails if this did
	b := make([]byte, drbd.HeaderSize80+len(body))
	if _, err := io.ReadFull(p.data, b); err != nil {
		return err
	}
	p.data.SetReadDeadline(time.Time{}) // it succeeded before
	if _, err := drbd.DecodeHeader80(b); err != nil {
		return err
	}
	go p.listen(p.data)
	go p.listen(p.meta)
	return nil
}

func (p *rawPeer) close() {
	for _, c := range []net.Conn{p.data, p.meta} {
		if c != nil {
			c.Close()
		}
	}
}

// listen collects what the node sends.
func (p *rawPeer) listen(c net.Conn) {
	var head [drbd.HeaderSize100]byte
	for {
		_, err := io.ReadFull(c, head[:])
		var h drbd.Header
		if err == nil {
			h, err = drbd.DecodeHeader100(head[:])
		}
		if err != nil {
			break
		}
		body := make([]byte, h.Length)
		if _, err := io.ReadFull(c, body); err != nil {
			break
		}
		p.keep(rawPacket{h, body})
		select {
		case <-p.deaf:
			return
		default:
		}
	}
	p.mu.Lock()
	p.gone++
	p.cond.Broadcast()
	p.mu.Unlock()
}

// keep files a packet of the node.
func (p *rawPeer) keep(k rawPacket) {
	select {
	case <-p.thrown:
		return
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, k)
	p.cond.Broadcast()
}

// deafen has the peer take nothing more.
func (p *rawPeer) deafen() { close(p.deaf) }

// await returns the first packet of a kind that the node sends, or has sent.
func (p *rawPeer) await(cmd drbd.Command) rawPacket {
	p.t.Helper()
	timer := time.AfterFunc(20*time.Second, func() {
		p.mu.Lock()
		p.gone = 2
		p.cond.Broadcast()
		p.mu.Unlock()
	})
	defer timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for i, k := range p.got {
			if k.Command == cmd {
				p.got = append(p.got[:i:i], p.got[i+1:]...)
				return k
			}
		}
		if p.gone == 2 {
			p.t.Fatalf("the node sends no %v: %+v", cmd, p.n.Status())
		}
		p.cond.Wait()
	}
}

// raw sends bytes as they are.
func (p *rawPeer) raw(c net.Conn, parts ...[]byte) {
	p.t.Helper()
	if _, err := c.Write(bytes.Join(parts, nil)); err != nil && !errors.Is(err, net.ErrClosed) {
		p.t.Logf("send: %v", err) // the node may have closed already
	}
}

// header is that of a packet as a peer of version 101 sends it.
func header(cmd drbd.Command, vol uint16, length int) []byte {
	return drbd.AppendHeader100(nil, drbd.Header{Command: cmd, Volume: vol, Length: uint32(length)})
}

// send sends a whole packet on the data socket, say on the meta socket.
func (p *rawPeer) send(cmd drbd.Command, k drbd.Packet, rest ...byte) {
	p.t.Helper()
	body := append(k.Append(nil), rest...)
	p.raw(p.data, header(cmd, 0, len(body)), body)
}

func (p *rawPeer) say(cmd drbd.Command, k drbd.Packet) {
	p.t.Helper()
	body := k.Append(nil)
	p.raw(p.meta, header(cmd, 0, len(body)), body)
}

// A word is what a rawPeer says in its handshake; the zero value repeats what
// the node has said, as an UpToDate Secondary.
type word struct {
	protocol  func(*drbd.ProtocolPacket)
	syncParam func(*drbd.SyncParam89)
	sizes     func(*drbd.Sizes)
	uuids     func(*drbd.UUIDs)
	state     func(*drbd.State)
	until     drbd.Command // the last packet that is sent; 0: all
}

// handshake plays the part behind the features.
func (p *rawPeer) handshake(w word) {
	p.t.Helper()
	var k drbd.ProtocolPacket
	p.decode(&k, drbd.CmdProtocol)
	if w.protocol != nil {
		w.protocol(&k)
	}
	p.send(drbd.CmdProtocol, k)
	if w.until == drbd.CmdProtocol {
		return
	}
	var sp drbd.SyncParam89
	p.decode(&sp, drbd.CmdSyncParam89)
	if w.syncParam != nil {
		w.syncParam(&sp)
	}
	p.send(drbd.CmdSyncParam89, sp)
	var sz drbd.Sizes
	p.decode(&sz, drbd.CmdSizes)
	sz.DSize = max(sz.DSize, sz.CSize)
	if w.sizes != nil {
		w.sizes(&sz)
	}
	p.send(drbd.CmdSizes, sz)
	if w.until == drbd.CmdSizes {
		return
	}
	var u drbd.UUIDs
	if p.n.Status().Volumes[0].Disk >= drbd.Negotiating {
		p.decode(&u, drbd.CmdUUIDs)
	}
	u.DirtyBits, u.Flags = 0, 0
	if w.uuids != nil {
		w.uuids(&u)
	}
	p.send(drbd.CmdUUIDs, u)
	if w.until == drbd.CmdUUIDs {
		return
	}
	s := drbd.State{Role: drbd.Secondary, Conn: drbd.WFConnection, Disk: drbd.UpToDate, Pdsk: drbd.DUnknown}
	if w.state != nil {
		w.state(&s)
	}
	p.send(drbd.CmdState, drbd.StatePacket{Word: s.Word()})
}

func (p *rawPeer) decode(k interface{ Decode([]byte) error }, cmd drbd.Command) {
	p.t.Helper()
	if err := k.Decode(p.await(cmd).body); err != nil {
		p.t.Fatalf("the node's %v: %v", cmd, err)
	}
}

// connect is a whole handshake, until the node is in a state.
func (p *rawPeer) connect(w word, conn drbd.ConnState) {
	p.t.Helper()
	p.handshake(w)
	p.n.await(fmt.Sprint(conn), func(s Status) bool { return s.Volumes[0].Conn == conn })
}

// sectors is the size of the node's volume.
func (p *rawPeer) sectors() drbd.Sector {
	return drbd.Sector(p.n.Status().Volumes[0].SizeBytes / 512)
}
