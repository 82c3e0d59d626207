package daemon

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/conf"
)

// victim is a process that has an incarnation.
func victim(t *testing.T) (process, chan struct{}) {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // it is killed
		close(dead)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		<-dead
	})
	p, err := processOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p, dead
}

func isDead(dead chan struct{}, wait time.Duration) bool {
	select {
	case <-dead:
		return true
	case <-time.After(wait): // nothing tells that a process goes on
		return false
	}
}

// guarded is a guard of one resource, whose incarnation a process has.
func guarded(owner process) (*leaseGuard, *fakeEngine) {
	eng := &fakeEngine{}
	d := &Daemon{log: zerolog.Nop(), resources: map[string]*resource{}}
	r := &resource{d: d, name: "intern", eng: eng, running: resourceSpec{Manager: conf.ManagerInternal}}
	r.inc = r.newIncarnation("7-x-1", owner)
	d.resources[r.name] = r
	return &leaseGuard{d: d, since: map[string]time.Time{}}, eng
}

// TestLeaseGuard: polluxha is gone, its lease has ended and the peer is lost: who has
// the incarnation is killed. A manager that lives gets the time to do it itself, and
// nobody is killed while the resource is no orphan.
func TestLeaseGuard(t *testing.T) {
	owner, dead := victim(t)
	g, eng := guarded(owner)
	now := time.Now()

	g.look(now)
	eng.orphan.Store(true)
	self, err := processOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	g.manager, g.lease = self, 6*time.Second
	g.look(now)
	g.look(now.Add(3900 * time.Millisecond))
	if isDead(dead, 100*time.Millisecond) {
		t.Fatal("killed although the manager lives and had time left")
	}
	eng.orphan.Store(false)
	g.look(now.Add(3950 * time.Millisecond))
	eng.orphan.Store(true)
	g.look(now.Add(4100 * time.Millisecond))
	if isDead(dead, 100*time.Millisecond) {
		t.Fatal("the time before the peer was back counts")
	}
	g.manager.Start++ // another process of that number: the manager is gone
	g.look(now.Add(4600 * time.Millisecond))
	if !isDead(dead, 5*time.Second) {
		t.Fatal("it lives, and its manager is gone")
	}
	g.look(now.Add(5100 * time.Millisecond)) // nothing is left to kill
}

// TestLeaseGuardManagerHangs: a manager that does nothing gets no more than its grace.
func TestLeaseGuardManagerHangs(t *testing.T) {
	owner, dead := victim(t)
	g, eng := guarded(owner)
	eng.orphan.Store(true)
	self, err := processOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	g.manager, g.lease = self, 6*time.Second
	now := time.Now()
	g.look(now)
	g.look(now.Add(4 * time.Second))
	if !isDead(dead, 5*time.Second) {
		t.Fatal("it lives")
	}
}

// TestKillSparesOthers: the process that has the number now is another one.
func TestKillSparesOthers(t *testing.T) {
	p, dead := victim(t)
	p.Start++
	(&incarnation{log: zerolog.Nop(), owner: p}).kill(zerolog.Nop())
	if isDead(dead, 100*time.Millisecond) {
		t.Error("a process was killed that had nothing to do with it")
	}
}
