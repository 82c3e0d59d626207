package meta

import (
	"slices"
	"testing"
)

// What becomes pending before a transaction is begun goes with it, up to its 64
// changes; the block names all of them, at the place it had. What has to wait for a
// sync still waits.
func TestTransactionIsJoined(t *testing.T) {
	const slots = 100
	al := NewActivityLog(slots, 1, 8)
	block := make([]byte, BlockSize)
	al.Begin(0, 0) //nolint:errcheck // all slots are free
	ring, _ := al.Transaction(block)
	for e := Extent(1); e < 70; e++ {
		al.Begin(e, e) //nolint:errcheck // likewise
	}
	al.Join(block)
	updates := func(want int, first Extent) {
		t.Helper()
		got, _, err := decodeALBlock(block)
		if err != nil {
			t.Fatal(err)
		}
		if int(got.updates) != want {
			t.Fatalf("the block has %d changes, want %d", got.updates, want)
		}
		if _, e := got.updateAt(0); e != first {
			t.Errorf("the first change is of extent %d, want %d", e, first)
		}
	}
	updates(64, 0)
	al.Committed()
	if !al.Ready(0, 63) || al.Ready(64, 64) || al.Waiting() != 6 {
		t.Fatalf("ready %v, %v, %d waiting; want extents 0 to 63 and no other, 6", al.Ready(0, 63), al.Ready(64, 64), al.Waiting())
	}
	if next, _ := al.Transaction(block); next != ring+1 {
		t.Errorf("the second transaction is block %d of the ring, want %d", next, ring+1)
	}
	al.Committed()
	al.Begin(70, 99) //nolint:errcheck // 30 are left
	al.Transaction(block)
	al.Committed()

	al.EndWritten(0, 0, 0) // durable itself
	al.EndWritten(1, 1, 5)
	al.EndWritten(2, 2, 0)
	al.Begin(200, 200) //nolint:errcheck // takes the slot of 0
	al.Transaction(block)
	al.Begin(201, 201) //nolint:errcheck // of 1
	al.Begin(202, 202) //nolint:errcheck // of 2
	if evicted := al.Join(block); !slices.Equal(evicted, []Extent{0, 2}) {
		t.Errorf("evicted %v, want 0 and 2: 1 waits for a sync", evicted)
	}
	updates(2, 200)
	al.Committed()
	if al.Waiting() != 1 || al.WaitsFor() != 5 {
		t.Errorf("%d waiting for sync %d, want 1 for 5", al.Waiting(), al.WaitsFor())
	}
}
