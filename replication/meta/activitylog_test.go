package meta

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// naiveAL says what an activity log must do, in the obvious way.
type naiveAL struct {
	slots   int
	refs    map[Extent]int
	hot     map[Extent]bool // hot on disk and held in memory
	cold    []Extent        // has a slot, waits for a transaction, oldest first
	writing []Extent
	idle    []Extent // hot without reference, least recently used first
}

func (a *naiveAL) held(e Extent) bool {
	return a.hot[e] || slices.Contains(a.cold, e) || slices.Contains(a.writing, e)
}

func (a *naiveAL) used() int { return len(a.hot) + len(a.cold) + len(a.writing) }

func (a *naiveAL) begin(first, last Extent) (bool, error) {
	need, idle := 0, len(a.idle)
	for e := first; e <= last; e++ {
		if !a.held(e) {
			need++
		}
		if slices.Contains(a.idle, e) {
			idle--
		}
	}
	if need > a.slots-a.used()+idle {
		return false, ErrALFull
	}
	for e := first; e <= last; e++ {
		if a.held(e) {
			a.refs[e]++
			a.idle = slices.DeleteFunc(a.idle, func(x Extent) bool { return x == e })
		}
	}
	for e := first; e <= last; e++ {
		if a.held(e) {
			continue
		}
		if a.used() == a.slots {
			delete(a.hot, a.idle[0])
			a.idle = a.idle[1:]
		}
		a.refs[e] = 1
		a.cold = append(a.cold, e)
	}
	return a.ready(first, last), nil
}

func (a *naiveAL) ready(first, last Extent) bool {
	for e := first; e <= last; e++ {
		if !a.hot[e] {
			return false
		}
	}
	return true
}

func (a *naiveAL) end(first, last Extent) {
	for e := first; e <= last; e++ {
		if a.refs[e]--; a.refs[e] == 0 {
			delete(a.refs, e)
			if a.hot[e] {
				a.idle = append(a.idle, e)
			}
		}
	}
}

func (a *naiveAL) transaction() {
	n := min(len(a.cold), alMaxUpdates)
	a.writing, a.cold = slices.Clone(a.cold[:n]), a.cold[n:]
}

func (a *naiveAL) committed() {
	for _, e := range a.writing {
		a.hot[e] = true
		if a.refs[e] == 0 {
			a.idle = append(a.idle, e)
		}
	}
	a.writing = nil
}

type span struct{ first, last Extent }

// alMachine drives an ActivityLog, its twin and a ring.
type alMachine struct {
	al     *ActivityLog
	twin   *naiveAL
	ring   [][]byte
	layout Layout
	open   []span
	block  []byte // being written
	at     int
}

func newALMachine(slots, stripes, stripeSize int) *alMachine {
	m := &alMachine{
		al:     NewActivityLog(slots, stripes, stripeSize),
		twin:   &naiveAL{slots: slots, refs: map[Extent]int{}, hot: map[Extent]bool{}},
		layout: Layout{Stripes: stripes, StripeSize4k: stripeSize, ALBlocks: stripes * stripeSize},
	}
	for range stripes * stripeSize {
		b := make([]byte, BlockSize)
		InitialALBlock(b)
		m.ring = append(m.ring, b)
	}
	return m
}

func (m *alMachine) replay(ring [][]byte) ([]Extent, error) {
	return Replay(len(ring), func(k int, b []byte) error {
		copy(b, ring[m.layout.RingOrder(uint32(k))])
		return nil
	})
}

