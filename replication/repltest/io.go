package repltest

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

func stack() string { return string(debug.Stack()) }

// faulty reports whether an operation of this kind is to fail now.
func (n *Node) faulty(f fault) bool {
	if n.faults[f] == 0 {
		return false
	}
	n.faults[f]--
	n.w.trace("%s %s fails", n.name, f)
	return true
}

// local runs a DoLocal or DoPeerLocal. It takes effect when it ends.
func (n *Node) local(a *replication.Action) {
	v := n.Vols[a.Volume]
	if !v.attached {
		n.w.fail("%s/%d: I/O without a disk", n.name, v.num)
		return
	}
	op, id, peer, size := a.Op, a.ID, a.Peer, a.Size
	sector, mine, fua, data := int(a.Sector), a.Kind == replication.DoLocal, a.FUA, a.Data
	v.jobs++
	alg, wantZero := a.DigestAlg, a.WantZero
	ended := func(err error, read []byte) {
		v.jobs--
		kind := replication.PeerLocalDone
		if mine {
			kind = replication.LocalDone
		}
		ev := n.event()
		*ev = replication.Event{Kind: kind, Volume: v.num, ID: id, Peer: peer, Data: read, Err: err}
		if read != nil && (alg != "" || wantZero) {
			stamps := n.w.mem.stampsOf(read)
			ev.Digest, ev.AllZero = digestOf(alg, stamps), wantZero && !slices.ContainsFunc(stamps, func(s stamp) bool { return s != 0 })
		}
		n.step(ev)
	}
	if op == replication.OpRead {
		n.later(func() {
			if n.faulty(failRead) {
				ended(ErrIO, nil)
				return
			}
			b := n.w.mem.payloadOf(v.data.now[sector : sector+int(size/sectorSize)])
			if mine {
				copyPayload(data, b)
				n.w.mem.free(b)
				b = nil
			}
			ended(nil, b)
		})
		return
	}
	var stamps []stamp
	if op == replication.OpWrite {
		stamps = n.w.mem.stampsOf(data)
	} else {
		stamps = n.w.mem.list(int(size / sectorSize))
		clear(stamps)
	}
	w := &inflight{sector: sector, end: sector + len(stamps), stamps: stamps, v: v}
	n.w.Model.mustNotOverlap(n, v, w)
	n.later(func() {
		n.w.Model.ended(n, w)
		if n.faulty(failWrite) {
			v.data.write(sector, stamps[:n.w.pick(len(stamps)+1)])
			ended(ErrIO, nil)
			return
		}
		n.w.Model.applying(n, v, sector, stamps, mine)
		if !fua {
			v.data.write(sector, stamps)
		} else if !n.durably(func() { v.data.writeThrough(sector, stamps) }) {
			return
		}
		ended(nil, nil)
	})
}

// digestOf is a digest by alg, nil if alg is "". The stamps tell payloads apart
// as well as all of their bytes would.
func digestOf(alg string, stamps []stamp) []byte {
	if alg == "" {
		return nil
	}
	h, err := drbd.NewDigest(alg)
	if err != nil {
		panic(err) // the core asks for an algorithm that its options cannot name
	}
	var b [4]byte
	for _, s := range stamps {
		binary.BigEndian.PutUint32(b[:], s)
		h.Write(b[:])
	}
	return h.Sum(nil)
}

type inflight struct {
	sector, end int
	stamps      []stamp
	v           *Volume
}

// later ends an operation of this process after the time a disk takes. What a
// killed process had begun may still happen, or not; nobody hears of it.
func (n *Node) later(f func()) {
	life := n.life
	n.w.after(n.w.diskDelay()+n.slow, n.awake(func() {
		switch {
		case n.life != life || !n.alive:
		case n.stuck.on:
			n.stuck.ops = append(n.stuck.ops, stuckOp{life, f})
		default:
			f()
		}
	}))
}

func (n *Node) syncData(v *Volume, done func(error)) {
	writes := v.data.writes
	v.jobs++
	n.later(func() {
		v.jobs--
		if n.faulty(failSync) {
			done(fmt.Errorf("fdatasync: %w", ErrIO))
			return
		}
		if n.w.crash.sabotage == LieAboutSync {
			writes = 0
		}
		if !n.durably(func() { v.data.commit(writes) }) {
			return
		}
		n.w.Model.synced(n, v)
		done(nil)
	})
}

// writeMeta does a metadata job in its order of duty, each step some time after
// the one before.
func (n *Node) writeMeta(a *replication.Action) {
	v, job := n.Vols[a.Volume], a.Job
	if n.w.traced() {
		n.w.trace("%s write-meta%s", n.name, jobText(*job))
	}
	v.jobs++
	if job.ALBlock == nil {
		n.beginMeta(v, copyJob(job))
		return
	}
	n.later(func() {
		n.res.JoinTransaction(v.num, job)
		n.beginMeta(v, copyJob(job))
	})
}

