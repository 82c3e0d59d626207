package repltest

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// A Scenario is a history without randomness, in which the power of a node is
// cut at every step that makes something durable: each fdatasync of data, each
// flush of metadata, each write with FUA, of either node.
type Scenario struct {
	Name    string
	Config  Config
	Created bool // begins with copies that hold nothing: an operator may have to force one again
	Victim  int  // the node whose changes are thrown away if a split brain is left, 0: there is none
	Run     func(*Play)
}

// A DurableStep is one of the steps of a scenario that make something durable.
type DurableStep struct {
	Number   int  // from 1
	Failover bool // it is a Primary's, whose peer could take over
	Unsynced int  // writes of this node that were not synced before it
}

// A CrashPoint is where the power is cut and what survives.
type CrashPoint struct {
	Step     int  // a DurableStep's number
	After    bool // right after it; otherwise right before
	Survives Survival
	Index    int    // of the one that does, or does not
	Seed     uint64 // which half, if it is a half
	Failover bool   // the survivor is promoted, if it may be, before the victim returns
	Sabotage Sabotage
}

func (p CrashPoint) String() string {
	when := "before"
	if p.After {
		when = "after"
	}
	s := fmt.Sprintf("%s step %d, %v survives (%d)", when, p.Step, p.Survives, p.Index)
	if p.Failover {
		s += ", failover"
	}
	return s
}

// Sabotage is a duty that the harness neglects, to show that the crash points
// notice.
type Sabotage uint8

// What can be neglected.
const (
	Honest         Sabotage = iota
	IgnoreSyncData          // MetaJob.SyncData: marks before data
	LieAboutSync            // an fdatasync of the data does nothing
	AnswerEarly             // MetaDone comes before the metadata is durable
	MarksFirst              // the bitmap pages of a MetaJob are written after its activity log block
)

// crashPlan is where a World loses the power of a node.
type crashPlan struct {
	counting bool
	count    int
	steps    []DurableStep
	point    CrashPoint
	victim   *Node
	paired   bool // victim and survivor were a pair
	halted   bool // the clock stands still: the scenario is over
	sabotage Sabotage
}

// durably counts one durable step of n, and cuts its power before or after it
// if the plan says so. The result is whether n still has power.
func (n *Node) durably(commit func()) bool {
	c := &n.w.crash
	if !c.counting || !n.alive {
		commit()
		return true
	}
	c.count++
	if c.count != c.point.Step {
		if c.point.Step == 0 {
			c.steps = append(c.steps, DurableStep{Number: c.count, Failover: n.res.Role() == drbd.Primary && n.w.paired(), Unsynced: n.unsynced()})
		}
		commit()
		return true
	}
	if c.point.After {
		commit()
	}
	n.w.cutPower(n)
	return false
}

func (w *World) cutPower(n *Node) {
	c := &w.crash
	c.counting, c.victim, c.halted = false, n, true
	c.paired = w.paired()
	if c.point.Survives == HalfSurvives {
		w.dice = &dice{mix(c.point.Seed)}
	}
	n.Kill(true, 0.5)
	w.dice = nil
}

// paired reports whether both nodes are connected and hold the same good data.
func (w *World) paired() bool {
	for _, n := range w.Nodes {
		if !n.alive || n.link == nil || n.link != w.Nodes[1-n.id].link {
			return false
		}
		for i := range n.Vols {
			if s := n.state(i); s.Conn != drbd.Connected || s.Disk != drbd.UpToDate || s.Pdsk != drbd.UpToDate {
				return false
			}
		}
	}
	return true
}

// answerEarly does the steps of a metadata job after it was reported done.
func (n *Node) answerEarly(steps []metaStep, done func(error)) {
	for _, f := range steps[:len(steps)-1] {
		if err := f.do(); err != nil {
			return
		}
	}
	n.later(func() { done(nil) })
	n.w.after(500_000, func() {
		if n.alive {
			_ = steps[len(steps)-1].do() // what fails here is a power cut
		}
	})
}

// CountDurable runs a scenario without any fault and returns its durable steps.
func CountDurable(s Scenario) ([]DurableStep, error) {
	w := NewWorld(s.Config)
	w.KeepTrace()
	w.crash.counting = true
	s.Run(&Play{w})
	w.crash.counting = false
	w.settle(s)
	return w.crash.steps, w.tracedErr()
}

