package ha

import (
	"slices"
	"testing"
)

// A cluster is made by one node and grows: whoever has joined must be able to lead
// when that one dies, and the record forgets who has left.
func TestLeaderOfAGrownCluster(t *testing.T) {
	cfg := testConfig(ArbiterEtcd)
	whole := cfg.Nodes
	cfg.Nodes, cfg.Resources, cfg.Services = whole[:1], nil, nil
	w := newWorld(t, testConfig(ArbiterEtcd))
	w.cfg = cfg
	a, b := w.host("a"), w.host("b")
	a.on()
	leads := func(h *host) bool { return h.core != nil && h.core.leader.lead }
	w.until("a leads alone", 10_000, func() bool { return leads(a) })

	w.cfg = testConfig(ArbiterEtcd)
	grown := w.cfg
	grown.Self = "a"
	a.step(Event{Kind: Reconfigured, Config: &grown})
	b.on()
	w.host("w").on()
	w.until("the record names both", 5000, func() bool {
		return slices.Equal(w.arb.records[LeaderResource].InSync, []string{"a", "b"})
	})
	if !leads(a) {
		t.Error("a is the leader no more")
	}
	term := w.arb.records[LeaderResource].Term
	w.run(20_000)
	if now := w.arb.records[LeaderResource].Term; now != term {
		t.Errorf("term %d became %d while nothing happened", term, now)
	}
	a.off()
	w.until("b leads", 15_000, func() bool { return leads(b) })
}

// Who takes the lead does not wait for the record to be right: it may name a node
// that has left, or not yet name one that has joined.
func TestLeadershipOfAnOldRecord(t *testing.T) {
	w := started(t, testConfig(ArbiterEtcd))
	a, b := w.host("a"), w.host("b")
	w.until("a leads", 10_000, func() bool { return a.core.leader.lead })
	a.off()
	cfg := testConfig(ArbiterEtcd)
	cfg.Self, cfg.Nodes = "b", append(cfg.Nodes, Node{Name: "c"})
	b.step(Event{Kind: Reconfigured, Config: &cfg})
	w.until("b leads, and the record names c as well", 15_000, func() bool {
		return b.core.leader.lead && w.arb.records[LeaderResource].Counts("c")
	})
}

// A polluxha that died leaves the leader's address behind. The next one takes it away
// if another node leads by then, and leaves it alone if this one still does.
func TestLeaderAddressThatWasLeft(t *testing.T) {
	cfg := testConfig(ArbiterEtcd)
	cfg.LeaderAddress = true
	for _, tt := range []struct {
		name   string
		dead   Tick
		leader string
	}{
		{"another one leads", 20_000, "b"},
		{"it leads again", 500, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := started(t, cfg)
			a, b := w.host("a"), w.host("b")
			w.until("a has the address", 10_000, func() bool { return a.leaderIP && !b.leaderIP })
			a.killHA()
			w.run(tt.dead)
			a.startHA()
			for range 200 {
				w.run(100)
				if tt.leader == "a" && !a.leaderIP {
					t.Fatal("the leader's address went away for a while")
				}
			}
			if a.leaderIP != (tt.leader == "a") || b.leaderIP != (tt.leader == "b") {
				t.Errorf("on a %v, on b %v, want it on %s only", a.leaderIP, b.leaderIP, tt.leader)
			}
		})
	}
}
