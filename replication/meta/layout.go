package meta

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// Placement is where metadata lives (configuration: meta-disk).
type Placement uint8

// Placements. Index is meaningful for Indexed only.
const (
	Internal     Placement = iota // at the end of the data device
	FlexExternal                  // a device of its own, bitmap as large as it has room for
	Indexed                       // slot i of 128 MiB on a shared device
)

func (p Placement) String() string {
	switch p {
	case Internal:
		return "internal"
	case FlexExternal:
		return "flex-external"
	case Indexed:
		return "indexed"
	}
	return fmt.Sprintf("Placement(%d)", uint8(p))
}

// Sizes of the format, in sectors unless the name says otherwise. Source:
// drbd84-protocol 8.4 to 8.6 and 10.7; DRBD 8.4 drbd_int.h, MD_* and
// DRBD_MAX_SECTORS_*.
const (
	sectorSize         = 512
	sectorsPerBlock    = BlockSize / sectorSize
	sectorsPerBMBlock  = 262144 // data of one 4 KiB bitmap block: 128 MiB
	sectorsPerBMSector = 32768  // data of one bitmap sector: 16 MiB
	indexedSize        = 262144 // one slot of an indexed device: 128 MiB
	maxIndex           = 255
	maxSectors         = 1 << 41 // 1 PiB, the limit of DRBD's tools

	minRingBlocks = 8
	maxRingBlocks = 4194304 // 16 GiB

	minInternalBytes = 68 << 10 // drbdmeta refuses less
	minFlexBytes     = 1 << 20  // the kernel refuses less
)

// A Layout says where the three areas of one volume's metadata are. Offsets
// are in bytes from the start of the metadata device (internal: of the data
// device itself).
type Layout struct {
	Placement  Placement
	Index      int
	Superblock int64
	AL         int64
	Bitmap     int64

	ALBlocks     int // blocks in the activity log's ring
	Stripes      int
	StripeSize4k int

	BitmapBytes int64       // room of the bitmap area
	MDSize      uint32      // sectors of the whole area, as the superblock has it
	Usable      drbd.Sector // capacity left for data; it's d_size in P_SIZES

	DataBytes, MetaBytes int64 // as given to NewLayout
}

// NewLayout computes the layout of metadata. dataBytes is the capacity of the
// data device; with external placement 0 means that it is not known, and
// Usable is then what the bitmap has room for. metaBytes is the capacity of
// the metadata device and ignored when internal. stripes and stripeSize4k are
// the geometry of the activity log, normally 1 and 8.
// Errors: wrapping ErrTooSmall, or a plain one for impossible arguments.
func NewLayout(p Placement, index int, dataBytes, metaBytes int64, stripes, stripeSize4k int) (Layout, error) {
	if dataBytes < 0 || metaBytes < 0 {
		return Layout{}, fmt.Errorf("metadata layout: negative device size (%d, %d)", dataBytes, metaBytes)
	}
	if stripes < 0 || stripeSize4k < 0 {
		return Layout{}, fmt.Errorf("metadata layout: negative activity log geometry %d x %d", stripes, stripeSize4k)
	}
	if err := checkStripes(uint64(stripes), uint64(stripeSize4k)); err != nil {
		return Layout{}, fmt.Errorf("metadata layout: %w", err)
	}
	l := Layout{
		Placement: p, Stripes: stripes, StripeSize4k: stripeSize4k,
		ALBlocks: stripes * stripeSize4k, DataBytes: dataBytes, MetaBytes: metaBytes,
	}
	switch p {
	case Internal:
		return l.internal(dataBytes)
	case FlexExternal:
		return l.flexible(dataBytes, metaBytes)
	case Indexed:
		l.Index = index
		return l.indexed(dataBytes, metaBytes)
	}
	return Layout{}, fmt.Errorf("metadata layout: unknown placement %d", uint8(p))
}

