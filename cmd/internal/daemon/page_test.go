package daemon

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/internal/perf"
)

func TestPage(t *testing.T) {
	var b strings.Builder
	p := newPage(&b)
	p.family("empty", gauge, "Nothing of it is shown.")
	p.family("things_total", counter, "Counted things.")
	p.sample(3)
	p.sample(1<<20, "a", `x"y\z`, "b", "two\nlines")
	p.family("time_seconds", histogram, "Times.")
	p.histogram(perf.Snapshot{Count: 3, Sum: 5e9, Buckets: []perf.Bucket{{NS: 1 << 12, Count: 1}, {NS: 1 << 20, Count: 1}, {NS: 1 << 34, Count: 1}}}, "hop", "x")
	if err := p.end(); err != nil {
		t.Fatal(err)
	}
	head, buckets, _ := strings.Cut(b.String(), "# HELP pollux_time_seconds Times.\n# TYPE pollux_time_seconds histogram\n")
	if want := "# HELP pollux_things_total Counted things.\n# TYPE pollux_things_total counter\n" +
		"pollux_things_total 3\n" + `pollux_things_total{a="x\"y\\z",b="two\nlines"} 1.048576e+06` + "\n"; head != want {
		t.Errorf("got\n%s\nwant\n%s", head, want)
	}
	for _, want := range []string{
		`pollux_time_seconds_bucket{hop="x",le="8.192e-06"} 1`, `pollux_time_seconds_bucket{hop="x",le="0.001048576"} 1`,
		`pollux_time_seconds_bucket{hop="x",le="0.002097152"} 2`, `pollux_time_seconds_bucket{hop="x",le="8.589934592"} 2`,
		`pollux_time_seconds_bucket{hop="x",le="+Inf"} 3`, `pollux_time_seconds_sum{hop="x"} 5`, `pollux_time_seconds_count{hop="x"} 3`,
	} {
		if !strings.Contains("\n"+buckets, "\n"+want+"\n") {
			t.Errorf("no line %s in\n%s", want, buckets)
		}
	}
}

func TestPageCompressed(t *testing.T) {
	const text = "pollux_x 1\n"
	write := func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
	for accepted, compressed := range map[string]bool{
		"": false, "identity": false, "gzip": true, "deflate, gzip;q=0.5": true, "gzip;q=0": false, "gzip; q=0.0, br": false, "x-gzip": false,
	} {
		r, w := httptest.NewRequest("GET", "/metrics", nil), httptest.NewRecorder()
		r.Header.Set("Accept-Encoding", accepted)
		if err := servePage(w, r, write); err != nil {
			t.Fatal(err)
		}
		var body io.Reader = w.Body
		if got := w.Header().Get("Content-Encoding") == "gzip"; got != compressed {
			t.Errorf("%q: compressed is %v", accepted, got)
		} else if got {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Fatal(err)
			}
			body = z
		}
		if b, err := io.ReadAll(body); err != nil || string(b) != text {
			t.Errorf("%q: got %q, %v", accepted, b, err)
		}
	}
	r := httptest.NewRequest("GET", "/metrics", nil)
	broken := errors.New("broken")
	if err := servePage(httptest.NewRecorder(), r, func(io.Writer) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a page that could not be written: %v", err)
	}
}

// More than maxScrapes at a time are sent away.
func TestMetricsCrowd(t *testing.T) {
	d := &Daemon{resources: map[string]*resource{}, settings: &conf.Daemon{}}
	r := newResource(d, resourceSpec{Resource: &conf.Resource{Name: "r0"}})
	d.resources[r.name] = r
	h, codes := metricsHandler(d), make(chan int)
	r.seqMu.Lock()
	for range maxScrapes + 1 {
		go func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
			codes <- w.Code
		}()
	}
	if code := <-codes; code != 503 { // the others wait for the resource
		t.Errorf("status %d for one too many, want 503", code)
	}
	r.seqMu.Unlock()
	for range maxScrapes {
		if code := <-codes; code != 200 {
			t.Errorf("status %d for one that waited, want 200", code)
		}
	}
}
