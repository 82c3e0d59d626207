package replication

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

const simBlocks = 4

// simNode is one node of simPair: its generations, and a toy volume with a
// bitmap, so that a wrong verdict shows as differing data.
type simNode struct {
	u       meta.UUIDs
	known   meta.UUIDs // the peer's, while connected
	primary bool
	crashed bool
	disk    drbd.DiskState
	bits    [simBlocks]bool
	data    [simBlocks]int
}

func (n *simNode) weight() (w uint64) {
	for _, b := range n.bits {
		if b {
			w++
		}
	}
	return w
}

// isLost is the step of a node whose peer is gone.
func (n *simNode) isLost(random uint64) {
	if n.primary && n.disk == drbd.UpToDate && n.u.Bitmap == 0 {
		NewCurrent(&n.u, random, true)
	}
}

// simPair are two nodes that do to their UUIDs what 5.3 lists. Every handshake
// is checked: verdicts are mirror images, and no resync loses a difference.
type simPair struct {
	t         *rapid.T
	rng       *rand.Rand
	n         [2]simNode
	connected bool
	source    int // index of the source of a running resync, or -1
	rc        int // who resolves conflicts in this connection
	next      int // next value to write
	log       []string
}

func (p *simPair) logf(format string, args ...any) {
	p.log = append(p.log, fmt.Sprintf(format, args...)+"\n    a "+p.n[0].String()+"\n    b "+p.n[1].String())
}

func (n simNode) String() string {
	return fmt.Sprintf("%v primary=%v crashed=%v %v bits=%v data=%v", n.u, n.primary, n.crashed, n.disk, n.bits, n.data)
}

func (p *simPair) fail(format string, args ...any) {
	p.t.Fatalf("%s\nhistory:\n%s", fmt.Sprintf(format, args...), strings.Join(p.log, "\n"))
}

func (p *simPair) input(i int, discard [2]bool) HandshakeInput {
	self, peer := &p.n[i], &p.n[1-i]
	return HandshakeInput{
		CompareInput: CompareInput{
			Self: self.u, Peer: peer.u, SelfCrashed: self.crashed, PeerCrashed: peer.crashed,
			SelfPrimary: self.primary, PeerPrimary: peer.primary,
			ResolveConflicts: p.rc == i, Version: 101, Features: 0xf,
		},
		Disk: self.disk, PeerDisk: peer.disk, SelfBits: self.weight(), PeerBits: peer.weight(),
		DiscardMyData: discard[i], PeerDiscardMyData: discard[1-i],
	}
}

// connect runs the handshake on both nodes. discard is who was told to
// discard its data.
func (p *simPair) connect(discard [2]bool, syncUUIDLost bool) {
	if p.connected {
		return
	}
	p.rc = p.rng.IntN(2)
	var in [2]HandshakeInput
	var res [2]HandshakeResult
	for i := range p.n {
		in[i] = p.input(i, discard)
		res[i] = DecideHandshake(in[i])
	}
	p.logf("connect discard=%v: %d (rule %d) %s | %d (rule %d) %s", discard,
		res[0].Compare.Verdict, res[0].Compare.Rule, outcome(res[0]), res[1].Compare.Verdict, res[1].Compare.Rule, outcome(res[1]))
	p.checkMirror(res)
	if res[0].Compare.Verdict == VerdictUnrelated { // the operator starts one node anew
		i := p.rng.IntN(2)
		p.n[i] = newMetadata(p.n[i].data)
	}
	if !res[0].OK || !res[1].OK {
		return // at least one of them drops the connection
	}
	p.connected = true
	for i := range p.n {
		p.n[i].u, p.n[i].known = res[i].Compare.Self, res[1-i].Compare.Self
	}
	switch res[0].Conn {
	case drbd.Connected:
		p.settle("no resync")
	case drbd.WFBitMapS:
		p.startResync(0, res[0].Full, syncUUIDLost)
	default:
		p.startResync(1, res[0].Full, syncUUIDLost)
	}
}

