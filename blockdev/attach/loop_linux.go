package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A looper attaches by nbdfuse and a loop device.
type looper struct{ cfg Config }

// A loopDevice is a volume on a loop device. Its nbdfuse ends when its mount
// point is unmounted.
type loopDevice struct {
	cfg  Config
	vol  Volume
	path string // "/dev/loop3"
	fuse *fuse
}

// A fuse is a running nbdfuse.
type fuse struct {
	cmd    *exec.Cmd
	mount  string
	ended  chan struct{}
	stderr tail
}

// mountPoint is where a volume's nbdfuse shows its file.
func (c Config) mountPoint(v Volume) string { return filepath.Join(c.RunDir, v.name()) }

// fuseFile is the name that nbdfuse gives the export.
const fuseFile = "nbd"

// Attach implements Attacher.
func (l *looper) Attach(ctx context.Context, v Volume) (Device, error) {
	if err := v.validate(); err != nil {
		return nil, err
	}
	fail := func(err error) (Device, error) {
		return nil, fmt.Errorf("attach %s by nbdfuse and loop: %w", v.Export, err)
	}
	if err := l.takeDown(ctx, v); err != nil {
		return fail(err)
	}
	f, err := startFuse(ctx, l.cfg.mountPoint(v), v)
	if err != nil {
		return fail(err)
	}
	d := &loopDevice{cfg: l.cfg, vol: v, fuse: f}
	var index int
	d.path, index, err = setUpLoop(filepath.Join(f.mount, fuseFile))
	if err == nil {
		err = l.cfg.writeNote(v, note{Device: d.path, Index: index, Volume: v.id()})
	}
	if err == nil {
		err = l.cfg.link(v, d.path)
	}
	if err != nil {
		return fail(errors.Join(err, d.Detach(ctx)))
	}
	return d, nil
}

// takeDown removes what an earlier process left for this minor. Its nbdfuse
// has lost its server and can't be used again.
func (l *looper) takeDown(ctx context.Context, v Volume) error {
	n, ok, err := l.cfg.readNote(v)
	if err != nil {
		return err
	}
	mount := l.cfg.mountPoint(v)
	if ok && isLoopOn(n.Device, filepath.Join(mount, fuseFile)) {
		if err := checkIdle(ctx, n.Device); err != nil {
			return fmt.Errorf("it is still attached from before a restart, and its data is gone: unmount it: %w", err)
		}
		if err := clearLoop(ctx, n.Device); err != nil {
			return err
		}
		if err := l.cfg.unlink(v, n.Device); err != nil {
			return err
		}
	}
	if err := unmount(ctx, mount); err != nil {
		return err
	}
	return l.cfg.removeNote(v)
}

// Path implements Device.
func (d *loopDevice) Path() string { return d.path }

// SetReadOnly implements Device.
func (d *loopDevice) SetReadOnly(ctx context.Context, isReadOnly bool) error {
	return setReadOnly(ctx, d.path, isReadOnly)
}

// SetPatient implements Device; there is no limit to take away.
func (d *loopDevice) SetPatient(bool) error { return nil }

// Detach implements Device. It goes on with what is left when called again
// after an error.
func (d *loopDevice) Detach(ctx context.Context) error {
	if d.path != "" {
		if err := checkIdle(ctx, d.path); err != nil {
			return err
		}
		if err := d.cfg.unlink(d.vol, d.path); err != nil {
			return err
		}
		if err := clearLoop(ctx, d.path); err != nil {
			return err
		}
		d.path = ""
	}
	if d.fuse != nil {
		if err := d.fuse.stop(ctx); err != nil {
			return err
		}
		d.fuse = nil
	}
	return d.cfg.removeNote(d.vol)
}

