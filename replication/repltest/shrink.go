package repltest

import (
	"fmt"
	"reflect"
	"strings"
)

// maxShrinkRuns bounds what the search for a smaller script costs: some seconds.
const maxShrinkRuns = 1200

// A part of a plan can be left out by itself: a trouble, a request, or what a
// feature has chosen.
type part struct {
	round, node, request int // request -1: the trouble of the round
	feature              int // round -1: what this feature has chosen
}

// parts lists what may be left out, in the order in which it happens.
func (p *plan) parts() (list []part) {
	for i := range features {
		if i > 0 && features[i].choose != nil && p.chosen[i] { // the first one has the sizes, which requests depend on
			list = append(list, part{round: -1, feature: i})
		}
	}
	for i := range p.rounds {
		list = append(list, part{round: i, request: -1})
		for node, requests := range p.rounds[i].requests {
			for k := range requests {
				list = append(list, part{round: i, node: node, request: k})
			}
		}
	}
	return list
}

// only is p with these of its parts. Times and what the parts draw stay.
func (p *plan) only(parts []part) *plan {
	small := &plan{seed: p.seed, first: p.first, rounds: make([]round, len(p.rounds)), chosen: make([]bool, len(features))}
	small.chosen[0] = true
	for i := range p.rounds {
		r := p.rounds[i]
		r.trouble, r.requests = nil, [2][]Request{}
		small.rounds[i] = r
	}
	for _, x := range parts {
		switch {
		case x.round < 0:
			small.chosen[x.feature] = true
		case x.request < 0:
			small.rounds[x.round].trouble = p.rounds[x.round].trouble
		default:
			r := &small.rounds[x.round]
			r.requests[x.node] = append(r.requests[x.node], p.rounds[x.round].requests[x.node][x.request])
		}
	}
	small.cfg = chooseConfig(p.seed, small.chosen)
	small.cfg.Volumes, small.cfg.Sectors = p.cfg.Volumes, p.cfg.Sectors // what requests may reach
	return small
}

// shrink looks for as few parts of p as possible with which it still fails as
// it does: it leaves out ever smaller pieces (delta debugging). run says how a
// plan fails, nil if it doesn't.
func shrink(p *plan, run func(*plan) error) (*plan, int) {
	want := kindOf(run(p))
	runs := 1
	fails := func(parts []part) bool {
		runs++
		return runs <= maxShrinkRuns && kindOf(run(p.only(parts))) == want
	}
	parts := p.parts()
	for size := (len(parts) + 1) / 2; size > 0 && runs < maxShrinkRuns; {
		smaller := false
		for end := len(parts); end > 0; end -= size { // from the end: what is late matters least
			begin := max(end-size, 0)
			rest := append(append([]part{}, parts[:begin]...), parts[end:]...)
			if fails(rest) {
				parts, smaller = rest, true
			}
		}
		if !smaller || size > 1 {
			size /= 2
		}
	}
	return p.only(parts), runs
}

// kindOf is a failure without its numbers and names: two of one kind are taken
// for the same.
func kindOf(err error) string {
	if err == nil {
		return ""
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	_, text, _ := strings.Cut(line, ": ") // the time
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, strings.NewReplacer("a/", "", "b/", "", "a:", "", "b:", "", "node a", "node", "node b", "node").Replace(text))
}

// String is the plan as a script for people.
func (p *plan) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "  configuration: %s\n", configText(p.cfg))
	force := ""
	if !p.cfg.Synced {
		force = " by force"
	}
	fmt.Fprintf(&s, "  at 0 ms: both nodes start; at 200 ms: %s is promoted%s\n", nodeName(p.first), force)
	at := int64(200)
	for i := range p.rounds {
		r := &p.rounds[i]
		at += r.wait
		if r.trouble == nil && len(r.requests[0]) == 0 && len(r.requests[1]) == 0 {
			continue
		}
		fmt.Fprintf(&s, "  at %d ms:", at)
		if r.trouble != nil {
			fmt.Fprintf(&s, " %s (%s)", r.trouble.name, nodeName(r.node))
		}
		for node := range r.requests {
			for _, q := range r.requests[node] {
				fmt.Fprintf(&s, "\n      client of %s: %s", nodeName(node), q.text())
			}
		}
		s.WriteByte('\n')
	}
	fmt.Fprintf(&s, "  at %d ms: everything is healed", at+300)
	return s.String()
}

func nodeName(i int) string { return string(rune('a' + i)) }

// configText names what is not as DefaultConfig has it.
func configText(c Config) string {
	var parts []string
	diff("", reflect.ValueOf(DefaultConfig()), reflect.ValueOf(c), &parts)
	return strings.Join(parts, " ")
}

func diff(name string, x, y reflect.Value, parts *[]string) {
	switch {
	case x.Kind() == reflect.Struct:
		for i := range x.NumField() {
			diff(name+"."+x.Type().Field(i).Name, x.Field(i), y.Field(i), parts)
		}
	case x.Kind() == reflect.Array && x.Type().Elem().Kind() == reflect.Struct:
		for i := range x.Len() {
			diff(fmt.Sprintf("%s[%s]", name, nodeName(i)), x.Index(i), y.Index(i), parts)
		}
	case !x.Equal(y):
		text := fmt.Sprint(y)
		if y.Kind() == reflect.Uint8 && y.Uint() >= 'A' {
			text = string(rune(y.Uint()))
		}
		*parts = append(*parts, fmt.Sprintf("%s=%s", strings.TrimPrefix(name, "."), text))
	}
}
