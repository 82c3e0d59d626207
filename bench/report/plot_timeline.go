package report

import (
	"fmt"
	"math"

	"github.com/pollux-project/pollux/bench/result"
)

const timelineCaption = "Each point is one interval of the same load; upright lines mark what happened. A gap in the latency is an interval without an answer."

// Geometry of a timeline: two plots over one time axis.
const (
	timelineHeight = 446
	iopsBottom     = 225
	latencyTop     = 262
	markLine       = 14 // height of one line of marks' names
)

func (p *plotter) timelines() {
	for i := range p.run.Timelines {
		if t := &p.run.Timelines[i]; len(t.Points) > 1 {
			p.timeline(t)
		}
	}
}

func (p *plotter) timeline(t *result.Timeline) {
	load := t.Target
	if w := p.run.Workload(t.Workload); w != nil {
		load = fmt.Sprintf("%s, %s", workloadTitle(w), t.Target)
	}
	c := &canvas{width: plotWidth, height: timelineHeight + markLine*float64(max(0, markRows(t.Marks, duration(t))-2))}
	c.text("title", "start", 12, 20, shortened(t.Name, 95))
	c.text("axisname", "start", 12, 36, load)
	s := styleOf(p.styles, t.Target)
	end, largest, least, slowest := duration(t), 0.0, math.Inf(1), 0.0
	for _, q := range t.Points {
		largest = max(largest, q.IOPS)
		if q.P50Micros > 0 {
			least = min(least, q.P50Micros)
		}
		slowest = max(slowest, q.P99Micros)
	}
	rows := markRows(t.Marks, end)
	more := markLine * float64(max(0, rows-2)) // what the marks' names take moves the rest down
	top := marginTop + 22 + float64(rows)*markLine
	x := scale{low: 0, top: end, from: marginLeft, to: plotWidth - marginRight}
	iops := linearScale(largest, iopsBottom+more, top)
	latency := logScale(least, slowest, c.height-marginBottom, latencyTop+more)
	c.yAxis("IOPS", iops, axisCount)
	c.yAxis("latency", latency, axisMicros)
	for _, tick := range (scale{low: 0, top: end}).ticks() {
		c.line("grid", x.at(tick), iops.from, x.at(tick), iops.to)
		c.line("grid", x.at(tick), latency.from, x.at(tick), latency.to)
		c.text("tick", "middle", x.at(tick), latency.from+16, trimmed(tick)+" s")
	}
	c.text("axisname", "middle", (x.from+x.to)/2, c.height-8, "time")
	p.marks(c, t.Marks, x, top, latency.from)
	place := func(y scale, v func(result.Point) float64) (points []point) {
		for _, q := range t.Points {
			at := point{x.at(q.T + t.BucketSeconds/2), math.NaN()}
			if value := v(q); !y.log || value > 0 {
				at.y = y.at(value)
			}
			points = append(points, at)
		}
		return points
	}
	rate := place(iops, func(q result.Point) float64 { return q.IOPS })
	p50 := place(latency, func(q result.Point) float64 { return q.P50Micros })
	p99 := place(latency, func(q result.Point) float64 { return q.P99Micros })
	c.add(`<g class="series %s">`, s.class)
	c.path("curve", rate)
	c.path("curve", p99)
	c.path("second", p50)
	c.add(`</g>`)
	right := float64(plotWidth - marginRight + 26)
	c.endLabels(right, iops.to, iops.from, []label{{t.Target, s, rate[len(rate)-1]}})
	c.endLabels(right, latency.to, latency.from, []label{{"p99", s, lastOf(p99, latency)}, {"p50 (dotted)", s, lastOf(p50, latency)}})
	p.add(Figure{Name: fmt.Sprintf("timeline-%s-%s-%s", t.Name, t.Target, t.Workload), Section: sectionTimelines, Title: t.Name + ": " + load, Caption: timelineCaption}, c)
}

// duration is where a timeline ends, in seconds.
func duration(t *result.Timeline) float64 {
	end := 0.0
	for _, q := range t.Points {
		end = max(end, q.T+t.BucketSeconds)
	}
	return end
}

// lastOf is the last point that is one.
func lastOf(points []point, y scale) point {
	for i := len(points) - 1; i >= 0; i-- {
		if !math.IsNaN(points[i].y) {
			return points[i]
		}
	}
	return point{points[len(points)-1].x, y.from}
}

// markPlaces says on which line each mark's name stands: below every earlier
// name that reaches over to it, so that neither names nor upright lines cross.
// end is the time axis' length.
func markPlaces(marks []result.Mark, end float64) []int {
	rows := make([]int, len(marks))
	reach := make([]float64, len(marks))
	x := scale{low: 0, top: max(end, 1e-9), from: marginLeft, to: plotWidth - marginRight}
	for i, m := range marks {
		reach[i] = x.at(m.T) + textWidth(m.Text)*0.92 + 10 // of a smaller font
		for k := range i {
			if reach[k] > x.at(m.T) {
				rows[i] = max(rows[i], rows[k]+1)
			}
		}
	}
	return rows
}

func markRows(marks []result.Mark, end float64) int {
	rows := 0
	for _, r := range markPlaces(marks, end) {
		rows = max(rows, r+1)
	}
	return rows
}

func (p *plotter) marks(c *canvas, marks []result.Mark, x scale, top, bottom float64) {
	places := markPlaces(marks, x.top)
	rows := markRows(marks, x.top)
	for i, m := range marks {
		at := x.at(m.T)
		y := top - 4 - float64(rows-1-places[i])*markLine
		c.line("mark", at, y-9, at, bottom)
		c.text("marktext", "start", at+4, y, m.Text)
	}
}
