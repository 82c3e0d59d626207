package blockdev

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options say how Open opens a path. The zero value is buffered, read-write
// and not exclusive.
type Options struct {
	// Direct bypasses the page cache (O_DIRECT).
	Direct bool
	// ReadOnly refuses every change; writes fail with EROFS.
	ReadOnly bool
	// Exclusive claims the path: O_EXCL on a block device (which also keeps
	// mounts and device mapper away), locks on a plain file. A second opener
	// that asks for it, in this process or another, gets ErrHeld.
	Exclusive bool
}

// ErrHeld says that a device or file is claimed already. Open wraps it.
var ErrHeld = errors.New("is held by another process")

// ErrClosed is the cause in an IOError of an operation on a closed Device.
var ErrClosed = errors.New("device is closed")

// fileDevice is a plain file or a block device. Its capacity is taken at Open
// and by Remeasure, and no operation goes beyond it: writes never grow a file.
type fileDevice struct {
	path      string
	blockSize int          // the unit of direct I/O, and what clients are told
	size      atomic.Int64 // multiple of blockSize
	isBlock   bool
	direct    bool
	readOnly  bool

	// open is held shared by every operation and exclusively by Close, so
	// that no operation can meet a descriptor number that has been reused.
	open   sync.RWMutex
	fd     int
	closed bool

	// durable is a second open file of the same path, for durable writes, from the
	// first one on: each has its own memory of lost writes. With one for all a
	// durable write could take notice of an error that a Sync in the same moment is
	// to report, and that Sync would succeed.
	durableOnce sync.Once
	durable     int

	// rmw is held for a direct write that has to read its first or last block
	// before it. Writes of whole blocks need not hold it: one that touches
	// such a block overlaps the partial write itself, which callers exclude.
	rmw sync.Mutex

	bounce chan []byte // idle bounce buffers of bounceSize

	// syncErr is the first failed sync. The kernel reports a lost write once
	// per descriptor, to whichever call comes first (a durable write
	// included): without this memory the next Sync would succeed and claim
	// that the lost data is safe.
	syncErr atomic.Pointer[error]

	stream stream // of long writes

	noDsync  atomic.Bool // pwritev2(RWF_DSYNC) is not there: write, then sync
	noPunch  atomic.Bool // fallocate(PUNCH_HOLE) is not there
	noZero   atomic.Bool // fallocate(ZERO_RANGE) is not there
	noBlkOut atomic.Bool // BLKZEROOUT is not there
}

// Tuning of our own.
const (
	bounceSize  = 256 << 10 // bytes moved at once when a buffer or range is unaligned
	bounceIdle  = 4         // bounce buffers kept per device
	bufferAlign = 4096      // alignment of AlignedBuffer: the largest logical block size
)

// Open opens the plain file or block device at path. The error names the path
// and wraps ErrHeld if another opener has claimed it.
//
// A file's size is rounded down to whole blocks (512 bytes; the file system's
// unit of direct I/O with Options.Direct), and is fixed: writes beyond it fail
// with ENOSPC, reads with EINVAL.
func Open(path string, o Options) (Device, error) {
	d, err := open(path, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}

// AlignedBuffer returns n zero bytes whose address is a multiple of 4096, as
// O_DIRECT wants them. Buffers that are not aligned work too, by copying.
func AlignedBuffer(n int) []byte {
	// The Go heap places large objects on page boundaries already.
	b := make([]byte, n)
	if n == 0 || aligned(b, bufferAlign) {
		return b
	}
	b = make([]byte, n+bufferAlign)
	skip := bufferAlign - int(uintptr(unsafe.Pointer(&b[0]))%bufferAlign)
	return b[skip%bufferAlign : skip%bufferAlign+n : skip%bufferAlign+n]
}

func aligned(b []byte, to int) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%uintptr(to) == 0
}

func (d *fileDevice) Size() int64    { return d.size.Load() }
func (d *fileDevice) BlockSize() int { return d.blockSize }
func (d *fileDevice) Direct() bool   { return d.direct }

// String returns the path.
func (d *fileDevice) String() string { return d.path }

func (d *fileDevice) ioError(op string, off, length int64, err error) error {
	return &IOError{Op: op, Path: d.path, Offset: off, Length: length, Err: err}
}

// begin lets an operation on [off, off+length) start. The caller calls
// d.open.RUnlock when it is done, if there was no error.
func (d *fileDevice) begin(op string, off, length int64, isChange bool) error {
	switch {
	case off < 0 || length < 0 || off > d.size.Load() || length > d.size.Load()-off:
		if isChange {
			return d.ioError(op, off, length, unix.ENOSPC)
		}
		return d.ioError(op, off, length, unix.EINVAL)
	case isChange && d.readOnly:
		return d.ioError(op, off, length, unix.EROFS)
	}
	d.open.RLock()
	if d.closed {
		d.open.RUnlock()
		return d.ioError(op, off, length, ErrClosed)
	}
	return nil
}

