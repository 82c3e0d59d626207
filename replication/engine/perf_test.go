package engine

import (
	"runtime"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/internal/perf"
)

// slow is a device with a latency, of its data if below is the end of them.
type slow struct {
	blockdev.Device
	latency time.Duration
	below   int64
}

func (s *slow) wait(off int64) {
	if off < s.below {
		time.Sleep(s.latency) // the latency that the test looks for
	}
}

func (s *slow) ReadAt(p []byte, off int64) (int, error) {
	s.wait(off)
	return s.Device.ReadAt(p, off)
}

func (s *slow) WriteAt(p []byte, off int64) (int, error) {
	s.wait(off)
	return s.Device.WriteAt(p, off)
}

func (s *slow) Sync() error {
	s.wait(0)
	return s.Device.Sync()
}

// measured runs requests as the NBD server does.
type measured struct {
	*client
	t     *testing.T
	trace perf.Trace
}

func (m *measured) do(op blockdev.Op, dir perf.Dir, off int64) {
	m.t.Helper()
	r := &blockdev.Request{Op: op, Offset: off, Sink: m.s, Trace: &m.trace}
	if op == blockdev.OpRead || op == blockdev.OpWrite {
		r.Length, r.Data = 4096, blockdev.AlignedBuffer(4096)
	}
	m.trace.Begin(perf.Now())
	m.n.Volume(0).Submit([]*blockdev.Request{r})
	if err := m.s.wait(r); err != nil {
		m.t.Fatal(err)
	}
	m.n.Volume(0).Perf().Fold(dir, &m.trace, perf.Now())
}

// times is what was measured on a volume, by hop; the decisive hops must add up.
func times(t *testing.T, n *node, dir perf.Dir) map[perf.Hop]perf.HopTimes {
	t.Helper()
	found := map[perf.Hop]perf.HopTimes{}
	for _, d := range n.Volume(0).Perf().Snapshot() {
		if d.Dir != dir {
			continue
		}
		var sum int64
		for _, h := range d.Hops {
			found[h.Hop] = h
			sum += h.Critical
		}
		if total := found[perf.Total]; dir != perf.Disk && sum != total.Sum {
			t.Errorf("%v: the hops are %v in all, the requests took %v", dir, time.Duration(sum), time.Duration(total.Sum))
		}
	}
	return found
}

func share(m map[perf.Hop]perf.HopTimes, h perf.Hop) float64 {
	return float64(m[h].Critical) / float64(m[perf.Total].Sum)
}

// TestPerfShowsWhatIsSlow: one part of the way is slow, and that is where the
// time is seen, on both nodes.
func TestPerfShowsWhatIsSlow(t *testing.T) {
	const latency = 20 * time.Millisecond
	const n = 10
	for _, tt := range []struct {
		name      string
		a, b      time.Duration
		protocol  byte
		want, not perf.Hop
	}{
		{"local disk", latency, 0, 'C', perf.Local, perf.Peer},
		{"peer", 0, latency, 'C', perf.Peer, perf.Local},
		{"not the peer's disk under protocol A", latency, latency, 'A', perf.Local, perf.Peer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := syncedPair(t, func(c *Config) { c.PerfEvery, c.Net.Protocol = 1, tt.protocol })
			c := a.open()
			m := &measured{client: c, t: t}
			for i := range n { // the extents are hot
				m.do(blockdev.OpWrite, perf.Discard, int64(i)*4096)
			}
			for i, d := range []time.Duration{tt.a, tt.b} {
				v := []*node{a, b}[i].Volume(0)
				v.diskMu.Lock()
				v.data = &slow{Device: v.data, latency: d, below: v.Size()}
				v.diskMu.Unlock()
			}
			for i := range n {
				m.do(blockdev.OpWrite, perf.Write, int64(i)*4096)
			}
			w := times(t, a, perf.Write)
			if got := w[tt.want]; got.Count != n || got.Percentile(50) < int64(latency)*95/100 {
				t.Errorf("%v: %d samples, p50 %v; want %d of %v", tt.want, got.Count, time.Duration(got.Percentile(50)), n, latency)
			}
			if got := share(w, tt.want); got < 0.8 {
				t.Errorf("%v is %.2f of the total, want most of it", tt.want, got)
			}
			if got := share(w, tt.not); got > 0.1 {
				t.Errorf("%v is %.2f of the total", tt.not, got)
			}
			if tt.protocol == 'C' {
				p := times(t, b, perf.PeerWrite)
				if got := p[perf.Local]; got.Percentile(99) < int64(tt.b)*95/100 || tt.b == 0 && got.Percentile(50) > int64(latency)/2 {
					t.Errorf("the peer's local write: p99 %v, want %v", time.Duration(got.Percentile(99)), tt.b)
				}
				if p[perf.Ack].Count == 0 || p[perf.Receive].Count == 0 {
					t.Errorf("the peer has no times of receiving and acknowledging: %v", p)
				}
			}
		})
	}
}

