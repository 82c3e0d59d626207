package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A StateCode is the outcome of a requested state change as DRBD numbers it:
// positive is done, negative is the reason of the refusal. The same numbers
// travel in P_STATE_CHG_REPLY and stand in the messages of the tools.
// Source: DRBD 8.4 linux/drbd.h, enum drbd_state_rv (drbd84-protocol, B.4).
type StateCode int32

// State change codes.
const (
	SSCWNoNeed          StateCode = 4
	SSCWSuccess         StateCode = 3
	SSNothingToDo       StateCode = 2
	SSSuccess           StateCode = 1
	SSUnknownError      StateCode = 0
	SSTwoPrimaries      StateCode = -1
	SSNoUpToDateDisk    StateCode = -2
	SSNoLocalDisk       StateCode = -4
	SSNoRemoteDisk      StateCode = -5
	SSConnectedOutdates StateCode = -6
	SSPrimaryNOP        StateCode = -7
	SSResyncRunning     StateCode = -8
	SSAlreadyStandAlone StateCode = -9
	SSCWFailedByPeer    StateCode = -10
	SSIsDiskless        StateCode = -11
	SSDeviceInUse       StateCode = -12
	SSNoNetConfig       StateCode = -13
	SSNoVerifyAlg       StateCode = -14
	SSNeedConnection    StateCode = -15
	SSLowerThanOutdated StateCode = -16
	SSNotSupported      StateCode = -17
	SSInTransientState  StateCode = -18
	SSConcurrentStChg   StateCode = -19
	SSOVolPeerPri       StateCode = -20
	SSOutdateWOConn     StateCode = -21
)

// stateCodes has the name and the tools' text of each code.
var stateCodes = map[StateCode]struct{ name, text string }{
	SSCWNoNeed:          {"SS_CW_NO_NEED", "Cluster wide state change not needed"},
	SSCWSuccess:         {"SS_CW_SUCCESS", "Cluster wide state change done"},
	SSNothingToDo:       {"SS_NOTHING_TO_DO", "State is already as requested"},
	SSSuccess:           {"SS_SUCCESS", "State change done"},
	SSUnknownError:      {"SS_UNKNOWN_ERROR", "Unknown error"},
	SSTwoPrimaries:      {"SS_TWO_PRIMARIES", "Multiple primaries not allowed by config"},
	SSNoUpToDateDisk:    {"SS_NO_UP_TO_DATE_DISK", "Need access to UpToDate data"},
	SSNoLocalDisk:       {"SS_NO_LOCAL_DISK", "Can not resync without local disk"},
	SSNoRemoteDisk:      {"SS_NO_REMOTE_DISK", "Can not resync without remote disk"},
	SSConnectedOutdates: {"SS_CONNECTED_OUTDATES", "Refusing to be Outdated while Connected"},
	SSPrimaryNOP:        {"SS_PRIMARY_NOP", "Refusing to be Primary while peer is not outdated"},
	SSResyncRunning:     {"SS_RESYNC_RUNNING", "Can not start OV/resync since it is already active"},
	SSAlreadyStandAlone: {"SS_ALREADY_STANDALONE", "Can not disconnect a StandAlone device"},
	SSCWFailedByPeer:    {"SS_CW_FAILED_BY_PEER", "State change was refused by peer node"},
	SSIsDiskless:        {"SS_IS_DISKLESS", "Device is diskless, the requested operation requires a disk"},
	SSDeviceInUse:       {"SS_DEVICE_IN_USE", "Device is held open by someone"},
	SSNoNetConfig:       {"SS_NO_NET_CONFIG", "Have no net/connection configuration"},
	SSNoVerifyAlg:       {"SS_NO_VERIFY_ALG", "Need a verify algorithm to start online verify"},
	SSNeedConnection:    {"SS_NEED_CONNECTION", "Need a connection to start verify or resync"},
	SSLowerThanOutdated: {"SS_LOWER_THAN_OUTDATED", "Disk state is lower than outdated"},
	SSNotSupported:      {"SS_NOT_SUPPORTED", "Peer does not support protocol"},
	SSInTransientState:  {"SS_IN_TRANSIENT_STATE", "In transient state, retry after next state change"},
	SSConcurrentStChg:   {"SS_CONCURRENT_ST_CHG", "Concurrent state changes detected and aborted"},
	SSOVolPeerPri:       {"SS_O_VOL_PEER_PRI", "Other vol primary on peer not allowed by config"},
	SSOutdateWOConn:     {"SS_OUTDATE_WO_CONN", "Need a connection for a graceful disconnect/outdate peer"},
}

