package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// A Tick is the core's only clock: milliseconds since the engine started, never 0.
type Tick int64

// A RequestID names a slot in the table of outstanding client requests.
type RequestID uint32

// A PeerID names a slot in the table of outstanding requests of the peer.
type PeerID uint32

// Op is what a client's request, or a local I/O, does.
type Op uint8

// The operations.
const (
	OpRead Op = iota + 1
	OpWrite
	OpFlush
	OpTrim
	OpZero
)

// EventKind says what has happened, and so which fields of an Event are set.
type EventKind uint8

// The events.
const (
	// Submitted: a client asks for Op on Volume at Sector, Size bytes; Data, FUA, NoUnmap, Tag; IsTimed.
	Submitted EventKind = iota + 1
	// LocalDone: the local I/O of request ID ended with Err.
	LocalDone
	// PeerLocalDone: the local I/O of peer request Peer ended with Err; Data is what was read,
	// Digest and AllZero what its Action wanted to know of it.
	PeerLocalDone
	// MetaDone: the metadata job of Volume ended with Err; TermErr if its Term could not be stored.
	MetaDone
	// Synced: the fdatasync of Volume's data ended with Err.
	Synced
	// Attached: the disk of Volume was opened, what an earlier process wrote to it was
	// made durable, and Disk has what was read from it.
	Attached
	// SocketsUp: both sockets stand and features are agreed; Link says on what.
	SocketsUp
	// Received: a packet came in on Socket: Header, Fixed, Data (payload behind the fixed part);
	// the Stamp of a write comes back with its DoPeerLocal.
	Received
	// SocketsDown: the connection broke; Reason is the DRBD state that names why, Err the cause.
	SocketsDown
	// TimerFired: the time of the last SetTimer has come.
	TimerFired
	// DataSent: everything filed for the data socket up to stream position Pos left for the kernel.
	DataSent
	// Drained: the output of the data socket is short again, after WantDrain.
	Drained
	// Commanded: the operator (or the engine) wants Command.
	Commanded
	// HandlerDone: the handler Name ended with ExitCode.
	HandlerDone
	// SendBlocked: the data socket has taken nothing for a timeout.
	SendBlocked
	// DiskProbed: the devices of Volume were measured, Err says why they can't be
	// used; of Disk only Usable, Moved, and the offsets in Superblock are set.
	DiskProbed
)

// An Event is one thing that has happened. It is flat and reused by the
// caller; the core keeps none of its pointers but Data, Tag and Disk.
type Event struct {
	Kind    EventKind
	At      Tick
	Volume  uint16
	Op      Op
	FUA     bool
	NoUnmap bool
	IsTimed bool // the caller wants to hear of each Point
	ID      RequestID
	Peer    PeerID
	Sector  drbd.Sector
	Size    uint32 // bytes
	Data    []byte
	Digest  []byte // of Data by the action's DigestAlg, as on the wire; valid during Step only
	AllZero bool   // of Data, if the action has WantZero
	Tag     any
	Err     error
	TermErr error
	Stamp   int64 // the caller's own

	Socket drbd.Socket
	Header drbd.Header
	Fixed  []byte // the packet's fixed part; valid during Step only
	Pos    uint64 // bytes

	Reason   drbd.ConnState
	Link     Link
	Disk     *AttachedDisk
	Command  Command
	Name     string
	ExitCode int
}

// A Link is what the handshake before P_PROTOCOL has settled.
type Link struct {
	Version          int
	Features         uint32
	ResolveConflicts bool // this node accepted the meta socket
	DiscardMyData    bool // one shot: connect --discard-my-data
	DryRun           bool // connect --tentative
}

// AttachedDisk is what an attach has read; the activity log is applied already.
type AttachedDisk struct {
	Superblock meta.Superblock
	Bitmap     *meta.Bitmap
	AL         *meta.ActivityLog
	Usable     drbd.Sector // capacity for data
	BlockSize  uint32      // logical, bytes
	Options    DiskOptions
	Moved      bool            // DiskProbed: metadata belongs elsewhere on a device of this size
	Term       meta.TermRecord // the state directory's; the superblock has its own
	NoTermFile bool            // there is no state directory: the superblock's record counts alone
}

// ActionKind says what the caller has to do.
type ActionKind uint8

// The actions.
const (
	// Send: file Bytes, then Data, for Socket, in the order of the actions; DigestAlg.
	Send ActionKind = iota + 1
	// DoLocal: run Op for client request ID (or Peer) on Volume's disk, answer with LocalDone (PeerLocalDone).
	// A DoPeerLocal that reads may want a digest of what was read (DigestAlg, a name
	// that drbd.NewDigest knows), or to know whether it is nothing but zeroes (WantZero).
	DoLocal
	DoPeerLocal
	// Complete: the client's request Tag is done, with Err. Keep: the memory that
	// came with it is still a hanging disk's, for good; Data is what was read.
	Complete
	// Free: Data goes back to the pool.
	Free
	// WriteMeta: run Job on Volume's metadata, answer with MetaDone.
	WriteMeta
	// SyncData: fdatasync Volume's data, answer with Synced.
	SyncData
	// SetTimer: send TimerFired at At; replaces the timer before.
	SetTimer
	// Disconnect: close both sockets; a reader's later SocketsDown is ignored.
	Disconnect
	// Connect: start (or go on with) the connect loop.
	Connect
	// StopConnecting: end the connect loop.
	StopConnecting
	// ResumeReceive: the data socket may be read again (see ReceivePaused).
	ResumeReceive
	// WantDrain: send Drained when the data socket's output is short.
	WantDrain
	// RunHandler: run the handler Name for Volume, answer with HandlerDone.
	RunHandler
	// CommandDone: the command Tag ended with Err (nil, *StateError or *RequestError).
	CommandDone
	// StateChanged: for log and event stream: Volume went From -> To because of Text.
	StateChanged
	// CloseDisk: the disk of Volume is no longer used; close it.
	CloseDisk
	// Report: tell the operator Text.
	Report
	// ProbeDisk: measure the devices of Volume, answer with DiskProbed.
	ProbeDisk
	// Passed: the client's request Tag, submitted with IsTimed, is at Point now.
	Passed
)

