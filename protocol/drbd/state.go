package drbd

import "fmt"

// Role is a node's role for a resource (linux/drbd.h, enum drbd_role).
type Role uint8

// Roles.
const (
	RoleUnknown Role = iota
	Primary
	Secondary
)

var roleNames = [...]string{"Unknown", "Primary", "Secondary"}

func (r Role) String() string { return nameOf(roleNames[:], uint(r), "Role") }

// DiskState is the state of one copy of a volume (enum drbd_disk_state).
// The order is meaningful: a larger value is better data.
type DiskState uint8

// Disk states.
const (
	Diskless DiskState = iota
	Attaching
	Failed
	Negotiating
	Inconsistent
	Outdated
	DUnknown
	Consistent
	UpToDate
)

var diskNames = [...]string{
	"Diskless", "Attaching", "Failed", "Negotiating", "Inconsistent",
	"Outdated", "DUnknown", "Consistent", "UpToDate",
}

func (d DiskState) String() string { return nameOf(diskNames[:], uint(d), "DiskState") }

// ConnState is the state of a connection up to WFReportParams, of a volume's
// replication from Connected on (enum drbd_conns).
type ConnState uint8

// Connection states.
const (
	StandAlone ConnState = iota
	Disconnecting
	Unconnected
	Timeout
	BrokenPipe
	NetworkFailure
	ProtocolFailure // DRBD's name is ProtocolError; that is our error type
	TearDown
	WFConnection
	WFReportParams
	Connected
	StartingSyncS
	StartingSyncT
	WFBitMapS
	WFBitMapT
	WFSyncUUID
	SyncSource
	SyncTarget
	VerifyS
	VerifyT
	PausedSyncS
	PausedSyncT
	Ahead
	Behind
)

var connNames = [...]string{
	"StandAlone", "Disconnecting", "Unconnected", "Timeout", "BrokenPipe",
	"NetworkFailure", "ProtocolError", "TearDown", "WFConnection", "WFReportParams",
	"Connected", "StartingSyncS", "StartingSyncT", "WFBitMapS", "WFBitMapT",
	"WFSyncUUID", "SyncSource", "SyncTarget", "VerifyS", "VerifyT",
	"PausedSyncS", "PausedSyncT", "Ahead", "Behind",
}

func (c ConnState) String() string { return nameOf(connNames[:], uint(c), "ConnState") }

func nameOf(names []string, v uint, kind string) string {
	if v < uint(len(names)) {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", kind, v)
}

// A State is the state word of one volume as its own node sees it
// (drbd84-protocol, 4.2). The zero value is an unconfigured volume.
type State struct {
	Role    Role
	Peer    Role
	Conn    ConnState
	Disk    DiskState
	Pdsk    DiskState
	Susp    bool // I/O suspended by the user
	AftrISP bool // resync paused: a resync-after dependency
	PeerISP bool // resync paused: the peer asked
	UserISP bool // resync paused by the user
	SuspNod bool // I/O suspended: no data accessible
	SuspFen bool // I/O suspended: the fence-peer handler is running
}

// Word packs s as P_STATE carries it.
func (s State) Word() uint32 {
	w := uint32(s.Role)&3 | uint32(s.Peer)&3<<2 | uint32(s.Conn)&31<<4 |
		uint32(s.Disk)&15<<9 | uint32(s.Pdsk)&15<<13
	for i, b := range [...]bool{s.Susp, s.AftrISP, s.PeerISP, s.UserISP, s.SuspNod, s.SuspFen} {
		if b {
			w |= 1 << (17 + i)
		}
	}
	return w
}

// StateOf unpacks a state word. Values that no state has are kept, so that
// masks (P_STATE_CHG_REQ) unpack too; Valid tells them apart.
func StateOf(w uint32) State {
	return State{
		Role: Role(w & 3), Peer: Role(w >> 2 & 3), Conn: ConnState(w >> 4 & 31),
		Disk: DiskState(w >> 9 & 15), Pdsk: DiskState(w >> 13 & 15),
		Susp: w>>17&1 != 0, AftrISP: w>>18&1 != 0, PeerISP: w>>19&1 != 0,
		UserISP: w>>20&1 != 0, SuspNod: w>>21&1 != 0, SuspFen: w>>22&1 != 0,
	}
}

// Valid reports whether every field holds a value that DRBD defines.
func (s State) Valid() bool {
	return s.Role <= Secondary && s.Peer <= Secondary && s.Conn <= Behind &&
		s.Disk <= UpToDate && s.Pdsk <= UpToDate
}

// Suspended reports whether application I/O is frozen for any reason.
func (s State) Suspended() bool { return s.Susp || s.SuspNod || s.SuspFen }

// Paused reports whether any reason to pause a resync is set.
func (s State) Paused() bool { return s.AftrISP || s.PeerISP || s.UserISP }

// String is the state in the form of the log: both sides of each field.
func (s State) String() string {
	return fmt.Sprintf("%s %s/%s %s/%s", s.Conn, s.Role, s.Peer, s.Disk, s.Pdsk)
}
