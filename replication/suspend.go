package replication

import "github.com/pollux-project/pollux/protocol/drbd"

// runSuspendIO has all I/O of clients wait until resume-io: what is under way
// ends on the disks, and what the peer has not got yet is answered later.
func (r *Resource) runSuspendIO(c *command) {
	r.setSusp(true, "suspend-io")
	r.finish(c, nil)
}

// runResumeIO ends every suspension, whoever asked for it. The operator vouches
// that a lost peer is down; with no data in reach what waits is answered with
// an error (drbd84-protocol, 4.2: susp, susp_nod and susp_fen).
func (r *Resource) runResumeIO(c *command) {
	r.setSusp(false, "resume-io")
	for _, v := range r.vols {
		if ns := v.st; ns.SuspNod {
			ns.SuspNod = false
			r.setState(v, ns, "resume-io")
		}
	}
	r.overrideTerm()
	if r.suspFen && !r.isUp() {
		r.thaw(false)
	}
	r.unpark()
	r.kick = true
	r.finish(c, nil)
}

// setSusp sets the user's suspension, a property of the resource, in the state
// of every volume.
func (r *Resource) setSusp(on bool, reason string) {
	r.susp = on
	for _, v := range r.vols {
		ns := v.st
		ns.Susp = on
		r.setState(v, ns, reason)
	}
}

// announcesPause: what the peer's operator sees of this node and follows from
// no packet else.
func announcesPause(os, ns drbd.State) bool {
	return os.AftrISP != ns.AftrISP || os.UserISP != ns.UserISP || os.Susp != ns.Susp
}
