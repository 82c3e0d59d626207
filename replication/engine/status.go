package engine

import (
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// Status is one resource, for people and programs.
type Status struct {
	Resource, Node, Peer string
	Role, PeerRole       drbd.Role
	Conn                 drbd.ConnState // of the connection; volumes have more detail
	Protocol             byte
	Suspended            []string // "user", "fencing", "no-data", "term"
	SplitBrain           string   // a sentence, "" if there is none
	LastError            string
	PeerLostSince        time.Time // zero if it is connected or never was
	Violation            string    // how the peer last broke the protocol, "" if it has not since the last connect
	Violations           int       // how often
	ViolationAt          time.Time
	PeerIsPollux         bool
	TLS                  *TLSStatus // nil: plaintext
	Term                 replication.TermSnapshot
	Loss                 replication.LossSnapshot
	WaitsToResume        string // why a former Primary does not serve yet
	Volumes              []VolumeStatus
}

// VolumeStatus is one volume.
type VolumeStatus struct {
	Number, Minor  int
	Device         string
	BackingDisk    string
	MetaDisk       string
	Conn           drbd.ConnState
	Disk, PeerDisk drbd.DiskState
	State          drbd.State
	SizeBytes      uint64
	OutOfSyncBytes uint64
	Resync         *ResyncStatus
	Verify         *VerifyStatus
	VerifyFrom     uint64 // sector where an online verify continues, 0 if the last one was complete
	UUIDs          meta.UUIDs
	Flags          meta.Flags
	Counters       replication.Counters
	Gauges         replication.Gauges
	WriteOrder     string // "f" or "d"
	Open           int
	DiskError      string
}

// TLSStatus is how a connection with TLS is protected; the zero value while
// there is none.
type TLSStatus struct {
	Cipher           string    // as IANA names it
	Until, PeerUntil time.Time // this node's certificate and the peer's are valid so long
}

// ResyncStatus is the progress of a resync.
type ResyncStatus struct {
	Source, Paused                         bool
	TotalBytes, LeftBytes, RateBytesPerSec uint64
	WantBytesPerSec                        uint64 // the target's limit now; 0 on the source
	FailedBytes, SameBytes                 uint64 // unreadable; found equal by digests
	ETASeconds                             int64  // -1 if it cannot be told
	AverageBytesPerSec                     uint64
}

// VerifyStatus is the progress of an online verify; Source drives it.
type VerifyStatus struct {
	ResyncStatus
	StartSector, StopSector uint64 // StopSector 0 is the end
	Position                uint64 // sector: everything between start and this was compared
	FoundBytes              uint64 // out of sync
	FailedBytes             uint64 // the peer could not read these
}

func (s *Status) volume(n int) VolumeStatus {
	for _, v := range s.Volumes {
		if v.Number == n {
			return v
		}
	}
	return VolumeStatus{}
}

// Status describes the resource now.
func (e *Engine) Status() Status {
	e.mu.Lock()
	now := e.now()
	snap := e.core.Snapshot(now)
	s := Status{
		Resource: e.cfg.Resource, Node: e.cfg.Node, Peer: e.cfg.PeerName, Role: snap.Role, PeerRole: snap.PeerRole,
		Conn: snap.Conn, Protocol: snap.Protocol, Suspended: snap.Suspended, SplitBrain: snap.SplitBrain,
		LastError: snap.LastError, Term: snap.Term, Loss: snap.Loss, PeerIsPollux: snap.Features&drbd.FeaturePollux != 0,
	}
	s.Violation, s.Violations, s.ViolationAt = e.violation.text, e.violation.count, e.violation.last
	s.TLS = e.tlsStatus()
	if snap.Conn < drbd.Connected && (s.LastError == "" || strings.HasPrefix(e.connectError, tlsPrefix)) {
		s.LastError = e.connectError
	}
	if snap.Conn < drbd.Connected {
		s.PeerLostSince = e.peerLostSince
	}
	e.mu.Unlock()
	s.WaitsToResume = e.resume.frozen(e)
	for i, v := range e.vols {
		vs := snap.Volumes[i]
		v.errMu.Lock()
		diskErr := v.diskErr
		v.errMu.Unlock()
		st := VolumeStatus{
			Number: v.cfg.Number, Minor: v.cfg.Minor, Device: v.cfg.Device, BackingDisk: v.cfg.Disk, MetaDisk: v.cfg.MetaDisk,
			Conn: vs.State.Conn, Disk: vs.State.Disk, PeerDisk: vs.State.Pdsk, State: vs.State, SizeBytes: vs.SizeBytes,
			OutOfSyncBytes: vs.OutOfSyncBytes, UUIDs: vs.UUIDs, Flags: vs.Flags, Counters: vs.Counters, Open: snap.Opens,
			DiskError: diskErr, Gauges: vs.Gauges, WriteOrder: string(vs.WriteOrder),
		}
		if r := vs.Resync; r != nil {
			st.Resync = &ResyncStatus{
				Source: r.Source, Paused: r.Paused, TotalBytes: r.TotalBytes, LeftBytes: r.LeftBytes,
				RateBytesPerSec: r.RateBytesPerSec, ETASeconds: -1,
				WantBytesPerSec: r.WantBytesPerSec, FailedBytes: r.FailedBytes, SameBytes: r.SameBytes,
			}
			st.Resync.estimate()
			st.Resync.average(now - r.BeganAt)
		}
		st.Verify, st.VerifyFrom = verifyStatus(vs.Verify), uint64(vs.VerifyFrom)
		if st.Verify != nil {
			st.Verify.average(now - vs.Verify.BeganAt)
		}
		s.Volumes = append(s.Volumes, st)
	}
	return s
}

// average fills in AverageBytesPerSec; it has taken so long until now.
func (s *ResyncStatus) average(took replication.Tick) {
	if took > 0 && s.LeftBytes < s.TotalBytes {
		s.AverageBytesPerSec = (s.TotalBytes - s.LeftBytes) * 1000 / uint64(took)
	}
}

// estimate fills in ETASeconds.
func (s *ResyncStatus) estimate() {
	s.ETASeconds = -1
	if s.RateBytesPerSec > 0 {
		s.ETASeconds = int64((s.LeftBytes + s.RateBytesPerSec - 1) / s.RateBytesPerSec)
	}
}

func verifyStatus(v *replication.VerifySnapshot) *VerifyStatus {
	if v == nil {
		return nil
	}
	s := &VerifyStatus{
		ResyncStatus: ResyncStatus{Source: v.Source, TotalBytes: v.TotalBytes, LeftBytes: v.LeftBytes, RateBytesPerSec: v.RateBytesPerSec},
		StartSector:  uint64(v.Start), StopSector: uint64(v.Stop), Position: uint64(v.Position), FoundBytes: v.FoundBytes, FailedBytes: v.FailedBytes,
	}
	s.estimate()
	return s
}

// An Event is one change, for the event stream.
type Event struct {
	Resource string
	Volume   int
	Kind     string // "state", "report", "handler", "term"
	From, To drbd.State
	Text     string
}

// eventHub hands events to subscribers; a slow one loses events, never time of ours.
type eventHub struct {
	mu   sync.Mutex
	next int
	subs map[int]chan Event
}

const eventBacklog = 256

func (h *eventHub) publish(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.subs {
		select {
		case c <- ev:
		default:
		}
	}
}

// Subscribe calls f for every change, in order, from a goroutine of its own,
// until cancel. A subscriber that cannot keep up misses changes.
func (e *Engine) Subscribe(f func(Event)) (cancel func()) {
	h := &e.events
	c := make(chan Event, eventBacklog)
	h.mu.Lock()
	id := h.next
	h.next++
	if h.subs == nil {
		h.subs = map[int]chan Event{}
	}
	h.subs[id] = c
	h.mu.Unlock()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case ev := <-c:
				f(ev)
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		h.mu.Lock()
		delete(h.subs, id)
		h.mu.Unlock()
		close(done)
	})
}

