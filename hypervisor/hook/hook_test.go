package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script writes an executable shell script.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRun(t *testing.T) {
	in := Input{
		Event: "on-promote", Node: "alpha", VM: "web", Peer: "bravo", Resources: []string{"web-root"}, Term: 17,
		Reason: "bravo was declared dead", Time: time.Date(2026, 11, 21, 23, 50, 20, 0, time.UTC),
	}
	res := Run(t.Context(), Hook{Command: []string{script(t, `cat; echo "$1 $POLLUX_EVENT $HOME" >&2`), "an argument"}, Timeout: time.Minute}, in)
	if res.Err != nil || res.Killed {
		t.Fatalf("%+v", res)
	}
	line, rest, _ := strings.Cut(res.Output, "\n")
	var got Input
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, got); diff != "" {
		t.Errorf("it reads (-want +got):\n%s", diff)
	}
	if rest != "an argument on-promote \n" {
		t.Errorf("argument, event and environment: %q", rest)
	}
}

func TestRunFails(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command []string
		want    string
	}{
		{"status", []string{script(t, "echo no such host >&2; echo more; exit 3")}, "exit status 3: no such host"},
		{"absent", []string{"/nonexistent/hook"}, "no such file"},
		{"a signal", []string{script(t, "kill -9 $$")}, "signal: killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res := Run(t.Context(), Hook{Command: tt.command, Timeout: time.Minute}, Input{Event: "on-demote"})
			if res.Err == nil || res.Killed || !strings.Contains(res.Err.Error(), tt.want) {
				t.Errorf("%+v, want %q", res, tt.want)
			}
			if s := res.String(); strings.Contains(s, "\n") || !strings.Contains(s, "hook on-demote "+tt.command[0]) {
				t.Errorf("the line for the log is %q", s)
			}
		})
	}
}

// A hook that hangs is killed with what it has started, in time, also if that
// holds on to the output.
func TestRunHangs(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	hook := script(t, `sleep 300 & echo $! > `+pidFile+`; echo begun; trap "" TERM; wait; sleep 300`)
	began := time.Now()
	res := Run(t.Context(), Hook{Command: []string{hook}, Timeout: 300 * time.Millisecond}, Input{Event: "on-demote"})
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if !res.Killed || res.Err == nil || !strings.Contains(res.Err.Error(), "it had not ended within 300ms") || res.Output != "begun\n" {
		t.Errorf("%+v", res)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	// Its parent is dead: whoever inherits it collects it some time, so a zombie will do.
	deadline := time.Now().Add(5 * time.Second)
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("what the hook has started lives on: %s", stat)
		}
		time.Sleep(5 * time.Millisecond) // nobody tells of a process that isn't our child
	}
}

func TestRunWritesMuch(t *testing.T) {
	res := Run(t.Context(), Hook{Command: []string{script(t, "head -c 1000000 /dev/zero | tr '\\0' x")}, Timeout: time.Minute}, Input{})
	want := strings.Repeat("x", maxOutput) + fmt.Sprintf("\n… and %d bytes more", 1000000-maxOutput)
	if res.Err != nil || res.Output != want {
		t.Errorf("%d bytes, %v; want %d", len(res.Output), res.Err, len(want))
	}
}

// What a hook leaves in the background on purpose lives, and holds nothing up.
func TestRunLeavesDaemon(t *testing.T) {
	began := time.Now()
	res := Run(t.Context(), Hook{Command: []string{script(t, "sleep 5 & echo $!")}, Timeout: time.Minute}, Input{})
	if d := time.Since(began); d > 4*time.Second || res.Err != nil {
		t.Errorf("%+v after %v", res, d)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(res.Output))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("it does not live: %v", err)
	}
}

type collector struct {
	mu   sync.Mutex
	list []Result
}

func (c *collector) add(r Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, r)
}

// Those of one key keep their order; a key that hangs holds no other up, and
// the caller is never held up.
func TestRunner(t *testing.T) {
	var c collector
	r := New(c.add)
	dir := t.TempDir()
	hang := Hook{Command: []string{script(t, "sleep 300")}, Timeout: time.Second}
	mark := Hook{Command: []string{script(t, "echo $POLLUX_EVENT >> "+dir+"/$1"), "web"}, Timeout: time.Minute}
	began := time.Now()
	r.Start("db", hang, Input{Event: "on-promote"})
	var want []string
	for i := range 10 {
		event := fmt.Sprintf("event-%d", i)
		want = append(want, event)
		r.Start("web", mark, Input{Event: event})
	}
	r.Start("web", Hook{}, Input{Event: "no command"})
	if d := time.Since(began); d > 500*time.Millisecond {
		t.Errorf("the caller was held up for %v", d)
	}
	r.Close(t.Context())
	text, err := os.ReadFile(filepath.Join(dir, "web"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, strings.Fields(string(text))); diff != "" {
		t.Errorf("order of the runs (-want +got):\n%s", diff)
	}
	if len(c.list) != 11 || c.list[len(c.list)-1].Key != "db" || !c.list[len(c.list)-1].Killed {
		t.Errorf("results: %v", c.list)
	}
}

func TestRunnerFull(t *testing.T) {
	var c collector
	r := New(c.add)
	hang := Hook{Command: []string{script(t, "sleep 300")}, Timeout: time.Minute}
	for range maxQueue + 2 {
		r.Start("web", hang, Input{Event: "on-demote"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Close(ctx) // kills them
	busy, killed := 0, 0
	for _, res := range c.list {
		if errors.Is(res.Err, ErrBusy) {
			busy++
		} else if res.Err != nil {
			killed++
		}
	}
	if busy != 2 || killed != maxQueue {
		t.Errorf("%d were refused and %d ended, want 2 and %d", busy, killed, maxQueue)
	}
}
