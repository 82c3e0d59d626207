package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/bench/result"
)

var (
	rewrite = flag.Bool("rewrite", false, "write the golden files anew")
	keep    = flag.String("keep", "", "leave the synthetic run's page and JSON in this `directory`")
)

// golden compares text with a file below testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -rewrite takes it over):\n%s", name, diff)
	}
}

func TestTable(t *testing.T) {
	var text bytes.Buffer
	if err := WriteTable(&text, synthetic(), Options{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", text.String())
	for line := range strings.Lines(text.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > tableWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if strings.Contains(text.String(), "\x1b") {
		t.Error("colour that was not asked for")
	}
	var coloured bytes.Buffer
	if err := WriteTable(&coloured, synthetic(), Options{Color: true}); err != nil {
		t.Fatal(err)
	}
	if plain := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(coloured.String(), ""); plain != text.String() {
		t.Errorf("without its colours it is another text: %s", cmp.Diff(text.String(), plain))
	}
}

func TestPage(t *testing.T) {
	run := synthetic()
	var text bytes.Buffer
	if err := WriteHTML(&text, run); err != nil {
		t.Fatal(err)
	}
	if *keep != "" {
		if err := errors.Join(os.WriteFile(filepath.Join(*keep, "report.html"), text.Bytes(), 0o644), run.Write(filepath.Join(*keep, "run.json"))); err != nil {
			t.Fatal(err)
		}
	}
	d := wellFormed(t, text.String())
	for tag := range d.tags {
		switch tag {
		case "script", "link", "img", "iframe", "object", "image", "use", "a":
			t.Errorf("the page has a %s element: it must stand alone", tag)
		}
	}
	for _, b := range run.Bars {
		if !strings.Contains(d.text, b.What) || !strings.Contains(d.text, b.Got) {
			t.Errorf("bar %q is not shown", b.What)
		}
	}
	for _, want := range []string{"3 of 4 bars met", "quorum <aio=threads> & a qemu peer", "Skipped: no qemu-system-x86_64", "-only 'latency|resync'", run.Machine.CPUModel, "fio-3.33", run.Notes[0]} {
		if !strings.Contains(d.text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// document is what a test asks about an XML text.
type document struct {
	tags map[string]int
	text string
}

// wellFormed parses XML and fails if it is none, or refers to anything outside.
func wellFormed(t *testing.T, text string) document {
	t.Helper()
	d := document{tags: map[string]int{}}
	var all strings.Builder
	x := xml.NewDecoder(strings.NewReader(text))
	x.Entity = xml.HTMLEntity
	for {
		token, err := x.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			d.tags[token.Name.Local]++
			for _, a := range token.Attr {
				if strings.Contains(a.Value, "://") && a.Name.Local != "xmlns" {
					t.Errorf("%s refers to %s", token.Name.Local, a.Value)
				}
				if strings.HasPrefix(a.Name.Local, "on") || a.Name.Local == "href" || a.Name.Local == "src" {
					t.Errorf("%s has the attribute %s", token.Name.Local, a.Name.Local)
				}
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s %s=%q", token.Name.Local, a.Name.Local, a.Value)
				}
			}
		case xml.CharData:
			all.Write(token)
		}
	}
	d.text = all.String()
	if strings.Contains(d.text, "@import") || strings.Contains(d.text, "url(") {
		t.Error("the style sheet takes something from elsewhere")
	}
	return d
}

// TestFigures looks at every plot as a file of its own: XML, no reference to
// anything, a legend for every target in it, text as text.
func TestFigures(t *testing.T) {
	run := synthetic()
	dir := t.TempDir()
	names, err := WriteSVGs(dir, run)
	if err != nil {
		t.Fatal(err)
	}
	figures := Figures(run)
	if len(names) != len(figures) {
		t.Fatalf("%d files of %d figures", len(names), len(figures))
	}
	var list strings.Builder
	for i, f := range figures {
		text, err := os.ReadFile(names[i])
		if err != nil {
			t.Fatal(err)
		}
		d := wellFormed(t, string(text))
		if d.tags["svg"] != 1 || d.tags["title"] == 0 || d.tags["desc"] != 1 {
			t.Errorf("%s: %v", f.Name, d.tags)
		}
		if strings.Contains(f.SVG, "NaN") || strings.Contains(f.SVG, "Inf") {
			t.Errorf("%s has figures that are none", f.Name)
		}
		list.WriteString(f.Name + ": " + strings.Join(legends(f.SVG), ", ") + "\n")
	}
	golden(t, "figures.txt", list.String())
}

func legends(svg string) (all []string) {
	for _, m := range regexp.MustCompile(`<text class="legend"[^>]*>([^<]*)</text>`).FindAllStringSubmatch(svg, -1) {
		all = append(all, m[1])
	}
	return all
}

// TestEveryTargetHasALegend: in each plot of a workload, each target that was
// measured under it is named.
func TestEveryTargetHasALegend(t *testing.T) {
	run := synthetic()
	for _, f := range Figures(run) {
		workload, ok := strings.CutPrefix(f.Name, "percentiles-")
		if !ok {
			continue
		}
		have := strings.Join(legends(f.SVG), "\n") + "\n"
		for _, target := range run.Targets {
			measured := run.Summary(workload, target.Name).Rounds > 0
			if named := strings.Contains(have, target.Name+"\n"); named != measured {
				t.Errorf("%s: %s is named: %v, was measured: %v", f.Name, target.Name, named, measured)
			}
		}
	}
}

// TestRunsWithHoles: whatever is missing, everything can be shown.
func TestRunsWithHoles(t *testing.T) {
	whole := synthetic()
	for name, change := range map[string]func(*result.Run){
		"nothing at all":      func(r *result.Run) { *r = result.Run{Format: result.Format} },
		"no samples":          func(r *result.Run) { r.Samples = nil },
		"no histograms":       func(r *result.Run) { dropHistograms(r) },
		"empty histograms":    func(r *result.Run) { emptyHistograms(r) },
		"one round":           func(r *result.Run) { r.Samples = r.Samples[:8] },
		"no rivals":           func(r *result.Run) { r.Targets[4].Kind, r.Targets[5].Kind = result.KindCopy, "" },
		"one request":         func(r *result.Run) { r.Samples = r.Samples[:1]; r.Samples[0].Latency = one() },
		"a timeline of zeros": func(r *result.Run) { r.Timelines[0].Points = make([]result.Point, 5) },
		"measures of zero": func(r *result.Run) {
			for i := range r.Measures {
				r.Measures[i].Value = 0
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := *whole
			r.Samples, r.Targets = append([]result.Sample(nil), whole.Samples...), append([]result.Target(nil), whole.Targets...)
			r.Timelines, r.Measures = append([]result.Timeline(nil), whole.Timelines...), append([]result.Measure(nil), whole.Measures...)
			change(&r)
			var text bytes.Buffer
			if err := WriteHTML(&text, &r); err != nil {
				t.Fatal(err)
			}
			wellFormed(t, text.String())
			for _, f := range Figures(&r) {
				if strings.Contains(f.SVG, "NaN") || strings.Contains(f.SVG, "Inf") {
					t.Errorf("%s has figures that are none", f.Name)
				}
			}
			if err := WriteTable(&text, &r, Options{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func one() *result.Histogram {
	h := result.NewHistogram()
	h.Record(1000)
	return h
}

func dropHistograms(r *result.Run) {
	for i := range r.Samples {
		r.Samples[i].Latency = nil
	}
}

func emptyHistograms(r *result.Run) {
	for i := range r.Samples {
		r.Samples[i].Latency = result.NewHistogram()
	}
}
