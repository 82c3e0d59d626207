package repltest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// A Node is one machine: its disks outlive its process.
type Node struct {
	Vols []*Volume

	w        *World
	id       int
	name     string
	res      *replication.Resource
	alive    bool
	life     int // number of the process
	link     *link
	wantLink bool
	discard  bool  // connect --discard-my-data, one shot
	protocol byte  // in force in its process
	unsafe   int64 // µs: when that was last changed
	pausedAt *link
	timer    int   // number of the last SetTimer
	fence    int   // exit code of the fence-peer handler, 0: it never ends
	before   int   // exit code of the before-resync handlers
	fenceMS  int64 // how long that takes, if it is more than a moment
	hangs    int   // the life in which a fence-peer handler was begun that never ends
	stuck    stuckDisks
	faults   map[fault]int
	flips    int // so many packets are damaged on their way
	handlers []string
	asleep   int64    // until when its process is stopped (SIGSTOP)
	kept     []func() // what it would have done meanwhile
	tags     int
	// cutAtEarlyAck: its power goes when it has acknowledged an epoch, before the
	// flush (Config.EarlyAck).
	cutAtEarlyAck bool
	slow          int64                // µs that each disk operation takes longer
	skew          int64                // ms that the clock is ahead of the World's
	late          int64                // µs that timers fire late
	room          int                  // of the empty table of requests
	free          []*replication.Event // for event
}

// A Volume is one volume of a node: what is on its disks, and what its process
// knows of them.
type Volume struct {
	num      uint16
	data     *dataDisk
	meta     *metaDisk
	layout   meta.Layout  // as of the last attach or move
	device   int64        // size of the backing device now, bytes
	first    int64        // and at first
	moving   meta.Layout  // of the probe that a move follows
	bitmap   *meta.Bitmap // of the attached disk
	term     termFile
	attached bool
	jobs     int  // local I/Os and metadata jobs under way
	alone    bool // at the last attach: its node was the only writer, see engine's resume
	// begun is the write to the metadata that is under way, nil if none is.
	begun func() error
	// torn is set while the copy is a mixture of two generations: from the
	// first block of a resync to its end.
	torn bool
	// absent: clients of this node wrote without this disk.
	absent    bool
	knowledge [2]knowledge // see known
}

// A fault is a kind of operation that is to fail.
type fault string

// Faults of a disk.
const (
	failRead  fault = "read"
	failWrite fault = "write"
	failSync  fault = "sync"
	failMeta  fault = "meta"
	failTerm  fault = "term" // the state directory cannot be written
)

func newNode(w *World, id int) *Node {
	n := &Node{w: w, id: id, name: string(rune('a' + id)), fence: w.cfg.FenceCode[id], faults: map[fault]int{}}
	sectors := w.cfg.Sectors
	if id == 1 && w.cfg.OtherSize != 0 {
		sectors = w.cfg.OtherSize
	}
	for i := range w.cfg.Volumes {
		l, size := layoutOf(sectors + w.cfg.Room)
		if w.cfg.Internal {
			l, size = internalLayout(sectors)
			size += w.cfg.Room * sectorSize
		} else if w.cfg.Room > 0 {
			l.Usable, l.DataBytes = drbd.Sector(sectors), int64(sectors)*sectorSize
		}
		v := &Volume{num: uint16(i), data: newDataDisk(w.mem, sectors+w.cfg.Room), layout: l, device: l.DataBytes, first: l.DataBytes}
		if p := w.Nodes[0]; p != nil && len(p.Vols[i].data.now) == sectors+w.cfg.Room {
			v.meta = p.Vols[i].meta.clone(w.mem)
		} else {
			v.meta = createdMeta(w, l, size)
		}
		v.meta.durably = n.durably
		n.Vols = append(n.Vols, v)
		if id == 1 {
			pair(w.Nodes[0].Vols[i].data, v.data)
		}
	}
	return n
}

// createdMeta is a metadata device after create-md, for a synced pair also after
// its first sync.
func createdMeta(w *World, l meta.Layout, size int) *metaDisk {
	c := w.cfg
	d := newMetaDisk(w.mem, int(min(l.Superblock, l.AL, l.Bitmap)), size)
	if err := meta.Create(d, l, meta.CreateOptions{}); err != nil {
		panic(err)
	}
	if c.Synced {
		sb, _, err := meta.ReadSuperblock(d, l)
		if err != nil {
			panic(err)
		}
		sb.LASize = l.Usable
		sb.UUIDs = c.UUIDs
		sb.Flags |= meta.MDFConsistent | meta.MDFWasUpToDate
		if err := meta.WriteSuperblock(d, l, sb); err != nil {
			panic(err)
		}
	}
	d.commit()
	return d
}

