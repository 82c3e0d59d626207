package adm

import (
	"strconv"
	"time"
)

// Status is the answer to CmdStatus. Its JSON names are stable.
type Status struct {
	Node      string     `json:"node"`
	BootID    string     `json:"boot_id,omitempty"` // of the machine: another one after each reboot
	Resources []Resource `json:"resources"`         // sorted by name
}

// Whether a resource runs.
const (
	StateUp     = "up"
	StateDown   = "down"   // taken down, or not brought up yet
	StateFailed = "failed" // could not be brought up; Reason says why
)

// Resource is the status of one resource on this node. State words are
// DRBD 8.4's ("WFConnection", "UpToDate", ...); they are empty unless State
// is StateUp.
type Resource struct {
	Name          string     `json:"name"`
	Seq           uint64     `json:"seq,omitempty"` // the higher of two is the newer status, within one boot of the machine
	State         string     `json:"state"`
	Reason        string     `json:"reason,omitempty"` // why it isn't up
	Advice        string     `json:"advice,omitempty"` // what to do about Reason or LastError
	Node          string     `json:"node"`
	Peer          string     `json:"peer"`
	Role          string     `json:"role,omitempty"`
	PeerRole      string     `json:"peer_role,omitempty"`
	Connection    string     `json:"connection,omitempty"`
	Protocol      string     `json:"protocol,omitempty"`  // "A", "B" or "C"
	TLS           *TLS       `json:"tls,omitempty"`       // nil: plaintext
	Suspended     []string   `json:"suspended,omitempty"` // user, no-data, fencing, term, lease
	SplitBrain    string     `json:"split_brain,omitempty"`
	LastError     string     `json:"last_error,omitempty"`
	Violation     *Violation `json:"violation,omitempty"`       // nil if the peer has kept to the protocol since the last connect
	Term          *Term      `json:"term,omitempty"`            // nil if terms are not in use
	WaitsToResume string     `json:"waits_to_resume,omitempty"` // why a former Primary doesn't serve yet
	PeerLostSince *time.Time `json:"peer_lost_since,omitempty"`
	Address       string     `json:"address,omitempty"`      // this node's, ADDRESS:PORT
	PeerAddress   string     `json:"peer_address,omitempty"` // the peer's
	Changed       []string   `json:"changed,omitempty"`      // options in force that differ from the file's
	Manager       string     `json:"manager,omitempty"`      // "internal" or "pacemaker"; "": none
	Incarnation   string     `json:"incarnation,omitempty"`  // that the volumes are exported to
	Lease         string     `json:"lease,omitempty"`        // of the manager, if it has told one: LeaseRunning or LeaseOver
	Loss          *Loss      `json:"loss,omitempty"`         // nil if what protocol A or B may lose is not bounded
	Volumes       []Volume   `json:"volumes,omitempty"`      // sorted by number
}

// Whether the lease that the failover manager has told lasts.
const (
	LeaseRunning = "running"
	LeaseOver    = "over" // reads wait, too, while the peer is silent
)

// Loss is what a failover could lose under protocol A or B, and its bounds; all
// sizes are of writes that the peer has not acknowledged.
type Loss struct {
	MaxBytes   uint64 `json:"max_bytes"`
	MaxSeconds uint64 `json:"max_seconds"`
	Bytes      uint64 `json:"bytes"`
	AgeMS      int64  `json:"age_ms"` // since the oldest was sent; 0 if there is none
	Holds      bool   `json:"holds"`  // answers wait: a bound is reached
}

// TLS is how a connection with net option tls is protected; all fields are
// empty while there is none.
type TLS struct {
	Cipher    string     `json:"cipher,omitempty"`     // as IANA names it
	Until     *time.Time `json:"until,omitempty"`      // this node's certificate is valid so long
	PeerUntil *time.Time `json:"peer_until,omitempty"` // the peer's
}

