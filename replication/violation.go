package replication

import (
	"fmt"
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// What is refused of a peer's packets besides what their decoding refuses and
// what only their own handling can tell. Each refusal is a *drbd.ProtocolError:
// packet, field, what was wanted, what came.

// reasonOf is the state that a kernel goes to for a packet that it does not take
// (drbd84-protocol, 4.7 and 10.6).
func reasonOf(ev *Event) drbd.ConnState {
	switch {
	case ev.Socket == drbd.DataSocket, ev.Header.Command == drbd.CmdBarrierAck:
		return drbd.ProtocolFailure
	case ev.Header.Command == drbd.CmdInitialMeta:
		return drbd.Disconnecting // unknown there once the connection stands: no retry
	}
	return drbd.NetworkFailure
}

// featureOf is the feature without which a packet may not come, or 0.
func featureOf(cmd drbd.Command) (flag uint32, name string) {
	switch cmd { // the others belong to no feature
	case drbd.CmdTrim:
		return drbd.FeatureTrim, "TRIM"
	case drbd.CmdZeroes:
		return drbd.FeatureWZeroes, "WZEROES"
	case drbd.CmdRSThinReq, drbd.CmdRSDeallocated:
		return drbd.FeatureThinResync, "THIN_RESYNC"
	}
	return 0, ""
}

// checkRange is the bound of every range that the peer names.
func (v *volume) checkRange(cmd drbd.Command, s drbd.Sector, size uint32) error {
	if size == 0 || size%512 != 0 {
		return &drbd.ProtocolError{Packet: cmd, Field: "blksize", Got: size, Want: "a multiple of 512"}
	}
	end := v.size
	if v.bitmap != nil {
		end = min(end, v.bitmap.Size()) // smaller while the volume shrinks
	}
	if n := drbd.Sector(size >> 9); s > end || n > end-s {
		return &drbd.ProtocolError{Packet: cmd, Field: "sector", Got: s, Want: fmt.Sprintf("a range of %d sectors that ends at %d at most", n, end)}
	}
	return nil
}

// maxUnknownVolumes bounds what is said, per connection, of volumes that only
// the peer has.
const maxUnknownVolumes = 16

// unknownVolume says once that the peer has a volume which this node lacks.
func (r *Resource) unknownVolume(num uint16) {
	if slices.Contains(r.unknown, num) || len(r.unknown) == maxUnknownVolumes {
		return
	}
	r.unknown = append(r.unknown, num)
	r.report("the peer has volume %d, which is not configured here; ignored", num)
}

// maxPolicy is the largest code of an after-sb policy (drbd84-protocol, B.6).
const maxPolicy = 10

// checkProtocol refuses values that no configuration has.
func checkProtocol(p drbd.ProtocolPacket) error {
	for _, f := range [...]struct {
		name  string
		value uint32
	}{{"after_sb_0p", p.AfterSB0P}, {"after_sb_1p", p.AfterSB1P}, {"after_sb_2p", p.AfterSB2P}} {
		if f.value > maxPolicy {
			return &drbd.ProtocolError{Packet: drbd.CmdProtocol, Field: f.name, Got: f.value, Want: fmt.Sprintf("at most %d", maxPolicy)}
		}
	}
	if p.TwoPrimaries > 1 {
		return &drbd.ProtocolError{Packet: drbd.CmdProtocol, Field: "two_primaries", Got: p.TwoPrimaries, Want: "0 or 1"}
	}
	return nil
}

// checkSyncParam refuses options that no configuration has: the plan of the rate
// controller is as long as c_plan_ahead says. Source: drbd84-protocol, appendix C.
func checkSyncParam(p *drbd.SyncParam89) error {
	for _, f := range [...]struct {
		name       string
		value, max uint32
	}{
		{"resync_rate", p.ResyncRate, 8388608},
		{"c_plan_ahead", p.CPlanAhead, 300},
		{"c_delay_target", p.CDelayTarget, 100},
		{"c_fill_target", p.CFillTarget, 1048576},
		{"c_max_rate", p.CMaxRate, 4194304},
	} {
		if f.value > f.max {
			return &drbd.ProtocolError{Packet: drbd.CmdSyncParam89, Field: f.name, Got: f.value, Want: fmt.Sprintf("at most %d", f.max)}
		}
	}
	return nil
}

// checkState refuses what no node says of itself, a first word without what the
// generations are compared by, and a second Primary: a promotion asks first.
func (r *Resource) checkState(v *volume, ps drbd.State) error {
	bad := func(field string, got, want any) error {
		return &drbd.ProtocolError{Packet: drbd.CmdState, Field: field, Got: got, Want: want}
	}
	switch {
	case ps.Role == drbd.RoleUnknown:
		return bad("role", ps.Role, "Primary or Secondary")
	case ps.Disk == drbd.DUnknown:
		return bad("disk", ps.Disk, "the state of the peer's own disk")
	case v.handshakeDone && ps.Role == drbd.Primary && r.role == drbd.Primary && !r.net.AllowTwoPrimaries:
		return bad("role", ps.Role, "Secondary, as this node is Primary")
	case v.handshakeDone:
	case !v.havePeerSizes:
		return bad("command", drbd.CmdState, "P_SIZES first")
	case ps.Disk >= drbd.Negotiating && !v.havePeerUUIDs:
		return bad("disk", ps.Disk, "none: no P_UUIDS came before")
	}
	return nil
}

// mayAsk reports whether a node asks for such a change at all: of its own role and
// disk, of its peer's disk only that it be outdated, of a resync, a verify or the
// end of the connection (drbd84-protocol, 4.5). A kernel would try whatever it is
// asked for, and detach its own disk for instance.
func mayAsk(p drbd.ReqState) bool {
	const maskRole = 3
	s := drbd.StateOf(p.Val)
	switch {
	case p.Mask&^uint32(maskRole|maskConn|maskDisk|maskPdsk) != 0:
		return false
	case p.Mask&maskRole != 0 && s.Role != drbd.Primary && s.Role != drbd.Secondary:
		return false
	case p.Mask&maskPdsk != 0 && s.Pdsk != drbd.Outdated:
		return false
	case p.Mask&maskConn == 0:
		return true
	}
	switch s.Conn { //nolint:exhaustive // the others are no request
	case drbd.Disconnecting, drbd.StartingSyncS, drbd.StartingSyncT, drbd.VerifyS:
		return true
	}
	return false
}

// handle is a block_id as an error shows it.
type handle uint64

func (h handle) String() string { return fmt.Sprintf("%#x", uint64(h)) }
