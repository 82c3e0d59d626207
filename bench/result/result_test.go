package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/go-cmp/cmp"
)

// twoRounds is a run with a target that is faster in the second round, in
// which everything was, and a rival.
func twoRounds() *Run {
	r := &Run{
		Format:  Format,
		Started: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Ended: time.Date(2026, 11, 21, 12, 5, 0, 0, time.UTC),
		Command: []string{"pollux-bench", "run"}, Machine: Machine{Kernel: "6.1.0", CPUs: 2},
		Workloads: []Workload{{Name: "w", Op: OpWrite, Pattern: PatternRandom, BlockBytes: 4096, Depth: 1, Connections: 1, Class: ClassBuffered}},
		Targets:   []Target{{Name: "pollux", Kind: KindPollux, Protocol: "C"}, {Name: "pair", Kind: KindPair}, {Name: "drbd", Kind: KindKernel, Skipped: "not installed"}},
		Timelines: []Timeline{{Name: "resync", Target: "pollux", Workload: "w", BucketSeconds: 1, Points: []Point{{T: 0, IOPS: 10, P50Micros: 5}}, Marks: []Mark{{T: 0.5, Text: "cut"}}}},
		Measures:  []Measure{{Name: "resync", Target: "pollux", Round: 1, Value: 700, Unit: "MiB/s"}, {Name: "resync", Target: "pollux", Round: 2, Value: 500, Unit: "MiB/s"}},
		Bars:      []Bar{{What: "speed", Want: ">= 1", Got: "2", Ratio: 2, Met: true}},
	}
	for round, quick := range []int64{1, 3} {
		for target, ops := range map[string]int64{"pollux": 2000, "pair": 1000} {
			h := NewHistogram()
			h.RecordN(time.Duration(1e9/ops/quick), ops*quick)
			r.Samples = append(r.Samples, Sample{
				Round: round + 1, Workload: "w", Target: target, Client: ClientGo, Seconds: 1, Ops: ops * quick, Bytes: ops * quick * 4096, Latency: h, CPUMicros: 30,
			})
		}
	}
	return r
}

func equalHistograms(a, b *Histogram) bool {
	for q := 0.0; q <= 1; q += 1.0 / 64 {
		if a.P(q) != b.P(q) {
			return false
		}
	}
	return a.Count() == b.Count() && a.Max() == b.Max() && a.Mean() == b.Mean()
}

