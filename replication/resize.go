package replication

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// growth is a change of a volume's size under way (drbd84-protocol, 1.7.3): the
// device is measured anew, metadata is moved and the new size made durable, and
// only then exported. Meanwhile the data socket isn't read, so that the peer's
// next packets find the size that they mean.
type growth struct {
	c      *command // the operator's, nil if the peer has asked
	user   drbd.Sector
	flags  uint16      // DDSForced, DDSNoResync
	theirs drbd.Sector // the peer's: the size that it has said to export
	stage  growthStage
	disk   AttachedDisk // as measured
	size   drbd.Sector  // that will be exported
	wider  bool         // the device has more room than before
	relog  bool         // not the size: the activity log begins anew (relog.go)
}

type growthStage uint8

const (
	growthProbe growthStage = iota // the device is being measured
	growthDrain                    // no metadata may be in use while it moves
	growthStore                    // the new size is on its way to the disk
)

// runResize is the operator's resize; the refusals are those of the kernel.
func (r *Resource) runResize(c *command) {
	v := r.volume(c.Volume)
	switch c.phase {
	case phaseBegin, phaseCheck:
		if v != nil && (v.st.Disk == drbd.Negotiating || v.grow != nil) {
			r.retryLater(c)
			return
		}
		if err := r.mayResize(c, v); err != nil {
			r.finish(c, err)
			return
		}
		if !r.ready(c) {
			return
		}
		c.phase = phaseStore
		g := &growth{c: c, user: drbd.Sector(c.SizeSectors)}
		if c.Force {
			g.flags |= drbd.DDSForced
		}
		if c.AssumeClean {
			g.flags |= drbd.DDSNoResync
		}
		r.setTimer(timerCommand, commandLimitMS)
		r.beginGrowth(v, g)
	case phaseAsk: // our size is told, the peer answers with its own
		if r.conn < drbd.Connected || c.reply != 0 || v.st.Disk < drbd.Inconsistent || v.st.Pdsk < drbd.Inconsistent {
			r.finish(c, r.grown(c, v))
		}
	}
}

func (r *Resource) mayResize(c *command, v *volume) error {
	switch {
	case v == nil:
		return &RequestError{Code: 127, Text: fmt.Sprintf("%s: Failure: (127) Minor not known: no volume %d", r.cfg.Name, c.Volume)}
	case !v.hasDisk():
		return r.requestError(v, 138, "Device does not have a disk-config", fmt.Sprintf("run `polluxadm attach %s` first", r.cfg.Name))
	case v.st.Conn > drbd.Connected:
		return r.requestError(v, 130, "Resize not allowed during resync.", fmt.Sprintf("run `polluxadm wait-sync %s` first", r.cfg.Name))
	case r.role != drbd.Primary && v.st.Peer != drbd.Primary:
		return r.requestError(v, 131, "Need one primary node to resize.", fmt.Sprintf("run `polluxadm primary %s` first", r.cfg.Name))
	case c.AssumeClean && v.st.Conn == drbd.Connected && r.link.Version < versionNoResync:
		return r.requestError(v, 153, "Protocol version 93 required to use --assume-clean", "")
	case r.suspended():
		return r.stateError(v, SSInTransientState)
	}
	return nil
}

// versionNoResync is the first protocol version with resize --assume-clean.
// Source: drbd84-protocol, 10.2.
const versionNoResync = 93

// grown is the result of a resize of which the peer has heard.
func (r *Resource) grown(c *command, v *volume) error {
	want := v.usable
	if u := drbd.Sector(v.opts.SizeSectors); u != 0 {
		want = min(want, u)
	}
	switch {
	case v.st.Disk < drbd.Inconsistent:
		return r.requestError(v, 138, "Device does not have a disk-config", "it was lost meanwhile")
	case v.size >= want, !c.wider && drbd.Sector(c.SizeSectors) <= v.size:
		return nil
	case r.conn < drbd.Connected:
		return r.stateError(v, SSNeedConnection)
	case v.st.Pdsk < drbd.Inconsistent:
		return r.stateError(v, SSNoRemoteDisk)
	}
	return r.requestError(v, 111, "Low.dev. smaller than requested DRBD-dev. size.", fmt.Sprintf(
		"the peer's device has room for %d sectors, this node's for %d: enlarge it there, then repeat the command", v.peerSizes.DSize, v.usable))
}

