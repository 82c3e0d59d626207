package replication

import "github.com/pollux-project/pollux/protocol/drbd"

// Exit codes of the fence-peer handler (drbd84-protocol, 4.5).
const (
	fencePeerInconsistent = 3
	fencePeerOutdated     = 4
	fencePeerDown         = 5
	fencePeerPrimary      = 6
	fencePeerKilled       = 7
)

// startFencing runs the fence-peer handler after the peer was lost. Without a
// handler I/O stays frozen until the peer is back or the operator decides.
func (r *Resource) startFencing() {
	if r.fenceRunning || r.role != drbd.Primary {
		return
	}
	if !r.cfg.HasFenceHandler {
		r.report("I/O is frozen: the peer is lost, fencing is resource-and-stonith and no fence-peer handler is configured; " +
			"make sure that the peer is down, then run `polluxadm resume-io`, or bring the peer back")
		return
	}
	r.runFence(r.vols[0])
}

func (r *Resource) runFence(v *volume) {
	r.fenceRunning = true
	r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "fence-peer"})
}

// handlerDone takes the verdict of a handler.
func (r *Resource) handlerDone(ev *Event) {
	if ev.Name != "fence-peer" || !r.fenceRunning {
		return
	}
	r.fenceRunning = false
	if r.isUp() {
		r.continueAfterFence()
		return // the peer came back first
	}
	ok := true
	for _, v := range r.vols {
		ns := v.st
		switch ev.ExitCode {
		case fencePeerInconsistent:
			ns.Pdsk = drbd.Inconsistent
		case fencePeerOutdated, fencePeerKilled:
			ns.Pdsk = drbd.Outdated
		case fencePeerDown:
			if ns.Disk == drbd.UpToDate {
				ns.Pdsk = drbd.Outdated
			}
		case fencePeerPrimary:
			ok = false
			if ns.Disk > drbd.Outdated {
				ns.Disk = drbd.Outdated
			}
		default:
			ok = false
		}
		r.setState(v, ns, "fence-peer handler")
	}
	if ok && r.suspFen {
		r.thaw(false)
	}
	if !ok {
		r.report("fence-peer ended with %d: the peer is not fenced", ev.ExitCode)
	}
	r.continueAfterFence()
}

// continueAfterFence lets a promotion that waits for the handler go on.
func (r *Resource) continueAfterFence() {
	if r.cmd != nil && r.cmd.phase == phaseFence {
		r.cmd.phase = phaseCheck
		r.commandStep()
	}
}

// thaw ends the freeze. What was under way when the peer was lost is marked in
// the bitmap. If the peer is out of the way, this node begins a generation of
// its own. If it is back, nobody has begun one, and the marked blocks are sent
// to it in a resync, for which the new generation is begun here and now.
func (r *Resource) thaw(peerIsBack bool) {
	r.suspFen = false
	pending := r.fencePending
	r.fencePending = false
	if peerIsBack && r.bothPrimary() {
		r.repeatUnanswered()
	}
	for _, v := range r.vols {
		ns := v.st
		ns.SuspFen = false
		r.setState(v, ns, "I/O goes on")
		if !pending || v.st.Disk != drbd.UpToDate || v.uuids.Bitmap != 0 {
			continue
		}
		switch {
		case !peerIsBack || v.st.Pdsk < drbd.Inconsistent:
			r.newCurrent(v)
		case r.bothPrimary(): // both repeat what they had begun
		case v.st.Conn == drbd.Connected && v.bitmap.Weight() > 0:
			r.newCurrent(v)
			r.sourceAfterThaw(v)
		}
	}
	r.unpark()
	r.kick = true
}

// sourceAfterThaw makes this node the source of a resync that the peer learns
// of by P_UUIDS and P_STATE (drbd84-protocol, 4.6 steps 7 (iv) and 11). Both
// are sent once the new generation is on disk.
func (r *Resource) sourceAfterThaw(v *volume) {
	gen := r.connGen
	v.whenStored(v.meta.required, func() {
		if gen != r.connGen || !r.isUp() || v.st.Conn != drbd.Connected || v.st.Disk != drbd.UpToDate || v.st.Pdsk < drbd.Inconsistent {
			return
		}
		ns := v.st
		ns.Conn = drbd.WFBitMapS
		r.announceAndSet(v, ns, "resync of what was under way when the peer was lost")
	})
}
