package hypervisor

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The swap signature. Source: swapon(8), and the layout that util-linux's
// mkswap and the kernel's union swap_header agree on: the first page, 1024 bytes
// into it a header in the machine's byte order, the magic at its end.
const (
	swapPage    = 4096
	swapMagic   = "SWAPSPACE2"
	swapVersion = 1
	swapHeader  = 1024 // version, last page, number of bad pages: 4 bytes each; then 16 bytes of UUID
)

// LocalDisk is a disk that exists on each node for itself and is never
// replicated.
type LocalDisk struct {
	Path      string // a file, or a block device that exists
	SizeBytes int64  // of a file; the least of a device. > 0
	Swap      bool   // it has a swap signature when a guest starts
}

// CheckLocalDisk says why a guest can't have d here, or nil. It changes nothing:
// a file that is missing can be made, so only its directory has to be there,
// with room enough.
func CheckLocalDisk(d LocalDisk) error {
	size, device, err := d.look()
	switch {
	case errors.Is(err, os.ErrNotExist):
		dir, err := os.Stat(filepath.Dir(d.Path))
		if err != nil || !dir.IsDir() || underDev(d.Path) {
			return fmt.Errorf("local disk %s: it does not exist; make it with %d MiB, or the directory for a file", d.Path, d.SizeBytes>>20)
		}
		return checkRoom(filepath.Dir(d.Path), d)
	case err != nil:
		return fmt.Errorf("local disk %s: %w", d.Path, err)
	case device && size < d.SizeBytes:
		return fmt.Errorf("local disk %s: it has %d MiB, and %d are needed; make it larger", d.Path, size>>20, d.SizeBytes>>20)
	}
	return nil
}

// PrepareLocalDisk makes d ready for a start: a missing file is made, a
// shorter one is made longer, and swap gets its signature if it has none that
// fits its size. It must not be called while a guest has the disk.
func PrepareLocalDisk(d LocalDisk) (err error) {
	if err := CheckLocalDisk(d); err != nil {
		return err
	}
	flags := os.O_RDWR
	if !underDev(d.Path) {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(d.Path, flags, 0o600)
	if err != nil {
		return fmt.Errorf("local disk: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = fmt.Errorf("local disk %s: %w", d.Path, err)
		}
	}()
	size, device, err := d.look()
	if err != nil {
		return err
	}
	if !device && size < d.SizeBytes {
		if err := f.Truncate(d.SizeBytes); err != nil {
			return err
		}
		size = d.SizeBytes
	}
	if !d.Swap {
		return nil
	}
	head := make([]byte, swapPage)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	want := swapSignature(size)
	copy(want[swapHeader+12:swapHeader+28], head[swapHeader+12:]) // its UUID does not matter
	if bytes.Equal(head[swapHeader:swapHeader+28], want[swapHeader:swapHeader+28]) && bytes.HasSuffix(head, []byte(swapMagic)) {
		return nil
	}
	_, err = f.WriteAt(swapSignature(size), 0)
	return err
}

// swapSignature is the first page of a swap area of size bytes.
func swapSignature(size int64) []byte {
	page := make([]byte, swapPage)
	binary.NativeEndian.PutUint32(page[swapHeader:], swapVersion)
	binary.NativeEndian.PutUint32(page[swapHeader+4:], uint32(size/swapPage-1)) //nolint:gosec // areas are below 16 TiB
	uuid := page[swapHeader+12 : swapHeader+28]
	_, _ = rand.Read(uuid) // never fails
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80
	copy(page[swapPage-len(swapMagic):], swapMagic)
	return page
}

// look returns the size and whether it is a block device.
func (d LocalDisk) look() (size int64, device bool, err error) {
	st, err := os.Stat(d.Path)
	if err != nil {
		return 0, false, err
	}
	switch {
	case st.Mode().IsRegular():
		return st.Size(), false, nil
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		f, err := os.Open(d.Path)
		if err != nil {
			return 0, true, err
		}
		size, err = f.Seek(0, io.SeekEnd)
		return size, true, errors.Join(err, f.Close())
	default:
		return 0, false, errors.New("it is neither a file nor a block device")
	}
}

// underDev: a missing device must not become a file in memory.
func underDev(path string) bool {
	return strings.HasPrefix(filepath.Clean(path), "/dev/")
}

// checkRoom: a sparse file that finds its file system full would pause the guest.
func checkRoom(dir string, d LocalDisk) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("local disk %s: %w", d.Path, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < d.SizeBytes { //nolint:gosec // below 2^63
		return fmt.Errorf("local disk %s: %d MiB are needed, and %s has %d MiB left", d.Path, d.SizeBytes>>20, dir, free>>20)
	}
	return nil
}
