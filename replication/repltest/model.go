package repltest

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
)

// A Request is one operation of a client.
type Request struct {
	ID     stamp
	Op     replication.Op
	FUA    bool
	Vol    int
	Sector int
	Count  int // sectors
	Data   []byte
	Done   bool
	Err    error

	node    *Node
	life    int
	start   int64
	end     int64   // when its effect is over at the latest; MaxInt64 while unknown
	flushed [2]bool // an acknowledged flush, or FUA, covers it on this node
	passed  uint8   // the points that it has passed, a bit each
	weak    bool    // answered while protocol A or B was in force: the peer may lack it
	hear    func(*Request)
}

func (q *Request) writes() bool { return q.Op != replication.OpRead && q.Op != replication.OpFlush }

// A Model knows what clients were promised, and checks every promise as soon
// as it can be broken.
//
// The order of writes is that of real time: s is older than w if s was over
// before w began; otherwise either may be what a sector holds. The floor of a
// sector on a node is the youngest write that its copy must hold, because it was
// acknowledged: nothing older may be read there, nor overwrite it. What an
// operator does away with (--force, --discard-my-data, invalidate) and what a
// power failure may take (acknowledged, but never flushed) lowers the floor.
type Model struct {
	w        *World
	nextID   stamp
	reqs     []*Request // by ID; none has 0
	pending  []*Request // not answered
	acked    []*Request // acknowledged writes that no flush covers
	vols     []modelVolume
	inflight [2][]*inflight
	planted  map[plant]stamp // its number among the writes
	anyWeak  bool            // a write was answered under protocol A or B
	powerCut [2]int64        // when the node last lost its power
	renamed  bool            // generations were made by hand: nothing is said of what they look like
	sessions [2]session
	loss     [2]lossModel

	Acked, Reads, Flushes, Errors int
}

type modelVolume struct {
	floor   [2][]stamp    // by node: the ID of a write, 0 if there is none
	dfloor  [2][]stamp    // the same of what is durable there
	zeroEnd map[int]int64 // of each sector, end of the last write of zeroes
	excused [2]bool       // by node: its copy may be overwritten, the operator said so
	solo    [2]bool       // it answered writes that the peer has not seen
	remade  [2]stamp      // by node: an invalidate promised to repair what disks have lied about before this write
	once    bool          // the copies have been equal, and the nodes knew it
	alone   [2]bool       // it may have begun a generation of its own since the copies were equal
}

func newModel(w *World) *Model {
	m := &Model{w: w, reqs: make([]*Request, 1, 128)}
	for range w.cfg.Volumes {
		n := max(w.cfg.Sectors, w.cfg.OtherSize) + w.cfg.Room
		v := modelVolume{zeroEnd: map[int]int64{}}
		for i := range v.floor {
			v.floor[i], v.dfloor[i] = w.mem.table(n), w.mem.table(n)
		}
		m.vols = append(m.vols, v)
	}
	return m
}

// Submit has a client on node n begin an operation; hear hears its end.
func (m *Model) Submit(n *Node, q Request, hear func(*Request)) *Request {
	m.nextID++
	q.ID, q.node, q.life, q.start, q.end, q.hear = m.nextID, n, n.life, m.w.now, math.MaxInt64, hear
	r := &q
	switch q.Op {
	case replication.OpWrite:
		r.Data = m.w.mem.buffer(q.Count)
		for i := range q.Count {
			binary.BigEndian.PutUint32(r.Data[i*sectorSize:], q.ID)
		}
	case replication.OpRead:
		r.Data = m.w.mem.buffer(q.Count)
	case replication.OpTrim, replication.OpZero:
		for i := q.Sector; i < q.Sector+q.Count; i++ {
			m.vols[q.Vol].zeroEnd[i] = math.MaxInt64
		}
	default: // a flush has no data
	}
	m.reqs, m.pending = append(m.reqs, r), append(m.pending, r)
	if m.w.traced() {
		m.w.trace("%s submit id=%d %s", n.name, q.ID, r.text())
	}
	n.step(&replication.Event{
		Kind: replication.Submitted, Volume: uint16(q.Vol), Op: q.Op, FUA: q.FUA, IsTimed: true,
		Sector: drbd.Sector(q.Sector), Size: uint32(q.Count * sectorSize), Data: r.Data, Tag: r,
	})
	return r
}

