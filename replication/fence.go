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

// thaw ends the freeze. If the peer is back, the frozen writes go to it again;
// else it is out of the way and this node begins a generation of its own.
func (r *Resource) thaw(peerIsBack bool) {
	r.suspFen = false
	for _, v := range r.vols {
		ns := v.st
		ns.SuspFen = false
		r.setState(v, ns, "I/O goes on")
		if r.fencePending && !peerIsBack && v.st.Disk == drbd.UpToDate && v.uuids.Bitmap == 0 {
			r.newCurrent(v)
		}
	}
	r.fencePending = false
	for _, id := range r.req.parked {
		q := r.req.get(id)
		if !q.used || !q.is(resend) {
			continue
		}
		q.clear(resend)
		if peerIsBack && q.v.st.Conn >= drbd.Connected && q.v.st.Pdsk >= drbd.Inconsistent && q.v.st.Conn != drbd.WFBitMapS {
			r.replicate(q)
		} else {
			q.v.setDirty(q.sector, q.size)
		}
	}
	r.unpark()
	r.kick = true
}
