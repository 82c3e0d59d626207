package hostile

import (
	"io"

	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// config is what a program chooses before anything runs.
type config struct {
	features     uint32
	net          replication.NetOptions
	disk         replication.DiskOptions
	sectors      []int
	synced       bool
	resolver     int
	fenceHandler bool
	faulty       bool   // disks fail: then less is promised
	givenUp      bool   // an operator has given up a's copy
	stamps       uint32 // the last that was used
}

func pick[T any](in *fuzztest.Program, from ...T) T { return from[int(in.Byte())%len(from)] }

const kernelFeatures = drbd.FeatureTrim | drbd.FeatureThinResync | drbd.FeatureWSame | drbd.FeatureWZeroes

func readConfig(in *fuzztest.Program) config {
	c := config{net: replication.DefaultNetOptions(), disk: replication.DefaultDiskOptions()}
	c.features = pick(in, kernelFeatures|drbd.FeaturePollux|drbd.FeatureTerm, kernelFeatures, kernelFeatures|drbd.FeaturePollux, 0)
	c.net.Protocol = pick(in, byte('C'), 'A', 'B', 'C')
	c.disk.ALExtents = 7
	b := in.Byte()
	c.synced = b&1 == 0
	if b&2 != 0 {
		c.net.VerifyAlg, c.net.CsumsAlg = "crc32c", "md5"
	}
	if b&4 != 0 {
		c.net.DataIntegrityAlg = "crc32c"
		c.features &^= drbd.FeatureWZeroes
	}
	if b&8 != 0 {
		c.net.AllowTwoPrimaries, c.net.Protocol = true, 'C'
	}
	if b&16 != 0 && c.net.Protocol == 'A' {
		c.net.OnCongestion, c.net.CongestionFill = replication.CongestionPullAhead, 64
	}
	if b&32 != 0 {
		c.disk.Fencing, c.fenceHandler = replication.FencingResourceAndStonith, b&64 != 0
	}
	if b&128 != 0 {
		c.disk.RSDiscardGranularity = 8192
	}
	b = in.Byte()
	c.resolver = int(b & 1)
	c.disk.DiskTimeoutMS = []int64{0, 0, 0, 1000}[b>>1&3]
	c.net.UseRLE = b&8 == 0
	c.sectors = [][]int{{2048}, {2048, 1160}, {2048}, {16384 + 24}}[b>>4&3]
	if b&64 != 0 {
		c.net.MaxEpochSize = 2
	}
	return c
}

// Run runs a program and says what it has broken. If log is not nil it gets a
// line for each thing that happens.
func Run(program []byte, log io.Writer) error {
	m := &machine{in: fuzztest.NewProgram(program)}
	cfg := readConfig(m.in)
	w := &world{cfg: cfg, now: 1000, log: log}
	m.w = w
	for i := range w.nodes {
		w.nodes[i] = newNode(w, i, cfg.sectors, cfg.synced)
		w.nodes[i].fence = []int{4, 5, 7, 3}[i+int(cfg.net.Protocol)&1]
	}
	m.a, m.b = w.nodes[0], w.nodes[1]
	m.begin()
	for range maxOps {
		if m.in.Left() == 0 || w.failure != nil || w.events > maxEvents {
			break
		}
		m.op()
		m.a.judgeDisk()
	}
	if w.failure == nil && w.events <= maxEvents {
		m.epilogue()
	}
	return w.failure
}

// maxOps bounds a program.
const maxOps = 400

// machine runs a program.
type machine struct {
	in   *fuzztest.Program
	w    *world
	a, b *node
}

func (m *machine) cmd(n *node, kind replication.CommandKind) *outcome {
	return n.command(replication.Command{Kind: kind})
}

func (m *machine) force(n *node, kind replication.CommandKind) *outcome {
	return n.command(replication.Command{Kind: kind, Force: true})
}

// begin brings both nodes into the state where the program wants to start.
func (m *machine) begin() {
	a, b, w := m.a, m.b, m.w
	scene := m.in.Byte() % 14
	w.trace("-- scene %d %+v", scene, w.cfg)
	if scene >= 11 { // nobody but forged packets
		w.ghost = m.ghost()
		a.up()
		b.start()
		if scene == 12 {
			m.force(a, replication.CmdPrimary)
		}
		w.run(50, nil)
		return
	}
	a.up()
	if scene == 10 { // node b has no disk
		b.start()
		m.cmd(b, replication.CmdConnect)
	} else {
		b.up()
	}
	if scene == 0 {
		return
	}
	w.run(40, nil)
	switch scene {
	case 1: // connected
	case 2, 10: // a is Primary
		m.force(a, replication.CmdPrimary)
	case 3: // b is Primary
		m.force(b, replication.CmdPrimary)
	case 4, 5: // one of them wrote alone: a resync, from a or to it
		n := w.nodes[scene-4]
		m.force(n, replication.CmdPrimary)
		w.run(100, nil)
		w.apart = true
		w.cut()
		for i := range 40 {
			n.submit(replication.OpWrite, 0, i*40, 16, false)
		}
		w.run(50, nil)
		w.apart = false
		w.connect()
	case 6, 7: // a verify, begun by a or b
		m.force(a, replication.CmdPrimary)
		w.run(2000, nil)
		n := w.nodes[scene-6]
		m.cmd(n, replication.CmdVerify)
	case 8: // many writes under way
		m.force(a, replication.CmdPrimary)
		w.run(100, nil)
		for i := range 60 {
			a.submit(replication.OpWrite, 0, i*32, 32, false)
		}
	case 9: // a is Primary without a disk
		m.force(a, replication.CmdPrimary)
		w.run(2000, nil)
		m.cmd(a, replication.CmdDetach)
	}
	w.run(int64(m.in.Byte())%64, nil)
}

// op is one instruction.
func (m *machine) op() {
	a, b, w, in := m.a, m.b, m.w, m.in
	switch in.Byte() % 24 {
	case 0, 1:
		w.run(pick[int64](in, 1, 0, 5, 20, 100, 1000, 7000, 40000), nil)
	case 2:
		m.request(a)
	case 3:
		m.request(b)
	case 4:
		m.order(a)
	case 5:
		m.order(b)
	case 6, 7, 8, 9, 10, 11: // a forged packet
		m.inject(m.forge(drbd.NoCommand))
	case 12: // something that b has said, again, and perhaps changed
		if len(w.said) > 0 {
			m.inject(m.mutate(w.said[len(w.said)-1-int(in.Byte())%len(w.said)]))
		}
	case 13, 14: // something that b says is changed, left out, or said twice
		m.intercept()
	case 15: // garbage
		n := int(in.Byte())
		p := packet{sock: drbd.Socket(in.Byte() & 1)}
		for range n {
			p.bytes = append(p.bytes, in.Byte())
		}
		m.inject(p)
	case 16:
		w.cut()
	case 17: // the end of one stream
		if l := w.link; l != nil {
			w.push(l, 1, packet{drbd.Socket(in.Byte() & 1), nil})
			a.down(l, pick(in, drbd.BrokenPipe, drbd.NetworkFailure, drbd.Timeout), errClosed)
		}
	case 18: // from now on only forged packets
		w.deafen(m.ghost())
	case 19: // and from now on b again
		if w.ghost != nil {
			w.ghost = nil
			w.cut()
		}
	case 20:
		m.trouble(a)
	case 21:
		m.trouble(b)
	case 22:
		n := w.nodes[in.Byte()&1]
		n.kill()
		n.up()
		w.cfg.faulty = w.cfg.faulty || n == a && n.faults != [4]int{}
	case 23:
		if in.Byte()&1 == 0 {
			a.step(&replication.Event{Kind: replication.SendBlocked})
		} else {
			m.flood()
		}
	}
}

// flood says one thing very often.
func (m *machine) flood() {
	p, l := m.forge(drbd.NoCommand), m.w.link
	for range pick(m.in, 100, 3000) {
		if l == nil || l != m.w.link || !l.up[0] {
			return
		}
		m.w.push(l, 1, p)
	}
}

func (m *machine) request(n *node) {
	in := m.in
	b := in.Byte()
	op := []replication.Op{replication.OpWrite, replication.OpWrite, replication.OpRead, replication.OpFlush, replication.OpTrim, replication.OpZero}[b%6]
	for range 1 + int(b>>6)*7 {
		if n.alive {
			n.submit(op, int(b>>5)&1, int(in.Byte())*8, pick(in, 8, 1, 16, 128, 600), b&16 != 0)
		}
	}
}

// order is a command of an operator.
func (m *machine) order(n *node) {
	in := m.in
	vol := uint16(in.Byte()) % uint16(len(n.vols))
	c := replication.Command{Volume: vol, Kind: pick(in,
		replication.CmdPrimary, replication.CmdSecondary, replication.CmdConnect, replication.CmdDisconnect, replication.CmdDetach,
		replication.CmdInvalidate, replication.CmdInvalidateRemote, replication.CmdOutdate, replication.CmdResumeIO, replication.CmdSuspendIO,
		replication.CmdPauseSync, replication.CmdResumeSync, replication.CmdVerify, replication.CmdResize, replication.CmdNewCurrentUUID,
		replication.CmdSetOptions, replication.CommandKind(0),
	)}
	flags := in.Byte()
	c.Force, c.AssumeClean = flags&1 != 0, flags&2 != 0
	switch c.Kind { //nolint:exhaustive // the others need nothing more
	case 0:
		n.attach(int(vol))
		return
	case replication.CmdInvalidate, replication.CmdOutdate:
		m.w.cfg.givenUp = true
	case replication.CmdConnect:
		m.w.cfg.givenUp = m.w.cfg.givenUp || c.Force
		n.discard = c.Force
	case replication.CmdVerify:
		c.StartSector = drbd.Sector(flags>>2) * 64
	case replication.CmdResize:
		if flags&4 != 0 {
			c.SizeSectors = uint64(n.vols[vol].layout.Usable) - uint64(flags>>3)*8
		}
	case replication.CmdSetOptions:
		c.Net, c.Disk = n.net, n.disk
		c.Net.MaxEpochSize = 1 + int(flags)
	}
	n.command(c)
}

// trouble is what disks do.
func (m *machine) trouble(n *node) {
	b := m.in.Byte()
	switch {
	case b&7 < 4:
		n.faults[b&7] += 1 + int(b>>6)
		m.w.cfg.faulty = m.w.cfg.faulty || n == m.a
	case b&7 < 6:
		n.stuck = true
	default:
		n.release()
	}
}

// inject sends a something in the name of its peer.
func (m *machine) inject(p packet) {
	w := m.w
	if w.link == nil || !w.link.up[0] {
		return
	}
	if len(p.bytes) >= drbd.HeaderSize100 {
		w.trace("-- forged %v %x", p.sock, p.bytes[:min(len(p.bytes), 64)])
	}
	l := w.link
	if m.in.Byte()&1 == 0 { // it overtakes what is under way, between two packets
		m.a.receive(l, p)
		return
	}
	w.push(l, 1, p)
}

// intercept changes one of the next packets of b.
func (m *machine) intercept() {
	l := m.w.link
	if l == nil {
		return
	}
	skip, how := int(m.in.Byte())%8, m.in.Byte()%4
	frozen := m.in.Take(12)
	l.change = func(p packet) []packet {
		if skip > 0 {
			skip--
			return []packet{p}
		}
		l.change = nil
		m.w.trace("-- %v of the peer is changed (%d)", p.header().Command, how)
		switch how {
		case 0:
			return nil
		case 1:
			return []packet{p, p}
		default:
			sub := &machine{in: fuzztest.NewProgram(frozen), w: m.w, a: m.a, b: m.b}
			return []packet{sub.mutate(p)}
		}
	}
}
