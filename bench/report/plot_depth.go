package report

import (
	"fmt"
	"math"
	"slices"

	"github.com/pollux-project/pollux/bench/result"
)

const (
	depthSpeedCaption   = "Lines are medians, bands reach from the slowest to the fastest round. Higher is better."
	depthLatencyCaption = "Lines are medians over the rounds, bands reach from the best to the worst round. Both axes are logarithmic; lower is better."
)

// A sweep is workloads that differ in nothing but the depth.
type sweep struct {
	title     string
	key       result.Workload   // without depth and name
	workloads []result.Workload // by depth
}

// sweeps finds what was measured at two depths or more.
func sweeps(run *result.Run) (all []*sweep) {
	for _, w := range run.Workloads {
		key := w
		key.Name, key.Depth = "", 0
		i := slices.IndexFunc(all, func(s *sweep) bool { return s.key == key })
		if i < 0 {
			i = len(all)
			title := seriesTitle(&w)
			if w.Connections > 1 {
				title += fmt.Sprintf(", %d connections", w.Connections)
			}
			all = append(all, &sweep{title: title, key: key})
		}
		if slices.ContainsFunc(run.Samples, func(s result.Sample) bool { return s.Workload == w.Name }) {
			all[i].workloads = append(all[i].workloads, w)
		}
	}
	all = slices.DeleteFunc(all, func(s *sweep) bool { return len(s.workloads) < 2 })
	for _, s := range all {
		slices.SortStableFunc(s.workloads, func(a, b result.Workload) int { return a.Depth - b.Depth })
	}
	return all
}

// A line is one target's figures over the depths.
type line struct {
	target         string
	depth          []float64
	mid, low, high []float64
}

// lines collects a metric.
func (p *plotter) lines(s *sweep, m result.Metric, value func(*result.Workload, float64) float64) (all []line) {
	for _, t := range p.drawn() {
		l := line{target: t.Name}
		for i := range s.workloads {
			w := &s.workloads[i]
			var v []float64
			for _, sample := range p.run.SamplesOf(w.Name, t.Name, "") {
				if x := sample.Value(m); x > 0 {
					v = append(v, value(w, x))
				}
			}
			if len(v) > 0 {
				l.depth = append(l.depth, float64(w.Depth))
				l.mid, l.low, l.high = append(l.mid, result.Median(v)), append(l.low, slices.Min(v)), append(l.high, slices.Max(v))
			}
		}
		if len(l.depth) > 1 {
			all = append(all, l)
		}
	}
	return all
}

func (p *plotter) depths() {
	for _, s := range sweeps(p.run) {
		unit := speedUnit(&s.key)
		p.depthPlot(s, p.lines(s, result.MetricIOPS, speed), depthAxis{
			name: "iops", title: unit, caption: depthSpeedCaption, text: axisCount, tip: thousands,
		})
		identity := func(_ *result.Workload, v float64) float64 { return v }
		for _, m := range []result.Metric{result.MetricP50, result.MetricP99} {
			p.depthPlot(s, p.lines(s, m, identity), depthAxis{
				name: string(m), title: string(m) + " of the latency", caption: depthLatencyCaption, text: axisMicros, tip: micros, log: true,
			})
		}
	}
}

// A depthAxis is what is shown over the depth.
type depthAxis struct {
	name, title, caption string
	text, tip            func(float64) string // of the axis, of one point
	log                  bool                 // always; without it where the targets differ by more than wide
}

// wide is from which factor on between the slowest and the fastest a linear
// axis would press the slow ones to the ground.
const wide = 12

func (p *plotter) depthPlot(s *sweep, all []line, axis depthAxis) {
	if len(all) == 0 {
		return
	}
	least, largest := math.Inf(1), 0.0
	for _, l := range all {
		least, largest = min(least, slices.Min(l.low)), max(largest, slices.Max(l.high))
	}
	y := linearScale(largest, plotHeight-marginBottom, marginTop+8)
	if axis.log || largest > wide*least {
		y = logScale(least, largest, y.from, y.to)
		if !axis.log {
			axis.title += " (logarithmic axis)"
		}
	}
	title := s.title + ": " + axis.title
	c := box(title, axis.title, y, axis.text)
	first, last := s.workloads[0].Depth, s.workloads[len(s.workloads)-1].Depth
	x := scale{log: true, low: float64(first), top: float64(last), from: marginLeft + 14, to: plotWidth - marginRight - 4}
	written := math.Inf(-1)
	for _, w := range s.workloads {
		at := x.at(float64(w.Depth))
		c.line("grid", at, y.from, at, y.to)
		if at-written > 18 { // one label does not touch the next
			c.text("tick", "middle", at, y.from+16, fmt.Sprint(w.Depth))
			written = at
		}
	}
	c.text("axisname", "middle", (x.from+x.to)/2, plotHeight-8, "requests in flight (queue depth)")
	var labels []label
	for _, l := range all {
		st := styleOf(p.styles, l.target)
		place := func(v []float64) (points []point) {
			for i := range v {
				points = append(points, point{x.at(l.depth[i]), y.at(max(v[i], y.low))})
			}
			return points
		}
		mid := place(l.mid)
		c.add(`<g class="series %s">`, st.class)
		c.band("band", place(l.low), place(l.high))
		c.path("curve", mid)
		for i, at := range mid {
			c.marker(st.marker, at, fmt.Sprintf("%s at depth %v: %s", l.target, l.depth[i], axis.tip(l.mid[i])))
		}
		c.add(`</g>`)
		labels = append(labels, label{l.target, st, mid[len(mid)-1]})
	}
	c.endLabels(plotWidth-marginRight+26, marginTop, plotHeight-marginBottom, labels)
	p.add(Figure{Name: "depth-" + axis.name + "-" + s.title, Section: sectionDepth, Title: title, Caption: axis.caption}, c)
}
