package hatest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/repltest"
)

// slots is how many records fit into a resource; each has its own block, and the
// one that is so many later replaces it.
const (
	slots      = 48
	slotSize   = 8 // sectors
	pairVolume = 0
)

// A Pair is one resource: two production engines' cores with simulated disks.
type Pair struct {
	name        string
	service     int
	forced      bool      // the operator has forced a copy that may be stale
	diskLost    bool      // a disk has failed
	tries       int       // of an operator to have the two meet
	promised    [2]uint64 // the highest terms that the copies have promised
	w           *repltest.World
	world       *World
	hosts       [2]*Host
	cut         bool
	touched     bool
	seen        [2]repltest.Observation
	role        [2]formerRole
	export      [2]string     // the incarnation that polluxd exports, "" if none
	client      [2]*client    // that has it open
	frozen      [2]bool       // reads wait, too: the manager wants it so
	leaseFrozen [2]bool       // I/O waits: the lease is over and the manager gone
	acked       [slots]uint32 // of each slot the youngest acknowledged write
	begun       [slots]int64  // when that was submitted, µs
	sent, told  [slots]int64  // when that was, and when it was acknowledged, ms of the clock of who did that
	taken       bool          // by a host whose owner had not released it: it may lack something under protocol A or B
	late        lateLoss      // since it was taken
	byPerson    bool          // a person has said that the other host is off
	person      *Host         // to this one, and the arbiter has not been told
	count       int           // of all acknowledged ones
}

// formerRole is RES.role in the state directory: what a polluxd that is started
// again in the same boot does about it is the engine's business, not the
// manager's.
type formerRole struct {
	primary bool
	boot    int
	wants   bool // it has been started again and has not taken the role up
}

func newPair(w *World, name string, service int, hosts [2]int, mem *repltest.Memory) *Pair {
	c := repltest.DefaultConfig()
	c.Seed = w.cfg.Seed
	if c.Seed != 0 {
		c.Seed = mix(c.Seed, uint64(len(w.Pairs)), 3)
	}
	c.Sectors = slots * slotSize
	c.Synced, c.FenceAgent = true, true
	for i := range c.Net {
		n := &c.Net[i]
		n.TimeoutMS, n.KoCount, n.PingIntMS = 2000, 3, 3000
		c.Disk[i].CMaxRateKiB = 100000
		if w.cfg.weak() {
			n.Protocol, n.MaxLossBytes, n.MaxLossMS = w.cfg.Protocol, w.cfg.MaxLossBytes, w.cfg.MaxLossMS
		}
	}
	p := &Pair{name: name, service: service, world: w, w: repltest.NewJudged(c, mem)}
	for i, h := range hosts {
		p.hosts[i] = w.Hosts[h]
		w.Hosts[h].pairs = append(w.Hosts[h].pairs, p)
	}
	return p
}

// side is which of p's nodes h is, -1 if none.
func (p *Pair) side(h *Host) int {
	for i, x := range p.hosts {
		if x == h {
			return i
		}
	}
	return -1
}

// node is h's copy. Whoever gets it may change it: look follows.
func (p *Pair) node(h *Host) *repltest.Node {
	p.touched = true
	p.w.Advance(p.world.now)
	return p.w.Nodes[p.side(h)]
}

func (p *Pair) peer(h *Host) *Host { return p.hosts[1-p.side(h)] }

// relink follows the network.
func (p *Pair) relink(silent bool) {
	n := &p.world.net
	a, b := p.hosts[0].id, p.hosts[1].id
	there, back := n.open(replicating, a, b), n.open(replicating, b, a)
	p.w.Advance(p.world.now)
	p.touched = true
	switch cut := !there || !back; {
	case cut && !there && !back:
		p.w.Cut(silent)
		p.cut = true
	case cut && !p.cut:
		from := 0
		if there {
			from = 1
		}
		p.w.CutOneWay(from)
		p.cut = true
	case !cut && p.cut:
		p.w.Heal()
		p.cut = false
	}
}

// look tells the managers what has changed, if anything has, and takes up what was
// broken.
func (p *Pair) look() (changed bool) {
	p.touched = false
	if err := p.w.Err(); err != nil {
		p.world.fail("%s: %v", p.name, err)
		return true
	}
	for i, n := range p.w.Nodes {
		o := n.Observe()
		if o == p.seen[i] {
			continue
		}
		was := p.seen[i]
		p.seen[i] = o
		p.changed(i, was, o)
		changed = true
	}
	return changed
}

