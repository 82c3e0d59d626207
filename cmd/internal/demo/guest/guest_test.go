package guest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/cmd/internal/demo/records"
)

// console ends the run after its limit-th acknowledgement.
type console struct {
	bytes.Buffer
	limit  int
	cancel context.CancelFunc
}

func (c *console) Write(p []byte) (int, error) {
	n, err := c.Buffer.Write(p)
	if len(records.Acks(c.String())) >= c.limit {
		c.cancel()
	}
	return n, err
}

// boot runs the guest on path until it has acknowledged n records.
func boot(t *testing.T, path string, run uint64, n int) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := &console{limit: n, cancel: cancel}
	if err := Run(ctx, Config{Path: path, Console: c, Run: run}); err != nil {
		t.Fatal(err)
	}
	return c.String()
}

func TestRunContinues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	first := boot(t, path, 1, 5)
	if !strings.HasPrefix(first, "FOUND 0 damaged 0\n") {
		t.Errorf("first run: %q", first)
	}
	// A crash in the middle of record 6: never acknowledged, no damage.
	torn, _ := records.Encode(6, 1)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(torn[:100]); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	second := boot(t, path, 2, 3)
	if !strings.HasPrefix(second, "FOUND 5 damaged 0\n") {
		t.Errorf("second run: %q", second)
	}
	acks := records.Acks(first + second)
	if lost := judge(t, path, acks); len(acks) != 8 || len(lost) != 0 {
		t.Errorf("%d acknowledged, want 8; lost: %v", len(acks), lost)
	}
}

func TestRunReportsDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	acks := records.Acks(boot(t, path, 1, 5))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, records.Size), records.Offset(3)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	text := boot(t, path, 2, 1)
	if want := "DAMAGED 3 the block is empty\nFOUND 5 damaged 1\n"; !strings.HasPrefix(text, want) {
		t.Errorf("console = %q, want %q first", text, want)
	}
	lost := judge(t, path, acks)
	if diff := cmp.Diff([]records.Loss{{Ack: acks[2], Why: "the block is empty"}}, lost); diff != "" {
		t.Errorf("lost (-want +got):\n%s", diff)
	}
}

func judge(t *testing.T, path string, acks []records.Ack) []records.Loss {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found, damaged, err := records.Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return records.Judge(acks, found, damaged)
}

func TestWaitPowerButton(t *testing.T) {
	dir := t.TempDir()
	event := func(kind, code, value byte) []byte {
		e := make([]byte, inputEventBytes)
		e[16], e[18], e[20] = kind, code, value
		return e
	}
	write := func(name string, events ...[]byte) {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Join(events, nil), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pattern := filepath.Join(dir, "event*")
	if err := WaitPowerButton(pattern); err == nil {
		t.Error("no error without any input device")
	}
	write("event0", event(1, 30, 1), event(1, 116, 0), event(0, 116, 1)) // another key, a release, no key
	if err := WaitPowerButton(pattern); err == nil {
		t.Error("no error although no power key was pressed")
	}
	write("event1", event(0, 0, 0), event(1, 116, 1))
	if err := WaitPowerButton(pattern); err != nil {
		t.Errorf("WaitPowerButton = %v", err)
	}
}
