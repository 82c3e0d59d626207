package blockdev

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// streamFrom is the smallest write that a stream is told by, bytes: one for which
// a further system call costs next to nothing, and which disks like.
const streamFrom = 256 << 10

// A stream recognizes long sequential writes to a buffered device and has the
// kernel begin to write each of them to the disk at once. Otherwise the disk
// idles until the flush, or until so much is dirty that writers are held up: half
// of the time that a stream takes. Smaller and random writes stay in the page
// cache, where they may be rewritten or put in order.
type stream struct {
	end   atomic.Int64 // of the last long write
	off   atomic.Bool  // the kernel cannot
	begin func(fd int, off, length int64) error
}

// startWriteback is sync_file_range(2), which waits for nothing. With this flag
// alone it does not take notice of the errors of earlier writes either: those
// remain for the next Sync.
func startWriteback(fd int, off, length int64) error {
	return unix.SyncFileRange(fd, off, length, unix.SYNC_FILE_RANGE_WRITE)
}

// wrote is told of each write. An error is one of the disk, for what was written:
// nobody else may get to hear of it.
func (s *stream) wrote(fd int, off, length int64) error {
	if length < streamFrom || s.end.Swap(off+length) != off || s.off.Load() {
		return nil
	}
	err := s.begin(fd, off, length)
	switch err {
	case nil, unix.EINTR, unix.EAGAIN, unix.ENOMEM: //nolint:errorlint // a bare errno
		return nil // the kernel will write it when it sees fit
	case unix.ENOSYS, unix.EINVAL, unix.ESPIPE, unix.EPERM, unix.EOPNOTSUPP:
		s.off.Store(true)
		return nil
	}
	return err
}
