package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeAgent answers each line that it reads by what answer returns.
func fakeAgent(t *testing.T, answer func(line, id string) string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		id := regexp.MustCompile(`"id": (\d+)`)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			number := ""
			if m := id.FindStringSubmatch(lines.Text()); m != nil {
				number = m[1]
			}
			fmt.Fprint(conn, answer(lines.Text(), number))
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return path
}

func TestAskAgent(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(line, id string) string
		want   string // of the error; "" = none
	}{
		{"well", func(line, id string) string {
			if id != "" {
				return "\xff{\"return\": " + id + "}\n"
			}
			return "{\"return\": {}}\n"
		}, ""},
		{"an old answer comes first", func(line, id string) string {
			if id != "" {
				return "{\"return\": {}}\n\xff{\"return\": 5}\n\xff{\"return\": " + id + "}\n"
			}
			return "{\"return\": {}}\n"
		}, ""},
		{"silence", func(string, string) string { return "" }, "deadline"},
		{"half", func(_, id string) string {
			if id != "" {
				return "\xff{\"return\": " + id + "}\n"
			}
			return ""
		}, "deadline"},
		{"a refusal", func(_, id string) string {
			if id != "" {
				return "\xff{\"return\": " + id + "}\n"
			}
			return "{\"error\": {\"class\": \"GenericError\", \"desc\": \"disabled\"}}\n"
		}, "disabled"},
		{"rubbish", func(string, string) string { return "\xffhello\n" }, "not an answer"},
		{"endless rubbish", func(string, string) string { return strings.Repeat("x", 5*maxAgentLine) }, "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err := askAgent(ctx, fakeAgent(t, tt.answer))
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("askAgent = %v, want %q", err, tt.want)
			}
			if tt.want == "deadline" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("askAgent = %v, want %v", err, context.DeadlineExceeded)
			}
		})
	}
}

// The real agent answers; stopped, it does not, and what it owes is no answer to
// the next question.
func TestAskRealAgent(t *testing.T) {
	program, err := exec.LookPath("qemu-ga")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v; CI must have it", err)
		}
		t.Skipf("%v; scripts/bootstrap installs it", err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "agent")
	cmd := exec.Command(program, "--method=unix-listen", "--path="+path, "--statedir="+dir, "--pidfile="+filepath.Join(dir, "pid"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, so it failed
	}()
	ask := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return askAgent(ctx, path)
	}
	for deadline := time.Now().Add(10 * time.Second); ask(time.Second) != nil; time.Sleep(10 * time.Millisecond) { // it tells nobody when it listens
		if time.Now().After(deadline) {
			t.Fatalf("the agent does not answer: %v", ask(time.Second))
		}
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := ask(200 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stopped agent: %v, want %v", err, context.DeadlineExceeded)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := ask(5 * time.Second); err != nil {
		t.Errorf("after that: %v", err)
	}
}
