package hatest

import (
	"fmt"

	"github.com/pollux-project/pollux/replication"
)

// A Service is one virtual machine with its disks.
type Service struct {
	w     *World
	id    int
	name  string
	hosts [2]int
	pairs []*Pair

	serial  int   // of its VMs
	vms     []*VM // that exist
	stopped stop
	wish    int      // number of what the operator wanted last
	started int      // how often it was started
	used    []string // incarnations
}

// A VM is one process of a hypervisor.
type VM struct {
	svc      *Service
	h        *Host
	inc      string
	serial   int
	phase    vmPhase
	record   int // number of the next
	under    bool
	since    int64 // in this phase
	acked    int64 // when a record was acknowledged last, µs
	stubborn bool  // does not react to its power button
}

type vmPhase uint8

const (
	vmBooting vmPhase = iota
	vmRunning
	vmStopping
	vmGone
)

func (p vmPhase) String() string { return [...]string{"booting", "running", "stopping", "gone"}[p] }

func (v *VM) String() string {
	return fmt.Sprintf("%s#%d on %s (%s)", v.svc.name, v.serial, v.h.name, v.inc)
}

// vm is the VM of a service that runs on a host, nil if there is none.
func (h *Host) vm(s *Service) *VM {
	for _, v := range s.vms {
		if v.h == h {
			return v
		}
	}
	return nil
}

// startVM begins a VM; done hears how that ended, on this host.
func (h *Host) startVM(s *Service, inc string, done func(error)) {
	w := h.w
	if v := h.vm(s); v != nil {
		w.after(10*millisecond, h.awake(func() { done(fmt.Errorf("vm %s: it is already running on this node", s.name)) }))
		return
	}
	s.serial++
	s.started++
	v := &VM{svc: s, h: h, inc: inc, serial: s.serial, since: w.now, record: w.dice.pick(slots)}
	s.vms = append(s.vms, v)
	w.trace("%s: %v starts", h.name, v)
	w.checkStart(v)
	w.after(w.dice.between(200*millisecond, 900*millisecond), h.awake(func() {
		if v.phase != vmBooting {
			return
		}
		if !v.opened() {
			v.end("its disks cannot be opened")
			done(fmt.Errorf("vm %s: a disk is not exported as %s", s.name, inc))
			return
		}
		if h.woke <= v.since { // else it was overtaken while its host stood still: it is killed, checkRunning sees to that
			w.checkContent(v)
		}
		v.enter(vmRunning)
		done(nil)
		v.write()
	}))
}

func (v *VM) enter(p vmPhase) {
	v.phase, v.since = p, v.svc.w.now
	v.svc.w.trace("%s: %v is %v", v.h.name, v, p)
	v.svc.w.checkRunning(v.svc)
}

// opened reports whether every disk is exported to this VM now.
func (v *VM) opened() bool {
	for _, p := range v.svc.pairs {
		if !v.connected(p) {
			return false
		}
	}
	return true
}

// connected reports whether a disk of v serves it: its client connects if it has
// to. It is refused under another incarnation, or while another client is there.
func (v *VM) connected(p *Pair) bool {
	i := p.side(v.h)
	n := p.node(v.h)
	if p.export[i] != v.inc || p.frozen[i] || p.leaseFrozen[i] || !n.Alive() {
		return false
	}
	c := p.client[i]
	if c == nil {
		c = &client{vm: v, life: n.Life()}
		n.Command(replication.Command{Kind: replication.CmdOpen}, func(err error) {
			if err == nil {
				p.client[i] = c
			}
		})
	}
	return p.client[i] != nil && p.client[i].vm == v
}

// write writes one record after the other. A disk that is away, or exported to
// somebody else, leaves the guest waiting; its client tries again and again.
func (v *VM) write() {
	w := v.svc.w
	if v.phase != vmRunning && v.phase != vmStopping || v.under || w.resting != nil {
		return
	}
	pause := w.dice.between(30*millisecond, 120*millisecond)
	if w.now > w.calm {
		pause = w.dice.between(800*millisecond, 2400*millisecond)
	}
	p := v.svc.pairs[v.record%len(v.svc.pairs)]
	if !v.connected(p) {
		w.after(300*millisecond, v.h.awake(v.write))
		return
	}
	slot := v.record % slots
	v.record++
	v.under = true
	life := p.node(v.h).Life()
	p.submit(v.h, slot, func(err error) {
		if err == nil {
			v.acked = w.now
		}
		if v.under {
			v.under = false
			w.after(pause, v.h.awake(v.write))
		}
	})
	v.watch(p, life, slot)
}

// watch writes a record again that a polluxd was to answer which is no more.
func (v *VM) watch(p *Pair, life, slot int) {
	v.svc.w.after(500*millisecond, v.h.awake(func() {
		switch {
		case !v.under || v.phase == vmGone || v.record%slots != (slot+1)%slots:
		case p.node(v.h).Life() == life && p.node(v.h).Alive():
			v.watch(p, life, slot)
		default:
			v.under = false
			v.record--
			v.write()
		}
	}))
}

// end is the end of the process, however it came.
func (v *VM) end(why string) {
	if v.phase == vmGone {
		return
	}
	s := v.svc
	v.phase = vmGone
	for _, p := range s.pairs {
		if i := p.side(v.h); p.client[i] != nil && p.client[i].vm == v {
			p.closeClient(i)
		}
	}
	for i, x := range s.vms {
		if x == v {
			s.vms = append(s.vms[:i:i], s.vms[i+1:]...)
			break
		}
	}
	s.w.trace("%s: %v is gone: %s", v.h.name, v, why)
	s.w.checkRunning(s)
}

// stopVM presses the power button.
func (h *Host) stopVM(s *Service, done func(error)) {
	v := h.vm(s)
	if v == nil {
		h.w.after(5*millisecond, h.awake(func() { done(fmt.Errorf("vm %s: it is not running on this node", s.name)) }))
		return
	}
	v.enter(vmStopping)
	grace := h.w.dice.between(200*millisecond, 1500*millisecond)
	if v.stubborn {
		grace = 8 * second
	}
	life := h.manager.life
	h.w.after(grace, h.awake(func() {
		if v.phase == vmStopping && v.stubborn {
			done(fmt.Errorf("vm %s: the guest did not shut down in time and is still running", s.name))
			return
		}
		v.end("it was shut down")
		h.tellOther(s, life)
		done(nil)
	}))
}

// killVM ends a VM as a power failure would. A stubborn one that is stuck in its
// kernel cannot be killed.
func (h *Host) killVM(s *Service, done func(error)) {
	v, life := h.vm(s), h.manager.life
	h.w.after(h.w.dice.between(10*millisecond, 150*millisecond), h.awake(func() {
		switch {
		case v == nil:
			done(nil)
		case h.unkillable > 0:
			done(fmt.Errorf("vm %s: kill: its process does not end", s.name))
		default:
			v.end("it was killed")
			h.tellOther(s, life)
			done(nil)
		}
	}))
}

// tellOther tells a manager of the end of a VM that an earlier process of it had ended.
func (h *Host) tellOther(s *Service, life int) {
	if h.manager.life != life {
		h.manager.vmEnded(s)
	}
}

// stir has the virtual machines write often for a while: something has happened.
func (w *World) stir() { w.calm = max(w.calm, w.now+2*second) }
