package replication

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// socketsUp sends this node's half of the handshake, without waiting for the
// peer's (drbd84-protocol, 1.7).
func (r *Resource) socketsUp(ev *Event) {
	if r.conn != drbd.WFConnection { // it came up while it was given up
		r.emit(Action{Kind: Disconnect, Reason: drbd.Disconnecting})
		return
	}
	r.link = ev.Link
	r.peerPollux = ev.Link.Features&drbd.FeaturePollux != 0
	r.connGen++
	r.dataPos = 0
	r.setIntegrity(r.net.DataIntegrityAlg)
	r.lastReceived, r.lastData = r.now, r.now
	r.gotProtocol, r.stateSent, r.conflictTold, r.unknown = false, false, false, nil
	r.splitBrain = ""
	r.conn = drbd.WFReportParams // packets may go; the volumes still say WFConnection
	if !r.connectTerm() {
		return
	}
	r.sendPacket(drbd.DataSocket, drbd.CmdProtocol, 0, r.protocolPacket())
	r.stateTerm()
	for _, v := range r.vols {
		v.sendSeq, v.peerSeq = 0, 0
		v.discardMyData = ev.Link.DiscardMyData
		v.havePeerUUIDs, v.havePeerSizes, v.handshakeDone, v.forcedPeer = false, false, false, false
		v.growPending, v.grewBoth, v.peerSays = false, false, drbd.RoleUnknown
		v.tooSmall = ""
		r.sendPacket(drbd.DataSocket, drbd.CmdSyncParam89, v.num, r.syncParam(v))
		r.sendSizes(v, v.size)
		if v.hasDisk() {
			r.sendUUIDs(v, 0)
		}
		s := v.st
		s.Conn = drbd.WFConnection // what a kernel says here, too
		r.sendStateWord(v, s)
	}
	r.stateSent = true
	r.setConn(drbd.WFReportParams, "connected")
	r.setTimer(timerPing, Tick(r.net.PingIntMS))
	r.setTimer(timerHandshake, handshakeMS)
}

// giveUp ends a connection that cannot work until an operator has changed
// something: StandAlone, no retry.
func (r *Resource) giveUp(format string, args ...any) {
	r.lastError = fmt.Sprintf(format, args...)
	r.report("%s", r.lastError)
	r.wantConnect = false
	r.connectionLost(drbd.Disconnecting, errors.New(r.lastError))
}

// mirroredPolicy swaps discard-local and discard-remote (drbd84-protocol, B.6).
func mirroredPolicy(policy uint32) uint32 {
	const discardLocal, discardRemote = 5, 6
	switch policy {
	case discardLocal:
		return discardRemote
	case discardRemote:
		return discardLocal
	}
	return policy
}

func (r *Resource) receivedProtocol(h drbd.Header, b []byte) error {
	var p drbd.ProtocolPacket
	if err := p.Decode(b); err != nil {
		return err
	}
	if p.Protocol < drbd.ProtocolA || p.Protocol > drbd.ProtocolC {
		return &drbd.ProtocolError{Packet: h.Command, Field: "protocol", Got: p.Protocol, Want: "1, 2 or 3"}
	}
	if err := checkProtocol(p); err != nil {
		return err
	}
	letter := byte('A' + p.Protocol - drbd.ProtocolA)
	if h.Command == drbd.CmdProtocolUpdate {
		if err := r.checkUpdate(p); err != nil {
			return err
		}
		r.net.Protocol = letter
		r.net.AfterSB0P, r.net.AfterSB1P, r.net.AfterSB2P = mirroredPolicy(p.AfterSB0P), mirroredPolicy(p.AfterSB1P), mirroredPolicy(p.AfterSB2P)
		r.net.AllowTwoPrimaries = p.TwoPrimaries != 0
		return nil
	}
	if r.gotProtocol {
		return &drbd.ProtocolError{Packet: h.Command, Field: "command", Got: h.Command, Want: "P_PROTOCOL_UPDATE after the first one"}
	}
	const advice = "make both configurations alike, then run connect on both nodes"
	mine := r.protocolPacket()
	switch {
	case p.Protocol != mine.Protocol:
		r.giveUp("the peer is configured for protocol %c, this node for %c: %s", letter, r.net.Protocol, advice)
	case mirroredPolicy(p.AfterSB0P) != mine.AfterSB0P || mirroredPolicy(p.AfterSB1P) != mine.AfterSB1P || mirroredPolicy(p.AfterSB2P) != mine.AfterSB2P:
		r.giveUp("the peer has other after-sb policies: %s", advice)
	case p.ConnFlags&mine.ConnFlags&drbd.ConnDiscardMyData != 0:
		r.giveUp("both nodes were told to discard their data: run connect without --discard-my-data on the node whose data stay")
	case p.TwoPrimaries != mine.TwoPrimaries:
		r.giveUp("the peer differs in allow-two-primaries: %s", advice)
	case p.IntegrityAlg != mine.IntegrityAlg:
		r.giveUp("the peer's data-integrity-alg is %q, this node's %q: %s", p.IntegrityAlg, mine.IntegrityAlg, advice)
	}
	r.peerNet = p
	r.gotProtocol = true
	return nil
}