func (r *Resource) beginGrowth(v *volume, g *growth) {
	v.grow = g
	r.growing++
	r.emit(Action{Kind: ProbeDisk, Volume: v.num})
}

// diskProbed takes what the caller has measured.
func (r *Resource) diskProbed(ev *Event) {
	v := r.volume(ev.Volume)
	g := v.grow
	if g == nil || g.stage != growthProbe {
		return // the disk went meanwhile
	}
	if ev.Err != nil {
		r.growthOver(v, r.requestError(v, 111, "Low.dev. smaller than requested DRBD-dev. size.", ev.Err.Error()))
		return
	}
	g.disk = *ev.Disk
	if err := r.planGrowth(v, g); err != nil {
		r.growthOver(v, err)
		return
	}
	if g.size == v.size && !g.disk.Moved {
		g.wider = g.disk.Usable > v.usable
		v.usable = g.disk.Usable
		r.growthStored(v)
		return
	}
	g.stage, v.held = growthDrain, true
	r.hurry()
}

// planGrowth decides on the size; nothing has changed yet if it refuses.
func (r *Resource) planGrowth(v *volume, g *growth) error {
	connected := v.st.Conn >= drbd.Connected
	in := SizeInput{
		MySize: g.disk.Usable, Agreed: v.size, MyUser: g.user, PeerUser: g.user, Current: v.size, State: v.st,
		Forced: !connected && g.flags&drbd.DDSForced != 0, // alone: as much as this device has
	}
	if connected && v.st.Pdsk >= drbd.Inconsistent {
		in.PeerSize, in.PeerCurrent = v.peerSizes.DSize, v.peerSizes.CSize
	}
	size, err := AgreeSize(in)
	switch {
	case g.disk.Usable < v.size:
		return r.requestError(v, 111, "Low.dev. smaller than requested DRBD-dev. size.", fmt.Sprintf(
			"the device has room for %d sectors, %d are in use: give it its old size back", g.disk.Usable, v.size))
	case err != nil:
		return r.requestError(v, 111, "Low.dev. smaller than requested DRBD-dev. size.", err.Error())
	case size >= v.size:
	case g.user == 0 || size != g.user || !connected:
		return r.stateError(v, SSNeedConnection)
	case r.opens > 0 || r.role != drbd.Primary && g.c != nil:
		return r.stateError(v, SSDeviceInUse)
	}
	g.size = size
	return nil
}

// drainGrowth begins to store once nothing uses the metadata: all epochs are
// acknowledged, so that no extent of the activity log is held.
func (r *Resource) drainGrowth(v *volume) {
	g := v.grow
	if g == nil || g.stage != growthDrain || v.meta.running || v.meta.more {
		return
	}
	r.letExtentsGo(v)
	if v.al.InUse() > 0 || v.al.Waiting() > 0 || v.al.Writing() || v.active.busy(0, ^drbd.Sector(0), clientWrite|peerWrite|resyncWrite) {
		return
	}
	if g.relog {
		r.storeLog(v, g)
		return
	}
	if g.size != v.size && (v.st.Conn == drbd.WFBitMapS || v.st.Conn == drbd.WFBitMapT) {
		// The peer asked before it knew of the exchange: its bitmap has the old
		// size, and each end would wait for the rest of the other's.
		r.connectionLost(drbd.NetworkFailure, errors.New("the volume is to grow while the bitmaps are exchanged: connecting anew; repeat the resize then"))
		return
	}
	g.stage = growthStore
	g.wider = g.disk.Usable > v.usable
	v.usable = g.disk.Usable
	if g.size != v.size {
		v.resizeBitmap(g.size, g.flags&drbd.DDSNoResync == 0, r.peerPollux || !r.isUp())
	}
	v.sb.ALOffset, v.sb.BMOffset, v.sb.MDSize = g.disk.Superblock.ALOffset, g.disk.Superblock.BMOffset, g.disk.Superblock.MDSize
	v.meta.forceSync = true
	if g.disk.Moved {
		if err := v.al.Resize(v.al.Slots()); err != nil {
			panic(fmt.Sprintf("replication: activity log of volume %d of %s: %v", v.num, r.cfg.Name, err))
		}
		v.meta.move = true
	}
	v.whenStored(v.storeAll(), func() {
		if v.grow == g && v.hasDisk() {
			r.growthStored(v)
		}
	})
}

