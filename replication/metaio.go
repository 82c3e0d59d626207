package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// Superblock flags that this package sets or asks for itself.
const (
	markFullSync   = meta.MDFFullSync
	markALDisabled = meta.MDFALDisabled
	markPrimary    = meta.MDFPrimaryInd
	markCrashed    = meta.MDFCrashedPrimary | meta.MDFPrimaryInd
)

// metaIO is the metadata writer of one volume: one job at a time; whatever is
// wanted meanwhile goes into the next.
type metaIO struct {
	next      uint64 // number of the job that will be built next, from 1
	done      uint64 // number of the last job that is on disk
	running   bool
	wantSB    bool
	wantBM    bool     // all dirty pages
	resetAL   bool     // clean shutdown: re-initialise the ring
	relog     bool     // the same in the midst of use: for an activity log with other slots
	touched   bool     // the bitmap was changed since the lazy writer looked
	forceSync bool     // the next job makes the data durable first
	inAL      bool     // the running job carries a transaction
	job       *MetaJob // the running one
	begun     Tick     // when the running job began, if it counts for disk-timeout
	more      bool     // the running job goes on with the pages dirty[taken:]
	taken     int
	endsSB    bool   // ... and ends with the superblock
	endsReset bool   // ... and with an initialised ring
	endsRelog bool   // ... that goes on being used
	move      bool   // the next job takes all of it to its new place
	required  uint64 // no write begins and no client is answered before this job is on disk
	waiters   []metaWaiter

	sb    []byte
	al    []byte
	pages []MetaPage
	dirty []int
}

type metaWaiter struct {
	job uint64
	f   func()
}

// dataSync is the group commit of one volume's data: one fdatasync at a time,
// the next one serves all who asked meanwhile.
type dataSync struct {
	started uint64 // number of the last fdatasync that was begun
	done    uint64
	running bool
	wanted  bool
	dirty   bool // something was written since the last one began
	broken  bool // one has failed: none is begun any more
}

// storeSuperblock has the superblock written; the returned job has it.
func (v *volume) storeSuperblock() uint64 {
	v.meta.wantSB = true
	return v.meta.next
}

// storeAll has superblock and all changed bitmap pages written.
func (v *volume) storeAll() uint64 {
	v.meta.wantBM = true
	return v.storeSuperblock()
}

// requireSuperblock is storeSuperblock, and no write goes on before it is on disk.
func (v *volume) requireSuperblock() uint64 {
	v.meta.required = v.storeSuperblock()
	return v.meta.required
}

// isSettled reports whether all metadata that writes depend on is on disk.
func (v *volume) isSettled() bool { return v.meta.done >= v.meta.required || !v.hasDisk() }

// whenStored calls f once job is on disk, or at once if it is or there is no disk.
func (v *volume) whenStored(job uint64, f func()) {
	if v.meta.done >= job || !v.hasDisk() {
		f()
		return
	}
	v.meta.waiters = append(v.meta.waiters, metaWaiter{job, f})
}

// fill composes the superblock from what the volume is now; clean if the ring
// is initialised with it.
func (v *volume) fill(clean bool) {
	v.sb.UUIDs = v.uuids
	v.sb.LASize = v.durableSize()
	v.sb.Flags = FlagsOf(v.st, v.sb.Flags, v.crashed)
	if v.leaving || v.standsBack {
		v.sb.Flags &^= meta.MDFWasUpToDate
	}
	v.sb.Unclean = !clean
	if clean {
		v.sb.Flags |= meta.MDFALClean
	} else {
		v.sb.Flags &^= meta.MDFALClean
	}
	if v.opts.ALUpdates {
		v.sb.Flags &^= markALDisabled
	} else {
		v.sb.Flags |= markALDisabled
	}
	v.sb.ALExtents = uint32(v.opts.ALExtents)
}

// maintainMeta starts the next metadata job of v if one is due.
func (r *Resource) maintainMeta(v *volume) {
	m := &v.meta
	if m.running || v.bitmap == nil || !v.hasDisk() {
		return
	}
	if m.touched && r.timers[timerBitmap] == 0 {
		r.setTimer(timerBitmap, bitmapLazyMS)
	}
	if m.move {
		r.moveMeta(v)
		return
	}
	r.syncForLog(v)
	if !m.more {
		if !m.wantSB && !m.wantBM && !m.resetAL && !m.relog && !v.al.Pending() {
			return
		}
		m.begin(v.bitmap)
	}
	job := &MetaJob{SyncData: m.forceSync}
	m.forceSync = false
	m.pages = m.pages[:0]
	if v.al.Pending() && !m.endsReset && !m.endsRelog {
		r.transaction(v, job)
	}
	begun := m.taken
	for ; m.taken < len(m.dirty) && m.taken < begun+jobPages; m.taken++ {
		if p := m.dirty[m.taken]; v.bitmap.PageDirty(p) { // else the transaction took it
			r.takePage(v, job, p)
		}
	}
	job.Pages = m.pages
	if m.more = m.taken < len(m.dirty); !m.more {
		r.composeTerm(v, job)
		m.finish(v, job)
	}
	v.stats.BMWrites += uint64(len(job.Pages))
	m.running, m.job, m.begun = true, job, 0
	if !job.SyncData {
		m.begun = r.diskTimer(v)
	}
	r.emit(Action{Kind: WriteMeta, Volume: v.num, Job: job})
}

