package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// report prints the story: chapters with the time since the start, the words
// of the programs below them, and the table at the end. Not safe for concurrent use.
type report struct {
	out      io.Writer
	terminal bool
	began    time.Time
	live     bool // the cursor stands in a line that will be overwritten
}

func newReport(out io.Writer) *report {
	r := &report{out: out, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		r.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return r
}

// chapter prints what happens now.
func (r *report) chapter(format string, args ...any) {
	r.endLive()
	text := fmt.Sprintf("%6.1f s  %s", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
	if r.terminal {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Fprintln(r.out, text)
}

// detail prints lines that belong to the chapter.
func (r *report) detail(format string, args ...any) {
	r.endLive()
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(r.out, "          %s\n", strings.TrimRight(line, "\r\n"))
	}
}

// progress shows a line that the next one replaces; nothing without a terminal.
func (r *report) progress(format string, args ...any) {
	if r.terminal {
		fmt.Fprintf(r.out, "\r          %s\x1b[K", fmt.Sprintf(format, args...))
		r.live = true
	}
}

func (r *report) endLive() {
	if r.live {
		fmt.Fprint(r.out, "\r\x1b[K")
		r.live = false
	}
}

// row is one line of the table.
type row struct{ what, value string }

// table prints rows with their values in one column.
func (r *report) table(rows []row) {
	r.endLive()
	left, right := 0, 0
	for _, x := range rows {
		left, right = max(left, utf8.RuneCountInString(x.what)), max(right, utf8.RuneCountInString(x.value))
	}
	rule := "  +" + strings.Repeat("-", left+2) + "+" + strings.Repeat("-", right+2) + "+"
	fmt.Fprintln(r.out, rule)
	for _, x := range rows {
		fmt.Fprintf(r.out, "  | %-*s | %*s |\n", left, x.what, right, x.value)
	}
	fmt.Fprintln(r.out, rule)
}

// verdict prints the last word.
func (r *report) verdict(good bool, text string) {
	word, colour := "PASSED", "\x1b[1;32m"
	if !good {
		word, colour = "FAILED", "\x1b[1;31m"
	}
	if r.terminal {
		word = colour + word + "\x1b[0m"
	}
	fmt.Fprintf(r.out, "  %s: %s\n", word, text)
}