func (n *Node) beginMeta(v *Volume, job replication.MetaJob) {
	var steps []metaStep
	if job.Move {
		steps = n.moveSteps(v, job)
		job.Pages, job.Superblock = nil, nil
	}
	write := func(off int64, b []byte) metaStep {
		return metaStep{write: true, do: func() error {
			_, err := v.meta.WriteAt(b, off)
			return err
		}}
	}
	sync := metaStep{do: v.meta.Sync}
	var lost error
	if job.Term != nil {
		steps = append(steps, metaStep{do: n.storeTerm(v, job.Term, &lost)})
	}
	for _, p := range job.Pages {
		steps = append(steps, write(v.layout.Bitmap+int64(p.Page)*blockSize, p.Data))
	}
	if len(job.Pages) > 0 {
		steps = append(steps, sync)
	}
	pages := len(steps)
	if job.ResetAL && len(job.Marked) > 0 {
		steps = append(steps, write(v.layout.Superblock, job.Marked), sync)
	}
	if job.ResetAL {
		for i := range v.layout.ALBlocks {
			steps = append(steps, write(v.layout.RingBlock(i), initialALBlock()))
		}
		steps = append(steps, sync)
	}
	if job.ALBlock != nil {
		steps = append(steps, write(v.layout.RingBlock(job.ALRing), job.ALBlock))
	}
	if job.Superblock != nil {
		steps = append(steps, write(v.layout.Superblock, job.Superblock))
	}
	steps = append(steps, sync)
	done := func(err error) {
		v.jobs--
		n.step(&replication.Event{Kind: replication.MetaDone, Volume: v.num, Err: err, TermErr: lost})
	}
	if n.w.crash.sabotage == MarksFirst {
		steps = append(steps[pages:len(steps):len(steps)], steps[:pages]...)
	}
	next := func() { n.metaSteps(v, steps, done) }
	if n.w.crash.sabotage == AnswerEarly {
		next = func() { n.answerEarly(steps, done) }
	}
	if job.SyncData && n.w.crash.sabotage != IgnoreSyncData {
		n.syncData(v, func(err error) {
			if err != nil {
				done(err)
				return
			}
			next()
		})
		return
	}
	next()
}

// A metaStep is one write to the metadata, or a flush.
type metaStep struct {
	write bool
	do    func() error
}

func (n *Node) metaSteps(v *Volume, steps []metaStep, done func(error)) {
	if v.begun = nil; steps[0].write {
		v.begun = steps[0].do
	}
	n.later(func() {
		v.begun = nil
		if n.faulty(failMeta) {
			done(ErrIO)
			return
		}
		err := steps[0].do()
		if !n.alive {
			return
		}
		if err != nil {
			n.w.fail("%s: metadata: %v", n.name, err)
			return
		}
		if len(steps) == 1 {
			done(nil)
			return
		}
		n.metaSteps(v, steps[1:], done)
	})
}

func copyJob(j *replication.MetaJob) replication.MetaJob {
	c := *j
	c.ALBlock = append([]byte(nil), j.ALBlock...)
	c.Marked = append([]byte(nil), j.Marked...)
	c.Superblock = append([]byte(nil), j.Superblock...)
	if j.ALBlock == nil {
		c.ALBlock = nil
	}
	if j.Superblock == nil {
		c.Superblock = nil
	}
	c.Pages = make([]replication.MetaPage, len(j.Pages))
	for i, p := range j.Pages {
		c.Pages[i] = replication.MetaPage{Page: p.Page, Data: append([]byte(nil), p.Data...)}
	}
	return c
}

func (n *Node) stateChanged(a *replication.Action) {
	if n.w.traced() {
		n.traceState(a)
	}
	n.w.Model.apart(n, n.Vols[a.Volume], a.From, a.To, a.Text)
	n.w.Model.stateChanged(n, n.Vols[a.Volume], a.From, a.To)
}

func (n *Node) traceState(a *replication.Action) {
	from, to := a.From, a.To
	var parts string
	add := func(name string, x, y fmt.Stringer) {
		if x.String() != y.String() {
			parts += fmt.Sprintf(" %s=%q", name, x.String()+" -> "+y.String())
		}
	}
	add("role", from.Role, to.Role)
	add("peer", from.Peer, to.Peer)
	add("conn", from.Conn, to.Conn)
	add("disk", from.Disk, to.Disk)
	add("pdsk", from.Pdsk, to.Pdsk)
	if from.SuspFen != to.SuspFen {
		parts += fmt.Sprintf(" susp_fen=%v", to.SuspFen)
	}
	if from.SuspNod != to.SuspNod {
		parts += fmt.Sprintf(" susp_nod=%v", to.SuspNod)
	}
	if by := replication.PausedBy(to); !slices.Equal(by, replication.PausedBy(from)) {
		parts += fmt.Sprintf(" paused=%q", strings.Join(by, ","))
	}
	n.w.trace("%s state%s reason=%q", n.name, parts, a.Text)
}

// state is what the process says of volume i.
func (n *Node) state(i int) drbd.State { return n.res.VolumeState(n.Vols[i].num) }

// pending is how many requests of clients are under way.
func (n *Node) pending() int { return n.room - n.res.Room() }