// jobPages bounds the bitmap pages of one MetaJob (8 MiB): the bitmap of a
// large device is written in parts, so that neither its copy in memory nor the
// wait of a transaction of the activity log grows with the device.
const jobPages = 2048

// begin takes what is wanted into the next job; it has the number next.
func (m *metaIO) begin(b *meta.Bitmap) {
	m.dirty, m.taken = m.dirty[:0], 0
	if m.wantBM || m.resetAL || m.relog {
		m.touched = false
		m.dirty = b.DirtyPages(m.dirty)
	}
	m.endsSB, m.endsReset, m.endsRelog = m.wantSB || m.resetAL || m.relog, m.resetAL, m.relog && !m.resetAL
	m.forceSync = m.forceSync || m.resetAL || m.relog
	m.wantSB, m.wantBM, m.resetAL, m.relog = false, false, false, false
	m.next++
}

// finish gives the last part of a job the superblock.
func (m *metaIO) finish(v *volume, job *MetaJob) {
	if len(m.dirty) > jobPages {
		m.dirty, m.pages = nil, nil // a rare event: do not keep the memory
	}
	if !m.endsSB {
		return
	}
	if m.sb == nil {
		m.sb = make([]byte, 4096)
	}
	v.fill(m.endsReset)
	v.sb.Encode(m.sb)
	job.Superblock, job.ResetAL = m.sb, m.endsReset
	if m.endsRelog {
		job.ResetAL, job.Marked = true, v.withoutLog()
	}
}

// transaction puts the pending changes of the activity log into job, with the
// bitmap pages of the extents that leave it: these first. Their data are stable.
func (r *Resource) transaction(v *volume, job *MetaJob) {
	m := &v.meta
	if m.al == nil {
		m.al = make([]byte, 4096)
	}
	ring, evicted := v.al.Transaction(m.al)
	job.ALBlock, job.ALRing = m.al, ring
	m.inAL = true
	v.stats.ALWrites++
	r.takePagesOf(v, job, evicted)
}

// JoinTransaction may be called with the job of the latest WriteMeta of volume num
// before the job is begun: the changes of the activity log that have become due since
// go with its transaction, instead of waiting for the next one.
func (r *Resource) JoinTransaction(num uint16, job *MetaJob) {
	v := r.volume(num)
	m := &v.meta
	if m.job != job || !m.inAL || v.al == nil || !v.hasDisk() {
		return // it carries no transaction, or is of a disk that is gone
	}
	r.takePagesOf(v, job, v.al.Join(m.al))
	job.Pages = m.pages
	if job.SyncData {
		m.begun = 0
	}
}

// takePagesOf puts the changed pages of the bitmap of extents into job.
func (r *Resource) takePagesOf(v *volume, job *MetaJob, evicted []meta.Extent) {
	for _, e := range evicted {
		first, last := e.Bits()
		if first < v.bitmap.Bits() {
			for p := meta.PageOf(first); p <= meta.PageOf(min(last, v.bitmap.Bits()-1)); p++ {
				if v.bitmap.PageDirty(p) {
					r.takePage(v, job, p)
				}
			}
		}
	}
}

// takePage copies a dirty page of the bitmap into job.
func (r *Resource) takePage(v *volume, job *MetaJob, p int) {
	m := &v.meta
	if v.bitmap.PageHasClears(p) {
		job.SyncData = true // I3
	}
	var buf []byte
	if n := len(m.pages); n < cap(m.pages) && m.pages[:n+1][n].Data != nil {
		buf = m.pages[:n+1][n].Data
	} else {
		buf = make([]byte, 4096)
	}
	v.bitmap.EncodePage(p, buf)
	v.bitmap.MarkClean(p)
	m.pages = append(m.pages, MetaPage{Page: p, Data: buf})
}

// setBits and clearBits are the only ways to change single bits: they have the
// change written some time later.
func (v *volume) setBits(first, last uint64) uint64 {
	n := v.bitmap.Set(first, last)
	v.meta.touched = v.meta.touched || n > 0
	return n
}

func (v *volume) clearBits(first, last uint64) {
	if v.bitmap.Clear(first, last) > 0 {
		v.meta.touched = true
	}
}

