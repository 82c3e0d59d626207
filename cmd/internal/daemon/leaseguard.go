package daemon

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/conf"
)

// A leaseGuard does what polluxha would do if it lived: a VM whose node has lost its
// lease, and its peer, must end, because the other node starts it. Its I/O is frozen by
// then, but it is still on the network. Whoever holds the incarnation of such a resource
// is killed: at once if the process that told the lease is gone, else when that has had
// the time to do it itself.
type leaseGuard struct {
	d *Daemon

	mu      sync.Mutex
	manager process       // that told the lease last
	lease   time.Duration // as it was told

	since map[string]time.Time // orphans, and since when; of the guard's goroutine
}

// Our own: how often the guard looks, and what a manager that is alive may take beyond
// the half of its lease.
const (
	guardEvery   = 500 * time.Millisecond
	managerGrace = time.Second
)

// start is a component.
func (g *leaseGuard) start() (stop func(), err error) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(guardEvery)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case now := <-t.C:
				g.look(now)
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}, nil
}

// told notes who tells the lease.
func (g *leaseGuard) told(conn net.Conn, leaseMS uint64) {
	p, err := processOf(export.PeerPID(conn))
	if err != nil {
		return // it is gone already, or comes from another PID namespace: nobody to wait for
	}
	g.mu.Lock()
	g.manager, g.lease = p, time.Duration(leaseMS)*time.Millisecond
	g.mu.Unlock()
}

// grace is how long an orphan's client is left to the manager.
func (g *leaseGuard) grace() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p, err := processOf(g.manager.PID); g.manager.PID == 0 || err != nil || !p.same(g.manager) {
		return 0
	}
	return g.lease/2 + managerGrace
}

// look ends the clients of orphans.
func (g *leaseGuard) look(now time.Time) {
	for _, r := range g.d.sorted() {
		i, eng := r.currentIncarnation(), r.engine()
		if i == nil || eng == nil || r.runningSpec().Manager != conf.ManagerInternal || !eng.Orphan() {
			delete(g.since, r.name)
			continue
		}
		since, known := g.since[r.name]
		if !known {
			since = now
			g.since[r.name] = now
		}
		if now.Sub(since) >= g.grace() {
			i.kill(r.log)
		}
	}
}

// kill ends the process that has the incarnation.
func (i *incarnation) kill(log zerolog.Logger) {
	i.mu.Lock()
	p := i.owner
	i.mu.Unlock()
	if p.PID == 0 || p.PID == unix.Getpid() {
		return
	}
	err := p.kill()
	if errors.Is(err, unix.ESRCH) {
		return // it has ended
	}
	log.Error().Bool("audit", true).Str("incarnation", i.name).Int("pid", p.PID).Str("program", p.Name).AnErr("left", err).
		Msg("polluxha is gone, its lease has ended and the peer is out of reach: the other node may start this VM, so it is killed here")
}

// kill sends SIGKILL to this process, and to no later one of its number.
func (p process) kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	q, err := processOf(p.PID)
	if err != nil || !q.same(p) {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}
