package attach

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func needLoop(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices and mounts need root")
	}
	for _, tool := range []string{"nbdfuse", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: run scripts/bootstrap", tool)
			}
			t.Skipf("%s is not installed: run scripts/bootstrap", tool)
		}
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestE2ELoop(t *testing.T) {
	needLoop(t)
	r := newRig(t)
	a, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := a.Attach(within(t, 20*time.Second), r.vol)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(r.cfg.Dir, "drbd7")
	if to, err := os.Readlink(link); err != nil || to != dev.Path() {
		t.Fatalf("link to %q, %v; device %s", to, err, dev.Path())
	}
	mnt := t.TempDir()
	command(t, "mkfs.ext4", "-q", link)
	command(t, "mount", link, mnt)
	text := bytes.Repeat([]byte("replicated\n"), 1000)
	werr := os.WriteFile(filepath.Join(mnt, "f"), text, 0o600)

	// No demotion while it is mounted, and it stays writable.
	if err := dev.SetReadOnly(within(t, time.Second), true); !errors.Is(err, ErrInUse) {
		t.Errorf("demoted while mounted: %v", err)
	}
	werr = errors.Join(werr, os.WriteFile(filepath.Join(mnt, "g"), text, 0o600))
	if err := dev.Detach(within(t, time.Second)); !errors.Is(err, ErrInUse) {
		t.Errorf("detached while mounted: %v", err)
	}
	command(t, "umount", mnt)
	if werr != nil {
		t.Error(werr)
	}

	// Nor while a program has it open without claiming it.
	f, err := os.Open(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.SetReadOnly(within(t, 200*time.Millisecond), true); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "it is open in process") {
		t.Errorf("demoted while open: %v", err)
	}
	f.Close()

	if err := dev.SetReadOnly(within(t, 5*time.Second), true); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(link, os.O_WRONLY, 0); err == nil {
		_, err = f.Write(make([]byte, 512))
		err = errors.Join(err, f.Sync())
		f.Close()
		if err == nil {
			t.Error("a read-only device was written")
		}
	}
	// The peer changes the data while we are Secondary: promotion must not
	// show what the kernel remembers.
	peek := func() byte {
		b := make([]byte, 512)
		f, err := os.Open(link)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b[0]
	}
	before := peek()
	if _, err := r.mem.WriteAt(bytes.Repeat([]byte{before + 1}, 512), 0); err != nil {
		t.Fatal(err)
	}
	if err := dev.SetReadOnly(within(t, 5*time.Second), false); err != nil {
		t.Fatal(err)
	}
	if got := peek(); got != before+1 {
		t.Errorf("stale data after promotion: %d instead of %d", got, before+1)
	}
	if err := dev.Detach(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); err == nil {
		t.Error("the link is left")
	}
	waitClosed(t, r)
}

// waitClosed waits until nbdfuse's connection is gone.
func waitClosed(t *testing.T, r *rig) {
	t.Helper()
	ctx := within(t, 5*time.Second)
	for r.backend.Opens() != 0 {
		if pause(ctx, time.Millisecond) != nil {
			t.Fatal("nbdfuse is still connected")
		}
	}
}

// A daemon that was killed leaves its loop device and mount point behind; the
// next one takes them down and attaches again.
func TestE2ELoopAfterKill(t *testing.T) {
	needLoop(t)
	r := newRig(t)
	a, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.Attach(within(t, 20*time.Second), r.vol)
	if err != nil {
		t.Fatal(err)
	}
	// In use: it can't be taken down, and that is said.
	f, err := os.Open(first.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attach(within(t, 200*time.Millisecond), r.vol); !errors.Is(err, ErrInUse) {
		t.Errorf("taken down while open: %v", err)
	}
	f.Close()
	second, err := a.Attach(within(t, 20*time.Second), r.vol)
	if err != nil {
		t.Fatal(err)
	}
	<-first.(*loopDevice).fuse.ended
	if err := second.Detach(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || bytes.Contains(mounts, []byte(r.cfg.RunDir)) {
		t.Errorf("a mount is left: %v", err)
	}
	waitClosed(t, r)
}

func TestE2ELoopRefused(t *testing.T) {
	needLoop(t)
	r := newRig(t)
	r.backend.Refuse(errors.New("this node is Secondary"))
	a, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attach(within(t, 10*time.Second), r.vol); err == nil || !strings.Contains(err.Error(), "nbdfuse: ") {
		t.Errorf("%v", err)
	}
	if err := unix.Unmount(r.cfg.mountPoint(r.vol), 0); err == nil {
		t.Error("something is mounted")
	}
}
