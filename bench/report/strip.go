package report

import (
	"fmt"
	"html"
	"slices"
)

// A Strip shows every single value of several series, row by row on one axis of
// seconds, and what was promised as an upright line.
type Strip struct {
	Name, Section, Title, Caption string   // as of a Figure
	Series                        []string // their names; at most six
	Rows                          []StripRow
}

// A StripRow is one thing that was measured, with a lane for each of its series.
type StripRow struct {
	Name  string
	Lanes []StripLane
}

// A StripLane is the values of one series.
type StripLane struct {
	Series int     // place in Strip.Series
	Bar    float64 // no value should be larger; 0: nothing is promised
	Points []StripPoint
}

// A StripPoint is one value, in seconds, and what a pointer that rests on it tells.
type StripPoint struct {
	Value float64
	Tip   string
}

// stripStyles are the looks of series.
var stripStyles = []string{"file1", "pair1", "copy1", "kernel1", "pollux1", "pair2"}

// Geometry of strips, in pixels.
const (
	stripWidth = 1040
	stripLeft  = 330 // the rows' names
	stripRight = 252 // the series' names and figures
	laneHeight = 15
	stripGap   = 12 // between two rows
	stripHead  = 84
	dotRadius  = 3.2
)

// Figure draws it.
func (s *Strip) Figure() Figure {
	largest, lanes := 0.0, 0
	for _, r := range s.Rows {
		lanes += len(r.Lanes)
		for _, l := range r.Lanes {
			largest = max(largest, l.Bar)
			for _, p := range l.Points {
				largest = max(largest, p.Value)
			}
		}
	}
	c := &canvas{width: stripWidth, height: stripHead + laneHeight*float64(lanes) + stripGap*float64(len(s.Rows)) + marginBottom}
	x := linearScale(largest, stripLeft, stripWidth-stripRight)
	bottom := c.height - marginBottom
	c.text("title", "start", 12, 20, s.Title)
	s.legend(c)
	for _, v := range x.ticks() {
		c.line("grid", x.at(v), stripHead-8, x.at(v), bottom)
		c.text("tick", "middle", x.at(v), bottom+16, trimmed(v)+" s")
	}
	for i, name := range []string{"min", "median", "max"} {
		c.text("tick", "end", stripWidth-stripRight+140+46*float64(i), stripHead-14, name)
	}
	y := float64(stripHead)
	for _, r := range s.Rows {
		c.text("", "start", 12, y+11, shortened(r.Name, 50))
		for _, l := range r.Lanes {
			s.lane(c, x, y, l)
			y += laneHeight
		}
		c.line("grid", 12, y+stripGap/2-1, stripWidth-12, y+stripGap/2-1)
		y += stripGap
	}
	return Figure{Name: fileName(s.Name), Section: s.Section, Title: s.Title, Caption: s.Caption, SVG: c.svg(s.Title, s.Caption)}
}

// legend names the series, and the line of what is promised.
func (s *Strip) legend(c *canvas) {
	x := 16.0
	for i, name := range s.Series {
		c.add(`<g class="series %s"><circle class="dot" cx="%s" cy="42" r="%s"/>`, stripStyles[i%len(stripStyles)], num(x), num(dotRadius+0.6))
		c.text("legend", "start", x+9, 46, name)
		c.add(`</g>`)
		x += textWidth(name) + 34
	}
	c.line("promise", x, 36, x, 49)
	c.text("tick", "start", x+8, 46, "promised: none right of it")
}

func (s *Strip) lane(c *canvas, x scale, y float64, l StripLane) {
	mid := y + laneHeight/2
	var values []float64
	c.add(`<g class="series %s">`, stripStyles[l.Series%len(stripStyles)])
	for i, p := range l.Points {
		values = append(values, p.Value)
		class := "dot"
		if l.Bar > 0 && p.Value > l.Bar {
			class = "dot over"
		}
		// Equal values stand a little above and below one another.
		at := mid + float64((i*3)%7-3)*0.9
		c.add(`<circle class="%s" cx="%s" cy="%s" r="%s"><title>%s</title></circle>`, class, num(x.at(p.Value)), num(at), num(dotRadius), html.EscapeString(p.Tip))
	}
	if l.Series < len(s.Series) {
		c.text("legend small", "start", stripWidth-stripRight+14, mid+4, shortened(s.Series[l.Series], 16))
	}
	c.add(`</g>`)
	if l.Bar > 0 {
		c.line("promise", x.at(l.Bar), y+1, x.at(l.Bar), y+laneHeight-1)
	}
	if len(values) > 0 {
		slices.Sort(values)
		n := len(values)
		for i, v := range []float64{values[0], (values[(n-1)/2] + values[n/2]) / 2, values[n-1]} {
			c.text("tick", "end", stripWidth-stripRight+140+46*float64(i), mid+4, fmt.Sprintf("%.2f", v))
		}
	}
}
