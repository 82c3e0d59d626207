package repltest

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// What a simulation of more than storage needs (hypervisor/ha/hatest): it has a
// clock of its own, runs several Worlds by it, one for each resource, and plays
// arbiter and manager itself.

// NewJudged returns a World with terms whose promises are all checked as those of
// a simulation are. It belongs to a caller who steps it by Next, Step and Advance, and
// says by SetRecord what the arbiter holds.
func NewJudged(cfg Config, m *Memory) *World {
	cfg.Terms = true
	w := newWorld(cfg, &m.arena)
	w.judging = true
	w.terms = &termModel{w: w, arbiter: &arbiter{owner: -1, inSync: [2]bool{true, true}}}
	return w
}

// Memory is what a World is made of. One World after the other may have it.
type Memory struct{ arena arena }

// Next is when the next thing happens in w, µs. Something always does: what is
// connected pings, what is not looks for its peer; false says that all are dead.
func (w *World) Next() (at int64, ok bool) {
	if len(w.queue) == 0 {
		return 0, false
	}
	return w.queue[0].At, true
}

// Now is the time of w, µs.
func (w *World) Now() int64 { return w.now }

// Step has the next thing happen.
func (w *World) Step() {
	if w.failure != nil || len(w.queue) == 0 {
		return
	}
	it := w.queue.Pop()
	w.shake(it.At)
	it.F()
	if w.steps++; w.steps%64 == 0 {
		w.checkEqual()
		w.checkMarks("now")
	}
}

// Advance has it be t in w, if it is not later already. Nothing may be due before.
func (w *World) Advance(t int64) {
	if t > w.now {
		w.shake(t)
	}
}

// Steps is how many events w has had.
func (w *World) Steps() int { return w.steps }

// SetRecord says which copies hold everything that is answered from now on, by
// the arbiter's record of this term.
func (w *World) SetRecord(term uint64, owner int, inSync [2]bool) {
	*w.terms.arbiter = arbiter{term: term, owner: owner, inSync: inSync}
}

// Forced says that an operator has taken a hand: either copy may be thrown away, and
// the two may meet as a split brain.
func (w *World) Forced() {
	for _, n := range w.Nodes {
		w.Model.Excuse(n)
	}
	for i := range w.Model.vols {
		w.Model.vols[i].alone = [2]bool{true, true}
	}
}

// An Observation is what somebody beside the engine can see of a node cheaply:
// whatever a manager decides by shows in it.
type Observation struct {
	Life  int                     // of the process, 0: there is none
	State [maxObserved]drbd.State // of each volume
	Term  replication.TermSnapshot
}

const maxObserved = 2

// Observe looks at n.
func (n *Node) Observe() Observation {
	if !n.alive {
		return Observation{}
	}
	o := Observation{Life: n.life, Term: n.res.Term()}
	for i := range min(len(n.Vols), maxObserved) {
		o.State[i] = n.state(i)
	}
	return o
}

// Snapshot is all that n's process says of itself.
func (n *Node) Snapshot() replication.Snapshot { return n.res.Snapshot(n.tick()) }

// Alive reports whether n's process exists.
func (n *Node) Alive() bool { return n.alive }

// Life is the number of n's process.
func (n *Node) Life() int { return n.life }

// Sleep stops n's process until t (µs), as SIGSTOP does; what comes for it
// meanwhile waits. It goes on at once if t is not later than now.
func (n *Node) Sleep(t int64) {
	n.asleep = t
	if t <= n.w.now {
		n.wake()
	}
}

// Clock is n's own clock, milliseconds.
func (n *Node) Clock() int64 { return int64(n.tick()) }

// Jump sets n's clock forward, milliseconds; back, if n sleeps and its clock stands
// still meanwhile.
func (n *Node) Jump(ms int64) {
	switch {
	case ms < 0:
		n.skew += ms
	case n.alive:
		n.jump(ms)
	}
}

// FailDisk has the next local I/O of n's data fail, of both kinds.
func (n *Node) FailDisk() { n.faults[failRead], n.faults[failWrite] = 1, 1 }

// FailState has so many writes to n's state directory fail; 0 ends it.
func (n *Node) FailState(times int) { n.faults[failTerm] = times }

// MendDisk ends what FailDisk began, if nothing has been read or written since.
func (n *Node) MendDisk() { clear(n.faults) }

// Attached reports whether n has all its disks.
func (n *Node) Attached() bool {
	for _, v := range n.Vols {
		if !v.attached {
			return false
		}
	}
	return n.alive
}

// Content is the number of the write that each sector of a volume was last
// written by, on n's own disk. It is n's: nobody may write to it.
func (n *Node) Content(vol int) []uint32 { return n.Vols[vol].data.now }

// Generation is the current UUID that n's metadata has on disk, bit 0 cleared.
func (n *Node) Generation(vol int) uint64 {
	sb, err := meta.DecodeSuperblock(n.Vols[vol].meta.durableAt(n.Vols[vol].layout.Superblock))
	if err != nil {
		return 0
	}
	return sb.UUIDs.Current &^ 1
}

// Fail ends the history: somebody beside w has found that a promise is broken.
func (w *World) Fail(format string, args ...any) { w.fail(format, args...) }

// TraceTo has each line of the trace given to tell, without the time.
func (w *World) TraceTo(tell func(line string)) { w.tell = tell }
