package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// Limits of one resource. They bound its memory; a full table makes clients
// wait and never drops a request.
const (
	// maxRequests is the size of the request table: writes stay in it until the
	// peer has acknowledged their epoch.
	maxRequests = 32768
	// hurryRequests is when a peer that acknowledges epochs lazily is asked to hurry.
	hurryRequests = maxRequests / 2
	// maxPeerRequests bounds what the peer may have outstanding here before its
	// data socket is no longer read.
	maxPeerRequests = 2048
	// maxUnacked bounds the blocks of a resync that were sent and not
	// acknowledged, and the ranges of a verify without a result: twice what the
	// largest max-buffers lets a kernel have under way.
	maxUnacked = 1 << 18
	// maxRecvEpochs bounds the peer's epochs that are not acknowledged before its
	// data socket is no longer read; a Pollux has at most maxRequests.
	maxRecvEpochs = 2 * maxRequests
)

// Our own pacing, in milliseconds.
const (
	barrierIdleMS  = 50   // a closed epoch is sent to the peer after so long without a further write
	proofIdleMS    = 200  // a kernel peer is asked for the proof of its flush so long after its last acknowledgement
	commitLazyMS   = 1000 // default of Config.CommitLazyMS
	resyncTickMS   = 100  // drbd84-protocol, 7.2: SLEEP_TIME
	bitmapLazyMS   = 2000 // changed bitmap pages reach the disk so long after the change
	handshakeMS    = 30000
	bitmapMS       = 120000 // the same for the exchange of bitmaps and for an attach
	commandRetryMS = 200
)

// Config is what a Resource needs to know. The zero value is not usable.
type Config struct {
	Name          string
	Net           NetOptions
	NoDataSuspend bool   // on-no-data-accessible suspend-io
	Seed          uint64 // of the source of UUIDs; random in production
	Handlers
	// CommitLazyMS is how long after its P_BARRIER an epoch of a Pollux peer is
	// made durable at the latest, if the peer does not hurry it; 0 means 1000.
	CommitLazyMS int64
}

// Handlers are those of the configured ones that the core waits for.
type Handlers struct {
	// HasFenceHandler is whether a fence-peer handler is configured. Without one
	// a freeze (fencing resource-and-stonith) ends when the peer is back or the
	// operator says resume-io.
	HasFenceHandler bool
	// HasBeforeResyncSource and HasBeforeResyncTarget are whether these handlers
	// are configured: a resync waits for them.
	HasBeforeResyncSource, HasBeforeResyncTarget bool
}

// A Resource decides everything for one replicated resource: roles, states,
// UUIDs, who gets which write, when a client is answered. See doc.go for the
// contract of Step. It is not safe for concurrent use.
type Resource struct {
	cfg  Config
	net  NetOptions
	rnd  uint64
	now  Tick
	vols []*volume // ascending by number

	role     drbd.Role
	conn     drbd.ConnState // up to WFReportParams; Connected once any volume is
	susp     bool           // by the user
	suspFen  bool           // until the peer is fenced
	peerRole drbd.Role
	// peerFrozen: the peer has come back with its I/O frozen, so it has not
	// crashed since the contact was lost.
	peerFrozen bool
	opens      int

	link          Link
	peerPollux    bool
	integrity     string // of the data that this node sends, "" for none
	integritySize int    // bytes of a digest by it
	wantConnect   bool   // the operator wants a connection
	// awaitsDisk: StandAlone since the peer's copy is not the one that this diskless
	// Primary uses. With its own disk, or demoted, it looks for the peer again.
	awaitsDisk  bool
	stateSent   bool // our first P_STATE of this connection is out
	gotProtocol bool
	peerNet     drbd.ProtocolPacket
	unsettled   bool // the last connection left epochs that are not stable here
	settling    []syncWait
	tearingDown bool // the peer's disconnect is granted; it will close
	lostAt      Tick // when the connection was lost

	req   requests
	peer  peerRequests
	held  heldWrite // waits for its turn
	send_ sendEpochs
	recv  recvEpochs

	dataPos      uint64   // bytes filed for the data socket of this connection
	connGen      uint32   // number of the connection
	needProof    bool     // kernel peer: a write has left its epoch since the last proven FLUSH
	strictWait   bool     // kernel peer: reading stopped at a P_BARRIER
	proof        *request // kernel peer: asked for what it has not flushed for sure, nil if not
	conflictTold bool     // the operator has heard of this connection's conflicts
	unknown      []uint16 // and of these volumes, which only the peer has
	readPaused   bool
	lastReceived Tick
	lastData     Tick // the same of the data socket
	pingedAt     Tick // when the peer was last asked whether it is alive
	pingWaiters  []func()
	resyncs      uint64 // begun
	targetsAsk   int    // volumes whose before-resync-target runs

	timers   [timerCount]Tick
	timerSet Tick

	verifyRuns uint64   // number of the last online verify
	sums       [][]byte // idle buffers for digests

	cmd      *command
	cmdQueue []Command
	stepping bool // commandStep runs: it is not entered twice

	terms terms
	loss  lossAccount

	links        uint32 // how many connections have finished their handshake
	fencePending bool
	fenceRunning bool
	fenceLink    uint32 // links when the fence-peer handler was started

	growing    int    // volumes whose size is being changed: the data socket isn't read
	splitBrain string // the sentence for the operator, empty if none
	lastError  string
	reported   string // of lastError, what need not be said again

	congested *volume // its writes pile up on the way to the peer (on-congestion)

	kick     bool // something may have become possible for a waiting request
	kickPeer bool
	// kickCommand has the running command looked at: not from within a list
	// of requests that it might change.
	kickCommand bool
	wake        bool // a freeze has ended
	actions     []Action
	arena       []byte
}

