package meta

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Constants of the superblock. Source: drbd84-protocol, 8.2; DRBD 8.4
// drbd_main.c, struct meta_data_on_disk; drbd-utils drbdmeta.c, struct
// md_on_disk_08.
const (
	// BlockSize is the unit of all metadata I/O, in bytes. The superblock and
	// every block of the activity log and page of the bitmap have this size.
	BlockSize = 4096

	magicV07     = 0x8374026a // v07, only ever seen at magicOffsetV07
	magicClean   = 0x8374026b // v08, activity log applied
	magicUnclean = 0x8374026c // v08 in use by 8.4, or not detached by the tool
	magicV09     = 0x8374026d

	magicOffset    = 60
	magicOffsetV07 = 28 // after la_kb (8 bytes) and five 32-bit counters

	bytesPerBit = 4096 // field bm_bytes_per_bit; the kernel takes no other value

	defaultStripes      = 1
	defaultStripeSize4k = 8

	// createALExtents is what drbdmeta's create-md writes as al_nr_extents.
	createALExtents = 257
)

// superblockFields is the part of a superblock that is not reserved, in bytes.
const superblockFields = 96

// Flags are the flags of a superblock (MDF_..., drbd84-protocol 8.3).
type Flags uint32

// Flags of a superblock.
const (
	MDFConsistent     Flags = 1 << iota // disk better than Inconsistent
	MDFPrimaryInd                       // was Primary when it was written
	MDFConnectedInd                     // was connected
	MDFFullSync                         // bitmap not trustworthy: all bits count as set
	MDFWasUpToDate                      // disk better than Outdated
	MDFPeerOutdated                     // the peer is known to be worse than we are
	MDFCrashedPrimary                   // a Primary crashed and nobody has resynced since
	MDFALClean                          // the activity log has been applied
	MDFALDisabled                       // al-updates no: after a crash everything is out of sync
)

var flagNames = [...]string{
	"CONSISTENT", "PRIMARY_IND", "CONNECTED_IND", "FULL_SYNC", "WAS_UP_TO_DATE",
	"PEER_OUT_DATED", "CRASHED_PRIMARY", "AL_CLEAN", "AL_DISABLED",
}

func (f Flags) String() string {
	var parts []string
	for i, name := range flagNames {
		if f>>i&1 != 0 {
			parts = append(parts, name)
		}
	}
	if rest := f >> len(flagNames) << len(flagNames); rest != 0 {
		parts = append(parts, fmt.Sprintf("%#x", uint32(rest)))
	}
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, "|")
}

// A Superblock is the v08 superblock. Encode and DecodeSuperblock are its only
// ways to and from the disk. The zero value is not valid; NewSuperblock makes
// one for a Layout.
type Superblock struct {
	LASize     drbd.Sector // last agreed device size, 0 if never connected
	UUIDs      UUIDs
	DeviceUUID uint64 // made by the admin tool, kept as it is; 0 allowed
	Flags      Flags
	Unclean    bool   // magic ...6c: in use or crashed, the activity log counts
	MDSize     uint32 // sectors of the whole metadata area
	ALOffset   int32  // sectors from the superblock to the activity log
	BMOffset   int32  // sectors from the superblock to the bitmap
	ALExtents  uint32 // slots of the activity log in use
	PeerMaxBio uint32 // bytes; last known limit of the peer

	ALStripes      uint32
	ALStripeSize4k uint32 // blocks of 4 KiB in one stripe

	// Term is Pollux's own, in the reserved bytes; the zero value if there is none
	// (or a damaged one, which is as good as none).
	Term TermRecord
}

// NewSuperblock returns the superblock that create-md writes for l: just
// created, clean, without any data generation.
func NewSuperblock(l Layout) Superblock {
	return Superblock{
		UUIDs:          UUIDs{Current: UUIDJustCreated},
		Flags:          MDFALClean,
		MDSize:         l.MDSize,
		ALOffset:       l.alOffset(),
		BMOffset:       l.bmOffset(),
		ALExtents:      createALExtents,
		ALStripes:      uint32(l.Stripes),
		ALStripeSize4k: uint32(l.StripeSize4k),
	}
}

// Clean reports whether the activity log need not be applied: magic ...6b and
// MDFALClean, which is what the kernel asks for at attach.
func (sb *Superblock) Clean() bool { return !sb.Unclean && sb.Flags&MDFALClean != 0 }

