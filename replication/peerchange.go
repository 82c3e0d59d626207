package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
)

// receivedStateRequest is the peer asking for a change of one volume (4.5).
func (r *Resource) receivedStateRequest(v *volume, b []byte) error {
	var p drbd.ReqState
	if err := p.Decode(b); err != nil {
		return err
	}
	code := SSConcurrentStChg
	var ns drbd.State
	if !(r.link.ResolveConflicts && r.cmd != nil && r.cmd.phase == phaseAsk) {
		if ns, code = r.judge(v, p); ns.Conn == drbd.TearDown {
			code = SSNotSupported // of the connection as a whole only
		}
	}
	start := r.beginPacket(drbd.CmdStateChgReply, v.num, 4)
	r.arena = drbd.ReqStateReply{Code: int32(code)}.Append(r.arena)
	r.endPacket(drbd.MetaSocket, start, nil)
	if code != SSSuccess {
		return nil
	}
	switch ns.Conn {
	case drbd.StartingSyncS, drbd.StartingSyncT:
		r.startFullSync(v, ns.Conn)
	default:
		r.peerRole = ns.Peer
		r.setState(v, ns, "the peer asked for it")
	}
	return nil
}

// judge turns the peer's request into our point of view and applies the rules.
func (r *Resource) judge(v *volume, p drbd.ReqState) (drbd.State, StateCode) {
	if !mayAsk(p) {
		return v.st, SSNotSupported
	}
	mask, val := ConvertState(p.Mask), ConvertState(p.Val)
	if p.Mask&maskConn != 0 {
		mask |= maskConn
	}
	ns := drbd.StateOf(v.st.Word()&^mask | val&mask)
	if !ns.Valid() || !v.handshakeDone {
		return ns, SSNotSupported
	}
	ns.Disk = min(ns.Disk, v.st.Disk) // Outdated is better than Inconsistent: a word of the peer mends no disk
	if v.st.Disk == drbd.Negotiating {
		return ns, SSInTransientState
	}
	if ns.Conn == drbd.VerifyT && p.Mask&maskConn != 0 {
		if code := r.mayVerify(v, 0, drbd.VerifyT); code < SSSuccess {
			return ns, code
		}
	}
	ctx := r.context(v)
	done := Sanitize(ctx, v.st, ns)
	if p.Mask&maskConn != 0 && ns.Conn > drbd.Connected && done.Conn != ns.Conn {
		if v.st.Disk < drbd.Inconsistent { // a resync that cannot begin here
			return ns, SSNoLocalDisk
		}
		return ns, SSNoRemoteDisk
	}
	return ns, CheckState(ctx, v.st, done, false, false)
}

// receivedConnRequest is a request for the connection as a whole: a graceful
// disconnect, or the answer to ours.
func (r *Resource) receivedConnRequest(cmd drbd.Command, b []byte) error {
	if cmd == drbd.CmdConnStChgReply {
		return r.receivedStateReply(cmd, b)
	}
	var p drbd.ReqState
	if err := p.Decode(b); err != nil {
		return err
	}
	code := SSSuccess
	switch {
	case r.conn != drbd.Connected:
		code = SSInTransientState
	case r.link.ResolveConflicts && r.cmd != nil && r.cmd.phase == phaseAsk:
		code = SSConcurrentStChg
	case drbd.StateOf(ConvertState(p.Val)).Conn != drbd.TearDown:
		code = SSNotSupported
	}
	for _, v := range r.vols {
		if code != SSSuccess {
			break
		}
		if _, c := r.judge(v, p); c < SSSuccess && !(c == SSLowerThanOutdated && v.st.Disk < drbd.Outdated) {
			code = c
		}
	}
	start := r.beginPacket(drbd.CmdConnStChgReply, 0, 4)
	r.arena = drbd.ReqStateReply{Code: int32(code)}.Append(r.arena)
	r.endPacket(drbd.MetaSocket, start, nil)
	if code != SSSuccess {
		return nil
	}
	for _, v := range r.vols {
		ns, _ := r.judge(v, p)
		if v.st.Disk < drbd.Outdated || ns.Disk > v.st.Disk {
			ns.Disk = v.st.Disk
		}
		if ns.Disk != v.st.Disk || ns.Pdsk != v.st.Pdsk {
			ns.Conn = drbd.TearDown
			r.setState(v, ns, "the peer disconnects")
		}
	}
	r.tearingDown = true
	limit := Tick(r.net.PingTimeoutMS)
	if r.role == drbd.Primary && r.sharesTerm() {
		limit += leaverMS
	}
	r.setTimer(timerHandshake, limit)
	return nil
}
