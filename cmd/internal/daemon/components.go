package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
)

// drainTimeout is how long the stop waits for NBD requests that are under way.
const drainTimeout = 10 * time.Second

// A component is a part of the daemon that is started and stopped.
type component struct {
	name  string
	start func() (stop func(), err error)
}

// components lists the parts in the order in which they start; they stop in
// reverse. What comes later may use what came before.
//
//  1. state directory   claimed: one polluxd per directory
//  2. commands          polluxadm is answered from here on, so that status
//     shows a resource that is slow to start
//  3. NBD server        listening; has no exports yet
//  4. resources         attached, exported, connecting
//  5. lease guard       ends VMs that nobody cares for any more
//  6. metrics           for Prometheus, if [metrics] says where
//  7. NBD clients       nothing to start; see below
//  8. block devices     of resources that are Primary (attach-device)
//
// On the way down the block devices go first, then the clients' requests are
// drained, then each resource writes its metadata: so no acknowledged write
// is left in a buffer. A Primary is demoted on disk, and its role remembered
// for the next start in the same boot (failover: a former Primary).
func (d *Daemon) components(s *conf.Daemon) []component {
	return []component{
		{"state directory", func() (func(), error) { return service.LockStateDir(s.StateDir, "polluxd") }},
		{"commands", func() (func(), error) {
			l, err := listenAdmin(s.ControlSocket)
			if err != nil {
				return nil, err
			}
			return newAdminServer(d, l).close, nil
		}},
		{"NBD server", func() (func(), error) { return d.startNBD(s) }},
		{"resources", func() (func(), error) {
			d.startResources()
			return d.stopResources, nil
		}},
		{"lease guard", d.guard.start},
		{"metrics", func() (func(), error) { return d.startMetrics(s.Metrics) }},
		{"NBD clients", func() (func(), error) { return d.drainNBD, nil }},
		{"block devices", func() (func(), error) { return d.devices.stop, nil }},
	}
}

// startAll starts the components. If one fails, those before it are stopped.
func startAll(cs []component, log zerolog.Logger) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for i := len(stops) - 1; i >= 0; i-- {
			stops[i]()
		}
	}
	for _, c := range cs {
		s, err := c.start()
		if err != nil {
			stop()
			return nil, err
		}
		stops = append(stops, s)
		log.Debug().Str("component", c.name).Msg("started")
	}
	return stop, nil
}

// startNBD opens the listeners of the settings.
func (d *Daemon) startNBD(s *conf.Daemon) (stop func(), err error) {
	for _, l := range listeners(s) {
		if l.Network == "unix" {
			if err := os.MkdirAll(filepath.Dir(l.Address), 0o755); err != nil {
				d.drainNBD()
				return nil, fmt.Errorf("nbd listener %s: %w", l.Address, err)
			}
		}
		addr, err := d.nbd.Listen(l)
		if err != nil {
			d.drainNBD()
			return nil, err
		}
		shown := addr.String()
		if l.Network == "unix" {
			shown = "unix:" + l.Address
		}
		d.listening = append(d.listening, shown)
		d.log.Info().Str("address", shown).Msg("serving NBD")
	}
	return d.drainNBD, nil
}

// drainNBD stops listening and lets the clients' requests finish while the resources still run.
func (d *Daemon) drainNBD() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := d.nbd.Shutdown(ctx); err != nil {
		d.log.Error().Err(err).Msg("NBD clients: requests were still under way when polluxd stopped")
	}
}