func TestRunSurvivesItsFile(t *testing.T) {
	r := twoRounds()
	name := filepath.Join(t.TempDir(), "sub", "run.json")
	if err := r.Write(name); err != nil {
		t.Fatal(err)
	}
	back, err := Read(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back, cmp.Comparer(equalHistograms)); diff != "" {
		t.Error(diff)
	}
	if got := back.Samples[0].Latency.Count(); got == 0 {
		t.Error("the histogram is empty after reading")
	}
	if err := back.Write(name); err != nil {
		t.Errorf("written again: %v", err)
	}
	if files, err := filepath.Glob(filepath.Join(filepath.Dir(name), ".run-*")); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestFilesThatAreNoRun(t *testing.T) {
	whole := new(bytes.Buffer)
	if err := twoRounds().Encode(whole); err != nil {
		t.Fatal(err)
	}
	swap := func(old, with string) string {
		text := strings.Replace(whole.String(), old, with, 1)
		if text == whole.String() {
			t.Fatalf("the file does not have %s", old)
		}
		return text
	}
	for _, tt := range []struct {
		name, text, want string
		format           bool // the error is a *FormatError
	}{
		{"empty", "", "not JSON", false},
		{"a table", "class depth IOPS\n", "not JSON", false},
		{"cut short", whole.String()[:whole.Len()/2], "not JSON", false},
		{"a list", "[1, 2]", "it names no format", true},
		{"another program's", `{"jobs": []}`, "it names no format", true},
		{"an older version's", `{"format": "pollux-bench/1"}`, `format "pollux-bench/1" is not known`, true},
		{"a number as format", `{"format": 2}`, "it names no format", true},
		{"an unknown target", swap(`"target": "pair"`, `"target": "nobody"`), `target "nobody" is not described`, false},
		{"an unknown workload", swap(`"workload": "w",`+"\n   \"target\": \"p", `"workload": "x",`+"\n   \"target\": \"p"), `workload "x" is not described`, false},
		{"a negative figure", swap(`"cpu_micros": 30`, `"cpu_micros": -30`), "a figure is negative", false},
		{"a histogram that is none", swap(`"latency": "HISTF`, `"latency": "HISTG`), "damaged: latency histogram", false},
		{"a list of samples that is none", swap(`"samples": [`, `"samples": 7, "x": [`), "damaged", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "a.json")
			if err := os.WriteFile(name, []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := Read(name)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.HasPrefix(err.Error(), name+": ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q: the file's name and %q expected", err, tt.want)
			}
			var format *FormatError
			if errors.As(err, &format) != tt.format {
				t.Errorf("%v: a *FormatError: %v, want %v", err, !tt.format, tt.format)
			}
		})
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestWriteRefusesWhatReadWould(t *testing.T) {
	r := twoRounds()
	r.Targets = r.Targets[:1]
	name := filepath.Join(t.TempDir(), "run.json")
	if err := r.Write(name); err == nil || !strings.Contains(err.Error(), "not described") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}

// TestHistogramAgainstHDR sets every figure beside the library's own dense
// histogram, while recording, when compact, and after JSON in both directions.
func TestHistogramAgainstHDR(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	want, h := hdr.New(lowest, highest, digits), NewHistogram()
	for range 20000 {
		v := int64(rng.ExpFloat64() * 150e3)
		if rng.IntN(100) == 0 {
			v *= 1000
		}
		v = max(v, 1)
		h.Record(time.Duration(v))
		if err := want.RecordValue(v); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, h *Histogram) {
		t.Helper()
		for _, q := range []float64{0, 0.001, 0.5, 0.9, 0.99, 0.999, 0.9999, 1} {
			if got, want := int64(h.P(q)), want.ValueAtPercentile(100*q); got != want {
				t.Errorf("%s: P(%v) = %d, want %d", what, q, got, want)
			}
		}
		if h.Count() != want.TotalCount() || int64(h.Mean()) != int64(want.Mean()) || int64(h.Max()) != want.Max() {
			t.Errorf("%s: count %d, mean %v, max %v; want %d, %v, %d", what, h.Count(), h.Mean(), h.Max(), want.TotalCount(), want.Mean(), want.Max())
		}
	}
	check("recorded", h)
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := want.Encode(hdr.V2CompressedEncodingCookieBase)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != `"`+string(theirs)+`"` {
		t.Error("the text differs from the library's own")
	}
	if back, err := hdr.Decode(theirs); err != nil || !back.Equals(want) {
		t.Errorf("the library does not read it: %v", err)
	}
	h.Compact()
	check("compact", h)
	var read Histogram
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	check("read", &read)
	again, err := json.Marshal(&read)
	if err != nil || !bytes.Equal(again, text) {
		t.Errorf("read and written again it differs: %v", err)
	}
	sum := NewHistogram()
	sum.Merge(&read)
	check("merged from a compact one", sum)
	check("cloned", h.Clone())
	read.Record(time.Minute)
	if read.Count() != want.TotalCount()+1 || read.Max() < time.Minute {
		t.Errorf("recording to a read histogram: count %d, max %v", read.Count(), read.Max())
	}
}

func TestHistogramEdges(t *testing.T) {
	var none *Histogram
	if none.Count() != 0 || none.P(0.5) != 0 || none.Mean() != 0 || none.Max() != 0 {
		t.Error("a nil histogram is not empty")
	}
	if text, err := json.Marshal(none); err != nil || string(text) != "null" {
		t.Errorf("a nil histogram as JSON: %s, %v", text, err)
	}
	h := NewHistogram()
	h.Merge(none)
	h.Record(-time.Second)
	h.Record(2 * time.Minute)
	h.RecordN(time.Second, 0)
	h.RecordN(time.Second, -5)
	if h.Count() != 2 || h.P(0.1) != 1 || h.Max() < time.Minute || h.Max() > 61*time.Second {
		t.Errorf("count %d, least %v, max %v", h.Count(), h.P(0.1), h.Max())
	}
	other, err := hdr.New(1, 1000, 2).Encode(hdr.V2CompressedEncodingCookieBase)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`"`+string(other)+`"`), h); !errors.Is(err, errGeometry) {
		t.Errorf("a histogram of another range: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { h.Record(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations to record", n)
	}
}

