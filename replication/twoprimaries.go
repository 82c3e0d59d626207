package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// bothPrimary reports whether both nodes are Primary now, for any volume: the
// peer states its role for each.
func (r *Resource) bothPrimary() bool {
	if r.role != drbd.Primary {
		return false
	}
	for _, v := range r.vols {
		if v.st.Peer == drbd.Primary {
			return true
		}
	}
	return r.peerRole == drbd.Primary
}

// checkTwoPrimaries is why net cannot be taken over, or nil. The numbers are
// DRBD's ERR_NOT_PROTO_C and ERR_NEED_ALLOW_TWO_PRI.
func (r *Resource) checkTwoPrimaries(net *NetOptions) error {
	switch {
	case net.AllowTwoPrimaries && net.Protocol != 'C':
		return &RequestError{Code: 139, Text: fmt.Sprintf("%s: Failure: (139) Protocol C required: allow-two-primaries does not go with protocol %c", r.cfg.Name, net.Protocol)}
	case !net.AllowTwoPrimaries && r.bothPrimary():
		return &RequestError{Code: 164, Text: fmt.Sprintf(
			"%s: Failure: (164) Can not clear allow_two_primaries as long as there a primaries on both sides: run `polluxadm secondary %[1]s` on one node first", r.cfg.Name)}
	}
	return nil
}

// checkUpdate refuses options of the peer that it must not send.
func (r *Resource) checkUpdate(p drbd.ProtocolPacket) error {
	switch two := p.TwoPrimaries != 0; {
	case two && p.Protocol != drbd.ProtocolC:
		return &drbd.ProtocolError{Packet: drbd.CmdProtocolUpdate, Field: "protocol", Got: p.Protocol, Want: "C with allow-two-primaries"}
	case !two && r.bothPrimary():
		return &drbd.ProtocolError{Packet: drbd.CmdProtocolUpdate, Field: "two_primaries", Got: 0, Want: "1 as long as both nodes are Primary"}
	}
	return nil
}

// repeatUnanswered has every write begin anew that no client was answered for
// when I/O froze: the peer was Primary and froze, too, so neither has begun a
// new generation and neither copy is the newer one. After both nodes have
// repeated theirs the copies are equal. What was answered is on both: the peer
// has acknowledged it, and made it durable before it connected again.
func (r *Resource) repeatUnanswered() {
	for _, c := range r.req.chunks {
		for i := range c {
			if q := &c[i]; q.used && q.changesData() && q.is(isActive) && !q.is(completed) && q.v.st.Conn == drbd.Connected {
				q.set(mustRepeat | isTainted)
			}
		}
	}
}
