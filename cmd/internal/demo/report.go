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
	head := fmt.Sprintf("%6.1f s  ", time.Since(r.began).Seconds())
	for i, line := range wrapped(fmt.Sprintf(format, args...), lineWidth-indent) {
		if i > 0 {
			head = strings.Repeat(" ", indent)
		}
		text := head + line
		if r.terminal {
			text = "\x1b[1m" + text + "\x1b[0m"
		}
		fmt.Fprintln(r.out, text)
	}
}

// Columns of the output: what a terminal that is split in two has.
const (
	lineWidth = 100
	indent    = 10 // of all but the chapters' times
)

// wrapped breaks a text between words.
func wrapped(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// detail prints lines that belong to the chapter.
func (r *report) detail(format string, args ...any) {
	r.endLive()
	for text := range strings.Lines(fmt.Sprintf(format, args...)) {
		for i, line := range wrapped(text, lineWidth-indent-2) {
			if i > 0 {
				line = "  " + line
			}
			fmt.Fprintf(r.out, "%*s%s\n", indent, "", line)
		}
	}
}

// progress shows a line that the next one replaces; nothing without a terminal.
func (r *report) progress(format string, args ...any) {
	if r.terminal {
		fmt.Fprintf(r.out, "\r%*s%s\x1b[K", indent, "", wrapped(fmt.Sprintf(format, args...), lineWidth-indent-1)[0])
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

// A phase is one part of the outage.
type phase struct {
	what string
	took time.Duration
}

// outage draws the parts of an outage, one behind the other, each as long as it took.
func (r *report) outage(title string, phases []phase) {
	r.endLive()
	const width = lineWidth - 44
	whole := time.Duration(0)
	for _, p := range phases {
		whole += p.took
	}
	if whole <= 0 {
		return
	}
	fmt.Fprintf(r.out, "  %s\n", title)
	from := time.Duration(0)
	for _, p := range phases {
		left := int(from * width / whole)
		from += p.took
		fmt.Fprintf(r.out, "  %-32s%6.2f s  %*s%s\n", p.what, p.took.Seconds(), left, "", strings.Repeat("█", max(1, int(from*width/whole)-left)))
	}
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
