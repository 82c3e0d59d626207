package ha

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
)

// slowWork is a VM whose start takes until it is let go on.
type slowWork struct {
	mu      sync.Mutex
	runs    bool
	starts  int
	begun   chan struct{} // a start has begun
	goOn    chan struct{} // lets it end
	removed chan struct{} // lets the removal of addresses end
}

func (w *slowWork) check(context.Context) error { return nil }

func (w *slowWork) start(context.Context, string) error {
	w.begun <- struct{}{}
	<-w.goOn // a hypervisor that does not hear that it is to give up
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs = true
	w.starts++
	return nil
}

func (w *slowWork) stop(ctx context.Context) error { return w.kill(ctx) }

func (w *slowWork) kill(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs = false
	return nil
}

func (w *slowWork) look(context.Context) (ha.Seen, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.runs {
		return ha.Seen{Phase: ha.PhaseRunning}, nil
	}
	return ha.Seen{Phase: ha.PhaseStopped}, nil
}

func (w *slowWork) watch(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}

func (w *slowWork) probe(context.Context) error         { return nil }
func (w *slowWork) addressesFree(context.Context) error { return nil }
func (w *slowWork) addIPs(context.Context) error        { return nil }

func (w *slowWork) untouched() uint64 { return 0 }
func (w *slowWork) removeIPs(context.Context) error {
	<-w.removed
	return nil
}

func (w *slowWork) isRunning() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runs
}

// killer is a performer with one VM, web, that is given orders by the test.
func killer(t *testing.T, dir string) (*manager, *slowWork) {
	t.Helper()
	m := performer(t, dir, &slowStorage{})
	w := &slowWork{begun: make(chan struct{}, 10), goOn: make(chan struct{}, 10), removed: make(chan struct{}, 10)}
	m.watchdog = &watchdog{}
	m.work = func(*conf.VM) workload { return w }
	m.watchServices()
	if m.services["web"] == nil {
		t.Fatal("nobody looks after the VM")
	}
	return m, w
}

// What was to be started before it is killed does not start after it, whatever the
// start waits for.
func TestKillOvertakesStart(t *testing.T) {
	start := ha.Order{Kind: ha.StartService, ID: 12, Service: "web", Incarnation: "1-s-1"}
	kill := ha.Order{Kind: ha.KillService, ID: 13, Service: "web"}
	for _, tt := range []struct {
		name string
		free bool // a start ends as soon as it has begun
		run  func(t *testing.T, m *manager, w *slowWork)
	}{
		{"it waits for a disk", true, func(t *testing.T, m *manager, w *slowWork) {
			m.dispatch(ha.Order{Kind: ha.Persist, ID: 11, Saved: ha.Saved{Boot: "b"}}, 7)
			m.dispatch(start, 8)
			m.dispatch(kill, 9)
		}},
		{"it waits for another order", true, func(t *testing.T, m *manager, w *slowWork) {
			m.dispatch(ha.Order{Kind: ha.RemoveIPs, ID: 11, Service: "web"}, 7)
			m.dispatch(start, 8)
			m.dispatch(kill, 9)
			synctest.Wait() // the kill is done
			w.removed <- struct{}{}
		}},
		{"its file has changed meanwhile", false, func(t *testing.T, m *manager, w *slowWork) {
			m.dispatch(start, 8)
			<-w.begun
			old := m.services["web"]
			c := *m.conf
			v := *c.vms[0]
			v.VCPUs++
			c.vms = []*conf.VM{&v}
			m.conf = &c
			m.watchServices()
			if m.services["web"] == old {
				t.Fatal("the same watcher: the test proves nothing")
			}
			m.dispatch(kill, 9)
			synctest.Wait() // the first attempt finds nothing
			w.goOn <- struct{}{}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				m, w := killer(t, dir)
				if tt.free {
					w.goOn <- struct{}{}
				}
				tt.run(t, m, w)
				for range 3 {
					synctest.Wait()
					m.serve()
				}
				if w.isRunning() {
					t.Error("the VM runs, after it was killed")
				}
			})
		})
	}
}

// Orders that wait for one Persist after the other keep their turn, and fail with their own.
func TestHeldOrdersKeepTheirTurn(t *testing.T) {
	for _, canWrite := range []bool{true, false} {
		dir := filepath.Join(t.TempDir(), "state")
		if canWrite {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		m := performer(t, dir, &slowStorage{})
		m.dispatch(ha.Order{Kind: ha.Persist, ID: 1, Saved: ha.Saved{Boot: "b"}}, 7)
		m.dispatch(ha.Order{Kind: ha.Promote, ID: 2, Resource: "web", Term: 3}, 7)
		m.dispatch(ha.Order{Kind: ha.Demote, ID: 3, Resource: "web"}, 8)
		m.dispatch(ha.Order{Kind: ha.Persist, ID: 4, Saved: ha.Saved{Boot: "c"}}, 9)
		m.dispatch(ha.Order{Kind: ha.Unexport, ID: 5, Resource: "web"}, 9)
		m.dispatch(ha.Order{Kind: ha.Demote, ID: 6, Resource: "web"}, 10)
		m.serve()
		want := []string{"primary web", "secondary web", "unexport web", "secondary web"}
		if !canWrite { // neither what depends on the first, nor on the second
			want = []string{"secondary web", "secondary web"}
		}
		if told := m.storage.(*slowStorage).all(); !slices.Equal(told, want) {
			t.Errorf("can write %v: polluxd was told %v, want %v", canWrite, told, want)
		}
		if len(m.held) > 0 || m.persist != 0 {
			t.Errorf("%d orders are left, step %d", len(m.held), m.persist)
		}
	}
}
