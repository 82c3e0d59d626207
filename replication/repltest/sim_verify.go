package repltest

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// verifyFeature compares the copies at any time, while disks lie: now and then
// a block changes that nobody wrote.
var verifyFeature = feature{
	name: "verify",
	choose: func(d *dice, c *Config) {
		if d.chance(0.6) {
			alg := []string{"crc32c", "md5", "sha1"}[d.pick(3)]
			c.Net[0].VerifyAlg, c.Net[1].VerifyAlg = alg, alg
		}
	},
	troubles: []*trouble{
		{"verify", 8, func(s *sim, n *Node) {
			c := replication.Command{Kind: replication.CmdVerify, Volume: uint16(s.w.pick(len(n.Vols))), StartSector: replication.VerifyContinue}
			switch s.w.pick(4) {
			case 0:
				c.StartSector = drbd.Sector(s.w.pick(s.w.cfg.Sectors + 100))
			case 1, 2: // where the clients write meanwhile
				c.StartSector = drbd.Sector(max(s.hot-s.w.pick(64), 0))
			}
			if s.w.chance(0.3) {
				c.StopSector = drbd.Sector(s.w.pick(s.w.cfg.Sectors + 100))
			}
			n.Command(c, nil)
		}},
		{"corrupt a block", 2, func(s *sim, n *Node) {
			if s.w.cfg.Net[0].VerifyAlg != "" {
				n.corrupt(s.w.pick(len(n.Vols)), s.w.pick(s.w.cfg.Sectors))
			}
		}},
	},
	quiet: verifyAll,
}

// corrupt changes one sector on a node's disk behind everybody's back, unless
// it is being written.
func (n *Node) corrupt(vol, sector int) {
	m, d := n.w.Model, n.Vols[vol].data
	if m.beingWritten(vol, sector) {
		return
	}
	m.nextID++
	// As if a write of unknown times had been there: it is never older than another.
	m.reqs = append(m.reqs, &Request{ID: m.nextID, Op: replication.OpWrite, Vol: vol, Sector: sector, Count: 1, Done: true, end: math.MaxInt64})
	d.writeThrough(sector, []stamp{m.nextID})
	if m.planted == nil {
		m.planted = map[plant]stamp{}
	}
	m.planted[plant{vol, sector / (blockSize / sectorSize)}] = m.nextID
	n.w.trace("%s corrupted vol=%d sector=%d", n.name, vol, sector)
}

// A plant is a block of 4 KiB that may differ without a mark: a disk lied.
type plant struct{ vol, block int }

func (m *Model) isPlanted(vol uint16, sector int) bool {
	return len(m.planted) > 0 && m.planted[plant{int(vol), sector / (blockSize / sectorSize)}] != 0
}

// mirrors reports whether both copies are to be equal in state c.
func mirrors(c drbd.ConnState) bool {
	return c == drbd.Connected || c == drbd.VerifyS || c == drbd.VerifyT
}

// A hashedRange is what a node was asked to hash for its peer's verify. The
// link keeps how many writes its disk had seen when it answered.
type hashedRange struct {
	node, vol int
	sector    drbd.Sector
	size      uint32
}

// watchVerify sees each packet as it is sent.
func (w *World) watchVerify(n *Node, h drbd.Header, payload []byte) {
	var q drbd.BlockRequest
	var a drbd.BlockAck
	if int(h.Volume) >= len(n.Vols) {
		return
	}
	switch h.Command {
	case drbd.CmdOVReply:
		if q.Decode(payload) == nil {
			if n.link.hashed == nil {
				n.link.hashed = map[hashedRange]uint32{}
			}
			n.link.hashed[hashedRange{n.id, int(h.Volume), q.Sector, q.Size}] = n.Vols[h.Volume].data.writes
		}
	case drbd.CmdOVResult:
		if a.Decode(payload) == nil {
			w.verdict(n, int(h.Volume), a)
		}
	}
}

