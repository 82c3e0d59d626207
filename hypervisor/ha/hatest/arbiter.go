package hatest

import (
	"fmt"
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// An Arbiter is the model of one: arbiter.Decide on records that survive its
// restarts, and leases on a clock of its own.
type Arbiter struct {
	w        *World
	end      int // its place in the network
	records  []arbiter.Record
	leases   []lease
	down     int     // how many faults keep it from answering
	drift    int64   // its clock gains so many µs in a second
	moody    int     // faults: answers come late, twice, not at all
	lying    int     // faults: old grants instead of answers
	granted  []grant // everything it ever said yes to
	backup   *backup
	restored bool // from a backup, at some time
	highest  map[string]uint64
}

type lease struct {
	node, session string
	until         int64 // of its clock
}

type grant struct {
	node string
	rec  arbiter.Record
}

type backup struct {
	records []arbiter.Record
}

func newArbiter(w *World) *Arbiter {
	a := &Arbiter{w: w, end: w.cfg.Hosts, highest: map[string]uint64{}}
	a.drift = w.dice.between(-2000, 2000)
	return a
}

// clock is the arbiter's own.
func (a *Arbiter) clock() int64 { return a.w.now + a.w.now/second*a.drift }

func (a *Arbiter) record(resource string) arbiter.Record {
	if a.w.duo != nil {
		return a.w.duo.record(resource)
	}
	for _, r := range a.records {
		if r.Resource == resource {
			return r
		}
	}
	return arbiter.Record{Resource: resource}
}

// store puts a record in its place. The copies that it counts are those on which
// everything has to be from now on: storage is told, and fails if it is not so.
func (a *Arbiter) store(rec arbiter.Record) {
	i := slices.IndexFunc(a.records, func(r arbiter.Record) bool { return r.Resource == rec.Resource })
	if i < 0 {
		a.records = append(a.records, rec)
	} else {
		a.w.ownerChanges(a.records[i], rec)
		a.records[i] = rec
	}
	a.changed()
	a.w.trace("arbiter: %s: term %d of %s, in sync %v released %v", rec.Resource, rec.Term, rec.Owner, rec.InSync, rec.Released)
	for _, p := range a.w.Pairs {
		if p.name == rec.Resource && !p.forced {
			p.record(rec)
		}
	}
	if rec.Resource == ha.LeaderResource { // no replica knows its terms
		return
	}
	if high := a.highestOf(rec.Resource); !rec.Released && rec.Term <= high {
		a.w.fail("arbiter: %s: a grant of term %d, and term %d was granted before", rec.Resource, rec.Term, high)
	}
	a.highest[rec.Resource] = max(a.highest[rec.Resource], rec.Term)
}

// highestOf is a term that must not be granted again: the highest so far, or of an
// arbiter that has forgotten it, the highest that a copy has promised.
func (a *Arbiter) highestOf(resource string) (high uint64) {
	if !a.restored {
		return a.highest[resource]
	}
	for _, p := range a.w.Pairs {
		if p.name == resource {
			high = max(p.promised[0], p.promised[1])
		}
	}
	return high
}

// changed: their Watch tells all that they reach.
func (a *Arbiter) changed() {
	for _, h := range a.w.Hosts { // their Watch
		a.w.net.send(management, a.end, h.id, h.manager.arbiterChanged)
	}
}

// record tells storage which copies have to hold everything from now on.
func (p *Pair) record(rec arbiter.Record) {
	if p.person != nil && rec.Owner != p.person.name {
		return
	}
	p.person = nil
	var in [2]bool
	owner := -1
	for k, h := range p.hosts {
		in[k] = rec.Counts(h.name)
		if h.name == rec.Owner {
			owner = k
		}
	}
	p.w.SetRecord(rec.Term, owner, in)
}

func (a *Arbiter) lease(node string) arbiter.Lease {
	for _, l := range a.leases {
		if l.node == node {
			return arbiter.Lease{Node: node, Session: l.session, Alive: l.until > a.clock()}
		}
	}
	return arbiter.Lease{Node: node}
}

func (a *Arbiter) acquire(c arbiter.Claim) (arbiter.Record, error) {
	rec := a.record(c.Resource)
	next, err := arbiter.Decide(rec, a.lease(rec.Owner), c)
	if err != nil {
		a.w.trace("arbiter: refuses %s: %v", c.Node, err)
		return next, err
	}
	a.store(next)
	a.granted = append(a.granted, grant{c.Node, next})
	return next, nil
}

func (a *Arbiter) renew(node, session string) {
	l := lease{node, session, a.clock() + a.w.cfg.ttl()}
	if i := slices.IndexFunc(a.leases, func(l lease) bool { return l.node == node }); i >= 0 {
		a.leases[i] = l
	} else {
		a.leases = append(a.leases, l)
	}
}

func (a *Arbiter) resign(node, session string) {
	for i := range a.leases {
		if l := &a.leases[i]; l.node == node && l.session == session {
			l.until = a.clock()
		}
	}
}

func (a *Arbiter) release(resource, node string, term uint64) error {
	rec := a.record(resource)
	if rec.Owner != node || rec.Term != term {
		return &arbiter.RefusedError{Record: rec, Err: arbiter.ErrChanged, Why: fmt.Sprintf("term %d of %s is to be released, the record has term %d of %s", term, node, rec.Term, rec.Owner)}
	}
	rec.Released = true
	a.store(rec)
	return nil
}

func (a *Arbiter) observe(resources []string) arbiter.View {
	var v arbiter.View
	for _, r := range resources {
		v.Records = append(v.Records, a.record(r))
	}
	for _, l := range a.leases {
		v.Leases = append(v.Leases, a.lease(l.node))
	}
	return v
}

// takeBackup keeps a copy of the records as they are, restore puts it back: then
// leases are unknown, and those who had one are taken to be alive for a while.
func (a *Arbiter) takeBackup() {
	a.backup = &backup{slices.Clone(a.records)}
	if a.w.duo != nil {
		for _, f := range a.w.duo.halves {
			f.backup = f.file
		}
	}
}

func (a *Arbiter) restore() {
	a.w.trace("arbiter: restored from a backup")
	a.restored = true
	if a.backup == nil {
		a.records = nil
	} else {
		a.records = slices.Clone(a.backup.records)
	}
	for i := range a.leases {
		a.leases[i].until = a.clock() + a.w.cfg.ttl()
	}
}

// answer is what a question to the arbiter comes back with.
type answer struct {
	rec  arbiter.Record
	view arbiter.View
	err  error
}

// ask has h's manager ask the arbiter; hear gets the answer, once, or
// ErrUnreachable when its patience (µs) is over. A moody arbiter's answers are late
// or lost, and questions reach it late or twice.
func (a *Arbiter) ask(h *Host, patience int64, question func() answer, hear func(answer)) {
	w := a.w
	heard := false
	tell := h.manager.awakeWith(func(x answer) {
		if !heard {
			heard = true
			hear(x)
		}
	})
	w.after(patience, func() { tell(answer{err: arbiter.ErrUnreachable}) })
	ask := func() {
		if a.down > 0 {
			return
		}
		x, wait := question(), int64(0)
		if a.moody > 0 {
			switch w.dice.pick(4) {
			case 0:
				return
			case 1:
				if again := question(); w.dice.chance(0.5) {
					x = again
				}
			case 2:
				wait = w.dice.between(0, 6*second)
			}
		}
		if a.lying > 0 && x.rec.Resource != "" && w.dice.chance(0.4) {
			if old, ok := a.oldGrant(h.name, x.rec.Resource); ok {
				w.trace("arbiter: lies to %s: term %d of %s again", h.name, old.Term, old.Resource)
				x = answer{rec: old}
			}
		}
		w.after(wait, func() { w.net.send(management, a.end, h.id, func() { tell(x) }) })
	}
	w.net.send(management, h.id, a.end, func() {
		if a.moody > 0 && w.dice.chance(0.2) { // whoever asked may not wait any more
			w.after(w.dice.between(0, 10*second), ask)
			return
		}
		ask()
	})
}

// oldGrant is one that a node had before.
func (a *Arbiter) oldGrant(node, resource string) (arbiter.Record, bool) {
	var of []arbiter.Record
	for _, g := range a.granted {
		if g.node == node && g.rec.Resource == resource {
			of = append(of, g.rec)
		}
	}
	if len(of) == 0 {
		return arbiter.Record{}, false
	}
	return of[a.w.dice.pick(len(of))], true
}
