package repltest

import "github.com/pollux-project/pollux/replication"

// logScenarios are those of options of the activity log that change in use.
func logScenarios() []Scenario {
	c := crashConfig(4*extentSectors, 'C')
	c.ALSlots = 3
	kernel := c
	kernel.Features = KernelFeatures
	return []Scenario{
		{Name: "al_extents", Config: c, Run: playALExtents},
		{Name: "al_extents_kernel", Config: kernel, Run: playALExtents},
		{Name: "al_extents_alone", Config: c, Run: playALExtentsAlone},
		{Name: "al_updates", Config: c, Run: playALUpdates},
	}
}

// setLog changes the log's options on n while its client writes.
func (p *Play) setLog(n *Node, extents int, updates bool) {
	net, disk := p.w.cfg.Net[n.id], p.w.cfg.Disk[n.id]
	disk.ALExtents, disk.ALUpdates = extents, updates
	p.w.cfg.Disk[n.id] = disk
	p.load(n, 4, "al-extents under load", p.begin(n, replication.Command{Kind: replication.CmdSetOptions, Net: net, Disk: disk}))
}

// The log gets so many slots that its ring tells of all of them only after
// three transactions, and few again: whatever is found in the ring, it can be
// replayed.
func playALExtents(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 4, everyExtent(p.w.cfg, 64)...)
	p.setLog(a, 2000, true)
	p.Write(a, 1, everyExtent(p.w.cfg, 128)...)
	p.setLog(a, 2, true)
	p.Write(a, 2, everyExtent(p.w.cfg, 1024)...)
	p.WriteFUA(a, 64)
}

// The same without a peer: what the log has named is in the bitmap before the
// ring is cleared.
func playALExtentsAlone(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 4, everyExtent(p.w.cfg, 64)...)
	p.Cut()
	p.Write(a, 2, everyExtent(p.w.cfg, 128)...)
	p.setLog(a, 2000, true)
	p.Write(a, 1, everyExtent(p.w.cfg, 4096)...)
	p.setLog(a, 3, true)
	p.Flush(a)
	p.Heal()
	p.Write(a, 1, 0)
}

// The log is given up and taken up again.
func playALUpdates(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 2, everyExtent(p.w.cfg, 64)...)
	p.setLog(a, 3, false)
	p.Write(a, 2, everyExtent(p.w.cfg, 128)...)
	p.setLog(a, 3, true)
	p.Write(a, 2, everyExtent(p.w.cfg, 1024)...)
	p.Flush(a)
}
