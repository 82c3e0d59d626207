package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// mustHold panics if an invariant is broken: a bug of ours must stop the
// process, not the data. The cheap ones are checked always, those that look at
// every request only with the build tag invariants.
func (r *Resource) mustHold() {
	if r.req.used < 0 || r.peer.used < 0 {
		panic(fmt.Sprintf("replication: %s: request table count is negative: %d, %d", r.cfg.Name, r.req.used, r.peer.used))
	}
	if r.opens < 0 {
		panic(fmt.Sprintf("replication: %s: closed more often than opened", r.cfg.Name))
	}
	for _, v := range r.vols {
		if v.local < 0 {
			panic(fmt.Sprintf("replication: %s/%d: local I/O count is negative", r.cfg.Name, v.num))
		}
		if v.st.Role == drbd.Primary && v.st.Peer == drbd.Primary && !r.net.AllowTwoPrimaries {
			panic(fmt.Sprintf("replication: %s/%d: two Primaries: %v", r.cfg.Name, v.num, v.st))
		}
		if v.ov.running != isVerify(v.st.Conn) {
			panic(fmt.Sprintf("replication: %s/%d: online verify runs: %v, in state %v", r.cfg.Name, v.num, v.ov.running, v.st))
		}
		if v.hasDisk() && v.bitmap == nil {
			panic(fmt.Sprintf("replication: %s/%d: disk %v without a bitmap", r.cfg.Name, v.num, v.st.Disk))
		}
	}
	r.mustHoldAll()
}
