package replication

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication/meta"
)

// ErrTermOver is the end of requests that a Primary could never answer, because
// another node owns a higher term, and whose clients are gone.
var ErrTermOver = errors.New("this node's term is over: another node has been promised a higher one")

// terms is what this node knows of the terms of its resource
// (docs/adr/0008-terms.md). With promised 0 they are not in use, and nothing here
// has any effect.
type terms struct {
	term     uint64 // the highest that an owner is known of; this node's own while it is Primary
	promised uint64 // writes of a lower one are not accepted; never below term

	// As Primary.
	owned    bool // under a term that an arbiter gave, not by a plain primary
	sole     bool // the arbiter's record, or a confirmed fence, leaves this node alone
	override bool // the operator had frozen I/O go on
	frozen   string
	abandon  bool // frozen requests end with ErrTermOver
	held     bool // the failover manager has I/O wait; see lease.go
	lease    Tick // when the manager's lease ends; 0: none was told
	silent   bool // it has ended, the peer has said nothing since, and I/O waits for it

	standing standing

	// Of this connection.
	peer    drbd.TermPacket // what the peer has stated
	stated  drbd.TermPacket // and what this node has
	storing int             // promises adopted from the peer that are not on disk: nothing is read meanwhile
}

func (t *terms) inUse() bool { return t.promised > 0 }

// accepts reports whether this node takes writes, and the state, of a Primary
// that states this term (I6). It is asked when a P_TERM, a P_STATE or a promise
// comes; between these nothing changes.
func (t *terms) accepts(term uint64) bool { return term >= t.promised }

// noTermRecord is why the term of a volume is unknown that never had one.
const noTermRecord = "there is no record of it on this node"

// judgeTerm compares the two copies of a volume's term record, and both with the
// UUIDs that are on disk. The result is the one to go on with, and why the term
// is unknown, empty if it is not.
func judgeTerm(name string, num uint16, sb *meta.Superblock, file meta.TermRecord, noFile bool) (rec meta.TermRecord, unknown string) {
	disk := sb.Term
	own := func(t *meta.TermRecord) bool { return t.NameHash == meta.NameHash(name) && t.Volume == num }
	if disk.Exists() && !own(&disk) {
		disk = meta.TermRecord{}
	}
	if file.Exists() && !own(&file) {
		file = meta.TermRecord{}
	}
	if noFile {
		file = disk
	}
	rec = disk
	if file.Seq > disk.Seq {
		rec = file
	}
	// The higher promise counts, wherever it is.
	rec.Promised, rec.Term = max(disk.Promised, file.Promised), max(disk.Term, file.Term)
	switch {
	case !disk.Exists() && !file.Exists():
		unknown = noTermRecord
	case !disk.Exists():
		unknown = "the metadata was written by a program that knows no terms (drbd.ko, drbdmeta) since"
	case disk.CurrentUUID != identity(sb.UUIDs.Current) || disk.DeviceUUID != sb.DeviceUUID:
		unknown = "the record on disk is older than its UUIDs: something else wrote since"
	case !file.Exists():
		unknown = "the state directory has lost its record"
	case file.DeviceUUID != disk.DeviceUUID:
		unknown = "the state directory's record is of another disk: disks were exchanged"
	case file.Seq < disk.Seq:
		unknown = "the state directory's record is older than the disk's: it was rolled back"
	case file.Seq > disk.Seq+1:
		unknown = "the disk's record is older than the state directory's: the disk was rolled back"
	case rec.Unknown:
		unknown = "it was not learnt again since it was lost"
	default:
		rec.Sole, rec.SoleTerm = disk.Sole, disk.SoleTerm // what goes with the UUIDs on disk
		return rec, ""
	}
	rec.Sole, rec.SoleTerm = 0, 0
	return rec, unknown
}

// attachTerm takes over what the records of a disk say.
func (r *Resource) attachTerm(v *volume, d *AttachedDisk) {
	rec, unknown := judgeTerm(r.cfg.Name, v.num, &d.Superblock, d.Term, d.NoTermFile)
	v.termUnknown = unknown
	v.termUnsaved = false
	v.termDirty = rec != d.Superblock.Term || rec != d.Term && !d.NoTermFile
	v.sb.Term = rec
	v.sole, v.soleTerm = rec.Sole, rec.SoleTerm
	r.terms.term = max(r.terms.term, rec.Term)
	r.terms.promised = max(r.terms.promised, rec.Promised)
	if unknown != "" && rec.Exists() {
		r.report("volume %d: its term is unknown: %s; no promotion under a term until an arbiter or the peer tells it", v.num, unknown)
	}
}

