package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Geometry of a Histogram, in nanoseconds. Three digits from 1 us on, so that
// the bucket is never what makes two latencies differ; below it the unit is 1 ns.
const (
	lowest  = int64(1)
	highest = int64(60 * time.Second)
	digits  = 3
)

// A Histogram counts latencies from 1 us to 60 s with three significant digits.
// As JSON it is the string that every HdrHistogram library reads: V2, deflated,
// base64. NewHistogram makes one; a nil one is empty, and can't be recorded to.
type Histogram struct {
	dense  *hdr.Histogram       // while it is being recorded: fast, 220 kB
	packed *hdr.PackedHistogram // after Compact or reading: some kB
}

// NewHistogram returns an empty histogram.
func NewHistogram() *Histogram { return &Histogram{dense: hdr.New(lowest, highest, digits)} }

// Record counts one latency; more than 60 s counts as 60 s, less than 1 ns as
// 1 ns. It allocates nothing unless the histogram was compact.
func (h *Histogram) Record(d time.Duration) { h.RecordN(d, 1) }

// RecordN counts n equal latencies. n below 1 counts nothing.
func (h *Histogram) RecordN(d time.Duration, n int64) {
	if n < 1 {
		return
	}
	h.expand()
	// The value is in range; the total of 2^63 operations is out of reach.
	_ = h.dense.RecordValues(min(max(int64(d), lowest), highest), n)
}

// expand makes a compact histogram fit for recording.
func (h *Histogram) expand() {
	if h.dense != nil {
		return
	}
	h.dense = hdr.New(lowest, highest, digits)
	if h.packed != nil {
		h.packed.MergeInto(h.dense)
		h.packed = nil
	}
}

// Compact shrinks a histogram that is complete, for keeping many of them.
func (h *Histogram) Compact() {
	if h == nil || h.dense == nil {
		return
	}
	packed := hdr.NewPacked(lowest, highest, digits)
	packed.MergeFrom(h.dense)
	packed.Compact()
	h.dense, h.packed = nil, packed
}

// Merge adds what other counted; nil adds nothing.
func (h *Histogram) Merge(other *Histogram) {
	if other.Count() == 0 {
		return
	}
	h.expand()
	if other.dense != nil {
		h.dense.Merge(other.dense)
	} else {
		other.packed.MergeInto(h.dense)
	}
}

// Count is how many latencies were recorded.
func (h *Histogram) Count() int64 {
	switch {
	case h == nil:
		return 0
	case h.dense != nil:
		return h.dense.TotalCount()
	case h.packed != nil:
		return h.packed.TotalCount()
	default:
		return 0
	}
}

// P is the latency that the part q of all operations did not exceed: q = 0.99
// is the 99th percentile, 1 the maximum. 0 if the histogram is empty.
func (h *Histogram) P(q float64) time.Duration {
	if h.Count() == 0 {
		return 0
	}
	if h.dense != nil {
		return time.Duration(h.dense.ValueAtPercentile(q * 100))
	}
	return time.Duration(h.packed.ValueAtPercentile(q * 100))
}

// PMicros is P in microseconds.
func (h *Histogram) PMicros(q float64) float64 { return float64(h.P(q)) / float64(time.Microsecond) }

// Max is the longest latency, to three digits; 0 if the histogram is empty.
func (h *Histogram) Max() time.Duration { return h.P(1) }

// Mean is the average latency; 0 if the histogram is empty.
func (h *Histogram) Mean() time.Duration {
	if h.Count() == 0 {
		return 0
	}
	if h.dense != nil {
		return time.Duration(h.dense.Mean())
	}
	return time.Duration(h.packed.Mean())
}

// Clone returns an independent copy, fit for recording.
func (h *Histogram) Clone() *Histogram {
	c := NewHistogram()
	c.Merge(h)
	return c
}

func (h *Histogram) encode() ([]byte, error) {
	switch {
	case h.dense != nil:
		return h.dense.Encode(hdr.V2CompressedEncodingCookieBase)
	case h.packed != nil:
		return h.packed.Encode()
	default:
		return NewHistogram().encode()
	}
}

// MarshalJSON returns the V2 string. A nil *Histogram is null.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	if h == nil {
		return []byte("null"), nil
	}
	text, err := h.encode()
	if err != nil {
		return nil, fmt.Errorf("latency histogram: encode: %w", err)
	}
	return json.Marshal(string(text))
}

// errGeometry says that a histogram is none of ours.
var errGeometry = errors.New("not one of 1 ns to 60 s with 3 digits")

// UnmarshalJSON takes a V2 string of this package's range and precision.
func (h *Histogram) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("latency histogram: %w", err)
	}
	packed, err := hdr.DecodePacked([]byte(text))
	if err != nil {
		return fmt.Errorf("latency histogram: %w", err)
	}
	if packed.LowestTrackableValue() != lowest || packed.HighestTrackableValue() != highest || packed.SignificantFigures() != digits {
		return fmt.Errorf("latency histogram: %w", errGeometry)
	}
	h.dense, h.packed = nil, packed
	return nil
}
