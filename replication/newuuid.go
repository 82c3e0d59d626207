package replication

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// runNewCurrentUUID begins a new data generation by the operator's will
// (drbd84-protocol, 5.3): on a StandAlone node, before a copy of its disk goes to
// the peer; or, with --clear-bitmap on two new and connected disks, to take
// them for equal without a first sync.
func (r *Resource) runNewCurrentUUID(c *command) {
	v := r.volume(c.Volume)
	switch {
	case c.phase == phaseBegin || c.phase == phaseCheck:
		skip, err := r.mayBeginUUID(c, v)
		if err != nil {
			r.finish(c, err)
			return
		}
		c.phase, c.skipSync = phaseDrain, skip
		if c.AssumeClean {
			r.holdWrites(c, v)
			r.setTimerOnce(timerCommand, commandLimitMS) // frozen writes may not end before an operator's next command
		}
	case !v.hasDisk():
		r.finish(c, r.requestError(v, 138, "Device does not have a disk-config", "it was lost meanwhile"))
		return
	case c.phase == phaseStore:
		return
	}
	// A write under way has set its bits; they must not be cleared under it.
	if c.AssumeClean && v.active.busy(0, ^drbd.Sector(0), clientWrite|peerWrite|resyncWrite) {
		return
	}
	c.phase = phaseStore
	ClearBitmap(&v.uuids)
	if c.AssumeClean {
		v.bitmap.ClearAll()
		v.meta.wantBM = true
	}
	NewCurrent(&v.uuids, r.random(), r.role == drbd.Primary)
	if r.role == drbd.Primary {
		v.exposed = v.uuids.Current
	}
	r.emit(Action{Kind: StateChanged, Volume: v.num, From: v.st, To: v.st, Text: fmt.Sprintf("new current UUID %016X by the operator", v.uuids.Current)})
	gen := r.connGen
	v.whenStored(v.requireSuperblock(), func() {
		switch {
		case r.cmd != c || !v.hasDisk():
			return
		case !c.skipSync:
			r.finish(c, nil)
		case gen == r.connGen && v.st.Conn == drbd.Connected:
			r.skipInitialSync(v)
			r.finish(c, nil)
		default:
			r.finish(c, r.stateError(v, SSNeedConnection))
		}
		r.commandStep()
	})
}

// mayBeginUUID refuses as the kernel does; skip is whether both disks are new
// and connected, and are to count as equal.
func (r *Resource) mayBeginUUID(c *command, v *volume) (skip bool, err error) {
	switch {
	case v == nil:
		return false, &RequestError{Code: 127, Text: fmt.Sprintf("%s: Failure: (127) Minor not known: no volume %d", r.cfg.Name, c.Volume)}
	case !v.hasDisk():
		return false, r.requestError(v, 138, "Device does not have a disk-config", fmt.Sprintf("run `polluxadm attach %s` first", r.cfg.Name))
	case v.st.Conn == drbd.StandAlone:
		return false, nil
	case v.st.Conn != drbd.Connected || !c.AssumeClean || r.link.Version < versionSkipSync ||
		v.uuids.Current&^1 != meta.UUIDJustCreated:
		return false, r.requestError(v, 151, "Need to be StandAlone", fmt.Sprintf("run `polluxadm disconnect %s` first; "+
			"only two new disks that are connected can be taken for equal, with --clear-bitmap", r.cfg.Name))
	case !v.havePeerUUIDs || v.peerUUIDs.Current&^1 != meta.UUIDJustCreated:
		return false, r.requestError(v, 151, "Need to be StandAlone", "this disk is new, but the peer's is not: let it be synced")
	}
	return true, nil
}

// versionSkipSync is the first protocol version with the flag for it.
// Source: drbd84-protocol, 10.2.
const versionSkipSync = 90

// skipInitialSync tells the peer and takes both copies for good. P_UUIDS with
// its flag is the only packet, and still has the old bitmap UUID
// (drbd84-protocol, 5.3).
func (r *Resource) skipInitialSync(v *volume) {
	r.sendUUIDs(v, drbd.UUIDSkipInitialSync)
	v.uuids.Bitmap = 0
	v.peerUUIDs = meta.UUIDs{Current: v.uuids.Current}
	ns := v.st
	ns.Disk, ns.Pdsk = drbd.UpToDate, drbd.UpToDate
	r.setState(v, ns, "the initial sync is skipped")
	v.storeAll()
}

// holdWrites keeps the writes of clients of v back until c ends.
func (r *Resource) holdWrites(c *command, v *volume) { c.holding, v.held = v, true }

// requestError is a refusal in DRBD's words, with our advice behind it.
func (r *Resource) requestError(v *volume, code int, text, advice string) error {
	e := &RequestError{Code: code, Text: fmt.Sprintf("%s/%d: Failure: (%d) %s", r.cfg.Name, v.num, code, text)}
	if advice != "" {
		e.Text = strings.TrimSuffix(e.Text, ".") + ": " + advice
	}
	return e
}
