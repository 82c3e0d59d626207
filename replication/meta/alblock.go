package meta

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The transaction block of the activity log. Source: drbd84-protocol 9.1; DRBD
// 8.4 drbd_actlog.c, struct al_transaction_on_disk. Big endian:
//
//	  0  magic 0x69cb65a2        12  type: 0 update, 0xffff initialised
//	  4  transaction number      14  updates used, 0..64
//	  8  CRC-32C, see alCRC      16  slots of the log
//	                             18  first slot of the context
//	 36  64 x u16  slots that change          0xffff      if unused
//	164  64 x u32  their new extents          0xffffffff  if unused
//	420  919 x u32 context: what the slots held before   0xffffffff if free
const (
	alMagic           = 0x69cb65a2
	alTypeUpdate      = 0
	alTypeInitialised = 0xffff

	alOffNumber  = 4
	alOffCRC     = 8
	alOffType    = 12
	alOffUpdates = 14
	alOffSlots   = 16
	alOffStart   = 18
	alOffSlotNr  = 36
	alOffExtent  = 164
	alOffContext = 420
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var zeroCRC [4]byte

// alCRC is the checksum of a block: CRC-32C over all 4096 bytes with the CRC
// field as zero, starting from 0 and without the final inversion. That is not
// the usual parametrisation, hence the two inversions here.
func alCRC(b []byte) uint32 {
	c := crc32.Update(0xffffffff, castagnoli, b[:alOffCRC])
	c = crc32.Update(c, castagnoli, zeroCRC[:])
	return ^crc32.Update(c, castagnoli, b[alOffCRC+4:BlockSize])
}

// InitialALBlock writes to dst[:BlockSize] a block of a ring that holds no
// transaction: type "initialised", everything else zero (CRC 0x709cc651).
func InitialALBlock(dst []byte) {
	dst = dst[:BlockSize]
	clear(dst)
	binary.BigEndian.PutUint32(dst, alMagic)
	binary.BigEndian.PutUint16(dst[alOffType:], alTypeInitialised)
	binary.BigEndian.PutUint32(dst[alOffCRC:], alCRC(dst))
}

// A transaction is the head of a block of type update, or what was read.
type transaction struct {
	number  uint32
	slots   uint16
	start   uint16
	updates uint16 // read only
	block   []byte
}

// begin fills the head and marks all updates and contexts as unused.
func (t transaction) begin(dst []byte) transaction {
	t.block = dst[:BlockSize]
	b := t.block
	clear(b[:alOffSlotNr])
	for i := alOffSlotNr; i < BlockSize; i++ {
		b[i] = 0xff
	}
	binary.BigEndian.PutUint32(b, alMagic)
	binary.BigEndian.PutUint32(b[alOffNumber:], t.number)
	binary.BigEndian.PutUint16(b[alOffType:], alTypeUpdate)
	binary.BigEndian.PutUint16(b[alOffSlots:], t.slots)
	binary.BigEndian.PutUint16(b[alOffStart:], t.start)
	return t
}

func (t transaction) context(i int, e Extent) {
	binary.BigEndian.PutUint32(t.block[alOffContext+4*i:], uint32(e))
}

func (t transaction) update(i int, slot uint16, e Extent) {
	binary.BigEndian.PutUint16(t.block[alOffSlotNr+2*i:], slot)
	binary.BigEndian.PutUint32(t.block[alOffExtent+4*i:], uint32(e))
}

func (t transaction) finish(updates int) {
	binary.BigEndian.PutUint16(t.block[alOffUpdates:], uint16(updates))
	binary.BigEndian.PutUint32(t.block[alOffCRC:], alCRC(t.block))
}

// decodeALBlock checks a block. initialised blocks have no transaction. An
// error means that the block is torn, damaged or not a block of the log.
func decodeALBlock(b []byte) (t transaction, initialised bool, err error) {
	if len(b) < BlockSize {
		return t, false, fmt.Errorf("%d bytes, want %d", len(b), BlockSize)
	}
	b = b[:BlockSize]
	be := binary.BigEndian
	if m := be.Uint32(b); m != alMagic {
		return t, false, fmt.Errorf("magic %#08x, want %#x", m, alMagic)
	}
	if got, want := be.Uint32(b[alOffCRC:]), alCRC(b); got != want {
		return t, false, fmt.Errorf("checksum %#08x, want %#08x", got, want)
	}
	switch typ := be.Uint16(b[alOffType:]); typ {
	case alTypeInitialised:
		return t, true, nil
	case alTypeUpdate:
	default:
		return t, false, fmt.Errorf("transaction type %#x", typ)
	}
	t = transaction{
		number: be.Uint32(b[alOffNumber:]), slots: be.Uint16(b[alOffSlots:]),
		start: be.Uint16(b[alOffStart:]), updates: be.Uint16(b[alOffUpdates:]), block: b,
	}
	if t.updates > alMaxUpdates {
		return t, false, fmt.Errorf("%d updates, at most %d", t.updates, alMaxUpdates)
	}
	return t, false, nil
}

func (t transaction) contextAt(i int) Extent {
	return Extent(binary.BigEndian.Uint32(t.block[alOffContext+4*i:]))
}

func (t transaction) updateAt(i int) (slot int, e Extent) {
	return int(binary.BigEndian.Uint16(t.block[alOffSlotNr+2*i:])),
		Extent(binary.BigEndian.Uint32(t.block[alOffExtent+4*i:]))
}