func (r *Resource) dispatchState(v *volume, h drbd.Header, b []byte) error {
	switch h.Command {
	case drbd.CmdSyncParam89:
		return r.receivedSyncParam(v, b)
	case drbd.CmdSizes:
		return r.receivedSizes(v, b)
	case drbd.CmdUUIDs:
		return r.receivedUUIDs(v, b)
	case drbd.CmdState:
		var p drbd.StatePacket
		if err := p.Decode(b); err != nil {
			return err
		}
		return r.receivedState(v, p.Word)
	case drbd.CmdSyncUUID:
		var p drbd.SyncUUID
		if err := p.Decode(b); err != nil {
			return err
		}
		return r.receivedSyncUUID(v, p.UUID)
	case drbd.CmdStateChgReq:
		return r.receivedStateRequest(v, b)
	default:
		return r.receivedStateReply(h.Command, b)
	}
}

func (r *Resource) receivedSyncParam(v *volume, b []byte) error {
	var p drbd.SyncParam89
	if err := p.Decode(b); err != nil {
		return err
	}
	if err := checkSyncParam(&p); err != nil {
		return err
	}
	if !v.handshakeDone {
		if p.VerifyAlg != r.net.VerifyAlg || p.CsumsAlg != r.net.CsumsAlg {
			r.giveUp("the peer has verify-alg %q and csums-alg %q, this node %q and %q: make both configurations alike, then run connect on both nodes",
				p.VerifyAlg, p.CsumsAlg, r.net.VerifyAlg, r.net.CsumsAlg)
			return nil
		}
	} else {
		for _, f := range [...]struct{ name, alg string }{{"verify_alg", p.VerifyAlg}, {"csums_alg", p.CsumsAlg}} {
			if _, err := drbd.NewDigest(f.alg); f.alg != "" && err != nil {
				return &drbd.ProtocolError{Packet: drbd.CmdSyncParam89, Field: f.name, Got: fmt.Sprintf("%q", f.alg), Want: "an algorithm that this node has"}
			}
		}
		r.net.VerifyAlg, r.net.CsumsAlg = p.VerifyAlg, p.CsumsAlg
	}
	v.opts.ResyncRateKiB = p.ResyncRate
	v.opts.CPlanAhead, v.opts.CDelayTarget = p.CPlanAhead, p.CDelayTarget
	v.opts.CFillTarget, v.opts.CMaxRateKiB = p.CFillTarget, p.CMaxRate
	r.repace(v)
	return nil
}

func (r *Resource) receivedSizes(v *volume, b []byte) error {
	var p drbd.Sizes
	if err := p.Decode(b); err != nil {
		return err
	}
	if p.MaxBioSize < 512 {
		return &drbd.ProtocolError{Packet: drbd.CmdSizes, Field: "max_bio_size", Got: p.MaxBioSize, Want: "512 or more"}
	}
	first := !v.havePeerSizes
	v.peerSizes, v.havePeerSizes = p, true
	if r.peerResizes(v, p) {
		return nil
	}
	in := SizeInput{
		PeerSize: p.DSize, PeerCurrent: p.CSize, Agreed: v.sb.LASize, MyUser: drbd.Sector(v.opts.SizeSectors),
		PeerUser: p.USize, Current: v.size, State: v.st,
	}
	if v.hasDisk() {
		in.MySize = v.usable
	} else {
		in.Agreed = 0
	}
	if v.sb.LASize == 0 {
		in.Current = 0 // never agreed with anybody: what we assumed binds nobody
	}
	size, err := AgreeSize(in)
	if err != nil {
		r.giveUp("volume %d: %v", v.num, err)
		return nil
	}
	if first && in.MySize != 0 && size != 0 && size < p.CSize {
		v.tooSmall = fmt.Sprintf("volume %d: this node's disk is too small: %d sectors, but the peer exports %d; enlarge the device here", v.num, size, p.CSize)
	}
	if !v.hasDisk() && v.handshakeDone && p.CSize == 0 && v.size != 0 {
		size = v.size // asked for what this node has; it will hear of a change
	}
	if size != 0 && size != v.size {
		v.grewBoth = v.hasGrown(size, p)
		if v.handshakeDone && size < v.size && r.role == drbd.Primary {
			r.giveUp("volume %d: the peer wants to shrink it to %d sectors while it is in use", v.num, size)
			return nil
		}
		r.resize(v, size)
	}
	if v.hasDisk() && v.sb.LASize != v.size {
		v.requireSuperblock() // durable before anything is written there
	}
	if v.handshakeDone && !first && p.CSize != v.size {
		r.sendSizes(v, v.size)
	}
	return nil
}

