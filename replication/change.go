package replication

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

func (r *Resource) context(v *volume) StateContext {
	ctx := StateContext{
		Fencing: r.termFencing(v.opts.Fencing), OnNoDataSuspend: r.cfg.NoDataSuspend, AllowTwoPrimaries: r.net.AllowTwoPrimaries,
		DeviceOpen: r.opens > 0, HasVerifyAlg: r.net.VerifyAlg != "", Version: r.link.Version,
		StateSent: r.stateSent, HandshakeDone: true, PeerUnheard: v.peerSays == drbd.RoleUnknown,
		NegotiatedDisk: v.worth(), NegotiatedPdsk: v.negPdsk, // A Secondary has shown nothing: its disk goes on as if attached unconnected.
		ExposedUUIDMatches: !r.isStale(v, v.uuids.Current),
	}
	for _, o := range r.vols {
		ctx.HandshakeDone = ctx.HandshakeDone && o.handshakeDone
		if o != v && o.st.Peer == drbd.Primary {
			ctx.OtherVolumePeerPrimary = true
		}
	}
	return ctx
}

// check is whether v may go to ns (softly); ns is completed by Sanitize.
func (r *Resource) check(v *volume, ns drbd.State, clusterWide bool) StateCode {
	ctx := r.context(v)
	return CheckState(ctx, v.st, Sanitize(ctx, v.st, ns), false, clusterWide)
}

// setState is a change that has been decided: v goes to ns, completed by
// Sanitize, and everything follows that has to.
func (r *Resource) setState(v *volume, ns drbd.State, reason string) {
	os := v.st
	ns = Sanitize(r.context(v), os, ns)
	if os.Disk == drbd.Negotiating && ns.Disk == drbd.Diskless {
		ns.Disk = drbd.Failed // there is a disk to be closed first
	}
	if ns == os {
		return
	}
	v.st = ns
	if ns.SuspFen {
		r.suspFen = true
	}
	r.emit(Action{Kind: StateChanged, Volume: v.num, From: os, To: ns, Text: reason})
	r.afterState(v, os, ns)
}

// announceAndSet is setState with the P_STATE before whatever follows from the
// step: a bitmap must not arrive before the peer knows of the resync.
func (r *Resource) announceAndSet(v *volume, ns drbd.State, reason string) {
	r.sendStateWord(v, Sanitize(r.context(v), v.st, ns))
	r.setState(v, ns, reason)
}

// setConn moves the connection as a whole; for states up to WFReportParams.
func (r *Resource) setConn(c drbd.ConnState, reason string) {
	r.conn = c
	for _, v := range r.vols {
		ns := v.st
		ns.Conn = c
		r.setState(v, ns, reason)
	}
}

func (r *Resource) setRole(role drbd.Role, reason string) {
	r.role = role
	if role != drbd.Primary {
		r.disown()
	}
	for _, v := range r.vols {
		ns := v.st
		ns.Role = role
		r.setState(v, ns, reason)
	}
}