func (p *simPair) checkMirror(res [2]HandshakeResult) {
	a, b := res[0].Compare.Verdict, res[1].Compare.Verdict
	symmetric := a == 0 || a <= -100 || a >= 100
	if symmetric && a != b || !symmetric && a != -b {
		p.fail("verdicts %d and %d are no mirror images", a, b)
	}
	if res[0].Compare.Self != res[1].Compare.Peer || res[0].Compare.Peer != res[1].Compare.Self {
		p.fail("corrections differ: %+v, %+v", res[0].Compare, res[1].Compare)
	}
	mirror := map[drbd.ConnState]drbd.ConnState{drbd.Connected: drbd.Connected, drbd.WFBitMapS: drbd.WFBitMapT, drbd.WFBitMapT: drbd.WFBitMapS}
	if res[0].OK && res[1].OK && (mirror[res[0].Conn] != res[1].Conn || res[0].Full != res[1].Full) {
		p.fail("decisions %s and %s are no mirror images", outcome(res[0]), outcome(res[1]))
	}
}

// settle: the nodes claim to be equal.
func (p *simPair) settle(why string) {
	p.source = -1
	if p.n[0].disk != drbd.UpToDate || p.n[1].disk != drbd.UpToDate {
		return // both new, or both Inconsistent
	}
	if p.n[0].data != p.n[1].data {
		p.fail("%s, but the data differ", why)
	}
	for i := range p.n {
		p.n[i].crashed, p.n[i].bits = false, [simBlocks]bool{}
	}
}

func (p *simPair) startResync(source int, full, syncUUIDLost bool) {
	s, t := &p.n[source], &p.n[1-source]
	for k := range s.bits {
		dirty := full || s.bits[k] || t.bits[k]
		s.bits[k], t.bits[k] = dirty, dirty
		if !dirty && s.data[k] != t.data[k] {
			p.fail("block %d differs, but no bit is set", k)
		}
	}
	x := SyncUUID(&s.u, p.rng.Uint64())
	if syncUUIDLost {
		p.cut("P_SYNC_UUID is lost")
		return
	}
	t.u.Current, t.u.Bitmap = identity(x)|b2u(t.primary), 0
	s.disk, t.disk = drbd.UpToDate, drbd.Inconsistent
	p.source = source
	p.logf("node %d is source, sync UUID %016X", source, x)
}

// resync copies a block, or finishes. sourceMisses: the link breaks between
// the target's end of the resync and the source's.
func (p *simPair) resync(sourceMisses bool) {
	if p.source < 0 {
		return
	}
	s, t := &p.n[p.source], &p.n[1-p.source]
	for k := range s.bits {
		if s.bits[k] {
			t.data[k] = s.data[k]
			s.bits[k], t.bits[k] = false, false
			return
		}
	}
	FinishTarget(&t.u, t.known, t.primary)
	t.disk, t.known = drbd.UpToDate, t.u
	if sourceMisses {
		p.cut("the source misses the end of the resync")
		return
	}
	FinishSource(&s.u)
	s.known = s.u
	p.settle("the resync has finished")
	p.logf("resync finished")
}

// cut breaks the connection.
func (p *simPair) cut(why string) {
	if !p.connected {
		return
	}
	p.connected, p.source = false, -1
	for i := range p.n {
		p.n[i].isLost(p.rng.Uint64())
		if p.n[i].disk != drbd.UpToDate {
			p.n[i].primary = false // it has no data to serve
			p.n[i].u.Current = identity(p.n[i].u.Current)
		}
	}
	p.logf("cut: %s", why)
}

// promote, with force also an Inconsistent disk.
func (p *simPair) promote(i int, force bool) {
	n, peer := &p.n[i], &p.n[1-i]
	if n.primary || p.connected && (peer.primary || n.disk != drbd.UpToDate) || n.disk != drbd.UpToDate && !force {
		return
	}
	forced := n.disk != drbd.UpToDate
	if !p.connected && n.u.Bitmap == 0 || forced {
		NewCurrent(&n.u, p.rng.Uint64(), true)
	}
	n.u.Current |= primaryBit
	n.primary, n.disk = true, drbd.UpToDate
	p.logf("promote %d force=%v", i, forced)
}

