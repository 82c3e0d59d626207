// Package daemon is polluxd: one process per node that runs all of the node's
// resources, serves their volumes over NBD, and obeys polluxadm on a unix
// socket.
//
//	os.Exit(daemon.Main(os.Args[1:], os.Stderr))
//
// components.go has the order in which things start; they stop in reverse.
// A resource that can't come up is reported by status and harms no other.
package daemon

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A Daemon is the state of polluxd between start and stop. Safe for
// concurrent use.
type Daemon struct {
	log       zerolog.Logger
	pid       int
	bootID    string
	nbd       *export.Server
	listening []string // NBD listeners, as status shows them
	devices   *deviceMaker
	hub       hub
	guard     leaseGuard
	syncOrder syncOrder
	newEngine func(spec resourceSpec, log zerolog.Logger) (engineAPI, error)

	reloading sync.Mutex  // one reader of the configuration at a time
	retuning  atomic.Bool // retuneMemory will look at all resources soon

	mu        sync.Mutex   // guards what follows
	settings  *conf.Daemon // never changed, only replaced
	files     []string     // resource files
	resources map[string]*resource
}

// statusChanged is called by engines, from any goroutine.
func (d *Daemon) statusChanged(r *resource) {
	d.hub.changed(r.name)
	r.roleMayHaveChanged()
	d.syncOrder.check(d)
}

// resource returns the resource of that name, or nil.
func (d *Daemon) resource(name string) *resource {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.resources[name]
}

// sorted returns all resources by name.
func (d *Daemon) sorted() []*resource {
	d.mu.Lock()
	defer d.mu.Unlock()
	rs := make([]*resource, 0, len(d.resources))
	for _, r := range d.resources {
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b *resource) int { return strings.Compare(a.name, b.name) })
	return rs
}

func (d *Daemon) currentSettings() *conf.Daemon {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings
}

// startResources brings all resources up, side by side: one that has to wait
// for its disk holds up no other.
func (d *Daemon) startResources() {
	var wg sync.WaitGroup
	for _, r := range d.sorted() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r.admin.Lock()
			defer r.admin.Unlock()
			_ = r.up() // logged there, and status says why
		}()
	}
	wg.Wait()
}

// stopResources ends all resources without changing any durable state.
func (d *Daemon) stopResources() {
	var wg sync.WaitGroup
	for _, r := range d.sorted() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r.close()
		}()
	}
	wg.Wait()
}

// summary is the one line that systemctl status shows.
func (d *Daemon) summary() string {
	up, failed := 0, []string{}
	rs := d.sorted()
	for _, r := range rs {
		r.mu.Lock()
		switch r.state {
		case adm.StateUp:
			up++
		case adm.StateFailed:
			failed = append(failed, r.name)
		}
		r.mu.Unlock()
	}
	s := fmt.Sprintf("%d of %d resources are up", up, len(rs))
	if len(failed) > 0 {
		s += "; failed: " + strings.Join(failed, ", ")
	}
	return s
}

// retuneTime is how much later the collector may hear of a resource (our own): at
// the start of hundreds it then hears of them together.
const retuneTime = 100 * time.Millisecond

// retuneMemory adapts the garbage collector, soon, to the resources that are up.
func (d *Daemon) retuneMemory() {
	if d.retuning.Swap(true) {
		return
	}
	time.AfterFunc(retuneTime, func() {
		d.retuning.Store(false)
		resources, bytes := 0, uint64(0)
		for _, r := range d.sorted() {
			if eng := r.engine(); eng != nil {
				resources++
				for _, v := range eng.Status().Volumes {
					bytes += v.SizeBytes
				}
			}
		}
		tuneMemory(resources, bytes)
	})
}
