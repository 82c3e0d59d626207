package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestTimerSlack: every thread of polluxd has been told that its timers may be
// late, the monitor of Go's scheduler with them. By default its naps are half of
// what a small write costs in context switches.
func TestTimerSlack(t *testing.T) {
	p := newPair(t, options{size: 1 << 20})
	pid := p.a.proc.cmd.Process.Pid
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		slack, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ESRCH): // it has ended
		case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EINVAL):
			// Needs CAP_SYS_NICE for another process's threads (proc(5)).
			t.Skipf("another thread's timer slack cannot be read here: %v", err)
		case err != nil:
			t.Fatal(err)
		case strings.TrimSpace(string(slack)) != "1000000":
			t.Errorf("thread %s: %s ns, want 1000000", thread.Name(), strings.TrimSpace(string(slack)))
		}
	}
}