// withStripes is the layout that sb describes: with its activity log geometry
// and, if flexible, its own size, which may be less than the device has now.
func (l Layout) withStripes(sb Superblock) (Layout, error) {
	meta := l.MetaBytes
	if l.Placement == FlexExternal {
		meta = min(meta, int64(sb.MDSize)*sectorSize)
	}
	got, err := NewLayout(l.Placement, l.Index, l.DataBytes, meta, int(sb.ALStripes), int(sb.ALStripeSize4k))
	if err != nil {
		return l, &CorruptError{Offset: l.Superblock, What: "superblock does not fit its device: " + err.Error(), Err: err}
	}
	got.MetaBytes = l.MetaBytes
	return got, nil
}

// checkStripes checks the geometry of the activity log (drbd84-protocol, 8.6).
func checkStripes(stripes, stripeSize4k uint64) error {
	n := stripes * stripeSize4k // both fit 32 bits
	if n < minRingBlocks || n > maxRingBlocks {
		return fmt.Errorf("activity log of %d stripes of %d blocks: want %d to %d blocks in all",
			stripes, stripeSize4k, minRingBlocks, maxRingBlocks)
	}
	return nil
}

func (l Layout) alBytes() int64 { return int64(l.ALBlocks) * BlockSize }

func tooSmall(have, want int64) error {
	return fmt.Errorf("%w: %d bytes, at least %d needed", ErrTooSmall, have, want)
}

func (l Layout) internal(dataBytes int64) (Layout, error) {
	capacity := uint64(dataBytes / sectorSize)
	bm := internalBitmapSectors(capacity) * sectorSize
	need := max(minInternalBytes, bm+l.alBytes()+2*BlockSize) // one block of data at least
	if dataBytes < need {
		return Layout{}, tooSmall(dataBytes, need)
	}
	l.Superblock = dataBytes/BlockSize*BlockSize - BlockSize
	l.AL = l.Superblock - l.alBytes()
	l.Bitmap = l.AL - bm
	l.BitmapBytes = bm
	md := (bm + l.alBytes() + BlockSize) / sectorSize
	if md > 1<<31-1 {
		return Layout{}, fmt.Errorf("metadata layout: %d sectors of internal metadata do not fit the format", md)
	}
	l.MDSize = uint32(md)
	l.Usable = drbd.Sector(min(maxSectors, uint64(l.Bitmap/sectorSize)))
	return l, nil
}

// internalBitmapSectors is one 4 KiB block per begun 128 MiB of the whole
// device, not only of the usable part (drbd84-protocol, 8.4).
func internalBitmapSectors(capacity uint64) int64 {
	return int64((capacity + sectorsPerBMBlock - 1) / sectorsPerBMBlock * sectorsPerBlock)
}

func (l Layout) flexible(dataBytes, metaBytes int64) (Layout, error) {
	need := max(minFlexBytes, l.alBytes()+2*BlockSize)
	if metaBytes < need {
		return Layout{}, tooSmall(metaBytes, need)
	}
	l.AL = BlockSize
	l.Bitmap = l.AL + l.alBytes()
	md := min(uint64(metaBytes/sectorSize), 1<<32-1)
	l.MDSize = uint32(md)
	bmSectors := md - uint64(l.Bitmap/sectorSize)
	l.BitmapBytes = int64(bmSectors) * sectorSize
	l.Usable = usableExternal(min(maxSectors, bmSectors*sectorsPerBMSector), dataBytes)
	return l, nil
}