// volume is one replicated device.
type volume struct {
	num  uint16
	opts DiskOptions
	st   drbd.State

	// The disk, valid while st.Disk > Attaching.
	sb        meta.Superblock
	uuids     meta.UUIDs
	bitmap    *meta.Bitmap
	al        *meta.ActivityLog
	usable    drbd.Sector
	blockSize uint32
	crashed   bool // crashed primary
	// standsBack: the superblock says Outdated while the connection lasts; see standback.go.
	standsBack bool
	negDisk    drbd.DiskState
	negPdsk    drbd.DiskState

	grow *growth // a change of size under way, or nil
	// growPending: this node has grown by its operator's wish, the peer's answer
	// begins the resync. grewBoth: both have, while they were not connected.
	growPending, grewBoth bool
	held                  bool        // no write of a client begins: metadata is being changed as a whole
	size                  drbd.Sector // what is exported; 0 = not known yet
	exposed               uint64      // current UUID of the data last shown to the application

	// What the peer said; reset with every connection.
	havePeerUUIDs bool
	peerSays      drbd.Role // its role by its last P_STATE that said Connected: then it knows this node's state, too
	peerUUIDs     meta.UUIDs
	peerBits      uint64
	peerUUIDFlags uint64
	sentBits      uint64 // what this node's last P_UUIDS said: both decide by the same numbers
	havePeerSizes bool
	tooSmall      string // why the peer may refuse our size, empty if it has no reason
	peerSizes     drbd.Sizes
	forcedPeer    bool // the peer was force-promoted while both were Inconsistent
	handshakeDone bool
	discardMyData bool // until the handshake of this volume is over

	// owed: this diskless Primary lost the connection before the peer, the only
	// copy, had acknowledged all epochs; lost: that peer has crashed since.
	owed, lost bool
	// unproven: the connection was lost before the peer had acknowledged all epochs
	// that clients were answered for, and they were not resynced since.
	unproven bool
	// endUnknown: the connection was lost when the target of the resync from here
	// may have finished it, and may go on alone with the generation of this node.
	endUnknown bool
	// strayed: clients were answered for writes that only the peer has. The disk
	// that was in use before lacks them, whatever its UUIDs say.
	strayed bool
	// leaving: the disk is being detached while the peer has good data. From now
	// on only the peer's copy goes on, so that this one is left as Outdated.
	leaving bool

	oneSided bool // some request in the transfer log may be it

	sendSeq uint32
	peerSeq uint32 // the highest number seen from the peer
	inLog   uint64 // bytes in the transfer log: sent, their epoch not acknowledged
	ahead   []span // what the peer may have cleared by an answer that came while this node was Ahead

	meta metaIO
	sync dataSync
	// starved is the request (its id + 1) that could not have its extents:
	// until it has them no other request takes new ones.
	starved RequestID
	passed  int // writes that have begun before it all the same
	taken   int // slots given to extents since the disks were synced for the log
	// remoteTurn is whether the last read of read-balancing round-robin went to the peer.
	remoteTurn bool
	active     rangeSet // client writes until completed, peer writes, resync I/O
	local      int      // local I/Os in flight
	rs         resync
	start      syncStart
	ov         verification
	rx         *drbd.BitmapReceiver
	tx         *drbd.BitmapSender
	// otherSectors counts the application's I/O on this disk, the peer's included.
	otherSectors uint64

	verifyFrom drbd.Sector // where a verify begins if the operator does not say
	// strayAnswers may come to a resync that ended with the disk.
	strayAnswers int
	verifyOwed   int // answers that the peer owes to a verify that is over

	stats Counters

	// The durable part of the terms; see term.go.
	sole, soleTerm uint64 // the sole-writer mark: a generation, and the term it was written under
	termUnknown    string
	termDirty      bool // the copies of the record differ
	termUnsaved    bool // termUnknown is for the state directory's copy alone, which could not be written
}

