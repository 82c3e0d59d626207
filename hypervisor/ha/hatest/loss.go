package hatest

import (
	"fmt"
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
}

// lacks is what the copy that serves a host lacks of what was acknowledged: bytes, and
// from the submission of the first to the answer to the last of these writes, ms.
func (p *Pair) lacks(h *Host) (bytes uint64, ms int64) {
	content := p.serving(h)
	first, last := int64(1)<<62, int64(0)
	for slot, id := range p.acked {
		for i := range slotSize {
			if content[slot*slotSize+i] < id {
				bytes += slotSize * 512
				first, last = min(first, p.begun[slot]), max(last, p.ended[slot])
				break
			}
		}
	}
	return bytes, max(0, last-first) / millisecond
}

// judgeLoss is checkContent for a VM whose disk was taken over, or has failed. It reports whether the
// start is well.
func (w *World) judgeLoss(v *VM, p *Pair) bool {
	bytes, ms := p.lacks(v.h)
	limit, byPerson, taken := w.cfg.MaxLossBytes, p.byPerson, p.taken
	p.taken, p.byPerson = false, false
	if bytes == 0 {
		return true
	}
	const tick = 10 // milliseconds: how exactly time is told
	text := v.h.manager.takes[v.svc.name]
	bound := fmt.Sprintf("at most %d KiB, or %d.%d s", (limit+1023)/1024, w.cfg.MaxLossMS/1000, w.cfg.MaxLossMS%1000/100)
	switch {
	case limit == 0 && (byPerson || !taken): // a disk has failed, and the other copy is what is left
	case bytes > limit || ms > w.cfg.MaxLossMS+tick:
		w.fail("%s: %v lacks %d bytes of %s that were acknowledged within %d ms; %d bytes or %d ms may be lost", v.h.name, v, bytes, p.name, ms, limit, w.cfg.MaxLossMS)
		return false
	case taken && !byPerson && !(strings.Contains(text, p.name+":") && strings.Contains(text, bound)):
		w.fail("%s: %v lacks %d bytes of %s, and its manager said %q, want %q", v.h.name, v, bytes, p.name, text, bound)
		return false
	}
	w.trace("%s: %v lacks %d bytes of %s (%d ms), as was declared", v.h.name, v, bytes, p.name, ms)
	w.lost += bytes
	p.forgive(v.h)
	return true
}

// noted is told of each line for people.
func (m *manager) noted(o *ha.Order) {
	if o.Note.Topic == ha.TopicService && strings.Contains(o.Note.Text, "this node takes it") {
		m.takes[o.Note.Service] = o.Note.Text
	}
}