func (l Layout) indexed(dataBytes, metaBytes int64) (Layout, error) {
	if l.Index < 0 || l.Index > maxIndex {
		return Layout{}, fmt.Errorf("metadata layout: index %d, want 0 to %d", l.Index, maxIndex)
	}
	if l.Stripes != defaultStripes || l.StripeSize4k != defaultStripeSize4k {
		return Layout{}, fmt.Errorf("metadata layout: indexed metadata has a fixed activity log of %d x %d blocks, not %d x %d",
			defaultStripes, defaultStripeSize4k, l.Stripes, l.StripeSize4k)
	}
	const slot = indexedSize * sectorSize
	if need := slot * int64(l.Index+1); metaBytes < need {
		return Layout{}, tooSmall(metaBytes, need)
	}
	l.Superblock = slot * int64(l.Index)
	l.AL = l.Superblock + BlockSize
	l.Bitmap = l.AL + l.alBytes()
	l.MDSize = indexedSize
	l.BitmapBytes = l.Superblock + slot - l.Bitmap
	l.Usable = usableExternal(uint64(l.BitmapBytes/sectorSize)*sectorsPerBMSector, dataBytes)
	return l, nil
}

func usableExternal(room uint64, dataBytes int64) drbd.Sector {
	if dataBytes > 0 {
		room = min(room, uint64(dataBytes/sectorSize))
	}
	return drbd.Sector(room)
}

// alOffset and bmOffset are in sectors from the superblock, as it has them.
func (l Layout) alOffset() int32 { return int32((l.AL - l.Superblock) / sectorSize) }
func (l Layout) bmOffset() int32 { return int32((l.Bitmap - l.Superblock) / sectorSize) }

// RingBlock is the byte offset, on the metadata device, of block i of the
// activity log's area; i is what ActivityLog.Transaction returns.
func (l Layout) RingBlock(i int) int64 { return l.AL + int64(i)*BlockSize }

// RingOrder is the block of the area that holds transaction number t: the ring
// runs across the stripes (drbd84-protocol, 8.6).
func (l Layout) RingOrder(t uint32) int { return ringOrder(t, l.Stripes, l.StripeSize4k) }

func ringOrder(t uint32, stripes, stripeSize4k int) int {
	k := int(t % uint32(stripes*stripeSize4k))
	return k%stripes*stripeSize4k + k/stripes
}

// End is the first byte after the metadata area.
func (l Layout) End() int64 {
	if l.Placement == Internal {
		return l.Superblock + BlockSize
	}
	return l.Superblock + int64(l.MDSize)*sectorSize
}

// Start is the first byte of the metadata area.
func (l Layout) Start() int64 {
	if l.Placement == Internal {
		return l.Bitmap
	}
	return l.Superblock
}

// Check compares a superblock with the layout that its placement, its device's
// size and its own activity log geometry ask for. The error is a *CorruptError.
//
// Internal offsets must be those of the formula, as drbdmeta insists: if they
// are not, the device has been resized or the superblock is not this device's.
func (l Layout) Check(sb Superblock) error {
	bad := func(field int64, format string, args ...any) error {
		return &CorruptError{Offset: l.Superblock + field, What: fmt.Sprintf(format, args...)}
	}
	if int64(sb.ALStripes)*int64(sb.ALStripeSize4k) != int64(l.ALBlocks) ||
		int64(sb.ALStripes) != int64(l.Stripes) {
		return bad(88, "activity log of %d stripes of %d blocks, want %d of %d",
			sb.ALStripes, sb.ALStripeSize4k, l.Stripes, l.StripeSize4k)
	}
	if sb.ALOffset != l.alOffset() {
		return bad(68, "al_offset is %d sectors, want %d", sb.ALOffset, l.alOffset())
	}
	if sb.BMOffset != l.bmOffset() {
		return bad(76, "bm_offset is %d sectors, want %d", sb.BMOffset, l.bmOffset())
	}
	if sb.MDSize != l.MDSize {
		return bad(64, "md_size_sect is %d sectors, want %d", sb.MDSize, l.MDSize)
	}
	if room := uint64(l.BitmapBytes) / sectorSize * sectorsPerBMSector; uint64(sb.LASize) > min(room, maxSectors) {
		return bad(0, "la_size_sect is %d sectors, the bitmap has room for %d", sb.LASize, room)
	}
	return nil
}
