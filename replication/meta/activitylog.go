package meta

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// sectorsPerExtent is the data that one extent of the activity log stands
// for: 4 MiB. Source: drbd84-protocol 9.2; DRBD 8.4 drbd_int.h, AL_EXTENT_SIZE.
const (
	sectorsPerExtent = 8192
	bitsPerExtent    = sectorsPerExtent / sectorsPerBit
	extentsPerPage   = bitsPerPage / bitsPerExtent
)

// Limits of the slots. Source: drbd84-protocol 8.6; DRBD 8.4 drbd_nl.c,
// drbd_al_extents_max.
const (
	maxSlots         = 65534
	smallRingBlocks  = 72 // up to here the ring limits the slots
	alContextEntries = 919
	alMaxUpdates     = 64
)

// An Extent numbers 4 MiB of the device, the unit of the activity log.
type Extent uint32

// noExtent marks a free slot, in memory as on disk.
const noExtent Extent = 0xffffffff

// ExtentsOf returns the first and last extent that [s, s+size) touches. size
// is in bytes, > 0.
func ExtentsOf(s drbd.Sector, size uint32) (first, last Extent) {
	if size == 0 {
		panic(fmt.Sprintf("meta: ExtentsOf(%d, 0)", s))
	}
	end := uint64(s) + (uint64(size)+sectorSize-1)/sectorSize
	return Extent(uint64(s) / sectorsPerExtent), Extent((end - 1) / sectorsPerExtent)
}

// Page is the page of the bitmap that holds the extent's bits.
func (e Extent) Page() int { return int(e / extentsPerPage) }

// Bits returns the first and last bit of the extent; the last may lie beyond
// the device.
func (e Extent) Bits() (first, last uint64) {
	return uint64(e) * bitsPerExtent, uint64(e)*bitsPerExtent + bitsPerExtent - 1
}

// MaxALExtents is the largest number of slots that a ring of so many blocks
// can describe with its newest block torn.
func MaxALExtents(ringBlocks int) int {
	if ringBlocks <= smallRingBlocks {
		return (ringBlocks - 1) * alContextEntries
	}
	return maxSlots
}

type slotState uint8

const (
	slotFree    slotState = iota
	slotHot               // its extent is the one on disk
	slotPending           // its extent waits for a transaction
	slotWriting           // its extent is in the transaction being written
)

// A slot is a place of the log. A slot is in exactly one list, linked through
// prev and next: free, idle (hot and not referenced), pending; or in none (hot
// and referenced, or being written).
type slot struct {
	extent     Extent // what it holds or is to hold
	onDisk     Extent // what the log on disk says, before a transaction being written
	written    uint64 // the sync that makes the data of onDisk stable, 0 if they are
	refs       uint32
	prev, next int32
	state      slotState
}

// none is the end of a list of slots.
const none int32 = -1

// list is an intrusive doubly linked list of slots, by their numbers.
type list struct {
	head, tail int32
	n          int
}

// An ActivityLog keeps the set of extents that may differ from the peer
// without their bits being set on disk. Every write needs its extents hot,
// that is named by the log on disk, first; a hot extent costs nothing.
//
// It does no I/O. The duties of the caller, under the resource's lock:
//
//  1. Begin before a write. If it isn't ready, hold the write back.
//  2. When Pending, call Transaction. Before its block is written: write the
//     dirty bitmap pages of the evicted extents and make those stable. Their data
//     are stable already: a change waits for the sync that EndWritten has named for
//     what it evicts, until Stable says that it is over. WaitsFor says which
//     one to begin.
//  3. Write the block to its place in the ring, make it stable, then call
//     Committed and let go what is Ready now. If that write fails, the disk
//     has failed and so has the log.
//  4. End when the write need not be found after a crash any more: it is on
//     both disks for good, or its bits are set in the bitmap.
//
// The ring must be freshly initialised (InitialALBlock in every block) when a
// new ActivityLog starts to use it.
type ActivityLog struct {
	slots   []slot
	index   slotIndex
	free    list // ascending at first, so that slot 0 is used first
	idle    list // head: most recently used
	pending list // head: oldest
	inUse   int  // slots with references

	stable      uint64 // the last sync that is over
	least, most uint64 // of the syncs that pending changes wait for; valid if there are any

	stripes, stripeSize4k int
	number                uint32 // of the next transaction
	cycle                 int    // first slot of the next context

	writing  []int32 // slots in the transaction being written
	inFlight bool
	evicted  []Extent
}

