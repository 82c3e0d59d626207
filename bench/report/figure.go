package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

// A Figure is one plot of a run.
type Figure struct {
	Name    string // short, unique, fit for a file: "percentiles-randwrite-4k-qd1-buffered"
	Section string // what it is one of, such as "Latency percentiles"
	Title   string // what it shows
	Caption string // how to read it; the same for all of a section
	SVG     string // the element, styled by the page
}

// File is the plot as an SVG file that stands alone.
func (f *Figure) File() string {
	head, rest, _ := strings.Cut(f.SVG, ">")
	return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n" + head + ">\n<style>\n" + plotCSS + "</style>" + rest
}

// Sections of a report, in its order.
const (
	sectionRatios      = "Against the best rival"
	sectionDepth       = "Over queue depth"
	sectionTimelines   = "While something happens"
	sectionMeasures    = "Resync, memory and the rest"
	sectionPercentiles = "Latency percentiles"
)

// Figures draws all plots for which the run has data.
func Figures(run *result.Run) []Figure {
	p := &plotter{run: run, styles: styles(run)}
	p.ratios()
	p.depths()
	p.timelines()
	p.measures()
	p.percentiles()
	return p.figures
}

type plotter struct {
	run     *result.Run
	styles  map[string]style
	figures []Figure
}

func (p *plotter) add(f Figure, c *canvas) {
	f.SVG = c.svg(f.Title, f.Caption)
	f.Name = fileName(f.Name)
	base := f.Name
	for n := 2; p.has(f.Name); n++ {
		f.Name = fmt.Sprintf("%s-%d", base, n)
	}
	p.figures = append(p.figures, f)
}

// drawn are the targets in the order in which they are drawn: Pollux above
// all others.
func (p *plotter) drawn() []result.Target {
	var below, above []result.Target
	for _, t := range p.run.Targets {
		switch t.Kind {
		case result.KindYardstick:
		case result.KindPollux:
			above = append(above, t)
		default:
			below = append(below, t)
		}
	}
	slices.Reverse(above) // the first one is what the run is about
	return append(below, above...)
}

func (p *plotter) has(name string) bool {
	for _, f := range p.figures {
		if f.Name == name {
			return true
		}
	}
	return false
}

// fileName keeps letters, digits, dots and dashes.
func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '-'
		}
	}, s)
	for strings.Contains(s, "--") {
		s = strings.ReplaceAll(s, "--", "-")
	}
	return strings.Trim(s, "-.")
}

// WriteSVGs writes each plot to a file of its own below dir, which is made if
// need be, and returns their names.
func WriteSVGs(dir string, run *result.Run) (names []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	figures := Figures(run)
	if len(figures) == 0 {
		return nil, errors.New("the run has nothing to plot")
	}
	for _, f := range figures {
		name := filepath.Join(dir, f.Name+".svg")
		if err := os.WriteFile(name, []byte(f.File()), 0o644); err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

// Geometry of the plots, in pixels.
const (
	plotWidth  = 760
	plotHeight = 330
	marginLeft = 64
	marginTop  = 42
	// marginRight has room for a name of 25 letters.
	marginRight  = 178
	marginBottom = 44
)

// box is a canvas with the frame of one plot: title, horizontal lines with
// labels, the axes' names.
func box(title, yName string, y scale, yText func(float64) string) *canvas {
	c := &canvas{width: plotWidth, height: plotHeight}
	c.text("title", "start", 12, 20, title)
	c.yAxis(yName, y, yText)
	return c
}

// yAxis draws the lines of a vertical scale, and its name above it.
func (c *canvas) yAxis(name string, y scale, text func(float64) string) {
	for _, v := range y.ticks() {
		c.line("grid", marginLeft, y.at(v), plotWidth-marginRight, y.at(v))
		c.text("tick", "end", marginLeft-6, y.at(v)+4, text(v))
	}
	c.line("axis", marginLeft, y.from, plotWidth-marginRight, y.from)
	c.text("axisname", "start", 12, y.to-9, name)
}