func (r *Resource) receivedUUIDs(v *volume, b []byte) error {
	var p drbd.UUIDs
	if err := p.Decode(b); err != nil {
		return err
	}
	v.havePeerUUIDs = true
	v.peerUUIDs = meta.UUIDs{Current: p.Current, Bitmap: p.Bitmap, History: p.History}
	v.peerBits, v.peerUUIDFlags = p.DirtyBits, p.Flags
	if v.owed {
		v.lost = v.lost || p.Flags&drbd.UUIDCrashedPrimary != 0
		v.owed = false
	}
	diskless := v.st.Disk < drbd.Inconsistent && v.st.Disk != drbd.Negotiating
	if r.role == drbd.Primary && diskless && v.exposed != 0 && v.exposed&^1 != p.Current&^1 {
		if v.handshakeDone && v.st.Pdsk == drbd.UpToDate || r.begunForUs(v) {
			v.exposed = p.Current // our only copy moved on to a new generation
			return nil
		}
		r.giveUp("volume %d: this diskless Primary used data of generation %016X, the peer has %016X: connect the node that holds the data; this one looks for its peer again by itself once its disk is attached, or it is demoted",
			v.num, v.exposed, p.Current)
		r.awaitsDisk = true
		return nil
	}
	if r.role == drbd.Primary && diskless {
		v.exposed = p.Current
	}
	if v.handshakeDone && p.Flags&drbd.UUIDSkipInitialSync != 0 && v.st.Conn == drbd.Connected &&
		v.hasDisk() && v.uuids.Current == meta.UUIDJustCreated && p.DirtyBits == 0 {
		v.bitmap.ClearAll()
		v.uuids = meta.UUIDs{Current: p.Current &^ 1}
		ns := v.st
		ns.Disk, ns.Pdsk = drbd.UpToDate, drbd.UpToDate
		r.setState(v, ns, "the initial sync is skipped, the peer's operator says")
		v.storeAll()
	}
	return nil
}

// begunForUs reports whether the peer has begun its generation for this diskless
// Primary, which lost the connection before it heard of that: the generation follows
// the one that was used here, and the peer, which has promised no term above this
// owner's, was written by nobody else since.
func (r *Resource) begunForUs(v *volume) bool {
	t := &r.terms
	return t.owned && !t.override && t.peer.Flags&drbd.TermKnown != 0 && t.peer.Promised <= t.term &&
		identity(v.peerUUIDs.Bitmap) == identity(v.exposed)
}

