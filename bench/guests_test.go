package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// One line of each kind, as speed --samples prints them, shortened.
const guestLines = `{"rate": 412.5, "unit": "IOPS", "writes": 1000, "bytes": 4096000, "p50": 2200.1, "p99": 4300.0, "fio": {"fio version": "fio-3.33", "jobs": [{"jobname": "w", "error": 0, "read": {"total_ios": 0}, "write": {"io_bytes": 4096000, "total_ios": 1000, "runtime": 2500, "lat_ns": {"bins": {"2211840": 990, "4292608": 10}}}}]}, "a": {"uptime": 3.2, "ctxt": 7700, "guest_cpu": 2.5, "tx_packets": 3000, "rx_packets": 3000, "tx_bytes": 4500000, "disk_writes": 1000, "disk_flushes": 0, "daemon_cpu": 0}, "b": {"ctxt": 4900, "guest_cpu": 1.5, "tx_packets": 3100, "disk_flushes": 20}, "round": 2, "pair": "md", "workload": "randwrite-4k-qd1"}
{"rate": 21.5, "unit": "MiB/s", "bytes": 67108864, "writes": 0, "seconds": 2.97, "a": {"guest_cpu": 1.7}, "b": {"guest_cpu": 2.2}, "round": 2, "pair": "kk", "workload": "resync-a-to-b"}
`

func guestSession(t *testing.T) *session {
	t.Helper()
	l, err := newLab(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(false); err != nil {
			t.Error(err)
		}
	})
	return &session{cfg: Config{Bin: filepath.Join(t.TempDir(), "bin"), Rounds: 5, Progress: io.Discard}, lab: l, out: &result.Run{Format: result.Format}, began: time.Now()}
}

func TestGuestLines(t *testing.T) {
	s := guestSession(t)
	if err := s.readGuests(strings.NewReader(guestLines + `{"end": true, "clocks": [0.999, 1.001], "trusted": true}` + "\n")); err != nil {
		t.Fatal(err)
	}
	if err := s.out.Validate(); err != nil {
		t.Error(err)
	}
	if len(s.out.Samples) != 1 || len(s.out.Notes) != 1 {
		t.Fatalf("%d samples, notes %q: want one of each", len(s.out.Samples), s.out.Notes)
	}
	got := s.out.Samples[0]
	if got.Target != "guest-md" || got.Client != result.ClientGuestFio || got.Workload != "guest-randwrite-4k-qd1-direct" || got.Round != 2 {
		t.Errorf("the sample is of %s, %s, %s, round %d", got.Target, got.Client, got.Workload, got.Round)
	}
	if got.IOPS() != 400 || math.Abs(got.CPUMicros-4000) > 1e-6 || got.Latency.Count() != 1000 {
		t.Errorf("%v IOPS, CPU %v us, %d latencies: want 400, 4000, 1000", got.IOPS(), got.CPUMicros, got.Latency.Count())
	}
	if p50, p99, top := got.Latency.PMicros(0.5), got.Latency.PMicros(0.99), got.Latency.PMicros(1); math.Abs(p50-2212) > 3 || math.Abs(p99-2212) > 3 || math.Abs(top-4293) > 5 {
		t.Errorf("p50 %v, p99 %v, max %v us", p50, p99, top)
	}
	want := map[string]float64{
		"guests: context switches of both nodes": 12.6, "guests: packets between them": 6.1,
		"guests: flushes of both disks": 0.02, "guests: resync of a whole disk": 21.5,
	}
	for _, m := range s.out.Measures {
		if math.Abs(m.Value-want[m.Name]) > 1e-9 {
			t.Errorf("%s of %s: %v, want %v", m.Name, m.Target, m.Value, want[m.Name])
		}
		delete(want, m.Name)
	}
	if len(want) > 0 {
		t.Errorf("no measure of %v", want)
	}
	if s.out.Target("guest-drbd").Kind != result.KindKernel || s.out.Target("guest-raw") != nil {
		t.Error("the targets are not those that were measured")
	}
}

