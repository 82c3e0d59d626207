package blockdev

import "fmt"

// A Measurer is a Device whose capacity can be taken anew.
type Measurer interface {
	// Remeasure takes the capacity anew and returns it, in bytes. If the device
	// has grown Size says so from now on; if it has shrunk Size stays, and
	// what lies beyond the end fails when it is used.
	Remeasure() (int64, error)
}

// Remeasure takes the capacity of dev anew, if dev can do that; otherwise it is
// Size.
func Remeasure(dev Device) (int64, error) {
	if m, ok := dev.(Measurer); ok {
		return m.Remeasure()
	}
	return dev.Size(), nil
}

// Remeasure implements Measurer.
func (d *fileDevice) Remeasure() (int64, error) {
	size, err := d.measure()
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", d.path, err)
	}
	if size > d.size.Load() {
		d.size.Store(size)
	}
	return size, nil
}

// Remeasure implements Measurer.
func (s *sharedDevice) Remeasure() (int64, error) { return Remeasure(s.Device) }
