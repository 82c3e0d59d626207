package replication

import "github.com/pollux-project/pollux/protocol/drbd"

// reqFlags is what is known of a client request.
type reqFlags uint32

const (
	localPending reqFlags = 1 << iota // its local part has not ended
	localOK
	netPending // the peer's part that the protocol demands has not come
	netOK
	inLog       // in the transfer log: its epoch is not acknowledged
	rsWriteAck  // the peer answered P_RS_WRITE_ACK: bits may be cleared
	replicated  // P_DATA was sent: counts in its epoch
	completed   // the client is answered
	alHeld      // holds references on activity log extents
	isActive    // stands in the volume's active ranges
	isParked    // ended, but the answer must wait (frozen, or a UUID not on disk)
	needsProof  // flush with a kernel peer: the proof read is under way
	writeAcked  // the peer has written it: P_WRITE_ACK or P_RS_WRITE_ACK
	isPostponed // the peer did not take it because of a write of its own (conflict.go)
	isTainted   // to be begun anew: this disk may hold its data, the peer's not
	mustRepeat  // to be begun anew instead of being answered
	keepsBits   // later writes went to this disk alone: its end clears no bits
	hanging     // its local I/O was given up and has not ended: the slot stays taken
	moved       // its local I/O was given up: its data are not in the client's memory any more
	isZombie    // over but for an I/O that hangs
	isBalanced  // a read that the peer serves although this node could
	localOnly   // a read that the peer has refused
	toTarget    // the peer's copy was not UpToDate when it was sent
	isExchanged // its bits are in a bitmap that the peer has: the resync copies it
	byReceipt   // protocol B: P_RECV_ACK answers it
	oneSided    // this disk has failed to take it: its bits stay set until it is over
	isTimed     // the caller wants to hear of each Point
	atRisk      // answered, and lost if this node is now (loss.go)
	isHeld      // its answer waits, for no more may be lost
)

// request is a slot of the table of client requests.
type request struct {
	id     RequestID
	gen    uint32 // of the slot: makes block ids of different users differ
	used   bool
	op     Op
	fua    bool
	unmap  bool
	flags  reqFlags
	v      *volume
	sector drbd.Sector
	size   uint32
	epoch  uint32
	data   []byte
	tag    any
	err    error
	since  Tick   // when the peer was asked
	begun  Tick   // when its local I/O began, if there is a disk-timeout
	pos    uint64 // protocol A: end of its bytes in the data stream

	syncSeq uint64 // the fdatasync that a flush needs, and that makes a write stable; 0: none
}

func (q *request) is(f reqFlags) bool        { return q.flags&f != 0 }
func (q *request) set(f reqFlags)            { q.flags |= f }
func (q *request) clear(f reqFlags)          { q.flags &^= f }
func (q *request) end() drbd.Sector          { return q.sector + drbd.Sector(q.size>>9) }
func (q *request) blockID() uint64           { return uint64(q.gen)<<32 | uint64(q.id) + 1 }
func (q *request) changesData() bool         { return q.op == OpWrite || q.op == OpTrim || q.op == OpZero }
func idOfBlock(b uint64) (RequestID, uint32) { return RequestID(uint32(b) - 1), uint32(b >> 32) }

const chunkSize = 256

// requests is the table of client requests: slots in chunks that never move,
// the transfer log, and the lists of those that wait.
type requests struct {
	chunks    []*[chunkSize]request
	free      []RequestID
	used      int
	log       ring[RequestID] // the transfer log, in send order
	waiting   []RequestID     // not begun, in order of arrival
	parked    []RequestID     // ended, not answered
	flushes   []RequestID     // flushes under way
	postponed []RequestID     // isPostponed
	reads     int             // remote reads under way
	byPos     ring[RequestID] // protocol A: replicated, not yet handed to the socket
}

func (t *requests) init() { t.free = make([]RequestID, 0, chunkSize) }

func (t *requests) get(id RequestID) *request { return &t.chunks[id/chunkSize][id%chunkSize] }

// lookup finds the request that a block id of the peer names.
func (t *requests) lookup(block uint64) *request {
	id, gen := idOfBlock(block)
	if uint32(block) == 0 || int(id) >= len(t.chunks)*chunkSize {
		return nil
	}
	if q := t.get(id); q.used && q.gen == gen {
		return q
	}
	return nil
}

// alloc returns a free slot, or nil if the table is full.
func (t *requests) alloc() *request {
	if len(t.free) == 0 {
		if len(t.chunks)*chunkSize >= maxRequests {
			return nil
		}
		base := RequestID(len(t.chunks) * chunkSize)
		c := new([chunkSize]request)
		t.chunks = append(t.chunks, c)
		for i := chunkSize - 1; i >= 0; i-- {
			c[i].id = base + RequestID(i)
			t.free = append(t.free, base+RequestID(i))
		}
	}
	id := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.used++
	q := t.get(id)
	*q = request{id: id, gen: (q.gen + 1) & 0x7fffffff, used: true}
	return q
}

