package hatest

import (
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

// A plan is what a history is about: the configuration, and rounds of two faults
// at a time. Each draws from a seed of its own.
type plan struct {
	cfg    Config
	rounds []round
}

// A round is two faults, the second while the first one lasts. Then everything is
// mended, and every VM has to run again.
type round struct {
	wait   int64 // ms before it
	faults []injection
}

// An injection is one fault of a round.
type injection struct {
	kind  int   // of faults
	role  int   // whom it befalls: 0 the host where the VM runs, 1 the other one
	delay int64 // ms after the one before
	seed  uint64
}

// roundsEach is how many rounds a history has.
const roundsEach = 3

// newPlan draws a plan. The pairs of faults are dealt out in order, so that some
// hundred histories have each pair; all else is chance.
func newPlan(seed uint64) *plan {
	if seed%5 == 0 || seed%5 == 3 {
		return newModePlan(seed)
	}
	d := &dice{mix(seed, 1)}
	p := &plan{cfg: DefaultConfig()}
	c := &p.cfg
	c.Seed = seed
	if d.chance(0.12) {
		c.Hosts = 3
		c.Services = []ServiceConfig{{Hosts: [2]int{0, 1}, Resources: 1}, {Hosts: [2]int{1, 2}, Resources: 1}, {Hosts: [2]int{2, 0}, Resources: 1}}
	} else if d.chance(0.25) {
		c.Services[0].Resources = 2
	}
	if d.chance(0.2) {
		c.Arbiter = ha.ArbiterWitness
	}
	if d.chance(0.3) {
		c.Timing.TTL, c.Timing.Deadtime, c.Timing.Initdead = 9000, 10000, 20000
	}
	c.Jitter = []int64{0, 20, 300}[d.pick(3)] * millisecond
	for i := range uint64(roundsEach) {
		a, b := pairOf(seed*roundsEach+i, common)
		p.rounds = append(p.rounds, newRound(a, b, d))
	}
	c.Failsafe = d.chance(0.3)
	return p
}

func newRound(a, b int, d *dice) round {
	r := round{wait: d.between(100, 6000)}
	r.faults = []injection{
		{kind: a, role: d.pick(2), seed: d.next()},
		{kind: b, role: d.pick(2), delay: d.between(0, 1+[]int64{100, 2000, 7000}[d.pick(3)]), seed: d.next()},
	}
	return r
}

// pairOf deals out all ordered pairs of the first n faults.
func pairOf(k uint64, n int) (a, b int) {
	k %= uint64(n * n)
	m := uint64(n)
	return int(k / m), int((k%m + k/m) % m)
}

// only is p without one injection.
func (p *plan) without(r, k int) *plan {
	small := &plan{cfg: p.cfg}
	for i, o := range p.rounds {
		if i == r {
			o.faults = append(append([]injection{}, o.faults[:k]...), o.faults[k+1:]...)
		}
		small.rounds = append(small.rounds, o)
	}
	return small
}

// before is p with its first rounds only.
func (p *plan) before(r int) *plan { return &plan{cfg: p.cfg, rounds: p.rounds[:r]} }

// shrink leaves out what is not needed to fail in the same way.
func shrink(p *plan, run func(*plan) error) *plan {
	want := kindOf(run(p))
	fails := func(small *plan) bool { return kindOf(run(small)) == want }
	for r := 1; r < len(p.rounds); r++ {
		if small := p.before(r); fails(small) {
			p = small
			break
		}
	}
	for r := range p.rounds {
		for k := len(p.rounds[r].faults) - 1; k >= 0; k-- {
			if small := p.without(r, k); fails(small) {
				p = small
			}
		}
	}
	return p
}

// kindOf is a failure without its numbers: two of one kind are taken for the same.
func kindOf(err error) string {
	if err == nil {
		return ""
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	_, text, _ := strings.Cut(line, ": ") // the time
	words := strings.FieldsFunc(text, func(r rune) bool { return r >= '0' && r <= '9' || strings.ContainsRune("abc:# ", r) })
	return strings.Join(words, " ")
}

// String is the plan for people.
func (p *plan) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "  %d hosts, %d VMs with %d disks, arbiter %s, ttl %d ms, jitter %d ms, failsafe %v", p.cfg.Hosts, len(p.cfg.Services), p.cfg.Services[0].Resources, p.cfg.Arbiter, p.cfg.Timing.TTL, p.cfg.Jitter/millisecond, p.cfg.Failsafe)
	if p.cfg.weak() {
		fmt.Fprintf(&s, ", protocol %c, losing %d bytes or %d ms at most", p.cfg.Protocol, p.cfg.MaxLossBytes, p.cfg.MaxLossMS)
	}
	s.WriteByte('\n')
	for i, r := range p.rounds {
		fmt.Fprintf(&s, "  round %d, after %d ms:", i+1, r.wait)
		for _, f := range r.faults {
			fmt.Fprintf(&s, " %q (role %d, %d ms later)", faults[f.kind].name, f.role, f.delay)
		}
		s.WriteByte('\n')
	}
	return s.String()
}
