package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// linkPaths are the links of a volume: DIR/drbdN and DIR/drbd/by-res/RES[/VOL],
// as DRBD's udev rules make them.
func (c Config) linkPaths(v Volume) []string {
	byRes := filepath.Join(c.Dir, "drbd", "by-res", v.Resource)
	if !v.Implicit {
		byRes = filepath.Join(byRes, strconv.Itoa(v.Number))
	}
	return []string{filepath.Join(c.Dir, v.name()), byRes}
}

// link makes a volume's links point to target. A device that is not a link is
// the kernel's DRBD and is left alone.
func (c Config) link(v Volume, target string) error {
	paths := c.linkPaths(v)
	for _, p := range paths {
		st, err := os.Lstat(p)
		if err == nil && st.Mode()&fs.ModeSymlink == 0 {
			return fmt.Errorf("attach %s: %s exists and is not our link: is the kernel's DRBD using that minor?", v.Export, p)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("attach %s: %w", v.Export, err)
		}
	}
	for _, p := range paths {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return fmt.Errorf("attach %s: %w", v.Export, err)
		}
		// By renaming, so that there is no moment without the link.
		tmp := p + ".new"
		if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("attach %s: %w", v.Export, err)
		}
		if err := os.Symlink(target, tmp); err != nil {
			return fmt.Errorf("attach %s: %w", v.Export, err)
		}
		if err := os.Rename(tmp, p); err != nil {
			return fmt.Errorf("attach %s: %w", v.Export, err)
		}
	}
	return nil
}

// unlink removes a volume's links if they point to target.
func (c Config) unlink(v Volume, target string) error {
	var errs []error
	for _, p := range c.linkPaths(v) {
		if to, err := os.Readlink(p); err == nil && to == target {
			errs = append(errs, os.Remove(p))
		}
	}
	// The resource's directory goes with its last volume.
	if !v.Implicit {
		_ = os.Remove(filepath.Dir(c.linkPaths(v)[1])) // not empty: other volumes are there
	}
	return errors.Join(errs...)
}

// A note remembers what is attached, for the next process.
type note struct {
	Device string `json:"device"` // "/dev/nbd0"
	Index  int    `json:"index"`  // of the device
	Volume string `json:"volume"` // "web/0"
}

func (c Config) notePath(v Volume) string { return filepath.Join(c.RunDir, v.name()+".json") }

func (v Volume) id() string { return fmt.Sprintf("%s/%d", v.Resource, v.Number) }

func (c Config) writeNote(v Volume, n note) error {
	if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	tmp := c.notePath(v) + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.notePath(v))
}

// readNote returns the note about a minor; ok is false without one.
func (c Config) readNote(v Volume) (n note, ok bool, err error) {
	b, err := os.ReadFile(c.notePath(v))
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, false, nil
	}
	if err != nil {
		return note{}, false, err
	}
	if json.Unmarshal(b, &n) != nil {
		return note{}, false, nil // cut by a crash: as good as none
	}
	return n, true, nil
}

func (c Config) removeNote(v Volume) error {
	err := os.Remove(c.notePath(v))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