// termUnknown is why this node cannot tell what it has promised, or empty.
func (r *Resource) termUnknown() string {
	why := noTermRecord
	for _, v := range r.vols {
		if v.hasDisk() {
			if v.termUnknown != "" {
				return v.termUnknown
			}
			why = ""
		}
	}
	return why
}

// composeTerm puts the term record into a metadata job that writes the
// superblock; if it has changed, the state directory's copy comes first.
func (r *Resource) composeTerm(v *volume, job *MetaJob) {
	if !r.terms.inUse() || !v.meta.endsSB {
		return
	}
	r.clearSole(v)
	if v.sole != 0 && r.role == drbd.Primary && v.st.Disk == drbd.UpToDate {
		v.sole = identity(v.uuids.Current) // the mark goes along with a generation that an operator begins
	}
	old := v.sb.Term
	rec := meta.TermRecord{
		Seq: old.Seq, Volume: v.num, NameHash: meta.NameHash(r.cfg.Name), DeviceUUID: v.sb.DeviceUUID,
		CurrentUUID: identity(v.uuids.Current), Term: r.terms.term, Promised: r.terms.promised,
		Sole: v.sole, SoleTerm: v.soleTerm, Unknown: v.termUnknown != "" && !v.termUnsaved,
	}
	if rec != old || v.termDirty {
		rec.Seq++
		v.termDirty = false
		job.Term = make([]byte, meta.TermRecordSize)
		rec.Encode(job.Term)
	}
	v.sb.Term = rec
}

// termLost: the state directory could not take the record. The superblock has it,
// so nothing that was promised is forgotten, but a roll-back of the disk would not
// be noticed. It is tried again with each superblock, and before the next term.
func (r *Resource) termLost(v *volume, err error) {
	v.termDirty = true
	v.termUnsaved = v.termUnsaved || v.termUnknown == ""
	v.termUnknown = fmt.Sprintf("the state directory cannot be written: %v", err)
	r.report("volume %d: %s", v.num, v.termUnknown)
}

// termSaved: both copies of the record are on disk.
func (v *volume) termSaved() {
	if v.termUnsaved {
		v.termUnknown, v.termUnsaved = "", false
	}
}

// saveTerms has the state directory's copies written that could not be before.
func (r *Resource) saveTerms() {
	for _, v := range r.vols {
		if v.termUnsaved && v.hasDisk() {
			v.storeSuperblock()
		}
	}
}

// replicates reports whether a write to v reaches the peer's copy now.
func (v *volume) replicates() bool {
	s := v.st
	return s.Conn >= drbd.Connected && (s.Pdsk == drbd.UpToDate ||
		s.Pdsk >= drbd.Inconsistent && s.Conn >= drbd.WFBitMapT && s.Conn < drbd.Ahead)
}

// termState follows a change of v, or of the terms: the sole-writer mark is set
// before anything is answered without the peer's copy, and I/O is frozen or goes
// on.
func (r *Resource) termState(v *volume) {
	if !r.terms.inUse() {
		return
	}
	was := r.terms.frozen
	if r.terms.frozen = r.termFreeze(); r.terms.frozen != was {
		if r.terms.frozen != "" {
			r.report("I/O is frozen: %s", r.terms.frozen)
		} else {
			r.wake = true
		}
	}
	r.markSole(v)
}

// markSole sets the sole-writer mark; what is answered waits for it as for a new
// current UUID.
func (r *Resource) markSole(v *volume) {
	if r.role != drbd.Primary || !r.terms.inUse() || v.st.Disk != drbd.UpToDate || r.suspFen || r.terms.frozen != "" {
		return
	}
	if v.st.Conn >= drbd.Connected && v.st.Pdsk == drbd.UpToDate {
		if r.clearSole(v); v.sole == 0 && v.sb.Term.Sole != 0 {
			v.storeSuperblock()
		}
		return
	}
	v.markSole(r.terms.term)
}

func (v *volume) markSole(term uint64) {
	if current := identity(v.uuids.Current); v.sole != current || v.soleTerm != term {
		v.sole, v.soleTerm = current, term
		v.requireSuperblock()
	}
}

// peerRefused: the peer lacks a write, and its P_STATE may be behind that word. An
// owner that is alone answers it now, so the mark comes first; one that shares its
// term is frozen by that state, and must not be marked before the arbiter's word.
func (r *Resource) peerRefused(v *volume) {
	if t := &r.terms; t.inUse() && r.role == drbd.Primary && v.st.Disk == drbd.UpToDate && t.frozen == "" && !r.suspFen && !r.sharesTerm() {
		v.markSole(t.term)
	}
}

