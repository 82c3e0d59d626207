package hatest

import (
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

// command gives a manager an operator's command; the number names its answer.
func (m *manager) command(c ha.Command) uint64 {
	if m.core == nil || !m.h.running() {
		return 0
	}
	m.commands++
	c.ID = uint64(m.h.id+1)<<32 + m.commands
	m.wanted = append(m.wanted, c)
	m.step(ha.Event{Kind: ha.Commanded, Command: c})
	return c.ID
}

// commandEnded is the last answer to a command.
func (m *manager) commandEnded(o ha.Order) {
	for _, c := range m.wanted {
		if c.ID != o.Command || o.Err != "" {
			continue
		}
		for _, s := range m.w.Services {
			if s.name == c.Service && (c.Verb == ha.StopVerb || c.Verb == ha.KillVerb) && s.wish == m.wish {
				s.stopped = stop{on: true, hosts: []*Host{m.h}}
			}
		}
	}
}

func (m *manager) operatorMoves(s *Service) {
	m.command(ha.Command{Verb: ha.MoveVerb, Service: s.name})
}

// operatorStops: from the answer on the service is not to be started on this host,
// and on no other one that hears of it.
func (m *manager) operatorStops(s *Service) {
	s.wish++
	m.wish = s.wish
	if m.command(ha.Command{Verb: ha.StopVerb, Service: s.name}) == 0 {
		s.wish++
	}
}

// operatorKills is operatorStops without asking the guest.
func (m *manager) operatorKills(s *Service) {
	s.wish++
	m.wish = s.wish
	if m.command(ha.Command{Verb: ha.KillVerb, Service: s.name}) == 0 {
		s.wish++
	}
}

// operatorStarts is given to every host that hears: one of them will be current.
func (w *World) operatorStarts(s *Service) {
	s.wish++
	s.stopped = stop{}
	for _, h := range w.Hosts {
		if s.has(h) {
			h.manager.command(ha.Command{Verb: ha.StartVerb, Service: s.name, NoWait: true})
		}
	}
}

func (m *manager) operatorStandby() {
	m.command(ha.Command{Verb: ha.StandbyVerb, Node: m.h.name, NoWait: true})
}

func (w *World) operatorOnline(h *Host) {
	for _, o := range w.Hosts {
		o.manager.command(ha.Command{Verb: ha.OnlineVerb, Node: h.name, NoWait: true})
	}
}

// operatorForces: he says that the other host is down, whatever is true.
func (m *manager) operatorForces(s *Service) {
	if !s.has(m.h) {
		return
	}
	for _, p := range s.pairs {
		p.force(m.h)
	}
	id := m.command(ha.Command{
		Verb: ha.FailoverVerb, Service: s.name, PeerIsDown: s.pairs[0].peer(m.h).name, Force: true, Confirm: s.name,
	})
	if id != 0 && m.answers[id] == "" { // a refusal comes at once
		s.wish++
		s.stopped = stop{}
	}
}

// has reports whether a service may run on a host.
func (s *Service) has(h *Host) bool { return slices.Contains(s.hosts[:], h.id) }

// operatorConfirms: a person who stands beside a host says that it is off, and it is. No
// copy that lacks anything may be used for that.
func (w *World) operatorConfirms(off *Host) {
	if off.power {
		return
	}
	for _, s := range w.Services {
		for _, h := range w.Hosts {
			if !s.has(h) || !s.has(off) || h == off || !h.running() || h.manager.core == nil {
				continue
			}
			if off.half != nil {
				off.half.off = true
			}
			id := h.manager.command(ha.Command{Verb: ha.FailoverVerb, Service: s.name, PeerIsDown: off.name, Confirm: s.name, NoWait: true})
			if id == 0 || h.manager.answers[id] != "" {
				continue
			}
			s.wish++
			s.stopped = stop{}
			for _, p := range s.pairs { // the arbiter may hear of it later
				in := [2]bool{}
				in[p.side(h)], p.byPerson, p.person = true, true, h
				p.w.SetRecord(0, -1, in)
			}
		}
	}
}