// setDirty marks what a range touches, clearClean what it covers.
func (v *volume) setDirty(s drbd.Sector, size uint32) uint64 {
	if v.bitmap == nil {
		return 0
	}
	if end := v.bitmap.Size(); s+drbd.Sector((size+511)>>9) > end { // begun before the peer has shrunk the volume
		if s >= end {
			return 0
		}
		size = uint32((end - s).Bytes())
	}
	return v.setBits(meta.BitsOutward(s, size))
}

func (v *volume) clearClean(s drbd.Sector, size uint32) {
	if v.bitmap == nil {
		return
	}
	if first, last, ok := v.bitmap.BitsInward(s, size); ok {
		v.clearBits(first, last)
	}
}

// lazyBitmap writes changed pages some time after the change: sets are covered
// by the activity log, and clearing late is always safe.
func (r *Resource) lazyBitmap() {
	for _, v := range r.vols {
		if v.meta.touched {
			v.meta.wantBM = true
		}
	}
}

func (r *Resource) metaDone(ev *Event) {
	v := r.volume(ev.Volume)
	m := &v.meta
	if !m.running {
		panic(fmt.Sprintf("replication: MetaDone for volume %d of %s, but no job runs", ev.Volume, r.cfg.Name))
	}
	hasTerm := m.job.Term != nil
	m.running, m.job = false, nil
	if ev.Err != nil {
		m.more = false
		// Failed metadata is never ignored: what is on disk is unknown now.
		r.diskError(v, fmt.Errorf("metadata: %w", ev.Err), true)
		r.maybeCloseDisk(v)
		return
	}
	if m.inAL {
		m.inAL = false
		if v.al != nil {
			v.al.Committed()
		}
	}
	if ev.TermErr != nil {
		r.termLost(v, ev.TermErr)
	} else if hasTerm {
		v.termSaved()
	}
	if !m.more {
		m.done = m.next - 1
	}
	r.runMetaWaiters(v)
	r.kick, r.kickPeer = true, true
	r.unpark()
	r.maybeCloseDisk(v)
}

// whenAllStored has every volume with a disk store something, and calls then
// once all of it is on disk: at once if there is no disk.
func (r *Resource) whenAllStored(store func(*volume) uint64, then func()) {
	left := 1
	one := func() {
		if left--; left == 0 {
			then()
		}
	}
	for _, v := range r.vols {
		if v.hasDisk() {
			left++
			v.whenStored(store(v), one)
		}
	}
	one()
}

// runMetaWaiters calls whoever waited for a job that is on disk now, or for a
// disk that is gone.
func (r *Resource) runMetaWaiters(v *volume) {
	waiters := v.meta.waiters
	v.meta.waiters = nil
	for i, w := range waiters {
		if v.meta.done >= w.job || !v.hasDisk() {
			w.f()
		} else {
			v.meta.waiters = append(v.meta.waiters, waiters[i])
		}
	}
}

// requestSync returns the number of an fdatasync that begins after now; it is
// reached when v.sync.done is at least that.
func (r *Resource) requestSync(v *volume) uint64 {
	s := &v.sync
	switch {
	case v.st.Disk < drbd.Failed || s.broken: // a Failed disk is still open
		return s.done
	case s.running:
		s.wanted = true
		return s.started + 1
	case !s.dirty:
		return s.done
	}
	r.startSync(v)
	return s.started
}

// failFlushes has the flushes that are under way answered with an error: writes
// that they were for may be lost. They must not succeed when a copy comes back.
// If there is none, the next one hears of it.
func (r *Resource) failFlushes(v *volume) {
	v.lost = true
	for _, id := range r.req.flushes {
		if q := r.req.get(id); q.v == v {
			q.err = ErrLostWrites
			v.lost = false
		}
	}
}

func (r *Resource) startSync(v *volume) {
	s := &v.sync
	s.started++
	s.running, s.wanted, s.dirty = true, false, false
	r.emit(Action{Kind: SyncData, Volume: v.num})
}

func (r *Resource) synced(ev *Event) {
	v := r.volume(ev.Volume)
	s := &v.sync
	s.running = false
	s.done = s.started
	if ev.Err != nil {
		// Earlier writes may be lost: a failed fdatasync is never retried.
		s.wanted, s.broken = false, true
		s.done = s.started + 1
		served := r.role == drbd.Primary && v.readsRemotely()
		r.diskError(v, fmt.Errorf("fdatasync: %w", ev.Err), true)
		v.strayed = v.strayed || served // what was answered may be on the peer's disk only
		r.peerMustKeep(ev.Err)
		if !v.readsRemotely() && r.role == drbd.Primary { // else the peer's copy serves
			r.failFlushes(v)
		}
	} else {
		if v.al != nil {
			v.al.Stable(s.done)
		}
		if s.wanted {
			r.startSync(v)
		}
	}
	r.progressFlushes()
	r.maybeCloseDisk(v)
}
