package ha

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	histories = flag.Int("histories", 150, "how many random histories TestHistories plays")
	history   = flag.Int("history", -1, "the one history to play")
)

// TestHistories plays random faults, several at a time, and ends them: then the
// service has to run again, once, with all that was acknowledged.
func TestHistories(t *testing.T) {
	for seed := range *histories {
		if *history >= 0 {
			seed = *history
		}
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { playHistory(t, seed) })
		if *history >= 0 {
			break
		}
	}
}

func playHistory(t *testing.T, seed int) {
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	cfg := testConfig(ArbiterEtcd)
	switch seed % 4 {
	case 1:
		cfg = withTwo(cfg)
	case 2:
		cfg = withThree(cfg)
	case 3:
		cfg = testConfig(ArbiterFence)
	}
	w := started(t, cfg)
	pick := func() string { return cfg.Services[rng.IntN(len(cfg.Services))].Name }
	data := len(w.hosts) - 1
	links := [][2]string{{"a", "b"}, {"a", "W"}, {"b", "W"}, {"a", "w"}, {"b", "w"}}
	for range 4 + rng.IntN(12) {
		h := w.hosts[rng.IntN(data)]
		switch rng.IntN(13) {
		case 0, 1:
			if h.alive {
				h.off()
			}
		case 2, 3:
			if !h.alive {
				h.on()
			}
		case 4, 5:
			l := links[rng.IntN(len(links))]
			w.setLink(l[0], l[1], !w.linked(l[0], l[1]))
		case 6:
			w.arb.up = !w.arb.up
		case 7:
			if h.alive && !h.asleep {
				h.sleep()
				at := h.boot
				w.after(Tick(rng.IntN(40000)), func() {
					if h.boot == at && h.asleep {
						h.wake()
					}
				})
			}
		case 8:
			if h.alive && h.ha && !h.asleep {
				h.killHA()
				at := h.boot
				w.after(Tick(rng.IntN(5000)), func() {
					if h.alive && h.boot == at && !h.ha {
						h.startHA()
					}
				})
			}
		case 9:
			if name := pick(); h.runs() && h.vms[name] != nil && h.vms[name].running {
				h.endVM(name)
			}
		case 10:
			verb := []Verb{MoveVerb, StopVerb, StartVerb, RestartVerb, StartVerb}[rng.IntN(5)]
			h.step(Event{Kind: Commanded, Command: Command{ID: 9, Verb: verb, Service: pick()}})
		case 11:
			for _, l := range links {
				w.setLink(l[0], l[1], true)
			}
			w.arb.up = true
		case 12:
			verb := []Verb{StandbyVerb, OnlineVerb, EvacuateVerb}[rng.IntN(3)]
			h.step(Event{Kind: Commanded, Command: Command{ID: 9, Verb: verb, Node: h.name}})
		}
		w.run(Tick(rng.IntN([]int{100, 2000, 20000}[rng.IntN(3)])))
	}
	w.tracef("all is well again")
	for _, l := range links {
		w.setLink(l[0], l[1], true)
	}
	w.arb.up = true
	for _, h := range w.hosts {
		if h.asleep {
			h.wake()
		}
		if !h.alive {
			h.on()
		} else if !h.ha {
			h.startHA()
		}
	}
	w.run(3000) // the managers have heard of each other
	for _, h := range w.hosts {
		h.step(Event{Kind: Commanded, Command: Command{ID: 10, Verb: OnlineVerb, Node: h.name}})
	}
	w.run(3000)
	for _, s := range cfg.Services {
		w.hosts[0].step(Event{Kind: Commanded, Command: Command{ID: 11, Verb: StartVerb, Service: s.Name}})
	}
	all := func() bool {
		for _, s := range cfg.Services {
			if w.runsOn(s.Name) == "" {
				return false
			}
		}
		return true
	}
	w.until("all run", 180000, all)
	for _, h := range w.hosts {
		if !h.alive { // a shot that was under way
			h.on()
		}
	}
	w.until("both copies count", 60000, func() bool {
		for _, r := range cfg.Resources {
			for _, h := range w.hosts {
				if slices.Contains(r.Nodes[:], h.name) && len(h.arb.record(r.Name).InSync) != 2 {
					return false
				}
			}
		}
		return true
	})
	w.run(30000)
	if !all() {
		t.Errorf("it does not stay up\n%s", w.describe())
	}
	for _, h := range w.hosts {
		if a := h.alarms(); a != "" {
			t.Errorf("%s: alarms that stand: %s", h.name, a)
		}
	}
}

// withThree has three data nodes, and a service for each pair of them.
func withThree(cfg Config) Config {
	cfg.Nodes = []Node{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "w", Witness: true}}
	cfg.Resources = append(slices.Clone(cfg.Resources), Resource{Name: "r1", Nodes: [2]string{"b", "c"}, Protocol: "C"}, Resource{Name: "r2", Nodes: [2]string{"a", "c"}, Protocol: "C"})
	for i, name := range []string{"db", "mail"} {
		s := cfg.Services[0]
		s.Name, s.Resources, s.Prefer = name, []string{fmt.Sprint("r", i+1)}, nil
		cfg.Services = append(slices.Clone(cfg.Services), s)
	}
	return cfg
}
