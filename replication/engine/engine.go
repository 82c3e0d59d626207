// Package engine runs one replication.Resource: it owns the disks, the two
// sockets to the peer, the timer, and does what the core orders.
//
// There is one lock, and one owner at a time: whoever brings events (a client
// of the export, a reader of a socket, a disk worker) takes the lock, steps
// its whole batch, files the packets in the order of the steps, lets go, and
// then does the effects itself: one write to the peer, the local I/O if the
// disk is of the page cache class, one write of replies. No request passes
// from goroutine to goroutine on the hot path; nothing blocks under the lock.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// An Engine runs one resource. All methods are safe for concurrent use.
type Engine struct {
	cfg   Config
	net   atomic.Pointer[replication.NetOptions] // of cfg, as they are now
	tls   atomic.Pointer[TLS]                    // of cfg, likewise
	log   zerolog.Logger
	start time.Time
	// sleeps: a lease was told, so the time in which the host is suspended counts; slept is
	// how much. Under mu.
	sleeps bool
	slept  slept
	pool   pool
	loans  lender // of payloads, to the data socket

	startAt int64 // start as perf.Now
	looks   looks

	mu      sync.Mutex // the resource's one lock
	room    *sync.Cond // the request table has room again, or the engine closes
	core    *replication.Resource
	vols    []*Volume
	link    *link // the connection that the core knows of, or nil
	closed  bool
	waiting int // submitters waiting for room

	timer    *time.Timer
	connCtx  context.Context
	connStop context.CancelFunc
	connOpts ConnectOptions
	connWG   sync.WaitGroup

	handlers map[int]*handlerQueue // by volume, -1 for the resource; under mu

	background sync.WaitGroup // workers and handlers
	quit       chan struct{}

	// Opens the disks; tests put faulty ones in their place.
	openDevice func(path string, o blockdev.Options) (blockdev.Device, error)
	openAsync  func(data blockdev.Device) asyncDevice // likewise
	singleCPU  bool                                   // who waits for a disk keeps others from running; tests set it

	batches       batchList
	events        eventHub
	resume        resume
	peerLostSince time.Time
	connectError  string          // why the peer cannot be reached
	complaints    map[string]bool // reasons that this search for the peer has logged; under mu

	linkSince          time.Time // when link came up
	violation          violation
	outcast            func(row int) time.Duration // tests need not wait
	strangers, strange occasional                  // log lines about refused connections, and about first packets that are none
	loud               loudness
}

// commitLazyMS is how long the peer's writes may stay in the page cache before
// they are made durable without its asking: as long as file systems let their
// journals wait. Rewritten blocks are then written to the disk once.
const commitLazyMS = 5000

// New returns an engine for cfg: Secondary, diskless, StandAlone. It does no I/O.
func New(cfg Config) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("%s: no randomness for UUIDs: %w", cfg.Resource, err)
	}
	e := &Engine{
		openDevice: blockdev.Open, openAsync: openAsync, singleCPU: runtime.NumCPU() == 1,
		cfg: cfg, log: cfg.Log.With().Str("res", cfg.Resource).Logger(), start: time.Now(), quit: make(chan struct{}),
		handlers: map[int]*handlerQueue{}, outcast: outcast,
		core: replication.New(replication.Config{
			Name: cfg.Resource, Net: cfg.Net, NoDataSuspend: cfg.NoDataSuspend, Seed: binary.LittleEndian.Uint64(seed[:]),
			Handlers: cfg.awaited(), CommitLazyMS: commitLazyMS,
		}),
	}
	e.startAt = perf.At(e.start)
	e.loans.pool = &e.pool
	e.room = sync.NewCond(&e.mu)
	e.net.Store(&cfg.Net)
	e.tls.Store(cfg.TLS)
	for i := range cfg.Volumes {
		vc := cfg.Volumes[i]
		e.core.AddVolume(uint16(vc.Number), vc.Options)
		e.vols = append(e.vols, newVolume(e, vc))
	}
	e.timer = time.AfterFunc(time.Hour, e.timerFired)
	e.timer.Stop()
	return e, nil
}

// Volume returns volume n, or nil.
func (e *Engine) Volume(n int) *Volume {
	for _, v := range e.vols {
		if v.cfg.Number == n {
			return v
		}
	}
	return nil
}

// Volumes returns all volumes, ascending by number.
func (e *Engine) Volumes() []*Volume { return e.vols }

