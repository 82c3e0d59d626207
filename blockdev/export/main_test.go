package export_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/blockdev/blocktest"
	"github.com/pollux-project/pollux/blockdev/export"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A rig is a server with one volume, "web-root", on a unix socket.
type rig struct {
	srv     *export.Server
	backend *blocktest.Backend
	socket  string
}

func newRig(t testing.TB, dev blockdev.Device, cfg export.Config) *rig {
	t.Helper()
	// Socket paths are short: t.TempDir's may not be.
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{srv: export.New(cfg), backend: blocktest.NewBackend(dev, false), socket: filepath.Join(dir, "s")}
	if err := r.srv.Add("web-root", r.backend); err != nil {
		t.Fatal(err)
	}
	if _, err := r.srv.Listen(export.Listener{Network: "unix", Address: r.socket}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if n := r.backend.Opens(); n != 0 {
			t.Errorf("%d clients are left", n)
		}
		r.backend.Close()
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(r.socket); err == nil {
			t.Error("the socket's file is left")
		}
		os.RemoveAll(dir)
	})
	return r
}

func memRig(t testing.TB, size int64) *rig {
	t.Helper()
	return newRig(t, blocktest.NewMem(size), export.Config{})
}

// uri names the volume for libnbd and QEMU.
func (r *rig) uri(name string) string { return "nbd+unix:///" + name + "?socket=" + r.socket }

func (r *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// oracle returns a test client's path; without it the test is skipped on a
// developer's machine and fails in CI.
func oracle(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: run scripts/bootstrap", name)
	}
	t.Skipf("%s is not installed: run scripts/bootstrap", name)
	return ""
}

// run runs a client and returns its output; a failure ends the test.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryRun(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, oracle(t, name), args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Dir = t.TempDir() // fio leaves state files
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return out.String(), err
}

func fileDevice(t testing.TB, size int64, direct bool) (blockdev.Device, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dev, err := blockdev.Open(path, blockdev.Options{Direct: direct, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	return dev, path
}
