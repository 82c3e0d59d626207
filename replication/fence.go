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

// startFencing runs the fence-peer handler after a Primary has lost a peer that
// may hold good data (drbd84-protocol, 4.5 and 4.7): also under resource-only,
// where I/O goes on meanwhile. Without a handler frozen I/O stays frozen until
// the peer is back or the operator decides.
func (r *Resource) startFencing() {
	if r.fenceRunning || r.role != drbd.Primary || r.fencingPolicy() < FencingResourceOnly || r.peerIsOut() {
		return
	}
	switch {
	case r.cfg.HasFenceHandler:
		r.runFence(r.vols[0])
	case r.suspFen && !r.terms.owned: // then termFreeze says what it waits for
		r.report("I/O is frozen: the peer is lost, fencing is resource-and-stonith and no fence-peer handler is configured; " +
			"make sure that the peer is down, then run `polluxadm resume-io`, or bring the peer back")
	}
}

// fencingPolicy is the strictest of the volumes that have data to defend.
func (r *Resource) fencingPolicy() Fencing {
	policy := FencingDontCare
	for _, v := range r.vols {
		if v.st.Disk >= drbd.Consistent || r.suspFen {
			policy = max(policy, v.opts.Fencing)
		}
	}
	return policy
}

// peerIsOut reports whether the peer is known to hold nothing that it could be
// promoted with.
func (r *Resource) peerIsOut() bool {
	for _, v := range r.vols {
		if v.st.Pdsk > drbd.Outdated {
			return false
		}
	}
	return true
}

func (r *Resource) runFence(v *volume) {
	if r.fenceRunning {
		return // whoever waits for it hears of that one
	}
	r.fenceRunning, r.fenceLink = true, r.links
	r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "fence-peer"})
}

// handlerDone takes the verdict of a handler.
func (r *Resource) handlerDone(ev *Event) {
	if v := r.volume(ev.Volume); v != nil && (ev.Name == beforeResyncSource || ev.Name == beforeResyncTarget) {
		r.beforeDone(v, ev.Name, ev.ExitCode)
		return
	}
	if ev.Name != "fence-peer" || !r.fenceRunning {
		return
	}
	r.fenceRunning = false
	switch {
	case r.isUp(): // the peer came back first
	case r.fenceLink != r.links:
		// It came back and was lost again: what the handler says is of the time
		// before, and the peer has had good data since.
		r.report("fence-peer ended with %d, which says nothing: the peer was connected meanwhile", ev.ExitCode)
		r.startFencing()
	default:
		r.fenced(ev.ExitCode, "fence-peer handler")
	}
	r.continueAfterFence()
}

// fenced draws the consequences of the handler's exit code.
func (r *Resource) fenced(code int, by string) {
	best := drbd.Diskless
	for _, v := range r.vols {
		best = max(best, v.st.Disk)
	}
	for _, v := range r.vols {
		ns := v.st
		switch code {
		case fencePeerInconsistent:
			ns.Pdsk = drbd.Inconsistent
		case fencePeerOutdated, fencePeerKilled:
			ns.Pdsk = drbd.Outdated
		case fencePeerDown:
			if best == drbd.UpToDate { // otherwise its copy may be the better one
				ns.Pdsk = drbd.Outdated
			}
		case fencePeerPrimary:
			ns.Disk = min(ns.Disk, drbd.Outdated)
			if r.check(v, ns, false) < SSSuccess {
				continue // a Primary cannot be outdated: its I/O stays as it is
			}
		default:
			continue
		}
		r.setState(v, ns, by)
	}
	if !r.peerIsOut() {
		r.report("fence-peer ended with %d: the peer is not fenced", code)
		return
	}
	r.leftAlone()
	if r.suspFen {
		r.thaw(false)
	}
}

// continueAfterFence lets a promotion that waits for the handler go on.
func (r *Resource) continueAfterFence() {
	if r.cmd != nil && r.cmd.phase == phaseFence {
		r.cmd.phase = phaseCheck
		r.commandStep()
	}
}

// unfence tells whoever was told to keep the peer out that both copies are good
// again: after a resync, once every volume is UpToDate on both nodes.
func (r *Resource) unfence(v *volume) {
	if v.opts.Fencing == FencingDontCare {
		return
	}
	for _, o := range r.vols {
		if o.st.Disk != drbd.UpToDate || o.st.Pdsk != drbd.UpToDate {
			return
		}
	}
	r.emit(Action{Kind: RunHandler, Volume: v.num, Name: "unfence-peer"})
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
		r.goOnAlone(v) // also if only another volume was frozen
		if !pending || v.st.Disk != drbd.UpToDate || v.uuids.Bitmap != 0 {
			continue
		}
		switch {
		case !peerIsBack || v.st.Pdsk < drbd.Inconsistent:
			r.newCurrent(v)
		case r.bothPrimary(): // both repeat what they had begun
		case r.peerFrozen && r.role != drbd.Primary:
			// Both were Primary, and this node had answered all that it had begun
			// before it was demoted: the peer has it. If either is to begin a
			// generation, it is the one that is still Primary.
		case v.st.Conn == drbd.Connected && v.bitmap.Weight() > 0:
			r.newCurrent(v)
			r.sourceWhenStored(v, "resync of what was under way when the peer was lost")
		}
	}
	for _, v := range r.vols {
		r.termState(v)
	}
	r.unpark()
	r.kick = true
}

// sourceWhenStored makes this node, which has begun a new generation, the source
// of a resync that the peer learns of by P_UUIDS and P_STATE (drbd84-protocol,
// 4.6 steps 7 (iv) and 11). Both are sent once the new generation is on disk.
func (r *Resource) sourceWhenStored(v *volume, reason string) {
	gen := r.connGen
	v.whenStored(v.meta.required, func() {
		if gen != r.connGen || !r.isUp() || v.st.Conn != drbd.Connected || v.st.Disk != drbd.UpToDate || v.st.Pdsk < drbd.Inconsistent {
			return
		}
		ns := v.st
		ns.Conn = drbd.WFBitMapS
		r.announceAndSet(v, ns, reason)
	})
}