var opNames = map[replication.Op]string{
	replication.OpRead: "read", replication.OpWrite: "write", replication.OpFlush: "flush",
	replication.OpTrim: "trim", replication.OpZero: "zero",
}

func (q *Request) text() string {
	name := opNames[q.Op]
	if q.Op == replication.OpFlush {
		return name
	}
	s := fmt.Sprintf("%s sector=%d size=%d", name, q.Sector, q.Count*sectorSize)
	if q.Vol != 0 {
		s += fmt.Sprintf(" vol=%d", q.Vol)
	}
	if q.FUA {
		s += " fua"
	}
	return s
}

// olderThan reports whether what a sector holds was over before w began.
func (m *Model) olderThan(vol, sector int, s stamp, w *Request) bool {
	if w == nil || s == w.ID {
		return false
	}
	if s == 0 {
		return m.vols[vol].zeroEnd[sector] < w.start
	}
	return m.reqs[s].end < w.start
}

// floor is the youngest write that a sector of a node must hold, nil if none.
func (m *Model) floor(vol, node, sector int) *Request { return m.reqs[m.vols[vol].floor[node][sector]] }

// passed: who measures a request hears of it while it is under way, and of no
// result before its beginning.
func (m *Model) passed(n *Node, q *Request, p replication.Point) {
	if q.Done || q.node != n || q.life != n.life {
		m.w.fail("%s: request %d is at point %d and not under way", n.name, q.ID, p)
	}
	if p > replication.PointStarted && q.passed&(1<<replication.PointStarted) == 0 {
		m.w.fail("%s: request %d is at point %d and was not begun", n.name, q.ID, p)
	}
	q.passed |= 1 << p
}

func (m *Model) completed(n *Node, q *Request, err error) {
	const ended = 1<<replication.PointLocal | 1<<replication.PointAnswered | 1<<replication.PointSent
	if err == nil && (q.passed&(1<<replication.PointStarted) == 0 || q.passed&ended == 0) && q.Op != replication.OpFlush {
		m.w.fail("%s: request %d completed without a word of what did it: points %b", n.name, q.ID, q.passed)
	}
	if q.Done {
		m.w.fail("%s: request %d completed twice", n.name, q.ID)
		return
	}
	if q.node != n || q.life != n.life {
		m.w.fail("%s: request %d of another process completed", n.name, q.ID)
	}
	q.Done, q.Err = true, err
	m.pending = slices.DeleteFunc(m.pending, func(p *Request) bool { return p == q })
	if m.w.traced() {
		m.w.trace("%s complete id=%d%s", n.name, q.ID, because(err))
	}
	switch {
	case err != nil:
		m.Errors++
		m.finish(q, m.w.now+lingerMS*1000)
		if q.writes() {
			m.record(q, nil)
		}
	case q.Op == replication.OpRead:
		m.Reads++
		m.checkRead(n, q)
	case q.Op == replication.OpFlush:
		m.Flushes++
		m.checkFlush(n, q)
	default:
		m.Acked++
		m.finish(q, m.w.now)
		m.ack(n, q)
		m.record(q, nil)
	}
	m.w.mem.free(q.Data)
	q.Data = nil
	if q.hear != nil {
		m.w.after(1+m.w.jitter(200), func() { q.hear(q) })
	}
}

// lingerMS is how long a write of unknown fate may still happen: what is under
// way to the peer and to its disk.
const lingerMS = 2000