func (t *requests) release(q *request) {
	q.used = false
	q.data, q.tag, q.v, q.err = nil, nil, nil, nil
	t.used--
	t.free = append(t.free, q.id)
}

// ring is a growing queue without allocation in the steady state.
type ring[T any] struct {
	buf  []T
	head int
	n    int
}

func (q *ring[T]) len() int { return q.n }

func (q *ring[T]) push(v T) {
	if q.n == len(q.buf) {
		grown := make([]T, max(64, 2*len(q.buf)))
		for i := range q.n {
			grown[i] = *q.at(i)
		}
		q.buf, q.head = grown, 0
	}
	q.buf[(q.head+q.n)&(len(q.buf)-1)] = v
	q.n++
}

func (q *ring[T]) at(i int) *T { return &q.buf[(q.head+i)&(len(q.buf)-1)] }

func (q *ring[T]) pop() T {
	v := *q.at(0)
	var zero T
	*q.at(0) = zero
	q.head = (q.head + 1) & (len(q.buf) - 1)
	q.n--
	return v
}

// removeFunc takes out what del says.
func (q *ring[T]) removeFunc(del func(T) bool) {
	kept := 0
	for i := range q.n {
		if v := *q.at(i); !del(v) {
			*q.at(kept) = v
			kept++
		}
	}
	var zero T
	for i := kept; i < q.n; i++ {
		*q.at(i) = zero
	}
	q.n = kept
}

// rangeKind is who holds a range of a volume.
type rangeKind uint16

const (
	clientWrite  rangeKind = 1 << iota // from its begin to the client's answer
	peerWrite                          // while its local I/O runs
	resyncWrite                        // a resync block being written here
	resyncAsked                        // a resync block asked of the peer
	resyncOwed                         // the same of a resync that is over: its answer may still come
	resyncRead                         // a resync block being read for the peer
	peerRead                           // a block being read for the peer
	verifyRead                         // a block being read for an online verify, on either node
	csumRead                           // a block of a sync target being read for its digest
	balancedRead                       // a client's read that the peer serves
)

// What each kind waits for before it may begin. A resync block asked of the
// peer does not hold up the peer's writes: on the data socket the order of
// arrival is the order of truth (drbd84-protocol, 10.3 trap 23).
const (
	clientWriteWaitsFor = clientWrite | peerWrite | resyncWrite | resyncAsked | resyncRead | verifyRead | balancedRead
	peerWriteWaitsFor   = clientWrite | peerWrite | resyncWrite | resyncRead | verifyRead
	resyncWriteWaitsFor = clientWrite | peerWrite | resyncWrite
	resyncReadWaitsFor  = clientWrite | peerWrite | resyncWrite
	resyncAskWaitsFor   = clientWrite | peerWrite | resyncWrite
	peerReadWaitsFor    = peerWrite | resyncWrite
)

type activeRange struct {
	start, end drbd.Sector
	kind       rangeKind
	id         uint32
}

// rangeSet is the set of ranges in use on a volume: a dense slice, because
// few are in flight and a scan of a few cache lines beats any tree.
type rangeSet struct{ r []activeRange }

// busy reports whether [start, end) overlaps a range of one of the kinds.
func (s *rangeSet) busy(start, end drbd.Sector, kinds rangeKind) bool {
	for i := range s.r {
		if a := &s.r[i]; a.start < end && start < a.end && a.kind&kinds != 0 {
			return true
		}
	}
	return false
}

func (s *rangeSet) insert(start, end drbd.Sector, kind rangeKind, id uint32) {
	s.r = append(s.r, activeRange{start, end, kind, id})
}

// find returns a range, nil if it is not there; valid until the next change.
func (s *rangeSet) find(kind rangeKind, id uint32) *activeRange {
	for i := range s.r {
		if s.r[i].id == id && s.r[i].kind == kind {
			return &s.r[i]
		}
	}
	return nil
}

// remove takes out one range; it reports whether it was there.
func (s *rangeSet) remove(kind rangeKind, id uint32) bool {
	for i := range s.r {
		if s.r[i].id == id && s.r[i].kind == kind {
			last := len(s.r) - 1
			s.r[i] = s.r[last]
			s.r = s.r[:last]
			return true
		}
	}
	return false
}

// removeAt takes out the range of a kind that begins at start.
func (s *rangeSet) removeAt(kind rangeKind, start drbd.Sector) bool {
	for i := range s.r {
		if s.r[i].start == start && s.r[i].kind == kind {
			last := len(s.r) - 1
			s.r[i] = s.r[last]
			s.r = s.r[:last]
			return true
		}
	}
	return false
}

// count is the number of ranges of some kinds.
func (s *rangeSet) count(kinds rangeKind) int {
	n := 0
	for i := range s.r {
		if s.r[i].kind&kinds != 0 {
			n++
		}
	}
	return n
}

// removeKind takes out all ranges of some kinds.
func (s *rangeSet) removeKind(kinds rangeKind) {
	kept := s.r[:0]
	for _, a := range s.r {
		if a.kind&kinds == 0 {
			kept = append(kept, a)
		}
	}
	s.r = kept
}