// OK reports whether c means that the change is done or was not needed.
func (c StateCode) OK() bool { return c >= SSSuccess }

// String is DRBD's name of the code, "SS_TWO_PRIMARIES".
func (c StateCode) String() string {
	if d, ok := stateCodes[c]; ok {
		return d.name
	}
	return fmt.Sprintf("SS_%d", int32(c))
}

// Text is the English sentence that drbdadm prints for the code.
func (c StateCode) Text() string {
	if d, ok := stateCodes[c]; ok {
		return d.text
	}
	return fmt.Sprintf("unknown state change code %d", int32(c))
}

// A StateError is a refused state change of one volume, or of the whole
// resource if Volume is negative.
type StateError struct {
	Resource string
	Volume   int
	Code     StateCode
	From, To drbd.State
}

// Error has the form of drbdadm: the object, the code, the reason.
func (e *StateError) Error() string {
	return fmt.Sprintf("%s: State change failed: (%d) %s", e.Resource, int32(e.Code), e.Code.Text())
}

// A StateContext is what the rules have to know besides the two states. The
// zero value is a volume without peer: fencing dont-care, one Primary.
type StateContext struct {
	Fencing                Fencing
	OnNoDataSuspend        bool // on-no-data-accessible suspend-io
	AllowTwoPrimaries      bool
	DeviceOpen             bool // someone holds the exported device open
	OtherVolumePeerPrimary bool // the peer is Primary on another volume of this connection
	HasVerifyAlg           bool
	Version                int  // agreed protocol version, 0 if there is none yet
	StateSent              bool // our first P_STATE of this connection is sent
	HandshakeDone          bool // and every volume has finished its handshake

	// PeerUnheard: no P_STATE of this connection has said Connected. See peerUndecided.
	PeerUnheard bool

	// For a disk that was Negotiating when the connection broke: what
	// DiskStateAtAttach said, and whether its data is what the application
	// saw last (exposed data UUID equals the current UUID).
	NegotiatedDisk, NegotiatedPdsk drbd.DiskState
	ExposedUUIDMatches             bool
}

// Sanitize completes a requested new state with the adjustments that follow
// from it (drbd84-protocol, 4.3, in that order). Sanitizing the result again
// changes nothing.
//
// It differs from the kernel in three cases. If a disk failure ends a resync (or
// Ahead/Behind) early, the copy that was to be brought up to date becomes
// Inconsistent, where the kernel would call an Outdated one UpToDate: a
// diskless Primary would read old data from it. And a copy that becomes
// Inconsistent during an online verify (on-io-error pass_on) ends it, where the
// kernel would call that copy UpToDate again. And an Outdated copy becomes UpToDate
// for a diskless Primary only when that has accepted its generation.
func Sanitize(ctx StateContext, old, s drbd.State) drbd.State {
	if s.Conn < drbd.Connected { // 1
		s.PeerISP = false
		s.Peer = drbd.RoleUnknown
		if s.Pdsk > drbd.DUnknown || s.Pdsk < drbd.Inconsistent {
			s.Pdsk = drbd.DUnknown
		}
	}
	s = dropDependency(s)                                                            // 2
	if s.Conn > drbd.Connected && (s.Disk <= drbd.Failed || s.Pdsk <= drbd.Failed) { // 3
		s = abortResync(s)
	}
	if isVerify(s.Conn) && (s.Disk == drbd.Inconsistent || s.Pdsk == drbd.Inconsistent) {
		s.Conn = drbd.Connected
	}
	if s.Conn < drbd.Connected && s.Disk == drbd.Negotiating { // 4
		s.Disk, s.Pdsk = drbd.Diskless, drbd.DUnknown
		if ctx.ExposedUUIDMatches {
			s.Disk, s.Pdsk = ctx.NegotiatedDisk, ctx.NegotiatedPdsk
		}
		s = dropDependency(s)
	}
	if s.Conn >= drbd.Connected && s.Conn < drbd.Ahead { // 5
		if !ctx.peerUndecided(s) {
			s.Disk = freshWhenConnected(s.Disk)
		}
		s.Pdsk = freshWhenConnected(s.Pdsk)
	}
	s = clampDisks(s)                                                                      // 6
	if ctx.Fencing == FencingResourceAndStonith && needsFencing(s) && !needsFencing(old) { // 7
		s.SuspFen = true
	}
	if ctx.OnNoDataSuspend && hasNoData(s) && !hasNoData(old) { // 8
		s.SuspNod = true
	}
	return pauseOrResume(s) // 9
}

