package daemon

import (
	"fmt"

	"github.com/pollux-project/pollux/conf"
)

// A blockDevice is what attach-device has made of a volume.
type blockDevice struct {
	path    string // the device node; empty if there is none
	problem string // why there is none
}

// A deviceMaker makes block devices of volumes, as attach-device says.
type deviceMaker struct{}

func newDeviceMaker(s *conf.Daemon) (deviceMaker, error) {
	if s.AttachDevice != "none" {
		return deviceMaker{}, fmt.Errorf("%s: attach-device = %q is not available in this build", s.File, s.AttachDevice)
	}
	return deviceMaker{}, nil
}

// stop gives all block devices up.
func (deviceMaker) stop() {}

// syncDevices makes the block devices agree with the role.
func (r *resource) syncDevices() {}

// abandonDevices leaves the block devices to their users: the kernel waits for
// the next polluxd.
func (r *resource) abandonDevices() {}

// releaseDevices gives the block devices up before a demotion; it is refused
// while one is in use.
func (r *resource) releaseDevices() error { return nil }