// resizeBitmap gives the bitmap another size. New bits are set if setNew; with
// setTail so is the bit of a block that was in use in part. A kernel leaves that
// one as it is, and as a target it would end a resync while it is set here.
func (v *volume) resizeBitmap(size drbd.Sector, setNew, setTail bool) {
	old := v.bitmap.Size()
	v.bitmap.Resize(size, setNew)
	const perBit = meta.BlockSize / 512
	if tail := old % perBit; setNew && setTail && tail != 0 && size > old {
		v.bitmap.Set(uint64(old/perBit), uint64(old/perBit))
	}
}

// letExtentsGo takes the extents from requests that have not begun; they ask
// anew. It also takes them from those that a kernel peer has acknowledged: the
// proof of its flush comes on the data socket, which is not read now.
func (r *Resource) letExtentsGo(v *volume) {
	if e := &r.send_; e.unacked.len() > 0 && e.unacked.at(0).acked {
		for i := range int(e.unacked.at(0).count) {
			if q := r.req.get(*r.req.log.at(i)); q.v == v && q.is(alHeld) && q.is(completed) {
				q.clear(alHeld)
				v.letGo(q)
			}
		}
	}
	for _, id := range r.req.waiting {
		if q := r.req.get(id); q.v == v && q.is(alHeld) {
			q.clear(alHeld)
			if q.is(isTainted) {
				v.setDirty(q.sector, q.size)
			}
			v.letGo(q)
		}
	}
	for _, id := range r.peer.waiting {
		if p := r.peer.get(id); p.v == v && p.alHeld {
			p.alHeld = false
			v.al.End(meta.ExtentsOf(p.sector, p.size))
		}
	}
}

// growthStored puts the new size in force: it is durable here.
func (r *Resource) growthStored(v *volume) {
	g := v.grow
	grew, changed := g.size > v.size, g.size != v.size
	v.size, v.opts.SizeSectors = g.size, uint64(g.user)
	if changed {
		r.emit(Action{Kind: StateChanged, Volume: v.num, From: v.st, To: v.st, Text: fmt.Sprintf("size is %d sectors now", v.size)})
	}
	connected := r.isUp() && v.handshakeDone && v.st.Conn >= drbd.Connected
	if g.c != nil {
		g.c.wider = g.c.wider || g.wider
		v.growPending = grew && connected
		if connected {
			r.askPeerToGrow(v, g)
			g.c.phase, g.c.reply = phaseAsk, 0
			if v.st.Pdsk < drbd.Inconsistent {
				g.c.reply = SSSuccess // without a disk it has nothing to answer
			}
			r.growthOver(v, nil)
			r.commandStep()
			return
		}
		g.c.phase = phaseAsk
		r.growthOver(v, nil)
		r.commandStep()
		return
	}
	if connected && g.theirs != v.size {
		r.sendSizesFlags(v, v.size, g.flags)
	}
	r.growthOver(v, nil)
	if connected {
		r.syncGrowth(v, grew, g.flags)
	}
	if r.cmd != nil && r.cmd.Kind == CmdResize && r.cmd.Volume == v.num && r.cmd.phase == phaseAsk {
		r.cmd.reply = SSSuccess
		r.commandStep()
	}
}

// askPeerToGrow is the trigger of the kernel: P_UUIDS, and P_SIZES without a
// size in force, which the peer answers with its own. A diskless peer takes
// whatever size it hears.
func (r *Resource) askPeerToGrow(v *volume, g *growth) {
	r.sendUUIDs(v, 0)
	trigger := drbd.Sector(0)
	if v.st.Pdsk < drbd.Inconsistent {
		trigger = v.size
	}
	r.sendSizesFlags(v, trigger, g.flags)
}