// afterState is what follows from the step of v from os to ns.
func (r *Resource) afterState(v *volume, os, ns drbd.State) {
	r.kick = true
	if r.awaitsSize(v) && (ns.Disk < drbd.Inconsistent || ns.Pdsk < drbd.Inconsistent) {
		r.kickCommand = true
	}
	if replicates(os) && !replicates(ns) {
		r.keepBits(v)
	}
	if os.Conn == drbd.WFReportParams && ns.Conn >= drbd.Connected {
		r.sendStateWord(v, ns)
	}
	if ns.Disk == drbd.UpToDate && ns.Pdsk == drbd.UpToDate {
		v.crashed = false
	}
	if v.hasDisk() && FlagsOf(ns, v.sb.Flags, v.crashed) != v.sb.Flags {
		v.storeSuperblock()
	}
	if os.Disk == drbd.Inconsistent && os.Pdsk == drbd.Inconsistent && os.Peer != drbd.Primary && ns.Peer == drbd.Primary {
		v.forcedPeer = true // 4.6 step 7 (iii)
	}
	if ns.SuspNod && !hasNoData(ns) {
		ns.SuspNod, v.st.SuspNod = false, false
		r.emit(Action{Kind: StateChanged, Volume: v.num, From: os, To: ns, Text: "data can be reached again"})
		r.wake = true
	}
	if hasNoData(ns) && !hasNoData(os) {
		r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "pri-on-incon-degr"})
	}
	ctx := r.context(v)
	undecided := ctx.peerUndecided(ns)
	if LostContact(os, ns) && v.uuids.Bitmap == 0 && !undecided {
		if r.suspFen {
			r.fencePending = true // the new UUID waits for the fence
		} else {
			r.newCurrent(v)
		}
	}
	r.goOnAlone(v)
	if servesAlone(ns) && !servesAlone(os) && v.uuids.Bitmap == 0 && !undecided {
		r.newCurrent(v) // a diskless peer writes here alone; it adopts this UUID
	}
	if ns.Conn < drbd.Connected && os.Conn >= drbd.Connected || ns.Conn == drbd.Connected && os.Conn > drbd.Connected {
		r.resyncOver(v)
	}
	if os.Conn != ns.Conn && (isVerify(os.Conn) || isVerify(ns.Conn)) {
		r.verifyChanged(v, os, ns)
	}
	if r.isUp() && os.Pdsk == drbd.Diskless && ns.Pdsk > drbd.Diskless && ns.Pdsk != drbd.DUnknown && os.Conn >= drbd.Connected {
		if v.hasDisk() {
			r.sendUUIDs(v, 0)
		}
		r.sendStateWord(v, ns) // also without a disk: the peer waits for a word to leave Negotiating
	}
	if r.isUp() && os.Conn >= drbd.Connected && ns.Conn >= drbd.Connected {
		if announcesPause(os, ns) || os.Disk == drbd.UpToDate && ns.Disk == drbd.Inconsistent && ns.Conn == drbd.Connected {
			r.sendStateWord(v, ns)
		}
	}
	switch paused, was := v.rs.running && ns.Paused(), v.rs.pausedAt != 0; {
	case paused && !was:
		r.resyncPaused(v)
	case was && !paused:
		r.resyncResumed(v)
	}
	if ns.Conn == drbd.WFBitMapS && os.Conn != drbd.WFBitMapS {
		r.startBitmap(v)
	}
	switch {
	case r.role == drbd.Primary && ns.Disk == drbd.UpToDate:
		v.exposed = v.uuids.Current
	case os.Disk >= drbd.Inconsistent && ns.Disk < drbd.Inconsistent && v.exposed != 0 && v.havePeerUUIDs && v.readsRemotely():
		// From now on the peer's copy is what the application sees; it may have
		// begun a new generation when it granted the detach.
		v.exposed = v.peerUUIDs.Current
	}
	if ns.Role == drbd.Primary && os.Role != drbd.Primary && v.hasDisk() {
		v.uuids.Current |= 1
		v.requireSuperblock()
	}
	if ns.Disk == drbd.UpToDate {
		v.strayed = false
	}
	if v.unproven && ns.Conn >= drbd.Connected && ns.Pdsk == drbd.UpToDate {
		gone := ns.Disk < drbd.Negotiating // and the peer may have lost them with its power
		v.lost = v.lost || gone && r.role == drbd.Primary
		v.unproven = !gone && v.bitmap.Weight() > 0
	}
	if ns.Role != drbd.Primary && os.Role == drbd.Primary && v.hasDisk() {
		v.uuids.Current &^= 1
		v.storeSuperblock()
	}
	r.termState(v)
}

// servesAlone: this copy is the only one that a diskless Primary has.
func servesAlone(s drbd.State) bool {
	return s.Conn >= drbd.Connected && s.Peer == drbd.Primary && s.Pdsk <= drbd.Failed && s.Disk == drbd.UpToDate
}

