package perf

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	for i := range buckets {
		if got := index(lower(i)); got != i {
			t.Fatalf("bucket %d begins at %d ns, which is of bucket %d", i, lower(i), got)
		}
		if got := index(lower(i+1) - 1); got != i {
			t.Fatalf("bucket %d ends at %d ns, which is of bucket %d", i, lower(i+1)-1, got)
		}
		if got := index(middle(i)); got != i {
			t.Fatalf("the middle of bucket %d is of bucket %d", i, got)
		}
	}
	if got := lower(buckets); got != 1<<maxBits {
		t.Errorf("the buckets end at %d ns, want %d", got, int64(1)<<maxBits)
	}
	if got := index(1 << 60); got != buckets-1 {
		t.Errorf("36 years are of bucket %d, want the last one", got)
	}
}

// TestPercentiles compares with the exact values of sorted samples.
func TestPercentiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, tt := range []struct {
		name string
		draw func() int64
	}{
		{"even", func() int64 { return 20e3 + rng.Int64N(500e3) }},
		{"exponential", func() int64 { return 10e3 + int64(rng.ExpFloat64()*80e3) }},
		{"two humps", func() int64 { return []int64{90e3, 30e6}[rng.IntN(50)/49] + rng.Int64N(1e4) }},
		{"seconds", func() int64 { return rng.Int64N(60e9) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h Histogram
			var exact []int64
			var sum int64
			for range 20000 {
				v := tt.draw()
				h.Add(v)
				exact = append(exact, v)
				sum += v
			}
			slices.Sort(exact)
			s := h.Snapshot()
			if s.Count != 20000 || s.Sum != sum || s.Max != exact[len(exact)-1] {
				t.Errorf("count %d, sum %d, max %d; want 20000, %d, %d", s.Count, s.Sum, s.Max, sum, exact[len(exact)-1])
			}
			for _, q := range []float64{0.01, 10, 50, 90, 99, 99.9, 100} {
				want := exact[max(int(q/100*float64(len(exact))+0.9999), 1)-1]
				if got := s.Percentile(q); float64(got) < 0.968*float64(want)-32 || float64(got) > 1.032*float64(want)+32 {
					t.Errorf("p%v is %d ns, want %d within 3.2 %%", q, got, want)
				}
			}
		})
	}
	if got := (Snapshot{}).Percentile(99); got != 0 {
		t.Errorf("of nothing p99 is %d", got)
	}
}

func TestSinceAndMerge(t *testing.T) {
	var h Histogram
	h.Add(100e3)
	h.Add(5e9)
	old := h.Snapshot()
	h.Add(100e3)
	h.Add(200e3)
	d := h.Snapshot().Since(old)
	if d.Count != 2 || d.Sum != 300e3 || d.Percentile(50) > 104e3 || d.Max < 200e3 || d.Max > 220e3 {
		t.Errorf("the interval has %+v, want 100 us and 200 us", d)
	}
	m := d.Merge(old)
	all := h.Snapshot()
	if m.Count != all.Count || m.Sum != all.Sum || m.Max != all.Max || !slices.Equal(m.Buckets, all.Buckets) {
		t.Errorf("the interval and what was before are %+v, want %+v", m, all)
	}
	if got := all.Below(18); got != 3 { // 262 us
		t.Errorf("%d samples below 262 us, want 3", got)
	}
}

// A write both of whose branches are known: the longer one is what it waited
// for, and everything adds up.
func TestFold(t *testing.T) {
	points := func(local, acked int64) *Trace {
		tr := new(Trace)
		tr.Begin(1000_000)
		for p, at := range map[Point]int64{
			Submitted: 1010_000, Waits: 1011_000, Started: 1311_000, LocalBegun: 1320_000, LocalDone: local,
			AckRead: acked - 2000, Acked: acked, Completed: max(local, acked) + 5000,
		} {
			tr.Set(p, at)
		}
		tr.Sending().Sent(1316_000)
		return tr
	}
	for _, tt := range []struct {
		name         string
		local, acked int64
		decisive     map[Hop]int64
	}{
		{"the peer is slower", 1330_000, 1400_000, map[Hop]int64{
			NBDIn: 10_000, Conflict: 1000, ActivityLog: 300_000, Send: 5000, Peer: 82_000, Ack: 7000, Reply: 15_000, Rest: 0,
		}},
		{"the disk is slower", 1900_000, 1400_000, map[Hop]int64{
			NBDIn: 10_000, Conflict: 1000, ActivityLog: 300_000, LocalQueue: 9000, Local: 580_000, Reply: 15_000, Rest: 5000,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := NewVolume(1)
			tr := points(tt.local, tt.acked)
			replied := max(tt.local, tt.acked) + 20_000
			v.Fold(Write, tr, replied)
			var sum int64
			dirs := v.Snapshot()
			for _, h := range dirs[0].Hops {
				// Sent is kept to the nanosecond, but odd.
				if want := tt.decisive[h.Hop]; h.Critical < want-1 || h.Critical > want+1 {
					t.Errorf("%v: %d ns of the total, want %d", h.Hop, h.Critical, want)
				}
				if h.Count != 1 {
					t.Errorf("%v: %d samples, want 1", h.Hop, h.Count)
				}
				sum += h.Critical
			}
			if sum != replied-1000_000 {
				t.Errorf("the hops are %d ns in all, the write took %d", sum, replied-1000_000)
			}
		})
	}
}