// syncGrowth begins the resync of the new part: from the only copy that is
// UpToDate; of two, from the Primary's or, if the roles are alike, from that of
// the node that accepted the meta socket.
func (r *Resource) syncGrowth(v *volume, grew bool, flags uint16) {
	grew, v.growPending = grew || v.growPending, false
	if !grew || v.st.Conn != drbd.Connected || v.st.Disk < drbd.Inconsistent || v.st.Pdsk < drbd.Inconsistent {
		return
	}
	if flags&drbd.DDSNoResync != 0 {
		r.report("volume %d: the new part is not synced: the operator says that it is equal on both nodes", v.num)
		return
	}
	isSource := r.link.ResolveConflicts
	if (r.role == drbd.Primary) != (v.st.Peer == drbd.Primary) {
		isSource = r.role == drbd.Primary
	}
	switch mine, its := v.st.Disk == drbd.UpToDate, v.st.Pdsk == drbd.UpToDate; {
	case !mine && !its:
		return // nobody has what the other could be given
	case mine != its && !r.peerPollux:
		// A kernel goes by the roles alone, and would call the bad copy good.
		r.connectionLost(drbd.NetworkFailure, errors.New("the volume has grown while one copy is Inconsistent: the handshake settles which one is the source"))
		return
	case mine != its:
		isSource = mine
	}
	if isSource {
		r.startSource(v)
		return
	}
	ns := v.st
	ns.Conn = drbd.WFSyncUUID
	r.setState(v, ns, "the volume has grown")
	r.setTimer(timerHandshake, handshakeMS)
}

// growthOver ends the change, done or refused; the peer hears the size in force
// either way if it has asked.
func (r *Resource) growthOver(v *volume, err error) {
	g := v.grow
	v.grow, v.held, r.kick = nil, false, true
	r.growing--
	if err == nil {
		return
	}
	if g.c != nil {
		if r.cmd == g.c {
			r.finish(g.c, err)
			r.commandStep()
		}
		return
	}
	if r.isUp() && v.handshakeDone {
		r.giveUp("volume %d: the size that the peer wants can't be had: %v", v.num, err)
	}
}

// hasGrown reports whether size, which follows from the peer's p, is more than
// either node had: they meet again, or one attaches its disk. An attaching node
// hears the size that the other has taken already.
func (v *volume) hasGrown(size drbd.Sector, p drbd.Sizes) bool {
	return v.hasDisk() && v.sb.LASize != 0 && size > v.size && p.CSize != 0 &&
		(size > p.CSize || v.handshakeDone && v.st.Disk == drbd.Negotiating)
}

// growBoth has the new part synced if both devices have grown while the nodes
// were not connected. The kernel leaves its bits set and does nothing: with one
// as the peer it is done when both are Connected, by syncGrownApart.
func (r *Resource) growBoth(v *volume, peerRole drbd.Role, res *HandshakeResult) {
	if v.grewBoth && res.Conn != drbd.Connected {
		v.grewBoth = false // the resync that begins has the new part, too
	}
	if !v.grewBoth || !r.peerPollux {
		return
	}
	v.grewBoth = false
	isSource := r.link.ResolveConflicts
	if (r.role == drbd.Primary) != (peerRole == drbd.Primary) {
		isSource = r.role == drbd.Primary
	}
	if res.Conn = drbd.WFBitMapT; isSource {
		res.Conn = drbd.WFBitMapS
	}
	res.Reason += "; the volume has grown on both nodes"
}

// syncGrownApart has the new part synced with a kernel as the peer, which both
// nodes know to be out of sync, once either is Primary: it is the source, by a
// new generation. A kernel begins one only when it loses its peer; that must not
// happen where it would have it fenced.
func (r *Resource) syncGrownApart(v *volume) {
	if v.peerSays != v.st.Peer || v.st.Conn != drbd.Connected || r.cmd != nil || v.grow != nil || v.st.Disk != drbd.UpToDate || v.st.Pdsk != drbd.UpToDate ||
		(r.role == drbd.Primary) == (v.st.Peer == drbd.Primary) {
		return
	}
	v.grewBoth = false
	const grown = "the volume has grown on both nodes while they were apart"
	switch {
	case v.bitmap.Weight() == 0:
	case r.role == drbd.Primary && v.uuids.Bitmap == 0:
		r.newCurrent(v)
		r.sourceWhenStored(v, grown)
	case v.opts.Fencing == FencingDontCare:
		r.connectionLost(drbd.NetworkFailure, errors.New(grown+": in the next handshake the Primary becomes the source of the new part"))
	default:
		r.report("volume %d: %s, and the new part is not synced: have the Primary disconnect and connect again", v.num, grown)
	}
}

