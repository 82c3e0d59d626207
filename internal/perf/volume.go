package perf

import (
	"sync"
	"sync/atomic"
	"time"
)

// A Dir is what is measured: a kind of request, or the disk's own work.
type Dir uint8

// The directions.
const (
	Write     Dir = iota // a client's write
	ReadDir              // a client's read
	Flush                // a client's flush
	Discard              // a client's trim or write-zeroes
	PeerWrite            // a write of the peer's client, here on the Secondary
	Disk                 // what is measured each time
	Dirs
)

// A Hop is a part of a request's way.
type Hop uint8

// The hops, in the order that a request meets them. The last three are of Disk.
const (
	NBDIn Hop = iota
	Receive
	Conflict
	ActivityLog
	LocalQueue
	Local
	Send
	Peer
	Ack
	Reply
	Rest
	Total
	Fdatasync
	Transaction
	Metadata
	Hops
)

// The words of the CLI and, with _ for each blank, of the metrics.
var (
	dirNames = [Dirs]string{"write", "read", "flush", "discard", "peer write", "disk"}
	hopNames = [Hops]string{
		"NBD in", "receive", "conflict", "activity log", "local queue", "local", "send", "peer", "ack", "reply", "rest", "total",
		"fdatasync", "AL transaction", "metadata write",
	}
)

func (d Dir) String() string { return dirNames[d] }
func (h Hop) String() string { return hopNames[h] }

// Name is what h is called in d: "local" says what was done there.
func (h Hop) Name(d Dir) string {
	switch {
	case h == Local && d == PeerWrite:
		return "local write"
	case h == Local:
		return "local " + d.String()
	}
	return h.String()
}

// A Volume holds what was measured on one volume. Its zero value is empty; all
// methods are safe for concurrent use. On a nil Volume nothing is measured.
type Volume struct {
	hist     [Dirs][Hops]atomic.Pointer[Histogram]
	critical [Dirs][Hops]atomic.Int64
	requests [Dirs]atomic.Uint64
	every    int

	mu   sync.Mutex
	base []DirTimes // what does not count since Reset
	from time.Time  // of base
}

// NewVolume returns an empty Volume whose Samplers pick at least one of every
// requests, however many there are; nil for 0.
func NewVolume(every int) *Volume {
	if every <= 0 {
		return nil
	}
	now := time.Now()
	return &Volume{every: every, from: now}
}

// Every is the least share of requests that is measured: one of so many.
func (v *Volume) Every() int { return v.every }

// Reset has SinceReset begin anew. Snapshot goes on counting.
func (v *Volume) Reset() {
	now := v.Snapshot()
	v.mu.Lock()
	v.base, v.from = now, time.Now()
	v.mu.Unlock()
}

// SinceReset is what was measured since the last Reset, or the beginning, and
// when that was.
func (v *Volume) SinceReset() ([]DirTimes, time.Time) {
	now := v.Snapshot()
	v.mu.Lock()
	defer v.mu.Unlock()
	return Since(now, v.base), v.from
}

// Add counts one duration of a hop, in ns.
func (v *Volume) Add(d Dir, h Hop, ns int64) {
	if v == nil {
		return
	}
	p := &v.hist[d][h]
	hist := p.Load()
	if hist == nil {
		p.CompareAndSwap(nil, new(Histogram))
		hist = p.Load()
	}
	hist.Add(ns)
}

// Time counts what has passed since began, a Now.
func (v *Volume) Time(h Hop, began int64) {
	if v != nil {
		v.Add(Disk, h, Now()-began)
	}
}

// decisive counts one that the request's total waited for.
func (v *Volume) decisive(d Dir, h Hop, ns int64) {
	v.Add(d, h, ns)
	v.critical[d][h].Add(max(ns, 0))
}

// PeerWritten counts one write of the peer: when it was read, ordered from the
// disk, begun, done, and its acknowledgement in the socket; 0 if it has none.
func (v *Volume) PeerWritten(read, ordered, begun, done, sent int64) {
	v.decisive(PeerWrite, Receive, ordered-read)
	v.decisive(PeerWrite, LocalQueue, begun-ordered)
	v.decisive(PeerWrite, Local, done-begun)
	if sent == 0 {
		sent = done
	} else {
		v.decisive(PeerWrite, Ack, sent-done)
	}
	v.Add(PeerWrite, Total, sent-read)
}

