package meta

import (
	"fmt"
	"io"
	"slices"
)

// Replay reads the activity log and returns the extents that may have been hot
// when it was last written, in ascending order (drbd84-protocol, 9.4).
//
// read fills block with the k-th block in ring order, 0 <= k < n; its error is
// returned as it is. Nothing but the superblock's flags says whether the
// extents matter: see ApplyAL.
//
// A power failure leaves at most the newest transaction torn. One unreadable
// block is therefore tolerated, but only if the transactions after it describe
// every slot; otherwise an extent could be missing from the result, which
// would lose differences to the peer. Errors: *CorruptError, wrapping ErrNoLog
// if not one block is valid. Its Offset counts from the start of the log's
// area as if that had a single stripe.
func Replay(n int, read func(k int, block []byte) error) (hot []Extent, err error) {
	r := replay{n: n, read: read, block: make([]byte, BlockSize), torn: -1}
	if err := r.survey(); err != nil {
		return nil, err
	}
	if r.updates == 0 {
		return nil, nil
	}
	if err := r.order(); err != nil {
		return nil, err
	}
	if err := r.apply(); err != nil {
		return nil, err
	}
	return r.result(), nil
}

// ReadRing is a read function for Replay: block k of the ring of l on dev.
func ReadRing(dev io.ReaderAt, l Layout) func(k int, block []byte) error {
	return func(k int, block []byte) error {
		_, err := dev.ReadAt(block[:BlockSize], l.RingBlock(l.RingOrder(uint32(k))))
		return err
	}
}

type blockKind uint8

const (
	blockTorn blockKind = iota
	blockInitialised
	blockUpdate
)

type replay struct {
	n     int
	read  func(k int, block []byte) error
	block []byte

	// Of each block, after survey. 5 bytes per block, not 4096: a ring may
	// have 4 million of them.
	kind    []blockKind
	number  []uint32
	updates int
	torn    int // position of the unreadable block, -1 if there is none
	tornErr error

	first  int  // ring position of the oldest transaction
	fresh  bool // all slots were free before the oldest transaction
	ending bool // the ring was being initialised again: it had been applied

	extent []Extent // by slot
	known  []bool   // by slot: described since the last hole
	slots  int      // of the newest transaction
}

// survey classifies all blocks.
func (r *replay) survey() error {
	r.kind, r.number = make([]blockKind, r.n), make([]uint32, r.n)
	bad := 0
	for k := range r.n {
		if err := r.read(k, r.block); err != nil {
			return err
		}
		t, initialised, err := decodeALBlock(r.block)
		switch {
		case err != nil:
			if bad++; bad == 1 {
				r.torn, r.tornErr = k, err
			}
		case initialised:
			r.kind[k] = blockInitialised
		default:
			r.kind[k], r.number[k] = blockUpdate, t.number
			r.updates++
		}
	}
	if bad == r.n {
		return &CorruptError{What: fmt.Sprintf("activity log: none of %d blocks is valid; first: %v", r.n, r.tornErr), Err: ErrNoLog}
	}
	if bad > 1 {
		return r.corrupt(r.torn, "%d of %d blocks are not valid; first: %v", bad, r.n, r.tornErr)
	}
	return nil
}

func (r *replay) corrupt(k int, format string, args ...any) error {
	return &CorruptError{Offset: int64(k) * BlockSize, What: "activity log: " + fmt.Sprintf(format, args...)}
}