// CrashAt runs a scenario up to a crash point, brings the node back as polluxd
// would, and lets everything come to rest. The error is a broken promise.
func CrashAt(s Scenario, p CrashPoint) (err error) {
	w := NewWorld(s.Config)
	w.KeepTrace()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s\n%s", r, stack(), w.LastTrace())
		}
	}()
	w.crash = crashPlan{counting: true, point: p, sabotage: p.Sabotage}
	s.Run(&Play{w})
	if w.crash.victim == nil && w.failure == nil {
		w.fail("there is no durable step %d", p.Step)
	}
	w.crash.halted = false
	if w.failure == nil {
		w.checkSurvived(w.crash.victim)
		w.outlive(s)
		w.settle(s)
	}
	return w.tracedErr()
}

func (w *World) tracedErr() error {
	if w.failure == nil {
		return nil
	}
	return fmt.Errorf("%w\n%s", w.failure, w.LastTrace())
}

// checkSurvived: what was flushed on the victim is still there.
func (w *World) checkSurvived(n *Node) {
	for k, v := range n.Vols {
		if v.torn {
			continue
		}
		for i, s := range v.data.now {
			if f := w.Model.floor(k, n.id, i); w.Model.olderThan(k, i, s, f) {
				w.fail("%s/%d: sector %d holds %d after the power cut: write %d was flushed", n.name, k, i, s, f.ID)
				return
			}
		}
	}
}

// outlive is the time without the victim: the survivor goes on, or takes over.
func (w *World) outlive(s Scenario) {
	n := w.Nodes[1-w.crash.victim.id]
	p := &Play{w}
	if n.alive && n.res.Role() != drbd.Primary && w.crash.point.Failover && w.crash.paired {
		w.RunUntil(20000, func() bool { return n.link == nil })
		p.Do(n, replication.CmdPrimary, false)
		p.Do(n, replication.CmdOpen, false)
	}
	if n.alive && n.res.Role() == drbd.Primary && n.res.Snapshot(w.Tick()).Opens > 0 {
		p.Submit(n, replication.OpWrite, 0, 8)
		p.Submit(n, replication.OpWrite, s.Config.Sectors-20, 16)
		p.Submit(n, replication.OpFlush, 0, 0)
	}
	w.Run(300)
	w.crash.victim.Up()
}

// settle brings up whatever is down and waits until both copies are equal, with
// nothing but what an operator may do without a second thought.
func (w *World) settle(s Scenario) {
	for range 4 {
		w.Heal()
		w.endTerms()
		for _, n := range w.Nodes {
			n.Start()
			for i := range n.Vols {
				n.Attach(i)
			}
			if snap := n.res.Snapshot(w.Tick()); w.failure == nil && snap.Conn == drbd.StandAlone {
				n.Command(replication.Command{Kind: replication.CmdConnect, Force: w.givesIn(s, n, snap)}, nil)
			}
		}
		if w.failure != nil || w.RunUntil(20000, w.atRest) {
			break
		}
		a := w.Nodes[0]
		if s.Created && a.state(0).Disk == drbd.Inconsistent && w.Nodes[1].state(0).Disk == drbd.Inconsistent {
			a.Command(replication.Command{Kind: replication.CmdPrimary, Force: true}, nil)
		}
	}
	w.Run(200)
	if w.failure == nil {
		w.CheckQuiet()
	}
}

// givesIn reports whether n is to discard its changes after a split brain: it is
// the victim, or that is gone.
func (w *World) givesIn(s Scenario, n *Node, snap replication.Snapshot) bool {
	if s.Victim == 0 || snap.SplitBrain == "" || n.id != s.Victim {
		return false
	}
	p := &Play{w}
	if n.res.Role() == drbd.Primary {
		for range snap.Opens {
			p.Do(n, replication.CmdClose, false)
		}
		p.Do(n, replication.CmdSecondary, false)
	}
	w.Model.Excuse(n)
	return true
}

func (w *World) atRest() bool {
	if !w.paired() {
		return false
	}
	for _, n := range w.Nodes {
		if n.res.Snapshot(w.Tick()).Pending > 0 {
			return false
		}
	}
	return true
}

// A Play is a World in the hands of a Scenario. Once the power of a node is
// cut, nothing it is asked for happens any more.
type Play struct{ w *World }

