package hatest

import "slices"

// What is checked beside what storage itself checks: that a VM starts on data
// that has everything (checkContent), and is served by such data (checkServed), that none runs twice (checkRunning), that a
// stopped service stays so (checkStart), that incarnations are used once.

// stop is what the operator has said of a service.
type stop struct {
	on    bool
	hosts []*Host // who have been told
}

// overlap is how long two VMs of one service may run: a manager that could act
// has to have ended the older one by then, µs.
const overlapLimit = 2 * second

// checkStart: it is wanted, and by a name that no other start had, so that an older
// VM is refused that wakes up.
func (w *World) checkStart(v *VM) {
	if slices.Contains(v.svc.used, v.inc) {
		w.fail("%s: %v is started as %s, and so was another one before", v.h.name, v, v.inc)
	}
	v.svc.used = append(v.svc.used, v.inc)
	if st := v.svc.stopped; st.on && slices.Contains(st.hosts, v.h) {
		w.fail("%s: %v is started, but its operator has stopped it", v.h.name, v)
	}
}

// checkContent: what serves a VM, when it has started and when everything is mended,
// holds every record that was acknowledged.
func (w *World) checkContent(v *VM) {
	for _, p := range v.svc.pairs {
		if p.forced {
			p.forgive(v.h)
		}
		if w.cfg.weak() && (p.taken || p.diskLost) && w.judgeLoss(v, p) {
			continue
		}
		if lost, age := p.missing(v.h); lost > 0 {
			w.fail("%s: %v runs on stale data: %s lacks %d acknowledged records, the oldest is %d ms old", v.h.name, v, p.name, lost, age/millisecond)
		}
	}
}

// checkServed: the same of the copy from which the clients of h are answered, unless h
// has stood still since the write was begun: its answer may be older than that. Under
// protocol A and B an owner that was replaced may not know it yet.
func (w *World) checkServed(p *Pair, h *Host, begun int64) {
	if p.forced || begun < h.woke || w.cfg.weak() {
		return
	}
	if lost, age := p.missing(h); lost > 0 {
		w.fail("%s: a record of %s is acknowledged from stale data: %d acknowledged ones are not in it, the oldest is %d ms old", h.name, p.name, lost, age/millisecond)
	}
}

// forced reports whether an operator has forced a copy of s.
func (s *Service) forced() bool {
	return slices.ContainsFunc(s.pairs, func(p *Pair) bool { return p.forced })
}

// gone is end for a VM whose host is no more.
func (v *VM) gone(why string) {
	v.phase = vmGone
	s := v.svc
	s.vms = slices.DeleteFunc(s.vms, func(x *VM) bool { return x == v })
	s.w.trace("%s: %v is gone: %s", v.h.name, v, why)
}

// runs reports whether the CPUs of a VM run.
func (v *VM) runs() bool {
	return (v.phase == vmRunning || v.phase == vmStopping) && v.h.running()
}

// checkRunning: of two VMs of one service, the older one stands still, or its
// manager has not had time to end it since the host woke or the manager started: one
// that has just been started gives its arbiter half a lease to answer.
func (w *World) checkRunning(s *Service) {
	var older, younger *VM
	for _, v := range s.vms {
		if !v.runs() {
			continue
		}
		if older == nil {
			older = v
		} else {
			younger = v
		}
	}
	if younger == nil || s.forced() {
		return
	}
	w.trace("%v runs beside %v", younger, older)
	since := max(younger.since, older.h.woke)
	limit := overlapLimit
	w.at(since+limit, func() { w.judgeOverlap(older, younger, limit) })
	if w.now == younger.since && older.h.manager.able(w.now-limit) {
		w.fail("%s: %v runs, and %v still does, whose manager could have ended it", younger.h.name, younger, older)
	}
}

func (w *World) judgeOverlap(older, younger *VM, limit int64) {
	if !older.runs() || !younger.runs() || older.svc.forced() {
		return
	}
	m := older.h.manager
	if !m.able(w.now-limit) || w.now < m.since+w.cfg.ttl()/2+limit {
		w.after(limit/4, func() { w.judgeOverlap(older, younger, limit) })
		return
	}
	w.fail("%s: %v runs, and %v still does after %d ms, whose manager could have ended it", younger.h.name, younger, older, limit/millisecond)
}

// forced: the operator says that only h's copy of a resource counts, whatever that
// lacks, and that no other VM runs. Until everything is mended nothing is said of
// what is acknowledged by whom.
func (p *Pair) force(h *Host) {
	p.forced = true
	p.w.SetRecord(0, -1, [2]bool{})
	p.forgive(h)
}
