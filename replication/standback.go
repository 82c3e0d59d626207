package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A Secondary stands back: its superblock says Outdated while its copy is still
// connected and good, so that from the end of the connection on it can't be promoted,
// also after a crash, and until it has met the Primary again. It says so (P_TERM) once
// that is on disk. Then, and only then, the owner of the shared term may go on without
// it and without asking anybody: it marks itself as the only writer first.
//
// Two things make it stand back: it leaves in good order, and the Primary's manager
// asks for it while the arbiter is away (failsafe). The Primary numbers its questions,
// and counts an answer only that bears the number of its last one, under its term: what
// is under way when it takes the question back says nothing. A Secondary stops only
// when it is told so by the Primary that asked.

// standing is what a node knows of it; all of it is of one connection but lastAsk.
type standing struct {
	asks    uint32 // as Primary: number of the question; 0: the peer is not asked
	lastAsk uint32
	back    bool   // as Secondary: the superblock that is written next says Outdated
	stored  bool   // it is on disk
	answers uint32 // number of the question; 0: this node leaves
}

// failsafe is CmdFailsafe and CmdFailsafeOver.
func (r *Resource) failsafe(on bool) error {
	s := &r.terms.standing
	if on && (r.role != drbd.Primary || !r.terms.owned) {
		return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: only the Primary that owns a term asks its peer to stand back", r.cfg.Name)}
	}
	switch {
	case !on:
		s.asks = 0
	case s.asks == 0:
		s.lastAsk++
		s.asks = s.lastAsk
	}
	r.stateTerm()
	return nil
}

func (r *Resource) standBack(on bool, answers uint32) {
	s := &r.terms.standing
	s.back, s.stored, s.answers = on, false, answers
	for _, v := range r.vols {
		v.standsBack = on
	}
}

// leaverMS is how long the owner of a shared term waits for the word of a peer that
// leaves in good order; our own: a slow fsync.
const leaverMS = 3000

// heedAsk is the question of the connected Primary; 0: there is none.
func (r *Resource) heedAsk(ask uint32) {
	s := &r.terms.standing
	switch {
	case s.back && s.answers == ask && ask != 0, !s.back && ask == 0, r.leaves():
	case ask == 0:
		r.standBack(false, 0)
		for _, v := range r.vols {
			if v.hasDisk() {
				v.storeSuperblock()
			}
		}
		r.stateTerm()
	default:
		if !r.hasAllDisks() {
			return // a disk that comes back may say anything
		}
		r.standBack(true, ask)
		gen := r.connGen
		r.whenAllStored((*volume).storeSuperblock, func() {
			if gen == r.connGen && s.back && s.answers == ask && r.hasAllDisks() {
				s.stored = true
				r.stateTerm()
			}
		})
	}
}

// leaves reports whether this node is about to end the connection in good order.
func (r *Resource) leaves() bool {
	return r.cmd != nil && r.cmd.Kind == CmdDisconnect && r.cmd.phase == phaseStore
}

func (r *Resource) hasAllDisks() bool {
	for _, v := range r.vols {
		if v.st.Disk < drbd.Inconsistent {
			return false
		}
	}
	return true
}

// mayLeaveBehind reports whether this Secondary is to stand back when it disconnects:
// the peer owns a term, and goes on alone if it may.
func (r *Resource) mayLeaveBehind() bool {
	t := &r.terms
	return r.role != drbd.Primary && t.inUse() && r.link.Features&drbd.FeatureTerm != 0 && t.peer.Term != 0 && r.peerRole == drbd.Primary
}

// leave ends a disconnect that the peer has granted: it hears that this copy does not
// count any more when that is on disk.
func (r *Resource) leave(c *command) {
	s := &r.terms.standing
	r.standBack(true, 0)
	c.phase = phaseStore
	gen := r.connGen
	r.whenAllStored((*volume).storeSuperblock, func() {
		if gen == r.connGen && r.isUp() && r.hasAllDisks() {
			s.stored = true
			r.stateTerm()
		}
		if r.cmd == c && c.phase == phaseStore {
			r.finish(c, nil)
			r.connectionLost(drbd.Disconnecting, nil)
		}
	})
}

// stoodBack makes the copy of a Secondary that stands back Outdated, as its superblock
// is: the connection has ended.
func (r *Resource) stoodBack() {
	if !r.terms.standing.back {
		return
	}
	for _, v := range r.vols {
		if v.st.Disk > drbd.Outdated {
			ns := v.st
			ns.Disk = drbd.Outdated
			r.setState(v, ns, "it has promised the Primary to stand back")
		}
	}
	r.standBack(false, 0)
}

// peerStandsBack reports whether the peer can't be promoted when this connection ends,
// by its own durable word under this node's term. left: it has asked for the end.
func (r *Resource) peerStandsBack(left bool) bool {
	t := &r.terms
	if r.role != drbd.Primary || !t.owned || t.term != t.promised || t.peer.Promised != t.term || t.peer.Flags&drbd.TermStandsBack == 0 {
		return false
	}
	if t.peer.Ask == 0 && !left || t.peer.Ask != 0 && t.peer.Ask != t.standing.asks {
		return false
	}
	for _, v := range r.vols {
		if v.st.Disk != drbd.UpToDate {
			return false
		}
	}
	return true
}

// goWithoutPeer has the owner of a shared term go on alone if its peer stands back.
func (r *Resource) goWithoutPeer(left bool) {
	if r.sharesTerm() && r.peerStandsBack(left) {
		r.report("the peer stands back, and that is on its disk: this node goes on alone under term %d", r.terms.term)
		r.fenced(fencePeerOutdated, "the peer stands back")
	}
}
