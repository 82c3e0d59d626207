package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// termFeature is an arbiter that hands out terms, a manager on each node that
// asks it, and what befalls the two: lost and late answers, processes that are
// stopped and wake up, programs that know no terms.
var termFeature = feature{
	name: "term",
	choose: func(d *dice, c *Config) {
		if c.Features&drbd.FeatureTerm == 0 || c.Net[0].Protocol != 'C' && c.Net[0].MaxLossBytes == 0 || c.Net[0].OnCongestion != replication.CongestionBlock || c.Net[0].AllowTwoPrimaries || !c.Synced || !d.chance(0.4) {
			return
		}
		c.Terms, c.FenceAgent, c.Stonith = true, false, false
		for i := range c.Net {
			c.Disk[i].Fencing = replication.FencingDontCare
			c.Net[i].AfterSB0P, c.Net[i].AfterSB1P, c.Net[i].AfterSB2P = 0, 0, 0
		}
	},
	troubles: []*trouble{
		{"failover", 5, func(s *sim, n *Node) {
			if s.arbiter != nil {
				s.takeOver(n)
			}
		}},
		{"failover that the old owner does not hear of", 4, func(s *sim, n *Node) {
			if s.arbiter == nil {
				return
			}
			s.w.Stall(n.id, drbd.DataSocket) // its acknowledgements still arrive
			s.takeOver(n)
			c := s.clients[1-n.id]
			for i := range 20 {
				s.w.after(int64(i)*2000, func() {
					c.wishes = append(c.wishes, newRequest(s.w.cfg, s.w.pick(s.w.cfg.Sectors), s.w.dice))
					s.drive()
				})
			}
		}},
		{"stop the process for a while", 3, func(s *sim, n *Node) {
			if s.arbiter != nil && n.alive {
				n.asleep = s.w.now + 1_000_000 + s.w.jitter(4_000_000)
				if s.w.chance(0.7) {
					s.w.after(s.w.jitter(1_000_000), func() { s.takeOver(s.w.Nodes[1-n.id]) })
				}
			}
		}},
		{"the manager stops its node's I/O for a while", 2, func(s *sim, n *Node) {
			if s.arbiter == nil {
				return
			}
			n.Command(replication.Command{Kind: replication.CmdFreeze}, nil)
			life := n.life
			s.w.after(s.w.jitter(3_000_000), func() {
				if n.life == life {
					n.Command(replication.Command{Kind: replication.CmdThaw}, nil)
				}
			})
		}},
		{"the manager tells its lease", 2, func(s *sim, n *Node) {
			if s.arbiter != nil {
				n.Command(replication.Command{Kind: replication.CmdLease, LeaseMS: uint64(s.w.pick(3000))}, nil)
			}
		}},
		{"the arbiter is away, and the peer is asked to stand back for a while", 4, func(s *sim, n *Node) {
			if s.arbiter == nil {
				return
			}
			n.Command(replication.Command{Kind: replication.CmdFailsafe}, nil)
			life := n.life
			s.w.after(s.w.jitter(2_000_000), func() {
				if n.life == life {
					n.Command(replication.Command{Kind: replication.CmdFailsafeOver}, nil)
				}
			})
		}},
		{"another program writes the metadata", 2, func(s *sim, n *Node) {
			if s.arbiter != nil {
				n.Kill(s.w.chance(0.5), 0.5)
				s.w.terms.foreign(n)
				s.w.after(s.w.jitter(1_000_000), n.Up)
			}
		}},
	},
	heal: func(s *sim) {
		for _, n := range s.w.Nodes {
			n.asleep = 0
			n.wake()
			if s.arbiter != nil {
				n.Command(replication.Command{Kind: replication.CmdThaw}, nil)
			}
		}
	},
}

// endTerms is what the operator of a replaced Primary is told to do, and of one
// that nobody allows to go on.
func (w *World) endTerms() {
	for _, n := range w.Nodes {
		if w.terms == nil || !n.alive || n.res.Role() != drbd.Primary {
			continue
		}
		if t := n.res.Snapshot(w.Tick()).Term; t.Frozen != "" || t.Term < t.Promised {
			n.Kill(false, 1)
			n.Up()
		}
	}
}

