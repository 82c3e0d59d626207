package adm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pollux-project/pollux/conf"
)

// updateAdopt changes the list adopt of the pollux.toml at path; everything else
// of the file stays as it is, comments, mode and owner included. A file that is
// not there is made. The change is durable when it returns, and a crash leaves the
// old file or the new one; an error means that nothing was changed. Two that run
// at once wait for each other.
func updateAdopt(path string, add, drop []string) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a symbolic link stays one
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as a package would make it
		return fmt.Errorf("change adopt in %s: %w", path, err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("change adopt in %s: %w", path, err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("change adopt in %s: lock %s: %w", path, dir, err)
	}
	src, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("change adopt: %w", err)
	}
	edited, err := conf.EditAdopt(path, src, add, drop)
	if err != nil || string(edited) == string(src) {
		return err
	}
	if err := replaceKeeping(path, edited); err != nil {
		return fmt.Errorf("change adopt in %s: %w", path, err)
	}
	if err := lock.Sync(); err != nil {
		return fmt.Errorf("change adopt in %s: %w", path, err)
	}
	return nil
}

// replaceKeeping replaces a file by one with the same mode and owner. The caller
// makes the directory durable.
func replaceKeeping(path string, text []byte) error {
	mode, uid, gid := fs.FileMode(0o644), -1, -1
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil {
		mode, uid, gid = fs.FileMode(st.Mode&0o777), int(st.Uid), int(st.Gid)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // after the rename there is none
	if _, err = f.Write(text); err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && uid >= 0 && (uid != os.Geteuid() || gid != os.Getegid()) {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
