package ha

import (
	"context"
	"testing"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor"
)

// A sizedVM is a hypervisor that knows how much memory its VM occupies.
type sizedVM struct {
	hypervisor.Hypervisor
	state hypervisor.State
}

func (s *sizedVM) State(context.Context, string) (hypervisor.State, error) { return s.state, nil }

// A guest that has touched little of its memory keeps the rest from other VMs.
func TestUntouchedMemoryIsPromised(t *testing.T) {
	const mib = 1 << 20
	hv := &sizedVM{}
	work := &guestWork{vm: &conf.VM{Name: "web", Memory: 1000 * mib}, hv: hv}
	m := &manager{total: 8000 * mib, available: 3000 * mib, services: map[string]*watcher{"web": {work: work}}}
	for _, tt := range []struct {
		name     string
		phase    hypervisor.Phase
		occupied int64
		want     uint64
	}{
		{"not running", hypervisor.Stopped, 0, 3000},
		{"just started", hypervisor.Running, 100, 2100},
		{"paused", hypervisor.Paused, 600, 2600},
		{"silent", hypervisor.Unknown, 600, 2600},
		{"all in use, and QEMU's own", hypervisor.Running, 1050, 3000},
	} {
		hv.state = hypervisor.State{Phase: tt.phase, MemoryBytes: tt.occupied * mib}
		if _, err := work.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := m.free(); got != tt.want*mib {
			t.Errorf("%s: %d MiB are free, want %d", tt.name, got/mib, tt.want)
		}
	}
	m.available = 200 * mib
	hv.state = hypervisor.State{Phase: hypervisor.Running}
	if _, err := work.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.free(); got != 0 {
		t.Errorf("more is promised than there is: %d bytes are free", got)
	}
}