// dropGrowth forgets a change that is not on its way to the disk yet: the
// connection was lost or its command is over. The operator's is begun anew.
func (r *Resource) dropGrowth(v *volume) {
	g := v.grow
	if g == nil || g.stage == growthStore {
		return
	}
	v.grow, v.held, r.kick = nil, false, true
	r.growing--
	if g.c != nil && g.c == r.cmd && g.c.phase == phaseStore {
		g.c.phase = phaseCheck
	}
}

// growthFailed: the disk is gone, and with it what was to grow.
func (r *Resource) growthFailed(v *volume) {
	if g := v.grow; g != nil {
		v.grow, v.held, r.kick = nil, false, true
		r.growing--
		switch {
		case g.c == nil || g.c != r.cmd:
		case g.relog: // the next attach has the new options
			r.finish(g.c, nil)
		default:
			r.finish(g.c, r.requestError(v, 138, "Device does not have a disk-config", "it was lost meanwhile"))
		}
	}
}

// durableSize is the size that the superblock has to say: the one in force, or
// the one that will be as soon as it does.
func (v *volume) durableSize() drbd.Sector {
	if v.grow != nil && v.grow.stage == growthStore && !v.grow.relog {
		return v.grow.size
	}
	return v.size
}

// moveMeta starts the job that takes the metadata of v to its new place.
func (r *Resource) moveMeta(v *volume) {
	m := &v.meta
	m.wantSB, m.wantBM, m.forceSync = true, true, true
	m.begin(v.bitmap)
	m.dirty, m.pages = nil, nil
	job := &MetaJob{SyncData: true, Move: true, Marked: make([]byte, meta.BlockSize)}
	for p := range v.bitmap.Pages() {
		if first := uint64(p) * meta.BlockSize * 8; v.bitmap.Any(first, min(first+meta.BlockSize*8, v.bitmap.Bits())-1) {
			r.takePage(v, job, p)
		} else {
			v.bitmap.MarkClean(p)
		}
	}
	job.Pages, m.pages = m.pages, nil
	r.composeTerm(v, job)
	m.finish(v, job)
	marked := meta.MarkFullSync(v.sb)
	marked.Encode(job.Marked)
	v.stats.BMWrites += uint64(len(job.Pages))
	m.move, m.running, m.job, m.forceSync = false, true, job, false
	r.emit(Action{Kind: WriteMeta, Volume: v.num, Job: job})
}

// peerResizes takes a P_SIZES that may ask for another size: of connected
// nodes that both have a disk.
func (r *Resource) peerResizes(v *volume, p drbd.Sizes) bool {
	if !v.handshakeDone || v.st.Conn < drbd.Connected || v.st.Disk < drbd.Inconsistent || p.DSize == 0 ||
		v.st.Pdsk < drbd.Inconsistent || v.grow != nil || p.CSize == v.size && p.USize == drbd.Sector(v.opts.SizeSectors) && !v.growPending && !r.awaitsSize(v) {
		return false
	}
	r.beginGrowth(v, &growth{user: p.USize, flags: p.DDSFlags, theirs: p.CSize})
	return true
}

// awaitsSize: a resize of ours waits for the peer's answer.
func (r *Resource) awaitsSize(v *volume) bool {
	return r.cmd != nil && r.cmd.Kind == CmdResize && r.cmd.Volume == v.num && r.cmd.phase == phaseAsk
}

// shrinksImplicitly refuses a disk whose volume would become smaller by being
// attached: only a resize may do that.
func (r *Resource) shrinksImplicitly(v *volume, d *AttachedDisk) error {
	user := drbd.Sector(d.Options.SizeSectors)
	if la := d.Superblock.LASize; la == 0 || user == 0 || user >= la || d.Superblock.Flags&meta.MDFConsistent == 0 {
		return nil
	}
	return r.requestError(v, 170, "Implicit device shrinking not allowed. See kernel log.", fmt.Sprintf(
		"the volume has %d sectors and the option size asks for %d: take it out of the configuration, and make the volume smaller with `polluxadm resize --size` while the peer is connected",
		d.Superblock.LASize, user))
}