// goOnAlone begins a generation if the target of the resync from here may have
// finished it unheard: two that write in one generation would not see the split
// brain. Not during a handshake, in which the peer compares what it was sent.
func (r *Resource) goOnAlone(v *volume) {
	if !v.endUnknown || r.suspFen || r.isUp() || r.role != drbd.Primary || v.st.Disk != drbd.UpToDate {
		return
	}
	v.endUnknown = false
	if v.uuids.Bitmap == 0 {
		r.newCurrent(v)
	} else {
		r.rotateCurrent(v)
	}
}

// rotateCurrent begins a new generation against a peer that may have finished
// its resync unheard. One that has not is still brought up to date by the
// bitmap; for one that has, everything is copied, unless it has written, too.
func (r *Resource) rotateCurrent(v *volume) {
	RotateCurrent(&v.uuids, r.random(), r.role == drbd.Primary)
	v.exposed = v.uuids.Current
	v.requireSuperblock()
	r.emit(Action{Kind: StateChanged, Volume: v.num, From: v.st, To: v.st, Text: fmt.Sprintf("new current UUID %016X: the resync may have ended unheard", v.uuids.Current)})
}

// newCurrent begins a new data generation, on disk before the next client is answered.
func (r *Resource) newCurrent(v *volume) {
	NewCurrent(&v.uuids, r.random(), r.role == drbd.Primary)
	if r.role == drbd.Primary {
		v.exposed = v.uuids.Current
	}
	r.termState(v)
	job := v.requireSuperblock()
	if r.isUp() && v.st.Conn >= drbd.Connected {
		gen := r.connGen
		v.whenStored(job, func() {
			if gen == r.connGen && v.hasDisk() {
				r.sendUUIDs(v, 0)
			}
		})
	}
	r.emit(Action{Kind: StateChanged, Volume: v.num, From: v.st, To: v.st, Text: fmt.Sprintf("new current UUID %016X", v.uuids.Current)})
}

// diskError applies on-io-error. Metadata that cannot be written, and a failed
// fdatasync, always cost the disk.
func (r *Resource) diskError(v *volume, err error, fatal bool) {
	if v.st.Disk <= drbd.Failed {
		return
	}
	r.lastError = fmt.Sprintf("volume %d: disk failed: %v", v.num, err)
	r.report("%s", r.lastError)
	if isVerify(v.st.Conn) { // the peer hears of its end before it hears of the disk
		ns := v.st
		ns.Conn = drbd.Connected
		r.setState(v, ns, "online verify aborted: this node's disk has failed")
	}
	ns := v.st
	if v.opts.OnIOError == PassOnError && !fatal {
		if !v.readsRemotely() {
			return // the only good copy: its owner hears of the error, and keeps the rest
		}
		ns.Disk = drbd.Inconsistent
		r.setState(v, ns, "I/O error, on-io-error pass_on")
		if r.isUp() {
			r.sendStateWord(v, v.st)
		}
		return
	}
	if v.opts.OnIOError == CallLocalIOError {
		r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "local-io-error"})
	}
	r.failDisk(v, "I/O error, on-io-error detach")
}

// peerMustKeep: a failed fdatasync may have lost writes of the peer that it was
// told are written. It must not hear that they are stable: only a broken
// connection makes it keep their blocks as out of sync. Of a write that was
// refused it knows.
func (r *Resource) peerMustKeep(err error) {
	if r.isUp() && r.recv.counts() {
		r.connectionLost(drbd.NetworkFailure, fmt.Errorf("the peer's writes cannot be made durable here: %w", err))
	}
}

