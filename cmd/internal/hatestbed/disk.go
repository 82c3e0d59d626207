package hatestbed

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Disk is a loop device on a file, which can be made to fail: then it ends
// after one sector, and the kernel answers all that goes further with an I/O error,
// as it does when a real disk has gone.
type Disk struct {
	Device string
	Image  string
	file   *os.File // of the device; keeps it
	open   *os.File // of the image
}

// failedBytes is what a failed disk still has: the least that the kernel takes.
const failedBytes = 512

// NewDisk makes a file of zeros and a loop device for it, which goes when this
// process ends and nobody else has it open.
func NewDisk(image string, size int64) (d *Disk, err error) {
	d = &Disk{Image: image}
	if d.open, err = os.OpenFile(image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := d.open.Truncate(size); err != nil {
		return nil, errors.Join(err, d.open.Close())
	}
	if err := d.attach(); err != nil {
		return nil, errors.Join(fmt.Errorf("loop device for %s: %w", image, err), d.open.Close())
	}
	return d, nil
}

// attach finds a free loop device. Somebody else may be faster.
func (d *Disk) attach() error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = control.Close() }() // nothing was written
	for range 20 {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return err
		}
		d.Device = fmt.Sprintf("/dev/loop%d", number)
		if d.file, err = os.OpenFile(d.Device, os.O_RDWR, 0); err != nil {
			return err
		}
		err = unix.IoctlLoopConfigure(int(d.file.Fd()), &unix.LoopConfig{
			Fd: uint32(d.open.Fd()), Size: 512, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return nil
		}
		_ = d.file.Close() // not ours
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return errors.New("no free one")
}

// Fail makes all I/O fail until Repair.
func (d *Disk) Fail() error { return d.limit(failedBytes) }

// Repair undoes Fail. What was on the disk is there again.
func (d *Disk) Repair() error { return d.limit(0) }

func (d *Disk) limit(bytes uint64) error {
	info, err := unix.IoctlLoopGetStatus64(int(d.file.Fd()))
	if err == nil {
		info.Sizelimit = bytes
		err = unix.IoctlLoopSetStatus64(int(d.file.Fd()), info)
	}
	if err != nil {
		return fmt.Errorf("%s: change its size: %w", d.Device, err)
	}
	return nil
}

// Close gives the device back.
func (d *Disk) Close() error { return errors.Join(d.file.Close(), d.open.Close()) }