// arbiter is a record that is only changed by compare-and-swap. It is never in
// the write path.
type arbiter struct {
	term   uint64
	owner  int
	inSync [2]bool // the copies that hold everything that was answered
}

// swap gives the record a new owner and set of copies if it still is of the term
// that the caller saw.
func (a *arbiter) swap(seen uint64, owner int, inSync [2]bool) bool {
	if a.term != seen {
		return false
	}
	a.term, a.owner, a.inSync = seen+1, owner, inSync
	return true
}

// arbitrate begins a history with terms.
func (s *sim) arbitrate() {
	if !s.w.cfg.Terms {
		return
	}
	s.arbiter = &arbiter{owner: -1, inSync: [2]bool{true, true}}
	s.w.terms = &termModel{w: s.w, arbiter: s.arbiter}
	for _, n := range s.w.Nodes {
		s.manage(n)
	}
}

// messageDelay is how long a message between a manager and the arbiter takes;
// some are very late, some lost.
func (s *sim) message(f func()) {
	switch {
	case s.w.chance(0.1):
	case s.w.chance(0.1):
		s.w.after(s.w.jitter(3_000_000), f)
	default:
		s.w.after(200+s.w.jitter(5000), f)
	}
}

// manage looks at n again and again, as a failover manager does that cares for
// its own node only: it asks to be the only writer if the peer is lost, and
// records the peer as in sync once it is.
func (s *sim) manage(n *Node) {
	if s.healing || s.w.failure != nil {
		return
	}
	s.w.after(50_000+s.w.jitter(200_000), func() { s.manage(n) })
	if !n.alive || s.w.now < n.asleep || n.res.Role() != drbd.Primary {
		return
	}
	t := n.res.Snapshot(s.w.Tick()).Term
	s.w.terms.saw(n, &t)
	switch {
	case !t.Owned || t.Term < t.Promised:
	case t.Frozen != "":
		s.ask(n, func(a *arbiter) (replication.Command, bool) {
			return s.grant(n, only(n)), a.owner == n.id && a.inSync[n.id] && a.swap(a.term, n.id, only(n))
		})
	case !t.Sole && !t.Marked && s.w.paired():
		s.share(n)
	case t.Sole && t.Marked && !s.w.paired(): // the peer has stood back: the record is brought up to date
		s.ask(n, func(a *arbiter) (replication.Command, bool) {
			return s.grant(n, only(n)), a.owner == n.id && a.inSync == [2]bool{true, true} && a.swap(a.term, n.id, only(n))
		})
	}
}

func only(n *Node) (inSync [2]bool) {
	inSync[n.id] = true
	return inSync
}

// grant is the command that the arbiter's record means for n.
func (s *sim) grant(n *Node, inSync [2]bool) replication.Command {
	return replication.Command{Kind: replication.CmdPrimary, Sole: inSync == only(n)}
}

// ask has the arbiter decide, and n hear of it, if nothing is lost on the way.
func (s *sim) ask(n *Node, decide func(a *arbiter) (replication.Command, bool)) {
	life := n.life
	s.message(func() {
		a := s.arbiter
		c, ok := decide(a)
		if !ok || s.healing {
			return
		}
		c.Term = a.term
		s.w.trace("arbiter: term %d, owner %s, in sync %v", a.term, s.w.Nodes[a.owner].name, a.inSync)
		hear := func() {
			if n.life == life && !s.healing {
				s.granted(n, c)
			}
		}
		s.message(hear)
		if s.w.chance(0.2) {
			s.message(hear) // twice
		}
	})
}

// granted promises a term and takes it up.
func (s *sim) granted(n *Node, c replication.Command) {
	if n.res.Role() == drbd.Primary {
		n.Command(c, nil)
		return
	}
	n.Command(replication.Command{Kind: replication.CmdPromiseTerm, Term: c.Term}, func(err error) {
		if err == nil {
			s.w.after(0, func() { n.Command(c, s.open(n)) })
		}
	})
}

