package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}`

// fakeQEMU accepts one client on a unix socket; answer gets each command and
// returns the lines to send.
func fakeQEMU(t *testing.T, greeting string, answer func(command) []string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
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
		fmt.Fprintf(conn, "%s\r\n", greeting)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var c command
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("the client sends %q: %v", lines.Text(), err)
				return
			}
			for _, line := range answer(c) {
				if line == "" {
					return
				}
				fmt.Fprintf(conn, "%s\r\n", line)
			}
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return path
}

func ok(c command, result string) []string {
	return []string{fmt.Sprintf(`{"return": %s, "id": %d}`, result, c.ID)}
}

func TestMonitor(t *testing.T) {
	path := fakeQEMU(t, greeting, func(c command) []string {
		switch c.Execute {
		case "query-status":
			event := `{"event": "STOP", "data": {"x": 1}, "timestamp": {"seconds": 12, "microseconds": 34}}`
			return append([]string{event}, ok(c, `{"status": "paused", "running": false}`)...)
		case "cont":
			return []string{fmt.Sprintf(`{"id": %d, "error": {"class": "GenericError", "desc": "no"}}`, c.ID)}
		case "silence":
			return nil
		case "quit":
			return []string{""}
		default:
			return ok(c, "{}")
		}
	})
	var events []Event
	m, err := DialMonitor(t.Context(), path, func(e Event) { events = append(events, e) })
	if err != nil {
		t.Fatal(err)
	}
	var s status
	if err := m.Execute(t.Context(), "query-status", nil, &s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(status{Status: "paused"}, s); diff != "" {
		t.Errorf("query-status (-want +got):\n%s", diff)
	}

	var refusal *CommandError
	if err := m.Execute(t.Context(), "cont", map[string]any{"a": 1}, nil); !errors.As(err, &refusal) {
		t.Errorf("cont = %v, want a *CommandError", err)
	} else if diff := cmp.Diff(&CommandError{Command: "cont", Class: "GenericError", Desc: "no"}, refusal); diff != "" {
		t.Errorf("cont (-want +got):\n%s", diff)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.Execute(ctx, "silence", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command without an answer = %v, want %v", err, context.DeadlineExceeded)
	}
	if err := m.Execute(t.Context(), "query-status", nil, &s); err != nil {
		t.Errorf("after a timeout the monitor is unusable: %v", err)
	}
	if err := m.Execute(t.Context(), "quit", nil, nil); !errors.Is(err, ErrMonitorClosed) {
		t.Errorf("a command that ends QEMU = %v, want %v", err, ErrMonitorClosed)
	}
	<-m.Done()
	if err := m.Execute(t.Context(), "cont", nil, nil); !errors.Is(err, ErrMonitorClosed) {
		t.Errorf("a command after the end = %v, want %v", err, ErrMonitorClosed)
	}
	if err := m.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	want := []Event{{Name: "STOP", Data: json.RawMessage(`{"x": 1}`), At: time.Unix(12, 34000)}}
	if diff := cmp.Diff(append(want, want...), events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestDialMonitorFails(t *testing.T) {
	accept := func(c command) []string { return ok(c, "{}") }
	for _, tt := range []struct {
		name, greeting string
		answer         func(command) []string
		want           string
	}{
		{"not QMP", "QEMU 7.2 monitor - type 'help'", accept, "not QMP"},
		{"no greeting", `{"foo": 1}`, accept, "unexpected line"},
		{"silence", "", accept, "not QMP"},
		{"refusal", greeting, func(c command) []string {
			return []string{fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "what?"}, "id": %d}`, c.ID)}
		}, "what?"},
		{"end", greeting, func(command) []string { return []string{""} }, "closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DialMonitor(t.Context(), fakeQEMU(t, tt.greeting, tt.answer), nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("DialMonitor = %v, want it to say %q", err, tt.want)
			}
		})
	}
}

// QEMU serves one client; the next one gets no greeting and must not hang.
func TestDialMonitorBusy(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := DialMonitor(ctx, l.Addr().String(), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("DialMonitor = %v, want %v", err, context.DeadlineExceeded)
	}
}

// Whatever comes over the socket, reading ends with an error and no panic.
func FuzzMonitor(f *testing.F) {
	f.Add(greeting + "\n" + `{"return": {}, "id": 1}` + "\n")
	f.Add(greeting + "\n" + greeting + "\n")
	f.Add(`{"event": "X", "timestamp": {"seconds": -1}}` + "\n" + `{"id": 18446744073709551615}`)
	f.Fuzz(func(t *testing.T, input string) {
		m := &Monitor{waiting: map[uint64]chan message{1: make(chan message, 1)}, onEvent: func(Event) {}}
		if err := m.readLines(bufio.NewScanner(strings.NewReader(input)), make(chan struct{})); err == nil {
			t.Error("reading ended without an error")
		}
	})
}
