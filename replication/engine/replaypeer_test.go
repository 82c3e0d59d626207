package engine

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// replayTime bounds each wait of a replay: far more than any takes.
const replayTime = 20 * time.Second

// A heard is one packet of the engine, or the end of a socket.
type heard struct {
	from    *peerConn
	header  drbd.Header
	payload []byte
	err     error
	writes  []uint64 // P_BARRIER: block ids of its epoch that the peer acknowledges
	count   uint32   // P_BARRIER: writes of its epoch
}

// peerConn is one socket of the scripted peer.
type peerConn struct {
	net.Conn
	number int // in the capture
	sock   drbd.Socket
	ended  bool // the engine has closed it
	closed bool // the peer has said its last
}

// read delivers the engine's packets to out until the socket ends. Before the
// features are exchanged headers are the short ones.
func (c *peerConn) read(out chan<- heard) {
	early := 0 // packets with a short header that come
	if c.sock == drbd.DataSocket {
		early = 1
	}
	for {
		h, err := c.header(early > 0)
		early--
		if err != nil {
			out <- heard{from: c, err: err}
			return
		}
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(c, payload); err != nil {
			out <- heard{from: c, err: err}
			return
		}
		out <- heard{from: c, header: h, payload: payload}
	}
}

func (c *peerConn) header(short bool) (drbd.Header, error) {
	b := make([]byte, drbd.HeaderSize100)
	if short {
		b = b[:drbd.HeaderSize80]
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return drbd.Header{}, err
	}
	if short {
		return drbd.DecodeHeader80(b)
	}
	return drbd.DecodeHeader100(b)
}

// A scriptedPeer is the other node of a capture as far as it is sockets: the
// packets come from the capture.
type scriptedPeer struct {
	own, engine string // addresses
	ln          net.Listener
	accepted    chan net.Conn
	in          chan heard
	data, meta  *peerConn
}

func newScriptedPeer(own, engine string) *scriptedPeer {
	return &scriptedPeer{own: own, engine: engine, accepted: make(chan net.Conn, 8), in: make(chan heard, 1024)}
}

// listen lets the engine find the peer, or not.
func (p *scriptedPeer) listen(open bool) error {
	switch {
	case open && p.ln == nil:
		ln, err := net.Listen("tcp", p.own)
		if err != nil {
			return err
		}
		p.ln = ln
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				p.accepted <- c
			}
		}()
	case !open && p.ln != nil:
		err := p.ln.Close()
		p.ln = nil
		return err
	}
	return nil
}

// dial opens a socket to the engine, as soon as it listens.
func (p *scriptedPeer) dial() (net.Conn, error) {
	for end := time.Now().Add(replayTime); ; {
		c, err := net.DialTimeout("tcp", p.engine, replayTime)
		if err == nil || time.Now().After(end) {
			return c, err
		}
		time.Sleep(2 * time.Millisecond) // there is nothing to wait for but its listening
	}
}

// accept takes the socket that the engine opens, and its first packet.
func (p *scriptedPeer) accept() (net.Conn, drbd.Command, error) {
	for {
		select {
		case c := <-p.accepted:
			if err := c.SetReadDeadline(time.Now().Add(replayTime)); err != nil {
				return nil, 0, err
			}
			var b [drbd.HeaderSize80]byte
			if _, err := io.ReadFull(c, b[:]); err != nil {
				continue // given up by the engine
			}
			h, err := drbd.DecodeHeader80(b[:])
			if err != nil {
				return nil, 0, err
			}
			return c, h.Command, c.SetReadDeadline(time.Time{})
		case <-time.After(replayTime):
			return nil, 0, errors.New("the engine does not connect")
		}
	}
}

// adopt takes a socket into use for what its first packet says.
func (p *scriptedPeer) adopt(c net.Conn, number int, first drbd.Command) {
	pc := &peerConn{Conn: c, number: number}
	if first == drbd.CmdInitialData {
		p.data = pc
	} else {
		pc.sock = drbd.MetaSocket
		p.meta = pc
	}
	go pc.read(p.in)
}

func (p *scriptedPeer) conn(sock drbd.Socket) *peerConn {
	if sock == drbd.DataSocket {
		return p.data
	}
	return p.meta
}

// send sends one packet.
func (p *scriptedPeer) send(sock drbd.Socket, cmd drbd.Command, volume uint16, payload []byte) error {
	c := p.conn(sock)
	if c == nil {
		return fmt.Errorf("no socket for %v", cmd)
	}
	var b []byte
	if cmd >= drbd.CmdInitialMeta { // and the features
		b = drbd.AppendHeader80(nil, cmd, len(payload))
	} else {
		b = drbd.AppendHeader100(nil, drbd.Header{Volume: volume, Command: cmd, Length: uint32(len(payload))})
	}
	if err := c.SetWriteDeadline(time.Now().Add(replayTime)); err != nil {
		return err
	}
	_, err := c.Write(append(b, payload...))
	return err
}

// hangUp ends the peer's side of a socket.
func (c *peerConn) hangUp() {
	if c == nil || c.closed {
		return
	}
	c.closed = true
	c.Conn.(*net.TCPConn).CloseWrite() //nolint:errcheck // the engine may have been faster
}

// forget closes both sockets at once.
func (p *scriptedPeer) forget() {
	for _, c := range []*peerConn{p.data, p.meta} {
		if c != nil {
			c.Close() // whatever it is, it is over
		}
	}
	p.data, p.meta = nil, nil
}