// clearSole takes the mark back when the peer has everything: both copies are
// UpToDate, no bit is set, the generations are equal.
func (r *Resource) clearSole(v *volume) {
	if v.sole != 0 && v.st.Conn == drbd.Connected && v.st.Disk == drbd.UpToDate && v.st.Pdsk == drbd.UpToDate &&
		v.bitmap != nil && v.bitmap.Weight() == 0 && identity(v.uuids.Current) == identity(v.peerUUIDs.Current) {
		v.sole, v.soleTerm = 0, 0
	}
	if !r.terms.sole {
		return
	}
	for _, o := range r.vols {
		if o.hasDisk() && (o.sole != 0 || !o.replicates()) {
			return
		}
	}
	r.terms.sole = false
}

// termFreeze is why this Primary may not answer anybody for now, or empty.
func (r *Resource) termFreeze() string {
	t := &r.terms
	switch {
	case r.role != drbd.Primary || t.override || t.abandon:
		return ""
	case r.termOver():
		return fmt.Sprintf("this node writes under term %d, but term %d has been promised: another node owns the data now; "+
			"stop what uses this one and run `polluxadm secondary %s`", t.term, t.promised, r.cfg.Name)
	case t.held:
		return "the failover manager has stopped it; it goes on under a new term, or when the manager says so"
	case !t.owned || t.sole:
		return ""
	}
	for _, v := range r.vols {
		if !v.replicates() {
			return fmt.Sprintf("term %d is shared with the peer, and its copy is out of reach: the arbiter must name this node the only writer, or the peer come back", t.term)
		}
	}
	return ""
}

// termOver reports whether this Primary has been replaced. It does not look for
// the peer, which would refuse it, until it is demoted or has a new term.
func (r *Resource) termOver() bool {
	t := &r.terms
	return r.role == drbd.Primary && t.term < t.promised && !t.override
}

// sharesTerm reports whether this Primary may answer only what its peer's copy
// has, too.
func (r *Resource) sharesTerm() bool {
	t := &r.terms
	return t.owned && !t.sole && !t.override && !t.abandon
}

// termFencing: the owner of a term that is lost to its peer waits, whatever the
// configuration says of fencing.
func (r *Resource) termFencing(configured Fencing) Fencing {
	if r.role == drbd.Primary && r.sharesTerm() {
		return FencingResourceAndStonith
	}
	return configured
}

// stateTerm tells the peer what this node promised, and under which term it
// writes, unless it knows that already.
func (r *Resource) stateTerm() {
	t := &r.terms
	if !r.isUp() || !t.inUse() || r.link.Features&drbd.FeatureTerm == 0 {
		return
	}
	p := drbd.TermPacket{Promised: t.promised}
	if r.role == drbd.Primary {
		p.Term, p.Ask = t.term, t.standing.asks
	} else if t.standing.stored {
		p.Flags |= drbd.TermStandsBack
		p.Ask = t.standing.answers
	}
	if r.termUnknown() == "" {
		p.Flags |= drbd.TermKnown
	}
	if p != t.stated {
		t.stated = p
		r.sendPacket(drbd.DataSocket, drbd.CmdTerm, 0, p)
	}
}

// connectTerm begins a connection; it reports false if there is to be none.
func (r *Resource) connectTerm() bool {
	t := &r.terms
	t.peer, t.stated = drbd.TermPacket{}, drbd.TermPacket{}
	switch {
	case r.link.Features&drbd.FeatureTerm != 0:
	case r.net.NeedTerms && !t.inUse():
		r.giveUp("the peer (drbd.ko, or an older polluxd) knows no terms, and this resource has a manager, who stops a Primary that was replaced by them: " +
			"run polluxd with terms there, or leave manager out of pollux.toml")
		return false
	case t.inUse():
		r.giveUp("this node has promised term %d, and the peer (drbd.ko, or an older polluxd) knows no terms: its writes could not be told from those of an owner that was replaced; "+
			"run polluxd with terms there", t.promised)
		return false
	}
	return true
}

