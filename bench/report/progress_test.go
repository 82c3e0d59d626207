package report

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A screen understands what a Progress writes: text, carriage return, newline,
// "n lines up", "erase to the end of the line" and "of the screen".
type screen struct {
	lines  []string
	row    int
	column int
}

var escape = regexp.MustCompile(`^\x1b\[(\d*)([AJK])`)

func (s *screen) write(t *testing.T, text string) {
	t.Helper()
	for len(text) > 0 {
		for s.row >= len(s.lines) {
			s.lines = append(s.lines, "")
		}
		if m := escape.FindStringSubmatch(text); m != nil {
			text = text[len(m[0]):]
			switch m[2] {
			case "A":
				n, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatalf("escape %q: %v", m[0], err)
				}
				s.row -= n
			case "J":
				s.lines = s.lines[:s.row]
			case "K":
				s.lines[s.row] = string([]rune(s.lines[s.row])[:s.column])
			}
			continue
		}
		r := []rune(text)[0]
		text = text[len(string(r)):]
		switch r {
		case '\r':
			s.column = 0
		case '\n':
			s.row, s.column = s.row+1, 0
		case '\x1b':
			t.Fatalf("unknown sequence in %q", text)
		default:
			line := []rune(s.lines[s.row])
			line = append(line[:s.column], append([]rune{r}, line[min(s.column+1, len(line)):]...)...)
			s.lines[s.row] = string(line)
			s.column++
		}
	}
}

func TestProgressOnATerminal(t *testing.T) {
	var out bytes.Buffer
	var s screen
	now := time.Unix(0, 0)
	p := &Progress{out: &out, live: true, width: func() int { return 60 }, now: func() time.Time { return now }}
	shows := func(want ...string) {
		t.Helper()
		s.write(t, out.String())
		out.Reset()
		got := strings.TrimRight(strings.Join(s.lines, "\n"), "\n")
		if got != strings.Join(want, "\n") {
			t.Errorf("the screen shows\n%s\nwant\n%s", got, strings.Join(want, "\n"))
		}
	}
	fmt.Fprintln(p, "writing images")
	shows("writing images")
	p.Plan(4)
	p.Step("round 1 of 2  randwrite-4k-qd1-buffered  pollux-c")
	shows("writing images", "round 1 of 2  randwrite-4k-qd1-buffered  pollux-c", "", "[....................................]    0 %   0:00 so far")
	now = now.Add(time.Second)
	p.Figures(9152.4, 101.3, 388)
	shows("writing images", "round 1 of 2  randwrite-4k-qd1-buffered  pollux-c", "latest sample 9,152 IOPS   p50 101 µs   p99 388 µs", "[....................................]    0 %   0:01 so far")
	now = now.Add(time.Millisecond)
	p.Figures(1, 1, 1) // too soon to look at
	now = now.Add(2 * time.Second)
	p.Step("round 1 of 2  a workload whose name is longer than the terminal is wide, as many are")
	fmt.Fprint(p, "done with ", "the first\nand half a line")
	shows("writing images", "done with the first", "round 1 of 2  a workload whose name is longer than the ter…", "latest sample 1 IOPS   p50 1.00 µs   p99 1.00 µs", "[####...............]   25 %   0:03 so far, about 0:09 left")
	p.Close()
	shows("writing images", "done with the first")
	p.Step("another")
	p.Step("and another")
	p.Step("more than planned")
	shows("writing images", "done with the first", "more than planned", "latest sample 1 IOPS   p50 1.00 µs   p99 1.00 µs", "[###############....]   80 %   0:03 so far, about 0:01 left")
}

// TestProgressElsewhere: a file or pipe gets the logged lines and nothing else.
func TestProgressElsewhere(t *testing.T) {
	var out bytes.Buffer
	p := &Progress{out: &out, width: func() int { return 80 }, now: time.Now}
	p.Plan(2)
	p.Step("one")
	p.Figures(1, 2, 3)
	fmt.Fprintln(p, "one is done")
	p.Step("two")
	p.Close()
	if out.String() != "one is done\n" {
		t.Errorf("%q", out.String())
	}
}
