// Package storage makes the disks that the demo and the failover rounds put a
// virtual machine on, and reads them without the machine, NBD or Pollux.
package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// Tool returns the path of a program of the system. Those of the
// administrator are often not in an ordinary user's PATH.
func Tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w; scripts/bootstrap installs it", err)
}

// Run runs a program of the system and returns what it says on standard output.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	path, err := Tool(name)
	if err != nil {
		return "", err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// MakeFilesystemImage makes a file that holds an empty ext4. Nothing is left for
// the kernel to initialise in the background: every later write is one of the
// guest's own.
func MakeFilesystemImage(ctx context.Context, path string, size int64) error {
	if err := MakeImage(path, size); err != nil {
		return err
	}
	_, err := Run(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", path)
	return err
}

// MakeImage makes a file of zeros that takes no space.
func MakeImage(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// ReadRecords reads a file of records of the guest, "/records" say, from a disk
// image that holds an ext4, with no help of the guest, of NBD or of Pollux.
func ReadRecords(ctx context.Context, image, file, scratch string) (map[uint64]records.Record, []records.Damage, error) {
	if err := os.Remove(scratch); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	// debugfs always exits with 0: that it failed shows in what is missing.
	if _, err := Run(ctx, "debugfs", "-R", "dump "+file+" "+scratch, image); err != nil {
		return nil, nil, err
	}
	f, err := os.Open(scratch)
	if err != nil {
		return nil, nil, fmt.Errorf("debugfs finds no file %s in %s", file, image)
	}
	defer f.Close()
	return records.Read(f)
}

// CheckFilesystem lets e2fsck look at a disk image, without any repair.
func CheckFilesystem(ctx context.Context, image string) error {
	_, err := Run(ctx, "e2fsck", "-fn", image)
	return err
}

// DropRecord zeroes the block of one record in a disk image, as if that write
// had never reached the disk. It finds it by what stands in it, not through
// the filesystem, which may be mounted.
func DropRecord(image string, ack records.Ack) (offset int64, err error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	const chunk = 2048 * records.Size
	buf := make([]byte, chunk)
	for at := int64(0); ; at += chunk {
		n, err := f.ReadAt(buf, at)
		for i := 0; i+records.Size <= n; i += records.Size {
			rec, bad := records.Decode(buf[i : i+records.Size])
			if bad != nil || rec.Number != ack.Number || rec.Sum != ack.Sum {
				continue
			}
			offset = at + int64(i)
			_, err := f.WriteAt(make([]byte, records.Size), offset)
			return offset, errors.Join(err, f.Sync())
		}
		if errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("%s: record %d isn't there", image, ack.Number)
		}
		if err != nil {
			return 0, err
		}
	}
}

// SameContent compares the first size bytes of two files and returns where
// they differ first; -1 if they don't.
func SameContent(a, b string, size int64) (int64, error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	const chunk = 1 << 20
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); at < size; at += chunk {
		n := min(chunk, size-at)
		if _, err := fa.ReadAt(bufA[:n], at); err != nil {
			return 0, fmt.Errorf("read %s: %w", a, err)
		}
		if _, err := fb.ReadAt(bufB[:n], at); err != nil {
			return 0, fmt.Errorf("read %s: %w", b, err)
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			for i := range n {
				if bufA[i] != bufB[i] {
					return at + i, nil
				}
			}
		}
	}
	return -1, nil
}