// now is the core's clock: milliseconds since the engine began, from 1.
func (e *Engine) now() replication.Tick { return e.tick(time.Since(e.start)) }

// tick is the core's clock at a time since the engine began. A lease ends while the
// host is suspended, too: then that counts.
func (e *Engine) tick(since time.Duration) replication.Tick {
	if e.sleeps {
		e.slept.look(since)
	}
	return replication.Tick((since + e.slept.total).Milliseconds()) + 1
}

// localIO is one order to a disk.
type localIO struct {
	vol     *Volume
	op      replication.Op
	fua     bool
	noUnmap bool
	isPeer  bool
	id      uint32
	sector  drbd.Sector
	size    uint32
	data    []byte
	look    *look // what the core wants to know of the data read, or nil
	isTimed bool  // begun is wanted
	stamp   int64 // of a peer's write that is measured: when it was read
	ordered int64 // likewise
	begun   int64 // the system call
}

// batch collects what has to be done after the lock is let go.
type batch struct {
	ev        replication.Event
	local     []localIO
	running   []localIO
	others    []localIO // of running, that its owner does not do itself
	done      []*blockdev.Request
	at        int64 // perf.Now of the step under way
	readAt    int64 // of the packets that are stepped
	begun     int64 // of the local I/O whose result is stepped
	sinks     []blockdev.Sink
	cold      []func()
	flushData bool
	flushMeta bool
	link      *link
	syncs     []*Volume // to be synced by the reader that this batch is of
	toSync    []*Volume // when what is to be sent is, if only one processor is there for both
	isReader  bool      // of the data socket
}

// batchList keeps idle batches. There are no more than goroutines that step.
type batchList struct {
	mu   sync.Mutex
	idle []*batch
}

func (l *batchList) get() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.idle)
	if n == 0 {
		return new(batch)
	}
	b := l.idle[n-1]
	l.idle = l.idle[:n-1]
	return b
}

func (l *batchList) put(b *batch) {
	l.mu.Lock()
	l.idle = append(l.idle, b)
	l.mu.Unlock()
}

func (e *Engine) newBatch() *batch { return e.batches.get() }

func (e *Engine) freeBatch(b *batch) {
	b.ev = replication.Event{}
	b.link, b.isReader, b.readAt = nil, false, 0
	clear(b.done[:cap(b.done)])
	clear(b.sinks[:cap(b.sinks)])
	b.done, b.sinks = b.done[:0], b.sinks[:0]
	e.batches.put(b)
}

// step runs one event; the caller holds the lock and calls finish after
// letting it go.
func (e *Engine) step(b *batch, ev *replication.Event) {
	since := time.Since(e.start)
	ev.At = e.tick(since)
	b.at = e.startAt + int64(since)
	actions := e.core.Step(ev)
	for i := range actions {
		a := &actions[i]
		switch a.Kind {
		case replication.Send:
			if l := e.link; l != nil {
				b.link = l
				if a.Socket == drbd.DataSocket {
					l.data.file(a.Bytes, a.Data, a.DigestAlg)
					l.data.wantPos.Store(e.core.WantsSent())
					b.flushData = true
				} else {
					l.meta.file(a.Bytes, a.Data, "")
					b.flushMeta = true
				}
			}
		case replication.DoLocal:
			b.local = append(b.local, localIO{
				vol: e.volume(a.Volume), op: a.Op, fua: a.FUA, noUnmap: a.NoUnmap, id: uint32(a.ID),
				sector: a.Sector, size: a.Size, data: a.Data, isTimed: a.IsTimed,
			})
		case replication.DoPeerLocal:
			b.local = append(b.local, localIO{
				vol: e.volume(a.Volume), op: a.Op, fua: a.FUA, noUnmap: a.NoUnmap, isPeer: true, id: uint32(a.Peer),
				sector: a.Sector, size: a.Size, data: a.Data, look: e.lookFor(a), stamp: a.Stamp, isTimed: a.Stamp != 0, ordered: b.at,
			})
		case replication.Complete:
			r := a.Tag.(*blockdev.Request)
			r.Err = a.Err
			if r.Trace != nil {
				r.Trace.Set(perf.Completed, b.at)
			}
			if a.Keep {
				r.Moved, r.Data = true, a.Data
			}
			b.done = append(b.done, r)
		case replication.Free:
			e.loans.free(a.Data)
		default:
			e.stepCold(b, a)
		}
	}
	if e.waiting > 0 && e.core.Room() > submitBatch {
		e.room.Broadcast()
	}
}