// dropDependency: what has neither disk nor net waits for nobody's resync.
func dropDependency(s drbd.State) drbd.State {
	if s.Conn == drbd.StandAlone && s.Disk == drbd.Diskless && s.Role == drbd.Secondary {
		s.AftrISP = false
	}
	return s
}

// abortResync takes s back to Connected because a disk is gone. See Sanitize
// for the copies that were targets.
func abortResync(s drbd.State) drbd.State {
	stale := func(d drbd.DiskState) drbd.DiskState { return min(d, drbd.Inconsistent) }
	switch s.Conn {
	case drbd.StartingSyncT, drbd.WFBitMapT, drbd.WFSyncUUID, drbd.SyncTarget, drbd.PausedSyncT, drbd.Behind:
		s.Disk = stale(s.Disk)
	case drbd.StartingSyncS, drbd.WFBitMapS, drbd.SyncSource, drbd.PausedSyncS, drbd.Ahead:
		s.Pdsk = stale(s.Pdsk)
	default: // verify: both copies are UpToDate
	}
	s.Conn = drbd.Connected
	return s
}

// peerUndecided reports whether a diskless Primary has not said yet that it uses this
// copy: it looks at the generations first, and may refuse them. Until then no generation
// begins here for it, and a copy that may be stale counts for no more than before.
func (ctx *StateContext) peerUndecided(s drbd.State) bool {
	return ctx.PeerUnheard && s.Conn == drbd.Connected && s.Role != drbd.Primary && s.Peer == drbd.Primary && s.Pdsk <= drbd.Failed
}

// freshWhenConnected is d after the handshake: whether the data is fresh is
// known then, so Consistent and Outdated no longer say anything.
func freshWhenConnected(d drbd.DiskState) drbd.DiskState {
	if d == drbd.Consistent || d == drbd.Outdated {
		return drbd.UpToDate
	}
	return d
}

// diskRange is what a connection state implies for the two disks.
type diskRange struct{ diskMin, diskMax, pdskMin, pdskMax drbd.DiskState }

func diskRangeOf(c drbd.ConnState) diskRange {
	switch c {
	case drbd.WFBitMapT, drbd.PausedSyncT, drbd.StartingSyncT, drbd.WFSyncUUID, drbd.Behind:
		return diskRange{drbd.Inconsistent, drbd.Outdated, drbd.UpToDate, drbd.UpToDate}
	case drbd.VerifyS, drbd.VerifyT:
		return diskRange{drbd.UpToDate, drbd.UpToDate, drbd.UpToDate, drbd.UpToDate}
	case drbd.WFBitMapS, drbd.PausedSyncS, drbd.StartingSyncS, drbd.Ahead:
		return diskRange{drbd.UpToDate, drbd.UpToDate, drbd.Inconsistent, drbd.Consistent}
	case drbd.SyncTarget:
		return diskRange{drbd.Inconsistent, drbd.Inconsistent, drbd.UpToDate, drbd.UpToDate}
	case drbd.SyncSource:
		return diskRange{drbd.UpToDate, drbd.UpToDate, drbd.Inconsistent, drbd.Inconsistent}
	case drbd.Connected:
		return diskRange{drbd.Diskless, drbd.UpToDate, drbd.Diskless, drbd.UpToDate}
	default: // below Connected
		return diskRange{drbd.Diskless, drbd.UpToDate, drbd.Inconsistent, drbd.DUnknown}
	}
}

