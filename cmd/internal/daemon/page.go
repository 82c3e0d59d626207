package daemon

import (
	"bufio"
	"compress/gzip"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/internal/perf"
)

// A page is an answer to Prometheus, in its text format, version 0.0.4. It is
// written here, since the client library for it, with all that it brings, would
// take 2 MiB of the memory that a node may have.
type page struct {
	w                *bufio.Writer
	name, kind, help string // of the family under way
	begun            bool   // its head is written: it has a sample
	line             []byte
}

// The kinds of metrics.
const (
	gauge     = "gauge"
	counter   = "counter"
	histogram = "histogram"
)

// The buckets of the histograms have powers of two as upper bounds: 2^13 ns
// (8 us) to 2^33 ns (8.6 s), which are bounds of the buckets of package perf.
const minBucket, maxBucket = 13, 33

func newPage(w io.Writer) *page { return &page{w: bufio.NewWriter(w)} }

// end writes what is left and reports the first error of all.
func (p *page) end() error { return p.w.Flush() }

// family begins the samples of one metric. One without samples is left out.
func (p *page) family(name, kind, help string) {
	p.name, p.kind, p.help, p.begun = "pollux_"+name, kind, help, false
}

// sample adds one, with names and values of its labels, ascending by name.
func (p *page) sample(value float64, labels ...string) { p.add("", value, "", labels) }

// histogram adds one, with its labels as those of a sample.
func (p *page) histogram(h perf.Snapshot, labels ...string) {
	for power := minBucket; power <= maxBucket; power++ {
		p.add("_bucket", float64(h.Below(power)), decimal(float64(uint64(1)<<power)/1e9), labels)
	}
	p.add("_bucket", float64(h.Count), decimal(math.Inf(1)), labels)
	p.add("_sum", float64(h.Sum)/1e9, "", labels)
	p.add("_count", float64(h.Count), "", labels)
}

func decimal(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

// add writes one line; bound is a bucket's upper one, or "".
func (p *page) add(suffix string, value float64, bound string, labels []string) {
	b := p.line[:0]
	if !p.begun {
		p.begun = true
		b = append(b, "# HELP "+p.name+" "+p.help+"\n# TYPE "+p.name+" "+p.kind+"\n"...)
	}
	b = append(append(b, p.name...), suffix...)
	if bound != "" {
		labels = append(labels[:len(labels):len(labels)], "le", bound)
	}
	for i := 0; i < len(labels); i += 2 {
		b = append(b, "{,"[min(i, 1)])
		b = append(append(b, labels[i]...), '=', '"')
		b = append(append(b, labelValue.Replace(labels[i+1])...), '"')
	}
	if len(labels) > 0 {
		b = append(b, '}')
	}
	b = append(strconv.AppendFloat(append(b, ' '), value, 'g', -1, 64), '\n')
	p.w.Write(b) //nolint:errcheck // Flush reports it
	p.line = b
}

// labelValue escapes what the format asks for.
var labelValue = strings.NewReplacer("\\", "\\\\", "\n", "\\n", "\"", "\\\"")

// servePage answers a request with a page, compressed if the client takes that.
func servePage(w http.ResponseWriter, r *http.Request, write func(io.Writer) error) error {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Vary", "Accept-Encoding")
	if !takesGzip(r.Header.Get("Accept-Encoding")) {
		return write(w)
	}
	w.Header().Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	if err := write(z); err != nil {
		return err
	}
	return z.Close()
}

// takesGzip reads an Accept-Encoding.
func takesGzip(accepted string) bool {
	for one := range strings.SplitSeq(accepted, ",") {
		name, quality, _ := strings.Cut(one, ";")
		if strings.TrimSpace(name) == "gzip" {
			q, err := strconv.ParseFloat(strings.TrimPrefix(strings.TrimSpace(quality), "q="), 64)
			return err != nil || q > 0
		}
	}
	return false
}