// Start starts the process, without disks and unconnected.
func (n *Node) Start() {
	if n.alive {
		return
	}
	n.alive = true
	n.life++
	n.res = replication.New(replication.Config{
		Name: "r0", Net: n.w.cfg.Net[n.id], NoDataSuspend: n.w.cfg.NoData,
		Seed: uint64(n.id+1)<<32 + uint64(n.life)<<8 + n.w.cfg.Seed, Handlers: n.w.cfg.handlers(),
	})
	for _, v := range n.Vols {
		n.res.AddVolume(v.num, n.w.cfg.Disk[n.id])
		v.attached, v.bitmap, v.jobs = false, nil, 0
	}
	n.room = n.res.Room()
	n.noteProtocol()
	n.w.trace("%s start", n.name)
}

// Attach opens the disk of volume i as polluxd does: the activity log is
// applied first.
func (n *Node) Attach(i int) {
	v := n.Vols[i]
	if !n.alive || v.attached {
		return
	}
	if !n.checkResize(v) {
		return
	}
	v.data.commit(v.data.writes) // as polluxd does: an earlier process may have left unsynced writes
	_, err := meta.ApplyAL(v.meta, v.layout)
	if !n.alive {
		return // the power went meanwhile
	}
	if err != nil {
		n.w.fail("%s/%d: metadata: %v", n.name, i, err)
		return
	}
	sb, bm, err := meta.Load(v.meta, v.layout)
	if err != nil {
		n.w.fail("%s/%d: metadata: %v", n.name, i, err)
		return
	}
	if v.torn && sb.Flags&meta.MDFConsistent != 0 {
		n.w.fail("%s/%d: the copy is in the middle of a resync, but its superblock says %v", n.name, i, sb.Flags)
		return
	}
	if sb.Flags&meta.MDFConsistent != 0 {
		n.w.Model.vols[i].remade[n.id] = 0 // it was not to be
	}
	v.attached, v.bitmap = true, bm
	v.alone = sb.Flags&meta.MDFPrimaryInd != 0 && sb.Flags&meta.MDFConnectedInd == 0 && sb.UUIDs.Bitmap != 0 &&
		sb.Flags&meta.MDFWasUpToDate != 0
	opts := n.w.cfg.Disk[n.id]
	al := meta.NewActivityLog(opts.ALExtents, v.layout.Stripes, v.layout.StripeSize4k)
	n.step(&replication.Event{Kind: replication.Attached, Volume: v.num, Disk: &replication.AttachedDisk{
		Superblock: sb, Bitmap: bm, AL: al,
		Usable: v.layout.Usable, BlockSize: sectorSize, Options: opts, Term: v.term.record(),
	}})
	if n.w.terms != nil && n.w.failure == nil {
		n.w.terms.attached(n)
	}
}

// Up is Start, Attach of all volumes, and connect.
func (n *Node) Up() {
	n.Start()
	for i := range n.Vols {
		n.Attach(i)
	}
	n.Command(replication.Command{Kind: replication.CmdConnect}, nil)
}

// Kill ends the process. If power is false the kernel lives on: what was
// written stays, the sockets are closed. Otherwise each sector that was not
// synced survives with probability keep, and the peer hears nothing.
func (n *Node) Kill(power bool, keep float64) {
	if !n.alive {
		return
	}
	n.w.trace("%s killed power=%v", n.name, power)
	n.w.checkMarks("before a crash")
	n.w.Model.crashed(n, power)
	if n.w.terms != nil {
		n.w.terms.crashed(n)
	}
	n.alive = false
	if l := n.link; l != nil {
		if power {
			l.streams[n.id][0].dead, l.streams[n.id][1].dead = true, true
			n.link, l.up[n.id] = nil, false
		} else {
			n.closeLink()
		}
	}
	n.wantLink, n.pausedAt, n.discard, n.asleep, n.kept = false, nil, false, 0, nil
	for _, v := range n.Vols { // what is under way may happen, with power to its end
		if v.begun != nil && n.w.chance(0.5) {
			if err := v.begun(); err != nil {
				n.w.fail("%s: metadata: %v", n.name, err)
			}
		}
		v.begun = nil
	}
	if power {
		n.losePower(keep)
	}
	n.w.Model.afterCrash(n, power)
	n.w.checkMarks("after a crash")
}