func TestSummaries(t *testing.T) {
	r := twoRounds()
	sum := r.Summary("w", "pollux")
	if sum.Rounds != 2 || sum.IOPS != 4000 || sum.Best != 6000 || sum.Least != 2000 || sum.CPU != 30 || sum.BytesPS != 4000*4096 {
		t.Errorf("%+v", sum)
	}
	// The middle of 500 and 166.7 us, to three digits.
	if sum.P50 < 332 || sum.P50 > 335 || sum.Max < 500 || sum.Max > 501 {
		t.Errorf("p50 %v, max %v", sum.P50, sum.Max)
	}
	if got := r.Ratio("w", "pollux", "pair", MetricIOPS); got != 2 {
		t.Errorf("ratio %v: in every round it is 2", got)
	}
	if got := r.BestRival("w"); got != "pair" {
		t.Errorf("best rival %q", got)
	}
	if got := r.Merged("w", "pair").Count(); got != 4000 {
		t.Errorf("%d latencies in all rounds", got)
	}
	if got := r.MeasureMedian("resync", "pollux", ""); got != 600 {
		t.Errorf("resync %v", got)
	}
	if got := len(r.Summaries()); got != 2 {
		t.Errorf("%d summaries: the skipped target has none", got)
	}
}

// TestClientsAreNotMixed: fio's rounds are for cross-checking, they must not
// move the medians of the Go client.
func TestClientsAreNotMixed(t *testing.T) {
	r := twoRounds()
	for _, s := range r.Samples[:4] {
		s.Client, s.Ops = ClientFio, 1
		r.Samples = append(r.Samples, s)
	}
	if sum := r.Summary("w", "pollux"); sum.IOPS != 4000 || sum.Rounds != 2 {
		t.Errorf("%+v", sum)
	}
	if got := len(r.SamplesOf("w", "pollux", ClientFio)); got != 2 {
		t.Errorf("%d samples of fio", got)
	}
}

func TestAppend(t *testing.T) {
	r, guests := twoRounds(), twoRounds()
	if err := r.Append(guests); err == nil || !strings.Contains(err.Error(), "measured in both") {
		t.Errorf("the same twice: %v", err)
	}
	guests.Targets = []Target{{Name: "drbd", Kind: KindKernel}}
	guests.Samples = guests.Samples[:1]
	guests.Samples[0].Target = "drbd"
	guests.Bars[0].Met = false
	if err := r.Append(guests); err != nil {
		t.Fatal(err)
	}
	if len(r.Samples) != 5 || r.Target("drbd").Skipped != "" || len(r.Bars) != 1 || r.Bars[0].Met {
		t.Errorf("%d samples, target %+v, bars %+v", len(r.Samples), r.Target("drbd"), r.Bars)
	}
	if err := r.Validate(); err != nil {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	whole := new(bytes.Buffer)
	if err := twoRounds().Encode(whole); err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Bytes())
	f.Add([]byte(`{"format": "pollux-bench/2"}`))
	f.Add([]byte(`{"format": "pollux-bench/2", "samples": [{"latency": null}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decode(bytes.NewReader(data), "a.json")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "a.json: ") {
				t.Errorf("error %q does not name the file", err)
			}
			return
		}
		for _, s := range r.Summaries() {
			r.Merged(s.Workload, s.Target)
			r.RatioInterval(s.Workload, s.Target, s.Target, MetricIOPS)
		}
		var text bytes.Buffer
		if err := r.Encode(&text); err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		if _, err := Decode(&text, "b.json"); err != nil {
			t.Errorf("what was written can't be read: %v", err)
		}
	})
}