// isWhole reports whether a direct transfer of p at off needs no bounce.
func (d *fileDevice) isWhole(p []byte, off int64) bool {
	mask := int64(d.blockSize - 1)
	return (off|int64(len(p)))&mask == 0 && aligned(p, d.blockSize)
}

// ReadAt implements Device.
func (d *fileDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.begin("read", off, int64(len(p)), false); err != nil {
		return 0, err
	}
	defer d.open.RUnlock()
	var n int
	var err error
	if !d.direct || d.isWhole(p, off) {
		n, err = preadFull(d.fd, p, off)
	} else {
		n, err = d.readBounced(p, off)
	}
	if err != nil {
		return n, d.ioError("read", off, int64(len(p)), err)
	}
	return n, nil
}

// readBounced reads a range that direct I/O can't take as it is.
func (d *fileDevice) readBounced(p []byte, off int64) (int, error) {
	buf := d.getBounce()
	defer d.putBounce(buf)
	done := 0
	for done < len(p) {
		at := off + int64(done)
		start := at &^ int64(d.blockSize-1)
		skip := int(at - start)
		n := min(roundUp(skip+len(p)-done, d.blockSize), len(buf))
		got, err := preadFull(d.fd, buf[:n], start)
		if got > skip {
			done += copy(p[done:], buf[skip:got])
		}
		if err != nil {
			return min(done, len(p)), err
		}
	}
	return done, nil
}

// WriteAt implements Device.
func (d *fileDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.begin("write", off, int64(len(p)), true); err != nil {
		return 0, err
	}
	defer d.open.RUnlock()
	n, err := d.write(p, off, false)
	if err == nil && !d.direct {
		if err = d.stream.wrote(d.fd, off, int64(n)); err != nil {
			err = d.keepSyncError(err)
		}
	}
	if err != nil {
		return n, d.ioError("write", off, int64(len(p)), err)
	}
	return n, nil
}

// WriteFUA implements Device.
func (d *fileDevice) WriteFUA(p []byte, off int64) error {
	if err := d.begin("durable write", off, int64(len(p)), true); err != nil {
		return err
	}
	defer d.open.RUnlock()
	if err := d.failedSync(); err != nil {
		return d.ioError("durable write", off, int64(len(p)), err)
	}
	d.durableOnce.Do(d.openDurable)
	isDurable := !d.noDsync.Load()
	_, err := d.write(p, off, isDurable)
	if isDurable && errors.Is(err, unix.EOPNOTSUPP) {
		d.noDsync.Store(true)
		isDurable = false
		_, err = d.write(p, off, false)
	}
	if err == nil && !isDurable {
		err = fdatasync(d.durable)
	}
	if err != nil {
		return d.ioError("durable write", off, int64(len(p)), d.keepSyncError(err))
	}
	return nil
}

// openDurable opens d.durable. Where that is not possible it is the first one:
// then only a moment is left in which an error can miss its Sync.
func (d *fileDevice) openDurable() {
	d.durable = d.fd
	if fd, err := openFD(fmt.Sprintf("/proc/self/fd/%d", d.fd), Options{Direct: d.direct}, d.isBlock); err == nil {
		d.durable = fd
	}
}

// write writes all of p, through a bounce buffer where direct I/O needs one.
func (d *fileDevice) write(p []byte, off int64, isDurable bool) (int, error) {
	if !d.direct || d.isWhole(p, off) {
		return d.pwrite(p, off, isDurable)
	}
	mask := int64(d.blockSize - 1)
	if (off|int64(len(p)))&mask != 0 {
		d.rmw.Lock()
		defer d.rmw.Unlock()
	}
	return d.writeBounced(p, off, isDurable)
}

// writeBounced writes a range that direct I/O can't take as it is; the caller
// holds rmw if its first or last block is partial.
func (d *fileDevice) writeBounced(p []byte, off int64, isDurable bool) (int, error) {
	buf := d.getBounce()
	defer d.putBounce(buf)
	bs := d.blockSize
	done := 0
	for done < len(p) {
		at := off + int64(done)
		start := at &^ int64(bs-1)
		skip := int(at - start)
		n := min(roundUp(skip+len(p)-done, bs), len(buf))
		part := min(len(p)-done, n-skip)
		if skip != 0 {
			if _, err := preadFull(d.fd, buf[:bs], start); err != nil {
				return done, err
			}
		}
		if last := n - bs; skip+part != n && (last != 0 || skip == 0) {
			if _, err := preadFull(d.fd, buf[last:n], start+int64(last)); err != nil {
				return done, err
			}
		}
		copy(buf[skip:n], p[done:done+part])
		if _, err := d.pwrite(buf[:n], start, isDurable); err != nil {
			return done, err
		}
		done += part
	}
	return done, nil
}

