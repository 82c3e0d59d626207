package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A failover manager stops its VM when it cannot prove any more that this node is
// its place. Until the VM is dead its I/O waits, reads included: freeze. And in
// case that the manager is dead itself, it has told how long its lease lasts. After
// that the owner of a term whose peer's copy counts reads only as long as it hears
// of the peer: a node that was stopped for a while, and wakes up with its connection
// seemingly alive, must not show data that another owner has changed since. Nor may it
// answer a write under protocol A or B that the peer has not said it has. A lease that
// is had anew changes nothing: another owner may have come in between. The peer's word
// does, or a new term.

// freeze is CmdFreeze and CmdThaw; a node that is not Primary has nothing to freeze.
func (r *Resource) freeze(on bool) error {
	t := &r.terms
	if !t.inUse() {
		return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: no terms are in use: `polluxadm suspend-io %[1]s` has all I/O wait", r.cfg.Name)}
	}
	t.held = on && r.role == drbd.Primary
	for _, v := range r.vols {
		r.termState(v)
	}
	return nil
}

// setLease is CmdLease: the lease lasts so long from now on; 0: none is known.
func (r *Resource) setLease(ms Tick) {
	t := &r.terms
	t.lease = 0
	r.stopTimer(timerLease)
	if ms > 0 {
		t.lease = r.now + ms
		r.setTimer(timerLease, ms)
	}
}

func (r *Resource) leaseIsOver() bool { return r.terms.lease != 0 && r.now >= r.terms.lease }

// leaseSilenceMS is for how long the peer may have said nothing after the lease has
// ended. Our own: less than any node waits before it takes over.
const leaseSilenceMS = 1000

// isOrphan reports whether this Primary waits for a manager that is gone: its lease has
// ended, its peer is out of reach, and nobody has said that it may go on alone.
func (r *Resource) isOrphan() bool {
	return r.leaseIsOver() && r.role == drbd.Primary && r.sharesTerm() && !r.isUp()
}

// needsPeer reports whether lookForPeer is due.
func (r *Resource) needsPeer() bool { return r.leaseIsOver() || r.terms.silent }

// lookForPeer: the lease is over, or was, so a peer that has said nothing for a while is
// asked, and I/O waits for its answer, or for the end of the connection.
func (r *Resource) lookForPeer() {
	t := &r.terms
	silent := r.role == drbd.Primary && r.sharesTerm() && r.conn >= drbd.Connected && r.now-r.lastReceived > leaseSilenceMS
	if silent == t.silent {
		return
	}
	if t.silent = silent; !silent {
		r.wake = true
	} else if r.timers[timerPong] == 0 {
		r.ping()
	}
}
