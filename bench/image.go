package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// makeImage writes every block of a new image: nothing is left to allocate or
// to convert later. zeroTail bytes at its end are zeros, room for metadata;
// the rest is noise, so that nobody can find zeros in it and save work.
func makeImage(path string, size, zeroTail int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	buf := make([]byte, mib)
	rng := rand.NewChaCha8([32]byte{1})
	for at := int64(0); at < size; at += mib {
		if at+mib > size-zeroTail {
			clear(buf)
		} else if _, err := rng.Read(buf); err != nil {
			return errors.Join(err, f.Close())
		}
		if _, err := f.Write(buf[:min(mib, size-at)]); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// settle writes out all that is dirty and drops the images from the page
// cache: every run begins alike.
func settle(images []string) error {
	return eachImage(images, func(f *os.File) error {
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// warm reads images into the page cache.
func warm(images ...string) error {
	buf := make([]byte, mib)
	return eachImage(images, func(f *os.File) error {
		for {
			if n, err := f.Read(buf); n == 0 {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
		}
	})
}

// warmRegion reads the first n bytes of images into the page cache, without
// readahead: that makes folios of up to 2 MiB, and ext4 then looks at each of a
// folio's blocks for a write of one of them, 45 us instead of 3.4 us a write.
func warmRegion(images []string, n int64) error {
	buf := make([]byte, mib)
	return eachImage(images, func(f *os.File) error {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
			return err
		}
		for at := int64(0); at < n; at += mib {
			if _, err := f.ReadAt(buf[:min(mib, n-at)], at); err != nil {
				return err
			}
		}
		return nil
	})
}

func eachImage(images []string, do func(*os.File) error) error {
	for _, path := range images {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = do(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// spots are places in an image of size bytes that are looked at to see whether
// a copy has really been made.
func spots(size int64) []int64 {
	return []int64{0, size / 3 &^ 4095, size/2&^4095 + 4096, size - 4096}
}

// spoil makes the copy differ at all spots.
func spoil(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, at := range spots(size) {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xee}, 4096), at); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// isCopied reports an error unless original and copy are equal at all spots.
func isCopied(original, copied string, size int64) error {
	var block [2][4096]byte
	for _, at := range spots(size) {
		for i, path := range []string{original, copied} {
			if err := eachImage([]string{path}, func(f *os.File) error {
				_, err := f.ReadAt(block[i][:], at)
				return err
			}); err != nil {
				return err
			}
		}
		if block[0] != block[1] {
			return fmt.Errorf("%s differs from %s at byte %d: it was not copied", copied, original, at)
		}
	}
	return nil
}
