package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/pollux-project/pollux/blockdev/export"
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

// serve registers the exports of all volumes, or none.
func (r *resource) serve(eng engineAPI, spec resourceSpec) error {
	for _, v := range spec.Volumes {
		b := eng.Backend(v.Number)
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
