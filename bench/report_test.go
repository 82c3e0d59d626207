package bench

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// sample is three rounds of a small benchmark in which Pollux is good at depth
// 1 and not at 32, and B is slower than C.
func sample() *Report {
	r := &Report{Rounds: 3, Seconds: 2, Isolated: true, Machine: Machine{CPUs: 2, Kernel: "6.1.0"}}
	for round, noise := range []float64{1, 0.8, 1.1} {
		add := func(class Class, depth int, system, variant string, iops, p50 float64) {
			r.Runs = append(r.Runs, Sample{Round: round + 1, Case: Case{class, depth, system, variant}, IOPS: iops * noise, P50: p50 / noise, P99: 3 * p50 / noise, CPU: 100})
		}
		add(Buffered, 1, Quorum, "threads", 5000, 200)
		add(Buffered, 1, Pollux, "C", 8000, 110)
		add(Buffered, 1, Pollux, "C, TLS", 7000, 130)
		add(Buffered, 1, Pollux, "B", 7900, 115)
		add(Buffered, 1, Pollux, "A", 9000, 90)
		add(Buffered, 1, Quorum, "nbdkit peer", 6000, 150)
		add(Buffered, 32, Pollux, "C", 9000, 3000)
		add(Buffered, 32, Quorum, "nbdkit peer", 8000, 3500)
		add(Flush, 1, Pollux, "C", 900, 1000)
		r.Resyncs = append(r.Resyncs, Resync{round + 1, Pollux, 1 << 30, 4 / noise}, Resync{round + 1, Nbdcopy, 1 << 30, 3 / noise}, Resync{round + 1, PolluxTLS, 1 << 30, 6 / noise})
	}
	for _, node := range nodeNames {
		r.Footprints = append(r.Footprints, Footprint{Node: node, StorageBytes: 2 << 30, RSSBytes: 40 << 20, PeakBytes: 50 << 20, IdleSeconds: 10, IdleTicks: 1, IdleMicros: 7000})
	}
	r.Footprints[1].PeakBytes, r.Footprints[1].IdleTicks = 65<<20, 2
	return r
}

func TestTable(t *testing.T) {
	r := sample()
	r.judge()
	var got bytes.Buffer
	if err := r.WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "table.txt")
	if *rewrite {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestBarsAreForWhatWasMeasured(t *testing.T) {
	r := sample()
	r.Runs, r.Resyncs, r.Footprints = r.Runs[:1], nil, nil
	r.judge()
	if len(r.Bars) > 0 {
		t.Errorf("bars about nothing: %+v", r.Bars)
	}
	var got bytes.Buffer
	if err := r.WriteTable(&got); err != nil {
		t.Fatal(err)
	}
}

func TestReportAsJSON(t *testing.T) {
	r := sample()
	r.judge()
	var text bytes.Buffer
	if err := r.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(text.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*r, back); diff != "" {
		t.Error(diff)
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 10}, 3}} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median of %v = %v, want %v", tt.values, got, tt.want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("the median of nothing is a number")
	}
}
