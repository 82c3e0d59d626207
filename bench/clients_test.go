package bench

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// A client that counts wrong, times wrong or does not keep the depth misses its
// bar; one that does not is not told apart from fio.
func TestYardstickFindsAWrongClient(t *testing.T) {
	y := yardsticks()[1] // write, depth 32, 10 ms: 3200 IOPS
	for _, tt := range []struct {
		name     string
		ops      int64
		p50, p99 time.Duration
		want     bool
	}{
		{"right", 3190, 10 * time.Millisecond, 10600 * time.Microsecond, true},
		{"keeps 24 of 32 in flight", 2400, 10 * time.Millisecond, 10600 * time.Microsecond, false},
		{"keeps 31 of 32 in flight", 3090, 10 * time.Millisecond, 10600 * time.Microsecond, false},
		{"counts every eighth twice", 3600, 10 * time.Millisecond, 10600 * time.Microsecond, false},
		{"times short", 3190, 8500 * time.Microsecond, 10600 * time.Microsecond, false},
		{"loses the slow ones", 3190, 10 * time.Millisecond, 10 * time.Millisecond, false},
	} {
		run := &result.Run{}
		add := func(client string, ops int64, p50, p99 time.Duration) {
			h := result.NewHistogram()
			h.RecordN(p50, ops*98/100)
			h.RecordN(p99, ops*2/100)
			run.Samples = append(run.Samples, result.Sample{Round: 1, Workload: y.workload.Name, Target: y.target(), Client: client, Seconds: 1, Ops: ops, Latency: h})
		}
		add(result.ClientGo, tt.ops, tt.p50, tt.p99)
		add(result.ClientFio, 3170, 10050*time.Microsecond, 11300*time.Microsecond)
		judgeYardstick(run, y)
		if len(run.Bars) != 1 || run.Bars[0].Met != tt.want {
			t.Errorf("%s: %+v", tt.name, run.Bars)
		}
	}
}

// Without the tools the check says what to install, and is no error.
func TestClientsWithoutTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	s := &session{out: &result.Run{}, began: time.Now()}
	s.cfg.setDefaults()
	if err := s.clients(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(s.out.Bars) > 0 || len(s.out.Notes) != 1 || !strings.Contains(s.out.Notes[0], "not cross-checked: nbdkit is not installed: apt-get install nbdkit; fio") {
		t.Errorf("%+v, %q", s.out.Bars, s.out.Notes)
	}
}

// fio runs with its own ordinary ways of taking answers.
func TestFioIsOrdinary(t *testing.T) {
	args := strings.Join(fioArgs(yardsticks()[2].workload, "nbd://x", Config{Seconds: 1, Warmup: 0.25}, mib, 1), " ")
	if strings.Contains(args, "batch") || !strings.Contains(args, "--iodepth=8 --numjobs=4 ") {
		t.Error(args)
	}
}
