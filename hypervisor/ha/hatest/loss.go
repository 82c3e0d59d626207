package hatest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Under protocols A and B an answer does not wait for the peer: who takes over from a
// host that has not released its disk may lack what that acknowledged last. It is
// checked that this is never more than was declared, that it is what the host that
// takes over says, and that nobody takes over by itself where nothing was declared.

// ownerChanges is told of each change of the arbiter's record.
func (w *World) ownerChanges(was, now arbiter.Record) {
	if !w.cfg.weak() || was.Term == 0 || was.Released || now.Owner == was.Owner || now.Owner == "" || now.Resource == ha.LeaderResource {
		return
	}
	p := w.pairOf(now.Resource)
	if w.cfg.MaxLossBytes == 0 && !p.byPerson && !p.forced && len(now.InSync) < 2 {
		w.fail("%s: %s takes it from %s, and nobody has declared what may be lost", now.Resource, now.Owner, was.Owner)
	}
	p.taken = true
	p.late = lateLoss{owner: was.Owner, byPerson: p.byPerson}
}

// lateLoss is what a takeover has lost since the VM runs anew.
type lateLoss struct {
	owner    string // who was replaced
	byPerson bool   // and a person has said that it is off: nobody waited for its lease
	bytes    uint64 // of its answers, those that the start lacked included
	first    int64  // of these writes, when the first was submitted, ms of its clock; 0: none
}

// tooLate is told of each answer of h under protocol A or B, and reports whether the VM
// runs anew elsewhere, on a copy that lacks what is answered. Then h's lease was over: it
// does not answer any more what its peer lacks, unless its clock has stood still, so that
// it cannot know. What it answers then is lost like what the start found missing
// (judgeLoss), and both together are bounded.
func (p *Pair) tooLate(h *Host, sent int64, slot int, id uint32) bool {
	w, l, rec := p.world, &p.late, p.world.Arbiter.record(p.name)
	if !w.cfg.weak() || p.forced || p.taken || l.owner != h.name || rec.Owner == h.name || p.node(h).Observe().Term.Term >= rec.Term {
		return false
	}
	if slices.Min(p.w.Nodes[1-p.side(h)].Content(pairVolume)[slot*slotSize:][:slotSize]) >= id {
		return false
	}
	now := p.node(h).Clock()
	if !l.byPerson && w.now >= h.woke {
		w.fail("%s: a record of %s is acknowledged, whose owner is %s: its lease was over", h.name, p.name, rec.Owner)
		return true
	}
	l.bytes += slotSize * 512
	if l.first == 0 {
		l.first = sent
	}
	limit := w.cfg.MaxLossBytes
	if ms := now - l.first; limit > 0 && (l.bytes > limit || ms > w.cfg.MaxLossMS) {
		w.fail("%s: a record of %s is acknowledged, whose owner is %s: %d bytes are lost with it that were acknowledged within %d ms; %d bytes or %d ms may be lost", h.name, p.name, rec.Owner, l.bytes, ms, limit, w.cfg.MaxLossMS)
	}
	w.trace("%s: a record of %s is acknowledged and lost, as was declared: its clock stood still when it was replaced", h.name, p.name)
	w.lost += slotSize * 512
	return true
}

// lacks is what the copy that serves a host lacks of what was acknowledged: bytes, and
// from the submission of the first to the answer to the last of these writes, ms of the
// clock of who answered.
func (p *Pair) lacks(h *Host) (bytes uint64, first, last int64) {
	content := p.serving(h)
	first = 1 << 62
	for slot, id := range p.acked {
		for i := range slotSize {
			if content[slot*slotSize+i] < id {
				bytes += slotSize * 512
				first, last = min(first, p.sent[slot]), max(last, p.told[slot])
				break
			}
		}
	}
	return bytes, first, last
}

// judgeLoss is checkContent for a VM whose disk was taken over, or has failed. It reports whether the
// start is well.
func (w *World) judgeLoss(v *VM, p *Pair) bool {
	bytes, first, last := p.lacks(v.h)
	ms := max(0, last-first)
	limit, byPerson, taken := w.cfg.MaxLossBytes, p.byPerson, p.taken
	p.taken, p.byPerson = false, false
	if bytes == 0 {
		return true
	}
	text := v.h.manager.takes[v.svc.name]
	bound := fmt.Sprintf("at most %d KiB, or %d.%d s", (limit+1023)/1024, w.cfg.MaxLossMS/1000, w.cfg.MaxLossMS%1000/100)
	switch {
	case limit == 0 && (byPerson || !taken): // a disk has failed, and the other copy is what is left
	case bytes > limit || ms > w.cfg.MaxLossMS:
		w.fail("%s: %v lacks %d bytes of %s that were acknowledged within %d ms; %d bytes or %d ms may be lost", v.h.name, v, bytes, p.name, ms, limit, w.cfg.MaxLossMS)
		return false
	case taken && !byPerson && !(strings.Contains(text, p.name+":") && strings.Contains(text, bound)):
		w.fail("%s: %v lacks %d bytes of %s, and its manager said %q, want %q", v.h.name, v, bytes, p.name, text, bound)
		return false
	}
	w.trace("%s: %v lacks %d bytes of %s (%d ms), as was declared", v.h.name, v, bytes, p.name, ms)
	w.lost += bytes
	p.late.bytes, p.late.first = p.late.bytes+bytes, first
	p.forgive(v.h)
	return true
}

// noted is told of each line for people.
func (m *manager) noted(o *ha.Order) {
	if o.Note.Topic == ha.TopicService && strings.Contains(o.Note.Text, "this node takes it") {
		m.takes[o.Note.Service] = o.Note.Text
	}
}
