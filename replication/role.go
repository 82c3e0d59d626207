package replication

import (
	"github.com/pollux-project/pollux/protocol/drbd"
)

func (r *Resource) runPrimary(c *command) {
	switch c.phase {
	case phaseBegin, phaseCheck:
		if c.Vote && !r.vote(c) {
			return
		}
		if c.Term != 0 {
			if err := r.checkTerm(c); err != nil {
				r.finish(c, err)
				return
			}
		}
		if r.role == drbd.Primary {
			r.regrant(c)
			return
		}
		if r.ready(c) {
			r.checkPrimary(c)
		}
	case phaseAsk:
		if c.reply == 0 {
			return
		}
		switch {
		case c.reply == SSConcurrentStChg, c.reply == SSInTransientState:
			r.retryLater(c)
		case c.reply < SSSuccess:
			r.finish(c, r.refusedByPeer(c))
		default:
			c.vol++
			c.phase = phaseCheck
		}
	}
}

func (r *Resource) refusedByPeer(c *command) error {
	r.report("the peer refused: (%d) %s", int32(c.reply), c.reply.Text())
	if c.reply == SSTwoPrimaries || c.reply == SSOVolPeerPri {
		return r.stateError(nil, SSTwoPrimaries)
	}
	return r.stateError(nil, SSCWFailedByPeer)
}

// promoted is the state of v as Primary, forced if the command says so.
func (c *command) promoted(v *volume) drbd.State {
	ns := v.st
	ns.Role = drbd.Primary
	if c.forced[v.num] && ns.Disk >= drbd.Inconsistent || c.alone && ns.Disk == drbd.Consistent { // it may have failed meanwhile
		ns.Disk = drbd.UpToDate
	}
	return c.withoutPeer(ns)
}

// checkPrimary asks the rules, then the peer, volume by volume, then promotes.
func (r *Resource) checkPrimary(c *command) {
	connected := r.conn >= drbd.Connected
	for _, v := range r.vols {
		code := r.check(v, c.promoted(v), connected)
		if code < SSSuccess && !r.helpPrimary(c, v, code) {
			return
		}
	}
	if connected && c.vol < len(r.vols) {
		v := r.vols[c.vol]
		mask, val := uint32(3), uint32(drbd.Primary)
		if c.forced[v.num] {
			mask, val = mask|15<<9, val|uint32(drbd.UpToDate)<<9
		} else if c.vol > 0 {
			c.vol++ // the role is the resource's: one volume has asked for it
			r.checkPrimary(c)
			return
		}
		r.ask(c, v, mask, val)
		return
	}
	r.promote(c)
}

// helpPrimary looks for a way round a refusal; it reports whether the check
// passes now. Otherwise it has finished or postponed the command.
func (r *Resource) helpPrimary(c *command, v *volume, code StateCode) bool {
	better := v.st.Disk >= drbd.Inconsistent && v.st.Disk < drbd.UpToDate
	switch {
	case code == SSNoUpToDateDisk && c.Force && better && !c.forced[v.num]:
		c.forced[v.num] = true
		code = r.check(v, c.promoted(v), r.conn >= drbd.Connected)
		if code >= SSSuccess {
			return true
		}
		return r.helpPrimary(c, v, code)
	case code == SSNoUpToDateDisk && v.st.Disk == drbd.Consistent && r.conn < drbd.Connected && !c.alone &&
		(r.peerIsOut() || v.opts.Fencing == FencingDontCare):
		c.alone = true // nobody can hold newer data, or nobody cares
		code = r.check(v, c.promoted(v), false)
		if code >= SSSuccess {
			return true
		}
		return r.helpPrimary(c, v, code)
	case (code == SSNoUpToDateDisk && v.st.Disk == drbd.Consistent || code == SSPrimaryNOP) && !c.fenced && r.cfg.HasFenceHandler:
		c.fenced = true
		c.phase = phaseFence
		r.runFence(v)
		return false
	case code == SSPrimaryNOP && c.Force:
		ns := v.st
		ns.Pdsk = drbd.Outdated
		r.setState(v, ns, "primary --force: the peer is taken as outdated")
		return true
	case code == SSTwoPrimaries && !c.retried:
		c.retried = true // the peer may be dead and not yet missed
		c.pinged = false
		c.retryAt = r.now + Tick(r.net.PingTimeoutMS) + 100
		c.phase = phaseCheck
		r.setTimer(timerCommand, Tick(r.net.PingTimeoutMS)+100)
		return false
	case code == SSInTransientState && v.st.Conn != drbd.Connected: // else nothing is under way that could end
		r.retryLater(c)
		return false
	}
	r.finish(c, r.stateError(v, code))
	return false
}

