package hatest

import "github.com/pollux-project/pollux/hypervisor/ha"

// modeSeeds is how many of five histories have the modes of newModePlan; newPlan says
// which ones.
const modeSeeds = 2

// everyPair is how many histories have every pair of faults: of those with modes, which
// have all kinds of them.
var everyPair = uint64((len(faults)*len(faults)+roundsEach-1)/roundsEach)*5/modeSeeds + 5

// newModePlan draws a plan for the modes that the others leave out: two hosts that are
// the arbiter together, protocols A and B, several VMs on two hosts.
func newModePlan(seed uint64) *plan {
	d := &dice{mix(seed, 2)}
	p := &plan{cfg: DefaultConfig()}
	c := &p.cfg
	c.Seed = seed
	switch d.pick(8) {
	case 0, 1, 2:
		c.Arbiter, c.SharedPower = ha.ArbiterFence, d.chance(0.3)
	case 3:
		c.Arbiter = ha.ArbiterManual
	case 4:
		c.Arbiter = ha.ArbiterWitness
	}
	switch {
	case d.chance(0.2) && !c.isDuo():
		c.Hosts = 3
		c.Services = []ServiceConfig{{Hosts: [2]int{0, 1}, Resources: 1}, {Hosts: [2]int{1, 2}, Resources: 1}, {Hosts: [2]int{2, 0}, Resources: 1}}
	case d.chance(0.4):
		c.Services = []ServiceConfig{{Hosts: [2]int{0, 1}, Resources: 1}, {Hosts: [2]int{1, 0}, Resources: 1}, {Hosts: [2]int{0, 1}, Resources: 1}}[:2+d.pick(2)]
	case d.chance(0.3):
		c.Services[0].Resources = 2
	}
	switch d.pick(8) {
	case 0, 1:
		c.Protocol, c.MaxLossBytes, c.MaxLossMS = 'A', uint64(2+d.pick(8))*slotSize*512, d.between(200, 3000)
	case 2:
		c.Protocol, c.MaxLossBytes, c.MaxLossMS = 'B', uint64(2+d.pick(8))*slotSize*512, d.between(200, 3000)
	case 3:
		c.Protocol = 'A'
	}
	if d.chance(0.3) {
		c.Timing.TTL, c.Timing.Deadtime, c.Timing.Initdead = 9000, 10000, 20000
	}
	c.Jitter = []int64{0, 20, 300}[d.pick(3)] * millisecond
	k := seed / 5 * modeSeeds
	if seed%5 != 0 {
		k++
	}
	for i := range uint64(roundsEach) {
		a, b := pairOf(k*roundsEach+i, len(faults))
		p.rounds = append(p.rounds, newRound(a, b, d))
	}
	return p
}

// moreFaults are those that only histories with modes have.
var moreFaults = []*fault{
	{"polluxha is upgraded", func(_ *World, h *Host, d *dice) (int64, func()) {
		h.manager.crash() // it leaves everything as it is
		return d.between(50, 1500), func() { h.awake(h.manager.start)() }
	}},
	{"polluxha stands still", func(_ *World, h *Host, d *dice) (int64, func()) {
		ms := lasting(d)
		h.manager.pause(ms)
		return ms, func() {}
	}},
	{"operator kills and starts", func(w *World, h *Host, d *dice) (int64, func()) {
		h.manager.operatorKills(w.Services[0])
		return d.between(500, 15000), func() { w.operatorStarts(w.Services[0]) }
	}},
	{"operator restarts the VM", func(w *World, h *Host, _ *dice) (int64, func()) {
		h.manager.command(ha.Command{Verb: ha.RestartVerb, Service: w.Services[0].name, NoWait: true})
		return 3000, func() {}
	}},
	{"operator switches a host off and says so", func(w *World, h *Host, d *dice) (int64, func()) {
		h.PowerOff(0.5)
		wait := d.between(3000, 20000)
		w.after(wait*millisecond, func() { w.operatorConfirms(h) })
		return wait + lasting(d), h.Boot
	}},
}
