package meta

import (
	"slices"
	"testing"
)

// What was written to an extent since the last sync keeps it in the log: its
// successor waits, and those that evict others don't wait for it.
func TestEvictionWaitsForSync(t *testing.T) {
	al := NewActivityLog(3, 1, 8)
	block := make([]byte, BlockSize)
	commit := func(want ...Extent) {
		t.Helper()
		if !al.Pending() {
			t.Fatalf("nothing is pending, want the eviction of %v; waits for sync %d", want, al.WaitsFor())
		}
		if _, evicted := al.Transaction(block); !slices.Equal(evicted, want) {
			t.Fatalf("evicted %v, want %v", evicted, want)
		}
		al.Committed()
	}
	begin := func(e Extent) {
		t.Helper()
		if ready, err := al.Begin(e, e); ready || err != nil {
			t.Fatalf("Begin(%d) = %v, %v, want a cold one", e, ready, err)
		}
	}
	for e := range Extent(3) {
		begin(e)
	}
	commit()
	al.EndWritten(0, 0, 7) // stable after sync 7
	al.EndWritten(1, 1, 0) // durable itself
	al.EndWritten(2, 2, 8)

	begin(10) // evicts 0
	if al.Pending() || al.WaitsFor() != 7 || al.Waiting() != 1 {
		t.Fatalf("pending %v, waits for sync %d, %d waiting; want false, 7, 1", al.Pending(), al.WaitsFor(), al.Waiting())
	}
	begin(11) // evicts 1: it goes first
	commit(1)
	begin(12) // evicts 2
	if al.Pending() || al.WaitsFor() != 8 {
		t.Fatalf("pending %v, waits for sync %d; want false, 8", al.Pending(), al.WaitsFor())
	}
	al.Stable(7)
	commit(0)
	al.Stable(8)
	if al.WaitsFor() != 0 {
		t.Errorf("waits for sync %d after sync 8, want 0", al.WaitsFor())
	}
	commit(2)
	al.End(10, 12)
	begin(20) // nothing was written to 10 to 12
	commit(10)
}
