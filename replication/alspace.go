package replication

import "github.com/pollux-project/pollux/replication/meta"

// letGo drops what q holds of the activity log.
func (v *volume) letGo(q *request) {
	first, last := meta.ExtentsOf(q.sector, q.size)
	v.al.EndWritten(first, last, q.syncSeq)
}

// syncForLog begins the fdatasync that extents wait for which are to leave the
// log (I3). There is none if syncs came in time (keepSpare).
func (r *Resource) syncForLog(v *volume) {
	if v.al.WaitsFor() > v.sync.started {
		r.requestSync(v)
	}
}

// keepSpare is called when n extents were given slots of the log. A cold write
// should not wait until both disks are synced. So once half of the slots have been
// used, both are synced each time that a quarter of the slots was given away: the
// peer then acknowledges the epochs that hold extents, and what leaves the log next
// was made stable meanwhile. With few slots that are all hot it never happens.
func (r *Resource) keepSpare(v *volume, n int) {
	slots := v.al.Slots()
	if v.taken += n; v.al.Unused() > slots/2 || v.taken < max(slots/4, 16) {
		return
	}
	v.taken = 0
	r.hurry()
	r.requestSync(v)
}

// passesStarved reports whether q need not stand behind a request that could not
// have its extents: those of q are hot, so that it takes no slot from it.
// There is a limit, as each keeps its extents for a while.
func (v *volume) passesStarved(first, last meta.Extent) bool {
	if v.passed >= maxPassed || !v.al.Ready(first, last) {
		return false
	}
	v.passed++
	return true
}

// maxPassed bounds how many writes to hot extents begin before one that waits
// for slots: more than are under way while both disks are synced.
const maxPassed = 1024