// pwrite writes all of p, with RWF_DSYNC if isDurable.
func (d *fileDevice) pwrite(p []byte, off int64, isDurable bool) (int, error) {
	if isDurable {
		return pwriteFull(d.durable, p, off, true)
	}
	return pwriteFull(d.fd, p, off, false)
}

// Zero implements Device.
func (d *fileDevice) Zero(off, length int64, mayUnmap bool) error {
	if err := d.begin("zero", off, length, true); err != nil {
		return err
	}
	defer d.open.RUnlock()
	if length == 0 {
		return nil
	}
	if err := d.zero(off, off+length, mayUnmap); err != nil {
		return d.ioError("zero", off, length, err)
	}
	return nil
}

// zero zeroes [start, end): whole blocks by the kernel's own means where it
// has some, the rest by writing.
func (d *fileDevice) zero(start, end int64, mayUnmap bool) error {
	bs := int64(d.blockSize)
	inStart, inEnd := (start+bs-1)&^(bs-1), end&^(bs-1)
	if inStart >= inEnd {
		return d.writeZeroes(start, end)
	}
	if err := d.writeZeroes(start, inStart); err != nil {
		return err
	}
	if err := d.writeZeroes(inEnd, end); err != nil {
		return err
	}
	isDone, err := d.zeroByKernel(inStart, inEnd-inStart, mayUnmap)
	if isDone || err != nil {
		return err
	}
	return d.writeZeroes(inStart, inEnd)
}

// writeZeroes writes zeroes to [start, end).
func (d *fileDevice) writeZeroes(start, end int64) error {
	if start >= end {
		return nil
	}
	buf := d.getBounce()
	defer d.putBounce(buf)
	clear(buf)
	for start < end {
		n := min(end-start, int64(len(buf)))
		if left := start & int64(d.blockSize-1); left != 0 {
			n = min(n, int64(d.blockSize)-left)
		} else if n > int64(d.blockSize) {
			n &^= int64(d.blockSize - 1)
		}
		if _, err := d.write(buf[:n], start, false); err != nil {
			return err
		}
		start += n
	}
	return nil
}

// Sync implements Device.
func (d *fileDevice) Sync() error {
	if err := d.begin("sync", 0, d.size.Load(), false); err != nil {
		return err
	}
	defer d.open.RUnlock()
	if err := d.failedSync(); err != nil {
		return d.ioError("sync", 0, d.size.Load(), err)
	}
	if d.readOnly {
		return nil
	}
	if err := fdatasync(d.fd); err != nil {
		return d.ioError("sync", 0, d.size.Load(), d.keepSyncError(err))
	}
	return nil
}

func (d *fileDevice) failedSync() error {
	if p := d.syncErr.Load(); p != nil {
		return fmt.Errorf("an earlier sync failed, data may be lost: %w", *p)
	}
	return nil
}

func (d *fileDevice) keepSyncError(err error) error {
	d.syncErr.CompareAndSwap(nil, &err)
	return err
}

// Close implements Device. It waits for operations in flight; a second Close
// does nothing.
func (d *fileDevice) Close() error {
	d.open.Lock()
	defer d.open.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.durableOnce.Do(func() { d.durable = d.fd })
	if d.durable != d.fd {
		unix.Close(d.durable) // what was written is durable
	}
	if err := unix.Close(d.fd); err != nil {
		return d.ioError("close", 0, d.size.Load(), err)
	}
	return nil
}

func (d *fileDevice) getBounce() []byte {
	select {
	case b := <-d.bounce:
		return b
	default:
		return AlignedBuffer(bounceSize)
	}
}

func (d *fileDevice) putBounce(b []byte) {
	select {
	case d.bounce <- b:
	default:
	}
}

func roundUp(n, to int) int { return (n + to - 1) &^ (to - 1) }

// preadFull reads all of p. The end of the file is an error: sizes are fixed,
// so somebody else has cut the file.
func preadFull(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		default:
			done += n
		}
	}
	return done, nil
}

// pwriteFull writes all of p, with RWF_DSYNC if isDurable.
func pwriteFull(fd int, p []byte, off int64, isDurable bool) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		var err error
		if isDurable {
			n, err = pwriteDsync(fd, p[done:], off+int64(done))
		} else {
			n, err = unix.Pwrite(fd, p[done:], off+int64(done))
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrShortWrite
		default:
			done += n
		}
	}
	return done, nil
}
