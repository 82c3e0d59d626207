package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/conf"
)

// exportNames are the names of a volume's export: RES/VOL, and RES alone if
// the resource has one volume only.
func exportNames(spec resourceSpec, vol int) []string {
	names := []string{fmt.Sprintf("%s/%d", spec.Name, vol)}
	if len(spec.Volumes) == 1 {
		names = append(names, spec.Name)
	}
	return names
}

// exportName is the shortest of them.
func exportName(spec resourceSpec, vol int) string {
	names := exportNames(spec, vol)
	return names[len(names)-1]
}

// isBare reports whether a resource is exported under its own name to whoever
// may connect. Under manager internal each start of a VM has exports of its own.
func isBare(spec resourceSpec) bool { return spec.Manager != conf.ManagerInternal }

// ownBackend is a volume that this process alone may open, for the block device
// that it makes of it (attach-device).
type ownBackend struct{ *incarnationBackend }

// Open implements export.Backend.
func (b *ownBackend) Open(c export.ClientInfo) (release func(), err error) {
	if c.PID != os.Getpid() {
		err := fmt.Errorf("%s: is exported to its VM only (manager = internal): polluxadm status shows under which name", b.i.res)
		b.i.log.Warn().Str("export", c.Export).Err(err).Msg("NBD client refused")
		return nil, err
	}
	return b.Backend.Open(c)
}

// serve registers the exports of all volumes, or none.
func (r *resource) serve(eng engineAPI, spec resourceSpec) error {
	if !isBare(spec) && r.d.devices.attacher == nil {
		return nil
	}
	for _, v := range spec.Volumes {
		b := eng.Backend(v.Number)
		if !isBare(spec) {
			b = &ownBackend{&incarnationBackend{Backend: b, i: r.newIncarnation("", process{})}}
		}
		for _, name := range exportNames(spec, v.Number) {
			if err := r.d.nbd.Add(name, b); err != nil {
				return errors.Join(err, r.unserve(spec))
			}
		}
	}
	return nil
}

// unserve removes what serve has registered and disconnects its clients.
func (r *resource) unserve(spec resourceSpec) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	var errs []error
	for _, v := range spec.Volumes {
		for _, name := range exportNames(spec, v.Number) {
			if err := r.d.nbd.Remove(ctx, name); err != nil && !errors.Is(err, export.ErrNoExport) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