// finish notes until when a write may still take effect.
func (m *Model) finish(q *Request, end int64) {
	q.end = end
	if q.Op == replication.OpTrim || q.Op == replication.OpZero {
		v := &m.vols[q.Vol]
		for i := q.Sector; i < q.Sector+q.Count; i++ {
			if v.zeroEnd[i] == math.MaxInt64 { // overlapping ones: the later end counts
				v.zeroEnd[i] = end
			} else {
				v.zeroEnd[i] = max(v.zeroEnd[i], end)
			}
		}
		for _, p := range m.pending {
			if p != q && p.Vol == q.Vol && (p.Op == replication.OpTrim || p.Op == replication.OpZero) &&
				p.Sector < q.Sector+q.Count && q.Sector < p.Sector+p.Count {
				for i := max(p.Sector, q.Sector); i < min(p.Sector+p.Count, q.Sector+q.Count); i++ {
					v.zeroEnd[i] = math.MaxInt64
				}
			}
		}
	}
}

// mirrored reports whether n and its peer are one pair now for volume i: a
// write that n answers must be on both disks.
func (m *Model) mirrored(n *Node, i int) bool {
	p := m.w.Nodes[1-n.id]
	if !p.alive || n.link == nil || p.link != n.link || !p.Vols[i].attached {
		return false
	}
	mine, its := n.state(i), p.state(i)
	return mirrors(mine.Conn) && mirrors(its.Conn) &&
		mine.Pdsk == drbd.UpToDate && its.Disk == drbd.UpToDate
}

// servedByPeer reports whether the peer's copy is what the clients of n see of
// volume i where n's own is not up to date.
func (m *Model) servedByPeer(n *Node, i int) bool {
	p := m.w.Nodes[1-n.id]
	if !p.alive || n.link == nil || p.link != n.link || !p.Vols[i].attached {
		return false
	}
	mine, its := n.state(i), p.state(i)
	return mine.Conn >= drbd.Connected && its.Conn >= drbd.Connected && mine.Pdsk == drbd.UpToDate && its.Disk == drbd.UpToDate
}

// ack is a write that the client was told is done. What it promises depends on
// where it is: on this node's copy if that is UpToDate, under protocol C on the
// peer's too, and without a copy of its own on the peer's in any case.
func (m *Model) ack(n *Node, q *Request) {
	if m.w.terms != nil {
		m.w.terms.acknowledged(n, q)
	}
	if m.w.cfg.Net[n.id].MaxLossBytes > 0 {
		m.loss[n.id].bounded(m, n, q)
	}
	p := m.w.Nodes[1-n.id]
	q.weak = !n.safeSince(q.start)
	m.anyWeak = m.anyWeak || q.weak
	local := n.Vols[q.Vol].attached && n.state(q.Vol).Disk == drbd.UpToDate
	remote := m.mirrored(n, q.Vol) && (!q.weak || !local) || !local && m.servedByPeer(n, q.Vol)
	for _, x := range []*Node{n, p} {
		if x == n && !local || x == p && !remote {
			continue
		}
		d := x.Vols[q.Vol].data
		for i := q.Sector; i < q.Sector+q.Count; i++ {
			if m.olderThan(q.Vol, i, d.now[i], q) || q.FUA && m.olderThan(q.Vol, i, d.durable[i], q) {
				m.w.fail("%s: write %d of sector %d was answered, but node %s holds %d (durable %d)", n.name, q.ID, i, x.name, d.now[i], d.durable[i])
				return
			}
		}
		m.raise(x.id, q)
		if q.FUA {
			m.markFlushed(x.id, q)
		}
	}
	m.raise(n.id, q)
	n.Vols[q.Vol].absent = n.Vols[q.Vol].absent || !n.Vols[q.Vol].attached || n.state(q.Vol).Disk < drbd.Inconsistent
	v := &m.vols[q.Vol]
	for i := q.Sector; i < q.Sector+q.Count && n.state(q.Vol).Conn < drbd.Connected; i++ {
		v.solo[n.id] = v.solo[n.id] || m.olderThan(q.Vol, i, p.Vols[q.Vol].data.now[i], q)
	}
	m.acked = append(m.acked, q)
}

func (m *Model) raise(node int, q *Request) {
	m.raiseIn(m.vols[q.Vol].floor[node], q)
}

func (m *Model) raiseIn(floor []stamp, q *Request) {
	for i := q.Sector; i < q.Sector+q.Count; i++ {
		if f := m.reqs[floor[i]]; f == nil || q.start > f.start {
			floor[i] = q.ID
		}
	}
}

