package report

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A canvas is an SVG drawing under way. Colours, widths and fonts are the
// style sheet's; elements only name their classes.
type canvas struct {
	body          strings.Builder
	width, height float64
}

// Widths of text at 12 px in a proportional font, in pixels: an estimate that
// is rather too wide. Exact ones depend on the reader's fonts.
const charWidth = 6.6

func textWidth(s string) float64 { return charWidth * float64(len([]rune(s))) }

func (c *canvas) add(format string, args ...any) {
	fmt.Fprintf(&c.body, format, args...)
	c.body.WriteByte('\n')
}

// num writes a coordinate, to a tenth of a pixel.
func num(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

// text anchors s at x: "start", "middle" or "end".
func (c *canvas) text(class, anchor string, x, y float64, s string) {
	c.add(`<text class="%s" x="%s" y="%s" text-anchor="%s">%s</text>`, class, num(x), num(y), anchor, html.EscapeString(s))
}

func (c *canvas) line(class string, x1, y1, x2, y2 float64) {
	c.add(`<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`, class, num(x1), num(y1), num(x2), num(y2))
}

// A point is a place on the canvas, in pixels.
type point struct{ x, y float64 }

// path is a polyline; a point that is not a number interrupts it.
func (c *canvas) path(class string, points []point) {
	var b strings.Builder
	pen := "M"
	for _, p := range points {
		if math.IsNaN(p.x) || math.IsNaN(p.y) {
			pen = "M"
			continue
		}
		b.WriteString(pen + num(p.x) + " " + num(p.y))
		pen = "L"
	}
	if b.Len() > 0 {
		c.add(`<path class="%s" d="%s"/>`, class, b.String())
	}
}

// band fills what is between two lines over the same places.
func (c *canvas) band(class string, low, high []point) {
	if len(low) < 2 {
		return
	}
	back := slices.Clone(high)
	slices.Reverse(back)
	var b strings.Builder
	for i, p := range append(slices.Clone(low), back...) {
		if i == 0 {
			b.WriteString("M")
		} else {
			b.WriteString("L")
		}
		b.WriteString(num(p.x) + " " + num(p.y))
	}
	c.add(`<path class="%s" d="%sZ"/>`, class, b.String())
}

// marker draws one of the shapes that tell curves apart without colour; tip is
// shown where a pointer rests on it.
func (c *canvas) marker(shape int, p point, tip string) {
	const r = 4.2
	tip = "<title>" + html.EscapeString(tip) + "</title>"
	poly := func(dx ...float64) {
		var b strings.Builder
		for i := 0; i < len(dx); i += 2 {
			fmt.Fprintf(&b, "%s,%s ", num(p.x+dx[i]), num(p.y+dx[i+1]))
		}
		c.add(`<polygon class="marker" points="%s">%s</polygon>`, strings.TrimSpace(b.String()), tip)
	}
	switch shape % 5 {
	case 0:
		c.add(`<circle class="marker" cx="%s" cy="%s" r="%s">%s</circle>`, num(p.x), num(p.y), num(r), tip)
	case 1:
		poly(-r, -r, r, -r, r, r, -r, r)
	case 2:
		poly(0, -r-1, r+1, r, -r-1, r)
	case 3:
		poly(0, -r-1.5, r+1.5, 0, 0, r+1.5, -r-1.5, 0)
	default:
		poly(0, r+1, r+1, -r, -r-1, -r)
	}
}

// svg is the drawing as an element that can stand in a page.
func (c *canvas) svg(title, description string) string {
	return fmt.Sprintf(`<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" role="img">
<title>%s</title>
<desc>%s</desc>
<rect class="paper" width="%s" height="%s"/>
%s</svg>
`, num(c.width), num(c.height), html.EscapeString(title), html.EscapeString(description), num(c.width), num(c.height), c.body.String())
}

// A scale maps values to pixels.
type scale struct {
	log      bool
	low, top float64 // values at the ends
	from, to float64 // pixels at the ends
	unit     float64 // steps are round multiples of it; 0 = 1
}

func (s scale) at(v float64) float64 {
	low, top := s.low, s.top
	if s.log {
		low, top, v = math.Log10(low), math.Log10(top), math.Log10(v)
	}
	return s.from + (v-low)/(top-low)*(s.to-s.from)
}

// linearScale goes from 0 to a round figure above the largest value.
func linearScale(largest, from, to float64) scale {
	if !(largest > 0) {
		largest = 1
	}
	step := niceStep(largest)
	return scale{low: 0, top: step * math.Ceil(largest/step*1.0001), from: from, to: to}
}

// byteScale is linearScale with steps that are round in a binary unit.
func byteScale(largest, from, to float64) scale {
	unit := 1.0
	for largest >= 1024*unit {
		unit *= 1024
	}
	s := linearScale(largest/unit, from, to)
	s.top, s.unit = s.top*unit, unit
	return s
}

// measureScale is the scale for a measure's unit.
func measureScale(unit string, largest, from, to float64) scale {
	if unit == "bytes" {
		return byteScale(largest, from, to)
	}
	return linearScale(largest, from, to)
}

// niceStep is 1, 2, 2.5 or 5 times a power of ten, four to six times in v.
func niceStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v/4)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if v/(m*power) <= 5.5 {
			return m * power
		}
	}
	return 10 * power
}