// failDisk takes the disk out of use; it is closed when its last I/O has ended.
func (r *Resource) failDisk(v *volume, reason string) {
	ns := v.st
	ns.Disk = drbd.Failed
	r.setState(v, ns, reason)
	if r.isUp() && v.handshakeDone {
		r.sendStateWord(v, v.st)
	}
	r.runMetaWaiters(v)
	r.unpark()
	for _, id := range slices.Clone(r.req.postponed) {
		r.resubmitDiskless(r.req.get(id))
	}
	r.peerMayGo()
	r.progressFlushes()
	r.maybeCloseDisk(v)
}

// maybeCloseDisk completes Failed -> Diskless. Before that, what is written is
// made durable: the peer's epochs are acknowledged later, and this disk may come
// back.
func (r *Resource) maybeCloseDisk(v *volume) {
	if v.st.Disk != drbd.Failed || v.local > 0 || v.meta.running || v.sync.running {
		return
	}
	if v.sync.dirty && !v.sync.broken {
		r.startSync(v)
		return
	}
	for _, id := range r.req.waiting {
		if q := r.req.get(id); q.v == v {
			q.clear(alHeld)
		}
	}
	for i := range r.req.log.len() {
		if q := r.req.get(*r.req.log.at(i)); q.v == v {
			q.clear(alHeld)
		}
	}
	for _, id := range r.peer.waiting {
		if p := r.peer.get(id); p.v == v {
			p.alHeld = false
		}
	}
	for _, ids := range [][]RequestID{r.req.parked, r.req.postponed} {
		for _, id := range ids {
			if q := r.req.get(id); q.v == v {
				q.clear(alHeld)
			}
		}
	}
	r.growthFailed(v)
	v.bitmap, v.al, v.tx, v.rx, v.starved = nil, nil, nil, nil, 0
	v.rs = resync{}
	v.strayAnswers += v.active.count(resyncOwed)
	v.active.removeKind(resyncOwed)
	ns := v.st
	ns.Disk = drbd.Diskless
	r.setState(v, ns, "disk closed")
	if r.isUp() && v.handshakeDone {
		r.sendStateWord(v, v.st)
	}
	r.emit(Action{Kind: CloseDisk, Volume: v.num})
	r.commandStep()
}

// isStale reports whether a disk of generation current is known to lack what
// the application of this Primary has seen or written meanwhile.
func (r *Resource) isStale(v *volume, current uint64) bool {
	return r.role == drbd.Primary && (v.strayed || v.exposed != 0 && v.exposed&^1 != current&^1)
}

// worth is what the disk of v counts for while no peer is connected: what its
// superblock said, but no more than Outdated if this node knows better.
func (v *volume) worth() drbd.DiskState {
	if v.strayed || v.havePeerUUIDs && succeeds(v.peerUUIDs, v.uuids.Current) {
		return min(v.negDisk, drbd.Outdated)
	}
	return v.negDisk
}

// succeeds reports whether the owner of u has gone on from the generation current.
func succeeds(u meta.UUIDs, current uint64) bool {
	current &^= 1
	return u.Current&^1 != current && (u.Bitmap&^1 == current || u.History[0]&^1 == current || u.History[1]&^1 == current)
}

