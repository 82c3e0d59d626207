package ha

import (
	"slices"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// restarted runs the core of a, which an earlier process of this boot has left alone,
// beside b, which is the leader if that is said, and runs web if that is said. It
// returns the orders about addresses, in words.
func restarted(t *testing.T, leader string, seen Seen, target Target) (told []string) {
	t.Helper()
	cfg := testConfig(ArbiterEtcd)
	cfg.Self, cfg.LeaderAddress = "a", true
	cfg.Services[0].Target = target
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	now := Tick(1000)
	var step func(e Event)
	step = func(e Event) {
		for _, o := range slices.Clone(c.Step(now, e)) {
			switch o.Kind {
			case AddIPs, RemoveIPs:
				told = append(told, o.Kind.String()+" "+o.Service)
				step(Event{Kind: OrderDone, Order: o.ID})
			case Renew, Persist:
				step(Event{Kind: OrderDone, Order: o.ID})
			case Observe:
				v := arbiter.View{Leases: []arbiter.Lease{{Node: "a", Session: "s", Alive: true}, {Node: "b", Session: "t", Alive: true}}}
				for _, name := range o.Resources {
					rec := arbiter.Record{Resource: name, Term: 4, Owner: "b", InSync: []string{"a", "b"}, Generation: 16}
					if name == LeaderResource {
						rec.Owner = leader
					}
					v.Records = append(v.Records, rec)
				}
				step(Event{Kind: ArbiterViewed, Order: o.ID, View: v})
			default:
			}
		}
	}
	step(Event{Kind: Started, Session: "s", Boot: "x"})
	step(Event{Kind: StorageChanged, Storage: Storage{
		Resource: "r0", Up: true, Role: Secondary, Connected: true, PeerRole: Primary, Disk: UpToDate, PeerDisk: UpToDate, Generation: 16, Term: 4, Promised: 4,
	}})
	step(Event{Kind: ServiceChanged, Service: "web", Seen: seen})
	for range 100 {
		now += 100
		step(Event{Kind: Ticked})
	}
	return told
}

// Addresses that an earlier polluxha has left on this machine are taken away when they
// are another node's by now, and only then.
func TestAddressesOfAnEarlierProcess(t *testing.T) {
	for _, tt := range []struct {
		name, leader string
		seen         Seen
		target       Target
		want         []string
	}{
		{"a follower by now, the service elsewhere", "b", Seen{Phase: PhaseStopped, Addresses: true}, TargetStarted, []string{"RemoveIPs _leader", "RemoveIPs web"}},
		{"the leader still", "a", Seen{Phase: PhaseStopped}, TargetStarted, []string{"AddIPs _leader"}},
		{"an operator works on it", "b", Seen{Phase: PhaseStopped, Addresses: true}, TargetDisabled, []string{"RemoveIPs _leader"}},
	} {
		got := restarted(t, tt.leader, tt.seen, tt.target)
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
