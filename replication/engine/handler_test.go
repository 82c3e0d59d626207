package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// handlerEngine is an engine of two volumes that nothing runs, and a directory.
func handlerEngine(t *testing.T, handlers map[string]string) (e *Engine, dir string) {
	t.Helper()
	dir = t.TempDir()
	a, _ := newPair(t, func(c *Config) {
		c.Handlers = handlers
		c.HandlerEnv = []string{"DRBD_RESOURCE=r0", "DRBD_MINOR=0 1", "DRBD_VOLUME=0 1", "DRBD_LL_DISK=/a /b", "DRBD_PEER=b", "DIR=" + dir}
		second := c.Volumes[0]
		second.Number, second.Minor, second.Disk = 1, 1, "/second"
		c.Volumes = append(c.Volumes, second)
	})
	e, err := New(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.halt)
	return e, dir
}

func (e *Engine) runHandlerNow(vol int, name string) {
	b := e.newBatch()
	e.mu.Lock()
	e.runHandler(b, vol, name)
	e.mu.Unlock()
	e.finish(b)
	e.freeBatch(b)
}

func awaitFile(t *testing.T, path string, whole func(string) bool) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // a process outside tells nothing: ask again
		b, err := os.ReadFile(path)
		if err == nil && whole(string(b)) {
			return string(b)
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %q, %v", path, b, err)
		}
	}
}

// A handler about one volume has that volume's values, one about the resource
// the lists; nothing of the daemon's own environment is in either.
func TestHandlerEnvironment(t *testing.T) {
	t.Setenv("SECRET", "the daemon's")
	const script = `echo "$0 $DRBD_RESOURCE $DRBD_MINOR|$DRBD_VOLUME|$DRBD_LL_DISK|$DRBD_PEER|$SECRET|$PWD" >>$DIR/out`
	e, dir := handlerEngine(t, map[string]string{"split-brain": script, "fence-peer": script})
	e.runHandlerNow(1, "split-brain")
	one := awaitFile(t, filepath.Join(dir, "out"), func(s string) bool { return strings.HasSuffix(s, "\n") })
	if want := "/bin/sh r0 1|1|/second|b||/\n"; one != want {
		t.Errorf("for one volume: %q, want %q", one, want)
	}
	e.runHandlerNow(0, "fence-peer")
	both := awaitFile(t, filepath.Join(dir, "out"), func(s string) bool { return strings.Count(s, "\n") == 2 })
	if want := one + "/bin/sh r0 0 1|0 1|/a /b|b||/\n"; both != want {
		t.Errorf("for the resource: %q, want %q", both, want)
	}
}

// Handlers of one volume run one after the other, in order; those of another
// volume do not wait for them.
func TestHandlerOrder(t *testing.T) {
	e, dir := handlerEngine(t, map[string]string{
		"before-resync-target": `while ! [ -e $DIR/go ]; do sleep 0.01; done; echo before >>$DIR/out`,
		"after-resync-target":  `echo after >>$DIR/out`,
		"split-brain":          `echo other >>$DIR/out; touch $DIR/go`,
	})
	e.runHandlerNow(0, "before-resync-target")
	e.runHandlerNow(0, "after-resync-target")
	e.runHandlerNow(1, "split-brain")
	got := awaitFile(t, filepath.Join(dir, "out"), func(s string) bool { return strings.Count(s, "\n") == 3 })
	if diff := cmp.Diff("other\nbefore\nafter\n", got); diff != "" {
		t.Error(diff)
	}
}

func TestHandlerExit(t *testing.T) {
	e, dir := handlerEngine(t, nil)
	run := func(line string, limit time.Duration) int {
		return e.handler(handlerRun{name: "fence-peer", line: line, env: []string{"PATH=/usr/bin:/bin", "DIR=" + dir}}, limit)
	}
	for _, tt := range []struct {
		line string
		want int
	}{
		{"exit 4", 4},
		{"true", 0},
		{"kill -9 $$", -1},
		{"/nonexistent/script", 127},
		{"yes | head -c 1000000; exit 5", 5},
		{"sleep 20 & exit 7", 7}, // what it leaves running is not waited for
	} {
		if got := run(tt.line, 10*time.Second); got != tt.want {
			t.Errorf("%s: exit %d, want %d", tt.line, got, tt.want)
		}
	}
	// At its limit it is killed with its children.
	began := time.Now()
	line := fmt.Sprintf("sh -c 'echo $$ >%s/pid; sleep 30; true' | cat", dir)
	if got := run(line, 200*time.Millisecond); got != -1 || time.Since(began) > 5*time.Second {
		t.Errorf("exit %d after %v", got, time.Since(began))
	}
	pid := strings.TrimSpace(awaitFile(t, filepath.Join(dir, "pid"), func(s string) bool { return s != "" }))
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) { // a process outside tells nothing: ask again
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the handler's child lives on: %s", b)
		}
	}
}
