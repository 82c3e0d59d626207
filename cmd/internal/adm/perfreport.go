package adm

import (
	"time"

	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A perfReport is what perf prints of a resource; its JSON names are stable.
type perfReport struct {
	Resource string       `json:"resource"`
	Node     string       `json:"node"`
	Peer     string       `json:"peer"`
	Role     string       `json:"role"`
	Every    int          `json:"sample"` // at least one of so many requests is measured; 0: none
	Volumes  []perfVolume `json:"volumes"`
}

type perfVolume struct {
	Volume     int             `json:"volume"`
	Since      time.Time       `json:"since"`
	Seconds    float64         `json:"seconds"`
	Directions []perfDirection `json:"directions"`
}

type perfDirection struct {
	Direction string    `json:"direction"`
	Requests  uint64    `json:"requests,omitempty"` // all, measured or not
	Verdict   string    `json:"verdict,omitempty"`
	Hops      []perfHop `json:"hops"`
}

// perfLeast is how many samples the percentiles 90, 99 and 99.9 need: with fewer
// they are the maximum.
var perfLeast = [...]uint64{10, 100, 1000}

// A perfHop has times in nanoseconds. A percentile of too few samples is left out.
type perfHop struct {
	Hop   string  `json:"hop"`
	Share float64 `json:"share"` // of the totals, what was spent waiting for this hop alone: 0 to 1
	Count uint64  `json:"count"` // of samples
	Mean  int64   `json:"mean_ns"`
	P50   int64   `json:"p50_ns"`
	P90   int64   `json:"p90_ns,omitempty"`
	P99   int64   `json:"p99_ns,omitempty"`
	P999  int64   `json:"p999_ns,omitempty"`
	Max   int64   `json:"max_ns"`
}

// perfReportOf is what p has, or what it has more than an earlier one.
func perfReportOf(p adm.Perf, old *adm.Perf) perfReport {
	r := perfReport{Resource: p.Resource, Node: p.Node, Peer: p.Peer, Role: p.Role, Every: p.Every, Volumes: []perfVolume{}}
	for _, v := range p.Volumes {
		pv := perfVolume{Volume: v.Volume, Since: v.Since, Directions: []perfDirection{}}
		before := perfBefore(v, old)
		if before != nil {
			pv.Since = old.Now
		}
		pv.Seconds = p.Now.Sub(pv.Since).Seconds()
		for _, d := range v.Directions {
			var was adm.PerfDirection
			for _, b := range before {
				if b.Direction == d.Direction {
					was = b
				}
			}
			if out := perfDirectionOf(d, was); len(out.Hops) > 0 {
				out.Verdict = perfVerdict(r, out)
				pv.Directions = append(pv.Directions, out)
			}
		}
		r.Volumes = append(r.Volumes, pv)
	}
	return r
}

// perfBefore is what an earlier answer has of the volume; nil if there is none,
// or counting began anew in between.
func perfBefore(v adm.PerfVolume, old *adm.Perf) []adm.PerfDirection {
	if old == nil {
		return nil
	}
	for _, o := range old.Volumes {
		if o.Volume == v.Volume && o.Since.Equal(v.Since) {
			return append([]adm.PerfDirection{}, o.Directions...)
		}
	}
	return nil
}

func perfDirectionOf(d, was adm.PerfDirection) perfDirection {
	out := perfDirection{Direction: d.Direction, Requests: d.Requests - was.Requests}
	var total int64
	decisive := map[string]int64{}
	for _, h := range d.Hops {
		s := histogramOf(h)
		decisive[h.Hop] = h.Decisive
		for _, w := range was.Hops {
			if w.Hop == h.Hop {
				s = s.Since(histogramOf(w))
				decisive[h.Hop] -= w.Decisive
			}
		}
		if s.Count == 0 {
			continue
		}
		if h.Hop == perf.Total.String() {
			total = s.Sum
		}
		hop := perfHop{Hop: h.Hop, Count: s.Count, Mean: s.Mean(), P50: s.Percentile(50), Max: s.Max}
		for i, to := range []*int64{&hop.P90, &hop.P99, &hop.P999} {
			if s.Count >= perfLeast[i] {
				*to = s.Percentile([]float64{90, 99, 99.9}[i])
			}
		}
		out.Hops = append(out.Hops, hop)
	}
	for i := range out.Hops {
		h := &out.Hops[i]
		switch {
		case total <= 0:
		case h.Hop == perf.Total.String():
			h.Share = 1
		default:
			h.Share = float64(decisive[h.Hop]) / float64(total)
		}
	}
	return out
}

func histogramOf(h adm.PerfHop) perf.Snapshot {
	s := perf.Snapshot{Sum: h.Sum, Max: h.Max}
	for _, b := range h.Buckets {
		s.Buckets = append(s.Buckets, perf.Bucket{NS: b[0], Count: uint64(b[1])})
		s.Count += uint64(b[1])
	}
	return s
}
