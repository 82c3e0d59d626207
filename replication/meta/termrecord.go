package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Constants of the term record.
const (
	// TermRecordSize is the length of an encoded record, in bytes.
	TermRecordSize = 128
	// termRecordOffset is where the superblock's block holds one, in bytes: in
	// its reserved part, and in the same 512-byte sector as the UUIDs, so that a
	// torn write cannot pair it with other UUIDs.
	termRecordOffset = 128

	termMagic   = 0x504c585445524d00 // "PLXTERM\0"
	termVersion = 1
	termUnknown = 1
	termCRC     = TermRecordSize - 4
)

// ErrNoTermRecord is the error of bytes that hold no term record at all.
var ErrNoTermRecord = errors.New("no term record")

// A TermRecord is what a node durably knows of the terms of one volume. It is
// kept twice: in the reserved bytes of the superblock, which every program that
// knows no terms writes as zero, and in the state directory, which is not rolled
// back together with the disk. The zero value is no record: terms are not in use.
//
// Encoded, in bytes, big-endian; in the superblock's block it begins at byte 128:
//
//	  0  u64  magic 504c5854 45524d00, "PLXTERM" and a NUL
//	  8  u32  version: 1
//	 12  u32  Volume
//	 16  u64  Seq, not 0
//	 24  u64  NameHash
//	 32  u64  DeviceUUID
//	 40  u64  CurrentUUID
//	 48  u64  Term
//	 56  u64  Promised, not below Term
//	 64  u64  Sole
//	 72  u64  SoleTerm
//	 80  u32  flags: 1 Unknown
//	 84       reserved, 0
//	124  u32  CRC32C (Castagnoli) of bytes 0 to 123
type TermRecord struct {
	// Seq counts the changes of the record. The state directory's copy is written
	// first: it may be one ahead of the superblock's, never behind.
	Seq         uint64
	Volume      uint16
	NameHash    uint64 // NameHash of the resource
	DeviceUUID  uint64 // of the superblock
	CurrentUUID uint64 // of the superblock, without its mark of the role
	Term        uint64 // the highest one that this node knows an owner of
	Promised    uint64 // writes of a lower one are never accepted
	// Sole is the current UUID of the generation that this node writes, or has
	// written, without its peer, under SoleTerm; 0 if the peer has all of it.
	Sole     uint64
	SoleTerm uint64
	// Unknown is whether something else wrote since a record was complete, and
	// nobody has told the term again.
	Unknown bool
}

// NameHash is FNV-1a of a resource's name: a record that was copied along with a
// disk is not taken for another resource's.
func NameHash(name string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	return h
}

// Exists reports whether t is a record, and not the zero value.
func (t *TermRecord) Exists() bool { return t.Seq != 0 }

// Encode writes t to dst[:TermRecordSize]; the zero value as zeroes. It does not
// allocate.
func (t *TermRecord) Encode(dst []byte) {
	dst = dst[:TermRecordSize]
	clear(dst)
	if !t.Exists() {
		return
	}
	be := binary.BigEndian
	be.PutUint64(dst[0:], termMagic)
	be.PutUint32(dst[8:], termVersion)
	be.PutUint32(dst[12:], uint32(t.Volume))
	be.PutUint64(dst[16:], t.Seq)
	be.PutUint64(dst[24:], t.NameHash)
	be.PutUint64(dst[32:], t.DeviceUUID)
	be.PutUint64(dst[40:], t.CurrentUUID)
	be.PutUint64(dst[48:], t.Term)
	be.PutUint64(dst[56:], t.Promised)
	be.PutUint64(dst[64:], t.Sole)
	be.PutUint64(dst[72:], t.SoleTerm)
	if t.Unknown {
		be.PutUint32(dst[80:], termUnknown)
	}
	be.PutUint32(dst[termCRC:], crc32.Checksum(dst[:termCRC], castagnoli))
}

// DecodeTermRecord reads a record from b, which is TermRecordSize bytes or more
// long. Errors: ErrNoTermRecord if nothing of the kind is there; *CorruptError if
// it is damaged or of a later version.
func DecodeTermRecord(b []byte) (TermRecord, error) {
	be := binary.BigEndian
	if len(b) < TermRecordSize || be.Uint64(b) != termMagic {
		return TermRecord{}, ErrNoTermRecord
	}
	b = b[:TermRecordSize]
	if v := be.Uint32(b[8:]); v != termVersion {
		return TermRecord{}, &CorruptError{Offset: 8, What: fmt.Sprintf("term record of version %d, want %d", v, termVersion)}
	}
	if want, got := crc32.Checksum(b[:termCRC], castagnoli), be.Uint32(b[termCRC:]); want != got {
		return TermRecord{}, &CorruptError{Offset: termCRC, What: fmt.Sprintf("checksum of the term record is %#08x, want %#08x", got, want)}
	}
	t := TermRecord{
		Volume: uint16(be.Uint32(b[12:])), Seq: be.Uint64(b[16:]), NameHash: be.Uint64(b[24:]),
		DeviceUUID: be.Uint64(b[32:]), CurrentUUID: be.Uint64(b[40:]), Term: be.Uint64(b[48:]), Promised: be.Uint64(b[56:]),
		Sole: be.Uint64(b[64:]), SoleTerm: be.Uint64(b[72:]), Unknown: be.Uint32(b[80:])&termUnknown != 0,
	}
	if !t.Exists() || t.Promised < t.Term {
		return TermRecord{}, &CorruptError{Offset: 16, What: fmt.Sprintf("term record number %d has term %d and promises %d", t.Seq, t.Term, t.Promised)}
	}
	return t, nil
}