// receivedState is drbd84-protocol, 4.6; the numbers are its steps.
func (r *Resource) receivedState(v *volume, word uint32) error {
	ps := drbd.StateOf(word)
	if !ps.Valid() {
		return &drbd.ProtocolError{Packet: drbd.CmdState, Field: "state", Got: fmt.Sprintf("%#08x", word), Want: "a state of DRBD 8.4"}
	}
	if err := r.checkState(v, ps); err != nil {
		return err
	}
	if t := &r.terms; ps.Role == drbd.Primary && !t.accepts(t.peer.Term) {
		return r.refusal(t.peer.Term)
	}
	os := v.st
	if os.Pdsk == drbd.Failed && ps.Disk > drbd.Negotiating && os.Conn >= drbd.Connected {
		ps.Disk = drbd.Failed // said before the peer heard that its detach is granted: nothing is sent to that disk any more
	}
	real := ps.Disk
	if ps.Disk == drbd.Negotiating { // 1
		real = drbd.Consistent
		if v.peerUUIDFlags&drbd.UUIDInconsistent != 0 {
			real = drbd.Inconsistent
		}
	}
	if (os.Pdsk == drbd.Inconsistent || os.Pdsk == drbd.Consistent) && real == drbd.UpToDate &&
		os.Conn > drbd.Connected && os.Disk == drbd.UpToDate { // 3
		switch {
		case ps.Conn >= drbd.StartingSyncS && ps.Conn <= drbd.WFSyncUUID:
			real = drbd.Inconsistent
		case os.Conn >= drbd.SyncSource && ps.Conn == drbd.Connected:
			if isp := ps.AftrISP || ps.UserISP; isp != os.PeerISP {
				ns := os
				ns.PeerISP = isp
				r.setState(v, ns, "the peer's state")
			}
			v.rs.peerDone, v.rs.failed = true, 0 // what failed at first it has asked for again
			r.hurry()                            // bits of writes go only with their epoch's acknowledgement
			r.sourceMayFinish(v)
			return nil
		}
	}
	done := v.rs.peerDone && v.isSyncSource()
	failedSince := done && ps.Conn == drbd.Connected && real == drbd.Inconsistent // on-io-error pass_on
	if failedSince || done && real < drbd.Inconsistent {
		r.doneAndGone(v)
	}
	if !failedSince && (os.Conn == drbd.SyncSource || os.Conn == drbd.PausedSyncS) && ps.Conn == drbd.Connected && real == drbd.Inconsistent && v.rs.failed > 0 {
		ns := os // the target has given up on what could not be read here or written there
		ns.Conn = drbd.Connected
		r.setState(v, ns, fmt.Sprintf("resync finished, but the peer lacks %d blocks", v.bitmap.Weight()))
		return nil
	}
	if os.Conn == drbd.VerifyT && os.Disk == drbd.UpToDate && ps.Conn == drbd.Connected && real == drbd.UpToDate { // 4
		v.ov.over = true
		r.maybeTargetVerified(v)
		return nil
	}
	if os.Pdsk == drbd.UpToDate && real == drbd.Inconsistent && os.Conn == drbd.Connected && ps.Conn > drbd.SyncSource { // 5
		real = drbd.UpToDate
	}
	ns := os
	if ns.Conn == drbd.WFReportParams || failedSince { // 6
		ns.Conn = drbd.Connected
	}
	if ps.Conn == drbd.Ahead {
		ns.Conn = drbd.Behind
	}
	if v.havePeerUUIDs && ps.Disk >= drbd.Negotiating && os.Disk >= drbd.Negotiating { // 7
		consider := os.Conn < drbd.Connected ||
			os.Conn == drbd.Connected && (ps.Disk == drbd.Negotiating || os.Disk == drbd.Negotiating) ||
			v.forcedPeer ||
			os.Conn == drbd.Connected && ps.Conn >= drbd.StartingSyncS && ps.Conn <= drbd.WFBitMapT
		if consider {
			v.forcedPeer = false
			res := r.handshake(v, ps.Role, real)
			ns.Role = v.st.Role // a policy may have taken it from us
			if res.OK && os.Disk == drbd.Negotiating && res.Conn != drbd.WFBitMapT && r.isStale(v, v.uuids.Current) {
				res.OK = false
				res.Reason = "the disk lacks what this Primary has written to the peer since, and the peer's copy is not the source of a resync"
			}
			switch {
			case res.OK:
				ns.Conn = res.Conn
			case os.Disk == drbd.Negotiating:
				r.lastError = fmt.Sprintf("volume %d: %s", v.num, res.Reason)
				r.report("%s", r.lastError)
				r.failDisk(v, "attach refused: "+res.Reason)
				return nil
			case ps.Disk == drbd.Negotiating:
				r.report("volume %d: the peer's attach is refused: %s", v.num, res.Reason)
				r.sendUUIDs(v, 0) // by these it finds the same, and does not wait for ever
				r.sendStateWord(v, v.st)
				real, ns.Conn = drbd.Diskless, drbd.Connected
			default:
				if res.SplitBrain {
					r.splitBrain = res.Reason
				}
				r.giveUp("volume %d: %s", v.num, res.Reason)
				return nil
			}
		}
	}
	ns.Peer, ns.Pdsk = ps.Role, real // 8
	ns.PeerISP = ps.AftrISP || ps.UserISP
	if (ns.Conn == drbd.Connected || ns.Conn == drbd.WFBitMapS) && ns.Disk == drbd.Negotiating {
		if real < drbd.Negotiating && r.isStale(v, v.uuids.Current) { // there is no copy to resync it from any more
			r.lastError = fmt.Sprintf("volume %d: the disk lacks what this Primary has written to the peer since, and the peer's disk is gone", v.num)
			r.report("%s", r.lastError)
			r.failDisk(v, "attach refused: "+r.lastError)
			return nil
		}
		ns.Disk = v.negDisk
	}
	if r.suspFen && r.fencePending && real == drbd.Consistent && os.Conn < drbd.Connected { // 9
		return fmt.Errorf("the peer was restarted while I/O is frozen here: it is only Consistent, so the frozen writes cannot be sent again; fence or outdate it")
	}
	if os.Conn < drbd.Connected { // 10
		if code := r.check(v, ns, false); code < SSSuccess {
			r.giveUp("volume %d: %s", v.num, code.Text())
			return nil
		}
	}
	r.peerRole, r.peerFrozen = ps.Role, ps.SuspFen
	v.handshakeDone = true
	decided := false
	if ps.Conn >= drbd.Connected {
		ctx := r.context(v)
		decided = ctx.peerUndecided(os)
		v.peerSays = ps.Role
	}
	if os.Conn > drbd.WFReportParams && ns.Conn > drbd.Connected && os.Conn != ns.Conn &&
		ps.Conn <= drbd.Connected && ps.Disk != drbd.Negotiating { // 11
		r.sendUUIDs(v, 0)
		r.announceAndSet(v, ns, "the peer's state")
	} else {
		r.setState(v, ns, "the peer's state")
	}
	if decided && servesAlone(v.st) && v.uuids.Bitmap == 0 {
		r.newCurrent(v) // from now on a diskless peer writes here alone
	}
	if os.Conn == drbd.WFReportParams {
		r.handshakeOver()
	}
	if !r.isUp() {
		return nil
	}
	v.discardMyData = false // 12
	return nil
}