// order finds the oldest transaction and checks that the others follow it.
func (r *replay) order() error {
	r.first = -1
	var newest uint32
	for k, kind := range r.kind {
		if kind != blockUpdate {
			continue
		}
		if r.first < 0 {
			r.first, newest = k, r.number[k]
			continue
		}
		if int32(r.number[k]-r.number[r.first]) < 0 {
			r.first = k
		}
		if int32(r.number[k]-newest) > 0 {
			newest = r.number[k]
		}
	}
	oldest := r.number[r.first]
	// Where the counter passes 2^32 positions jump if n is no power of two, and
	// numbers of two rounds may be there.
	wraps := newest < oldest
	limit := uint64(r.n)
	if wraps {
		limit *= 2
	}
	if uint64(newest-oldest) >= limit {
		return r.corrupt(r.first, "transactions %d to %d cannot be in one ring of %d blocks", oldest, newest, r.n)
	}
	for k, kind := range r.kind {
		if kind != blockUpdate || wraps {
			continue
		}
		if at := (r.first + int(r.number[k]-oldest)) % r.n; at != k {
			return r.corrupt(k, "transaction %d is at block %d, but %d is at block %d", r.number[k], k, oldest, r.first)
		}
	}
	r.classifyStart(wraps)
	return nil
}

// classifyStart finds out what went before the oldest transaction.
func (r *replay) classifyStart(wraps bool) {
	if wraps || !slices.Contains(r.kind, blockInitialised) {
		return // older transactions have been overwritten
	}
	switch {
	case r.first == 0:
		// The first of a fresh ring, which has not been filled yet.
		r.fresh = true
	case r.first == 1 && r.torn == 0 && r.number[1] == 1:
		// The first is lost: what it said must be told again later.
	default:
		// Blocks are only ever initialised all together, after everything that
		// the log says is in the bitmap. That was interrupted.
		r.ending = true
	}
}

// apply plays the transactions from the oldest to the newest.
func (r *replay) apply() error {
	r.extent, r.known = make([]Extent, maxSlots), make([]bool, maxSlots)
	for i := range r.extent {
		r.extent[i], r.known[i] = noExtent, r.fresh
	}
	byNumber := make([]int, 0, r.updates)
	for k, kind := range r.kind {
		if kind == blockUpdate {
			byNumber = append(byNumber, k)
		}
	}
	slices.SortFunc(byNumber, func(a, b int) int { return int(int32(r.number[a] - r.number[b])) })
	for i, k := range byNumber {
		if i > 0 {
			switch step := r.number[k] - r.number[byNumber[i-1]]; {
			case step == 0:
				return r.corrupt(k, "transaction %d is there twice", r.number[k])
			case step > 1 && !r.ending:
				clear(r.known) // a hole: what the lost one said must be told again
			}
		}
		if err := r.play(k); err != nil {
			return err
		}
	}
	if r.ending {
		return nil
	}
	if i := slices.Index(r.known[:r.slots], false); i >= 0 {
		at := max(r.torn, 0)
		why := fmt.Sprintf("; block %d: %v", r.torn, r.tornErr)
		if r.torn < 0 {
			why = ""
		}
		return r.corrupt(at, "incomplete: nothing tells what slot %d of %d holds%s", i, r.slots, why)
	}
	return nil
}

// play applies one transaction: first the context, which still holds what is
// being evicted, then the updates (drbd84-protocol, 10.4).
func (r *replay) play(k int) error {
	if err := r.read(k, r.block); err != nil {
		return err
	}
	t, initialised, err := decodeALBlock(r.block)
	if err != nil || initialised || t.number != r.number[k] {
		return r.corrupt(k, "changed while it was being read")
	}
	r.slots = min(int(t.slots), maxSlots)
	for i := range alContextEntries {
		slot, e := int(t.start)+i, t.contextAt(i)
		if slot >= int(t.slots) && e == noExtent {
			continue
		}
		if slot >= maxSlots {
			return r.corrupt(k, "transaction %d: context names slot %d", t.number, slot)
		}
		r.extent[slot], r.known[slot] = e, true
	}
	for i := range int(t.updates) {
		slot, e := t.updateAt(i)
		if slot >= maxSlots {
			return r.corrupt(k, "transaction %d: update of slot %d", t.number, slot)
		}
		r.extent[slot], r.known[slot] = e, true
	}
	return nil
}

func (r *replay) result() []Extent {
	var hot []Extent
	for _, e := range r.extent {
		if e != noExtent {
			hot = append(hot, e)
		}
	}
	slices.Sort(hot)
	return slices.Compact(hot)
}