// verdict checks what the source of a verify says about a range, at the moment
// it says so. Nobody writes there then, or the peer does since it hashed the
// range: the write arrives here behind the hash, and that may be after the client
// was answered.
func (w *World) verdict(n *Node, vol int, a drbd.BlockAck) {
	p := w.Nodes[1-n.id]
	if n.link == nil || p.link != n.link {
		return
	}
	d := p.Vols[vol].data
	x, y := n.Vols[vol].data.now, d.now
	from, to := int(a.Sector), min(int(a.Sector)+int(a.Size)/sectorSize, len(x), len(y))
	equal := slices.Equal(x[from:to], y[from:to])
	if equal == (a.BlockID == drbd.OVInSync) {
		return
	}
	if n.state(vol).Conn != drbd.VerifyS || p.state(vol).Disk != drbd.UpToDate {
		return // what it says does not count
	}
	seen, ok := n.link.hashed[hashedRange{p.id, vol, a.Sector, a.Size}]
	late := ok && !equal
	for i := from; i < to; i++ {
		if w.Model.beingWritten(vol, i) || w.Model.onItsWay(vol, i) {
			return // a write has begun behind the comparison
		}
		late = late && (x[i] == y[i] || d.version[i] > seen)
	}
	if late {
		return
	}
	w.fail("%s/%d: online verify says %d of sectors %d-%d, but equal is %v", n.name, vol, a.BlockID, from, to, equal)
}

// verifyAll is an online verify at rest, around a block that a disk has lied
// about if there is one: it finds exactly the blocks that differ, and both nodes
// mark them.
func verifyAll(s *sim) {
	w := s.w
	if l := w.Nodes[0].link; l != nil && l.stalled() {
		w.breakLink(false) // nobody has used the socket that is dead
		w.Run(1000)
	}
	if w.cfg.Net[0].VerifyAlg == "" || !w.chance(0.5) || !w.RunUntil(30000, s.settled) {
		return
	}
	n := w.Nodes[w.pick(2)]
	i, block := w.pick(len(n.Vols)), w.pick(w.cfg.Sectors/8)
	if len(w.Model.planted) > 0 {
		p := slices.SortedFunc(maps.Keys(w.Model.planted), func(x, y plant) int { return cmp.Or(x.vol-y.vol, x.block-y.block) })[0]
		i, block = p.vol, p.block
	}
	const blocks = 200 // more would only take time
	from := max(block-w.pick(blocks), 0)
	to := from + blocks
	x, y := w.Nodes[0].Vols[i], w.Nodes[1].Vols[i]
	before := [2][]bool{bitsOf(x.bitmap, from, to), bitsOf(y.bitmap, from, to)}
	c := replication.Command{Kind: replication.CmdVerify, Volume: uint16(i), StartSector: drbd.Sector(from * 8), StopSector: drbd.Sector(to * 8)}
	begun := false
	n.Command(c, func(err error) {
		if begun = true; err != nil && n.link != nil { // a dead socket may not have been missed until now
			w.fail("%s/%d: at rest a verify is refused: %v", n.name, i, err)
		}
	})
	if !w.RunUntil(20000, func() bool {
		return begun && n.link == nil || begun && w.Nodes[0].state(i).Conn == drbd.Connected && w.Nodes[1].state(i).Conn == drbd.Connected
	}) {
		w.fail("%s/%d: a verify at rest does not end: %v", n.name, i, n.state(i))
	}
	for j, v := range []*Volume{x, y} {
		if w.failure != nil || n.link == nil {
			return
		}
		for k, is := range bitsOf(v.bitmap, from, to) {
			first, end := (from+k)*8, min((from+k)*8+8, w.exported(i))
			differs := first < end && !slices.Equal(x.data.now[first:end], y.data.now[first:end])
			if was := before[j][k]; is != (was || differs) {
				w.fail("volume %d, block %d on node %s after a verify: marked %v, was %v, differs %v", i, from+k, w.Nodes[j].name, is, was, differs)
				return
			}
		}
	}
}

// bitsOf are the bits from up to to.
func bitsOf(b *meta.Bitmap, from, to int) []bool {
	set := make([]bool, to-from)
	for i := range set {
		set[i] = uint64(from+i) < b.Bits() && b.Test(uint64(from+i))
	}
	return set
}