// mustCover checks that after a power failure now every extent that a write
// was let through to is found again: with the block being written not there,
// torn at any sector, or complete.
func (m *alMachine) mustCover(t *rapid.T) {
	rings := map[string][][]byte{"before": m.ring}
	if m.block != nil {
		cut := 512 * rapid.IntRange(0, 8).Draw(t, "torn after sectors")
		torn := slices.Clone(m.block)
		copy(torn[cut:], m.ring[m.at][cut:])
		rings["torn"] = slices.Clone(m.ring)
		rings["torn"][m.at] = torn
		rings["garbage"] = slices.Clone(m.ring)
		rings["garbage"][m.at] = slices.Repeat([]byte{0xa5}, BlockSize)
	}
	for name, ring := range rings {
		hot, err := m.replay(ring)
		if err != nil {
			t.Fatalf("%s: replay: %v", name, err)
		}
		for e := range m.twin.refs {
			if m.twin.hot[e] && !slices.Contains(hot, e) {
				t.Fatalf("%s: extent %d is hot and in use but replay gives %v", name, e, hot)
			}
		}
	}
}

func (m *alMachine) check(t *rapid.T) {
	if got, want := m.al.InUse(), len(m.twin.refs); got != want {
		t.Fatalf("InUse = %d, want %d", got, want)
	}
	if got, want := m.al.Pending(), len(m.twin.cold) > 0 && m.block == nil; got != want {
		t.Fatalf("Pending = %v, want %v", got, want)
	}
	for _, s := range m.open {
		if got, want := m.al.Ready(s.first, s.last), m.twin.ready(s.first, s.last); got != want {
			t.Fatalf("Ready(%v) = %v, want %v", s, got, want)
		}
	}
	hot := m.al.HotExtents()
	for e := range m.twin.hot {
		if !slices.Contains(hot, e) {
			t.Fatalf("HotExtents lacks %d", e)
		}
	}
}

func TestActivityLogTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		geometry := rapid.SampledFrom([][2]int{{1, 8}, {4, 2}, {3, 5}}).Draw(t, "ring")
		slots := rapid.SampledFrom([]int{1, 3, 40, 70, 2000}).Draw(t, "slots")
		m := newALMachine(slots, geometry[0], geometry[1])
		extents := Extent(2*slots + 5)
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				n := rapid.IntRange(1, 40).Draw(t, "requests")
				for range n {
					first := Extent(rapid.Uint32Range(0, uint32(extents)).Draw(t, "first"))
					s := span{first, first + Extent(rapid.Uint32Range(0, 3).Draw(t, "more"))}
					ready, err := m.al.Begin(s.first, s.last)
					wantReady, wantErr := m.twin.begin(s.first, s.last)
					if ready != wantReady || !errors.Is(err, wantErr) {
						t.Fatalf("Begin(%v) = %v, %v, want %v, %v", s, ready, err, wantReady, wantErr)
					}
					if err == nil {
						m.open = append(m.open, s)
					}
				}
			},
			"end": func(t *rapid.T) {
				for range min(len(m.open), rapid.IntRange(1, 40).Draw(t, "requests")) {
					i := rapid.IntRange(0, len(m.open)-1).Draw(t, "which")
					m.al.End(m.open[i].first, m.open[i].last)
					m.twin.end(m.open[i].first, m.open[i].last)
					m.open = slices.Delete(m.open, i, i+1)
				}
			},
			"transaction": func(t *rapid.T) {
				if !m.al.Pending() {
					t.Skip("nothing pending")
				}
				m.block = make([]byte, BlockSize)
				m.at, _ = m.al.Transaction(m.block)
				m.twin.transaction()
				m.mustCover(t)
			},
			"committed": func(t *rapid.T) {
				if m.block == nil {
					t.Skip("nothing written")
				}
				m.ring[m.at], m.block = m.block, nil
				m.al.Committed()
				m.twin.committed()
				m.mustCover(t)
			},
			"": m.check,
		})
	})
}