func (p *simPair) demote(i int) {
	if !p.n[i].primary {
		return
	}
	p.n[i].primary = false
	p.n[i].u.Current = identity(p.n[i].u.Current)
	p.logf("demote %d", i)
}

// write: arrives is whether the peer gets it, which it does unless the node
// crashes meanwhile.
func (p *simPair) write(i, k int) {
	n := &p.n[i]
	if !n.primary || n.disk != drbd.UpToDate {
		return
	}
	p.next++
	n.data[k] = p.next
	if p.connected {
		p.n[1-i].data[k] = p.next
	} else {
		n.bits[k] = true
	}
	p.logf("write %d block %d", i, k)
}

// crash stops node i, with block k being written: the activity log knows it,
// each copy may have it or not. It restarts as Secondary.
func (p *simPair) crash(i, k int) {
	n := &p.n[i]
	if n.primary {
		p.next++
		if p.rng.IntN(2) == 0 {
			n.data[k] = p.next
		}
		if p.connected && p.rng.IntN(2) == 0 {
			p.n[1-i].data[k] = p.next
		}
		n.bits[k], n.crashed, n.primary = true, true, false
	}
	n.u.Current = identity(n.u.Current)
	if p.connected {
		p.connected, p.source = false, -1
		p.n[1-i].isLost(p.rng.Uint64())
		if other := &p.n[1-i]; other.disk != drbd.UpToDate {
			other.primary, other.u.Current = false, identity(other.u.Current)
		}
	}
	p.logf("crash %d", i)
}

// newCurrent is the admin's new-current-uuid, StandAlone, bitmap kept.
func (p *simPair) newCurrent(i int) {
	if n := &p.n[i]; !p.connected && n.disk == drbd.UpToDate {
		ClearBitmap(&n.u)
		NewCurrent(&n.u, p.rng.Uint64(), n.primary)
		p.logf("new-current-uuid %d", i)
	}
}

// newMetadata is a node after create-md.
func newMetadata(data [simBlocks]int) simNode {
	return simNode{
		u: gen(meta.UUIDJustCreated, 0, 0, 0), disk: drbd.Inconsistent, data: data,
		bits: [simBlocks]bool{true, true, true, true},
	}
}

func newSimPair(t *rapid.T) *simPair {
	p := &simPair{t: t, source: -1, next: 100, rng: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))}
	fresh := rapid.Bool().Draw(t, "fresh")
	for i := range p.n {
		n := &p.n[i]
		n.u, n.disk = gen(0xabcd00, 0, 0, 0), drbd.UpToDate
		if fresh {
			*n = newMetadata([simBlocks]int{i, i, i, i})
		}
	}
	return p
}

func (p *simPair) step(op, i, k int, flag bool) {
	switch op {
	case 0, 1:
		p.connect([2]bool{}, flag && k == 0)
	case 2:
		discard := [2]bool{}
		discard[i] = true
		p.demote(i)
		p.connect(discard, flag && k == 0)
	case 3, 4, 5:
		p.resync(flag && k == 0)
	case 6:
		p.cut("link")
	case 7:
		p.promote(i, flag && k == 0)
	case 8:
		p.demote(i)
	case 9, 10:
		p.write(i, k)
	case 11:
		p.crash(i, k)
	case 12:
		if k == 0 {
			p.newCurrent(i)
		}
	}
}

func TestHandshakeHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newSimPair(t)
		for range rapid.IntRange(20, 400).Draw(t, "steps") {
			p.step(rapid.IntRange(0, 12).Draw(t, "op"), rapid.IntRange(0, 1).Draw(t, "node"),
				rapid.IntRange(0, simBlocks-1).Draw(t, "block"), rapid.Bool().Draw(t, "flag"))
		}
	})
}