// Counters of one volume since the attach, in bytes unless they say otherwise.
type Counters struct {
	ReadBytes     uint64
	WrittenBytes  uint64
	SentBytes     uint64
	ReceivedBytes uint64
	ALWrites      uint64 // transactions
	BMWrites      uint64 // pages
	Conflicts     uint64 // writes that met one of the other node, with two Primaries
}

// New returns a resource without volumes, Secondary and StandAlone.
func New(cfg Config) *Resource {
	r := &Resource{cfg: cfg, net: cfg.Net, rnd: cfg.Seed, role: drbd.Secondary, conn: drbd.StandAlone}
	r.req.init()
	if r.cfg.CommitLazyMS == 0 {
		r.cfg.CommitLazyMS = commitLazyMS
	}
	return r
}

// AddVolume adds volume num, diskless. Volumes are added before the first
// event; num must be new.
func (r *Resource) AddVolume(num uint16, opts DiskOptions) {
	v := &volume{num: num, opts: opts, st: drbd.State{Role: drbd.Secondary, Conn: drbd.StandAlone, Pdsk: drbd.DUnknown}}
	i := 0
	for i < len(r.vols) && r.vols[i].num < num {
		i++
	}
	if i < len(r.vols) && r.vols[i].num == num {
		panic(fmt.Sprintf("replication: volume %d of %s added twice", num, r.cfg.Name))
	}
	r.vols = append(r.vols, nil)
	copy(r.vols[i+1:], r.vols[i:])
	r.vols[i] = v
}

func (r *Resource) volume(num uint16) *volume {
	for _, v := range r.vols {
		if v.num == num {
			return v
		}
	}
	return nil
}

// random is splitmix64 over the configured seed: equal input gives equal output.
func (r *Resource) random() uint64 {
	r.rnd += 0x9e3779b97f4a7c15
	z := r.rnd
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	if z&^1 == 0 || z&^1 == meta.UUIDJustCreated {
		return r.random() // 0 and 4 have a meaning of their own
	}
	return z
}

// Step consumes one event and returns what the caller must do now, in this
// order. It performs no I/O, reads no clock, starts no goroutine. The slice is
// valid until the next Step.
func (r *Resource) Step(ev *Event) []Action {
	r.actions = r.actions[:0]
	r.arena = r.arena[:0]
	if ev.At > r.now {
		r.now = ev.At
	}
	if r.needsPeer() && ev.Kind != Received && ev.Kind != SocketsDown {
		r.lookForPeer() // before anything is read that another owner may have changed
	}
	switch ev.Kind {
	case Submitted:
		r.submitted(ev)
	case LocalDone:
		r.localDone(ev)
	case PeerLocalDone:
		r.peerLocalDone(ev)
	case MetaDone:
		r.metaDone(ev)
	case Synced:
		r.synced(ev)
	case Attached:
		r.attached(ev)
	case SocketsUp:
		r.socketsUp(ev)
	case Received:
		r.received(ev)
	case SocketsDown:
		r.connectionLost(ev.Reason, ev.Err)
	case TimerFired:
		r.timerSet = 0
		r.timerFired()
	case DataSent:
		r.dataSent(ev.Pos)
	case Drained:
		r.sendBitmaps()
	case Commanded:
		r.commanded(ev.Command)
	case HandlerDone:
		r.handlerDone(ev)
	case SendBlocked:
		if r.timers[timerPong] == 0 {
			r.ping()
		}
	case DiskProbed:
		r.diskProbed(ev)
	default:
		panic(fmt.Sprintf("replication: no case for event %d in Step", ev.Kind))
	}
	if r.needsPeer() {
		r.lookForPeer()
	}
	r.maintain()
	r.mustHold()
	return r.actions
}