// handshakeOver is called when a volume has left WFReportParams.
func (r *Resource) handshakeOver() {
	for _, v := range r.vols {
		if !v.handshakeDone {
			return
		}
	}
	r.conn = drbd.Connected
	r.links++
	r.lastError = r.tooSmall()
	r.stopTimer(timerHandshake)
	if r.suspFen {
		r.thaw(true)
	}
	r.commandStep()
}

// tooSmall is why the peer is going to refuse this connection, if it is: the
// rule of its AgreeSize, which it does not tell us. A peer that has no good data
// follows our size.
func (r *Resource) tooSmall() string {
	for _, v := range r.vols {
		if v.tooSmall != "" && (v.st.Pdsk >= drbd.Outdated || v.st.Pdsk <= drbd.Diskless && r.peerRole == drbd.Primary) {
			return v.tooSmall
		}
	}
	return ""
}

// handshake compares the generations and draws the consequences that come
// before the next state (drbd84-protocol, 5.5).
func (r *Resource) handshake(v *volume, peerRole drbd.Role, peerDisk drbd.DiskState) HandshakeResult {
	res := DecideHandshake(HandshakeInput{
		CompareInput: CompareInput{
			Self: v.uuids, Peer: v.peerUUIDs, SelfCrashed: v.crashed, PeerCrashed: v.peerUUIDFlags&drbd.UUIDCrashedPrimary != 0,
			SelfPrimary: r.role == drbd.Primary, PeerPrimary: peerRole == drbd.Primary,
			ResolveConflicts: r.link.ResolveConflicts, Version: r.link.Version, Features: r.link.Features,
		},
		Resource: r.cfg.Name, DeviceOpen: r.opens > 0, Disk: v.st.Disk, NegotiatedDisk: v.negDisk, PeerDisk: peerDisk,
		SelfBits: v.sentBits, PeerBits: v.peerBits,
		AfterSB0P: r.net.AfterSB0P, AfterSB1P: r.net.AfterSB1P, AfterSB2P: r.net.AfterSB2P, RRConflict: r.net.RRConflict,
		AlwaysASBP: r.net.AlwaysASBP, DiscardMyData: v.discardMyData,
		PeerDiscardMyData: v.peerUUIDFlags&drbd.UUIDDiscardMyData != 0,
		DryRun:            r.link.DryRun, PeerDryRun: r.peerNet.ConnFlags&drbd.ConnDryRun != 0,
	})
	for _, h := range res.Handlers {
		r.emit(Action{Kind: RunHandler, Volume: v.num, Name: h})
	}
	if !res.OK {
		return res
	}
	r.growBoth(v, peerRole, &res)
	if res.Demote {
		r.setRole(drbd.Secondary, "after-sb policy")
	}
	if res.Compare.Self != v.uuids {
		v.uuids = res.Compare.Self
		v.requireSuperblock()
	}
	v.peerUUIDs = res.Compare.Peer
	if res.Full {
		r.setAllBits(v)
	}
	r.report("volume %d: %s", v.num, res.Reason)
	return res
}