// attached takes a disk into use (drbd84-protocol, 8.3).
func (r *Resource) attached(ev *Event) {
	v := r.volume(ev.Volume)
	d := ev.Disk
	if v.st.Disk != drbd.Diskless {
		panic(fmt.Sprintf("replication: attach of volume %d of %s, whose disk is %v", v.num, r.cfg.Name, v.st.Disk))
	}
	if err := r.shrinksImplicitly(v, d); err != nil {
		r.emit(Action{Kind: CommandDone, Tag: ev.Tag, Err: err})
		r.emit(Action{Kind: CloseDisk, Volume: v.num})
		return
	}
	if r.isStale(v, d.Superblock.UUIDs.Current) && !v.readsRemotely() {
		r.emit(Action{Kind: CommandDone, Tag: ev.Tag, Err: &RequestError{Code: 150, Text: fmt.Sprintf(
			"%s/%d: this disk does not hold the data that the Primary uses now: connect the peer first, which has them, or demote this node", r.cfg.Name, v.num)}})
		r.emit(Action{Kind: CloseDisk, Volume: v.num})
		return
	}
	v.opts = d.Options
	v.sb, v.uuids, v.bitmap, v.al = d.Superblock, d.Superblock.UUIDs, d.Bitmap, d.AL
	v.usable, v.blockSize = d.Usable, d.BlockSize
	r.attachTerm(v, d)
	v.meta = metaIO{next: v.meta.next, done: v.meta.done}
	if v.meta.next == 0 {
		v.meta.next = 1
	}
	v.meta.done = v.meta.next - 1
	// Dirty: what was written before a detach may not have been synced since.
	v.sync = dataSync{started: v.sync.started, done: v.sync.started, dirty: true}
	v.al.Stable(v.sync.done)
	v.leaving = false
	v.negDisk, v.negPdsk = DiskStateAtAttach(v.sb.Flags, v.opts.Fencing)
	v.crashed = v.sb.Flags&markCrashed != 0
	if r.role != drbd.Primary {
		v.uuids.Current &^= 1
	}
	r.sizeAtAttach(v)
	if v.sb.Flags&markFullSync != 0 || v.crashed && v.sb.Flags&markALDisabled != 0 {
		r.setAllBits(v)
	}
	ns := v.st
	if v.st.Conn >= drbd.Connected {
		ns.Disk = drbd.Negotiating
		r.setState(v, ns, "attach")
		r.sendSizes(v, v.size)
		r.sendUUIDs(v, 0)
		r.sendStateWord(v, v.st)
		r.setTimer(timerHandshake, bitmapMS)
	} else {
		ns.Disk, ns.Pdsk = v.worth(), v.negPdsk
		r.setState(v, ns, "attach")
		r.servesUnconnected(v)
	}
	if v.st.Conn == drbd.WFReportParams {
		// The peer has been told that there is no disk, and has heard no UUIDs.
		r.connectionLost(drbd.NetworkFailure, errors.New("a disk was attached during the handshake, which begins anew"))
	}
	v.storeAll()
	r.emit(Action{Kind: CommandDone, Tag: ev.Tag})
	r.enforceTerm()
	r.diskIsBack()
}

// servesUnconnected begins a generation if a Primary that has lost disk and peer
// gets its disk back first: what it writes now, the peer lacks.
func (r *Resource) servesUnconnected(v *volume) {
	switch {
	case r.role != drbd.Primary || v.st.Disk != drbd.UpToDate || v.uuids.Bitmap != 0:
	case r.suspFen:
		r.fencePending = true
	default:
		r.newCurrent(v)
	}
}

// sizeAtAttach settles what the volume exports until the peer was heard.
func (r *Resource) sizeAtAttach(v *volume) {
	size, err := AgreeSize(SizeInput{MySize: v.usable, Agreed: v.sb.LASize, MyUser: drbd.Sector(v.opts.SizeSectors), State: drbd.State{}})
	if err != nil || size == 0 {
		size = v.usable
	}
	r.resize(v, size)
}

// resize sets the size that v exports. New space counts as different.
func (r *Resource) resize(v *volume, size drbd.Sector) {
	if v.bitmap != nil && v.bitmap.Size() != size {
		v.resizeBitmap(size, true, true)
		v.meta.touched = true
		v.storeAll()
	}
	v.size = size
}

// setAllBits marks everything as different; until the bitmap is on disk the
// superblock says so (MDF_FULL_SYNC).
func (r *Resource) setAllBits(v *volume) {
	v.bitmap.SetAll()
	v.sb.Flags |= markFullSync
	job := v.storeSuperblock()
	v.whenStored(job, func() {
		if v.bitmap != nil {
			v.sb.Flags &^= markFullSync
			v.storeAll()
		}
	})
}
