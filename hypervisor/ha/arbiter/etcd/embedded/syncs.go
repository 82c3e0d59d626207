package embedded

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// etcd counts how long each sync of its log took, in buckets, among the process's
// metrics. A window of ten minutes has about sixty on a quiet cluster, as each node
// probes it twice a minute.
const (
	syncMetric   = "etcd_disk_wal_fsync_duration_seconds"
	syncInterval = 30 * time.Second
	syncWindow   = 20                    // intervals
	slowSync     = 10 * time.Millisecond // etcd's manual, "Hardware recommendations" and FAQ
	fewSyncs     = 20                    // say nothing
)

// buckets is a cumulative histogram: upper bound in seconds to count.
type buckets map[float64]uint64

// syncs remembers the last looks. It is safe for concurrent use.
type syncs struct {
	mu    sync.Mutex
	looks []buckets
}

func (s *syncs) look() {
	b := gather()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks = append(s.looks, b)
	if len(s.looks) > syncWindow+1 {
		s.looks = s.looks[1:]
	}
}

func gather() buckets {
	b := buckets{}
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil && len(families) == 0 {
		return b
	}
	for _, f := range families {
		if f.GetName() != syncMetric || len(f.GetMetric()) == 0 {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		for _, k := range h.GetBucket() {
			b[k.GetUpperBound()] = k.GetCumulativeCount()
		}
		b[inf] = h.GetSampleCount()
	}
	return b
}

// inf is beyond the last bucket, in seconds.
const inf = 1e9

func (s *syncs) complaint() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.looks) == 0 {
		return ""
	}
	return complain(s.looks[0], s.looks[len(s.looks)-1])
}

// complain compares two looks.
func complain(from, to buckets) string {
	all := to[inf] - from[inf]
	if all < fewSyncs {
		return ""
	}
	slow := all
	for bound, n := range to {
		if bound <= slowSync.Seconds() {
			slow = min(slow, all-(n-from[bound]))
		}
	}
	if slow*100 <= all {
		return ""
	}
	return fmt.Sprintf("its own disk is slow: %d of %d syncs took longer than about %v", slow, all, slowSync)
}