// Fold counts the hops of a request whose reply was handed to the client's
// socket at this time.
func (v *Volume) Fold(d Dir, t *Trace, replied int64) {
	at := &t.at
	if at[Completed] == 0 || at[Submitted] == 0 {
		return
	}
	started := at[Started]
	if started == 0 { // over before anything was begun
		started = at[Completed]
	}
	sum := int64(0)
	is := func(h Hop, ns int64) {
		v.decisive(d, h, ns)
		sum += max(ns, 0)
	}
	is(NBDIn, at[Submitted]-at[Read])
	if waits := at[Waits]; waits != 0 {
		is(Conflict, waits-at[Submitted])
		is(ActivityLog, started-waits)
	} else {
		is(Conflict, started-at[Submitted])
	}
	hasLocal, peerEnd := at[LocalDone] != 0, at[Acked]
	if peerEnd == 0 && t.isSent() { // protocol A waits for nothing else
		peerEnd = t.sentAt(at[Completed])
	}
	add := v.Add
	switch crit := func(d Dir, h Hop, ns int64) { is(h, ns) }; {
	case peerEnd != 0 && (!hasLocal || peerEnd >= at[LocalDone]):
		v.local(d, t, add, hasLocal)
		v.peer(d, t, crit)
	default:
		v.local(d, t, crit, hasLocal)
		if peerEnd != 0 {
			v.peer(d, t, add)
		}
	}
	is(Reply, replied-at[Completed])
	total := replied - at[Read]
	v.decisive(d, Rest, total-sum)
	v.Add(d, Total, total)
}

func (v *Volume) local(d Dir, t *Trace, add func(Dir, Hop, int64), has bool) {
	if !has {
		return
	}
	begun := t.at[LocalBegun]
	if begun < t.at[Started] { // a flush: one fdatasync serves many
		begun = t.at[Started]
	} else if d != Flush {
		add(d, LocalQueue, begun-t.at[Started])
	}
	add(d, Local, t.at[LocalDone]-begun)
}

func (v *Volume) peer(d Dir, t *Trace, add func(Dir, Hop, int64)) {
	read := t.at[AckRead]
	switch {
	case read == 0:
		add(d, Send, t.sentAt(t.at[Completed])-t.at[Started])
		return
	case d == Flush: // its barrier is sent when that is due: no packet of its own
		add(d, Peer, read-t.at[Started])
	default:
		sent := t.sentAt(read)
		add(d, Send, sent-t.at[Started])
		add(d, Peer, read-sent)
	}
	add(d, Ack, t.at[Completed]-read)
}

// A HopTimes is what was measured of one hop.
type HopTimes struct {
	Hop      Hop
	Critical int64 // ns: of the samples' totals, what was spent waiting for this hop alone
	Snapshot
}

// A DirTimes is what was measured in one direction: hops in their order, none
// without samples. Requests is the number of all of them, to within one interval
// of each client's Sampler; 0 for Disk.
type DirTimes struct {
	Dir      Dir
	Requests uint64
	Hops     []HopTimes
}

// Snapshot is what was measured until now; directions without samples are left out.
func (v *Volume) Snapshot() []DirTimes {
	if v == nil {
		return nil
	}
	var all []DirTimes
	for d := range Dirs {
		t := DirTimes{Dir: d, Requests: v.requests[d].Load()}
		for h := range Hops {
			if s := v.hist[d][h].Load().Snapshot(); s.Count > 0 {
				t.Hops = append(t.Hops, HopTimes{h, v.critical[d][h].Load(), s})
			}
		}
		if len(t.Hops) > 0 {
			all = append(all, t)
		}
	}
	return all
}

// Since is what was measured between two Snapshots of a Volume. What has no
// samples is left out.
func Since(now, old []DirTimes) []DirTimes {
	var all []DirTimes
	for _, d := range now {
		t := DirTimes{Dir: d.Dir, Requests: d.Requests}
		var before []HopTimes
		for _, o := range old {
			if o.Dir == d.Dir {
				before = o.Hops
				t.Requests -= o.Requests
			}
		}
		for _, h := range d.Hops {
			for _, o := range before {
				if o.Hop == h.Hop {
					h.Snapshot, h.Critical = h.Snapshot.Since(o.Snapshot), h.Critical-o.Critical
				}
			}
			if h.Count > 0 {
				t.Hops = append(t.Hops, h)
			}
		}
		if len(t.Hops) > 0 {
			all = append(all, t)
		}
	}
	return all
}