// takeOver asks for n to be the owner, alone unless both nodes are Secondary.
func (s *sim) takeOver(n *Node) {
	if s.healing || !n.alive || n.res.Role() == drbd.Primary {
		return
	}
	for i := range n.Vols {
		if n.state(i).Disk < drbd.Consistent {
			return // no manager asks for a copy that is known to be stale
		}
	}
	inSync := only(n)
	if peer := s.w.Nodes[1-n.id]; s.w.paired() && peer.res.Role() != drbd.Primary && s.w.chance(0.8) {
		inSync = [2]bool{true, true}
	}
	s.ask(n, func(a *arbiter) (replication.Command, bool) {
		if inSync != only(n) && a.inSync != inSync {
			return replication.Command{}, false
		}
		return s.grant(n, inSync), a.inSync[n.id] && a.swap(a.term, n.id, inSync)
	})
}

// share records that the peer's copy counts again. The Primary's term is raised
// first: a grant of the smaller set that is still under way is then a lower one.
func (s *sim) share(n *Node) {
	both := [2]bool{true, true}
	life := n.life
	s.message(func() {
		seen := *s.arbiter
		if seen.owner != n.id || seen.inSync == both {
			return
		}
		s.message(func() {
			if n.life != life || s.healing || n.res.Role() != drbd.Primary {
				return
			}
			c := replication.Command{Kind: replication.CmdPrimary, Term: seen.term + 1}
			n.Command(c, func(err error) {
				t := n.res.Snapshot(s.w.Tick()).Term
				if err != nil || t.Marked || t.Sole || !s.w.paired() {
					return // it has been lost again meanwhile
				}
				s.message(func() { s.arbiter.swap(seen.term, n.id, both) })
			})
		})
	})
}

// termModel checks what terms are for.
type termModel struct {
	w        *World
	arbiter  *arbiter
	promised [2]uint64 // what each node has answered
	known    [2]bool   // it knew what it had promised when it crashed
	unknown  [2]bool   // another program wrote since it was last attached
	taken    [2]uint64 // the highest term that each node has taken up
	shared   [2]uint64 // the highest of these that it was seen to share with its peer
}

// saw notes under which term a node cannot be the only writer any more: what was
// granted before and comes late, or once more, must not make it that.
func (t *termModel) saw(n *Node, snap *replication.TermSnapshot) {
	if snap.Owned && snap.Term <= t.taken[n.id] && !snap.Sole && !snap.Marked && !snap.Override {
		t.shared[n.id] = max(t.shared[n.id], snap.Term)
	}
}

// outdatedOnDisk reports whether a node's superblock says that its copy is Outdated:
// it is not promoted before it has met the Primary again.
func (n *Node) outdatedOnDisk(vol int) bool {
	v := n.Vols[vol]
	sb, err := meta.DecodeSuperblock(v.meta.durableAt(v.layout.Superblock))
	return err == nil && sb.Flags&meta.MDFWasUpToDate == 0
}

// foreign is a program without terms that writes the superblocks of a dead node.
func (t *termModel) foreign(n *Node) {
	if n.alive {
		return
	}
	for _, v := range n.Vols {
		if err := n.superblock(v, func(sb *meta.Superblock) { sb.Term = meta.TermRecord{} }); err != nil {
			t.w.fail("%s: %v", n.name, err)
		}
	}
	t.unknown[n.id] = true
}

// crashed is called before a process ends.
func (t *termModel) crashed(n *Node) {
	snap := n.res.Snapshot(t.w.Tick()).Term
	t.known[n.id] = snap.Promised > 0 && snap.Unknown == ""
	for _, v := range n.Vols { // the very first record may not be there yet
		sb, err := meta.DecodeSuperblock(v.meta.durableAt(v.layout.Superblock))
		t.known[n.id] = t.known[n.id] && err == nil && sb.Term.Exists()
	}
}

// attached: what was promised is known again.
func (t *termModel) attached(n *Node) {
	for _, v := range n.Vols {
		if !v.attached {
			return
		}
	}
	snap := n.res.Snapshot(t.w.Tick()).Term
	switch {
	case snap.Promised < t.promised[n.id]:
		t.w.fail("%s: term %d was promised, after the start it is %d", n.name, t.promised[n.id], snap.Promised)
	case t.unknown[n.id] && snap.Promised > 0 && snap.Unknown == "" && n.link == nil:
		t.w.fail("%s: another program has written its superblock, but it takes its term %d for known", n.name, snap.Promised)
	}
	if t.known[n.id] && !t.unknown[n.id] && snap.Unknown != "" {
		t.w.fail("%s: has crashed, and no longer knows what it has promised: %s", n.name, snap.Unknown)
	}
	t.known[n.id] = false
	t.unknown[n.id] = false // from now on it may learn it
}