func clampDisks(s drbd.State) drbd.State {
	r := diskRangeOf(s.Conn)
	s.Disk = max(min(s.Disk, r.diskMax), r.diskMin)
	s.Pdsk = max(min(s.Pdsk, r.pdskMax), r.pdskMin)
	return s
}

// needsFencing: a Primary without a connection to a peer that may have data.
func needsFencing(s drbd.State) bool {
	return s.Role == drbd.Primary && s.Conn < drbd.Connected && s.Pdsk > drbd.Outdated
}

// hasNoData: a Primary that reaches no current copy.
func hasNoData(s drbd.State) bool {
	return s.Role == drbd.Primary && s.Disk < drbd.UpToDate && s.Pdsk < drbd.UpToDate
}

func pauseOrResume(s drbd.State) drbd.State {
	was := s.Conn
	switch {
	case s.Paused() && s.Conn == drbd.SyncSource:
		s.Conn = drbd.PausedSyncS
	case s.Paused() && s.Conn == drbd.SyncTarget:
		s.Conn = drbd.PausedSyncT
	case !s.Paused() && s.Conn == drbd.PausedSyncS:
		s.Conn = drbd.SyncSource
	case !s.Paused() && s.Conn == drbd.PausedSyncT:
		s.Conn = drbd.SyncTarget
	}
	if s.Conn != was {
		s = clampDisks(s) // a running resync allows less than a paused one
	}
	return s
}

// ValidTransition checks the rules that hold for every change, hard or soft
// (4.4 a). It returns SSSuccess or a refusal.
func ValidTransition(old, s drbd.State) StateCode {
	if s.Disk == drbd.Failed && old.Disk == drbd.Diskless {
		return SSIsDiskless // there is nothing left that could fail
	}
	from, to := old.Conn, s.Conn
	switch {
	case from == to:
		return SSSuccess
	case from == drbd.StandAlone && to == drbd.Disconnecting:
		return SSAlreadyStandAlone
	case from == drbd.StandAlone && to != drbd.Unconnected:
		return SSNeedConnection
	case from < drbd.WFReportParams && to >= drbd.Connected:
		return SSNeedConnection
	case from >= drbd.Timeout && from <= drbd.TearDown && to != drbd.Unconnected && to != drbd.Disconnecting:
		return SSInTransientState
	case from == drbd.Disconnecting && to != drbd.StandAlone:
		return SSInTransientState
	}
	return SSSuccess
}

