package report

import (
	"fmt"
	"html"
	"math"
	"slices"

	"github.com/pollux-project/pollux/bench/result"
)

const (
	ratiosCaption   = "IOPS divided by those of the best fair rival (for a node alone: of the best single copy) in the same round. Points are medians, lines their 95 % intervals; right of the dashed line Pollux is faster."
	measuresCaption = "Blocks are medians, lines on them reach from the least to the largest round."
	growthCaption   = "Points are medians, bands reach from the least to the largest round. A flat line is the aim."
)

// Geometry of plots with one line a row.
const (
	rowHeight = 24
	rowsLeft  = 330
	rowsRight = 150
)

// ratios draws one row for each workload and Pollux target that has a rival.
func (p *plotter) ratios() {
	type row struct {
		workload *result.Workload
		target   string
		rival    string
		mid      float64
		interval result.Interval
	}
	var rows []row
	least, largest := 1.0, 1.0
	for i := range p.run.Workloads {
		w := &p.run.Workloads[i]
		for _, t := range p.run.Targets {
			rival := p.run.RivalOf(w.Name, &t)
			if rival == "" {
				continue
			}
			r := row{w, t.Name, rival, p.run.Ratio(w.Name, t.Name, rival, result.MetricIOPS), p.run.RatioInterval(w.Name, t.Name, rival, result.MetricIOPS)}
			if math.IsNaN(r.mid) {
				continue
			}
			least, largest = min(least, r.mid), max(largest, r.mid)
			if r.interval.Sure() {
				least, largest = min(least, r.interval.Low), max(largest, r.interval.High)
			}
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return
	}
	c := &canvas{width: plotWidth + 120, height: marginTop + 22 + rowHeight*float64(len(rows)) + marginBottom}
	x := logScale(max(least, 0.02), min(largest, 50), rowsLeft+120, c.width-rowsRight)
	bottom := c.height - marginBottom
	c.text("title", "start", 12, 20, "IOPS, as a multiple of the best fair rival's")
	for _, v := range x.ticks() {
		c.line("grid", x.at(v), marginTop, x.at(v), bottom)
		c.text("tick", "middle", x.at(v), bottom+16, trimmed(v)+"×")
	}
	c.line("one", x.at(1), marginTop-6, x.at(1), bottom)
	last := ""
	for i, r := range rows {
		y := marginTop + 22 + rowHeight*float64(i)
		if r.workload.Name != last {
			c.text("", "start", 12, y+4, workloadTitle(r.workload))
			last = r.workload.Name
			if i > 0 {
				c.line("grid", 12, y-rowHeight/2, c.width-12, y-rowHeight/2)
			}
		}
		s := styleOf(p.styles, r.target)
		clip := func(v float64) float64 { return x.at(min(max(v, x.low), x.top)) }
		c.add(`<g class="series %s">`, s.class)
		c.text("legend", "end", x.from-14, y+4, shortened(r.target, 18))
		if r.interval.Sure() {
			c.line("spread", clip(r.interval.Low), y, clip(r.interval.High), y)
		}
		c.marker(s.marker, point{clip(r.mid), y}, fmt.Sprintf("%s: %s %s", r.target, intervalText(r.mid, r.interval), r.rival))
		c.add(`</g>`)
		c.text("value", "start", c.width-rowsRight+12, y+4, ratio(r.mid))
		c.text("tick", "start", c.width-rowsRight+56, y+4, shortened(r.rival, 16))
	}
	p.add(Figure{Name: "ratios", Section: sectionRatios, Title: "IOPS, as a multiple of the best fair rival's", Caption: ratiosCaption}, c)
}

// measures draws what is no latency workload: over a range where there is one,
// else side by side.
func (p *plotter) measures() {
	for _, g := range measureGroups(p.run) {
		if g.isRange() {
			p.growth(g)
		} else {
			p.blocks(g)
		}
	}
}

func (p *plotter) blocks(g *measureGroup) {
	c := &canvas{width: plotWidth, height: marginTop + 10 + rowHeight*float64(len(g.rows)) + marginBottom - 10}
	largest := 0.0
	for _, r := range g.rows {
		largest = max(largest, r.high())
	}
	const left = 280
	x := measureScale(g.unit, largest, left, plotWidth-110)
	bottom := c.height - marginBottom + 10
	c.text("title", "start", 12, 20, g.name)
	for _, v := range x.ticks() {
		c.line("grid", x.at(v), marginTop-4, x.at(v), bottom)
		c.text("tick", "middle", x.at(v), bottom+16, axisQuantity(g.unit)(v))
	}
	for i, r := range g.rows {
		y := marginTop + 4 + rowHeight*float64(i)
		s := styleOf(p.styles, r.target)
		name := r.target
		if r.detail != "" {
			name += ", " + r.detail
		}
		c.add(`<g class="series %s">`, s.class)
		c.text("legend", "end", left-8, y+13, shortened(name, 40))
		c.add(`<rect class="block" x="%s" y="%s" width="%s" height="%d" rx="2"><title>%s</title></rect>`,
			num(left), num(y), num(max(0, x.at(max(r.median(), 0))-left)), rowHeight-6, html.EscapeString(name+": "+quantity(r.median(), r.unit)))
		c.add(`</g>`)
		if len(r.values) > 1 {
			mid := y + rowHeight/2 - 3
			low, high := x.at(max(r.low(), 0)), x.at(max(r.high(), 0))
			c.path("whisker", []point{{low, mid - 4}, {low, mid + 4}, {low, mid}, {high, mid}, {high, mid - 4}, {high, mid + 4}})
		}
		c.text("value", "start", max(x.at(max(r.high(), 0)), left)+8, y+13, quantity(r.median(), r.unit))
	}
	p.add(Figure{Name: "measure-" + g.name, Section: sectionMeasures, Title: g.name, Caption: measuresCaption}, c)
}

// growth draws a measure over its details, in the order of the run.
func (p *plotter) growth(g *measureGroup) {
	largest := 0.0
	for _, r := range g.rows {
		largest = max(largest, r.high())
	}
	y := measureScale(g.unit, largest, plotHeight-marginBottom, marginTop+8)
	c := box(g.name, "", y, axisQuantity(g.unit))
	details := g.details()
	at := func(i int) float64 {
		return marginLeft + 24 + (plotWidth-marginRight-marginLeft-48)*float64(i)/float64(len(details)-1)
	}
	written := math.Inf(-1)
	for i, d := range details {
		c.line("grid", at(i), y.from, at(i), y.to)
		if half := textWidth(d) / 2; at(i)-half > written {
			c.text("tick", "middle", at(i), y.from+16, d)
			written = at(i) + half + 4
		}
	}
	var labels []label
	for _, target := range g.targets() {
		s := styleOf(p.styles, target)
		var mid, low, high []point
		c.add(`<g class="series %s">`, s.class)
		for i, d := range details {
			if r := g.row(target, d); r != nil {
				mid, low, high = append(mid, point{at(i), y.at(r.median())}), append(low, point{at(i), y.at(r.low())}), append(high, point{at(i), y.at(r.high())})
			}
		}
		c.band("band", low, high)
		c.path("curve", mid)
		for i, d := range details {
			if r := g.row(target, d); r != nil {
				c.marker(s.marker, point{at(i), y.at(r.median())}, fmt.Sprintf("%s, %s: %s", target, d, quantity(r.median(), r.unit)))
			}
		}
		c.add(`</g>`)
		labels = append(labels, label{target, s, mid[len(mid)-1]})
	}
	c.endLabels(plotWidth-marginRight+26, marginTop, plotHeight-marginBottom, slices.Clone(labels))
	p.add(Figure{Name: "growth-" + g.name, Section: sectionMeasures, Title: g.name, Caption: growthCaption}, c)
}
