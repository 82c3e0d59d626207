package witness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// vfs is the part of a file system that a store needs; tests have one that loses
// power. Names are those of files in one directory.
type vfs interface {
	// ReadFile returns at most maxLog bytes; fs.ErrNotExist if there is no file.
	ReadFile(name string) ([]byte, error)
	// Open opens a file for appending; it has to exist.
	Open(name string) (file, error)
	// Create makes a new, empty file, in place of an old one of the name.
	Create(name string) (file, error)
	Rename(from, to string) error
	// SyncDir makes Create and Rename durable.
	SyncDir() error
}

type file interface {
	Write(b []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

// osDir is a directory of the operating system.
type osDir string

func (d osDir) path(name string) string { return filepath.Join(string(d), name) }

func (d osDir) ReadFile(name string) ([]byte, error) {
	fi, err := os.Stat(d.path(name))
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxLog {
		return nil, fmt.Errorf("%s is no file of at most %d MiB", d.path(name), maxLog>>20)
	}
	return os.ReadFile(d.path(name))
}

func (d osDir) Open(name string) (file, error) {
	return os.OpenFile(d.path(name), os.O_WRONLY|os.O_APPEND, 0o600)
}

func (d osDir) Create(name string) (file, error) {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(d.path(name), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
}

func (d osDir) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d osDir) SyncDir() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
