package meta

import "math/bits"

// A slotIndex finds the slot of an extent: open addressing with linear
// probing over slot numbers, at most half full, so that it never grows and
// never allocates. The extents themselves are in the slots.
type slotIndex struct {
	table []int32
	shift uint8
}

func newSlotIndex(slots int) slotIndex {
	n := bits.Len(uint(2*slots - 1)) // 1<<n >= 2*slots
	x := slotIndex{table: make([]int32, 1<<n), shift: uint8(32 - n)}
	for i := range x.table {
		x.table[i] = none
	}
	return x
}

// home spreads neighbouring extents (Fibonacci hashing: the multiplier is
// 2^32 divided by the golden ratio).
func (x *slotIndex) home(e Extent) uint32 { return uint32(e) * 0x9e3779b9 >> x.shift }

func (x *slotIndex) find(slots []slot, e Extent) int32 {
	mask := uint32(len(x.table) - 1)
	for at := x.home(e); ; at = (at + 1) & mask {
		i := x.table[at]
		if i == none || slots[i].extent == e {
			return i
		}
	}
}

func (x *slotIndex) insert(e Extent, i int32) {
	mask := uint32(len(x.table) - 1)
	at := x.home(e)
	for x.table[at] != none {
		at = (at + 1) & mask
	}
	x.table[at] = i
}

// remove closes the gap by moving back what probed past it, so that no
// tombstones are left.
func (x *slotIndex) remove(slots []slot, e Extent) {
	mask := uint32(len(x.table) - 1)
	at := x.home(e)
	for slots[x.table[at]].extent != e {
		at = (at + 1) & mask
	}
	gap := at
	for {
		at = (at + 1) & mask
		i := x.table[at]
		if i == none {
			break
		}
		// The entry may move to the gap if its home isn't between gap and at.
		if (at-x.home(slots[i].extent))&mask >= (at-gap)&mask {
			x.table[gap] = i
			gap = at
		}
	}
	x.table[gap] = none
}
