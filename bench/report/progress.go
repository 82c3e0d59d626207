package report

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Progress shows how far a benchmark is: on a terminal a block of three lines
// that overwrites itself, below what has been logged; elsewhere nothing but
// the logged lines. It is safe for concurrent use.
type Progress struct {
	out   io.Writer
	live  bool             // out is a terminal
	width func() int       // of the terminal, in columns
	now   func() time.Time // the clock

	mu       sync.Mutex
	began    time.Time // of the first step
	planned  int       // steps
	done     int       // steps, the one under way is not among them
	stepping bool      // one is under way
	step     string
	figures  string
	drawn    int // lines of the block that are on the screen
	last     time.Time
	partial  []byte // of a logged line without its end
}

// redraw is the least time between two drawings of figures, easy on the eye
// and on the machine that is being measured.
const redraw = 200 * time.Millisecond

// NewProgress shows progress on f.
func NewProgress(f *os.File) *Progress {
	return &Progress{out: f, live: IsTerminal(f) && os.Getenv("TERM") != "dumb", now: time.Now, width: func() int {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
		return 80
	}}
}

// Plan adds to the number of steps that the bar and the estimate are about.
func (p *Progress) Plan(steps int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.planned += steps
}

// Step ends the step under way, if any, and begins another, such as
// "round 2 of 5  randwrite-4k-qd1-buffered  pollux-c".
func (p *Progress) Step(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = p.now()
	}
	if p.stepping {
		p.done++
	}
	p.stepping, p.step = true, text
	p.draw()
}

// Figures shows what was measured last, until the next ones come. iops and
// latencies in microseconds that are 0 are not known.
func (p *Progress) Figures(iops, p50, p99 float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.figures = fmt.Sprintf("latest sample %s IOPS   p50 %s   p99 %s", thousands(iops), micros(p50), micros(p99))
	if p.now().Sub(p.last) >= redraw {
		p.draw()
	}
}

// Write logs whole lines, above the block.
func (p *Progress) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.partial = append(p.partial, text...)
	end := bytes.LastIndexByte(p.partial, '\n')
	if end < 0 {
		return len(text), nil
	}
	lines := p.partial[:end+1]
	p.erase()
	_, err := p.out.Write(lines)
	p.partial = append(p.partial[:0], p.partial[end+1:]...)
	if p.stepping {
		p.draw()
	}
	return len(text), err
}

// Close removes the block. The Progress can go on with another Step.
func (p *Progress) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	if p.stepping {
		p.done++
	}
	p.stepping = false
}

func (p *Progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.out, "\x1b[%dA\x1b[J", p.drawn)
	}
	p.drawn = 0
}

func (p *Progress) draw() {
	if !p.live {
		return
	}
	p.last = p.now()
	width := p.width() - 1 // a full line may wrap
	lines := []string{p.step, p.figures, p.bar(width)}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "\r%s\x1b[K\n", shortened(l, width))
	}
	// What can't be shown is no reason to stop measuring.
	_, _ = io.WriteString(p.out, b.String())
	p.drawn = len(lines)
}

// bar is "[####....]  42 %   2:13 so far, about 3:05 left".
func (p *Progress) bar(width int) string {
	elapsed := p.now().Sub(p.began)
	text := clock(elapsed) + " so far"
	planned := max(p.planned, p.done+1)
	if p.done > 0 && p.planned > 0 {
		text += ", about " + clock(elapsed/time.Duration(p.done)*time.Duration(planned-p.done)) + " left"
	}
	if p.planned == 0 {
		return text
	}
	text = fmt.Sprintf("  %3d %%   %s", 100*p.done/planned, text)
	cells := min(40, width-len(text)-2)
	if cells < 5 {
		return strings.TrimSpace(text)
	}
	full := cells * p.done / planned
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", cells-full) + "]" + text
}

func clock(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

func shortened(line string, width int) string {
	if r := []rune(line); len(r) > width && width > 1 {
		return string(r[:width-1]) + "…"
	}
	return line
}
