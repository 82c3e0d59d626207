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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/replication/repltest"
)

var (
	bugsFlag = flag.String("bugs", "", "the planted bugs to be found: ten, more, ha, all, or names separated by commas; none without it")
	byFlag   = flag.String("by", "", "what is to find them: sim, hasim, crash, script, or any of several separated by commas; otherwise what each bug says")
	hunt     = flag.Duration("hunt", 0, "how long TestHunt simulates, in time of a processor")
	from     = flag.Uint64("from", 1, "the first seed of TestHunt")
	limit    = flag.Duration("limit", time.Minute, "how long one bug may take to be found, in time of a processor")
)

// A method is a test that looks for a bug until its first failure.
type method struct{ pkg, test string }

var methods = map[string]method{
	"sim":    {"replication/repltest/selftest", "^TestHunt$"},
	"hasim":  {"hypervisor/ha/hatest", "^TestHunt$"},
	"crash":  {"replication", "^TestCrashPoints$"},
	"script": {"replication", "^TestScripts$"},
}

// TestHunt simulates histories until one fails or -hunt is over; it is what
// TestSelfTest runs with a bug planted. Without -hunt it is one history.
func TestHunt(t *testing.T) {
	for seed := *from; ; seed++ {
		if err := repltest.Simulate(seed); err != nil {
			t.Fatalf("history %d: %v", seed, err)
		}
		if processorTime(t) >= *hunt {
			t.Logf("%d histories, nothing found", seed)
			return
		}
	}
}

// processorTime is what this process has used of a processor: others may be busy.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
	honest := map[string]string{}
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
			if pkg := methods[method].pkg; honest[pkg] == "" {
				var err error
				if honest[pkg], err = build(t.TempDir(), pkg, ""); err != nil {
					t.Fatal(err)
				}
			}
			how, took, err := b.hunt(t.TempDir(), method, honest[methods[method].pkg])
			if err != nil {
				t.Errorf("%s: %v", b.name, err)
				break
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

// build compiles the test of a method, with a bug if overlay is not empty.
func build(dir, pkg, overlay string) (binary string, err error) {
	binary = filepath.Join(dir, "planted.test")
	args := []string{"test", "-c", "-o", binary}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./"+pkg)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("does not compile: %w\n%s", err, out)
	}
	return binary, nil
}

// run runs a built test on one processor. out is empty if it did not fail.
func (m method) run(binary string, args ...string) (out string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20**limit) // the machine may be busy
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"-test.failfast", "-test.timeout=0", "-test.run=" + m.test}, args...)...)
	cmd.Dir = filepath.Join(root, m.pkg)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState != nil {
		took = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	var exit *exec.ExitError
	switch {
	case err == nil, ctx.Err() != nil:
		return "", took, nil
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return string(b), took, nil
	}
	return "", took, fmt.Errorf("%w\n%s", err, b)
}

// hunt builds the test of a method with the bug and runs it until it fails. how
// is what failed, empty if nothing did. A history that fails without the bug as
// well proves nothing: the hunt goes on behind it.
func (b bug) hunt(dir, by, honest string) (how string, took time.Duration, err error) {
	m, ok := methods[by]
	if !ok {
		return "", 0, fmt.Errorf("there is no method %s", by)
	}
	overlay, err := b.overlay(dir)
	if err != nil {
		return "", 0, err
	}
	binary, err := build(dir, m.pkg, overlay)
	if err != nil {
		return "", 0, err
	}
	for first := "1"; ; {
		var args []string
		if hunts(by) {
			args = []string{"-from=" + first, "-hunt=" + (*limit - took).String()}
		}
		out, more, err := m.run(binary, args...)
		took += more
		if err != nil || out == "" || took > *limit {
			return "", took, err
		}
		seed := failing.FindStringSubmatch(out)
		if !hunts(by) || seed == nil {
			return verdict(out), took, nil
		}
		same, _, err := m.run(honest, "-from="+seed[1], "-hunt=0s")
		if err != nil || same == "" {
			return verdict(out), took, err
		}
		n, _ := strconv.ParseUint(seed[1], 10, 64) // digits only
		first = strconv.FormatUint(n+1, 10)
	}
}

// hunts reports whether a method goes from seed to seed.
func hunts(by string) bool { return methods[by].test == "^TestHunt$" }

var failing = regexp.MustCompile(`history (\d+):`)

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