// Violation is how the peer has broken the protocol since the last connect.
type Violation struct {
	Text  string    `json:"text"` // of the last time: packet, field, what was wanted and what came
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// Term is what a node knows of the terms that an arbiter hands out.
type Term struct {
	Term     uint64 `json:"term"`     // the highest that an owner is known of
	Promised uint64 `json:"promised"` // writes of a lower one are refused
	Owned    bool   `json:"owned,omitempty"`
	Sole     bool   `json:"sole,omitempty"`     // owned, and this node is the only writer
	Override bool   `json:"override,omitempty"` // the operator has let frozen I/O go on (resume-io)
	Marked   bool   `json:"marked,omitempty"`   // the sole-writer mark is set
	Unknown  string `json:"unknown,omitempty"`  // why there is no promotion under a term
	Frozen   string `json:"frozen,omitempty"`   // why I/O is frozen
	Held     bool   `json:"held,omitempty"`     // the manager has frozen it, until thaw or a new term

	StandsBack     bool `json:"stands_back,omitempty"`      // Secondary: Outdated, on disk, as soon as the connection ends
	AsksPeer       bool `json:"asks_peer,omitempty"`        // Primary: its peer is asked to stand back (failsafe)
	PeerStandsBack bool `json:"peer_stands_back,omitempty"` // and does
}

// Volume is the status of one volume.
type Volume struct {
	Volume         int       `json:"volume"`
	Minor          int       `json:"minor"`
	Device         string    `json:"device"`                     // /dev/drbdN
	BlockDevice    string    `json:"block_device,omitempty"`     // what attach-device made of it
	BackingDisk    string    `json:"backing_disk,omitempty"`     // empty: diskless by configuration
	Export         string    `json:"export,omitempty"`           // NBD export name
	Replication    string    `json:"replication,omitempty"`      // 8.4's cstate of this volume
	Disk           string    `json:"disk,omitempty"`             //
	PeerDisk       string    `json:"peer_disk,omitempty"`        //
	SizeBytes      uint64    `json:"size_bytes"`                 //
	OutOfSyncBytes uint64    `json:"out_of_sync_bytes"`          //
	Resync         *Resync   `json:"resync,omitempty"`           // while one runs
	ResyncPausedBy []string  `json:"resync_paused_by,omitempty"` // "user", "peer", "dependency"; set also while none runs
	Verify         *Verify   `json:"verify,omitempty"`           // while one runs
	VerifyFrom     uint64    `json:"verify_from,omitempty"`      // sector where a verify that was cut off goes on
	OpenCount      int       `json:"open_count"`                 // clients that hold it open
	DiskError      string    `json:"disk_error,omitempty"`       // why the disk was detached
	UUIDs          [4]string `json:"uuids"`                      // current, bitmap, history; 16 hex digits each
	Flags          uint32    `json:"flags"`                      // metadata flags (v08 superblock)
	ReadBytes      uint64    `json:"read_bytes"`                 // from the local disk
	WrittenBytes   uint64    `json:"written_bytes"`              // to the local disk
	SentBytes      uint64    `json:"sent_bytes"`                 // to the peer
	ReceivedBytes  uint64    `json:"received_bytes"`             // from the peer
	ALWrites       uint64    `json:"activity_log_writes"`        //
	BitmapWrites   uint64    `json:"bitmap_writes"`              //
	LocalPending   int       `json:"local_pending"`              // operations on the local disk under way
	PeerPending    int       `json:"peer_pending"`               // asked of the peer, not answered
	Unacked        int       `json:"unacked"`                    // asked by the peer, not answered
	AppPending     int       `json:"app_pending"`                // requests of clients, not answered
	Epochs         int       `json:"epochs"`                     // of the peer's writes
	WriteOrder     string    `json:"write_order,omitempty"`      // f: flush, d: drain
	AttachProblem  string    `json:"attach_problem,omitempty"`   // why there is no BlockDevice
}

// Generation is the current UUID with bit 0, which says that it is a Primary's,
// cleared: equal on both nodes if the copies are of one generation. It is 0 for a
// volume without a disk.
func (v *Volume) Generation() uint64 {
	u, err := strconv.ParseUint(v.UUIDs[0], 16, 64)
	if err != nil {
		return 0
	}
	return u &^ 1
}

// Resync is the progress of a resync.
type Resync struct {
	Source          bool   `json:"source"` // this node's data goes to the peer
	Paused          bool   `json:"paused"`
	TotalBytes      uint64 `json:"total_bytes"`
	LeftBytes       uint64 `json:"left_bytes"`
	RateBytesPerSec uint64 `json:"rate_bytes_per_second"`
	ETASeconds      int64  `json:"eta_seconds"`                     // negative: unknown
	WantBytesPerSec uint64 `json:"want_bytes_per_second,omitempty"` // what the target allows itself now
	FailedBytes     uint64 `json:"failed_bytes,omitempty"`          // either node could not read or write these
	SameBytes       uint64 `json:"same_bytes,omitempty"`            // found equal by their checksums (csums-alg)

	AverageBytesPerSec uint64 `json:"average_bytes_per_second,omitempty"` // since it began
}

// Done is the finished part in percent, 0 to 100.
func (r *Resync) Done() float64 {
	if r.TotalBytes == 0 || r.LeftBytes > r.TotalBytes {
		return 0
	}
	return 100 * float64(r.TotalBytes-r.LeftBytes) / float64(r.TotalBytes)
}

// Verify is the progress of an online verify; Source drives it.
type Verify struct {
	Resync
	StartSector uint64 `json:"start_sector"`
	StopSector  uint64 `json:"stop_sector"` // 0 is the end
	Position    uint64 `json:"position"`    // sector: all between start and this was compared
	FoundBytes  uint64 `json:"found_bytes"` // out of sync
	FailedBytes uint64 `json:"failed_bytes"`
}