// NewActivityLog returns an empty log of so many slots (option al-extents) for
// a ring of stripes x stripeSize4k blocks. It panics if the ring cannot
// describe that many; see MaxALExtents.
func NewActivityLog(slots, stripes, stripeSize4k int) *ActivityLog {
	mustHoldSlots(slots, stripes*stripeSize4k)
	al := &ActivityLog{
		stripes: stripes, stripeSize4k: stripeSize4k,
		writing: make([]int32, 0, alMaxUpdates),
		evicted: make([]Extent, 0, alMaxUpdates),
	}
	al.reset(slots)
	return al
}

func mustHoldSlots(slots, blocks int) {
	if slots < 1 || slots > MaxALExtents(blocks) {
		panic(fmt.Sprintf("meta: activity log of %d slots in a ring of %d blocks (1 to %d)", slots, blocks, MaxALExtents(blocks)))
	}
}

func (al *ActivityLog) reset(slots int) {
	al.slots = make([]slot, slots)
	al.index = newSlotIndex(slots)
	al.free, al.idle, al.pending = list{none, none, 0}, list{none, none, 0}, list{none, none, 0}
	for i := range al.slots {
		al.slots[i] = slot{extent: noExtent, onDisk: noExtent}
		al.pushTail(&al.free, int32(i))
	}
	al.cycle, al.number = 0, 0
}

// Slots is the number of slots (al-extents).
func (al *ActivityLog) Slots() int { return len(al.slots) }

// InUse is the number of extents that running requests hold.
func (al *ActivityLog) InUse() int { return al.inUse }

// Begin takes one reference on each extent of first to last. ready says that
// all of them are hot on disk: the write may go. If not, cold extents have a
// slot now and wait for a transaction. If there are not enough idle slots, no
// reference is taken and the error is ErrALFull: try again after an End.
func (al *ActivityLog) Begin(first, last Extent) (ready bool, err error) {
	if first > last || last == noExtent {
		panic(fmt.Sprintf("meta: ActivityLog.Begin(%d, %d)", first, last))
	}
	if !al.fits(first, last) {
		return false, ErrALFull
	}
	// What is already here gets its references first, so that making room for
	// the others cannot evict it.
	ready = true
	for e := first; e <= last; e++ {
		if i := al.index.find(al.slots, e); i != none {
			al.take(i)
			ready = ready && al.slots[i].state == slotHot
		}
	}
	if first == last && al.index.find(al.slots, first) != none {
		return ready, nil
	}
	for e := first; e <= last; e++ {
		if al.index.find(al.slots, e) == none {
			al.reserve(e)
			ready = false
		}
	}
	return ready, nil
}

// fits reports whether the cold ones of first to last can all have a slot.
func (al *ActivityLog) fits(first, last Extent) bool {
	if uint64(last-first) >= uint64(len(al.slots)) {
		return false
	}
	cold, room := 0, al.free.n+al.idle.n
	for e := first; e <= last; e++ {
		i := al.index.find(al.slots, e)
		switch {
		case i == none:
			cold++
		case al.slots[i].refs == 0 && al.slots[i].state == slotHot:
			room-- // idle, but it is one of ours
		}
	}
	return cold <= room
}

func (al *ActivityLog) take(i int32) {
	s := &al.slots[i]
	if s.refs == 0 {
		al.inUse++
		if s.state == slotHot {
			al.unlink(&al.idle, i)
		}
	}
	s.refs++
}

