package replication

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// A Snapshot is the state of a resource for people and metrics.
type Snapshot struct {
	Role, PeerRole drbd.Role
	Conn           drbd.ConnState
	Protocol       byte
	Version        int
	Features       uint32
	Suspended      []string
	SplitBrain     string
	LastError      string
	LostAt         Tick // when the peer was lost, 0 if it never was there or is
	Opens          int
	Pending        int // requests of clients under way
	Term           TermSnapshot
	Loss           LossSnapshot
	Volumes        []VolumeSnapshot
}

// A TermSnapshot is what a resource knows of its terms; all zero if they are not
// in use.
type TermSnapshot struct {
	Term, Promised uint64
	Owned          bool   // Primary under Term, by an arbiter's grant
	Sole           bool   // and the only writer, says the arbiter
	Override       bool   // the operator let frozen I/O go on
	Marked         bool   // the sole-writer mark is set on every volume with a disk
	Unknown        string // why there is no promotion under a term
	Frozen         string // why I/O is frozen
	Held           bool   // by the failover manager
	StandsBack     bool   // as Secondary: its copy is Outdated as soon as the connection ends, on disk
	AsksPeer       bool   // as Primary: to stand back
	PeerStandsBack bool   // and it does
	Lease          bool   // the manager has told one, and
	LeaseOver      bool   // it has ended
	Orphan         bool   // and this Primary is frozen without its peer: whoever uses it is to be ended
}

// A VolumeSnapshot is one volume of a Snapshot; sizes in bytes.
type VolumeSnapshot struct {
	Number                    uint16
	State                     drbd.State
	SizeBytes, OutOfSyncBytes uint64
	UUIDs                     meta.UUIDs
	Flags                     meta.Flags
	Counters                  Counters
	Gauges                    Gauges
	WriteOrder                byte // 'f': epochs end with a flush, 'd': they only drain
	Resync                    *ResyncSnapshot
	Verify                    *VerifySnapshot
	VerifyFrom                drbd.Sector // where an online verify continues, 0 if the last one was complete
}

// A VerifySnapshot is the progress of an online verify. The target knows its
// Start and its sizes once the source has asked for the first block.
type VerifySnapshot struct {
	Source                bool
	Start, Stop, Position drbd.Sector // Stop 0 is the end
	TotalBytes, LeftBytes uint64
	FoundBytes            uint64 // out of sync
	FailedBytes           uint64 // the peer could not read these
	RateBytesPerSec       uint64
	BeganAt               Tick
}

// A ResyncSnapshot is the progress of a resync.
type ResyncSnapshot struct {
	Source, Paused        bool
	TotalBytes, LeftBytes uint64
	FailedBytes           uint64 // either node could not read or write these
	SameBytes             uint64 // found equal by their digests, and not sent
	RateBytesPerSec       uint64
	WantBytesPerSec       uint64 // what the resync may do now; 0 on the source
	BeganAt               Tick
}

