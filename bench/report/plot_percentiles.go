package report

import (
	"fmt"
	"math"

	"github.com/pollux-project/pollux/bench/result"
)

const percentilesCaption = "Every request of all rounds. To the right each step leaves a tenth of the requests: read off at 99.9 % what one request in a thousand waited, or longer. A curve ends where one request is left. Both axes are logarithmic; lower is better."

// perDecade is how many points a percentile curve has between 90 % and 99 %.
const perDecade = 30

// percentiles draws one plot a workload, one curve a target.
func (p *plotter) percentiles() {
	for i := range p.run.Workloads {
		w := &p.run.Workloads[i]
		var names []string
		var curves []*result.Histogram
		for _, t := range p.drawn() {
			if h := p.run.Merged(w.Name, t.Name); h.Count() > 0 {
				names, curves = append(names, t.Name), append(curves, h)
			}
		}
		if len(curves) > 0 {
			p.percentilesOf(w, names, curves)
		}
	}
}

func (p *plotter) percentilesOf(w *result.Workload, names []string, curves []*result.Histogram) {
	least, largest, decades := math.Inf(1), 0.0, 1.0
	for _, h := range curves {
		least, largest = min(least, h.PMicros(0.01)), max(largest, h.PMicros(1))
		decades = max(decades, math.Log10(float64(h.Count())))
	}
	decades = min(decades, 7)
	y := logScale(least, largest, plotHeight-marginBottom, marginTop+8)
	x := scale{low: 0, top: decades, from: marginLeft, to: plotWidth - marginRight}
	c := box(workloadTitle(w), "latency", y, axisMicros)
	for _, tick := range percentileTicks(decades) {
		c.line("grid", x.at(tick), y.from, x.at(tick), y.to)
		c.text("tick", "middle", x.at(tick), y.from+16, percentileName(tick))
	}
	c.text("axisname", "middle", (x.from+x.to)/2, plotHeight-8, "share of the requests that were answered within this time")
	var labels []label
	for i, h := range curves {
		s := styleOf(p.styles, names[i])
		points := percentileCurve(h, x, y, decades)
		c.add(`<g class="series %s">`, s.class)
		c.path("curve", points)
		for _, q := range []float64{0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999} {
			if d := -math.Log10(1 - q); float64(h.Count())*(1-q) >= 1 && d <= decades {
				c.marker(s.marker, point{x.at(d), y.at(max(h.PMicros(q), y.low))}, fmt.Sprintf("%s: %s%% of the requests within %s", names[i], trimmed(100*q), micros(h.PMicros(q))))
			}
		}
		c.add(`</g>`)
		labels = append(labels, label{names[i], s, points[len(points)-1]})
	}
	c.endLabels(plotWidth-marginRight+26, marginTop, plotHeight-marginBottom, labels)
	p.add(Figure{Name: "percentiles-" + w.Name, Section: sectionPercentiles, Title: workloadTitle(w), Caption: percentilesCaption}, c)
}

// percentileCurve samples a histogram evenly along the axis.
func percentileCurve(h *result.Histogram, x, y scale, decades float64) []point {
	end := min(decades, math.Log10(float64(h.Count())))
	var points []point
	steps := int(end*perDecade) + 1
	for i := 0; i <= steps; i++ {
		d := end * float64(i) / float64(steps)
		v := max(h.PMicros(1-math.Pow(10, -d)), y.low)
		at := point{x.at(d), y.at(v)}
		// Of three at one height the middle one says nothing.
		if n := len(points); n >= 2 && points[n-1].y == at.y && points[n-2].y == at.y {
			points[n-1] = at
			continue
		}
		points = append(points, at)
	}
	return points
}

func percentileTicks(decades float64) []float64 {
	ticks := []float64{0, math.Log10(2)}
	for d := 1.0; d <= decades+0.001; d++ {
		ticks = append(ticks, d)
	}
	return ticks
}

// percentileName writes 3 nines as 99.9 %.
func percentileName(decade float64) string {
	q := 100 * (1 - math.Pow(10, -decade))
	return fmt.Sprintf("%.*f%%", max(0, int(math.Round(decade))-2), q)
}
