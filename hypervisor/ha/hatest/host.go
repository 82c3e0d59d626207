package hatest

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A Host is one machine: polluxd with a copy of some resources, a manager, and a
// hypervisor.
type Host struct {
	w       *World
	id      int
	name    string
	pairs   []*Pair
	manager *manager
	half    *half // of the arbiter that two hosts are together; nil: it is another one

	power  bool
	boot   int   // number of the boot
	booted int64 // when, µs
	skew   int64 // ms that its monotonic clock is ahead
	asleep int64 // until when everything on it is stopped
	stood  int64 // µs of that time in which its clock stood still, too
	woke   int64 // since when it can know what time it is

	lostTime bool // its clock stands still, too, in a part of the time in which it does now
	kept     []func()

	addresses  map[int]bool // of services that are on h
	fullDisk   int          // faults: the manager's state cannot be written
	unkillable int          // faults: the hypervisor's processes cannot be killed
}

func newHost(w *World, id int) *Host {
	h := &Host{w: w, id: id, name: string(rune('a' + id)), addresses: map[int]bool{}}
	h.manager = newManager(h)
	return h
}

// bootID is the machine's boot ID.
func (h *Host) bootID() string { return fmt.Sprintf("%s-%d", h.name, h.boot) }

// tick is the monotonic clock of h in this boot, ms.
func (h *Host) tick() int64 {
	return (h.w.now-h.booted-h.stood)/millisecond + 1000 + h.skew
}

// awake is f for the time when h runs; nothing once it has lost its power.
func (h *Host) awake(f func()) func() {
	boot := h.boot
	return func() {
		switch {
		case !h.power || h.boot != boot:
		case h.w.now < h.asleep:
			h.kept = append(h.kept, f)
		default:
			f()
		}
	}
}

// running reports whether h does anything at all.
func (h *Host) running() bool { return h.power && h.w.now >= h.asleep }

// Boot turns h on; polluxd and polluxha start after a while.
func (h *Host) Boot() {
	if h.power {
		return
	}
	h.power, h.booted, h.skew, h.stood, h.asleep, h.lostTime = true, h.w.now, 0, 0, 0, false
	h.boot++
	h.w.trace("%s: boots", h.name)
	h.w.after(h.w.dice.between(500*millisecond, 2*second), h.awake(h.StartPolluxd))
	h.w.after(h.w.dice.between(500*millisecond, 3*second), h.awake(h.manager.start))
}

// PowerOff ends everything on h. Of what was written and not synced each sector
// survives with probability keep.
func (h *Host) PowerOff(keep float64) {
	if !h.power {
		return
	}
	h.w.trace("%s: loses its power", h.name)
	h.power, h.asleep, h.kept = false, 0, nil
	clear(h.addresses)
	h.manager.die()
	for _, s := range h.w.Services {
		if v := h.vm(s); v != nil {
			v.gone("the host has lost its power")
		}
	}
	for _, p := range h.pairs {
		p.node(h).Sleep(0)
		p.stop(h, true, keep)
	}
}

// Reset is what a watchdog does.
func (h *Host) Reset() {
	h.PowerOff(0.5)
	h.w.after(h.w.dice.between(5*second, 20*second), h.Boot)
}

// fenced is PowerOff by another node's fence agent.
func (h *Host) fenced() {
	h.PowerOff(0.5)
	h.w.after(h.w.dice.between(15*second, 40*second), h.Boot) // somebody turns it on again
}

// StartPolluxd starts polluxd, KillPolluxd ends it as a crash does.
func (h *Host) StartPolluxd() {
	for _, p := range h.pairs {
		if !p.node(h).Alive() {
			p.start(h)
		}
	}
}

// KillPolluxd ends polluxd as a crash does; what it had is lost.
func (h *Host) KillPolluxd() {
	h.w.trace("%s: polluxd crashes", h.name)
	for _, p := range h.pairs {
		p.stop(h, false, 1)
	}
}

// Pause stops everything on h for so many ms, as SIGSTOP does, or (still) as a
// snapshot of h as a virtual machine does, after which its clock does not know.
func (h *Host) Pause(ms int64, still bool) {
	if !h.power {
		return
	}
	w := h.w
	w.trace("%s: stands still for %d ms", h.name, ms)
	from, end, boot := max(w.now, h.asleep), w.now+ms*millisecond, h.boot
	if end <= from {
		return // it stands still for longer anyway
	}
	h.asleep = end
	if still {
		h.stood, h.lostTime = h.stood+end-from, true
	}
	for _, p := range h.pairs {
		n := p.node(h)
		n.Sleep(h.asleep)
		if still {
			n.Jump((from - end) / millisecond)
		}
	}
	for _, s := range w.Services {
		w.checkRunning(s)
	}
	w.at(h.asleep, func() {
		if h.boot != boot || !h.power || w.now < h.asleep {
			return
		}
		h.woke = w.now
		if h.lostTime {
			h.lostTime = false
			h.woke += w.cfg.ttl() // so long it may take its lease for good
		}
		w.trace("%s: goes on", h.name)
		kept := h.kept
		h.kept = nil
		for _, f := range kept {
			f()
		}
		for _, s := range w.Services {
			w.checkRunning(s)
		}
	})
}

// Jump sets h's monotonic clock forward.
func (h *Host) Jump(ms int64) {
	if !h.power {
		return
	}
	h.skew += ms
	h.w.trace("%s: its clock jumps by %d ms", h.name, ms)
	for _, p := range h.pairs {
		p.node(h).Jump(ms)
	}
	h.manager.clockJumped()
}

// attachDisks attaches what was detached, and connects what has given up: what an
// operator does who reads the messages.
func (h *Host) attachDisks() {
	if !h.running() {
		return
	}
	for _, p := range h.pairs {
		n := p.node(h)
		if !n.Alive() {
			continue
		}
		n.MendDisk()
		if n.Observe().State[pairVolume].Disk == drbd.Diskless {
			n.Attach(pairVolume)
		}
	}
}