// ValidState checks whether s may be entered at all by a soft change (4.4 b).
// The first rule that s breaks gives the code.
func ValidState(ctx StateContext, s drbd.State) StateCode {
	primary := s.Role == drbd.Primary
	verify := s.Conn == drbd.VerifyS || s.Conn == drbd.VerifyT
	starting := s.Conn == drbd.StartingSyncS || s.Conn == drbd.StartingSyncT
	switch {
	case primary && !ctx.AllowTwoPrimaries && s.Peer == drbd.Primary:
		return SSTwoPrimaries
	case primary && !ctx.AllowTwoPrimaries && ctx.OtherVolumePeerPrimary:
		return SSOVolPeerPri
	case s.Role == drbd.Secondary && ctx.DeviceOpen:
		return SSDeviceInUse
	case primary && s.Conn < drbd.Connected && s.Disk < drbd.UpToDate:
		return SSNoUpToDateDisk
	case ctx.Fencing >= FencingResourceOnly && primary && s.Conn < drbd.Connected && s.Pdsk >= drbd.DUnknown:
		return SSPrimaryNOP
	case primary && s.Disk <= drbd.Inconsistent && s.Pdsk <= drbd.Inconsistent:
		return SSNoUpToDateDisk
	case s.Conn > drbd.Connected && s.Disk < drbd.Inconsistent:
		return SSNoLocalDisk
	case s.Conn > drbd.Connected && s.Pdsk < drbd.Inconsistent:
		return SSNoRemoteDisk
	case s.Conn > drbd.Connected && s.Disk < drbd.UpToDate && s.Pdsk < drbd.UpToDate:
		return SSNoUpToDateDisk
	case s.Disk == drbd.Outdated && outdateRefused(s.Conn) && !ctx.peerUndecided(s):
		return SSConnectedOutdates
	case verify && !ctx.HasVerifyAlg:
		return SSNoVerifyAlg
	case verify && ctx.Version < versionVerify:
		return SSNotSupported
	case hasNoData(s):
		return SSNoUpToDateDisk
	case starting && s.Pdsk == drbd.DUnknown:
		return SSNeedConnection
	case s.Conn >= drbd.Connected && s.Pdsk == drbd.DUnknown:
		return SSConnectedOutdates
	}
	return SSSuccess
}

// versionVerify is the first protocol version with online verify.
// Source: drbd84-protocol, 10.2.
const versionVerify = 88

// outdateRefused: in these states the peer's data is not newer than ours.
func outdateRefused(c drbd.ConnState) bool {
	switch c {
	case drbd.Connected, drbd.WFBitMapS, drbd.SyncSource, drbd.PausedSyncS:
		return true
	default:
		return false
	}
}

// ValidSoft checks the rules for a soft step from old to s (4.4 c). Of several
// broken rules the last one of the reference's list gives the code, so the
// list stands here backwards.
func ValidSoft(ctx StateContext, old, s drbd.State) StateCode {
	verify := s.Conn == drbd.VerifyS || s.Conn == drbd.VerifyT
	starting := s.Conn == drbd.StartingSyncS || s.Conn == drbd.StartingSyncT
	disconnecting := s.Conn == drbd.Disconnecting
	switch {
	case disconnecting && s.Pdsk == drbd.Outdated && old.Conn < drbd.Connected && old.Pdsk > drbd.Outdated:
		return SSOutdateWOConn
	case (s.Conn == drbd.SyncSource || s.Conn == drbd.SyncTarget) && old.Conn < drbd.WFReportParams:
		return SSNeedConnection
	case starting && old.Conn < drbd.Connected:
		return SSNeedConnection
	case verify && s.Conn != old.Conn && old.Conn > drbd.Connected:
		return SSResyncRunning
	case verify && old.Conn < drbd.Connected:
		return SSNeedConnection
	case promotesDuringHandshake(old, s):
		return SSInTransientState
	case ctx.StateSent && !ctx.HandshakeDone && !isHandshakeStep(old.Conn, s.Conn):
		return SSInTransientState
	case disconnecting && old.Conn == drbd.Unconnected:
		return SSInTransientState
	case s.Disk == drbd.Outdated && old.Disk < drbd.Outdated && old.Disk != drbd.Attaching:
		return SSLowerThanOutdated
	case s.Conn == drbd.WFConnection && old.Conn < drbd.Unconnected:
		return SSNoNetConfig
	case s.Disk > drbd.Attaching && old.Disk == drbd.Diskless:
		return SSIsDiskless
	case disconnecting && old.Conn == drbd.StandAlone:
		return SSAlreadyStandAlone
	case starting && old.Conn > drbd.Connected:
		return SSResyncRunning
	case s.Conn == drbd.StartingSyncS && old.Disk < drbd.UpToDate, s.Conn == drbd.StartingSyncT && old.Pdsk < drbd.UpToDate:
		return SSNoUpToDateDisk // the kernel would take the bad copy as the good one
	}
	return SSSuccess
}

// isHandshakeStep: the only soft steps that are allowed between our first
// P_STATE and the end of the handshake.
func isHandshakeStep(from, to drbd.ConnState) bool {
	return from == drbd.WFConnection && to == drbd.WFReportParams ||
		from == drbd.WFReportParams && to >= drbd.Connected
}