func (p *Play) over() bool { return p.w.crash.halted || p.w.failure != nil }

// Node is node a or b.
func (p *Play) Node(i int) *Node { return p.w.Nodes[i] }

// Run lets so many milliseconds pass.
func (p *Play) Run(ms int64) { p.w.Run(ms) }

// Until lets time pass until done, which must come within a minute.
func (p *Play) Until(what string, done func() bool) {
	if !p.over() && !p.w.RunUntil(60000, done) && !p.over() {
		p.w.fail("the scenario waits for ever: %s", what)
	}
}

// Do runs a command of node n's operator to its end, which must be a good one.
func (p *Play) Do(n *Node, kind replication.CommandKind, force bool) {
	if p.over() {
		return
	}
	over, cut := false, p.w.crash.victim
	n.Command(replication.Command{Kind: kind, Force: force}, func(err error) {
		if over = true; err != nil && p.w.crash.victim == cut { // a power cut meanwhile excuses it
			p.w.fail("%s: %s: %v", n.name, commandNames[kind], err)
		}
	})
	p.Until(commandNames[kind], func() bool { return over })
}

// Start brings both nodes up and waits until they are connected; if one is
// to be Primary, it is opened too.
func (p *Play) Start(force bool) {
	for _, n := range p.w.Nodes {
		if !p.over() {
			n.Up()
		}
	}
	p.Until("a connection", func() bool {
		return p.w.Nodes[0].state(0).Conn >= drbd.Connected && p.w.Nodes[1].state(0).Conn >= drbd.Connected
	})
	p.Promote(p.w.Nodes[0], force)
}

// Promote makes n Primary and opens its volume.
func (p *Play) Promote(n *Node, force bool) {
	p.Do(n, replication.CmdPrimary, force)
	p.Do(n, replication.CmdOpen, false)
}

// Demote closes n's volume and makes it Secondary.
func (p *Play) Demote(n *Node) {
	p.Do(n, replication.CmdClose, false)
	p.Do(n, replication.CmdSecondary, false)
}

// Submit begins one operation of n's client; sector and count are in 512 bytes.
func (p *Play) Submit(n *Node, op replication.Op, sector, count int) *Request {
	if p.over() || !n.alive {
		return nil
	}
	return p.w.Model.Submit(n, Request{Op: op, Sector: sector, Count: count}, nil)
}

// Write has n's client write blocks of 4 KiB at these sectors, up to depth at a
// time, and waits for the answers.
func (p *Play) Write(n *Node, depth int, sectors ...int) {
	var under []*Request
	for _, s := range sectors {
		if q := p.Submit(n, replication.OpWrite, s, 8); q != nil {
			under = append(under, q)
		}
		if len(under) >= depth {
			p.wait(under[0])
			under = under[1:]
		}
	}
	for _, q := range under {
		p.wait(q)
	}
}

// Flush is a flush of n's client, and its answer.
func (p *Play) Flush(n *Node) { p.wait(p.Submit(n, replication.OpFlush, 0, 0)) }

// WriteFUA is a write of 4 KiB with FUA, and its answer.
func (p *Play) WriteFUA(n *Node, sector int) {
	if !p.over() {
		p.wait(p.w.Model.Submit(n, Request{Op: replication.OpWrite, FUA: true, Sector: sector, Count: 8}, nil))
	}
}

func (p *Play) wait(q *Request) {
	if q == nil {
		return
	}
	p.Until("request "+q.text(), func() bool { return q.Done })
	if q.Done && q.Err != nil {
		p.w.fail("request %d (%s): %v", q.ID, q.text(), q.Err)
	}
}

// Cut takes the nodes apart, and both notice.
func (p *Play) Cut() {
	if p.over() {
		return
	}
	p.w.Cut(false)
	p.Until("the loss of the connection", func() bool { return p.w.Nodes[0].link == nil && p.w.Nodes[1].link == nil })
}

// Heal lets them find each other, and waits until both copies are equal.
func (p *Play) Heal() {
	if p.over() {
		return
	}
	p.w.Heal()
	p.Until("two equal copies", p.w.paired)
}

// Restart kills n's process, but not its kernel, and starts it again.
func (p *Play) Restart(n *Node) {
	if p.over() {
		return
	}
	n.Kill(false, 1)
	p.Run(50)
	n.Up()
	p.Until("two equal copies", p.w.paired)
}
