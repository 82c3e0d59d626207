package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"

	"github.com/pollux-project/pollux/bench/result"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	page    = template.Must(template.New("page").Parse(pageHTML))
)

// pageData is what page.html shows.
type pageData struct {
	CSS       template.CSS
	Title     string
	When      string
	Verdict   string
	Missed    int
	Notes     []string
	Bars      []result.Bar
	Sections  []pageSection
	Groups    []pageGroup
	Measures  []pageMeasure
	Checks    []pageCheck
	Targets   []result.Target
	Tables    []SheetTable
	Machine   []string
	Versions  []string
	Command   string
	HasErrors bool
}

type pageSection struct {
	ID, Title, Caption string
	Figures            []pageFigure
}

type pageFigure struct {
	Name, Caption string
	SVG           template.HTML
}

// A pageGroup is the rows of one workload.
type pageGroup struct {
	Title, Unit string
	Rows        []pageRow
}

type pageRow struct {
	Target, Speed, Best, P50, P90, P99, P999, Max, CPU, Syscalls, Ratio string
	Rounds                                                              int
	Errors                                                              int64
	Pollux                                                              bool
}

type pageMeasure struct{ Name, Target, Detail, Value, Spread string }

type pageCheck struct {
	Workload, Target, Text string
	Judged, Agrees         bool
}

// WriteHTML writes the run as a page that stands alone.
func WriteHTML(w io.Writer, run *result.Run) error {
	d := pageData{
		CSS:   template.CSS(pageCSS + plotCSS), //nolint:gosec // both are ours, embedded above
		Title: "Pollux benchmark", When: when(run), Notes: run.Notes, Targets: run.Targets,
		Machine: machineLines(run), Versions: run.Machine.Versions, Command: shellLine(run.Command),
		Groups: pageGroups(run),
	}
	d.setBars(run.Bars)
	d.setFigures(Figures(run))
	for _, g := range measureGroups(run) {
		for _, r := range g.rows {
			m := pageMeasure{Name: g.name, Target: r.target, Detail: r.detail, Value: quantity(r.median(), r.unit)}
			if len(r.values) > 1 {
				m.Spread = fmt.Sprintf("%s to %s, %d rounds", quantity(r.low(), r.unit), quantity(r.high(), r.unit), len(r.values))
			}
			d.Measures = append(d.Measures, m)
		}
	}
	for _, c := range crossChecks(run) {
		d.Checks = append(d.Checks, pageCheck{c.workload, c.target, fmt.Sprintf("go %s, %s %s IOPS: %s", thousands(c.ours), c.client, thousands(c.theirs), percent(c.theirs/c.ours)), c.judged, c.agrees()})
	}
	return page.Execute(w, d)
}

func (d *pageData) setBars(bars []result.Bar) {
	d.Bars = bars
	for _, b := range bars {
		if !b.Met {
			d.Missed++
		}
	}
	if len(bars) > 0 {
		d.Verdict = fmt.Sprintf("%d of %d bars met", len(bars)-d.Missed, len(bars))
	}
}

// setFigures puts figures of one section together.
func (d *pageData) setFigures(figures []Figure) {
	for _, f := range figures {
		if n := len(d.Sections); n == 0 || d.Sections[n-1].Title != f.Section {
			d.Sections = append(d.Sections, pageSection{ID: fileName(f.Section), Title: f.Section, Caption: f.Caption})
		}
		s := &d.Sections[len(d.Sections)-1]
		caption := f.Caption
		if caption == s.Caption {
			caption = "" // it stands above
		}
		s.Figures = append(s.Figures, pageFigure{f.Name, caption, template.HTML(f.SVG)}) //nolint:gosec // svg.go escapes all text
	}
}

func when(run *result.Run) string {
	text := run.Started.UTC().Format("2 January 2006, 15:04 UTC")
	if d := run.Ended.Sub(run.Started); d > 0 {
		text += ", took " + clock(d) + " min"
		if d.Hours() >= 1 {
			text = strings.TrimSuffix(text, " min") + " h"
		}
	}
	if run.Ended.IsZero() {
		text += ", cut short"
	}
	return text
}

func pageGroups(run *result.Run) (groups []pageGroup) {
	for i := range run.Workloads {
		w := &run.Workloads[i]
		g := pageGroup{Title: workloadTitle(w), Unit: speedUnit(w)}
		for _, t := range run.Targets {
			s := run.Summary(w.Name, t.Name)
			if s.Rounds == 0 || t.Kind == result.KindYardstick {
				continue
			}
			r := pageRow{
				Target: t.Name, Speed: significant(speed(w, s.IOPS)), Best: significant(speed(w, s.Best)), P50: micros(s.P50), P90: micros(s.P90), P99: micros(s.P99), P999: micros(s.P999),
				Max: micros(s.Max), CPU: micros(s.CPU), Syscalls: "-", Rounds: s.Rounds, Errors: s.Errors, Pollux: t.Kind == result.KindPollux,
			}
			if s.Syscalls > 0 {
				r.Syscalls = significant(s.Syscalls)
			}
			r.Ratio = againstRival(run, w.Name, &t)
			g.Rows = append(g.Rows, r)
		}
		if len(g.Rows) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

// againstRival is a row's last column: the ratio of Pollux to the best rival,
// of a node alone to the best single copy.
func againstRival(run *result.Run, workload string, t *result.Target) string {
	best := run.BestRival(workload)
	if t.Name == best {
		return "best rival"
	}
	rival := run.RivalOf(workload, t)
	if rival == "" {
		return ""
	}
	mid := run.Ratio(workload, t.Name, rival, result.MetricIOPS)
	if math.IsNaN(mid) {
		return ""
	}
	if rival != best {
		return ratio(mid) + " of " + rival
	}
	return intervalText(mid, run.RatioInterval(workload, t.Name, rival, result.MetricIOPS))
}

// shellLine quotes a command so that it can be pasted into a shell.
func shellLine(command []string) string {
	var words []string
	for _, word := range command {
		plain := word != "" && !strings.ContainsFunc(word, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:,%+@", r)
		})
		if !plain {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}