// reserve gives a cold extent a slot, with one reference.
func (al *ActivityLog) reserve(e Extent) {
	i := al.free.head
	if i != none {
		al.unlink(&al.free, i)
	} else {
		i = al.idle.tail
		if i == none {
			panic(fmt.Sprintf("meta: activity log: no slot for extent %d with %d of %d in use", e, al.inUse, len(al.slots)))
		}
		al.unlink(&al.idle, i)
		al.index.remove(al.slots, al.slots[i].extent)
	}
	s := &al.slots[i]
	s.extent, s.refs, s.state = e, 1, slotPending
	al.index.insert(e, i)
	al.wait(i)
	al.inUse++
}

// wait puts a slot behind the pending ones.
func (al *ActivityLog) wait(i int32) {
	n := al.slots[i].written
	if al.pending.n == 0 {
		al.least, al.most = n, n
	}
	al.least, al.most = min(al.least, n), max(al.most, n)
	al.pushTail(&al.pending, i)
}

// Stable tells that the data is stable as of sync number n, counted from 1 by
// the caller.
func (al *ActivityLog) Stable(n uint64) { al.stable = n }

// WaitsFor is the number of the sync after which every change that waits can be
// written, as far as the data is concerned; 0 if it has been.
func (al *ActivityLog) WaitsFor() uint64 {
	if al.pending.n == 0 || al.most <= al.stable {
		return 0
	}
	return al.most
}

// Unused is the number of slots that have never held an extent.
func (al *ActivityLog) Unused() int { return al.free.n }

// Ready reports whether all extents of first to last are hot on disk.
func (al *ActivityLog) Ready(first, last Extent) bool {
	for e := first; e <= last; e++ {
		if i := al.index.find(al.slots, e); i == none || al.slots[i].state != slotHot {
			return false
		}
	}
	return true
}

// End drops the references of one Begin of which nothing was written. The
// extents stay hot until their slots are needed.
func (al *ActivityLog) End(first, last Extent) { al.EndWritten(first, last, 0) }

// EndWritten is End after a write. sync is the number of a sync of the data that
// begins after the write has ended, 0 if the write was durable itself.
func (al *ActivityLog) EndWritten(first, last Extent, sync uint64) {
	for e := first; e <= last; e++ {
		i := al.index.find(al.slots, e)
		if i == none || al.slots[i].refs == 0 {
			panic(fmt.Sprintf("meta: ActivityLog.End(%d, %d): extent %d has no reference", first, last, e))
		}
		s := &al.slots[i]
		if s.state == slotHot { // else nothing was written through it
			s.written = max(s.written, sync)
		}
		if s.refs--; s.refs == 0 {
			al.inUse--
			if s.state == slotHot {
				al.pushHead(&al.idle, i)
			}
		}
	}
}

// Pending reports whether changes can be written, and no transaction is.
func (al *ActivityLog) Pending() bool {
	return al.pending.n > 0 && !al.inFlight && al.least <= al.stable
}

// Waiting is the number of changes that wait for a transaction, or for the sync
// before it.
func (al *ActivityLog) Waiting() int { return al.pending.n }

// Writing reports whether a transaction is being written.
func (al *ActivityLog) Writing() bool { return al.inFlight }

// Transaction encodes up to 64 pending changes, the oldest ones that need not
// wait for a sync, as the next block of the ring into dst[:BlockSize]. ringBlock
// is the place of the block in the log's area, in blocks (Layout.RingBlock).
// evicted are the extents that cease to be hot with it, valid until the next call. There must be a change to write, and no
// transaction being written.
func (al *ActivityLog) Transaction(dst []byte) (ringBlock int, evicted []Extent) {
	if !al.Pending() {
		panic(fmt.Sprintf("meta: ActivityLog.Transaction with %d changes pending, being written: %v", al.pending.n, al.inFlight))
	}
	al.evicted = al.evicted[:0]
	al.collect()
	al.encode(dst)
	al.inFlight = true
	return ringOrder(al.number, al.stripes, al.stripeSize4k), al.evicted
}

// Join is for a transaction of which nothing has been written yet: it takes in what
// has become pending since, up to its 64 changes, and encodes it anew. evicted is
// as Transaction returns it, of all changes.
func (al *ActivityLog) Join(dst []byte) (evicted []Extent) {
	if al.inFlight && al.pending.n > 0 && al.least <= al.stable && len(al.writing) < alMaxUpdates {
		al.collect()
		al.encode(dst)
	}
	return al.evicted
}