// Snapshot describes the resource now.
func (r *Resource) Snapshot(now Tick) Snapshot {
	s := Snapshot{
		Role: r.role, PeerRole: r.peerRole, Conn: r.conn, Protocol: r.net.Protocol, Version: r.link.Version,
		Features: r.link.Features, SplitBrain: r.splitBrain, LastError: r.lastError, Opens: r.opens, Pending: r.req.used,
	}
	if r.conn < drbd.Connected {
		s.LostAt = r.lostAt
	}
	for _, why := range []struct {
		name string
		on   bool
	}{{"user", r.susp}, {"no-data", r.noData()}, {"fencing", r.suspFen && !r.terms.owned}, {"term", r.terms.frozen != ""}, {"lease", r.terms.silent}} {
		if why.on {
			s.Suspended = append(s.Suspended, why.name)
		}
	}
	s.Term = r.Term()
	s.Loss = r.lossSnapshot(now)
	gauges := r.gauges()
	for _, v := range r.vols {
		vs := VolumeSnapshot{
			Gauges: *gauges[v], WriteOrder: 'd',
			Number: v.num, State: v.st, SizeBytes: uint64(v.size.Bytes()), UUIDs: v.uuids, Flags: v.sb.Flags, Counters: v.stats,
		}
		if v.opts.DiskFlushes {
			vs.WriteOrder = 'f'
		}
		if v.bitmap != nil {
			vs.OutOfSyncBytes = min(v.bitmap.Weight()*4096, vs.SizeBytes)
		}
		if v.rs.running && v.bitmap != nil {
			oldest := v.rs.marks[(v.rs.mark+1)%len(v.rs.marks)]
			left := v.bitmap.Weight()
			rs := &ResyncSnapshot{
				Source: v.rs.source, Paused: v.st.Paused(), TotalBytes: v.rs.total * 4096, LeftBytes: left * 4096,
				FailedBytes: v.rs.failed * 4096, SameBytes: v.rs.same, BeganAt: v.rs.began,
			}
			if dt := now - oldest.at; dt > 0 && oldest.left > left {
				rs.RateBytesPerSec = (oldest.left - left) * 4096 * 1000 / uint64(dt)
			}
			if !v.rs.source {
				rs.WantBytesPerSec = uint64(v.rs.pace.rate()) * rateStepsPerSecond
			}
			vs.Resync = rs
		}
		vs.Verify, vs.VerifyFrom = v.ov.snapshot(now), v.verifyFrom
		s.Volumes = append(s.Volumes, vs)
	}
	return s
}

// Term is what this node knows of its terms now.
func (r *Resource) Term() TermSnapshot {
	t := &r.terms
	if !t.inUse() {
		return TermSnapshot{}
	}
	return TermSnapshot{
		Term: t.term, Promised: t.promised, Owned: t.owned, Sole: t.sole, Override: t.override,
		Marked: r.marked(), Unknown: r.termUnknown(), Frozen: t.frozen,
		StandsBack: t.standing.stored, AsksPeer: t.standing.asks != 0, PeerStandsBack: r.isUp() && r.peerStandsBack(false),
		Held: t.held, Lease: t.lease != 0, LeaseOver: r.leaseIsOver(), Orphan: r.isOrphan(),
	}
}

// SizeBytes is what volume num exports, in bytes; 0 if it is not known.
func (r *Resource) SizeBytes(num uint16) int64 {
	if v := r.volume(num); v != nil {
		return v.size.Bytes()
	}
	return 0
}

// WantsSent reports whether a client's answer waits for DataSent (protocol A).
func (r *Resource) WantsSent() bool { return r.req.byPos.len() > 0 }

// Role is the role of this node.
func (r *Resource) Role() drbd.Role { return r.role }

// Waiting says in words what the requests of clients wait for that are under
// way, for support and for tests; empty if there are none.
func (r *Resource) Waiting() string {
	var s strings.Builder
	for _, list := range []struct {
		name string
		ids  []RequestID
	}{{"waiting", r.req.waiting}, {"parked", r.req.parked}, {"flush", r.req.flushes}} {
		for _, id := range list.ids {
			q := r.req.get(id)
			fmt.Fprintf(&s, "%s: volume %d op %d sector %d flags %#x epoch %d (now %d, %d not acknowledged) sync %d of %d metadata %d of %d, %v; ",
				list.name, q.v.num, q.op, q.sector, q.flags, q.epoch, r.send_.cur, r.send_.unacked.len(),
				q.v.sync.done, q.syncSeq, q.v.meta.done, q.v.meta.required, q.v.st)
		}
	}
	if n := r.req.log.len(); n > 0 {
		fmt.Fprintf(&s, "%d in the transfer log; ", n)
	}
	return s.String()
}

// VolumeState is the state of volume num alone; the zero state if there is none.
func (r *Resource) VolumeState(num uint16) drbd.State {
	if v := r.volume(num); v != nil {
		return v.st
	}
	return drbd.State{}
}
