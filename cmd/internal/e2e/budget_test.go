package e2e

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The budget is what one replicated write of 4 KiB may cost, counted and not
// timed, so that it is the same on every machine: heap allocations, system calls
// of both nodes by group, instructions of the core.
//
//	go test ./cmd/internal/e2e -run '^TestBudget$' -budget=check    # make budget
//	go test ./cmd/internal/e2e -run '^TestBudget$' -budget=update   # make budget-update: the file is written anew
//	go test ./cmd/internal/e2e -run '^TestBudgetPlanted$' -budget=planted   # each planted regression is found
var (
	budgetFlag = flag.String("budget", "", "check, update or planted: count what a write costs")
	budgetOnly = flag.String("budget-only", ".", "only figures that match this pattern")
)

const budgetFile = "testdata/budget.json"

// A figure is one line of the budget. It may reach Value times (1 + Tolerance),
// plus Slack: the first is for growth, the second for what is nearly nothing.
type figure struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"`
	Tolerance float64 `json:"tolerance"`
	Slack     float64 `json:"slack,omitempty"`
}

func (f figure) limit() float64 { return f.Value*(1+f.Tolerance) + f.Slack }

type budget struct {
	About   []string `json:"about"`
	Figures []figure `json:"figures"`
}

func readBudget(t *testing.T) (b budget) {
	t.Helper()
	text, err := os.ReadFile(budgetFile)
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	if err != nil {
		t.Fatalf("%s: %v", budgetFile, err)
	}
	return b
}

// rounds is how often each system call count is taken; medians count.
const rounds = 5

// measureBudget takes all figures.
func measureBudget(t *testing.T, only *regexp.Regexp) map[string]float64 {
	t.Helper()
	o := options{size: 64 << 20, settings: "[resource.r0]\nio = \"buffered\"\n", global: "net { ping-int 120; }"}
	got := map[string]float64{}
	if only.MatchString("allocations/") {
		o.bare = true
		p := newPair(t, o)
		p.runInside()
		for _, depth := range []int{1, 32} {
			maps.Copy(got, allocsPerWrite(t, p, depth))
		}
	}
	if only.MatchString("syscalls/") {
		needTool(t, "strace")
		o.bare = false
		p := newPair(t, o)
		taken := map[string][]float64{}
		for range rounds {
			for depth, writes := range map[int]int{1: 2048, 32: 8192} {
				for name, v := range syscallsPerWrite(t, p, depth, writes) {
					taken[name] = append(taken[name], v)
				}
			}
		}
		for name, v := range taken {
			slices.Sort(v)
			got[name] = v[len(v)/2]
		}
	}
	if only.MatchString("instructions/") {
		maps.Copy(got, instructionsPerWrite(t))
	}
	return got
}

// number shows three decimals of what is small, and none of thousands.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// judge compares what was measured with the budget.
func judge(b budget, got map[string]float64) (lines, broken []string) {
	for _, f := range b.Figures {
		is, ok := got[f.Name]
		if !ok {
			continue
		}
		verdict := "ok"
		switch {
		case is > f.limit():
			verdict = "OVER ITS LIMIT"
			broken = append(broken, fmt.Sprintf("%s: was %s a write, is %s, the limit is %s", f.Name, number(f.Value), number(is), number(f.limit())))
		case is < f.Value*(1-f.Tolerance)-f.Slack:
			verdict = "better: `make budget-update` holds it there"
		}
		lines = append(lines, fmt.Sprintf("%-30s %10s %10s %10s  %s", f.Name, number(f.Value), number(is), number(f.limit()), verdict))
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if !slices.ContainsFunc(b.Figures, func(f figure) bool { return f.Name == name }) {
			broken = append(broken, fmt.Sprintf("%s: is %s a write, and %s has no such line: run `make budget-update`", name, number(got[name]), budgetFile))
		}
	}
	return lines, broken
}

// tolerances of a new line. Counts of the data path repeat to 3 %; how often a
// thread sleeps depends on how long the machine takes to wake one.
func newFigure(name string) figure {
	f := figure{Name: name, Tolerance: 0.1}
	switch {
	case strings.HasPrefix(name, "allocations/"):
		f.Slack = 0.05 // timers, the lazy commit and the runtime's own
	case strings.HasSuffix(name, "/sleep"):
		f.Tolerance, f.Slack = 0.3, 0.1
	case strings.HasSuffix(name, "/sync"), strings.HasSuffix(name, "/other"):
		f.Slack = 0.05 // by the clock: epochs and commits end by a timer too
	}
	return f
}

// TestBudget holds a write to its budget. It costs a minute, so it runs only if
// -budget says so.
func TestBudget(t *testing.T) {
	if *budgetFlag != "check" && *budgetFlag != "update" {
		return
	}
	begin(t)
	only, err := regexp.Compile(*budgetOnly)
	if err != nil {
		t.Fatalf("-budget-only: %v", err)
	}
	b := readBudget(t)
	got := measureBudget(t, only)
	if *budgetFlag == "update" {
		updateBudget(t, b, got)
		return
	}
	lines, broken := judge(b, got)
	fmt.Printf("%-30s %10s %10s %10s\n%s\n", "per write of 4 KiB", "was", "is", "limit", strings.Join(lines, "\n"))
	if len(broken) > 0 {
		t.Errorf("a write costs more than its budget:\n  %s\nFind what has added it (strace -f -c, go test -bench Write ./replication), or, if it buys something, run\n"+
			"`make budget-update` and say in the commit what it buys.", strings.Join(broken, "\n  "))
	}
}

// updateBudget writes the file with what was measured; tolerances stay.
func updateBudget(t *testing.T, b budget, got map[string]float64) {
	t.Helper()
	for name, v := range got {
		i := slices.IndexFunc(b.Figures, func(f figure) bool { return f.Name == name })
		if i < 0 {
			i = len(b.Figures)
			b.Figures = append(b.Figures, newFigure(name))
		}
		b.Figures[i].Value = float64(int(v*1000+0.5)) / 1000
	}
	slices.SortFunc(b.Figures, func(x, y figure) int { return cmp.Compare(x.Name, y.Name) })
	text, err := json.MarshalIndent(b, "", "  ")
	if err == nil {
		err = os.WriteFile(budgetFile, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s is written anew: %d figures", budgetFile, len(got))
}

func TestJudgeBudget(t *testing.T) {
	b := budget{Figures: []figure{{"calls", 4, 0.1, 0}, {"allocations", 0.01, 0.1, 0.05}, {"unmeasured", 1, 0.1, 0}}}
	for _, tt := range []struct {
		name   string
		got    map[string]float64
		broken []string
	}{
		{"as it was", map[string]float64{"calls": 4, "allocations": 0.01}, nil},
		{"within tolerance and slack", map[string]float64{"calls": 4.3, "allocations": 0.05}, nil},
		{"better", map[string]float64{"calls": 1, "allocations": 0}, nil},
		{"one call more", map[string]float64{"calls": 5}, []string{"calls: was 4.000 a write, is 5.000, the limit is 4.400"}},
		{"one allocation more", map[string]float64{"allocations": 1.01}, []string{"allocations: was 0.010 a write, is 1.010, the limit is 0.061"}},
		{"a new figure", map[string]float64{"new": 1}, []string{"new: is 1.000 a write, and testdata/budget.json has no such line: run `make budget-update`"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, broken := judge(b, tt.got); !slices.Equal(broken, tt.broken) {
				t.Errorf("got %q, want %q", broken, tt.broken)
			}
		})
	}
}
