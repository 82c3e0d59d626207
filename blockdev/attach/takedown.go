package attach

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/mdlayher/genetlink"
)

// TakeDown removes the device and the links that a process which is gone has left
// for a volume; its users' requests fail. It is no error if there are none. The
// error wraps ErrInUse while somebody has the device open; nothing has changed then.
// Of v, Resource, Number, Implicit and Minor count.
func TakeDown(ctx context.Context, c Config, v Volume) error {
	a, err := New(c)
	if err != nil {
		return err
	}
	switch a := a.(type) {
	case *kernel:
		return a.takeDown(ctx, v)
	case *looper:
		return a.takeDown(ctx, v)
	}
	return nil
}

func (k *kernel) takeDown(ctx context.Context, v Volume) error {
	n, ok, err := k.cfg.readNote(v)
	if err != nil || !ok || n.Volume != v.id() {
		return err
	}
	index := -1
	err = k.with(func(c netlinkConn, fam genetlink.Family) error {
		var err error
		index, err = k.survivor(c, fam, v, v.backendID())
		return err
	})
	if err != nil {
		return err
	}
	if index >= 0 {
		d := &nbdDevice{k: k, vol: v, index: index, path: filepath.Join(k.devDir, filepath.Base(n.Device))}
		return d.Detach(ctx)
	}
	return errors.Join(k.cfg.unlink(v, n.Device), k.cfg.removeNote(v))
}
