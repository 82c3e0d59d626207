package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// shared holds the devices that OpenShared has open, by resolved path.
var shared struct {
	sync.Mutex
	byPath map[string]*sharedDevice
}

// A sharedDevice is one open Device with several users in this process.
type sharedDevice struct {
	Device
	path  string
	opts  Options
	users int
}

// A sharedHandle is one user's reference; its Close drops it.
type sharedHandle struct {
	*sharedDevice
	once sync.Once
}

// OpenShared is Open for a device that several resources of this process use,
// each its own part: an external metadata device with indexes. Other processes
// are kept away if o.Exclusive is set. All users must ask for the same Options.
// The device is closed when its last user has closed it.
func OpenShared(path string, o Options) (Device, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, unwrapPath(err))
	}
	shared.Lock()
	defer shared.Unlock()
	s := shared.byPath[real]
	if s == nil {
		dev, err := Open(path, o)
		if err != nil {
			return nil, err
		}
		s = &sharedDevice{Device: dev, path: real, opts: o}
		if shared.byPath == nil {
			shared.byPath = make(map[string]*sharedDevice)
		}
		shared.byPath[real] = s
	} else if s.opts != o {
		return nil, fmt.Errorf("open %s: %w: it is open with other options (direct, read-only) for another resource", path, ErrHeld)
	}
	s.users++
	return &sharedHandle{sharedDevice: s}, nil
}

// Close drops this user's reference.
func (h *sharedHandle) Close() error {
	var err error
	h.once.Do(func() {
		shared.Lock()
		defer shared.Unlock()
		h.users--
		if h.users == 0 {
			delete(shared.byPath, h.path)
			err = h.Device.Close()
		}
	})
	return err
}

// String returns the path.
func (h *sharedHandle) String() string { return h.path }

// unwrapPath drops the operation and path of a PathError: the caller's text
// names them already.
func unwrapPath(err error) error {
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
