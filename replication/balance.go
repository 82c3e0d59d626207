package replication

import "github.com/pollux-project/pollux/protocol/drbd"

// congestedIOs is from how many I/Os under way on a local disk on it counts as
// congested (read-balancing when-congested-remote): as many as the engine has
// workers for it. The kernel asks the block device, which no longer tells.
const congestedIOs = 32

// balances reports whether the peer's copy serves the read q although this
// node's is good (read-balancing). Both are UpToDate, and no write of the range is
// under way: until it ends the two copies may differ, and two reads, one of each,
// could give the new data first and the old ones then. For the same reason a
// write waits for a read that is with the peer, and while one waits no read is
// sent there. To a kernel peer nothing is
// sent under protocol A and B: it does not have a read wait for a write of the
// range that it has received and not yet written.
func (r *Resource) balances(q *request) bool {
	v := q.v
	if v.st.Disk != drbd.UpToDate || v.st.Pdsk != drbd.UpToDate || v.st.Conn != drbd.Connected ||
		r.peerRole == drbd.Primary || q.is(localOnly) || len(r.req.waiting) > 0 || !r.peerPollux && r.net.Protocol != 'C' ||
		v.active.busy(q.sector, q.end(), clientWrite|peerWrite|resyncWrite) {
		return false
	}
	switch p := v.opts.ReadBalancing; p {
	case PreferRemote:
		return true
	case RoundRobin:
		v.remoteTurn = !v.remoteTurn
		return v.remoteTurn
	case LeastPending:
		// Both disks do the writes; what counts is who has more reads to do.
		return v.local > r.req.reads+len(v.active.r)
	case WhenCongestedRemote:
		return v.local >= congestedIOs
	case Striping32K, Striping64K, Striping128K, Striping256K, Striping512K, Striping1M:
		const sectorsOf32K = 6 // as a shift
		return q.sector>>(sectorsOf32K+uint(p-Striping32K))&1 == 1
	default:
		return false
	}
}

// readBalanced has the peer serve q.
func (r *Resource) readBalanced(q *request) {
	q.v.active.insert(q.sector, q.end(), balancedRead, uint32(q.id))
	q.set(isBalanced)
	r.readRemote(q)
}

// balancedEnded: q is not with the peer any more, whatever came of it.
func (r *Resource) balancedEnded(q *request) {
	if !q.is(isBalanced) {
		return
	}
	q.clear(isBalanced)
	q.v.active.remove(balancedRead, uint32(q.id))
	if len(r.req.waiting) > 0 {
		r.kick = true
	}
}