// collect moves pending changes into the transaction.
func (al *ActivityLog) collect() {
	old := al.pending
	al.pending = list{none, none, 0}
	for old.n > 0 {
		i := old.head
		al.unlink(&old, i)
		s := &al.slots[i]
		if s.written > al.stable || len(al.writing) == alMaxUpdates {
			al.wait(i)
			continue
		}
		s.state = slotWriting
		al.writing = append(al.writing, i)
		if s.onDisk != noExtent {
			al.evicted = append(al.evicted, s.onDisk)
		}
	}
}

// encode writes the transaction as a block of the ring.
func (al *ActivityLog) encode(dst []byte) {
	t := transaction{number: al.number, slots: uint16(len(al.slots)), start: uint16(al.cycle)}
	enc := t.begin(dst)
	for i := range min(alContextEntries, len(al.slots)-al.cycle) {
		enc.context(i, al.slots[al.cycle+i].onDisk)
	}
	for n, i := range al.writing {
		enc.update(n, uint16(i), al.slots[i].extent)
	}
	enc.finish(len(al.writing))
}

// Committed tells that the transaction is on stable storage: its extents are
// hot.
func (al *ActivityLog) Committed() {
	if !al.inFlight {
		panic("meta: ActivityLog.Committed without a transaction")
	}
	for _, i := range al.writing {
		s := &al.slots[i]
		s.state, s.onDisk, s.written = slotHot, s.extent, 0
		if s.refs == 0 {
			al.pushHead(&al.idle, i)
		}
	}
	al.writing = al.writing[:0]
	al.inFlight = false
	al.number++
	if al.cycle += alContextEntries; al.cycle >= len(al.slots) {
		al.cycle = 0
	}
}

// HotExtents returns every extent that the log on disk may name, now or once
// the pending transactions are written, in no order.
func (al *ActivityLog) HotExtents() []Extent {
	out := make([]Extent, 0, len(al.slots))
	for i := range al.slots {
		s := &al.slots[i]
		if s.extent != noExtent {
			out = append(out, s.extent)
		}
		if s.onDisk != noExtent && s.onDisk != s.extent {
			out = append(out, s.onDisk)
		}
	}
	return out
}

// MaxSlots is the largest number of slots that its ring can describe.
func (al *ActivityLog) MaxSlots() int { return MaxALExtents(al.stripes * al.stripeSize4k) }

// Resize changes the number of slots (al-extents). All extents become cold:
// before its next transaction the caller makes the data and the bitmap pages of
// HotExtents stable and then initialises the ring, in which the old
// transactions do not tell what the new slots hold. It returns ErrALBusy while a request holds an extent or a change
// waits, and panics as NewActivityLog does.
func (al *ActivityLog) Resize(slots int) error {
	mustHoldSlots(slots, al.stripes*al.stripeSize4k)
	if al.inUse > 0 || al.inFlight || al.pending.n > 0 {
		return ErrALBusy
	}
	al.reset(slots)
	return nil
}

func (al *ActivityLog) pushHead(l *list, i int32) {
	s := &al.slots[i]
	s.prev, s.next = none, l.head
	if l.head != none {
		al.slots[l.head].prev = i
	} else {
		l.tail = i
	}
	l.head = i
	l.n++
}

func (al *ActivityLog) pushTail(l *list, i int32) {
	s := &al.slots[i]
	s.prev, s.next = l.tail, none
	if l.tail != none {
		al.slots[l.tail].next = i
	} else {
		l.head = i
	}
	l.tail = i
	l.n++
}

func (al *ActivityLog) unlink(l *list, i int32) {
	s := &al.slots[i]
	if s.prev != none {
		al.slots[s.prev].next = s.next
	} else {
		l.head = s.next
	}
	if s.next != none {
		al.slots[s.next].prev = s.prev
	} else {
		l.tail = s.prev
	}
	s.prev, s.next = none, none
	l.n--
}
