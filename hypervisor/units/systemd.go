package units

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
)

// maxMessage is how much of a program's own words goes into an error, in bytes.
const maxMessage = 500

// A unit is what systemctl show says of one.
type unit struct {
	ID          string
	LoadState   string // "loaded", "not-found", "masked", …
	FileState   string // "enabled", "disabled", "static", …; "" for generated ones
	ActiveState string // "active", "inactive", "failed", "activating", "deactivating", "reloading", …
	Result      string // of the last run: "success", "exit-code", "signal", …
	MainPID     int
	Group       string // control group, from its root
	Memory      int64  // bytes; 0 = not known
}

// isLive: it has processes, is about to have some, or holds something for them.
func (s unit) isLive() bool { return s.ActiveState != "inactive" && s.ActiveState != "failed" }

// isPopulated: a process of its control group lives, which systemd need not
// have noticed yet.
func (u *Units) isPopulated(s unit) bool {
	if s.Group == "" || s.Group == "/" {
		return false
	}
	text, err := os.ReadFile(u.eventsFile(s))
	return err == nil && strings.Contains(string(text), "populated 1")
}

func (u *Units) eventsFile(s unit) string {
	return filepath.Join(u.cfg.CgroupRoot, s.Group, "cgroup.events")
}

var properties = []string{"Id", "LoadState", "UnitFileState", "ActiveState", "Result", "MainPID", "ControlGroup", "MemoryCurrent"}

// show asks systemd about units, in their order.
func (u *Units) show(ctx context.Context, names []string) ([]unit, error) {
	args := append([]string{"show", "--property=" + strings.Join(properties, ",")}, names...)
	out, err := u.run(ctx, u.cfg.Systemctl, args...)
	if err != nil {
		return nil, fmt.Errorf("ask systemd about %s: %w", strings.Join(names, ", "), err)
	}
	list := parseShow(out)
	if len(list) != len(names) {
		return nil, fmt.Errorf("ask systemd about %s: it tells of %d units", strings.Join(names, ", "), len(list))
	}
	for i := range list {
		list[i].ID = names[i] // an alias has another Id
	}
	return list, nil
}

// parseShow reads KEY=VALUE lines; an empty line is between two units.
func parseShow(text string) []unit {
	var list []unit
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		var s unit
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "Id":
				s.ID = value
			case "LoadState":
				s.LoadState = value
			case "UnitFileState":
				s.FileState = value
			case "ActiveState":
				s.ActiveState = value
			case "Result":
				s.Result = value
			case "MainPID":
				s.MainPID, _ = strconv.Atoi(value) // 0 if it is none
			case "ControlGroup":
				s.Group = value
			case "MemoryCurrent": // "[not set]" without accounting, or 2^64-1
				if n, err := strconv.ParseInt(value, 10, 64); err == nil {
					s.Memory = n
				}
			}
		}
		if s.ID != "" {
			list = append(list, s)
		}
	}
	return list
}

func (u *Units) systemctl(ctx context.Context, args ...string) error {
	_, err := u.run(ctx, u.cfg.Systemctl, append([]string{"--no-ask-password"}, args...)...)
	return err
}

// run runs a program and returns what it writes.
func (u *Units) run(ctx context.Context, program string, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second // a child of its own may hold on to its output
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return out.String(), nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	}
	text := strings.Join(strings.Fields(said.String()), " ")
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	if text == "" {
		return "", err
	}
	return "", fmt.Errorf("%w: %s", err, text)
}

// mount mounts m, unless that is what is there.
func (u *Units) mount(ctx context.Context, m hypervisor.Mount) error {
	is, err := isMounted(m.Dir)
	if err == nil && is {
		err = fmt.Errorf("something is mounted there already; umount %s", m.Dir)
	}
	if err == nil {
		args := []string{"-t", m.Type}
		if m.Options != "" {
			args = append(args, "-o", m.Options)
		}
		_, err = u.run(ctx, "mount", append(args, "--", m.Device, m.Dir)...)
	}
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.Device, m.Dir, err)
	}
	return nil
}

// unmount unmounts m if it is there.
func (u *Units) unmount(ctx context.Context, m hypervisor.Mount) error {
	is, err := isMounted(m.Dir)
	if err == nil && !is {
		return nil
	}
	if err == nil {
		_, err = u.run(ctx, "umount", "--", m.Dir)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w; fuser -vm %s shows who uses it", m.Dir, err, m.Dir)
	}
	return nil
}

// isMounted looks into /proc/self/mountinfo: the fifth field is the directory,
// with blanks and the like as octal numbers, which conf refuses anyway.
func isMounted(dir string) (bool, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == filepath.Clean(dir) {
			return true, nil
		}
	}
	return false, nil
}