// receivedTerm is the peer's P_TERM.
func (r *Resource) receivedTerm(b []byte) error {
	var p drbd.TermPacket
	if r.link.Features&drbd.FeatureTerm == 0 {
		return &drbd.ProtocolError{Packet: drbd.CmdTerm, Field: "command", Got: drbd.CmdTerm, Want: "none: terms are not agreed"}
	}
	if err := p.Decode(b); err != nil {
		return err
	}
	t := &r.terms
	t.peer = p
	refuse := p.Term != 0 && !t.accepts(p.Term)
	relearn := p.Flags&drbd.TermKnown != 0 && p.Promised > 0 && r.termUnknown() != ""
	if r.role != drbd.Primary {
		t.term = max(t.term, p.Term)
	}
	if p.Promised > t.promised || relearn {
		r.adopt(p.Promised, relearn)
	}
	switch {
	case refuse:
		return r.refusal(p.Term)
	case r.role == drbd.Primary && t.term < t.promised && t.override:
		r.giveUp("this Primary writes under term %d, as its operator wants, and the peer has promised term %d: demote one of the two", t.term, t.promised)
	case r.termOver():
		return fmt.Errorf("the peer has promised term %d, this Primary writes under term %d", p.Promised, t.term)
	case r.role != drbd.Primary:
		ask := p.Ask
		if p.Term == 0 {
			ask = 0
		}
		r.heedAsk(ask)
	case r.tearingDown:
		r.goWithoutPeer(true)
	}
	return nil
}

// enforceTerm ends the connection to a Primary whose term is over, before
// anything more is acknowledged: this node's promise has grown.
func (r *Resource) enforceTerm() {
	t := &r.terms
	switch {
	case !r.isUp() || !t.inUse():
	case r.link.Features&drbd.FeatureTerm == 0:
		r.connectTerm()
	case (r.peerRole == drbd.Primary || t.peer.Term != 0) && !t.accepts(t.peer.Term):
		r.connectionLost(drbd.ProtocolFailure, r.refusal(t.peer.Term))
	}
}

func (r *Resource) refusal(term uint64) error {
	r.stateTerm()
	return fmt.Errorf("the peer is Primary under term %d, but this node has promised term %d: its writes are refused", term, r.terms.promised)
}

// adopt takes a promise over that the peer has made. Nothing more is read from
// it until that is on disk.
func (r *Resource) adopt(promised uint64, relearn bool) {
	t := &r.terms
	t.promised = max(t.promised, promised)
	if relearn {
		r.learnt()
	}
	for _, v := range r.vols {
		r.termState(v)
	}
	t.storing++
	r.whenAllStored((*volume).storeSuperblock, func() {
		if t.storing--; t.standing.stored {
			r.stateTerm() // under the new term, too
		}
	})
}

// learnt ends the ignorance of every volume that is attached.
func (r *Resource) learnt() {
	for _, v := range r.vols {
		v.termUnknown, v.termUnsaved = "", false
	}
}

// runPromise is CmdPromiseTerm: from now on no write of a lower term is
// accepted. What came over the connection of such a Primary has ended, and the
// promise is on disk, when the command ends.
func (r *Resource) runPromise(c *command) {
	t := &r.terms
	switch c.phase {
	case phaseBegin, phaseCheck:
		if err := r.checkPromise(c.Term); err != nil {
			r.finish(c, err)
			return
		}
		t.promised = max(t.promised, c.Term)
		r.learnt()
		for _, v := range r.vols {
			r.termState(v)
		}
		c.phase = phaseDrain
		r.stateTerm()
		r.enforceTerm()
	case phaseDrain:
		if !r.isUp() && r.peer.used > 0 {
			r.setTimerOnce(timerCommand, commandRetryMS/4)
			return
		}
		c.phase = phaseStore
		r.whenAllStored((*volume).requireSuperblock, func() {
			r.finishTerm(c)
		})
	}
}

func (r *Resource) checkPromise(term uint64) error {
	switch {
	case term == 0:
		return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: terms begin with 1", r.cfg.Name)}
	case term < r.terms.promised:
		return r.termTooLow(term)
	case !r.hasDisk():
		return &RequestError{Code: 138, Text: fmt.Sprintf("%s: Failure: (138) Device does not have a disk-config: a promise is kept with a disk: attach one first", r.cfg.Name)}
	case r.isUp() && r.link.Features&drbd.FeatureTerm == 0:
		return r.peerKnowsNoTerms()
	}
	return nil
}

func (r *Resource) hasDisk() bool {
	for _, v := range r.vols {
		if v.hasDisk() {
			return true
		}
	}
	return false
}

func (r *Resource) termTooLow(term uint64) error {
	return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: term %d is lower than term %d, which this node has promised: ask the arbiter for a new one",
		r.cfg.Name, term, r.terms.promised)}
}

func (r *Resource) peerKnowsNoTerms() error {
	return &RequestError{Code: 162, Text: fmt.Sprintf("%s: Failure: (162) Invalid configuration request: the connected peer (drbd.ko, or an older polluxd) knows no terms: run `polluxadm disconnect %s` first", r.cfg.Name, r.cfg.Name)}
}
