package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// runSetOptions takes new options over on the running connection. The peer
// adopts protocol, policies and algorithms; nothing answers.
func (r *Resource) runSetOptions(c *command) {
	if c.phase == phaseStore {
		return
	}
	if c.phase == phaseCheck { // all but the activity log is in force
		r.changeLog(c)
		return
	}
	if err := r.mayChange(&c.Net); err != nil {
		r.finish(c, err)
		return
	}
	old := r.protocolPacket()
	r.net = c.Net
	if r.isUp() && r.gotProtocol && r.protocolPacket() != old {
		r.sendPacket(drbd.DataSocket, drbd.CmdProtocolUpdate, 0, r.protocolPacket())
		r.setIntegrity(r.net.DataIntegrityAlg)
	}
	if v := r.volume(c.Volume); v != nil {
		old := v.opts
		v.opts = c.Disk
		v.opts.SizeSectors = old.SizeSectors // a matter of resize
		if v.al != nil {                     // see changeLog
			v.opts.ALExtents, v.opts.ALUpdates = old.ALExtents, old.ALUpdates
		}
		r.repace(v)
		if r.conn >= drbd.Connected && v.handshakeDone {
			r.sendPacket(drbd.DataSocket, drbd.CmdSyncParam89, v.num, r.syncParam(v))
		}
	}
	r.changeLog(c)
}

// runSetHandlers takes over which handlers are configured. What waits for one
// that is gone hears of its end as of any other; I/O that is frozen because there
// was none to fence the peer has one now.
func (r *Resource) runSetHandlers(c *command) {
	had := r.cfg.HasFenceHandler
	r.cfg.Handlers = c.Handlers
	if r.cfg.HasFenceHandler && !had && r.suspFen && !r.isUp() {
		r.startFencing()
	}
	r.finish(c, nil)
}

// mayChange is why net cannot be taken over now, or nil. The numbers are DRBD's
// ERR_CSUMS_RESYNC_RUNNING and ERR_VERIFY_RUNNING, and those of checkTwoPrimaries.
func (r *Resource) mayChange(net *NetOptions) error {
	if err := r.checkTwoPrimaries(net); err != nil {
		return err
	}
	for _, v := range r.vols {
		switch syncs := v.st.Conn >= drbd.SyncSource && v.st.Conn <= drbd.PausedSyncT; {
		case v.ov.running && net.VerifyAlg != r.net.VerifyAlg:
			return &RequestError{Code: 149, Text: fmt.Sprintf(
				"%s: Failure: (149) Can not change verify-alg while online verify runs: wait until it is done, or disconnect", r.cfg.Name)}
		case syncs && v.st.Conn != drbd.VerifyS && v.st.Conn != drbd.VerifyT && net.CsumsAlg != r.net.CsumsAlg:
			return &RequestError{Code: 148, Text: fmt.Sprintf(
				"%s: Failure: (148) Can not change csums-alg while resync is in progress: run `polluxadm wait-sync %[1]s` first", r.cfg.Name)}
		}
	}
	return nil
}
