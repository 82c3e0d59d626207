package ha

import (
	"flag"
	"fmt"
	"math/rand/v2"
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
	w := started(t, testConfig(ArbiterEtcd))
	links := [][2]string{{"a", "b"}, {"a", "W"}, {"b", "W"}, {"a", "w"}, {"b", "w"}}
	for range 4 + rng.IntN(12) {
		h := w.hosts[rng.IntN(2)]
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
			if h.runs() && h.vms["web"].running {
				h.endVM("web")
			}
		case 10:
			verb := []Verb{MoveVerb, StopVerb, StartVerb, RestartVerb, StartVerb}[rng.IntN(5)]
			h.step(Event{Kind: Commanded, Command: Command{ID: 9, Verb: verb, Service: "web"}})
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
	for _, h := range w.hosts[:2] {
		h.step(Event{Kind: Commanded, Command: Command{ID: 10, Verb: OnlineVerb, Node: h.name}})
	}
	w.run(3000)
	w.hosts[0].step(Event{Kind: Commanded, Command: Command{ID: 11, Verb: StartVerb, Service: "web"}})
	w.until("web runs", 180000, func() bool { return w.runsOn("web") != "" })
	w.until("both copies count", 60000, func() bool { return len(w.arb.records["r0"].InSync) == 2 })
	w.run(30000)
	if w.runsOn("web") == "" {
		t.Errorf("it does not stay up\n%s", w.describe())
	}
	for _, h := range w.hosts {
		if a := h.alarms(); a != "" {
			t.Errorf("%s: alarms that stand: %s", h.name, a)
		}
	}
}
