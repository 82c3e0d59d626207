package blockdev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A section is part of another Device.
type section struct {
	dev       Device
	off, size int64
}

// Section returns the length bytes of dev from off as a Device of their own:
// a resource keeps its data and its internal metadata on one open Device that
// way. Sync covers the whole of dev; Close does nothing, the opener closes dev.
// It panics if the range is not inside dev.
func Section(dev Device, off, length int64) Device {
	if off < 0 || length < 0 || off > dev.Size() || length > dev.Size()-off {
		panic(fmt.Sprintf("blockdev: section of %d bytes at %d of a device of %d", length, off, dev.Size()))
	}
	return &section{dev: dev, off: off, size: length}
}

func (s *section) check(op string, off, length int64, errno unix.Errno) error {
	if off < 0 || length < 0 || off > s.size || length > s.size-off {
		return &IOError{Op: op, Path: fmt.Sprintf("%v[%d+%d]", s.dev, s.off, s.size), Offset: off, Length: length, Err: errno}
	}
	return nil
}

// ReadAt implements Device.
func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if err := s.check("read", off, int64(len(p)), unix.EINVAL); err != nil {
		return 0, err
	}
	return s.dev.ReadAt(p, s.off+off)
}

// WriteAt implements Device.
func (s *section) WriteAt(p []byte, off int64) (int, error) {
	if err := s.check("write", off, int64(len(p)), unix.ENOSPC); err != nil {
		return 0, err
	}
	return s.dev.WriteAt(p, s.off+off)
}

// WriteFUA implements Device.
func (s *section) WriteFUA(p []byte, off int64) error {
	if err := s.check("durable write", off, int64(len(p)), unix.ENOSPC); err != nil {
		return err
	}
	return s.dev.WriteFUA(p, s.off+off)
}

// Zero implements Device.
func (s *section) Zero(off, length int64, mayUnmap bool) error {
	if err := s.check("zero", off, length, unix.ENOSPC); err != nil {
		return err
	}
	return s.dev.Zero(s.off+off, length, mayUnmap)
}

func (s *section) Sync() error    { return s.dev.Sync() }
func (s *section) Size() int64    { return s.size }
func (s *section) BlockSize() int { return s.dev.BlockSize() }
func (s *section) Direct() bool   { return s.dev.Direct() }
func (s *section) Close() error   { return nil }

// Base returns the Device that the section is part of.
func (s *section) Base() Device { return s.dev }

// String names the device and the range.
func (s *section) String() string { return fmt.Sprintf("%v[%d+%d]", s.dev, s.off, s.size) }