// stateChanged logs a change in one form and tells the subscribers; under the lock.
func (e *Engine) stateChanged(b *batch, a *replication.Action) {
	var l *zerolog.Event // nil writes nothing
	if n, ok := e.loud.may(time.Now()); ok {
		l = e.log.Info().Func(suppressed(n)).Int("vol", int(a.Volume)).Str("peer", e.cfg.PeerName)
	}
	if a.From.Conn != a.To.Conn {
		l = l.Str("conn", a.From.Conn.String()+" -> "+a.To.Conn.String())
	}
	if a.From.Role != a.To.Role {
		l = l.Str("role", a.From.Role.String()+" -> "+a.To.Role.String())
	}
	if a.From.Peer != a.To.Peer {
		l = l.Str("peer-role", a.From.Peer.String()+" -> "+a.To.Peer.String())
	}
	if a.From.Disk != a.To.Disk {
		l = l.Str("disk", a.From.Disk.String()+" -> "+a.To.Disk.String())
	}
	if a.From.Pdsk != a.To.Pdsk {
		l = l.Str("peer-disk", a.From.Pdsk.String()+" -> "+a.To.Pdsk.String())
	}
	l.Str("reason", a.Text).Msg("state")
	if a.From.Conn < drbd.Connected && a.To.Conn >= drbd.Connected {
		e.peerLostSince = time.Time{}
	}
	e.events.publish(Event{Resource: e.cfg.Resource, Volume: int(a.Volume), Kind: "state", From: a.From, To: a.To, Text: a.Text})
	if a.To.Conn >= drbd.Connected && a.From.Conn < drbd.Connected {
		b.cold = append(b.cold, func() { go e.resume.connected(e) })
	}
}