// A line that can't be used is named; what follows it is taken all the same.
func TestGuestLinesThatAreWrong(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"no JSON", "a line of speed --samples"},
		{`{"pair": "xx", "workload": "randwrite-4k-qd1"}`, `no pair "xx"`},
		{`{"pair": "md", "workload": "sleep"}`, `no workload "sleep"`},
		{`{"pair": "md", "workload": "randwrite-4k-qd1"}`, "randwrite-4k-qd1 of md: fio printed no JSON"},
		{`{"pair": "md", "workload": "randwrite-4k-qd1", "fio": {"jobs": []}}`, "0 jobs"},
	} {
		s := guestSession(t)
		if err := s.readGuests(strings.NewReader(tt.line + "\n" + guestLines)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.line, err, tt.want)
		}
		if len(s.out.Samples) != 1 {
			t.Errorf("%s: %d samples, want the one that follows", tt.line, len(s.out.Samples))
		}
	}
}

func TestGuestClocksThatWentWrong(t *testing.T) {
	s := guestSession(t)
	if err := s.readGuests(strings.NewReader(`{"end": true, "clocks": [0.912, 1.001], "trusted": false}`)); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(s.out.Notes, "\n"); !strings.Contains(text, "not to be trusted") || !strings.Contains(text, "0.912") {
		t.Errorf("the notes are %q", text)
	}
}

func TestGuestsAreSkippedWithTheirPackages(t *testing.T) {
	script := filepath.Join(t.TempDir(), "speed")
	all := func(string) (string, error) { return "there", nil }
	if got := missingForGuests(script, all); !strings.Contains(got, "make bench-guests") {
		t.Errorf("without the script: %q", got)
	}
	if err := os.WriteFile(script, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := missingForGuests(script, all); got != "" {
		t.Errorf("with everything: %q", got)
	}
	without := func(missing string) func(string) (string, error) {
		return func(name string) (string, error) {
			if filepath.Base(name) == missing {
				return "", errors.New("none")
			}
			return name, nil
		}
	}
	if got := missingForGuests(script, without("qemu-system-x86_64")); !strings.Contains(got, "qemu-system-x86_64") || !strings.HasSuffix(got, "apt-get install qemu-system-x86") {
		t.Errorf("without QEMU: %q", got)
	}
	if got := missingForGuests(script, without("go")); !strings.Contains(got, "not installed: go") || strings.Contains(got, "apt-get") {
		t.Errorf("without Go: %q", got)
	}
	// mdadm may be found where only root looks.
	hidden := func(name string) (string, error) {
		if name == "mdadm" {
			return "", errors.New("not in PATH")
		}
		return name, nil
	}
	if got := missingForGuests(script, hidden); got != "" {
		t.Errorf("with mdadm in /usr/sbin: %q", got)
	}

	s := guestSession(t) // its bin lies in no checkout
	if err := s.guests(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(s.out.Targets) != len(guestPairs) {
		t.Errorf("%d targets, want all %d pairs", len(s.out.Targets), len(guestPairs))
	}
	for _, target := range s.out.Targets {
		if target.Skipped == "" {
			t.Errorf("%s was skipped without a reason", target.Name)
		}
	}
}

// A script that fails half-way leaves what it has measured, and the reason for the rest.
func TestGuestsThatEndEarly(t *testing.T) {
	s := guestSession(t)
	script := s.lab.path("speed")
	text := fmt.Sprintf("#!/bin/sh\ncat <<'END'\n%sEND\necho 'FAILED: no answer within 180 s' >&2\necho >&2\nexit 1\n", guestLines)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.runGuests(context.Background(), script); err != nil {
		t.Fatal(err)
	}
	if md := s.out.Target("guest-md"); md == nil || md.Skipped != "" {
		t.Errorf("what was measured: %+v", md)
	}
	if raw := s.out.Target("guest-raw"); raw == nil || !strings.Contains(raw.Skipped, "no answer within 180 s") {
		t.Errorf("what was not measured: %+v", raw)
	}
}

func TestGuestsAreChosenByTheirFlag(t *testing.T) {
	has := func(cfg Config) bool {
		for _, e := range chosen(cfg) {
			if e.name == "guests" {
				return true
			}
		}
		return false
	}
	if has(Config{}) || !has(Config{Guests: true}) || !has(Config{Only: regexp.MustCompile("^guests$")}) {
		t.Error("guests are run unasked, or not when asked for")
	}
}
