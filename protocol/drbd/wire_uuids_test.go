package drbd_test

import (
	"maps"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/protocol/drbd/wiretest"
)

// A nodeStory is what is known of a node across its connections.
type nodeStory struct {
	disk, size map[uint16]drbd.Sector
	ids        map[uint16]*identity
	role       drbd.Role
	image      map[uint16]*image
	diskless   map[uint16]bool
}

// An identity is the generation UUIDs of a volume as the rules of section 5.3
// have them; not known is nil.
type identity struct {
	current, bitmap, h1, h2 uint64
}

func newNodeStory() *nodeStory {
	return &nodeStory{
		disk: map[uint16]drbd.Sector{}, size: map[uint16]drbd.Sector{}, ids: map[uint16]*identity{}, role: drbd.Secondary,
		image: map[uint16]*image{}, diskless: map[uint16]bool{},
	}
}

func (n *nodeStory) attached(v uint16) bool { return !n.diskless[v] }

func (i *identity) setBitmap(x uint64) {
	if i.bitmap != 0 {
		i.h2, i.h1 = i.h1, i.bitmap
	}
	i.bitmap = x
}

func (i *identity) clearBitmap() {
	if i.bitmap != 0 {
		i.h2, i.h1, i.bitmap = i.h1, i.bitmap, 0
	}
}

// by is u with bit 0 of a role.
func by(role drbd.Role, u uint64) uint64 {
	if role == drbd.Primary {
		return u | 1
	}
	return u &^ 1
}

// operator follows what a command does to identities without a packet.
func (r *replay) operator(e wiretest.Event) {
	n := r.nodes[e.From]
	switch words := strings.Fields(e.Text); {
	case words[0] == "poke":
		r.poke(e)
	case strings.Contains(e.Text, "detach"):
		n.diskless[0] = true
	case strings.Contains(e.Text, "new-current-uuid"), strings.Contains(e.Text, "primary --force"),
		strings.Contains(e.Text, "dmsetup"), strings.Contains(e.Text, "attach"), strings.Contains(e.Text, "invalidate"):
		n.ids, n.diskless = map[uint16]*identity{}, map[uint16]bool{}
	}
	if r.connected() {
		return
	}
	// Alone, a promotion or a demotion changes bit 0 of C, and the first may
	// begin a new generation: the next line or packet says which.
	if strings.Contains(e.Text, "primary") || strings.Contains(e.Text, "secondary") || words0(e.Text) == "poke" {
		n.ids = map[uint16]*identity{}
	}
}

func words0(s string) string { w, _, _ := strings.Cut(s, " "); return w }

func (r *replay) connected() bool {
	if r.session.over {
		return false
	}
	for _, n := range []string{"A", "B"} {
		if g := r.session.greeting[n]; len(g) == 0 || g[len(g)-1] != drbd.CmdState {
			return false
		}
	}
	return true
}

// note checks what a node says of itself.
func (r *replay) note(e wiretest.Event) {
	if gi, ok := wiretest.ParseGI(e.Text); ok {
		n, v := r.nodes[e.From], uint16(gi.Volume)
		got := &identity{gi.Current, gi.Bitmap, gi.History[0], gi.History[1]}
		if want := n.ids[v]; want != nil {
			r.rule(e, *got == *want, "metadata on disk as the node's rules have it", "%x, want %x", *got, *want)
		}
		n.ids[v] = got
	}
	if p, ok := wiretest.ParseProc(e.Text); ok && p.Conn != "Unconfigured" {
		r.proc(e, p)
	}
	if strings.Contains(e.Text, "killed") || strings.Contains(e.Text, "booted") {
		r.nodes[e.From].ids = map[uint16]*identity{}
		r.nodes[e.From].role = drbd.Secondary
		r.session.cut, r.session.over = true, true // its last packets may be missing
		r.lostContact()
		for name, n := range r.nodes {
			for v, size := range n.size { // a program was writing
				r.image(volumeOf{name, v}).forget(span{0, uint32(size.Bytes())})
			}
		}
	}
}

