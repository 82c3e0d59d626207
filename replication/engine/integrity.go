package engine

import (
	"bytes"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// integrity is what the reader of the data socket knows of the peer's
// data-integrity-alg: the peer names it in P_PROTOCOL, and may change it by
// P_PROTOCOL_UPDATE from the next packet on (drbd84-protocol, 1.7.1).
type integrity struct {
	digester
	sumSize int // bytes of a digest, 0 without an algorithm
	want    [drbd.MaxDigestSize]byte
}

// observe looks at a packet without data.
func (in *integrity) observe(h drbd.Header, payload []byte) error {
	if h.Command != drbd.CmdProtocol && h.Command != drbd.CmdProtocolUpdate {
		return nil
	}
	var p drbd.ProtocolPacket
	if p.Decode(payload) != nil {
		return nil // the core says what is wrong with it
	}
	in.sumSize = 0
	if err := in.try(p.IntegrityAlg); err != nil {
		if h.Command == drbd.CmdProtocol {
			return nil // it is not this node's, and the core gives up
		}
		return &drbd.ProtocolError{
			Packet: h.Command, Field: "integrity_alg", Got: fmt.Sprintf("%q", p.IntegrityAlg), Want: "an algorithm that this node has",
		}
	}
	if in.h != nil {
		in.sumSize = in.h.Size()
	}
	return nil
}

// check compares the data of p with the digest that came before them.
func (in *integrity) check(p *packet) error {
	if in.sumSize == 0 {
		return nil
	}
	in.digest(p.data)
	if bytes.Equal(in.sum[:in.sumSize], in.want[:in.sumSize]) {
		return nil
	}
	var d drbd.Data
	d.Decode(p.fixed) //nolint:errcheck // the sector is for the message only
	return &drbd.ProtocolError{
		Packet: p.header.Command, Field: fmt.Sprintf("%s digest of %d bytes at sector %d", in.alg, len(p.data), d.Sector),
		Got: fmt.Sprintf("%x: the data were damaged on their way", in.want[:in.sumSize]), Want: fmt.Sprintf("%x", in.sum[:in.sumSize]),
	}
}