// Every transaction of a long history, so that the ring wraps many times, with
// the largest log that the ring can hold.
func TestReplayAfterEveryTransaction(t *testing.T) {
	for _, slots := range []int{67, 919, 920, 1237, 6433} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			m := newALMachine(slots, 1, 8)
			hot := make(map[Extent]bool)
			var order []Extent
			for i := range 60 {
				block := make([]byte, BlockSize)
				for j := range alMaxUpdates {
					e := Extent(i*alMaxUpdates + j)
					if len(order) == slots {
						m.al.End(order[0], order[0])
						order = order[1:]
					}
					if _, err := m.al.Begin(e, e); err != nil {
						break
					}
					order = append(order, e)
				}
				at, evicted := m.al.Transaction(block)
				for _, e := range evicted {
					delete(hot, e)
				}
				garbage := slices.Clone(m.ring)
				garbage[at] = make([]byte, BlockSize)
				got, err := m.replay(garbage)
				if err != nil {
					t.Fatalf("transaction %d torn: %v", i, err)
				}
				for e := range hot {
					if !slices.Contains(got, e) {
						t.Fatalf("transaction %d torn: extent %d is missing", i, e)
					}
				}
				m.ring[at] = block
				m.al.Committed()
				for _, e := range order {
					hot[e] = true
				}
			}
		})
	}
}