// A Point is something that happens to a client's request on its way.
type Point uint8

// The points.
const (
	// PointWaits: a transaction of the activity log has to be written first.
	PointWaits Point = iota + 1
	// PointStarted: the orders of this Step begin it, on the disk, the peer, or both.
	PointStarted
	// PointSent: its packet for the peer is the Send before this.
	PointSent
	// PointLocal: this disk has done its part.
	PointLocal
	// PointAnswered: so has the peer, as far as the protocol wants to know: this
	// event brought the answer.
	PointAnswered
)

// An Action is one order to the caller. Bytes, Job and the slice that holds it
// are valid until the next Step.
type Action struct {
	Kind   ActionKind
	Volume uint16
	Op     Op
	FUA    bool
	Keep   bool
	// NoUnmap keeps the blocks of an OpZero allocated.
	NoUnmap  bool
	WantZero bool // DoPeerLocal, OpRead: answer with AllZero
	IsTimed  bool // DoLocal: as it was submitted
	Point    Point
	// DigestAlg is on DoPeerLocal with OpRead what to answer with Digest; "" wants none.
	// On Send it is data-integrity-alg: Bytes end with room for the digest of Data,
	// which the caller fills in from the bytes that it sends.
	DigestAlg string
	Socket    drbd.Socket
	ID        RequestID
	Peer      PeerID
	Sector    drbd.Sector
	Size      uint32
	At        Tick
	Bytes     []byte
	Data      []byte
	Tag       any
	Err       error
	Job       *MetaJob
	Name      string
	Text      string
	From      drbd.State
	To        drbd.State
	Reason    drbd.ConnState
	Stamp     int64 // DoPeerLocal
}

// A MetaJob is one ordered piece of metadata I/O. The caller does, in this
// order: SyncData (fdatasync of the data), Pages, a sync of the metadata, the
// activity log block and the superblock, a sync of the metadata. Any failure
// ends the job and fails the disk.
type MetaJob struct {
	SyncData   bool
	Pages      []MetaPage
	ALBlock    []byte // one transaction of 4 KiB, or nil
	ALRing     int    // its block in the ring
	Superblock []byte // 4 KiB, or nil
	// Term is the record for the state directory, written durably before anything
	// else; nil if it has not changed. If that fails the job goes on: the record
	// counts as lost there.
	Term    []byte
	ResetAL bool // write the initial block over the whole ring, before the superblock
	// Move takes the metadata to its place on a device of the size that was
	// probed last (meta.Relocation): Pages are all pages of the bitmap that are
	// not zero.
	Move bool
	// Marked is the superblock for meanwhile: of a Move, and of a ResetAL, if it is
	// not nil, where it is durable before the ring is written.
	Marked []byte
}

// A MetaPage is one 4 KiB page of the bitmap.
type MetaPage struct {
	Page int
	Data []byte
}

// CommandKind is what an operator wants.
type CommandKind uint8

// The commands.
const (
	CmdPrimary CommandKind = iota + 1
	CmdSecondary
	CmdConnect
	CmdDisconnect
	CmdDetach
	CmdInvalidate
	CmdInvalidateRemote
	CmdOutdate
	CmdOpen  // a client wants to open the volume
	CmdClose // a client has closed it
	CmdSetOptions
	CmdResumeIO // the operator vouches that a lost peer is down: frozen I/O goes on
	CmdSuspendIO
	CmdPauseSync      // Volume's resync, until CmdResumeSync
	CmdResumeSync     // the operator's pause ends
	CmdSyncAfter      // Waits: Volume's resync is paused by its resync-after option, or no longer
	CmdVerify         // compare both copies of Volume from StartSector up to StopSector
	CmdResize         // SizeSectors, AssumeClean, Force (assume-peer-has-space)
	CmdNewCurrentUUID // AssumeClean: --clear-bitmap
	CmdPromiseTerm    // Term: never again accept writes of a lower one
	CmdSetHandlers    // Handlers: which are configured from now on
	CmdFreeze         // the failover manager has all I/O of this Primary wait
	CmdThaw           // until this, or a new term
	CmdFailsafe       // the failover manager has this Primary ask its peer to stand back
	CmdFailsafeOver   // and takes that back
	CmdLease          // LeaseMS: how long the manager's lease lasts from now on; 0: none is told
)

// A Command is an operator's wish; Tag comes back with CommandDone.
type Command struct {
	Kind   CommandKind
	Force  bool
	Volume uint16
	Tag    any
	Net    NetOptions // CmdSetOptions
	Disk   DiskOptions

	StartSector, StopSector drbd.Sector // CmdVerify; StopSector 0 = the end
	SizeSectors             uint64      // CmdResize: the user's size, 0 = all there is
	AssumeClean             bool
	Term                    uint64 // CmdPromiseTerm; CmdPrimary: under this term, 0 = no terms
	Sole                    bool   // CmdPrimary: the arbiter's record for Term names this node alone
	Vote                    bool   // CmdPrimary: the two copies decide about the term; see vote
	LeaseMS                 uint64 // CmdLease
	Waits                   bool   // CmdSyncAfter
	Handlers                Handlers
}

// A RequestError is a refusal with a DRBD request error number (101..170).
type RequestError struct {
	Code int
	Text string
}

func (e *RequestError) Error() string { return e.Text }
