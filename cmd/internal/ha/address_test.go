package ha

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha"
)

// A takenWork has an address that somebody else on the network answers for.
type takenWork struct {
	noWork
	asked, started int
}

func (w *takenWork) addressesFree(context.Context) error {
	w.asked++
	return errors.New("address 192.0.2.10: already in use on the network: 02:00:00:00:00:0b answers for it on eth0")
}

func (w *takenWork) start(_ context.Context, incarnation string) error {
	w.started++
	return w.set(incarnation)
}

// No start takes an address from somebody who has it, unless he is the owner that was
// deposed.
func TestAddressInUse(t *testing.T) {
	for _, deposed := range []bool{false, true} {
		m := performer(t, t.TempDir(), &slowStorage{})
		work := &takenWork{}
		w := &watcher{m: m, vm: m.conf.vm("web"), work: work, wake: make(chan struct{}, 1), life: &life{}}
		err := w.perform(t.Context(), ha.Order{Kind: ha.StartService, Service: "web", Incarnation: "1", Deposed: deposed}, 0)
		if deposed && (err != nil || work.asked != 0 || work.started != 1) {
			t.Errorf("after a deposed owner: %v, asked %d times, started %d times", err, work.asked, work.started)
		}
		if !deposed && (err == nil || !strings.Contains(err.Error(), "already in use") || work.started != 0) {
			t.Errorf("in use: %v, started %d times", err, work.started)
		}
	}
}
