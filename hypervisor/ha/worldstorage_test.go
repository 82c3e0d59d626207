package ha

import (
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

func outcomeOf(err error) Outcome {
	for _, c := range []struct {
		err error
		out Outcome
	}{{arbiter.ErrChanged, Changed}, {arbiter.ErrHeld, Held}, {arbiter.ErrStale, Stale}, {arbiter.ErrBehind, Behind}} {
		if errors.Is(err, c.err) {
			return c.out
		}
	}
	return Invalid
}

func (p *pair) of(name string) *side {
	for _, s := range p.side {
		if s.host.name == name {
			return s
		}
	}
	return nil
}

func (p *pair) other(s *side) *side {
	if p.side[0] == s {
		return p.side[1]
	}
	return p.side[0]
}

// settle makes the connection what the links and terms allow, and tells both nodes.
func (p *pair) settle() {
	a, b := p.side[0], p.side[1]
	can := a.up && b.up && a.host.runs() && b.host.runs() && p.w.linked(a.host.name, b.host.name) && p.w.linked("D", p.name) && a.disk != Diskless && b.disk != Diskless
	for _, s := range p.side {
		if o := p.other(s); s.role == Primary && s.term < o.promised {
			can = false
			if a.host.runs() && b.host.runs() && p.w.linked(a.host.name, b.host.name) {
				s.promised = max(s.promised, o.promised)
			}
		}
	}
	if a.role == Primary && b.role == Primary {
		can = false
	}
	if can != p.connected {
		if !can {
			p.goWithoutPeer()
		}
		p.connected = can
		p.w.tracef("%s: connected %v", p.name, can)
		if can {
			p.connect()
		} else {
			p.syncing = false
		}
	}
	for _, s := range p.side {
		if o := p.other(s); p.connected && s.role != Primary {
			s.back = o.role == Primary && o.asks
		}
	}
	p.tell()
}

// goWithoutPeer is the end of a connection to a copy that stands back: it is Outdated,
// and the owner goes on alone.
func (p *pair) goWithoutPeer() {
	for _, s := range p.side {
		o := p.other(s)
		if !s.back || s.role == Primary {
			continue
		}
		s.back = false
		if s.disk == UpToDate || s.disk == Consistent {
			s.disk = Outdated
		}
		if o.role == Primary && o.owned && !o.sole && o.term == o.promised && o.disk == UpToDate {
			o.sole, o.marked, o.soleTerm = true, true, o.term
			o.gen += 2
		}
	}
}

// leave is polluxadm down, or the stop of polluxd, on a host that is well.
func (h *host) leave() {
	for _, p := range h.w.disks {
		if s := p.of(h.name); s != nil && s.role == Secondary && p.connected {
			s.back = p.other(s).role == Primary
			s.up = false
			p.settle()
		}
	}
}

// join is polluxadm up.
func (h *host) join() {
	for _, p := range h.w.disks {
		if s := p.of(h.name); s != nil {
			s.up = true
			p.settle()
		}
	}
}

func (p *pair) connect() {
	a, b := p.side[0], p.side[1]
	top := max(a.promised, b.promised)
	a.promised, b.promised = top, top
	if a.gen == b.gen && a.data == b.data {
		p.equal()
		return
	}
	src, dst := a, b
	switch {
	case b.role == Primary, a.role != Primary && b.marked && !a.marked, a.role != Primary && !a.marked && b.gen > a.gen,
		a.role != Primary && a.marked == b.marked && a.gen == b.gen && b.data > a.data:
		src, dst = b, a
	}
	if src.marked && dst.marked || src.data < dst.data && dst.data <= p.w.acked[p.vm] && src.marked == dst.marked && src.data < p.w.acked[p.vm] {
		p.w.tracef("%s: split brain: %+v %+v", p.name, *src, *dst)
		if !p.w.mayLose {
			p.w.t.Errorf("%d %s: split brain", p.w.now, p.name)
		}
	}
	src.disk, dst.disk = UpToDate, Inconsistent
	p.syncing = true
	p.w.after(500, func() {
		if p.connected && p.syncing {
			dst.data, dst.gen = src.data, src.gen
			p.equal()
			p.tell()
		}
	})
}

func (p *pair) equal() {
	p.syncing = false
	for _, s := range p.side {
		s.disk, s.marked, s.sole = UpToDate, false, false
	}
}

func (p *pair) tell() {
	for _, s := range p.side {
		p.report(s.host)
	}
}

func (p *pair) frozen(s *side) string {
	switch {
	case s.role != Primary:
		return ""
	case s.promised > s.term:
		return "the term is over"
	case s.owned && !s.sole && !p.connected:
		return "the term is shared"
	}
	return ""
}

func (p *pair) report(h *host) {
	s := p.of(h.name)
	if s == nil {
		return
	}
	o := p.other(s)
	st := Storage{
		Resource: p.name, Up: s.up, Role: s.role, Connected: p.connected, Disk: s.disk, PeerDisk: DUnknown, Generation: s.gen, Term: s.term,
		StandsBack: s.back, AsksPeer: s.asks, PeerStandsBack: s.role == Primary && s.asks && o.back && p.connected,
		Promised: s.promised, Owned: s.owned, Sole: s.sole, Marked: s.marked, Frozen: p.frozen(s), ReadsFrozen: s.reads, Incarnation: s.inc,
	}
	if p.connected {
		st.PeerRole, st.PeerDisk = o.role, o.disk
		if p.syncing {
			st.DirtyBytes = 1 << 20
		}
	} else if s.marked {
		st.DirtyBytes = 1 << 20
	}
	h.step(Event{Kind: StorageChanged, Storage: st})
}

// command is what polluxd does.
func (p *pair) command(name string, o Order) string {
	s := p.of(name)
	if !s.up {
		return p.name + ": polluxd is down"
	}
	defer p.settle()
	peer := p.other(s)
	switch o.Kind {
	case PromiseTerm:
		if o.Term < s.promised {
			return fmt.Sprintf("term %d is lower than term %d", o.Term, s.promised)
		}
		s.promised = o.Term
	case Promote:
		return p.promote(s, peer, o)
	case Demote:
		if s.inc != "" {
			return "a client has it open"
		}
		s.role, s.owned, s.sole, s.reads, s.asks = Secondary, false, false, false, false
	case Failsafe:
		if s.role != Primary {
			return "not Primary"
		}
		s.asks = o.On
	case Export:
		if s.role != Primary {
			return "not Primary"
		}
		s.inc = o.Incarnation
	case Unexport:
		s.inc = ""
	default:
		s.reads = true
	}
	return ""
}

func (p *pair) promote(s, peer *side, o Order) string {
	switch {
	case o.Term < s.promised:
		return fmt.Sprintf("term %d is lower than the promised term %d", o.Term, s.promised)
	case p.connected && peer.role == Primary:
		return "the peer is Primary"
	case !o.Sole && !p.connected && s.role != Primary:
		return "need access to the peer"
	case o.Sole && o.Term == s.term && !s.sole && (s.role == Primary || !s.marked || s.soleTerm != o.Term):
		return "not the only writer any more"
	case s.disk != UpToDate && s.disk != Consistent && !o.Force:
		return "the disk is " + string(s.disk)
	}
	s.role, s.owned, s.term, s.promised, s.sole, s.reads = Primary, true, o.Term, o.Term, o.Sole, false
	if p.connected {
		peer.promised = max(peer.promised, s.promised)
		if !p.syncing {
			s.sole = false
		}
	} else if o.Sole {
		if !s.marked {
			s.gen += 2
		}
		s.marked, s.soleTerm, s.disk = true, o.Term, UpToDate
	}
	return ""
}

func (h *host) startVM(o Order) string {
	v := h.vms[o.Service]
	if h.noStart != "" {
		return h.noStart
	}
	if v.running {
		return "it is running already"
	}
	for _, p := range h.w.disks {
		if p.vm == o.Service {
			s := p.of(h.name)
			if s.role != Primary || s.inc != o.Incarnation {
				return p.name + ": refused: not exported to this incarnation"
			}
			if p.frozen(s) != "" || s.reads {
				continue // a start that was overtaken: it reads nothing
			}
			if s.data < h.w.acked[p.vm] && !h.w.mayLose {
				h.w.t.Errorf("%d %s: started on %s with stale data: %d of %d", h.w.now, o.Service, h.name, s.data, h.w.acked[p.vm])
			}
			h.w.acked[p.vm] = s.data
		}
	}
	v.running, v.inc, v.failed = true, o.Incarnation, false
	h.reportVM(o.Service)
	return ""
}

func (h *host) endVM(name string) string {
	h.vms[name].running, h.vms[name].inc = false, ""
	h.reportVM(name)
	return ""
}

// write lets each guest write one more number to all its disks.
func (w *world) write() {
	for _, h := range w.hosts {
		for _, s := range w.cfg.Services {
			if v := h.vms[s.Name]; v == nil || !v.running || !h.runs() {
				continue
			}
			ok := true
			for _, p := range w.disks {
				if p.vm == s.Name {
					side := p.of(h.name)
					ok = ok && side.role == Primary && side.inc == h.vms[s.Name].inc && p.frozen(side) == "" && !side.reads
				}
			}
			if !ok {
				continue
			}
			w.acked[s.Name]++
			for _, p := range w.disks {
				if p.vm != s.Name {
					continue
				}
				p.of(h.name).data = w.acked[s.Name]
				if p.connected {
					p.other(p.of(h.name)).data = w.acked[s.Name]
				}
			}
		}
	}
}

// doubleMargin is how long two guests of one service may be there at once: the time
// to kill the old one, and the other host's clock step.
const doubleMargin Tick = 500

func (w *world) check() {
	for _, s := range w.cfg.Services {
		running, writing := 0, 0
		for _, h := range w.hosts {
			if v := h.vms[s.Name]; v != nil && v.running && h.alive {
				if !h.asleep {
					running++
				}
				for _, p := range w.disks {
					if side := p.of(h.name); p.vm == s.Name && side != nil && side.role == Primary && p.frozen(side) == "" && side.inc == v.inc && !h.asleep {
						writing++
						break
					}
				}
			}
		}
		if writing > 1 && !w.mayLose {
			w.t.Fatalf("%d: two writers of %s\n%s", w.now, s.Name, w.describe())
		}
		if running > 1 {
			w.doubleFor += 10
		} else {
			w.doubleFor = 0
		}
		if w.doubleFor > doubleMargin && !w.mayDouble {
			w.t.Fatalf("%d: two guests of %s\n%s", w.now, s.Name, w.describe())
		}
	}
}

// runsOn is where a service runs and is written to; "" if nowhere.
func (w *world) runsOn(name string) string {
	for _, h := range w.hosts {
		if v := h.vms[name]; v == nil || !v.running || !h.runs() {
			continue
		}
		ok := true
		for _, p := range w.disks {
			if p.vm == name {
				s := p.of(h.name)
				ok = ok && s.role == Primary && p.frozen(s) == "" && !s.reads && s.inc == h.vms[name].inc
			}
		}
		if ok {
			return h.name
		}
	}
	return ""
}
