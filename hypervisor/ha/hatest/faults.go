package hatest

import (
	"slices"

	"github.com/pollux-project/pollux/replication"
)

// A fault is a kind of failure, or of operator. begin does it, to a host that is
// the one where the first service runs or another; what it returns ends it after
// so many ms.
type fault struct {
	name  string
	begin func(w *World, h *Host, d *dice) (ms int64, end func())
}

// lasting draws how long something lasts, ms: half the time less than it takes to
// be noticed, else longer than a lease, up to a minute.
func lasting(d *dice) int64 {
	switch d.pick(4) {
	case 0:
		return d.between(50, 2500)
	case 1:
		return d.between(1000, 9000)
	case 2:
		return d.between(8000, 25000)
	default:
		return d.between(15000, 60000)
	}
}

// faults are all kinds; every pair of them has to occur. The first ones, as many as
// common says, are those of all histories.
var faults = slices.Concat(commonFaults, moreFaults)

var common = len(commonFaults)

var commonFaults = []*fault{
	{"power cut of a host", func(w *World, h *Host, d *dice) (int64, func()) {
		h.PowerOff([]float64{0, 0.5, 1}[d.pick(3)])
		return max(3000, lasting(d)), h.Boot
	}},
	{"power cut of all hosts", func(w *World, _ *Host, d *dice) (int64, func()) {
		for _, h := range w.Hosts {
			w.after(d.between(0, 300*millisecond)*int64(d.pick(2)), func() { h.PowerOff(0.5) })
		}
		last := d.between(3000, 12000)
		first, gap := d.pick(len(w.Hosts)), d.between(0, 1+lasting(d))
		return last + gap, func() {
			for i := range w.Hosts {
				h := w.Hosts[(first+i)%len(w.Hosts)]
				w.after(int64(i)*d.between(0, 8*second), h.Boot)
			}
		}
	}},
	{"host stands still", func(w *World, h *Host, d *dice) (int64, func()) {
		ms := lasting(d)
		h.Pause(ms, false)
		return ms, func() {}
	}},
	{"host and its clock stand still", func(w *World, h *Host, d *dice) (int64, func()) {
		ms := lasting(d)
		h.Pause(ms, true)
		return ms, func() {}
	}},
	{"replication link cut", func(w *World, h *Host, d *dice) (int64, func()) {
		return lasting(d), w.cutOff(replicating, h, true, true, d.chance(0.5))
	}},
	{"replication link cut one way", func(w *World, h *Host, d *dice) (int64, func()) {
		return lasting(d), w.cutOff(replicating, h, true, false, true)
	}},
	{"management link cut", func(w *World, h *Host, d *dice) (int64, func()) {
		return lasting(d), w.cutOff(management, h, true, true, false)
	}},
	{"management link cut one way", func(w *World, h *Host, d *dice) (int64, func()) {
		out := d.chance(0.5)
		return lasting(d), w.cutOff(management, h, out, !out, false)
	}},
	{"host isolated", func(w *World, h *Host, d *dice) (int64, func()) {
		a, b, c := w.cutOff(replicating, h, true, true, true), w.cutOff(management, h, true, true, true), w.cutArbiter(h, true, true)
		return lasting(d), func() { a(); b(); c() }
	}},
	{"arbiter out of a host's reach", func(w *World, h *Host, d *dice) (int64, func()) {
		return lasting(d), w.cutArbiter(h, true, true)
	}},
	{"arbiter's answers lost", func(w *World, h *Host, d *dice) (int64, func()) {
		return lasting(d), w.cutArbiter(h, false, true)
	}},
	{"arbiter down", func(w *World, _ *Host, d *dice) (int64, func()) {
		w.Arbiter.down++
		w.silence(1)
		w.trace("arbiter: down")
		return lasting(d), func() {
			w.Arbiter.down--
			w.silence(-1)
			w.trace("arbiter: up")
		}
	}},
	{"arbiter restored from a backup", func(w *World, h *Host, d *dice) (int64, func()) {
		if h.half != nil {
			h.half.restore(d.chance(0.3))
			return d.between(3000, 12000), h.Boot
		}
		w.Arbiter.down++
		return d.between(100, 5000), func() {
			w.Arbiter.restore()
			w.Arbiter.down--
		}
	}},
	{"arbiter late, twice, not at all", func(w *World, _ *Host, d *dice) (int64, func()) {
		w.Arbiter.moody++
		return lasting(d), func() { w.Arbiter.moody-- }
	}},
	{"arbiter lies with old grants", func(w *World, _ *Host, d *dice) (int64, func()) {
		w.Arbiter.lying++
		return lasting(d), func() { w.Arbiter.lying-- }
	}},
	{"jitter above warntime", func(w *World, h *Host, d *dice) (int64, func()) {
		late := d.between(3000, 9000) * millisecond
		w.net.late[h.id] += late
		return lasting(d), func() { w.net.late[h.id] -= late }
	}},
	{"clock jumps", func(w *World, h *Host, d *dice) (int64, func()) {
		h.Jump(d.between(1000, 40000))
		return 1000, func() {}
	}},
	{"disk fails", func(w *World, h *Host, d *dice) (int64, func()) {
		w.trace("%s: a disk fails", h.name)
		p := h.pairs[d.pick(len(h.pairs))]
		p.node(h).FailDisk()
		p.diskLost = true
		return lasting(d), h.attachDisks
	}},
	{"state cannot be written", func(w *World, h *Host, d *dice) (int64, func()) {
		h.fullDisk++
		return lasting(d), func() { h.fullDisk-- }
	}},
	{"polluxha crashes", func(w *World, h *Host, d *dice) (int64, func()) {
		h.manager.crash()
		return d.between(100, 20000), func() { h.awake(h.manager.start)() }
	}},
	{"polluxd crashes", func(w *World, h *Host, d *dice) (int64, func()) {
		lasts := d.between(100, 20000)
		switch {
		case !h.power:
		case d.chance(0.4): // in good order
			for _, p := range h.pairs {
				p.node(h).Command(replication.Command{Kind: replication.CmdDisconnect, Force: true}, nil)
			}
			w.after(50*millisecond, h.awake(h.KillPolluxd))
		default:
			h.KillPolluxd()
		}
		return lasts, func() { h.awake(h.StartPolluxd)() }
	}},
	{"VM dies", func(w *World, h *Host, d *dice) (int64, func()) {
		for _, s := range w.Services {
			if v := h.vm(s); v != nil {
				v.end("it has crashed")
				h.manager.vmEnded(s)
			}
		}
		return 1000, func() {}
	}},
	{"VM cannot be killed", func(w *World, h *Host, d *dice) (int64, func()) {
		h.unkillable++
		return lasting(d), func() { h.unkillable-- }
	}},
	{"operator moves the VM", func(w *World, h *Host, d *dice) (int64, func()) {
		h.manager.operatorMoves(w.Services[0])
		return 3000, func() {}
	}},
	{"operator stops and starts", func(w *World, h *Host, d *dice) (int64, func()) {
		h.manager.operatorStops(w.Services[0])
		return d.between(500, 15000), func() { w.operatorStarts(w.Services[0]) }
	}},
	{"operator drains a node", func(w *World, h *Host, d *dice) (int64, func()) {
		h.manager.operatorStandby()
		return d.between(500, 20000), func() { w.operatorOnline(h) }
	}},
	{"operator forces", func(w *World, h *Host, d *dice) (int64, func()) {
		h.manager.operatorForces(w.Services[0])
		return 3000, func() {}
	}},
}

// cutOff keeps what h sends (out), or what others send (in), from its peers on a
// lane. The result ends it.
func (w *World) cutOff(l lane, h *Host, out, in, silent bool) func() {
	w.trace("%s: %v: cut, out %v in %v", h.name, l, out, in)
	change := func(by int) {
		for _, o := range w.Hosts {
			if o == h {
				continue
			}
			if out {
				w.net.cut(l, h.id, o.id, by, silent)
			}
			if in {
				w.net.cut(l, o.id, h.id, by, silent)
			}
		}
	}
	change(1)
	return func() {
		w.trace("%s: %v: mended", h.name, l)
		change(-1)
	}
}

// cutArbiter keeps h's questions (out) or the arbiter's answers (in) from arriving.
func (w *World) cutArbiter(h *Host, out, in bool) func() {
	w.trace("%s: arbiter: cut, out %v in %v", h.name, out, in)
	change := func(by int) {
		if out {
			w.net.cut(management, h.id, w.Arbiter.end, by, false)
		}
		if in {
			w.net.cut(management, w.Arbiter.end, h.id, by, false)
		}
	}
	change(1)
	return func() {
		w.trace("%s: arbiter: mended", h.name)
		change(-1)
	}
}