// logScale has all values between round figures.
func logScale(least, largest, from, to float64) scale {
	if !(least > 0) || !(largest > 0) {
		least, largest = 1, 10
	}
	s := scale{log: true, low: roundDown(least * 0.95), top: roundUp(largest * 1.05), from: from, to: to}
	if s.top < s.low*2 {
		s.top = roundUp(s.low * 2)
	}
	return s
}

var steps125 = []float64{1, 2, 5, 10}

func roundUp(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range steps125 {
		if m*power >= v*0.9999 {
			return m * power
		}
	}
	return 10 * power
}

func roundDown(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{5, 2} {
		if m*power <= v*1.0001 {
			return m * power
		}
	}
	return power
}

// ticks are the values that get a label and a line.
func (s scale) ticks() (all []float64) {
	if !s.log {
		unit := max(s.unit, 1)
		step := niceStep(s.top/unit*0.9999) * unit
		for i := 0; float64(i)*step <= s.top*1.0001; i++ {
			all = append(all, float64(i)*step)
		}
		return all
	}
	steps := []float64{1, 2, 5}
	switch decades := math.Log10(s.top / s.low); {
	case decades > 3.5:
		steps = []float64{1}
	case decades < 0.8:
		steps = []float64{1, 1.5, 2, 3, 4, 5, 7}
	}
	for power := math.Pow(10, math.Floor(math.Log10(s.low))); power <= s.top; power *= 10 {
		for _, m := range steps {
			if v := m * power; v >= s.low*0.9999 && v <= s.top*1.0001 {
				all = append(all, v)
			}
		}
	}
	return all
}

// A label is a name at the end of a curve.
type label struct {
	text  string
	style style
	at    point // the curve's end
}

// endLabels names the curves right of x, none over another, each with a line
// to its curve's end. top and bottom are the room they have.
func (c *canvas) endLabels(x, top, bottom float64, labels []label) {
	slices.SortStableFunc(labels, func(a, b label) int {
		switch {
		case a.at.y < b.at.y:
			return -1
		case a.at.y > b.at.y:
			return 1
		default:
			return 0
		}
	})
	for i, y := range spread(labels, top, bottom) {
		l := labels[i]
		c.add(`<g class="series %s">`, l.style.class)
		c.path("leader", []point{l.at, {x - 20, y}, {x - 14, y}})
		c.line("swatch", x-14, y, x+4, y)
		c.marker(l.style.marker, point{x - 5, y}, l.text)
		c.text("legend", "start", x+9, y+4, shortened(l.text, 25))
		c.add(`</g>`)
	}
}

// spread moves labels apart, as little as it can.
func spread(labels []label, top, bottom float64) []float64 {
	gap := min(16, (bottom-top)/float64(max(1, len(labels))))
	y := make([]float64, len(labels))
	next := top + gap/2
	for i, l := range labels {
		y[i] = max(next, l.at.y)
		next = y[i] + gap
	}
	room := bottom - gap/2
	for i := len(y) - 1; i >= 0; i-- {
		y[i] = min(y[i], room)
		room = y[i] - gap
	}
	return y
}