// event is an Event for step, which takes it back.
func (n *Node) event() *replication.Event {
	if k := len(n.free); k > 0 {
		ev := n.free[k-1]
		n.free = n.free[:k-1]
		return ev
	}
	return &replication.Event{}
}

// tick is the node's own clock, which may be ahead of the World's.
func (n *Node) tick() replication.Tick { return n.w.Tick() + replication.Tick(n.skew) }

// jump sets the clock forward. Timers of the time between are due.
func (n *Node) jump(ms int64) {
	n.skew += ms
	number, life := n.timer, n.life
	n.w.after(0, func() {
		if n.timer == number && n.life == life {
			n.step(&replication.Event{Kind: replication.TimerFired})
		}
	})
}

// awake is f for the time when n's process runs.
func (n *Node) awake(f func()) func() {
	if !n.w.cfg.Terms {
		return f // nobody stops it
	}
	return func() {
		if n.w.now < n.asleep {
			n.keep(f)
			return
		}
		f()
	}
}

// keep has f done when a stopped process goes on: what waits in its sockets.
func (n *Node) keep(f func()) {
	if len(n.kept) == 0 {
		n.w.at(n.asleep, n.wake)
	}
	n.kept = append(n.kept, f)
}

// wake does what a stopped process was kept from, in that order. What was meant
// for one that was killed is lost.
func (n *Node) wake() {
	if n.w.now < n.asleep {
		if len(n.kept) > 0 {
			n.w.at(n.asleep, n.wake)
		}
		return
	}
	kept := n.kept
	n.kept = nil
	for _, f := range kept {
		f()
	}
}

// step gives the core one event and does what it says.
func (n *Node) step(ev *replication.Event) {
	if !n.alive || n.w.failure != nil {
		return
	}
	ev.At = n.tick()
	acts := n.stepSafely(ev)
	n.free = append(n.free, ev)
	for i := range acts {
		n.do(&acts[i])
	}
	n.w.Model.settle()
}

func (n *Node) stepSafely(ev *replication.Event) (acts []replication.Action) {
	if n.w.dice != nil { // a simulation reports the seed; a script shows the stack
		defer func() {
			if p := recover(); p != nil {
				n.w.fail("%s: panic: %v\n%s", n.name, p, stack())
			}
		}()
	}
	return n.res.Step(ev)
}

// do executes one order.
func (n *Node) do(a *replication.Action) {
	switch a.Kind {
	case replication.Send:
		n.send(a)
	case replication.DoLocal, replication.DoPeerLocal:
		n.local(a)
	case replication.Complete:
		if a.Keep {
			a.Tag.(*Request).Data = a.Data
		}
		n.w.Model.completed(n, a.Tag.(*Request), a.Err)
	case replication.Passed:
		n.w.Model.passed(n, a.Tag.(*Request), a.Point)
	case replication.Free:
		n.w.mem.free(a.Data)
	case replication.CloseDisk:
		n.closeDisk(n.Vols[a.Volume])
	case replication.WriteMeta:
		n.writeMeta(a)
	case replication.SyncData:
		v := n.Vols[a.Volume]
		n.syncData(v, func(err error) {
			n.step(&replication.Event{Kind: replication.Synced, Volume: v.num, Err: err})
		})
		n.w.trace("%s sync-data", n.name)
	case replication.SetTimer:
		n.timer++
		number, life := n.timer, n.life
		n.w.at(max((int64(a.At-1)-n.skew)*1000, n.w.now)+n.late, n.awake(func() {
			if number == n.timer && life == n.life {
				n.step(&replication.Event{Kind: replication.TimerFired})
			}
		}))
	case replication.Disconnect:
		n.w.trace("%s disconnect reason=%v%s", n.name, a.Reason, because(a.Err))
		n.closeLink()
	case replication.Connect:
		n.wantLink = true
		n.w.after(0, n.w.maybeConnect)
	case replication.StopConnecting:
		n.wantLink, n.discard = false, false
	case replication.ResumeReceive:
		if l := n.link; l != nil {
			n.pausedAt = nil
			n.w.after(0, func() { n.w.pump(l, 1-n.id, drbd.DataSocket) })
		}
	case replication.WantDrain:
		l := n.link
		n.w.after(100+n.w.jitter(500), func() {
			if n.link == l {
				n.step(&replication.Event{Kind: replication.Drained})
			}
		})
	case replication.RunHandler:
		n.runHandler(a)
	case replication.CommandDone:
		n.commandDone(a)
	case replication.StateChanged:
		n.stateChanged(a)
	case replication.ProbeDisk:
		n.probeDisk(n.Vols[a.Volume])
	case replication.Report:
		n.w.trace("%s report %q", n.name, a.Text)
		n.w.Model.reported(n, a.Text)
	default:
		n.w.fail("%s: no case for action %d", n.name, a.Kind)
	}
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf(" err=%q", err)
}