func (m *Model) markFlushed(node int, q *Request) {
	q.flushed[node] = true
	m.raiseIn(m.vols[q.Vol].dfloor[node], q)
}

func (m *Model) checkRead(n *Node, q *Request) {
	got := m.w.mem.stampsOf(q.Data)
	m.record(q, got)
	for k, s := range got {
		i := q.Sector + k
		if f := m.floor(q.Vol, n.id, i); f != nil && f.end < q.start && m.olderThan(q.Vol, i, s, f) {
			m.w.fail("%s: read %d of sector %d gave %d, which is older than the acknowledged write %d", n.name, q.ID, i, s, f.ID)
			return
		}
	}
}

// checkFlush: what was acknowledged before the flush began is durable on every
// copy that counts.
func (m *Model) checkFlush(n *Node, q *Request) {
	disks := []*Node{}
	if n.Vols[q.Vol].attached && n.state(q.Vol).Disk == drbd.UpToDate {
		disks = append(disks, n)
	}
	if n.safeSince(q.start) && m.mirrored(n, q.Vol) {
		disks = append(disks, m.w.Nodes[1-n.id])
	}
	if len(disks) == 0 {
		return // a diskless Primary whose peer is just resyncing: no promise that could be looked up
	}
	kept := m.acked[:0]
	for _, a := range m.acked {
		if a.Vol != q.Vol || a.end >= q.start || a.node != n {
			kept = append(kept, a)
			continue
		}
		for _, x := range disks {
			for i := a.Sector; i < a.Sector+a.Count; i++ {
				if m.vols[a.Vol].floor[x.id][i] != a.ID {
					continue // lowered, or a younger one counts
				}
				if d := x.Vols[a.Vol].data.durable[i]; m.olderThan(a.Vol, i, d, a) {
					m.w.fail("%s: flush %d was answered, but write %d of sector %d is not durable on node %s, which holds %d", n.name, q.ID, a.ID, i, x.name, d)
					return
				}
				a.flushed[x.id] = true
				m.vols[a.Vol].dfloor[x.id][i] = a.ID
			}
		}
	}
	m.acked = kept
}

// lower makes what node's copy holds, or is about to hold, its floor wherever
// that is older.
func (m *Model) lower(vol, node int, content []stamp) {
	m.lowerThose(vol, node, content, func(stamp) bool { return true })
}

// lowerWeak is lower for what was answered under protocol A or B.
func (m *Model) lowerWeak(vol, node int, content []stamp) {
	if m.anyWeak {
		m.lowerThose(vol, node, content, func(s stamp) bool { return m.reqs[s].weak })
	}
}

func (m *Model) lowerThose(vol, node int, content []stamp, those func(stamp) bool) {
	m.sessions[node].void = true
	v := &m.vols[vol]
	for i, s := range content {
		if f := v.floor[node][i]; f != 0 && those(f) && m.olderThan(vol, i, s, m.reqs[f]) {
			v.floor[node][i] = s // none for zeroes: then anything goes
		}
		if f := v.dfloor[node][i]; f != 0 && those(f) && m.olderThan(vol, i, s, m.reqs[f]) {
			v.dfloor[node][i] = s
		}
	}
}

// inherit gives node the floors of its peer: its copy has become equal.
func (m *Model) inherit(vol, node int) {
	v := &m.vols[vol]
	copy(v.floor[node], v.floor[1-node])
	durable := m.w.Nodes[node].Vols[vol].data.durable
	for i, f := range v.floor[node] {
		v.dfloor[node][i] = 0
		if f != 0 && i < len(durable) && !m.olderThan(vol, i, durable[i], m.reqs[f]) {
			v.dfloor[node][i] = f
		}
	}
}

