package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Request errors of pause-sync and resume-sync. Source: DRBD 8.4
// linux/drbd.h, enum drbd_ret_code.
const (
	errPauseIsSet      = 134
	errPauseIsClear    = 135
	errPausedByDepends = 156
	errPausedByPeer    = 157
)

// PausedBy names why the resync of a volume in state s is paused, or would
// be if one ran: "user" (pause-sync here), "peer" (it has paused it, for
// whatever reason), "dependency" (resync-after). The words and their order are
// those of drbdsetup's resync-suspended.
func PausedBy(s drbd.State) []string {
	var by []string
	for _, p := range []struct {
		on   bool
		name string
	}{{s.UserISP, "user"}, {s.PeerISP, "peer"}, {s.AftrISP, "dependency"}} {
		if p.on {
			by = append(by, p.name)
		}
	}
	return by
}

// runPause sets or clears the operator's pause of one volume. It outlives the
// connection: only resume-sync, or a restart of the daemon, ends it.
func (r *Resource) runPause(c *command) {
	v := r.volume(c.Volume)
	on := c.Kind == CmdPauseSync
	switch {
	case v == nil:
		r.finish(c, &RequestError{Code: 127, Text: fmt.Sprintf("%s: no volume %d", r.cfg.Name, c.Volume)})
		return
	case v.st.UserISP == on:
		r.finish(c, r.pauseRefused(v, on))
		return
	}
	ns := v.st
	ns.UserISP = on
	switch code := r.check(v, ns, false); {
	case code == SSInTransientState:
		r.retryLater(c)
		return
	case code < SSSuccess:
		r.finish(c, r.stateError(v, code))
		return
	}
	text := "resume-sync"
	if on {
		text = "pause-sync"
	}
	r.setState(v, ns, text)
	r.finish(c, nil)
}

// pauseRefused says why there is nothing to set or to clear, in DRBD's words.
func (r *Resource) pauseRefused(v *volume, on bool) error {
	code, text := errPauseIsClear, "Sync-pause flag is already cleared"
	paused := v.st.Conn == drbd.PausedSyncS || v.st.Conn == drbd.PausedSyncT
	switch {
	case on:
		code, text = errPauseIsSet, "Sync-pause flag is already set"
	case paused && v.st.AftrISP:
		code, text = errPausedByDepends, text+"; the resync waits for the volume that its resync-after option names"
	case paused && v.st.PeerISP:
		code, text = errPausedByPeer, text+"; the resync is paused by the peer: run resume-sync there"
	}
	return &RequestError{Code: code, Text: fmt.Sprintf("%s/%d: Failure: (%d) %s", r.cfg.Name, v.num, code, text)}
}

// runDependency sets or clears the pause by resync-after. It is no wish that
// the rules may refuse: other volumes are in the way, or no longer.
func (r *Resource) runDependency(c *command) {
	v := r.volume(c.Volume)
	if v == nil {
		r.finish(c, &RequestError{Code: 127, Text: fmt.Sprintf("%s: no volume %d", r.cfg.Name, c.Volume)})
		return
	}
	if v.st.AftrISP != c.Waits {
		ns := v.st
		ns.AftrISP = c.Waits
		text := "the volume that it is to be resynced after has finished"
		if c.Waits {
			text = "it is resynced after another volume"
		}
		r.setState(v, ns, text)
	}
	r.finish(c, nil)
}

// isSyncTarget and isSyncSource include a paused resync: what was asked for
// before the pause is still answered, written and acknowledged.
func (v *volume) isSyncTarget() bool {
	return v.st.Conn == drbd.SyncTarget || v.st.Conn == drbd.PausedSyncT
}

func (v *volume) isSyncSource() bool {
	return v.st.Conn == drbd.SyncSource || v.st.Conn == drbd.PausedSyncS
}

// resyncPaused and resyncResumed keep the pause out of the rate, and a target
// asks on at once.
func (r *Resource) resyncPaused(v *volume) { v.rs.pausedAt = r.now }

func (r *Resource) resyncResumed(v *volume) {
	s := &v.rs
	if !s.running {
		return
	}
	if s.pausedAt != 0 {
		lost := r.now - s.pausedAt
		s.pausedMS += lost
		for i := range s.marks {
			s.marks[i].at += lost
		}
		s.pausedAt = 0
	}
	s.pace.restart(r.now)
	r.resyncTimer(resyncTickMS)
	r.askResync(v)
	r.checkResyncDone(v)
}