// TestPerfOfReadsAndFlushes: where they are served is where their time is.
func TestPerfOfReadsAndFlushes(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) { c.PerfEvery = 1 })
	m := &measured{client: a.open(), t: t}
	m.do(blockdev.OpWrite, perf.Write, 0)
	m.do(blockdev.OpRead, perf.ReadDir, 0)
	m.do(blockdev.OpFlush, perf.Flush, 0)
	w := times(t, a, perf.Write)
	if w[perf.ActivityLog].Count != 1 || w[perf.Send].Count != 1 || w[perf.Ack].Count != 1 || w[perf.Reply].Count != 1 {
		t.Errorf("the first write of an extent: %v", w)
	}
	r := times(t, a, perf.ReadDir)
	if r[perf.Local].Count != 1 || r[perf.Peer].Count != 0 {
		t.Errorf("a read of the local disk: %v", r)
	}
	f := times(t, a, perf.Flush)
	if f[perf.Local].Count != 1 || f[perf.Peer].Count != 1 {
		t.Errorf("a flush: %v", f)
	}
	for _, n := range []*node{a, b} {
		if d := times(t, n, perf.Disk); d[perf.Fdatasync].Count == 0 || d[perf.Metadata].Count == 0 {
			t.Errorf("%s: no fdatasync or metadata write was measured: %v", n.cfg.Node, d)
		}
	}
	if d := times(t, a, perf.Disk); d[perf.Transaction].Count == 0 {
		t.Error("no transaction of the activity log was measured")
	}
	if err := a.Detach(t.Context(), 0, false); err != nil {
		t.Fatal(err)
	}
	m.do(blockdev.OpRead, perf.ReadDir, 0)
	r = times(t, a, perf.ReadDir)
	if r[perf.Peer].Count != 1 || r[perf.Send].Count != 1 {
		t.Errorf("a read from the peer: %v", r)
	}
}

// TestPerfSeesCongestion: what waits for a socket that takes nothing is seen as
// sending.
func TestPerfSeesCongestion(t *testing.T) {
	from, to := tcpPair(t)
	o, _, _ := startOut(t, from, patience{time.Second, 10})
	var tr perf.Trace
	tr.Begin(perf.Now())
	o.file(make([]byte, 4<<20), nil, "")
	began := perf.Now()
	tr.Set(perf.Submitted, began)
	tr.Set(perf.Started, began)
	o.file(make([]byte, 4096), nil, "")
	o.time(timed{sending: tr.Sending()})
	o.flush()
	const stuck = 30 * time.Millisecond
	time.Sleep(stuck) // the peer is busy with something else
	got := 0
	for buf := make([]byte, 1<<20); got < 4<<20+4096; {
		n, err := to.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	for o.size() > 0 { // the sender has to look at the clock
		time.Sleep(time.Millisecond) // nothing tells when it has
	}
	now := perf.Now()
	for _, p := range []perf.Point{perf.AckRead, perf.Acked, perf.Completed} {
		tr.Set(p, now)
	}
	v := perf.NewVolume(1)
	v.Fold(perf.Write, &tr, now)
	for _, h := range v.Snapshot()[0].Hops {
		if d := time.Duration(h.Percentile(50)); h.Hop == perf.Send && d < stuck*95/100 || h.Hop == perf.Peer && d > stuck/2 {
			t.Errorf("%v took %v, with a socket that was full for %v", h.Hop, d, stuck)
		}
	}
}

// TestMeasuredWriteAllocs: a write that is measured allocates as little as one
// that is not (TestWriteAllocs), on both nodes together.
func TestMeasuredWriteAllocs(t *testing.T) {
	a, b := syncedPair(t, func(c *Config) { c.PerfEvery = 1 })
	a.open()
	var trace perf.Trace
	done := make(oneSink, 1)
	r := &blockdev.Request{Op: blockdev.OpWrite, Length: 4096, Data: blockdev.AlignedBuffer(4096), Sink: done, Trace: &trace}
	batch := []*blockdev.Request{r}
	write := func(n int) {
		for i := range n {
			r.Offset = int64(i%2000) * 4096
			trace.Begin(perf.Now())
			a.Volume(0).Submit(batch)
			<-done
			a.Volume(0).Perf().Fold(perf.Write, &trace, perf.Now())
		}
	}
	write(12000) // tables, rings and pools reach their size
	const n = 4000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	write(n)
	runtime.ReadMemStats(&after)
	if got := float64(after.Mallocs-before.Mallocs) / n; got >= 0.05 {
		t.Errorf("%.3f allocations per write, want less than 0.05", got)
	}
	if w := times(t, a, perf.Write); w[perf.Total].Count != 16000 || w[perf.Peer].Count != 16000 {
		t.Errorf("%d writes were measured, %d with the peer's part; want 16000", w[perf.Total].Count, w[perf.Peer].Count)
	}
	if p := times(t, b, perf.PeerWrite); p[perf.Total].Count == 0 {
		t.Error("the peer has measured nothing")
	}
}
