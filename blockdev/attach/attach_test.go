package attach

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pollux-project/pollux/blockdev/blocktest"
	"github.com/pollux-project/pollux/blockdev/export"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A rig serves one volume on a unix socket.
type rig struct {
	backend *blocktest.Backend
	mem     *blocktest.Mem
	vol     Volume
	cfg     Config
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "att") // short: socket paths have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		mem: blocktest.NewMem(32 << 20),
		vol: Volume{Resource: "web", Number: 0, Minor: 7, Socket: filepath.Join(dir, "s"), Export: "web root/0"},
		cfg: Config{Mode: ModeLoop, Dir: filepath.Join(dir, "dev"), RunDir: filepath.Join(dir, "run")},
	}
	r.backend = blocktest.NewBackend(r.mem, false)
	stop := r.serve(t)
	t.Cleanup(func() {
		stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// serve starts a server, as a daemon's start does; stop ends it.
func (r *rig) serve(t *testing.T) (stop func()) {
	t.Helper()
	srv := export.New(export.Config{})
	if err := srv.Add(r.vol.Export, r.backend); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Listen(export.Listener{Network: "unix", Address: r.vol.Socket}); err != nil {
		t.Fatal(err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{Mode: "ublk"}, {DeadTime: -time.Second}, {DeadTime: time.Millisecond}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	a, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := a.Attach(t.Context(), Volume{})
	if err != nil || d.Path() != "" {
		t.Errorf("none: %v %v", d, err)
	}
}

func TestVolumeValidate(t *testing.T) {
	ok := Volume{Resource: "r0", Export: "r0", Socket: "/s"}
	if err := ok.validate(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Volume){
		func(v *Volume) { v.Resource = "../../etc" },
		func(v *Volume) { v.Resource = ".." },
		func(v *Volume) { v.Resource = "" },
		func(v *Volume) { v.Export = "" },
		func(v *Volume) { v.Socket = "" },
		func(v *Volume) { v.Minor = -1 },
	} {
		v := ok
		change(&v)
		if err := v.validate(); err == nil {
			t.Errorf("%+v was accepted", v)
		}
	}
}

func TestLinks(t *testing.T) {
	c := Config{Dir: t.TempDir(), RunDir: t.TempDir()}
	v0 := Volume{Resource: "web", Number: 0, Minor: 3, Export: "web/0"}
	v1 := Volume{Resource: "web", Number: 1, Minor: 4, Export: "web/1"}
	one := Volume{Resource: "db", Implicit: true, Minor: 5, Export: "db"}
	for v, target := range map[Volume]string{v0: "/dev/loop90", v1: "/dev/loop91", one: "/dev/loop92"} {
		for range 2 { // a second time is as good
			if err := c.link(v, target); err != nil {
				t.Fatal(err)
			}
		}
	}
	for path, want := range map[string]string{
		"drbd3": "/dev/loop90", "drbd/by-res/web/0": "/dev/loop90",
		"drbd4": "/dev/loop91", "drbd/by-res/web/1": "/dev/loop91",
		"drbd5": "/dev/loop92", "drbd/by-res/db": "/dev/loop92",
	} {
		if got, err := os.Readlink(filepath.Join(c.Dir, path)); err != nil || got != want {
			t.Errorf("%s -> %q, %v", path, got, err)
		}
	}
	if err := c.link(v0, "/dev/loop93"); err != nil { // moved
		t.Fatal(err)
	}
	if err := c.unlink(v0, "/dev/loop90"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.Readlink(filepath.Join(c.Dir, "drbd3")); got != "/dev/loop93" {
		t.Errorf("a link to another device was removed: %q", got)
	}
	for v, target := range map[Volume]string{v0: "/dev/loop93", v1: "/dev/loop91", one: "/dev/loop92"} {
		if err := c.unlink(v, target); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(c.Dir, "drbd*", "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "drbd3"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.link(v0, "/dev/loop90"); err == nil || !strings.Contains(err.Error(), "not our link") {
		t.Errorf("over a foreign device: %v", err)
	}
}

func TestNote(t *testing.T) {
	c := Config{RunDir: filepath.Join(t.TempDir(), "new")}
	v := Volume{Resource: "web", Minor: 3}
	if _, ok, err := c.readNote(v); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	want := note{Device: "/dev/nbd5", Index: 5, Volume: "web/0"}
	if err := c.writeNote(v, want); err != nil {
		t.Fatal(err)
	}
	if n, ok, err := c.readNote(v); !ok || err != nil || n != want {
		t.Errorf("%+v %v %v", n, ok, err)
	}
	if err := os.WriteFile(c.notePath(v), []byte(`{"dev`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := c.readNote(v); ok || err != nil {
		t.Errorf("a cut note: %v %v", ok, err)
	}
	for range 2 {
		if err := c.removeNote(v); err != nil {
			t.Error(err)
		}
	}
}
