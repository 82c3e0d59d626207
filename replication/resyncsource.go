package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
)

// serveResync reads a block for the target, or holds the request while the
// application needs the disk: c-min-rate is what is left to the resync then. A
// target that is Primary is never held up.
func (r *Resource) serveResync(p *peerRequest) {
	v := p.v
	if !v.rs.running || !v.rs.source || r.peerRole == drbd.Primary {
		r.beginPeer(p)
		return
	}
	v.rs.held = append(v.rs.held, p.id)
	r.serveHeld(v)
}

// serveHeld goes on with the requests that were held, as far as the rate allows.
func (r *Resource) serveHeld(v *volume) {
	s := &v.rs
	if !s.running || !s.source {
		return
	}
	pace := r.pace(v)
	n := 0
	for n < len(s.held) && (!pace.isBusy() || pace.tokens > 0) {
		p := r.peer.get(s.held[n])
		pace.asked(p.size)
		r.beginPeer(p)
		n++
	}
	if n > 0 {
		s.held = append(s.held[:0], s.held[n:]...)
	}
	if len(s.held) > 0 {
		r.resyncTimer(pace.wait())
	}
}
