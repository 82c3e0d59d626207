package ha

import (
	"fmt"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// idleCore has n services running in good order.
func idleCore(t testing.TB, n int) *Core {
	cfg := testConfig(ArbiterEtcd)
	cfg.Self = "a"
	one, res := cfg.Services[0], cfg.Resources[0]
	cfg.Services, cfg.Resources = nil, nil
	for i := range n {
		one.Name, res.Name = fmt.Sprint("vm", i), fmt.Sprint("r", i)
		one.Resources = []string{res.Name}
		cfg.Services, cfg.Resources = append(cfg.Services, one), append(cfg.Resources, res)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	view := arbiter.View{Leases: []arbiter.Lease{{Node: "a", Session: "s", Alive: true}, {Node: "b", Session: "t", Alive: true}}}
	c.Step(1, Event{Kind: Started, Session: "s", Boot: "x", Saved: Saved{Boot: "x"}})
	var observe, renew OrderID
	note := func(orders []Order) {
		for _, o := range orders {
			switch o.Kind {
			case Observe:
				observe = o.ID
			case Renew:
				renew = o.ID
			default:
			}
		}
	}
	note(c.Step(2, Event{Kind: Ticked}))
	beat := Beat{Session: "t", Seq: 1, Arbiter: true}
	for i := range n {
		name := fmt.Sprint("r", i)
		rec := arbiter.Record{Resource: name, Term: 5, Owner: "a", InSync: []string{"a", "b"}, Generation: 2}
		view.Records = append(view.Records, rec)
		c.Step(3, Event{Kind: StorageChanged, Storage: Storage{
			Resource: name, Up: true, Role: Primary, PeerRole: Secondary, Connected: true, Disk: UpToDate,
			PeerDisk: UpToDate, Generation: 2, Term: 5, Promised: 5, Owned: true, Incarnation: "5-s-1",
		}})
		c.Step(3, Event{Kind: ServiceChanged, Service: fmt.Sprint("vm", i), Seen: Seen{Phase: PhaseRunning, Incarnation: "5-s-1", Addresses: true}})
		beat.Services = append(beat.Services, ServiceBeat{Name: fmt.Sprint("vm", i), Hash: "1", State: StateStopped, Ready: true})
		beat.Copies = append(beat.Copies, Copy{Resource: name, Role: Secondary, Connected: true, Disk: UpToDate, Generation: 2, Promised: 5, Record: rec})
	}
	c.Step(4, Event{Kind: Heartbeat, Node: "b", Beat: beat})
	view.Records = append(view.Records, arbiter.Record{Resource: LeaderResource, Term: 1, Owner: "b"})
	c.Step(5, Event{Kind: OrderDone, Order: renew})
	c.Step(6, Event{Kind: ArbiterViewed, Order: observe, View: view})
	for i := range n {
		if s := c.services[i]; s.want != wantUp || s.state != StateRunning {
			t.Fatalf("%s: %v %s: %s", s.name, s.want, s.state, s.why.text)
		}
	}
	return c
}

// BenchmarkIdleSecond is what a second costs in which nothing happens to 200
// services: ten ticks, a heartbeat of each of two nodes, a look at the arbiter.
func BenchmarkIdleSecond(b *testing.B) {
	c := idleCore(b, 200)
	now := Tick(1000)
	peer := c.node("b").beat
	b.ReportAllocs()
	for b.Loop() {
		for range 10 {
			now += 100
			var answers []Event
			for _, o := range c.Step(now, Event{Kind: Ticked}) {
				switch o.Kind {
				case Renew:
					answers = append(answers, Event{Kind: OrderDone, Order: o.ID})
				case Observe:
					v := arbiter.View{Leases: []arbiter.Lease{{Node: "a", Session: "s", Alive: true}, {Node: "b", Session: "t", Alive: true}}}
					for _, r := range c.resources {
						v.Records = append(v.Records, r.rec)
					}
					answers = append(answers, Event{Kind: ArbiterViewed, Order: o.ID, View: v})
				default:
				}
			}
			for _, e := range answers {
				c.Step(now, e)
			}
		}
		c.Step(now, Event{Kind: Heartbeat, Node: "b", Beat: peer})
	}
}

// TestIdle: 200 services to which nothing happens cost next to nothing, and bring
// forth no orders but those of the lease.
func TestIdle(t *testing.T) {
	c := idleCore(t, 200)
	now := Tick(1000)
	for range 100 { // settle
		now += 100
		c.Step(now, Event{Kind: Ticked})
	}
	peer := c.node("b").beat
	allocs := testing.AllocsPerRun(50, func() {
		now += 100
		for _, o := range c.Step(now, Event{Kind: Ticked}) {
			switch o.Kind {
			case Renew, Observe, TellLease, Note:
			default:
				t.Errorf("order %v", o.Kind)
			}
		}
		c.Step(now, Event{Kind: Heartbeat, Node: "b", Beat: peer})
	})
	if allocs > 60 {
		t.Errorf("%v allocations for a tick", allocs)
	}
}
