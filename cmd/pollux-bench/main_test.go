package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// write leaves a run of six rounds with this latency below dir.
func write(t *testing.T, dir, name, target string, latency time.Duration) string {
	t.Helper()
	start := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	run := &result.Run{
		Format: result.Format, Started: start, Ended: start.Add(time.Minute),
		Workloads: []result.Workload{{Name: "randwrite-4k-qd1-buffered", Op: result.OpWrite, Pattern: result.PatternRandom, BlockBytes: 4096, Depth: 1, Connections: 1, Class: result.ClassBuffered}},
		Targets:   []result.Target{{Name: target, Kind: result.KindPollux}},
	}
	for round := 1; round <= 6; round++ {
		h := result.NewHistogram()
		d := latency + time.Duration(round)*time.Microsecond
		h.RecordN(d, 1000)
		run.Samples = append(run.Samples, result.Sample{
			Round: round, Workload: "randwrite-4k-qd1-buffered", Target: target, Client: result.ClientGo, Seconds: 1, Ops: int64(time.Second / d), Latency: h, CPUMicros: 30,
		})
	}
	name = filepath.Join(dir, name)
	if err := run.Write(name); err != nil {
		t.Fatal(err)
	}
	return name
}

// call runs the program's commands; status is its exit status.
func call(t *testing.T, args ...string) (stdout string, status int, err error) {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "stdout")
	if err != nil {
		t.Fatal(err)
	}
	saved := os.Stdout
	os.Stdout = file
	err = dispatch(context.Background(), args)
	os.Stdout = saved
	if err != nil {
		status = 1
		if errors.As(err, new(usageError)) {
			status = 2
		}
	}
	text, rerr := os.ReadFile(file.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(text), status, errors.Join(err, file.Close())
}

func TestCommands(t *testing.T) {
	dir := t.TempDir()
	a, same, slower := write(t, dir, "a.json", "pollux-c", 100*time.Microsecond), write(t, dir, "same.json", "pollux-c", 100*time.Microsecond), write(t, dir, "slower.json", "pollux-c", 130*time.Microsecond)
	other := write(t, dir, "other.json", "qemu-nbd", 100*time.Microsecond)
	old, none, page := filepath.Join(dir, "old.json"), filepath.Join(dir, "none.json"), filepath.Join(dir, "page.html")
	if err := os.WriteFile(old, []byte(`{"format": "pollux-bench/1"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(none, []byte("class depth\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		status int
		stdout string // is in it
		err    string // is in it
	}{
		{"report " + a + " -o " + page, 0, page, ""},
		{"report -table " + a, 0, "4 KiB random write, buffered, QD 1", ""},
		{"report -markdown " + a, 0, "| **pollux-c** |", ""},
		{"report -svg " + filepath.Join(dir, "svg") + " " + a, 0, "percentiles-randwrite-4k-qd1-buffered.svg", ""},
		{"report " + none, 2, "", none + ": not a result of pollux-bench: not JSON"},
		{"report " + old, 2, "", old + `: format "pollux-bench/1" is not known`},
		{"report " + filepath.Join(dir, "nobody.json"), 2, "", "nobody.json: no such file"},
		{"report", 2, "", "0 are named"},
		{"report -colour " + a, 2, "", "-colour"},
		{"compare " + a + " " + same, 0, "no difference shown", ""},
		{"compare " + a + " " + slower, 0, "slower", ""},
		{"compare " + a + " " + same + " -fail-above 5%", 0, "no difference shown", ""},
		{"compare -fail-above 5% " + a + " " + slower, 1, "slower", "worse by more than 5%"},
		{"compare -fail-above 50 " + a + " " + slower, 0, "slower", ""},
		{"compare -fail-above 5% " + slower + " " + a, 0, "faster", ""},
		{"compare -fail-above much " + a + " " + slower, 2, "", `-fail-above "much"`},
		{"compare " + a + " " + other, 2, "", "no workload and target in common"},
		{"compare " + a + " " + none, 2, "", "not JSON"},
		{"compare " + old + " " + a, 2, "", "pollux-bench/1"},
		{"compare " + a, 2, "", "compare takes 2 results"},
		{"-help", 0, "compare  tell what changed", ""},
		{"draw " + a, 2, "", `no command "draw"`},
	} {
		t.Run(strings.ReplaceAll(tt.args, dir+"/", ""), func(t *testing.T) {
			stdout, status, err := call(t, strings.Fields(tt.args)...)
			if status != tt.status || !strings.Contains(stdout, tt.stdout) {
				t.Errorf("status %d (want %d), %v, stdout:\n%s", status, tt.status, err, stdout)
			}
			if tt.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
	if text, err := os.ReadFile(page); err != nil || !strings.HasPrefix(string(text), "<!DOCTYPE html>") {
		t.Errorf("the page: %v, %.40q", err, text)
	}
	stdout, _, err := call(t, "compare", "-json", a, slower)
	var c result.Comparison
	if err := errors.Join(err, json.Unmarshal([]byte(stdout), &c)); err != nil || !c.Interleaved || c.Pairings[0].Changes[0].Verdict != result.Slower {
		t.Errorf("as JSON: %v: %s", err, stdout)
	}
}
