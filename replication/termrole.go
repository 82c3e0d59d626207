package replication

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// checkTerm is whether a promotion under c.Term, or the grant of a new term to a
// Primary, may go on.
func (r *Resource) checkTerm(c *command) error {
	t := &r.terms
	unknown := r.termUnknown()
	switch {
	case c.Term < t.promised:
		return r.termTooLow(c.Term)
	case !r.hasDisk():
		return &RequestError{Code: 138, Text: fmt.Sprintf("%s: Failure: (138) Device does not have a disk-config: a term is kept with a disk: attach one first", r.cfg.Name)}
	case r.isUp() && r.link.Features&drbd.FeatureTerm == 0:
		return r.peerKnowsNoTerms()
	case (t.inUse() || r.role != drbd.Primary) && unknown != "": // a Primary without a term may be given its first
		r.saveTerms()
		return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: no promotion under a term: what this node has promised is unknown: %s: connect the peer, or have the arbiter's term promised first",
			r.cfg.Name, unknown)}
	case r.net.AllowTwoPrimaries:
		return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: a term has one owner, and allow-two-primaries is set: leave it out of the configuration", r.cfg.Name)}
	case !c.Sole && r.conn < drbd.Connected && r.role != drbd.Primary:
		return r.stateError(nil, SSPrimaryNOP)
	case c.Sole && c.Term == t.term && !t.sole && !r.wasSole(c.Term):
		// What was overtaken, or comes twice, must not let anybody write.
		return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: under term %d this node is not the only writer any more: ask the arbiter for a new term", r.cfg.Name, c.Term)}
	}
	return nil
}

// wasSole reports whether the durable marks say that this Secondary was the only
// writer under a term.
func (r *Resource) wasSole(term uint64) bool {
	if r.role == drbd.Primary {
		return false
	}
	for _, v := range r.vols {
		if v.hasDisk() && v.soleTerm != term {
			return false
		}
	}
	return r.marked()
}

// marked reports whether every volume with a disk has the sole-writer mark for
// the generation that it holds.
func (r *Resource) marked() bool {
	for _, v := range r.vols {
		if v.hasDisk() && (v.sole == 0 || v.sole != identity(v.uuids.Current)) {
			return false
		}
	}
	return r.hasDisk()
}

// own enters this node as the owner of a term.
func (r *Resource) own(c *command) {
	t := &r.terms
	if c.Term == 0 { // a plain primary: the operator answers for it
		t.term = t.promised
		return
	}
	t.term, t.promised = c.Term, max(t.promised, c.Term)
	t.owned, t.sole, t.override = true, c.Sole, false
	t.held, t.silent = false, false
	if r.leaseIsOver() { // one that lasts is the node's, under whatever term
		t.lease = 0
	}
	r.learnt()
}

// disown ends it, when this node is no longer Primary.
func (r *Resource) disown() {
	t := &r.terms
	t.owned, t.sole, t.override, t.abandon, t.frozen = false, false, false, false, ""
	t.held, t.silent = false, false
	t.standing.asks = 0
}

// withoutPeer is the state of v if the arbiter has named this node the only
// writer and the peer is away: its copy does not count.
func (c *command) withoutPeer(ns drbd.State) drbd.State {
	if c.Term == 0 || !c.Sole || ns.Conn >= drbd.Connected {
		return ns
	}
	if ns.Pdsk > drbd.Outdated {
		ns.Pdsk = drbd.Outdated
	}
	if ns.Disk == drbd.Consistent {
		ns.Disk = drbd.UpToDate
	}
	return ns
}

// regrant gives a Primary a new term: it goes on alone, or shares the new one with
// its peer. It is on disk before the peer hears of it and before anybody is
// answered under it.
func (r *Resource) regrant(c *command) {
	t := &r.terms
	if c.Term == 0 || c.Term == t.term && t.owned && c.Sole == t.sole {
		r.finish(c, nil)
		return
	}
	if c.Term == t.term && t.sole { // no smaller claim under the same term
		r.finish(c, nil)
		return
	}
	c.phase = phaseStore
	r.own(c)
	for _, v := range r.vols {
		r.setState(v, c.withoutPeer(v.st), "the arbiter named this node the only writer")
	}
	if r.suspFen && c.Sole && !r.isUp() {
		r.thaw(false)
	}
	for _, v := range r.vols {
		r.termState(v)
	}
	r.kick = true
	r.whenAllStored((*volume).requireSuperblock, func() {
		r.stateTerm()
		r.finishTerm(c)
	})
}

// finishTerm ends a command whose term is on disk by now, unless the disk has
// failed meanwhile.
func (r *Resource) finishTerm(c *command) {
	var err error
	if c.Term != 0 && !r.hasDisk() {
		err = &RequestError{Code: 138, Text: fmt.Sprintf("%s: Failure: (138) Device does not have a disk-config: the disk that was to keep term %d has failed: attach one, and ask the arbiter for a new term", r.cfg.Name, c.Term)}
	}
	r.finish(c, err)
	r.commandStep()
}

// leftAlone: the peer is fenced, so the owner of a term is its only writer.
func (r *Resource) leftAlone() {
	if !r.terms.owned {
		return
	}
	r.terms.sole = true
	for _, v := range r.vols {
		r.termState(v)
	}
}

// overrideTerm is the operator's resume-io of a frozen owner: he vouches for the peer.
func (r *Resource) overrideTerm() {
	if r.terms.frozen == "" {
		return
	}
	r.terms.override = true
	for _, v := range r.vols {
		r.termState(v)
	}
}

// abandonRequests ends what this node can never answer any more, so that it can be
// demoted: a higher term is promised, and nobody has the device open.
func (r *Resource) abandonRequests() bool {
	t := &r.terms
	if !r.termOver() || r.opens > 0 {
		return false
	}
	t.abandon = true
	for _, v := range r.vols {
		r.termState(v)
	}
	waiting := r.req.waiting
	r.req.waiting = nil
	for _, id := range waiting {
		q := r.req.get(id)
		q.err = ErrTermOver
		r.progress(q)
	}
	r.unpark()
	return true
}

// vote finds the term of a promotion that somebody else decides about, who hands
// out none (Pacemaker): one more than either copy has promised. Connected, both
// promise it. Alone, this node may be promoted if it was the only writer already,
// or the fence-peer handler confirms that the peer is out. It reports false if
// the command waits, or is over.
func (r *Resource) vote(c *command) bool {
	t := &r.terms
	switch {
	case r.role == drbd.Primary:
		c.Vote = false
		return true
	case !r.ready(c):
		return false
	case r.conn >= drbd.Connected:
		r.learnt() // no third copy could have promised more
	case r.marked():
	case r.peerIsOut() && c.fenced:
	case r.cfg.HasFenceHandler && !c.fenced:
		c.fenced, c.phase = true, phaseFence
		r.runFence(r.vols[0])
		return false
	default:
		r.finish(c, r.stateError(nil, SSPrimaryNOP))
		return false
	}
	c.Term, c.Sole = t.promised+1, r.conn < drbd.Connected
	return true
}