// proc checks a line of /proc/drbd, by the last state that the node has sent.
func (r *replay) proc(e wiretest.Event, p wiretest.Proc) {
	n, s := r.nodes[e.From], r.session
	if p.Conn == "Connected" && s.state[volumeOf{e.From, 0}].Conn == drbd.Connected {
		r.rule(e, p.Role == n.role.String(), "role of /proc/drbd", "%s, its packets say %v", p.Role, n.role)
		letter := map[string]uint32{"A": drbd.ProtocolA, "B": drbd.ProtocolB, "C": drbd.ProtocolC}[p.Protocol]
		r.rule(e, letter == s.protocol[e.From], "protocol of /proc/drbd", "%s, its packets say %d", p.Protocol, s.protocol[e.From])
		if p.Disk == "UpToDate" && p.PeerDisk == "UpToDate" && p.OutOfSyncKiB == 0 {
			r.equalImages(e)
		}
	}
}

// lostContact forgets the identities of a node that may begin a new generation.
func (r *replay) lostContact() {
	for name, n := range r.nodes {
		if n.role == drbd.Primary || r.nodes[other(name)].role == drbd.Primary {
			n.ids = map[uint16]*identity{}
		}
	}
}

// uuidsOf follows P_UUIDS and P_SYNC_UUID.
func (r *replay) uuidsOf(e wiretest.Event, h drbd.Header, p *drbd.UUIDs) {
	n, at := r.nodes[e.From], volumeOf{e.From, h.Volume}
	got := identity{p.Current, p.Bitmap, p.History[0], p.History[1]}
	first := r.session.greeting[e.From]
	if want := n.ids[h.Volume]; want != nil && len(first) < 5 { // later ones tell of a new generation
		r.rule(e, got == *want, "P_UUIDS as the node's rules have it", "%x, want %x", got, *want)
	}
	known := drbd.UUIDDiscardMyData | drbd.UUIDCrashedPrimary | drbd.UUIDInconsistent | drbd.UUIDSkipInitialSync
	var want uint64
	if strings.Contains(r.command[e.From], "--discard-my-data") {
		want = drbd.UUIDDiscardMyData
	}
	r.rule(e, p.Flags&^known == 0 && p.Flags&drbd.UUIDDiscardMyData == want, "a UUID packet's flags", "%d after %q", p.Flags, r.command[e.From])
	if p.Flags&drbd.UUIDSkipInitialSync != 0 {
		ok := strings.Contains(r.command[e.From], "new-current-uuid") && p.Bitmap == 4 && p.DirtyBits == 0
		r.rule(e, ok, "a UUID packet's flags", "skip initial sync: %+v", *p)
		c := &identity{current: p.Current}
		n.ids[h.Volume], r.nodes[other(e.From)].ids[h.Volume] = c, &identity{current: p.Current}
	} else {
		n.ids[h.Volume] = &got
	}
	if bits := (uint64(n.size[h.Volume]) + 7) / 8; bits > 0 {
		r.rule(e, p.DirtyBits <= bits, "number of bits within the device", "%d of %d", p.DirtyBits, bits)
	}
	r.session.uuids[at] = *p
}

func (r *replay) syncUUIDOf(e wiretest.Event, h drbd.Header, p *drbd.SyncUUID) {
	if src := r.nodes[e.From].ids[h.Volume]; src != nil {
		if src.bitmap&^1 != 0 && src.bitmap != 4 {
			r.rule(e, p.UUID == src.bitmap+1<<48, "sync UUID = bitmap UUID + 2^48", "%x after %x", p.UUID, src.bitmap)
		}
		src.setBitmap(p.UUID)
	}
	dst := r.nodes[e.To]
	if id := dst.ids[h.Volume]; id != nil {
		id.current, id.bitmap = by(dst.role, p.UUID), 0
	}
	r.session.resync[h.Volume] = &resynced{source: e.From, asked: map[uint64]bool{}, union: r.session.resync[h.Volume].bits()}
}

// finished is a target's word that its resync is done: section 5.3.
func (r *replay) finished(e wiretest.Event, v uint16) {
	s := r.session
	rs := s.resync[v]
	delete(s.resync, v)
	r.askedFor(e, rs)
	src, dst := r.nodes[rs.source].ids[v], r.nodes[e.From].ids[v]
	u, told := s.uuids[volumeOf{rs.source, v}]
	if dst != nil && told && src != nil {
		own := dst.current
		dst.bitmap, dst.h1, dst.h2 = u.Bitmap, u.History[0], u.History[1]
		dst.setBitmap(own)
		dst.current = by(r.nodes[e.From].role, u.Current)
		dst.clearBitmap()
	} else {
		delete(r.nodes[e.From].ids, v)
	}
	if src != nil {
		src.clearBitmap()
	}
	// From here on each takes the other's identifiers to be its own.
	for to, id := range map[string]*identity{rs.source: dst, e.From: src} {
		if k := (volumeOf{to, v}); id != nil {
			s.uuids[k] = drbd.UUIDs{Current: id.current, Bitmap: id.bitmap, History: [2]uint64{id.h1, id.h2}}
		}
	}
}