func TestReplayDamage(t *testing.T) {
	// 20 transactions of a small log in a ring of 8: numbers 12 to 19, number
	// 16 is at block 0 and 19, the newest, at block 3.
	filled := func() *alMachine {
		m := newALMachine(4, 1, 8)
		for i := range 20 {
			e := Extent(i)
			if _, err := m.al.Begin(e, e); err != nil {
				t.Fatal(err)
			}
			block := make([]byte, BlockSize)
			at, _ := m.al.Transaction(block)
			m.ring[at] = block
			m.al.Committed()
			m.al.End(e, e)
		}
		return m
	}
	initial := make([]byte, BlockSize)
	InitialALBlock(initial)
	torn := make([]byte, BlockSize)
	for _, tt := range []struct {
		name  string
		spoil func(ring [][]byte)
		want  string // of the hot extents, or of the error
	}{
		{"none", func([][]byte) {}, "[16 17 18 19]"},
		{"newest torn", func(r [][]byte) { r[3] = torn }, "[15 16 17 18]"},
		{"one torn in the middle, told again", func(r [][]byte) { r[0] = torn }, "[16 17 18 19]"},
		{"two torn", func(r [][]byte) { r[0], r[5] = torn, torn }, "activity log: 2 of 8 blocks are not valid; first: magic 0x00000000, want 0x69cb65a2"},
		{"all torn", func(r [][]byte) {
			for i := range r {
				r[i] = torn
			}
		}, "activity log: none of 8 blocks is valid; first: magic 0x00000000, want 0x69cb65a2"},
		{"initialising had begun", func(r [][]byte) { r[3], r[2], r[1] = initial, initial, torn }, "[13 14 15 16]"},
		{"initialising had begun, in ascending order", func(r [][]byte) { r[0], r[1] = initial, torn }, "[16 17 18 19]"},
		{"only block 0 left", func(r [][]byte) {
			for i := 1; i < 8; i++ {
				r[i] = initial
			}
		}, ""},
		{"only torn block left", func(r [][]byte) {
			for i := range r {
				r[i] = initial
			}
			r[0] = torn
		}, "[]"},
		{"a block in the wrong place", func(r [][]byte) { r[5], r[6] = r[6], r[5] }, "activity log: transaction 14 is at block 5, but 12 is at block 4"},
		{"a transaction twice", func(r [][]byte) { r[5] = r[6] }, "activity log: transaction 14 is at block 5, but 12 is at block 4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := filled()
			tt.spoil(m.ring)
			hot, err := m.replay(m.ring)
			got := fmt.Sprint(hot)
			if err != nil {
				c, ok := errors.AsType[*CorruptError](err)
				if !ok {
					t.Fatalf("error is a %T: %v", err, err)
				}
				got = c.What
			}
			if tt.want != "" && got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// With more slots than one context describes, a hole shortly before the end
// hides slots.
func TestReplayIncomplete(t *testing.T) {
	m := newALMachine(6000, 1, 8)
	for i := range 20 {
		e := Extent(i)
		if _, err := m.al.Begin(e, e); err != nil {
			t.Fatal(err)
		}
		block := make([]byte, BlockSize)
		at, _ := m.al.Transaction(block)
		m.ring[at] = block
		m.al.Committed()
	}
	m.ring[0] = make([]byte, BlockSize) // number 16 of 12 to 19
	_, err := m.replay(m.ring)
	if c, ok := errors.AsType[*CorruptError](err); !ok || c.Offset != 0 {
		t.Errorf("got %v, want a CorruptError at 0", err)
	}
}

// Transaction numbers wrap at 2^32.
func TestReplayNumberWrap(t *testing.T) {
	for _, geometry := range [][2]int{{1, 8}, {3, 4}} {
		m := newALMachine(67, geometry[0], geometry[1])
		m.al.number = 1<<32 - 100
		for i := range 150 {
			e := Extent(i)
			if _, err := m.al.Begin(e, e); err != nil {
				t.Fatal(err)
			}
			block := make([]byte, BlockSize)
			at, _ := m.al.Transaction(block)
			m.ring[at] = block
			m.al.Committed()
			if i >= 20 {
				hot, err := m.replay(m.ring)
				if err != nil {
					t.Fatalf("%v: transaction %d: %v", geometry, i, err)
				}
				if !slices.Contains(hot, e) || !slices.Contains(hot, e-1) {
					t.Fatalf("%v: transaction %d: %v", geometry, i, hot)
				}
			}
			m.al.End(e, e)
		}
	}
}

func TestActivityLogResize(t *testing.T) {
	al := NewActivityLog(67, 1, 8)
	if _, err := al.Begin(3, 5); err != nil {
		t.Fatal(err)
	}
	if err := al.Resize(100); !errors.Is(err, ErrALBusy) {
		t.Errorf("Resize in use: %v", err)
	}
	al.Transaction(make([]byte, BlockSize))
	al.Committed()
	al.End(3, 5)
	hot := al.HotExtents()
	slices.Sort(hot)
	if diff := cmp.Diff([]Extent{3, 4, 5}, hot); diff != "" {
		t.Error(diff)
	}
	if err := al.Resize(100); err != nil || al.Slots() != 100 || al.Ready(3, 3) {
		t.Errorf("Resize: %v, %d slots", err, al.Slots())
	}
}

func TestMaxALExtents(t *testing.T) {
	got := map[int]int{}
	for _, n := range []int{8, 72, 73, 64 * 1024} {
		got[n] = MaxALExtents(n)
	}
	if want := map[int]int{8: 6433, 72: 65249, 73: 65534, 65536: 65534}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestActivityLogAllocs(t *testing.T) {
	al := NewActivityLog(1237, 1, 8)
	block := make([]byte, BlockSize)
	next := Extent(0)
	allocs := testing.AllocsPerRun(2000, func() {
		if _, err := al.Begin(next, next+1); err != nil {
			t.Fatal(err)
		}
		if al.Pending() {
			al.Transaction(block)
			al.Committed()
		}
		if !al.Ready(next, next+1) {
			t.Fatal("not ready")
		}
		al.End(next, next+1)
		next++
	})
	if allocs != 0 {
		t.Errorf("%v allocations per write, want 0", allocs)
	}
}

func BenchmarkActivityLogHot(b *testing.B) {
	al := NewActivityLog(1237, 1, 8)
	block := make([]byte, BlockSize)
	for e := range Extent(1000) {
		if _, err := al.Begin(e, e); err != nil {
			b.Fatal(err)
		}
		al.End(e, e)
		for al.Pending() {
			al.Transaction(block)
			al.Committed()
		}
	}
	e := Extent(0)
	for b.Loop() {
		e = (e*7 + 3) % 1000
		if ready, _ := al.Begin(e, e); !ready {
			b.Fatal("cold")
		}
		al.End(e, e)
	}
}

func BenchmarkTransaction(b *testing.B) {
	al := NewActivityLog(1237, 1, 8)
	block := make([]byte, BlockSize)
	e := Extent(0)
	for b.Loop() {
		if _, err := al.Begin(e, e); err != nil {
			b.Fatal(err)
		}
		al.Transaction(block)
		al.Committed()
		al.End(e, e)
		e++
	}
}