// changed: node i's process shows something new.
func (p *Pair) changed(i int, was, o repltest.Observation) {
	h := p.hosts[i]
	if w := p.world; w.ring != nil {
		w.trace("%s %s: %v/%v %v %v/%v term %+v", h.name, p.name, o.State[0].Role, o.State[0].Peer, o.State[0].Conn, o.State[0].Disk, o.State[0].Pdsk, o.Term)
	}
	if o.Life != was.Life {
		p.export[i], p.frozen[i], p.leaseFrozen[i], p.client[i] = "", false, false, nil
	}
	p.world.stir()
	p.promised[i] = max(p.promised[i], o.Term.Promised)
	r := &p.role[i]
	if o.Life != 0 && o.Life == was.Life && o.State[0].Role != was.State[0].Role {
		*r = formerRole{primary: o.State[0].Role == drbd.Primary, boot: h.boot}
	}
	if r.wants && o.State[0].Conn >= drbd.Connected {
		if o.State[0].Peer == drbd.Primary {
			*r = formerRole{}
		} else {
			p.resume(i, false)
		}
	}
	h.statusChanged(p)
}

// start starts polluxd's part of p on h, as after a boot.
func (p *Pair) start(h *Host) {
	i := p.side(h)
	n := p.node(h)
	n.Up()
	r := &p.role[i]
	r.wants = r.primary && r.boot == h.boot
	if !r.wants {
		*r = formerRole{}
	}
	if t := n.Observe().Term; r.wants && t.Marked {
		p.resume(i, true)
	}
}

// resume takes the role of Primary up again, as the engine does after a restart
// of the daemon in the same boot.
func (p *Pair) resume(i int, sole bool) {
	n := p.node(p.hosts[i])
	t := n.Observe().Term
	p.role[i].wants = false
	if t.Promised == 0 {
		return
	}
	n.Command(replication.Command{Kind: replication.CmdPrimary, Term: max(t.Term, 1), Sole: sole}, nil)
}

// stop ends polluxd's part of p on h. What VMs had open is closed.
func (p *Pair) stop(h *Host, power bool, keep float64) {
	p.node(h).Kill(power, keep)
	i := p.side(h)
	p.export[i], p.client[i] = "", nil
}

// submit has a client write a record into a slot; done hears how it ended.
func (p *Pair) submit(h *Host, slot int, done func(err error)) {
	n := p.node(h)
	begun, sent := p.world.now, n.Clock()
	p.w.Model.Submit(n, repltest.Request{Op: replication.OpWrite, FUA: true, Vol: pairVolume, Sector: slot * slotSize, Count: slotSize}, func(q *repltest.Request) {
		if q.Err == nil && q.ID > p.acked[slot] && !p.tooLate(h, sent, slot, q.ID) {
			p.acked[slot], p.begun[slot], p.sent[slot], p.told[slot] = q.ID, begun, sent, n.Clock()
			p.count++
			p.world.checkServed(p, h, begun)
		}
		p.world.after(0, func() { done(q.Err) })
	})
}

// missing counts the acknowledged records that the copy lacks which serves h,
// and says how old the oldest of them is, µs.
func (p *Pair) missing(h *Host) (lost int, age int64) {
	content := p.serving(h)
	for slot, id := range p.acked {
		if id == 0 {
			continue
		}
		for i := range slotSize {
			if content[slot*slotSize+i] < id {
				lost++
				age = max(age, p.world.now-p.begun[slot])
				break
			}
		}
	}
	return lost, age
}

// serving is the copy from which clients on h read.
func (p *Pair) serving(h *Host) []uint32 {
	i := p.side(h)
	if s := p.w.Nodes[i].Observe().State[pairVolume]; s.Disk != drbd.UpToDate && s.Pdsk == drbd.UpToDate {
		i = 1 - i
	}
	return p.w.Nodes[i].Content(pairVolume)
}

// forgive accepts what the copy lacks that serves h: the operator has forced it.
func (p *Pair) forgive(h *Host) {
	content := p.serving(h)
	for slot, id := range p.acked {
		for i := range slotSize {
			if c := content[slot*slotSize+i]; c < id {
				p.acked[slot] = c
				break
			}
		}
	}
	p.w.Forced()
}

// rest is why p is not at rest with two equal copies, "" if it is.
func (p *Pair) rest() string {
	for i, o := range p.seen {
		if s := o.State[pairVolume]; o.Life == 0 || s.Conn != drbd.Connected || s.Disk != drbd.UpToDate || s.Pdsk != drbd.UpToDate {
			return p.name + " on " + p.hosts[i].name + " is " + s.Conn.String() + " " + s.Disk.String() + "/" + s.Pdsk.String()
		}
	}
	return ""
}

// marked is what the copies say is out of sync, bytes.
func (p *Pair) marked() (n uint64) {
	for _, h := range p.hosts {
		n += p.storage(h).DirtyBytes
	}
	return n
}
