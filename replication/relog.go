package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/replication/meta"
)

// changeLog is the last part of CmdSetOptions: al-extents and al-updates of a
// disk in use. As with a change of size, no write begins until the log is in use
// no more; then it begins anew with its new slots, in a ring that is initialised.
// A ring that goes on with more slots than before could not be replayed until
// its transactions had told what each of them holds.
func (r *Resource) changeLog(c *command) {
	v := r.volume(c.Volume)
	if v == nil || !v.hasDisk() || v.slotsFor(&c.Disk) == v.al.Slots() && c.Disk.ALUpdates == v.opts.ALUpdates {
		r.finish(c, nil)
		return
	}
	switch {
	case r.suspended():
		r.finish(c, r.stateError(v, SSInTransientState))
	case v.grow != nil:
		r.retryLater(c)
	case !r.peerPollux && v.inLog > 0:
		// A kernel peer proves its flush on the data socket, which is not read
		// once the change has begun.
		c.phase = phaseCheck
		r.holdWrites(c, v)
		r.hurry()
		r.setTimerOnce(timerCommand, commandRetryMS)
	default:
		c.phase = phaseStore
		r.setTimer(timerCommand, commandLimitMS)
		v.grow = &growth{c: c, relog: true, stage: growthDrain}
		v.held = true
		r.growing++
		r.hurry()
	}
}

// slotsFor are the slots that the ring of v has room for.
func (v *volume) slotsFor(o *DiskOptions) int { return min(o.ALExtents, v.al.MaxSlots()) }

// storeLog begins the log anew: nothing uses it. Writes that the peer has not
// made durable were in it, or would have been.
func (r *Resource) storeLog(v *volume, g *growth) {
	if v.inLog > 0 {
		return
	}
	g.stage = growthStore
	slots, updates := v.slotsFor(&g.c.Disk), g.c.Disk.ALUpdates
	if err := v.al.Resize(slots); err != nil {
		panic(fmt.Sprintf("replication: activity log of volume %d of %s: %v", v.num, r.cfg.Name, err))
	}
	v.opts.ALExtents, v.opts.ALUpdates = slots, updates
	v.meta.relog = true
	v.whenStored(v.storeAll(), func() {
		if v.grow != g || !v.hasDisk() {
			return
		}
		r.growthOver(v, nil)
		if r.cmd == g.c {
			r.finish(g.c, nil)
			r.commandStep()
		}
	})
}

// withoutLog is the superblock for the time in which the ring is initialised:
// nothing depends on the log, but it is not clean (meta.ApplyAL knows the pair).
func (v *volume) withoutLog() []byte {
	sb := v.sb
	sb.Unclean = true
	sb.Flags |= meta.MDFALClean
	b := make([]byte, meta.BlockSize)
	sb.Encode(b)
	return b
}