// crashed is called before a process ends.
func (m *Model) crashed(n *Node, power bool) {
	m.endSession(n)
	if p := m.w.Nodes[1-n.id]; power && p.alive {
		for i := range p.Vols { // a diskless Primary may lose what was not flushed
			m.sessions[p.id].void = m.sessions[p.id].void || p.state(i).Disk != drbd.UpToDate
		}
	}
	over := m.pending
	m.pending = nil
	for _, q := range over {
		if q.node != n {
			m.pending = append(m.pending, q)
		}
	}
	for _, q := range over {
		if q.node == n {
			m.finish(q, m.w.now+lingerMS*1000)
		}
	}
	for _, f := range m.inflight[n.id] { // may have happened, as far as it may
		for i, s := range f.stamps {
			if m.w.chance(0.5) {
				f.v.data.write(f.sector+i, []stamp{s})
			}
		}
	}
	m.inflight[n.id] = nil
	for _, v := range n.Vols {
		if !v.attached { // its clients saw the peer's copy; this disk comes back as it was left
			m.lower(int(v.num), n.id, v.data.now)
		}
	}
}

// afterCrash lowers the floors to what was flushed, if the power failure took
// the copy that counted.
func (m *Model) afterCrash(n *Node, power bool) {
	if !power {
		return
	}
	m.powerCut[n.id] = m.w.now
	p := m.w.Nodes[1-n.id]
	for k := range m.vols {
		v := &m.vols[k]
		if p.alive && p.usesPeersCopy(k) { // what its clients saw is lost
			for i, f := range v.floor[p.id] {
				if f != 0 && !m.reqs[f].flushed[n.id] {
					v.floor[p.id][i] = v.dfloor[n.id][i]
				}
			}
		}
		for i, f := range v.floor[n.id] {
			if f != 0 && !m.reqs[f].flushed[n.id] {
				v.floor[n.id][i] = v.dfloor[n.id][i]
			}
		}
	}
}

// usesPeersCopy reports whether the clients of n see only the peer's copy of volume i.
func (n *Node) usesPeersCopy(i int) bool {
	s := n.state(i)
	return s.Disk < drbd.UpToDate && s.Conn >= drbd.Connected && s.Pdsk == drbd.UpToDate
}

func (m *Model) mustNotOverlap(n *Node, v *Volume, f *inflight) {
	for _, o := range m.inflight[n.id] {
		if o.v == v && o.sector < f.end && f.sector < o.end {
			m.w.fail("%s/%d: writes of sectors %d-%d and %d-%d are in flight together", n.name, v.num, o.sector, o.end, f.sector, f.end)
		}
	}
	m.inflight[n.id] = append(m.inflight[n.id], f)
}

func (m *Model) ended(n *Node, f *inflight) {
	m.inflight[n.id] = slices.DeleteFunc(m.inflight[n.id], func(o *inflight) bool { return o == f })
}

// applying is called before a write takes effect on a disk.
func (m *Model) applying(n *Node, v *Volume, sector int, s []stamp, mine bool) {
	if mine {
		return
	}
	for k := range s {
		i := sector + k
		f := m.floor(int(v.num), n.id, i)
		// Zeroes do not tell which write they are from.
		if v.data.now[i] != 0 && m.olderThan(int(v.num), i, s[k], f) && !m.olderThan(int(v.num), i, v.data.now[i], f) {
			m.w.fail("%s/%d: sector %d holds %d and is overwritten by %d, which is older than the acknowledged write %d",
				n.name, v.num, i, v.data.now[i], s[k], f.ID)
			return
		}
	}
}

func (m *Model) synced(*Node, *Volume) {}

func (m *Model) commandDone(n *Node, c *replication.Command, err error) {
	if c.Kind == replication.CmdSetOptions {
		n.noteProtocol()
	}
	m.newUUID(n, c.Kind)
	if err == nil {
		m.mustBeStored(n, c)
	}
	if victim := n.id; err == nil && (c.Kind == replication.CmdInvalidate || c.Kind == replication.CmdInvalidateRemote) {
		if c.Kind == replication.CmdInvalidateRemote {
			victim = 1 - n.id
		}
		m.vols[c.Volume].remade[victim] = c.Tag.(*commandTag).from
	}
	if m.w.terms != nil && err == nil {
		m.w.terms.commandDone(n, c)
	}
}