// stepCold handles the orders that are not on the hot path.
func (e *Engine) stepCold(b *batch, a *replication.Action) {
	switch a.Kind {
	case replication.WriteMeta:
		e.volume(a.Volume).metaJobs <- a.Job
		if a.Job.Term != nil { // promise, term, mark or generation: no state word says so
			e.events.publish(Event{Resource: e.cfg.Resource, Volume: int(a.Volume), Kind: "term"})
		}
	case replication.SyncData:
		if v := e.volume(a.Volume); b.isReader && e.core.ReceivePaused() && !v.mayHang.Load() {
			b.syncs = append(b.syncs, v)
		} else if e.singleCPU {
			b.toSync = append(b.toSync, v)
		} else {
			v.syncs <- struct{}{}
		}
	case replication.SetTimer:
		e.timer.Reset(together(time.Duration(max(a.At-e.now(), 0))*time.Millisecond, time.Since(epoch)))
	case replication.Disconnect:
		if l := e.link; l != nil {
			e.link = nil
			l.retire(b)
			e.peerLostSince = time.Now()
			e.noteEnd(a.Err, e.linkSince)
		}
		if a.Reason == drbd.Disconnecting {
			e.stopConnecting()
		}
	case replication.Connect:
		e.startConnecting()
	case replication.StopConnecting:
		e.stopConnecting()
	case replication.ResumeReceive:
		if l := e.link; l != nil {
			l.resumeReceive()
		}
	case replication.WantDrain:
		if l := e.link; l != nil {
			b.cold = append(b.cold, l.data.wantShort)
		}
	case replication.RunHandler:
		e.runHandler(b, int(a.Volume), a.Name)
	case replication.CommandDone:
		switch t := a.Tag.(type) {
		case chan error:
			t <- a.Err // capacity 1, one answer
		case *grantedTag:
			if a.Err == nil {
				t.granted()
			}
			t.done <- a.Err
		}
	case replication.StateChanged:
		e.stateChanged(b, a)
	case replication.CloseDisk:
		v := e.volume(a.Volume)
		b.cold = append(b.cold, v.closeDisk)
	case replication.Passed:
		e.passed(b, a)
	case replication.ProbeDisk:
		v := e.volume(a.Volume)
		b.cold = append(b.cold, v.probe)
	case replication.Report:
		if n, ok := e.loud.may(time.Now()); ok {
			e.log.Warn().Func(suppressed(n)).Msg(a.Text)
		}
		e.events.publish(Event{Resource: e.cfg.Resource, Kind: "report", Text: a.Text})
	default:
		panic(fmt.Sprintf("engine: no case for action %d", a.Kind))
	}
}

func (e *Engine) volume(num uint16) *Volume {
	for _, v := range e.vols {
		if v.cfg.Number == int(num) {
			return v
		}
	}
	panic(fmt.Sprintf("engine: %s has no volume %d", e.cfg.Resource, num))
}

// finish does what the steps of b have ordered, without the lock: packets
// first, so that the peer works while this node writes; then local I/O, whose
// results are stepped in turn; then the answers to clients.
func (e *Engine) finish(b *batch) {
	for {
		e.flush(b)
		if len(b.local) == 0 {
			break
		}
		b.local, b.running = b.running[:0], b.local
		e.runLocal(b)
	}
	for i, v := range b.toSync {
		b.toSync[i] = nil
		if !v.startSync() {
			v.syncs <- struct{}{}
		}
	}
	b.toSync = b.toSync[:0]
	for len(b.cold) > 0 {
		cold := b.cold
		b.cold = nil
		for _, f := range cold {
			f()
		}
	}
	for i, r := range b.done {
		s := r.Sink
		b.done[i] = nil
		e.loans.recall(r.Data)
		s.Completed(r)
		b.addSink(s)
	}
	b.done = b.done[:0]
	for i, s := range b.sinks {
		b.sinks[i] = nil
		s.Flush()
	}
	b.sinks = b.sinks[:0]
}

func (b *batch) addSink(s blockdev.Sink) {
	for _, have := range b.sinks {
		if have == s {
			return
		}
	}
	b.sinks = append(b.sinks, s)
}

func (e *Engine) flush(b *batch) {
	l := b.link
	if l == nil {
		return
	}
	if b.flushMeta {
		b.flushMeta = false
		l.meta.flush()
	}
	if b.flushData {
		b.flushData = false
		l.data.flush()
	}
}

