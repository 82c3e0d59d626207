package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// timerKind is what a timer is set for; each has one, and the engine is told of the first to come.
type timerKind int

const (
	timerPing timerKind = iota
	timerPong
	timerRequest
	timerBarrier
	timerCommit
	timerResync
	timerBitmap
	timerHandshake
	timerCommand
	timerSequence
	timerAhead
	timerDisk
	timerVerify
	timerProof
	timerLease
	timerCount
)

func (r *Resource) setTimer(k timerKind, in Tick) { r.timers[k] = r.now + max(in, 1) }
func (r *Resource) stopTimer(k timerKind)         { r.timers[k] = 0 }

// setTimerOnce keeps a timer that runs already.
func (r *Resource) setTimerOnce(k timerKind, in Tick) {
	if r.timers[k] == 0 {
		r.setTimer(k, in)
	}
}

// maintainTimer asks for a timer only if an earlier one is needed than the
// one that runs: a write must not cost a timer.
func (r *Resource) maintainTimer() {
	var first Tick
	for _, t := range r.timers {
		if t != 0 && (first == 0 || t < first) {
			first = t
		}
	}
	if first != 0 && (r.timerSet == 0 || first < r.timerSet) {
		r.timerSet = first
		r.emit(Action{Kind: SetTimer, At: first})
	}
}

func (r *Resource) timerFired() {
	for k := range r.timers {
		if t := r.timers[k]; t == 0 || t > r.now {
			continue
		}
		r.timers[k] = 0
		switch timerKind(k) {
		case timerPing:
			r.pingDue()
		case timerPong:
			r.pongMissing()
		case timerRequest:
			r.checkRequestTimeout()
		case timerBarrier:
			r.barrierIdle()
		case timerProof:
			r.proofIdle()
		case timerCommit:
			r.recv.hurry = true
		case timerResync:
			r.resyncTick()
		case timerBitmap:
			r.lazyBitmap()
		case timerHandshake:
			r.checkHandshakeTimeout()
		case timerCommand:
			r.commandTimer()
		case timerSequence:
			r.sequenceTimeout()
		case timerDisk:
			r.checkDisks()
		case timerAhead:
			r.returnFromAhead()
		case timerVerify:
			r.verifyTick()
		case timerLease: // lookForPeer does the rest; that the cable is cut is seen soon also by whom nobody asks for anything
			if r.leaseIsOver() && r.role == drbd.Primary && r.sharesTerm() {
				r.setTimer(timerLease, leaseSilenceMS/2)
			}
		}
	}
}

// pingDue asks if nothing has come for ping-int (drbd84-protocol, 3.11). It is
// called when that may be so: after traffic, when it would be with none from now
// on. So a link that is cut is known after ping-int and ping-timeout, not after
// up to twice ping-int. A Secondary waits a ping-timeout longer, as no client
// waits for it: so the Primary's question is mostly enough for both.
func (r *Resource) pingDue() {
	if !r.isUp() {
		return
	}
	patience := Tick(r.net.PingIntMS)
	if r.role != drbd.Primary {
		patience += Tick(r.net.PingTimeoutMS)
	}
	if quiet := r.now - r.lastReceived; quiet < patience {
		r.setTimer(timerPing, patience-quiet)
		return
	}
	r.setTimer(timerPing, patience)
	r.ping()
}

func (r *Resource) ping() {
	if !r.isUp() {
		return
	}
	r.pingedAt = r.now
	r.sendEmpty(drbd.MetaSocket, drbd.CmdPing)
	r.setTimer(timerPong, Tick(r.net.PingTimeoutMS))
}

// pongMissing: whatever came on the data socket since the ping shows just as
// well that the peer is alive (drbd84-protocol, 3.11).
func (r *Resource) pongMissing() {
	if r.lastData > r.pingedAt {
		r.pingedAt = r.now
		r.setTimer(timerPong, Tick(r.net.PingTimeoutMS))
		return
	}
	r.connectionLost(drbd.NetworkFailure, fmt.Errorf("no P_PING_ACK within %d ms", r.net.PingTimeoutMS))
}

// whenPinged calls f after the peer has answered a ping: proof that the link is alive.
func (r *Resource) whenPinged(f func()) {
	r.pingWaiters = append(r.pingWaiters, f)
	if len(r.pingWaiters) == 1 {
		r.ping()
	}
}

// pinged: the answer has come. The timer that runs may be the pong's, which has
// nothing to do any more: another one replaces it.
func (r *Resource) pinged() {
	if r.timers[timerPong] != 0 {
		r.stopTimer(timerPong)
		r.timerSet = 0
	}
	waiters := r.pingWaiters
	r.pingWaiters = nil
	for _, f := range waiters {
		f()
	}
}