// maintain is cheap and idempotent: it does whatever has become possible.
func (r *Resource) maintain() {
	r.maybeConnect()
	for r.kick || r.kickPeer || r.kickCommand || r.wake || r.congested != nil {
		if r.congested != nil {
			r.relieve()
		}
		if r.wake {
			r.wake = false
			r.unpark()
			r.kick = true
		}
		if r.kickCommand {
			r.kickCommand = false
			r.commandStep()
		}
		if r.kickPeer {
			r.kickPeer = false
			r.startWaitingPeer()
		}
		if r.kick {
			r.kick = false
			r.startWaiting()
		}
	}
	for _, v := range r.vols {
		if v.st.Disk == drbd.Failed {
			r.maybeCloseDisk(v)
		}
		if v.ov.kick {
			r.askVerify(v)
		}
		if v.grow != nil {
			r.drainGrowth(v)
		}
		if v.grewBoth {
			r.syncGrownApart(v)
		}
		r.maintainMeta(v)
	}
	r.maintainEpochs()
	r.maintainReceive()
	r.maintainTimer()
}

func (r *Resource) emit(a Action) { r.actions = append(r.actions, a) }

// packet files header and fixed part for a socket. encode appends exactly
// fixed bytes; data (may be nil) follows as payload.
func (r *Resource) beginPacket(cmd drbd.Command, vol uint16, length int) int {
	start := len(r.arena)
	r.arena = drbd.AppendHeader100(r.arena, drbd.Header{Command: cmd, Volume: vol, Length: uint32(length)})
	return start
}

func (r *Resource) endPacket(sock drbd.Socket, start int, data []byte) {
	if sock == drbd.DataSocket {
		r.dataPos += uint64(len(r.arena) - start + len(data))
	}
	r.actions = append(r.actions, Action{Kind: Send, Socket: sock, Bytes: r.arena[start:len(r.arena):len(r.arena)], Data: data})
}

// sendData sends a packet with data, behind room for their digest if the
// connection has an integrity algorithm.
func (r *Resource) sendData(cmd drbd.Command, v *volume, d drbd.Data, data []byte) {
	start := r.beginPacket(cmd, v.num, 24+r.integritySize+len(data))
	r.arena = d.Append(r.arena)
	if r.integrity != "" {
		r.arena = append(r.arena, make([]byte, r.integritySize)...)
	}
	r.endPacket(drbd.DataSocket, start, data)
	r.actions[len(r.actions)-1].DigestAlg = r.integrity
}

// setIntegrity has the packets with data that follow carry a digest by alg.
func (r *Resource) setIntegrity(alg string) {
	r.integrity, r.integritySize = "", 0
	if h, err := drbd.NewDigest(alg); err == nil {
		r.integrity, r.integritySize = alg, h.Size()
	}
}

// sendPacket sends a packet that is not on the hot path.
func (r *Resource) sendPacket(sock drbd.Socket, cmd drbd.Command, vol uint16, p drbd.Packet) {
	body := p.Append(nil)
	start := r.beginPacket(cmd, vol, len(body))
	r.arena = append(r.arena, body...)
	r.endPacket(sock, start, nil)
}

func (r *Resource) sendEmpty(sock drbd.Socket, cmd drbd.Command) {
	r.endPacket(sock, r.beginPacket(cmd, 0, 0), nil)
}

// isUp reports whether packets may be sent: the handshake is under way or done.
func (r *Resource) isUp() bool { return r.conn >= drbd.WFReportParams }

// nextSeq numbers a packet of v; drbd84-protocol, 3.3.
func (v *volume) nextSeq() uint32 {
	v.sendSeq++
	return v.sendSeq
}

func (v *volume) hasDisk() bool {
	return v.st.Disk >= drbd.Inconsistent || v.st.Disk == drbd.Negotiating
}

// ReceivePaused reports whether the data socket must not be read for now. The
// caller asks after every Step of a packet, and waits for ResumeReceive.
func (r *Resource) ReceivePaused() bool { return r.readPaused }

func (r *Resource) maintainReceive() {
	crowded := r.recv.q.len() > maxRecvEpochs
	if crowded && !r.recv.hurry {
		r.setTimerOnce(timerCommit, 1)
	}
	paused := crowded || r.strictWait || r.growing > 0 || r.terms.storing > 0 || r.held.v != nil || r.targetsAsk > 0 || r.peer.used > maxPeerRequests ||
		r.peer.bytes > max(int64(r.net.MaxBuffers)*4096, 4<<20)
	if r.readPaused && !paused {
		r.emit(Action{Kind: ResumeReceive})
	}
	r.readPaused = paused
}

func (r *Resource) report(format string, args ...any) {
	r.emit(Action{Kind: Report, Text: fmt.Sprintf(format, args...)})
}