func (n *Node) closeDisk(v *Volume) {
	if v.jobs != 0 {
		n.w.fail("%s/%d: closed with %d I/Os under way", n.name, v.num, v.jobs)
	}
	v.attached, v.bitmap = false, nil
	n.w.trace("%s close-disk", n.name)
}

func (n *Node) runHandler(a *replication.Action) {
	n.w.trace("%s handler %s", n.name, a.Name)
	n.handlers = append(n.handlers, a.Name)
	n.w.Model.handlerRun(n, a.Volume, a.Name)
	if a.Name == "fence-peer" && n.fence == 0 {
		n.hangs = n.life
		return
	}
	name, life, code, vol := a.Name, n.life, n.fence, a.Volume
	if strings.HasPrefix(name, "before-resync") {
		code = n.before
	}
	n.w.after(max(2000, n.fenceMS*1000)+n.w.jitter(20000), func() {
		if life != n.life {
			return
		}
		if name == "fence-peer" && n.w.cfg.Stonith && n.alive {
			n.stonith()
		}
		n.step(&replication.Event{Kind: replication.HandlerDone, Volume: vol, Name: name, ExitCode: code})
	})
}

// endHandler ends a fence-peer handler that hangs, as the engine does when its
// time is over.
func (n *Node) endHandler() {
	if n.hangs == n.life {
		n.hangs = 0
		n.step(&replication.Event{Kind: replication.HandlerDone, Name: "fence-peer", ExitCode: n.fence})
	}
}

// Command gives the core an operator's command; done hears its end.
func (n *Node) Command(c replication.Command, done func(error)) {
	if !n.alive {
		return
	}
	if n.w.now < n.asleep {
		n.keep(func() { n.Command(c, done) })
		return
	}
	n.tags++
	t := &commandTag{command: c, done: done, from: n.w.Model.nextID}
	t.command.Tag, c.Tag = t, t
	n.step(&replication.Event{Kind: replication.Commanded, Command: c})
}

type commandTag struct {
	command replication.Command
	done    func(error)
	over    bool
	from    stamp // the youngest write when it was given
}

func (n *Node) commandDone(a *replication.Action) {
	if a.Tag == nil { // an attach
		n.w.trace("%s attach-done%s", n.name, because(a.Err))
		return
	}
	t := a.Tag.(*commandTag)
	if t.over {
		n.w.fail("%s: command %d done twice", n.name, t.command.Kind)
	}
	t.over = true
	if t.command.Kind == replication.CmdConnect && a.Err == nil {
		n.discard = t.command.Force
	}
	n.w.trace("%s command-done %s%s", n.name, commandNames[t.command.Kind], codeOf(a.Err))
	n.w.Model.commandDone(n, &t.command, a.Err)
	if t.done != nil {
		t.done(a.Err)
	}
}

var commandNames = map[replication.CommandKind]string{
	replication.CmdPrimary: "primary", replication.CmdSecondary: "secondary", replication.CmdConnect: "connect",
	replication.CmdDisconnect: "disconnect", replication.CmdDetach: "detach", replication.CmdInvalidate: "invalidate",
	replication.CmdInvalidateRemote: "invalidate-remote", replication.CmdOutdate: "outdate", replication.CmdOpen: "open",
	replication.CmdPauseSync: "pause-sync", replication.CmdResumeSync: "resume-sync", replication.CmdSyncAfter: "sync-after",
	replication.CmdPromiseTerm: "promise", replication.CmdFailsafe: "failsafe", replication.CmdFailsafeOver: "failsafe-over",
	replication.CmdClose: "close", replication.CmdSetOptions: "set-options",
	replication.CmdSuspendIO: "suspend-io", replication.CmdResumeIO: "resume-io", replication.CmdNewCurrentUUID: "new-current-uuid",
	replication.CmdVerify: "verify",
	replication.CmdResize: "resize", replication.CmdSetHandlers: "set-handlers",
}

func codeOf(err error) string {
	var s *replication.StateError
	if errors.As(err, &s) {
		return fmt.Sprintf(" err=%v", s.Code)
	}
	return because(err)
}