// commandDone is a command that has ended well.
func (t *termModel) commandDone(n *Node, c *replication.Command) {
	snap := n.res.Snapshot(t.w.Tick()).Term
	if c.Kind == replication.CmdPrimary && c.Sole && c.Term != 0 && c.Term <= t.shared[n.id] {
		t.w.fail("%s: is the only writer once more under term %d, which it has shared with its peer since", n.name, c.Term)
	}
	switch {
	case c.Kind == replication.CmdPromiseTerm:
		t.promised[n.id] = max(t.promised[n.id], c.Term)
	case c.Kind == replication.CmdPrimary && c.Term != 0 && c.Term < t.promised[n.id]:
		t.w.fail("%s: became Primary under term %d, but has promised %d", n.name, c.Term, t.promised[n.id])
	case c.Kind == replication.CmdPrimary && c.Term != 0:
		t.taken[n.id] = max(t.taken[n.id], c.Term)
		t.promised[n.id] = max(t.promised[n.id], c.Term)
		if snap.Unknown != "" && n.state(0).Disk >= drbd.Inconsistent { // else its disk has failed meanwhile
			t.w.fail("%s: became Primary under term %d, but does not know what it has promised: %s", n.name, c.Term, snap.Unknown)
		}
	}
}

// received sees a packet before it is stepped: a write of a Primary whose term is
// lower than what was promised has no business here.
func (t *termModel) received(n *Node, h drbd.Header) {
	switch h.Command {
	case drbd.CmdData, drbd.CmdTrim, drbd.CmdZeroes:
	default:
		return
	}
	p := t.w.Nodes[1-n.id]
	if !p.alive || p.res.Role() != drbd.Primary || n.link == nil || p.link != n.link {
		return
	}
	if snap := p.res.Snapshot(t.w.Tick()).Term; snap.Term < t.promised[n.id] {
		t.w.fail("%s takes a write of term %d, but has promised %d", n.name, snap.Term, t.promised[n.id])
	}
}

// acknowledged: a write that the owner of a term answers is on every copy that
// the arbiter's record counts, and if the peer lacks it the sole-writer mark is on
// disk.
func (t *termModel) acknowledged(n *Node, q *Request) {
	snap := n.res.Snapshot(t.w.Tick()).Term
	if !snap.Owned || snap.Override {
		return
	}
	if !n.safeSince(q.start) && n.link != nil {
		// Protocol A or B: what the peer may lack of it is lossModel's, also if it has
		// just died and this node does not know yet.
		return
	}
	m := t.w.Model
	holds := func(x *Node) bool {
		d := x.Vols[q.Vol].data
		for i := q.Sector; i < q.Sector+q.Count; i++ {
			if m.olderThan(q.Vol, i, d.now[i], q) {
				return false
			}
		}
		return true
	}
	for _, x := range t.w.Nodes {
		if x == n && n.state(q.Vol).Disk != drbd.UpToDate {
			continue // a Primary that has lost its disk goes on with its peer's copy
		}
		if m.powerCut[x.id] > q.start {
			continue // it had it, perhaps, and never was asked to flush it
		}
		if t.arbiter.inSync[x.id] && !holds(x) && !x.outdatedOnDisk(q.Vol) {
			t.w.fail("%s: write %d was answered under term %d, but node %s lacks it, whose copy counts under term %d", n.name, q.ID, snap.Term, x.name, t.arbiter.term)
			return
		}
	}
	v := n.Vols[q.Vol]
	if holds(t.w.Nodes[1-n.id]) || m.powerCut[1-n.id] > q.start || !v.attached {
		return
	}
	sb, err := meta.DecodeSuperblock(v.meta.durableAt(v.layout.Superblock))
	file := v.term.record()
	if err != nil || sb.Term.Sole == 0 || sb.Term.Sole != sb.UUIDs.Current&^1 || file.Sole != sb.Term.Sole {
		t.w.fail("%s: write %d was answered alone, but no sole-writer mark is on disk: superblock %+v (%v), state directory %+v", n.name, q.ID, sb.Term, err, file)
	}
}
