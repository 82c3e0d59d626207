package selftest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/replication/repltest"
)

var (
	bugsFlag = flag.String("bugs", "", "the planted bugs to be found: ten, more, all, or names separated by commas; none without it")
	byFlag   = flag.String("by", "", "what is to find them: sim, crash, script, or any of several separated by commas; otherwise what each bug says")
	hunt     = flag.Duration("hunt", 0, "how long TestHunt simulates")
	limit    = flag.Duration("limit", time.Minute, "how long one bug may take to be found")
)

// A method is a test that looks for a bug until its first failure.
type method struct{ pkg, run string }

var methods = map[string]method{
	"sim":    {"replication/repltest/selftest", "^TestHunt$"},
	"crash":  {"replication", "^TestCrashPoints$"},
	"script": {"replication", "^TestScripts$"},
}

// TestHunt simulates histories until one fails or -hunt is over; it is what
// TestSelfTest runs with a bug planted. Without -hunt it is one history.
func TestHunt(t *testing.T) {
	began := time.Now()
	for seed := uint64(1); ; seed++ {
		if err := repltest.Simulate(seed); err != nil {
			t.Fatalf("history %d: %v", seed, err)
		}
		if time.Since(began) >= *hunt {
			t.Logf("%d histories, nothing found", seed)
			return
		}
	}
}

// TestSelfTest plants one bug at a time and lets one processor look for it. Each
// must be found within the limit. It costs minutes, so it runs only if -bugs
// says which.
func TestSelfTest(t *testing.T) {
	if *bugsFlag == "" {
		return
	}
	names := strings.Split(*bugsFlag, ",")
	wanted := func(b bug) bool {
		group, short, _ := strings.Cut(b.name, "/")
		return slices.Contains(names, "all") || slices.Contains(names, group) || slices.Contains(names, b.name) || slices.Contains(names, short)
	}
	var table []string
	for _, b := range loadBugs(t) {
		if !wanted(b) {
			continue
		}
		by := []string{b.finds}
		if *byFlag != "" {
			by = strings.Split(*byFlag, ",")
		}
		found := false
		for _, method := range by {
			how, took, err := b.hunt(t.TempDir(), method)
			if err != nil {
				t.Fatalf("%s: %v", b.name, err)
			}
			line := fmt.Sprintf("%-34s %-7s %6.1f s  %s", b.name, method, took.Seconds(), how)
			if how == "" {
				line += "NOT FOUND"
			}
			t.Log(line)
			table = append(table, line)
			if found = found || how != ""; found {
				break
			}
		}
		if !found {
			t.Errorf("%s (%s): not found by %s within %v", b.name, b.title, strings.Join(by, ", "), *limit)
		}
	}
	if len(table) == 0 {
		t.Fatalf("no planted bug is named %s", *bugsFlag)
	}
	fmt.Printf("%-34s %-7s %8s  %s\n%s\n", "planted bug", "method", "time", "found by", strings.Join(table, "\n"))
}

// hunt builds package replication's tests with the bug and runs one of them
// until it fails. how is what failed, empty if nothing did.
func (b bug) hunt(dir, by string) (how string, took time.Duration, err error) {
	m, ok := methods[by]
	if !ok {
		return "", 0, fmt.Errorf("there is no method %s", by)
	}
	overlay, err := b.overlay(dir)
	if err != nil {
		return "", 0, err
	}
	binary := filepath.Join(dir, "planted.test")
	build := exec.Command("go", "test", "-c", "-overlay", overlay, "-o", binary, "./"+m.pkg)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", 0, fmt.Errorf("does not compile: %w\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	run := exec.CommandContext(ctx, binary, "-test.failfast", "-test.timeout=0", "-test.run="+m.run)
	if by == "sim" {
		run.Args = append(run.Args, "-hunt="+limit.String())
	}
	run.Dir = filepath.Join(root, m.pkg)
	run.Env = append(os.Environ(), "GOMAXPROCS=1")
	began := time.Now()
	out, err := run.CombinedOutput()
	took = time.Since(began)
	var exit *exec.ExitError
	switch {
	case err == nil, ctx.Err() != nil:
		return "", took, nil
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return verdict(string(out)), took, nil
	}
	return "", took, fmt.Errorf("%w\n%s", err, out)
}

// said matches the first line of a failure: a history with its seed, a power
// cut, a difference to a golden script, a panic.
var said = regexp.MustCompile(`(?m)(history \d+: .*|power cut .*|without a crash: .*|\w+\.txt:\d+: .*|^panic: .*)$`)

func verdict(out string) string {
	s := said.FindString(out)
	if s == "" {
		s, _, _ = strings.Cut(strings.TrimSpace(out), "\n")
	}
	if len(s) > 150 {
		s = s[:150]
	}
	return s
}
