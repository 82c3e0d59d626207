package blockdev

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func open(path string, o Options) (*fileDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return nil, errors.New("is neither a plain file nor a block device")
	}
	fd, err := openFD(path, o, kind == unix.S_IFBLK)
	if err != nil {
		return nil, err
	}
	d := &fileDevice{
		stream: stream{begin: startWriteback},
		path:   path, fd: fd, direct: o.Direct, readOnly: o.ReadOnly,
		isBlock: kind == unix.S_IFBLK, bounce: make(chan []byte, bounceIdle),
	}
	if err := d.prepare(o, st); err != nil {
		if d.fd >= 0 {
			unix.Close(d.fd)
		}
		return nil, err
	}
	return d, nil
}

func openFD(path string, o Options, isBlock bool) (int, error) {
	flags := unix.O_CLOEXEC | unix.O_RDWR
	if o.ReadOnly {
		flags = unix.O_CLOEXEC | unix.O_RDONLY
	}
	if o.Direct {
		flags |= unix.O_DIRECT
	}
	if o.Exclusive && isBlock {
		flags |= unix.O_EXCL
	}
	for {
		fd, err := unix.Open(path, flags, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EBUSY && o.Exclusive:
			return -1, held(path)
		case err == unix.EINVAL && o.Direct:
			return -1, fmt.Errorf("the file system has no direct I/O: %w; use buffered I/O for it", err)
		}
		return fd, err
	}
}

// prepare takes the claim and learns size and block size.
func (d *fileDevice) prepare(o Options, want unix.Stat_t) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != want.Mode&unix.S_IFMT {
		return errors.New("was replaced while it was being opened")
	}
	if o.Exclusive && !d.isBlock {
		err := lockFile(d.fd, o.ReadOnly)
		if err != nil {
			unix.Close(d.fd) // or this process would be seen to hold it
			d.fd = -1
		}
		if errors.Is(err, ErrHeld) {
			return held(d.path)
		}
		if err != nil {
			return err
		}
	}
	d.blockSize = 512
	size := st.Size
	if d.isBlock {
		capacity, logical, err := blockGeometry(d.fd)
		if err != nil {
			return err
		}
		size, d.blockSize = capacity, logical
	} else if d.direct {
		d.blockSize = directUnit(d.fd)
	}
	d.size.Store(size &^ int64(d.blockSize-1))
	return nil
}

// measure is the capacity now, in bytes.
func (d *fileDevice) measure() (int64, error) {
	d.open.RLock()
	defer d.open.RUnlock()
	if d.closed {
		return 0, ErrClosed
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return 0, err
	}
	size := st.Size
	if d.isBlock {
		capacity, _, err := blockGeometry(d.fd)
		if err != nil {
			return 0, err
		}
		size = capacity
	}
	return size &^ int64(d.blockSize-1), nil
}

// lockFile claims a plain file. flock covers read-only openers too; the open
// file description lock is the one that QEMU takes on its images, so that a
// VM which has the file open is noticed. Both end with the descriptor.
func lockFile(fd int, isReadOnly bool) error {
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EWOULDBLOCK {
			return ErrHeld
		}
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		break
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	if isReadOnly {
		lk.Type = unix.F_RDLCK
	}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EACCES:
		return ErrHeld
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP:
		return nil // a file system without them; flock has succeeded
	}
	return fmt.Errorf("lock: %w", err)
}

// blockGeometry returns a block device's capacity and logical block size in
// bytes (BLKGETSIZE64, BLKSSZGET).
func blockGeometry(fd int) (size int64, logical int, err error) {
	var n uint64
	if err := ioctlPtr(fd, unix.BLKGETSIZE64, unsafe.Pointer(&n)); err != nil {
		return 0, 0, fmt.Errorf("get size: %w", err)
	}
	logical, err = unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return 0, 0, fmt.Errorf("get block size: %w", err)
	}
	if logical < 512 || logical > bufferAlign || logical&(logical-1) != 0 {
		return 0, 0, fmt.Errorf("logical blocks of %d bytes are not supported, only 512 to 4096", logical)
	}
	if n > 1<<62 {
		return 0, 0, fmt.Errorf("size %d is beyond what is supported", n)
	}
	return int64(n), logical, nil
}