// stateOf follows P_STATE.
func (r *replay) stateOf(e wiretest.Event, h drbd.Header, p *drbd.StatePacket) {
	s, n, at := r.session, r.nodes[e.From], volumeOf{e.From, h.Volume}
	st := drbd.StateOf(p.Word)
	before, told := s.state[at]
	s.state[at] = st
	if !told && r.connectedFor(e.From) {
		ok := st.Conn == drbd.WFConnection && st.Peer == drbd.RoleUnknown &&
			(st.Pdsk == drbd.DUnknown || st.Pdsk == drbd.Inconsistent || st.Pdsk == drbd.Outdated)
		r.rule(e, ok, "the first P_STATE comes from WFConnection", "%v", st)
	}
	ok := st.Valid() && st.Word() == p.Word && fits(st) && (!told || st.Conn >= drbd.Connected)
	r.rule(e, ok, "states fit together", "%v after %v", st, before)
	if st.Role != n.role {
		want := map[drbd.Role]string{drbd.Primary: "primary", drbd.Secondary: "secondary"}[st.Role]
		r.rule(e, r.commanded(e, want), "role as commanded", "%v", st.Role)
		n.role = st.Role
	}
	for _, id := range n.ids {
		id.current = by(n.role, id.current)
		if id.current&^1 == 4 {
			id.current = 4
		}
	}
	n.diskless[h.Volume] = st.Disk <= drbd.Failed
	rs := s.resync[h.Volume]
	if rs != nil && rs.source == e.To && st.Conn == drbd.Connected && st.Disk == drbd.UpToDate && rs.began() {
		r.finished(e, h.Volume)
	}
	if st.Disk <= drbd.Failed || r.nodes[e.To].diskless[h.Volume] {
		for _, node := range r.nodes {
			maps.DeleteFunc(node.ids, func(v uint16, _ *identity) bool { return v == h.Volume })
		}
	}
}

// connectedFor reports whether the sender's greeting ends right here.
func (r *replay) connectedFor(node string) bool {
	return len(r.session.greeting[node]) <= 4*r.volumes()+3
}

// commanded reports whether a node was given a command before a line.
func (r *replay) commanded(e wiretest.Event, want string) bool {
	for _, c := range r.events {
		if c.Line < e.Line && c.Kind == wiretest.Command && c.From == e.From && strings.Contains(c.Text, want) {
			return true
		}
	}
	return false
}

// fits is the table of disk states by connection state: section 4.3, step 6.
func fits(s drbd.State) bool {
	in := func(d, low, high drbd.DiskState) bool { return d >= low && d <= high }
	switch s.Conn { //nolint:exhaustive // the table has no row for the others
	case drbd.WFBitMapT, drbd.PausedSyncT, drbd.StartingSyncT, drbd.WFSyncUUID, drbd.Behind:
		return in(s.Disk, drbd.Inconsistent, drbd.Outdated) && s.Pdsk == drbd.UpToDate
	case drbd.VerifyS, drbd.VerifyT:
		return s.Disk == drbd.UpToDate && s.Pdsk == drbd.UpToDate
	case drbd.WFBitMapS, drbd.PausedSyncS, drbd.StartingSyncS, drbd.Ahead:
		return s.Disk == drbd.UpToDate && in(s.Pdsk, drbd.Inconsistent, drbd.Consistent)
	case drbd.SyncTarget:
		return s.Disk == drbd.Inconsistent && s.Pdsk == drbd.UpToDate
	case drbd.SyncSource:
		return s.Disk == drbd.UpToDate && s.Pdsk == drbd.Inconsistent
	case drbd.Connected:
		return s.Pdsk <= drbd.UpToDate && s.Pdsk != drbd.DUnknown
	}
	return in(s.Pdsk, drbd.Inconsistent, drbd.DUnknown)
}
