//go:build invariants

package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// mustHoldAll checks after every Step what costs a look at every request: that
// the tables, lists, ranges, epochs, log and bitmap agree. make sim, make crash
// and the golden dialogues run with it; a production build has none of it.
func (r *Resource) mustHoldAll() {
	const few = 64
	if n := r.req.used + r.peer.used; n > few && n%few != 0 {
		return // a full table is looked at now and then
	}
	r.requestsMustHold()
	r.epochsMustHold()
	for _, v := range r.vols {
		r.volumeMustHold(v)
	}
}

func (r *Resource) broken(format string, args ...any) {
	panic(fmt.Sprintf("replication: %s: %s", r.cfg.Name, fmt.Sprintf(format, args...)))
}

// used are the requests of clients under way.
func (r *Resource) used() (all []*request) {
	for _, c := range r.req.chunks {
		for i := range c {
			if c[i].used {
				all = append(all, &c[i])
			}
		}
	}
	return all
}

// usedPeer are those of the peer.
func (r *Resource) usedPeer() (all []*peerRequest) {
	for _, c := range r.peer.chunks {
		for i := range c {
			if c[i].used {
				all = append(all, &c[i])
			}
		}
	}
	return all
}

// requestsMustHold: each request stands where its flags say, and every one that
// is not answered has something that it waits for.
func (r *Resource) requestsMustHold() {
	listed := map[RequestID]bool{}
	for _, list := range [][]RequestID{r.req.waiting, r.req.flushes} {
		for _, id := range list {
			if listed[id] {
				r.broken("request %d stands in two lists", id)
			}
			listed[id] = true
		}
	}
	for _, id := range r.req.parked {
		listed[id] = true
	}
	all, inTransfer := r.used(), 0
	if len(all) != r.req.used {
		r.broken("%d requests are in use, %d are counted", len(all), r.req.used)
	}
	for _, q := range all {
		if q.is(inLog) && q.changesData() {
			inTransfer++
		}
		if has := q.v.active.has(clientWrite, uint32(q.id)); q.is(isActive) != has {
			r.broken("request %d: active %v, its range stands among the active ones: %v", q.id, q.is(isActive), has)
		}
		if !q.is(localPending|netPending|inLog|isPostponed|hanging) && !listed[q.id] {
			r.broken("request %d (flags %#x) waits for nothing", q.id, q.flags)
		}
	}
	r.lossMustHold(all)
	if n := r.req.log.len(); n != inTransfer {
		r.broken("the transfer log has %d writes, %d say that they are in it", n, inTransfer)
	}
}

// lossMustHold: what may be lost is counted, and within its bound.
func (r *Resource) lossMustHold(all []*request) {
	risk, held := uint64(0), 0
	for _, q := range all {
		if q.is(atRisk) {
			risk += uint64(q.size)
		}
		if q.is(isHeld) {
			held++
		}
		if q.is(atRisk) && !q.is(inLog) || q.is(isHeld) && !q.is(inLog) {
			r.broken("request %d (flags %#x) counts as at risk or held, and is not in the transfer log", q.id, q.flags)
		}
	}
	if risk != r.loss.bytes || held != r.loss.held {
		r.broken("%d bytes are at risk and %d writes held, %d and %d are counted", risk, held, r.loss.bytes, r.loss.held)
	}
}

// epochsMustHold: every write of the transfer log belongs to an epoch that the
// peer has not acknowledged, and the receiver's epochs count what is under way.
func (r *Resource) epochsMustHold() {
	sent := uint32(0)
	for i := range r.send_.unacked.len() {
		sent += r.send_.unacked.at(i).count
	}
	if n := r.req.log.len(); int(sent) != n {
		r.broken("the unacknowledged epochs have %d writes, the transfer log %d", sent, n)
	}
	if !r.isUp() {
		return
	}
	active, writes := uint32(0), r.recv.late
	for i := range r.recv.q.len() {
		active += r.recv.q.at(i).active
	}
	for _, p := range r.usedPeer() {
		if p.kind == peerWrite && !p.hanging && p.conn == r.connGen {
			writes++
		}
	}
	if active != writes {
		r.broken("the peer's epochs have %d writes under way, the table %d", active, writes)
	}
}

// volumeMustHold: state, metadata and the ranges in use are consistent.
func (r *Resource) volumeMustHold(v *volume) {
	ctx := r.context(v)
	if s := Sanitize(ctx, v.st, v.st); s != v.st && v.st.Disk != drbd.Failed {
		r.broken("volume %d: %v is no state to stay in: %v", v.num, v.st, s)
	}
	if v.meta.done >= v.meta.next && v.meta.next != 0 {
		r.broken("volume %d: metadata job %d is done, %d was not built", v.num, v.meta.done, v.meta.next)
	}
	for i := range v.active.r {
		for j := range v.active.r[:i] {
			const writes = peerWrite | resyncWrite
			a, b := &v.active.r[i], &v.active.r[j]
			if a.start < b.end && b.start < a.end && a.kind&writes != 0 && b.kind&writes != 0 {
				r.broken("volume %d: overlapping writes of the peer are in flight: %v, %v", v.num, *a, *b)
			}
		}
	}
	if !v.hasDisk() {
		return
	}
	if v.bitmap.Bits() > 0 {
		if n := v.bitmap.Count(0, v.bitmap.Bits()-1); n != v.bitmap.Weight() {
			r.broken("volume %d: %d bits are set, the bitmap counts %d", v.num, n, v.bitmap.Weight())
		}
	}
	r.logMustHold(v)
}

// logMustHold: the activity log holds exactly the extents that requests hold.
func (r *Resource) logMustHold(v *volume) {
	held := map[meta.Extent]bool{}
	hold := func(s drbd.Sector, size uint32) {
		first, last := meta.ExtentsOf(s, size)
		for e := first; e <= last; e++ {
			held[e] = true
		}
	}
	for _, q := range r.used() {
		if q.v == v && q.is(alHeld) {
			hold(q.sector, q.size)
		}
	}
	for _, p := range r.usedPeer() {
		if p.v == v && p.alHeld {
			hold(p.sector, p.size)
		}
	}
	if n := v.al.InUse(); n != len(held) {
		r.broken("volume %d: the activity log has %d extents in use, requests hold %d", v.num, n, len(held))
	}
}

func (s *rangeSet) has(kind rangeKind, id uint32) bool {
	for _, a := range s.r {
		if a.id == id && a.kind == kind {
			return true
		}
	}
	return false
}
