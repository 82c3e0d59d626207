package replication

import "github.com/pollux-project/pollux/protocol/drbd"

// State words of a connection-wide request (drbd84-protocol, 4.5).
const (
	maskConn = 31 << 4
	maskDisk = 15 << 9
	maskPdsk = 15 << 13
)

func (r *Resource) runDisconnect(c *command) {
	switch c.phase {
	case phaseBegin, phaseCheck:
		if r.conn == drbd.StandAlone {
			r.awaitsDisk = false
			r.finish(c, nil)
			return
		}
		if r.conn < drbd.Connected {
			r.finish(c, nil)
			r.connectionLost(drbd.Disconnecting, nil)
			return
		}
		c.phase = phaseDrain
		r.hurry()
	case phaseDrain:
		if r.isUp() && (r.req.log.len() > 0 || r.recv.q.len() > 0) && r.now-c.began < drainLimitMS {
			r.recv.hurry = true // what the peer has sent need not be resynced
			r.setTimerOnce(timerCommand, commandRetryMS/4)
			return
		}
		if !r.isUp() {
			c.phase = phaseCheck
			return
		}
		if c.outdated == 0 && r.mayLeaveBehind() {
			c.outdated = 2
		}
		r.askDisconnect(c)
	case phaseAsk:
		if c.reply == 0 {
			return
		}
		switch {
		case c.reply >= SSSuccess || c.Force:
			if c.reply < SSSuccess {
				c.outdated = 0
			}
			r.disconnectGranted(c)
		case c.reply == SSPrimaryNOP && c.outdated == 0:
			c.outdated = 2
			r.askDisconnect(c)
		case c.reply == SSConcurrentStChg || c.reply == SSInTransientState:
			c.phase = phaseDrain
			c.retryAt = r.now + commandRetryMS
			r.setTimer(timerCommand, commandRetryMS)
		default:
			r.finish(c, r.refusedByPeer(c))
		}
	}
}

func (r *Resource) askDisconnect(c *command) {
	if c.outdated == 0 {
		for _, v := range r.vols {
			ns := v.st
			ns.Conn = drbd.Disconnecting
			if r.check(v, ns, true) == SSPrimaryNOP {
				c.outdated = 1
			}
		}
	}
	mask, val := uint32(maskConn), uint32(drbd.Disconnecting)<<4
	switch c.outdated {
	case 1:
		mask, val = mask|maskPdsk, val|uint32(drbd.Outdated)<<13
	case 2:
		mask, val = mask|maskDisk, val|uint32(drbd.Outdated)<<9
	}
	r.askConn(c, mask, val)
}

func (r *Resource) disconnectGranted(c *command) {
	if c.outdated == 2 && r.mayLeaveBehind() {
		r.leave(c)
		return
	}
	for _, v := range r.vols {
		ns := v.st
		switch {
		case c.outdated == 1 && ns.Pdsk >= drbd.Outdated:
			ns.Conn, ns.Pdsk = drbd.Disconnecting, drbd.Outdated
		case c.outdated == 2 && ns.Disk > drbd.Outdated:
			ns.Conn, ns.Disk = drbd.Disconnecting, drbd.Outdated
		default:
			continue
		}
		r.setState(v, ns, "disconnect")
	}
	r.finish(c, nil)
	r.connectionLost(drbd.Disconnecting, nil)
}