// promote makes this node Primary. The role, and any new generation, are on
// disk before the command ends and before the peer hears of it.
func (r *Resource) promote(c *command) {
	c.phase = phaseStore
	r.own(c)
	r.role = drbd.Primary
	begun := map[*volume]bool{} // generations of which the peer is to hear
	for _, v := range r.vols {
		forced := c.forced[v.num]
		alone := v.st.Conn < drbd.Connected || v.st.Pdsk <= drbd.Failed
		if v.hasDisk() && (forced || alone && v.uuids.Bitmap == 0) {
			// Before the state: the old generation goes on without the mark
			// that it was a Primary's, unless it had that already.
			if forced && v.uuids.Bitmap != 0 {
				ClearBitmap(&v.uuids)
			}
			NewCurrent(&v.uuids, r.random(), true)
			begun[v] = true
		}
		r.setState(v, c.promoted(v), "promoted")
		v.exposed = v.uuids.Current
		if !v.hasDisk() {
			v.exposed = v.peerUUIDs.Current
			r.announce(v, false)
		}
	}
	if r.suspFen && c.Sole && !r.isUp() { // it was frozen when it was demoted, with nothing under way
		r.thaw(false)
	}
	r.whenAllStored(func(v *volume) uint64 {
		job := v.requireSuperblock()
		v.whenStored(job, func() {
			r.stateTerm()
			r.announce(v, begun[v] || c.forced[v.num]) // a diskless peer, too, may be promoted: it uses this copy
		})
		return job
	}, func() { r.finishTerm(c) })
}

func (r *Resource) announce(v *volume, uuids bool) {
	if !r.isUp() || !v.handshakeDone {
		return
	}
	if uuids {
		r.sendUUIDs(v, 0)
	}
	r.sendStateWord(v, v.st)
}

// runSecondary demotes: all writes are acknowledged and durable before the
// superblock says that the activity log need not be looked at.
func (r *Resource) runSecondary(c *command) {
	switch c.phase {
	case phaseBegin, phaseCheck:
		if r.role != drbd.Primary {
			r.finish(c, nil)
			return
		}
		if r.opens > 0 {
			r.finish(c, r.stateError(nil, SSDeviceInUse))
			return
		}
		c.phase = phaseDrain
	case phaseDrain:
		if r.req.used > 0 {
			if r.suspended() && !r.abandonRequests() {
				r.finish(c, r.stateError(nil, SSInTransientState))
				return
			}
			r.hurry()
			r.setTimerOnce(timerCommand, commandRetryMS)
			return
		}
		c.phase = phaseStore
		r.whenAllStored(func(v *volume) uint64 {
			v.meta.forceSync = true
			return v.storeAll()
		}, func() { r.demote(c) })
	}
}

func (r *Resource) demote(c *command) {
	if r.opens > 0 || r.req.used > 0 { // someone came in between
		c.phase = phaseCheck
		r.commandStep()
		return
	}
	r.setRole(drbd.Secondary, "demoted")
	r.stateTerm()
	for _, v := range r.vols {
		r.announce(v, false)
	}
	r.diskIsBack()
	r.whenAllStored((*volume).storeSuperblock, r.finishing(c))
}
