package repltest

import "github.com/pollux-project/pollux/replication"

const extentSectors = 8192 // 4 MiB

// Scenarios are the histories of the crash points.
func Scenarios() []Scenario {
	// Fewer slots than drbd.conf allows: after each crash of the Primary all that
	// they name is resynced, which is most of the time the tests take.
	three := crashConfig(5*extentSectors, 'C')
	three.ALSlots = 3
	small := crashConfig(2048, 'C')
	slow := crashConfig(2048, 'C')
	for i := range slow.Disk {
		slow.Disk[i].CMaxRateKiB, slow.Disk[i].CMinRateKiB = 256, 256
	}
	created := slow
	created.Sectors, created.Synced = 4096, false
	kernel := func(c Config) Config {
		c.Features = KernelFeatures
		return c
	}
	early := func(c Config) Config {
		c.Features, c.EarlyAck = KernelFeatures, true
		return c
	}
	two := crashConfig(4*extentSectors, 'C')
	two.ALSlots = 2
	protocol := func(c Config, letter byte) Config {
		for i := range c.Net {
			c.Net[i].Protocol = letter
		}
		return c
	}
	return append([]Scenario{
		{Name: "eviction", Config: three, Run: playEviction},
		{Name: "eviction_kernel", Config: kernel(two), Run: playEviction},
		{Name: "eviction_early_ack", Config: early(two), Run: playEviction},
		{Name: "demotion_early_ack", Config: early(small), Run: playDemotion},
		{Name: "eviction_alone", Config: two, Run: playEvictionAlone},
		{Name: "resync_target", Config: slow, Run: playResync},
		{Name: "resync_target_kernel", Config: kernel(slow), Run: playResync},
		{Name: "first_sync", Config: created, Created: true, Run: playFirstSync},
		{Name: "peer_lost", Config: small, Run: playPeerLost},
		{Name: "demotion", Config: small, Run: playDemotion},
		{Name: "demotion_kernel", Config: kernel(small), Run: playDemotion},
		{Name: "demotion_a", Config: protocol(small, 'A'), Run: playDemotion},
		{Name: "demotion_b", Config: protocol(small, 'B'), Run: playDemotion},
		{Name: "detach", Config: small, Run: playDetach},
		{Name: "terms", Config: small, Run: playTerms},
		{Name: "restart", Config: two, Run: playRestart},
	}, recoveryScenarios()...)
}

func crashConfig(sectors int, protocol byte) Config {
	c := DefaultConfig()
	c.Sectors, c.Synced = sectors, true
	for i := range c.Net {
		n := &c.Net[i]
		n.Protocol, n.TimeoutMS, n.KoCount, n.PingIntMS = protocol, 1000, 3, 1000
	}
	return c
}

// everyExtent is one block of each extent, at different places within.
func everyExtent(c Config, offset int) (sectors []int) {
	for i := offset; i+8 <= c.Sectors; i += extentSectors {
		sectors = append(sectors, i)
	}
	return sectors
}

// Writes walk over more extents than the activity log holds.
func playEviction(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 4, everyExtent(p.w.cfg, 64)...)
	p.Flush(a)
	p.Write(a, 2, everyExtent(p.w.cfg, 1024)...)
	p.WriteFUA(a, 64)
	p.Run(1500)
}

// The same without a peer: an extent that leaves the log leaves set bits behind.
func playEvictionAlone(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 4, everyExtent(p.w.cfg, 64)...)
	p.Cut()
	p.Write(a, 2, everyExtent(p.w.cfg, 128)...)
	p.Flush(a)
	for s := 0; s+2*extentSectors <= p.w.cfg.Sectors; s += 2 * extentSectors {
		// The marks of the second round are only in memory when the log evicts.
		p.Write(a, 1, s+4096, s+extentSectors+4096, s+6144, s+extentSectors+6144)
	}
	p.Heal()
}

// b resyncs slowly what a wrote without it: the bits it clears reach its disk
// by and by, and a's client writes meanwhile.
func playResync(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Cut()
	for s := 0; s < 2048-128; s += 128 {
		p.Submit(a, replication.OpWrite, s, 128)
	}
	p.Flush(a)
	if p.over() {
		return
	}
	p.w.Heal()
	p.Run(1000)
	p.Write(a, 2, 1600, 8, 800)
	p.Run(1500)
	p.WriteFUA(a, 1200)
	p.Until("the end of the resync", p.w.paired)
	p.Run(2500)
}

// Two fresh copies: one is forced, the other is filled; the peer returns once
// in the middle of it.
func playFirstSync(p *Play) {
	a := p.Node(0)
	p.Start(true)
	p.Write(a, 2, 0, 4000, 2000)
	p.Run(2300)
	p.Cut()
	p.Write(a, 1, 48)
	p.Flush(a)
	p.Heal()
	p.Write(a, 1, 64)
}

// The Primary's first writes after the loss of its peer need a new generation
// on disk; then the other node takes over in good order.
func playPeerLost(p *Play) {
	a, b := p.Node(0), p.Node(1)
	p.Start(false)
	p.Write(a, 2, 0, 8, 16, 24)
	for range 3 {
		p.Submit(a, replication.OpWrite, 32, 8) // unanswered when the peer goes
	}
	p.Cut()
	p.Write(a, 1, 0, 40)
	p.WriteFUA(a, 48)
	p.Heal()
	p.Write(a, 1, 0, 56)
	p.Demote(a)
	p.Cut()
	p.Promote(b, false)
	p.Write(b, 1, 0, 64)
	p.Flush(b)
	p.Heal()
}

// a is demoted when b has acknowledged no epoch, and b takes over and writes
// the same blocks.
func playDemotion(p *Play) {
	a, b := p.Node(0), p.Node(1)
	p.Start(false)
	p.Write(a, 1, 0, 8, 16, 24)
	p.Demote(a)
	p.Promote(b, false)
	p.Write(b, 4, 8, 16, 32, 40)
	p.Flush(b)
	p.Write(b, 4, 0, 8, 48)
	p.Demote(b)
	p.Run(1500)
	p.Promote(a, false)
	p.Write(a, 2, 0, 48)
	p.Flush(a)
}

// Both disks are detached cleanly, which re-initialises their logs, and come back.
func playDetach(p *Play) {
	a, b := p.Node(0), p.Node(1)
	p.Start(false)
	p.Write(a, 2, 0, 512, 1024)
	p.Cut()
	p.Write(a, 2, 8, 520) // bits that the clean shutdown has to keep
	p.Demote(a)
	for _, n := range []*Node{a, b} {
		p.Do(n, replication.CmdDisconnect, true)
		p.Do(n, replication.CmdDetach, false)
	}
	for _, n := range []*Node{b, a} {
		if p.over() {
			return
		}
		n.Attach(0)
		p.Do(n, replication.CmdConnect, false)
	}
	p.Heal()
	p.Promote(b, false)
	p.Write(b, 2, 0, 8)
	p.Flush(b)
}

// The Primary's process is killed and its log applied at the next start: the
// power may go in the middle of that as well.
func playRestart(p *Play) {
	a := p.Node(0)
	p.Start(false)
	p.Write(a, 2, everyExtent(p.w.cfg, 64)...)
	p.Cut()
	p.Write(a, 2, 0, extentSectors, 8)
	if p.over() {
		return
	}
	p.w.Heal()
	p.Restart(a)
	p.Promote(a, false)
	p.Write(a, 2, everyExtent(p.w.cfg, 72)...)
	p.Flush(a)
}
