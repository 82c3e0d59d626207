package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/bench/result"
)

// A strip shows each value, and which of them are beyond what was promised.
func TestStripOnASheet(t *testing.T) {
	s := &Strip{
		Name: "One & all", Section: "S", Title: "T < U", Caption: "C", Series: []string{"early", "late"},
		Rows: []StripRow{{Name: "row", Lanes: []StripLane{
			{Series: 0, Points: []StripPoint{{1, "a"}, {3, "b <"}, {2, "c"}, {4, "d"}}},
			{Series: 1, Bar: 5, Points: []StripPoint{{4, "e"}, {6, "over it"}}},
		}}},
	}
	f := s.Figure()
	if n := strings.Count(f.SVG, `class="dot"`); n != 5+2 { // and those of the legend
		t.Errorf("%d points that kept the promise, want 5", n-2)
	}
	if !strings.Contains(f.SVG, `<circle class="dot over"`) || strings.Count(f.SVG, `"dot over"`) != 1 {
		t.Error("the point beyond the promise does not show")
	}
	if !strings.Contains(f.SVG, ">2.50<") {
		t.Error("the median of 1, 2, 3 and 4 does not show as 2.50")
	}
	var page bytes.Buffer
	sheet := &Sheet{
		Title: "Page", Started: time.Unix(0, 0), Ended: time.Unix(60, 0), Lead: []string{"lead"}, Notes: []string{"note <b>"},
		Bars: []result.Bar{{What: "w", Want: "x", Got: "y"}}, Figures: []Figure{f}, Command: []string{"a b"},
		Tables: []SheetTable{{Title: "Table", Head: []string{"", "n"}, Rows: [][]string{{"first", "1"}}}},
	}
	if err := sheet.Write(&page); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, page.String())
	for _, want := range []string{"0 of 1 bars met", "note &lt;b&gt;", "b &lt;", "<h2>Table</h2>", "&#39;a b&#39;", "1 January 1970"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(page.String(), "What was measured") || strings.Contains(page.String(), "pollux-bench") {
		t.Error("the page has a benchmark's sections")
	}
}