// An acknowledgement may be read before the sender looks at the clock, and a
// sender may look after the trace has become another request's.
func TestLateSent(t *testing.T) {
	var tr Trace
	tr.Begin(100)
	tr.Set(Started, 200)
	old := tr.Sending()
	if got := tr.sentAt(500); got != 500 {
		t.Errorf("sent at %d, want 500 while that is all one knows", got)
	}
	old.Sent(900)
	if got := tr.sentAt(500); got != 500 {
		t.Errorf("sent at %d, after the answer at 500", got)
	}
	tr.Begin(1000)
	tr.Set(Started, 1100)
	old.Sent(5001)
	if tr.isSent() {
		t.Error("the packet of the request before counts for this one")
	}
	const daysLater = int64(1) << 52
	tr.Begin(daysLater)
	tr.Set(Started, daysLater+1000)
	tr.Sending().Sent(daysLater + 3001)
	if got := tr.sentAt(daysLater + 9000); got != daysLater+3001 {
		t.Errorf("after 52 days: sent %d ns after the start, want 2001", got-daysLater-1000)
	}
}

func TestSampler(t *testing.T) {
	t.Run("quiet: every one", func(t *testing.T) {
		v := NewVolume(64)
		s := v.NewSampler()
		for i := range int64(100) {
			s.Batch(1e9 + i*2400e3)
			if !s.Pick(Write) {
				t.Fatalf("write %d, 2.4 ms after the one before, was not picked", i)
			}
		}
	})
	t.Run("busy: few, at any place, none uncounted", func(t *testing.T) {
		v := NewVolume(64)
		s := v.NewSampler()
		picked, places := 0, make([]int, 8)
		const n = 64000
		for i := range int64(n / 8) {
			s.Batch(1e9 + i*80e3) // 100,000 a second
			for at := range 8 {
				if s.Pick(Write) {
					picked++
					places[at]++
				}
			}
		}
		if picked < n/75 || picked > n/55 {
			t.Errorf("%d of %d were picked, want 1 of 64", picked, n)
		}
		for at, got := range places {
			if got < picked/16 || got > picked/4 {
				t.Errorf("place %d in its batch: %d of %d", at, got, picked)
			}
		}
		if got := v.requests[Write].Load(); got > n || got < n-128 {
			t.Errorf("%d requests were counted, want %d", got, n)
		}
		s.Batch(1e9 + n*10e3 + 3e6)
		if !s.Pick(Write) {
			t.Error("the first write after a silence was not picked")
		}
		if got := v.requests[Write].Load(); got != n+1 {
			t.Errorf("%d requests were counted, want %d", got, n+1)
		}
	})
	t.Run("a rare flush among many writes", func(t *testing.T) {
		s := NewVolume(64).NewSampler()
		for i := range int64(100) {
			s.Batch(1e9 + i*2100e3)
			for range 32 {
				s.Pick(Write)
			}
			if !s.Pick(Flush) {
				t.Fatalf("flush %d was not picked", i)
			}
		}
	})
	t.Run("off", func(t *testing.T) {
		v := NewVolume(0)
		s := v.NewSampler()
		if s.Volume() != nil || s.Pick(Write) || v.Snapshot() != nil {
			t.Error("sampling is off and picks")
		}
		v.Time(Fdatasync, Now())
	})
}

// TestConcurrent is for the race detector; what was added must be there.
func TestConcurrent(t *testing.T) {
	v := NewVolume(1)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var tr Trace
			for range 2000 {
				now := Now()
				tr.Begin(now)
				for p := Submitted; p < points; p++ {
					tr.Set(p, now+int64(p)*1000)
				}
				tr.Set(Waits, 0)
				s := tr.Sending()
				done := make(chan struct{})
				go func() { s.Sent(now + 4000); close(done) }()
				v.Fold(Write, &tr, now+9000)
				v.Snapshot()
				<-done
			}
		})
	}
	wg.Wait()
	for _, h := range v.Snapshot()[0].Hops {
		if h.Count != 8000 {
			t.Errorf("%v: %d samples, want 8000", h.Hop, h.Count)
		}
	}
}

func TestNoAllocs(t *testing.T) {
	v := NewVolume(1)
	s := v.NewSampler()
	var tr Trace
	once := func() {
		now := Now()
		s.Batch(now)
		if s.Pick(Write) {
			tr.Begin(now)
			for p := Submitted; p < points; p++ {
				tr.Set(p, now+int64(p)*1000)
			}
			tr.Sending().Sent(Now())
			v.Fold(Write, &tr, now+20000)
		}
		v.PeerWritten(1, 2, 3, 4, 5)
	}
	once()
	if got := testing.AllocsPerRun(1000, once); got != 0 {
		t.Errorf("%v allocations for each sample", got)
	}
}

func BenchmarkSample(b *testing.B) {
	v := NewVolume(1)
	var tr Trace
	for b.Loop() {
		tr.Begin(Now())
		for p := Submitted; p < points; p++ {
			tr.Set(p, Now())
		}
		tr.Sending().Sent(Now())
		v.Fold(Write, &tr, Now())
	}
}

func BenchmarkNotPicked(b *testing.B) {
	s := NewVolume(1 << 40).NewSampler()
	s.kinds[Write].left = 1 << 50
	n := 0
	for b.Loop() {
		if s.Pick(Write) {
			n++
		}
	}
	if n > 0 {
		b.Fatal("picked")
	}
}

func BenchmarkNow(b *testing.B) {
	for b.Loop() {
		Now()
	}
}

func BenchmarkTimeNow(b *testing.B) {
	for b.Loop() {
		_ = time.Now()
	}
}