// startFuse runs nbdfuse and waits until its file is there.
func startFuse(ctx context.Context, mount string, v Volume) (*fuse, error) {
	path, err := exec.LookPath("nbdfuse")
	if err != nil {
		return nil, errors.New("nbdfuse is not installed: install the package libnbd-bin, or set attach-device = none")
	}
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return nil, err
	}
	f := &fuse{mount: mount, ended: make(chan struct{})}
	// --unix would take the default export only; the URI's parts are escaped.
	f.cmd = exec.Command(path, mount, "nbd+unix:///"+escape(v.Export)+"?socket="+escape(v.Socket))
	f.cmd.Stderr = &f.stderr
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is not for it
	if err := f.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = f.cmd.Wait() // whatever it is, its own words say more
		close(f.ended)
	}()
	for {
		if st, err := os.Stat(filepath.Join(mount, fuseFile)); err == nil && st.Mode().IsRegular() {
			return f, nil
		}
		select {
		case <-f.ended:
			return nil, errors.Join(fmt.Errorf("nbdfuse: %s", f.stderr.text()), unmount(ctx, mount))
		default:
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return nil, errors.Join(fmt.Errorf("nbdfuse does not come up: %w", err), f.stop(context.WithoutCancel(ctx)))
		}
	}
}

// escape makes s safe inside a URI's path or query.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch ch := s[i]; {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9', strings.IndexByte("-._~/", ch) >= 0:
			b.WriteByte(ch)
		default:
			fmt.Fprintf(&b, "%%%02X", ch)
		}
	}
	return b.String()
}

// stopTime is how long nbdfuse may take to end once it is unmounted.
const stopTime = 5 * time.Second

// stop unmounts nbdfuse's file system and waits for its end.
func (f *fuse) stop(ctx context.Context) error {
	if err := unmount(ctx, f.mount); err != nil {
		return err
	}
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-f.ended:
	case <-timer.C:
		_ = f.cmd.Process.Kill() // it may have ended this moment
		<-f.ended
	}
	return nil
}

// unmount removes a mount point of ours, and the directory. One that is not
// there is none of our business.
func unmount(ctx context.Context, mount string) error {
	for {
		err := unix.Unmount(mount, unix.UMOUNT_NOFOLLOW)
		if err == unix.EBUSY {
			if pause(ctx, 20*time.Millisecond) == nil {
				continue
			}
		}
		switch err {
		case nil, unix.EINVAL, unix.ENOENT: // EINVAL: nothing is mounted there
		default:
			return fmt.Errorf("unmount %s: %w", mount, err)
		}
		break
	}
	if err := os.Remove(mount); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// loopTries bounds the race with others who take the loop device that the
// kernel has just named as free.
const loopTries = 16

// setUpLoop puts a loop device on a file and returns its path and number.
// Loop numbers are global to the machine: it is always one that the kernel
// chose.
func setUpLoop(file string) (string, int, error) {
	back, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", file, err)
	}
	defer unix.Close(back)
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", 0, fmt.Errorf("/dev/loop-control: %w", err)
	}
	defer unix.Close(ctl)
	for range loopTries {
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", 0, fmt.Errorf("find a free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		err = configureLoop(path, back, file)
		if err == unix.EBUSY {
			continue
		}
		if err != nil {
			return "", 0, fmt.Errorf("%s: set up on %s: %w", path, file, err)
		}
		return path, n, nil
	}
	return "", 0, errors.New("others take every free loop device")
}

func configureLoop(path string, back int, file string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	cfg := unix.LoopConfig{Fd: uint32(back), Size: 512}
	cfg.Info.Flags = unix.LO_FLAGS_DIRECT_IO // no second copy in the page cache
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file)
	return unix.IoctlLoopConfigure(fd, &cfg)
}

// isLoopOn reports whether a loop device stands on a file of that path.
func isLoopOn(device, file string) bool {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	return err == nil && strings.TrimSpace(string(b)) == file
}

// clearLoop frees a loop device that nobody has open, and waits until it is
// free: udev may hold it for a moment.
func clearLoop(ctx context.Context, path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: free it: %w", path, err)
	}
	err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	unix.Close(fd)
	if err != nil && err != unix.ENXIO { // ENXIO: free already
		return fmt.Errorf("%s: free it: %w", path, err)
	}
	for {
		_, err := os.Stat(filepath.Join("/sys/block", filepath.Base(path), "loop"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("%s: free it: %w", path, ErrInUse)
		}
	}
}

// A tail keeps the end of what a program says, for an error's text.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 1000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := strings.TrimSpace(string(t.b)); s != "" {
		return s
	}
	return "it ended without a word"
}
