package witness

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// BenchmarkClaims is how long claims take over TLS, with a real disk: one at a
// time, and as many at once as a node with 200 resources makes when its peer dies.
func BenchmarkClaims(b *testing.B) {
	for _, atOnce := range []int{1, 200} {
		b.Run(fmt.Sprint(atOnce), func(b *testing.B) {
			s := newSite(b, "office")
			h := newHost(b, nil, s)
			c := h.client(s, "a", 6*time.Second)
			seen := make([]uint64, atOnce)
			var took []time.Duration
			var mu sync.Mutex
			round := func() {
				var wg sync.WaitGroup
				for i := range atOnce {
					wg.Go(func() {
						began := time.Now()
						rec, err := c.Acquire(b.Context(), arbiter.Claim{
							Resource: fmt.Sprintf("vm-%d", i), Node: "a", Session: "s", Seen: seen[i], MinTerm: seen[i],
							InSync: []string{"a", "b"}, Members: []string{"a", "b"},
						})
						if err != nil {
							b.Error(err)
						}
						mu.Lock()
						took = append(took, time.Since(began))
						mu.Unlock()
						seen[i] = rec.Term
					})
				}
				wg.Wait()
				h.s.clusters["office"].mu.Lock()
				h.s.clusters["office"].tokens = rateBurst
				h.s.clusters["office"].mu.Unlock()
			}
			round() // connections, and the first flush
			took = took[:0]
			b.ResetTimer()
			for b.Loop() {
				round()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
		})
	}
}