// directUnit finds the alignment that direct I/O needs on a plain file, by
// trying: STATX_DIOALIGN is missing from kernels before 6.1.
func directUnit(fd int) int {
	buf := AlignedBuffer(1024)
	for {
		// Memory aligned to 512 only, as callers may come with.
		_, err := unix.Pread(fd, buf[512:1024], 512)
		switch err {
		case unix.EINTR:
			continue
		case unix.EINVAL:
			return bufferAlign
		}
		return 512
	}
}

// zeroByKernel lets the kernel zero whole blocks, and reports whether it did;
// false without an error means that it has no means to. Every means used here
// promises that the range reads as zeroes afterwards: BLKDISCARD does not and
// is not used.
func (d *fileDevice) zeroByKernel(off, length int64, mayUnmap bool) (bool, error) {
	if mayUnmap && !d.noPunch.Load() {
		err := fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
		if !isLack(err) {
			return err == nil, err
		}
		d.noPunch.Store(true)
	}
	if !d.noZero.Load() {
		err := fallocate(d.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, length)
		if !isLack(err) {
			return err == nil, err
		}
		d.noZero.Store(true)
	}
	if d.isBlock && !d.noBlkOut.Load() {
		err := blkZeroOut(d.fd, off, length)
		if !isLack(err) {
			return err == nil, err
		}
		d.noBlkOut.Store(true)
	}
	return false, nil
}

// Map reports in order where [off, off+length) of the device holds data, by
// calling add for each stretch until it returns false. A hole reads as zeroes.
// Block devices and file systems that can't tell are all data.
func (d *fileDevice) Map(off, length int64, add func(length int64, isHole bool) bool) error {
	if err := d.begin("map", off, length, false); err != nil {
		return err
	}
	defer d.open.RUnlock()
	end := off + length
	for off < end {
		data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO:
			data = end // no data from here on
		case err != nil || d.isBlock:
			data = off
		}
		if data > off {
			if !add(min(data, end)-off, true) {
				return nil
			}
			off = data
			continue
		}
		hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
		if err != nil || d.isBlock || hole <= off {
			hole = end
		}
		if !add(min(hole, end)-off, false) {
			return nil
		}
		off = hole
	}
	return nil
}

func isLack(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.ENOTTY || err == unix.EINVAL || err == unix.ENODEV
}

func fallocate(fd int, mode uint32, off, length int64) error {
	for {
		if err := unix.Fallocate(fd, mode, off, length); err != unix.EINTR {
			return err
		}
	}
}

func fdatasync(fd int) error {
	for {
		if err := unix.Fdatasync(fd); err != unix.EINTR {
			return err
		}
	}
}

func blkZeroOut(fd int, off, length int64) error {
	span := [2]uint64{uint64(off), uint64(length)}
	return ioctlPtr(fd, unix.BLKZEROOUT, unsafe.Pointer(&span))
}

func ioctlPtr(fd int, req uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		runtime.KeepAlive(arg)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// pwriteDsync is pwritev2 with RWF_DSYNC. unix.Pwritev2 would allocate its
// vector on the heap for every write.
func pwriteDsync(fd int, p []byte, off int64) (int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	// The offset comes in two halves of the native word; on 64-bit machines
	// the kernel shifts the second one out.
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), uintptr(uint64(off)>>32), unix.RWF_DSYNC)
	runtime.KeepAlive(p)
	switch errno {
	case 0:
		return int(n), nil
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return 0, unix.EOPNOTSUPP
	}
	return 0, errno
}
