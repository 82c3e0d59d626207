package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// disk-timeout: a disk that does not answer is given up, and what was asked of
// it goes on with the peer. The I/O itself cannot be taken back. So until it has
// really ended, the memory that it reads or writes is nobody else's (Complete
// with Keep, and Free only then), the slot that its LocalDone names is not used
// again, and the disk stays Failed: it cannot be attached, where a late write
// would hit blocks that a resync has brought up to date.

// diskTimer stamps an I/O that begins now, and sees to it that its age is
// looked at. It returns 0 if v has no disk-timeout.
func (r *Resource) diskTimer(v *volume) Tick {
	limit := Tick(v.opts.DiskTimeoutMS)
	if limit == 0 {
		return 0
	}
	r.setTimerOnce(timerDisk, limit)
	return r.now
}

// checkDisks fails each disk that has left an I/O unanswered for disk-timeout.
func (r *Resource) checkDisks() {
	var next Tick
	for _, v := range r.vols {
		limit := Tick(v.opts.DiskTimeoutMS)
		oldest := r.oldestIO(v)
		if limit == 0 || oldest == 0 {
			continue
		}
		if r.now-oldest >= limit {
			r.diskHangs(v, fmt.Errorf("no answer for %d ms (disk-timeout)", r.now-oldest))
			continue
		}
		if at := oldest + limit; next == 0 || at < next {
			next = at
		}
	}
	if next != 0 {
		r.setTimer(timerDisk, next-r.now)
	}
}

// oldestIO is when the oldest I/O under way on v began, 0 if there is none. Not
// counted is a metadata job that first makes the data durable: a page cache may
// take its time for that.
func (r *Resource) oldestIO(v *volume) (oldest Tick) {
	look := func(t Tick) {
		if t != 0 && (oldest == 0 || t < oldest) {
			oldest = t
		}
	}
	if v.st.Disk <= drbd.Failed && v.st.Disk != drbd.Negotiating {
		return 0
	}
	if v.meta.running {
		look(v.meta.begun)
	}
	if v.local == 0 {
		return oldest
	}
	for _, c := range r.req.chunks {
		for i := range c {
			if q := &c[i]; q.used && q.v == v && q.is(localPending) {
				look(q.begun)
			}
		}
	}
	for _, c := range r.peer.chunks {
		for i := range c {
			if p := &c[i]; p.used && p.v == v && !p.hanging {
				look(p.begun)
			}
		}
	}
	return oldest
}

// diskHangs gives v's disk up without waiting for it.
func (r *Resource) diskHangs(v *volume, err error) {
	r.diskError(v, err, true)
	for _, c := range r.req.chunks {
		for i := range c {
			if q := &c[i]; q.used && q.v == v && q.is(localPending) {
				r.abandon(q, err)
			}
		}
	}
	for _, c := range r.peer.chunks {
		for i := range c {
			if p := &c[i]; p.used && p.v == v && p.begun != 0 && !p.hanging {
				p.hanging = true
				v.local++ // it is still under way, whatever the peer hears
				r.peerEnded(p, nil, err)
			}
		}
	}
}

// abandon has q go on as if its local I/O had failed.
func (r *Resource) abandon(q *request, err error) {
	v := q.v
	q.clear(localPending)
	q.set(hanging | moved)
	v.setDirty(q.sector, q.size)
	if q.op == OpRead {
		q.data = make([]byte, q.size)
		if v.readsRemotely() {
			r.readRemote(q)
			return
		}
	}
	q.err = err
	r.progress(q)
}

// hangEnded: an I/O of q that was given up has ended after all.
func (r *Resource) hangEnded(q *request) {
	v := q.v
	q.clear(hanging)
	v.local--
	v.sync.dirty = true
	if q.is(isZombie) {
		r.req.release(q)
		r.kickCommand = r.cmd != nil
	}
	r.maybeCloseDisk(v)
}

// peerHangEnded is hangEnded for the peer's requests: the peer has had its answer.
func (r *Resource) peerHangEnded(p *peerRequest, data []byte) {
	v := p.v
	v.local--
	v.sync.dirty = true
	if data != nil {
		p.data = data
	}
	r.freeData(p.data)
	p.used, p.v, p.data = false, nil, nil
	r.peer.free = append(r.peer.free, p.id)
	r.maybeCloseDisk(v)
}
