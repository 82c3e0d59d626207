package repltest

import (
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// The scenarios of what follows an outage: whole and resumed resyncs, a split
// brain and its end, a lone promotion, larger devices.
func recoveryScenarios() []Scenario {
	small := crashConfig(2048, 'C')
	slow := crashConfig(4096, 'C')
	for i := range slow.Disk {
		slow.Disk[i].CMaxRateKiB, slow.Disk[i].CMinRateKiB = 512, 512
	}
	policy := small
	for i := range policy.Net {
		policy.Net[i].AfterSB0P = replication.SBDiscardLeastChanges
	}
	pages := crashConfig(33*extentSectors, 'C')
	pages.ALSlots = 2
	room := small
	room.Room, room.Internal = 1024, true
	return append([]Scenario{
		{Name: "full_sync", Config: small, Run: playFullSync},
		{Name: "resync_resumed", Config: slow, Run: playResyncResumed},
		{Name: "split_brain", Config: small, Victim: 1, Run: playSplitBrain},
		{Name: "split_brain_policy", Config: policy, Victim: 1, Run: playSplitBrainPolicy},
		{Name: "lone_promotion", Config: small, Run: playLonePromotion},
		{Name: "bitmap_pages", Config: pages, Run: playBitmapPages},
		{Name: "reattach", Config: small, Run: playReattach},
		{Name: "grow", Config: room, Run: playGrow},
	}, append(growScenarios(), logScenarios()...)...)
}

// b was away for two generations of a: the bitmap does not say what it lacks,
// everything is copied (rules 60 and 80).
func playFullSync(p *Play) {
	a, b := p.Node(0), p.Node(1)
	p.Start(false)
	p.Cut()
	p.Write(a, 4, 0, 200, 800, 1600, 2040)
	p.Flush(a)
	p.Demote(a)
	for _, n := range []*Node{a, b} {
		p.Stop(n)
	}
	if p.over() {
		return
	}
	old := p.w.cfg.UUIDs.Current
	p.edit(a, func(sb *meta.Superblock, bm *meta.Bitmap) {
		sb.UUIDs = meta.UUIDs{Current: 0xa3 << 56, History: [2]uint64{0xa2 << 56, old}}
		bm.ClearAll()
	})
	p.w.Heal()
	for _, n := range []*Node{a, b} {
		n.Up()
	}
	p.Until("the full sync", p.w.paired)
	p.Promote(b, false)
	p.Write(b, 2, 0, 8)
	p.Flush(b)
}

// The resync is cut off twice and goes on where it was.
func playResyncResumed(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Cut()
	for s := 0; s < 4096-128; s += 128 {
		p.Submit(a, replication.OpWrite, s, 128)
	}
	p.Flush(a)
	for range 2 {
		if p.over() {
			return
		}
		p.w.Heal()
		p.Run(1300)
		p.Write(a, 2, 16, 3000)
		p.Cut()
		p.Write(a, 1, 24)
	}
	p.Heal()
	p.WriteFUA(a, 32)
}

// Both nodes write alone; then b's changes are thrown away.
func playSplitBrain(p *Play) {
	a, b := p.Node(0), p.Node(1)
	p.Start(false)
	p.Write(a, 1, 0, 8)
	p.Cut()
	p.Promote(b, false)
	p.Write(a, 2, 16, 512)
	p.Write(b, 2, 16, 1024)
	p.Flush(a)
	p.Flush(b)
	p.Demote(b)
	if p.over() {
		return
	}
	p.w.Model.Excuse(b)
	p.w.Heal()
	p.Until("the split brain", func() bool { return a.res.Snapshot(1).SplitBrain != "" && b.res.Snapshot(1).SplitBrain != "" })
	p.Do(b, replication.CmdConnect, true)
	p.Do(a, replication.CmdConnect, false)
	p.Until("the resync", p.w.paired)
	p.Write(a, 1, 16, 32)
	p.Flush(a)
}

// The same, with a policy that lets b give in, which changed less.
func playSplitBrainPolicy(p *Play) {
	a, b := p.Node(0), p.Node(1)
	p.Start(false)
	p.Cut()
	p.Promote(b, false)
	p.Write(a, 2, 16, 512, 600, 700)
	p.Write(b, 1, 16)
	p.Flush(a)
	p.Flush(b)
	p.Demote(a)
	p.Demote(b)
	if p.over() {
		return
	}
	p.w.Model.Excuse(b)
	p.w.Model.Excuse(a) // what a crash leaves may turn the count round
	p.Heal()
	p.Promote(a, false)
	p.Write(a, 1, 16)
}

// a serves alone, gives the role up, and takes it again before b is back.
func playLonePromotion(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Demote(a)
	p.Cut()
	p.Promote(a, false)
	p.Write(a, 2, 0, 512)
	p.Demote(a)
	p.Promote(a, false)
	p.WriteFUA(a, 8)
	p.Heal()
	p.Write(a, 1, 16)
	p.Flush(a)
}

// The changed bits lie in two pages of the bitmap.
func playBitmapPages(p *Play) {
	a := p.Node(0)
	first, last := 64, 32*extentSectors+64
	p.Start(false)
	p.Cut()
	p.Write(a, 2, first, last)
	p.Write(a, 1, 5*extentSectors, first+8, last+8)
	p.Flush(a)
	p.Heal()
	p.Write(a, 2, last+16, first+16)
}

// The Primary's disk is given up and comes back while its peer serves.
func playReattach(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 2, 0, 512)
	p.Do(a, replication.CmdDetach, false)
	p.Write(a, 2, 8, 520)
	p.Flush(a)
	if p.over() {
		return
	}
	p.Run(50)
	a.Attach(0)
	p.Until("two equal copies", p.w.paired)
	p.Write(a, 1, 0, 16)
	p.Flush(a)
}

// Both devices have grown; the operator takes that over while a client writes.
func playGrow(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 2, 0, 512)
	if p.over() {
		return
	}
	for _, n := range p.w.Nodes {
		n.Grow(n.Vols[0], 512)
	}
	p.Do(a, replication.CmdResize, false)
	p.Until("the resync of the new space", p.w.paired)
	p.Write(a, 2, 8, 2048+64)
	p.Flush(a)
	p.Demote(a)
}

// Stop ends n's process in good order.
func (p *Play) Stop(n *Node) {
	p.Do(n, replication.CmdDisconnect, true)
	p.Do(n, replication.CmdDetach, false)
	if !p.over() {
		n.Kill(false, 1)
	}
}

// edit changes the metadata of a node that is down, as drbdmeta could.
func (p *Play) edit(n *Node, f func(sb *meta.Superblock, bm *meta.Bitmap)) {
	if p.over() {
		return
	}
	v := n.Vols[0]
	sb, bm, err := meta.Load(v.meta, v.layout)
	if err != nil {
		p.w.fail("%s: metadata: %v", n.name, err)
		return
	}
	f(&sb, bm)
	page := make([]byte, blockSize)
	for i := range bm.Pages() {
		bm.EncodePage(i, page)
		if _, err := v.meta.WriteAt(page, v.layout.Bitmap+int64(i)*blockSize); err != nil {
			p.w.fail("%s: metadata: %v", n.name, err)
		}
	}
	if err := meta.WriteSuperblock(v.meta, v.layout, sb); err != nil && n.alive {
		p.w.fail("%s: metadata: %v", n.name, err)
	}
	v.meta.commit()
	p.w.Model.renamed = true
	p.w.Model.vols[0].alone = [2]bool{true, true}
}
