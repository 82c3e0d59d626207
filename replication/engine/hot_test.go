package engine

import (
	"runtime"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
)

// oneSink wakes one waiter per flush, without allocating.
type oneSink chan struct{}

func (s oneSink) Completed(*blockdev.Request) {}
func (s oneSink) Flush()                      { s <- struct{}{} }

// TestWriteAllocs holds the path of a replicated write at no heap allocation
// per write, both nodes together: submit, local write, send, peer's write,
// acknowledgements, epochs, completion.
func TestWriteAllocs(t *testing.T) {
	for _, tt := range []struct {
		protocol  byte
		integrity string
		tls       bool
		direct    bool
		limit     float64
	}{
		{'A', "", false, false, 0.05},
		{'B', "", false, false, 0.05},
		{'C', "", false, false, 0.05},
		{'C', "sha256", false, false, 0.05},
		{'C', "", false, true, 0.05},
		// crypto/tls makes one small object for each read of its socket: one
		// for the write, one for its acknowledgement, and seldom a third.
		{'C', "", true, false, 2.5},
	} {
		name := string(tt.protocol) + tt.integrity
		if tt.tls {
			name += "-tls"
		}
		if tt.direct {
			name += "-direct"
		}
		t.Run(name, func(t *testing.T) {
			if tt.tls && underRace {
				tt.limit *= 2
			}
			ca := newTestCA(t, "test CA")
			a, _ := syncedPair(t, func(c *Config) {
				c.Net.Protocol, c.Net.DataIntegrityAlg = tt.protocol, tt.integrity
				c.Volumes[0].Direct = tt.direct
				if tt.tls {
					withTLS(ca)(c)
				}
			})
			a.open()
			done := make(oneSink, 1)
			r := &blockdev.Request{Op: blockdev.OpWrite, Length: 4096, Data: blockdev.AlignedBuffer(4096), Sink: done}
			batch := []*blockdev.Request{r}
			write := func(n int) {
				for i := range n {
					r.Offset = int64(i%2000) * 4096
					a.Volume(0).Submit(batch)
					<-done
				}
			}
			write(12000) // tables, rings and pools reach their size
			const n = 4000
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			write(n)
			runtime.ReadMemStats(&after)
			// Timers, the lazy commit and the runtime's own allocate now and
			// then, but not once per write.
			if got := float64(after.Mallocs-before.Mallocs) / n; got >= tt.limit {
				t.Fatalf("%.3f allocations per write, want less than %v", got, tt.limit)
			} else {
				t.Logf("%.3f allocations per write", got)
			}
		})
	}
}