// promotesDuringHandshake: a node about to receive the peer's data must not
// become Primary before the resync runs.
func promotesDuringHandshake(old, s drbd.State) bool {
	return old.Role != drbd.Primary && s.Role == drbd.Primary &&
		s.Pdsk == drbd.UpToDate && s.Disk != drbd.UpToDate && s.Disk != drbd.Diskless &&
		(s.Conn <= drbd.WFSyncUUID || s.Conn != old.Conn)
}

// CheckState says whether the volume may go from old to s, which Sanitize has
// completed: SSNothingToDo if they are equal, SSSuccess, or the refusal. Hard
// changes are facts, only the table of transitions applies to them. A rule of
// ValidState that old breaks in the same way is tolerated, but not in a
// request to the peer (clusterWide).
func CheckState(ctx StateContext, old, s drbd.State, hard, clusterWide bool) StateCode {
	if old == s {
		return SSNothingToDo
	}
	if c := ValidTransition(old, s); !c.OK() {
		return c
	}
	if hard {
		return SSSuccess
	}
	if c := ValidState(ctx, s); !c.OK() && (clusterWide || ValidState(ctx, old) != c) {
		return c
	}
	return ValidSoft(ctx, old, s)
}

// NeedsClusterWide reports whether the peer is to be asked before the soft
// change from old to s (4.5).
func NeedsClusterWide(old, s drbd.State) bool {
	if old.Conn < drbd.Connected {
		return false
	}
	if s.Conn >= drbd.Connected {
		becomes := func(c drbd.ConnState) bool { return old.Conn != c && s.Conn == c }
		switch {
		case old.Role != drbd.Primary && s.Role == drbd.Primary,
			becomes(drbd.StartingSyncS), becomes(drbd.StartingSyncT),
			old.Disk != drbd.Failed && s.Disk == drbd.Failed:
			return true
		}
	}
	return s.Conn == drbd.Disconnecting ||
		old.Conn == drbd.Connected && (s.Conn == drbd.VerifyS || s.Conn == drbd.WFReportParams)
}

// ConvertState turns a state word of the peer (the mask or the value of a
// P_STATE_CHG_REQ) into our point of view (4.5). Connection states that no
// request may carry become 0.
func ConvertState(word uint32) uint32 {
	const connMask = 31
	p := drbd.StateOf(word)
	s := p
	s.Role, s.Peer = p.Peer, p.Role
	s.Disk, s.Pdsk = p.Pdsk, p.Disk
	s.PeerISP = p.AftrISP || p.UserISP
	switch p.Conn {
	case drbd.WFReportParams, drbd.Connected, connMask:
	case drbd.StartingSyncS:
		s.Conn = drbd.StartingSyncT
	case drbd.StartingSyncT:
		s.Conn = drbd.StartingSyncS
	case drbd.Disconnecting:
		s.Conn = drbd.TearDown
	case drbd.VerifyS:
		s.Conn = drbd.VerifyT
	default:
		s.Conn = 0
	}
	return s.Word()
}

// LostContact reports whether the step from old to s ends the contact to the
// peer's data while either node writes and our copy is current (5.3). If our
// bitmap UUID is 0, a new current UUID must then be on disk before the next
// write is completed; while I/O is frozen it waits for the fencing.
func LostContact(old, s drbd.State) bool {
	if s.Disk != drbd.UpToDate || s.Role != drbd.Primary && s.Peer != drbd.Primary {
		return false
	}
	switch old.Pdsk {
	case drbd.Inconsistent, drbd.Consistent, drbd.UpToDate:
		return s.Pdsk < drbd.Inconsistent || s.Pdsk == drbd.DUnknown || s.Pdsk == drbd.Outdated
	case drbd.DUnknown:
		return s.Pdsk == drbd.Diskless || s.Pdsk == drbd.Failed || s.Pdsk == drbd.Outdated
	default:
		return false
	}
}