// Encode writes the superblock to dst[:BlockSize], reserved bytes as zero but for
// a term record. It does not allocate.
func (sb *Superblock) Encode(dst []byte) {
	dst = dst[:BlockSize]
	clear(dst[superblockFields:])
	be := binary.BigEndian
	be.PutUint64(dst[0:], uint64(sb.LASize))
	be.PutUint64(dst[8:], sb.UUIDs.Current)
	be.PutUint64(dst[16:], sb.UUIDs.Bitmap)
	be.PutUint64(dst[24:], sb.UUIDs.History[0])
	be.PutUint64(dst[32:], sb.UUIDs.History[1])
	be.PutUint64(dst[40:], sb.DeviceUUID)
	be.PutUint64(dst[48:], 0)
	be.PutUint32(dst[56:], uint32(sb.Flags))
	magic := uint32(magicClean)
	if sb.Unclean {
		magic = magicUnclean
	}
	be.PutUint32(dst[60:], magic)
	be.PutUint32(dst[64:], sb.MDSize)
	be.PutUint32(dst[68:], uint32(sb.ALOffset))
	be.PutUint32(dst[72:], sb.ALExtents)
	be.PutUint32(dst[76:], uint32(sb.BMOffset))
	be.PutUint32(dst[80:], bytesPerBit)
	be.PutUint32(dst[84:], sb.PeerMaxBio)
	be.PutUint32(dst[88:], sb.ALStripes)
	be.PutUint32(dst[92:], sb.ALStripeSize4k)
	sb.Term.Encode(dst[termRecordOffset:])
}

// DecodeSuperblock reads a superblock from b[:BlockSize]. Stripes that are not
// set read as the default, 1 x 8. Errors: *CorruptError, wrapping ErrNoMetadata
// or a *VersionError where that is the reason; its Offset is relative to b.
// Sizes and offsets are looked at by Layout.Check.
func DecodeSuperblock(b []byte) (Superblock, error) {
	if len(b) < BlockSize {
		return Superblock{}, &CorruptError{What: fmt.Sprintf("superblock of %d bytes, want %d", len(b), BlockSize)}
	}
	be := binary.BigEndian
	magic := be.Uint32(b[magicOffset:])
	if err := checkMagic(magic, be.Uint32(b[magicOffsetV07:])); err != nil {
		return Superblock{}, err
	}
	if v := be.Uint32(b[80:]); v != bytesPerBit {
		return Superblock{}, &CorruptError{Offset: 80, What: fmt.Sprintf("bytes per bitmap bit are %d, want %d", v, bytesPerBit)}
	}
	sb := Superblock{
		LASize: drbd.Sector(be.Uint64(b[0:])),
		UUIDs: UUIDs{
			Current: be.Uint64(b[8:]),
			Bitmap:  be.Uint64(b[16:]),
			History: [2]uint64{be.Uint64(b[24:]), be.Uint64(b[32:])},
		},
		DeviceUUID:     be.Uint64(b[40:]),
		Flags:          Flags(be.Uint32(b[56:])),
		Unclean:        magic == magicUnclean,
		MDSize:         be.Uint32(b[64:]),
		ALOffset:       int32(be.Uint32(b[68:])),
		ALExtents:      be.Uint32(b[72:]),
		BMOffset:       int32(be.Uint32(b[76:])),
		PeerMaxBio:     be.Uint32(b[84:]),
		ALStripes:      be.Uint32(b[88:]),
		ALStripeSize4k: be.Uint32(b[92:]),
	}
	if sb.ALStripes == 0 && sb.ALStripeSize4k == 0 {
		sb.ALStripes, sb.ALStripeSize4k = defaultStripes, defaultStripeSize4k
	}
	// A damaged record must not cost the disk: without it the term is unknown.
	sb.Term, _ = DecodeTermRecord(b[termRecordOffset:])
	if err := checkStripes(uint64(sb.ALStripes), uint64(sb.ALStripeSize4k)); err != nil {
		return Superblock{}, &CorruptError{Offset: 88, What: err.Error()}
	}
	return sb, nil
}

func checkMagic(magic, atV07 uint32) error {
	switch magic {
	case magicClean, magicUnclean:
		return nil
	case magicV09:
		v := &VersionError{Version: "v09"}
		return &CorruptError{Offset: magicOffset, What: v.Error(), Err: v}
	}
	if atV07 == magicV07 {
		v := &VersionError{Version: "v07"}
		return &CorruptError{Offset: magicOffsetV07, What: v.Error(), Err: v}
	}
	return &CorruptError{
		Offset: magicOffset, Err: ErrNoMetadata,
		What: fmt.Sprintf("no valid meta data found (magic %#08x, want %#x or %#x)", magic, magicClean, magicUnclean),
	}
}
