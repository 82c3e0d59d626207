package repltest

import "github.com/pollux-project/pollux/replication"

// growScenarios are those of a device that grows under its clients, with the
// metadata at its end: it has to move while they write.
func growScenarios() []Scenario {
	load := crashConfig(2*extentSectors, 'C')
	load.ALSlots = 2
	load.Room, load.Internal, load.Litter = 1024, true, true
	kernel := load
	kernel.Features, kernel.Litter = KernelFeatures, false // see resizeFeature
	return []Scenario{
		{Name: "grow_load", Config: load, Run: func(p *Play) { playGrowLoad(p, 1024) }},
		{Name: "grow_load_overlap", Config: load, Run: func(p *Play) { playGrowLoad(p, 16) }},
		{Name: "grow_load_kernel", Config: kernel, Run: func(p *Play) { playGrowLoad(p, 512) }},
		{Name: "grow_load_alone", Config: load, Run: playGrowAlone},
	}
}

// begin gives n a command and does not wait; over says whether it has ended.
func (p *Play) begin(n *Node, c replication.Command) (over func() bool) {
	done, cut := false, p.w.crash.victim
	if p.over() {
		return func() bool { return true }
	}
	n.Command(c, func(err error) {
		if done = true; err != nil && p.w.crash.victim == cut { // a power cut meanwhile excuses it
			p.w.fail("%s: %s: %v", n.name, commandNames[c.Kind], err)
		}
	})
	return func() bool { return done }
}

// load keeps writes of n's client under way until over, at most depth at a time,
// all over the volume as it was at first.
func (p *Play) load(n *Node, depth int, what string, over func() bool) {
	var under []*Request
	for k := 0; !p.over() && !over() && k < 400; k++ {
		if q := p.Submit(n, replication.OpWrite, k*1000%(p.w.cfg.Sectors-8)/8*8, 8); q != nil {
			under = append(under, q)
		}
		if len(under) < depth {
			continue
		}
		first := under[0]
		under = under[1:]
		p.Until(what, func() bool { return first.Done || over() })
	}
	p.Until(what, over)
	for _, q := range under {
		p.wait(q)
	}
}

// Both devices have grown by so many sectors. The operator takes that over while
// a client writes to more extents than the activity log holds: nothing of it may
// depend on the old place when that becomes data. If they grow by little, the
// old place and the new one overlap.
func playGrowLoad(p *Play, by int) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 4, everyExtent(p.w.cfg, 64)...)
	if p.over() {
		return
	}
	for _, n := range p.w.Nodes {
		n.Grow(n.Vols[0], by)
	}
	p.load(a, 4, "the resize under load", p.begin(a, replication.Command{Kind: replication.CmdResize}))
	p.Until("the resync of the new space", p.w.paired)
	p.Write(a, 2, 8, p.w.cfg.Sectors+by-8)
	p.WriteFUA(a, 16)
}

// a is alone: it takes its own new room while its client writes, and the bits of
// what only it has move along. Its peer, which is down, has grown too and moves
// its metadata before it comes up.
func playGrowAlone(p *Play) {
	a, b := p.Node(0), p.Node(1)
	p.Start(false)
	p.Write(a, 2, everyExtent(p.w.cfg, 64)...)
	p.Cut()
	p.Stop(b)
	p.Write(a, 2, everyExtent(p.w.cfg, 128)...)
	if p.over() {
		return
	}
	for _, n := range p.w.Nodes {
		n.Grow(n.Vols[0], 512)
	}
	p.load(a, 4, "the resize under load", p.begin(a, replication.Command{Kind: replication.CmdResize, Force: true}))
	p.Write(a, 2, p.w.cfg.Sectors+512-8, 4096)
	p.Flush(a)
	if p.over() {
		return
	}
	p.w.Heal()
	b.Up()
	p.Until("two equal copies", p.w.paired)
	p.Write(a, 2, 8, p.w.cfg.Sectors+512-16)
}