// runLocal does the I/O of b.running: inline where it does not wait for the
// disk, else by the volume's workers.
func (e *Engine) runLocal(b *batch) {
	ops := b.running
	if len(ops) == 1 {
		if !ops[0].vol.inline(&ops[0], true) {
			ops[0].vol.hand(ops)
			return
		}
		err := ops[0].vol.do(&ops[0])
		e.mu.Lock()
		e.localDone(b, &ops[0], err)
		e.mu.Unlock()
		return
	}
	// Results are stepped some at a time: one lock for many.
	const group = 64
	var errs [group]error
	for len(ops) > 0 {
		n, begun := min(len(ops), group), 0
		for i := range ops[:n] {
			op := &ops[i]
			if !op.vol.inline(op, false) {
				b.others = append(b.others, *op)
				op.vol = nil
				continue
			}
			errs[i] = op.vol.do(op)
			begun++
		}
		if begun > 0 {
			e.mu.Lock()
			for i := range ops[:n] {
				if ops[i].vol != nil {
					e.localDone(b, &ops[i], errs[i])
				}
			}
			e.mu.Unlock()
		}
		ops = ops[n:]
		e.handOver(b)
	}
}

// handOver has others do b.others, volume by volume.
func (e *Engine) handOver(b *batch) {
	for ops := b.others; len(ops) > 0; {
		n := 1
		for n < len(ops) && ops[n].vol == ops[0].vol {
			n++
		}
		ops[0].vol.hand(ops[:n])
		ops = ops[n:]
	}
	clear(b.others)
	b.others = b.others[:0]
}

// localDone steps the result of one I/O, under the lock.
func (e *Engine) localDone(b *batch, op *localIO, err error) {
	ev := &b.ev
	*ev = replication.Event{Volume: uint16(op.vol.cfg.Number), Err: err}
	if op.isPeer {
		ev.Kind, ev.Peer = replication.PeerLocalDone, replication.PeerID(op.id)
		if op.op == replication.OpRead {
			ev.Data = op.data
		}
		if op.look != nil {
			ev.Digest, ev.AllZero = op.look.sum[:op.look.size], op.look.allZero
		}
	} else {
		ev.Kind, ev.ID = replication.LocalDone, replication.RequestID(op.id)
	}
	op.vol.inFlight.Add(-1)
	b.begun = op.begun
	if op.stamp == 0 {
		e.step(b, ev)
	} else {
		isFiled := b.flushMeta
		b.flushMeta = false
		e.step(b, ev)
		if err == nil {
			e.timePeerWrite(b, op, b.flushMeta)
		}
		b.flushMeta = b.flushMeta || isFiled
	}
	e.looks.put(op.look)
}

// event steps one event of the cold path and does everything that follows.
func (e *Engine) event(ev replication.Event) {
	b := e.newBatch()
	b.ev = ev
	e.mu.Lock()
	e.step(b, &b.ev)
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
}

// A timer of coarseFrom or more is due at the next multiple of timerGrid since
// epoch: those of hundreds of idle resources then wake the process together, and
// the peer's with it. What the core wants just behind such a timer is as late.
const (
	coarseFrom = 2 * time.Second
	timerGrid  = 250 * time.Millisecond
)

var epoch = time.Now()

// together is how long a timer that is due in so long waits at the time now
// since epoch.
func together(in, now time.Duration) time.Duration {
	if in < coarseFrom {
		return in
	}
	due := now + in
	return (due+timerGrid-1)/timerGrid*timerGrid - now
}

func (e *Engine) timerFired() {
	e.event(replication.Event{Kind: replication.TimerFired})
}

// A grantedTag is the tag of a command of which something follows, under the
// lock, if it is not refused.
type grantedTag struct {
	granted func()
	done    chan error
}

// command runs one command and waits for its end. Its Tag is nil or a *grantedTag.
func (e *Engine) command(ctx context.Context, c replication.Command) error {
	done := make(chan error, 1)
	if t, ok := c.Tag.(*grantedTag); ok {
		t.done = done
	} else {
		c.Tag = done
	}
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return &AdminError{Code: codeUnknownResource, Text: fmt.Sprintf("%s: the resource is down: run `polluxadm up %s`", e.cfg.Resource, e.cfg.Resource)}
	}
	e.event(replication.Event{Kind: replication.Commanded, Command: c})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
