package repltest

import (
	"bytes"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// integrityFeature configures data-integrity-alg and damages packets that have
// a digest: what is damaged never reaches a disk.
var integrityFeature = feature{
	name: "integrity",
	choose: func(d *dice, c *Config) {
		if !d.chance(0.25) {
			return
		}
		alg := []string{"crc32c", "sha256", "md5"}[d.pick(3)]
		c.Net[0].DataIntegrityAlg, c.Net[1].DataIntegrityAlg = alg, alg
		c.Features &^= drbd.FeatureWZeroes // as the engine does
	},
	troubles: []*trouble{
		{"flip a byte on the wire", 3, func(_ *sim, n *Node) { n.flips++ }},
		{"turn data-integrity-alg on", 1, func(s *sim, _ *Node) { s.w.SetIntegrity("crc32c") }},
	},
	heal: func(s *sim) { s.w.Nodes[0].flips, s.w.Nodes[1].flips = 0, 0 },
}

// SetIntegrity changes data-integrity-alg on both nodes at once, also while they
// are connected.
func (w *World) SetIntegrity(alg string) {
	for _, n := range w.Nodes {
		w.cfg.Net[n.id].DataIntegrityAlg = alg
		n.Command(replication.Command{Kind: replication.CmdSetOptions, Net: w.cfg.Net[n.id], Disk: w.cfg.Disk[n.id]}, nil)
	}
}

// integrity is the receiver's side of data-integrity-alg, as the engine's
// reader has it.
type integrity struct{ alg string }

// receive takes the digest of data out of packet b and checks it.
func (in *integrity) receive(n *Node, h drbd.Header, b *[]byte, data []byte) error {
	fixed := (*b)[drbd.HeaderSize100:]
	switch h.Command {
	case drbd.CmdProtocol, drbd.CmdProtocolUpdate:
		var p drbd.ProtocolPacket
		if p.Decode(fixed) == nil {
			in.alg = p.IntegrityAlg
		}
	case drbd.CmdData, drbd.CmdDataReply, drbd.CmdRSDataReply:
		sum := digestOf(in.alg, n.w.mem.stampsOf(data))
		if !bytes.Equal(sum, fixed[drbd.FixedLen(h.Command):]) {
			return fmt.Errorf("%v: %s digest differs", h.Command, in.alg)
		}
		*b = (*b)[:drbd.HeaderSize100+drbd.FixedLen(h.Command)]
	case drbd.CmdZeroes:
		if in.alg != "" && n.w.cfg.Features&drbd.FeaturePollux == 0 {
			n.w.fail("%s: P_ZEROES with data-integrity-alg: drbd.ko loses the stream", n.name)
		}
	default:
	}
	return nil
}
