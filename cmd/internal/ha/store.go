package ha

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// writeDurably replaces the file at path by data: after a crash at any moment it
// has the old content or the new one, and after the return the new one.
func writeDurably(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone already if all went well
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// A store keeps one JSON value in a file of the state directory.
type store[T any] struct{ path string }

// load returns the zero value if the file was never written. A file that can't
// be read is an error: what the operator wanted must not be guessed.
func (s store[T]) load() (T, error) {
	var v T
	b, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return v, fmt.Errorf("%s: what this node was told to run can't be read: %w", s.path, err)
	}
	return v, nil
}

func (s store[T]) save(v T) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = writeDurably(s.path, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("remember in %s: %w", s.path, err)
	}
	return nil
}
