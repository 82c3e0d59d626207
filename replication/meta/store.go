package meta

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A Device is what metadata is kept on; blockdev.Device satisfies it. A write
// is durable once a Sync that began after it has returned nil.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// zeroLimit bounds what Create clears of the bitmap area if the size of the
// data isn't known, in bytes: the bitmap of 4 TiB. Clearing is for tidiness
// only, as bits beyond the agreed size are never read.
const zeroLimit = 128 << 20

// ioChunk is the largest single read or write of the bitmap area, in bytes.
const ioChunk = 1 << 20

// ReadSuperblock reads the superblock at l's place and returns it with the
// layout that holds on the device: l's placement with the superblock's own
// activity log geometry. All plausibility checks have been made.
// Errors: I/O errors, *CorruptError (wrapping ErrNoMetadata or *VersionError
// where it applies).
func ReadSuperblock(dev io.ReaderAt, l Layout) (Superblock, Layout, error) {
	block := make([]byte, BlockSize)
	if _, err := dev.ReadAt(block, l.Superblock); err != nil {
		return Superblock{}, l, fmt.Errorf("read superblock: %w", err)
	}
	sb, err := DecodeSuperblock(block)
	if err != nil {
		return Superblock{}, l, shifted(err, l.Superblock)
	}
	if l, err = l.withStripes(sb); err != nil {
		return Superblock{}, l, err
	}
	if err := l.Check(sb); err != nil {
		return Superblock{}, l, err
	}
	return sb, l, nil
}

// shifted makes the offset of a CorruptError one from the start of the device.
func shifted(err error, by int64) error {
	if c, ok := errors.AsType[*CorruptError](err); ok {
		moved := *c
		moved.Offset += by
		return &moved
	}
	return err
}

// WriteSuperblock writes sb to its place. It isn't durable before a Sync.
func WriteSuperblock(dev io.WriterAt, l Layout, sb Superblock) error {
	block := make([]byte, BlockSize)
	sb.Encode(block)
	if _, err := dev.WriteAt(block, l.Superblock); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}

// storeSuperblock is WriteSuperblock made durable.
func storeSuperblock(dev Device, l Layout, sb Superblock) error {
	if err := WriteSuperblock(dev, l, sb); err != nil {
		return err
	}
	return syncDev(dev)
}

func syncDev(dev Device) error {
	if err := dev.Sync(); err != nil {
		return fmt.Errorf("sync metadata: %w", err)
	}
	return nil
}

// Load reads superblock and bitmap of clean metadata. The bitmap has the
// agreed size (LASize, so it is empty before the first handshake); bits beyond
// it are masked. If the bitmap on disk is not to be trusted (MDFFullSync, or a
// crashed Primary without activity log), all its bits are set and its pages
// are dirty: write them, then drop MDFFullSync.
// Errors: as ReadSuperblock; ErrUnclean if ApplyAL has to come first;
// *ShrunkError if a consistent device has become smaller than its agreed size.
func Load(dev io.ReaderAt, l Layout) (Superblock, *Bitmap, error) {
	sb, l, err := ReadSuperblock(dev, l)
	if err != nil {
		return Superblock{}, nil, err
	}
	if !sb.Clean() {
		return Superblock{}, nil, ErrUnclean
	}
	if sb.Flags&MDFConsistent != 0 && sb.LASize > l.Usable {
		return Superblock{}, nil, &ShrunkError{Agreed: uint64(sb.LASize), Usable: uint64(l.Usable)}
	}
	b, err := LoadBitmap(dev, l, sb)
	if err != nil {
		return Superblock{}, nil, err
	}
	crashed := sb.Flags&(MDFCrashedPrimary|MDFPrimaryInd) != 0
	if sb.Flags&MDFFullSync != 0 || crashed && sb.Flags&MDFALDisabled != 0 {
		b.SetAll()
	}
	return sb, b, nil
}

// LoadBitmap reads the bitmap as it is on disk, clean or not.
func LoadBitmap(dev io.ReaderAt, l Layout, sb Superblock) (*Bitmap, error) {
	b := NewBitmap(sb.LASize)
	err := readPages(dev, l, b.Pages(), func(p int, page []byte) { b.LoadPage(p, page) })
	if err != nil {
		return nil, err
	}
	return b, nil
}

// readPages calls each for the first n pages of the bitmap area. The last page
// of a flexible area may be cut short; the rest of it reads as zero.
func readPages(dev io.ReaderAt, l Layout, n int, each func(p int, page []byte)) error {
	buf := make([]byte, min(ioChunk, n*BlockSize))
	for p := 0; p < n; {
		off := int64(p) * BlockSize
		part := buf[:min(int64(len(buf)), int64(n)*BlockSize-off)]
		room := min(int64(len(part)), l.BitmapBytes-off)
		if _, err := dev.ReadAt(part[:room], l.Bitmap+off); err != nil {
			return fmt.Errorf("read bitmap: %w", err)
		}
		clear(part[room:])
		for ; len(part) > 0; part = part[BlockSize:] {
			each(p, part[:BlockSize])
			p++
		}
	}
	return nil
}

// InitRing makes every block of the activity log an initialised one and makes
// that durable. What the log says must be in the bitmap, durably, before.
//
// The newest block goes first and the first block of the ring last, so that
// after a crash on the way Replay and drbdmeta can make sense of what is left.
func InitRing(dev Device, l Layout) error {
	newest := 0
	var number uint32
	found := false
	block := make([]byte, BlockSize)
	read := ReadRing(dev, l)
	for k := range l.ALBlocks {
		if err := read(k, block); err != nil {
			return fmt.Errorf("read activity log: %w", err)
		}
		t, initialised, err := decodeALBlock(block)
		if err == nil && !initialised && (!found || int32(t.number-number) > 0) {
			newest, number, found = k, t.number, true
		}
	}
	InitialALBlock(block)
	write := func(k int) error {
		if _, err := dev.WriteAt(block, l.RingBlock(l.RingOrder(uint32(k)))); err != nil {
			return fmt.Errorf("write activity log: %w", err)
		}
		return nil
	}
	for i := range l.ALBlocks {
		k := (newest - i + l.ALBlocks) % l.ALBlocks
		if k == 0 {
			continue
		}
		if err := write(k); err != nil {
			return err
		}
	}
	if err := syncDev(dev); err != nil {
		return err
	}
	if err := write(0); err != nil {
		return err
	}
	return syncDev(dev)
}

// CreateOptions are the choices of Create. The zero value is drbdmeta's.
type CreateOptions struct {
	DeviceUUID uint64 // random, or 0
	PeerMaxBio uint32 // bytes, 0 if not known
}

// Create writes fresh metadata: an empty activity log, a clear bitmap, and
// last the superblock. It looks at nothing that is there (DetectContent does).
// Old metadata at this place is made invalid first, so that a crash on the way
// cannot leave its superblock with a bitmap that has been cleared.
func Create(dev Device, l Layout, opts CreateOptions) error {
	sb := NewSuperblock(l)
	sb.DeviceUUID, sb.PeerMaxBio = opts.DeviceUUID, opts.PeerMaxBio
	return build(dev, l, sb, nil)
}

// build writes all areas anew; bitmap writes the bitmap area unless nil.
func build(dev Device, l Layout, sb Superblock, bitmap func() error) error {
	if err := zeroRange(dev, l.Superblock, BlockSize); err != nil {
		return fmt.Errorf("clear superblock: %w", err)
	}
	if err := syncDev(dev); err != nil {
		return err
	}
	size := l.BitmapBytes
	if l.DataBytes <= 0 {
		size = min(size, zeroLimit)
	}
	if err := zeroRange(dev, l.Bitmap, size); err != nil {
		return fmt.Errorf("clear bitmap: %w", err)
	}
	if bitmap != nil {
		if err := bitmap(); err != nil {
			return err
		}
	}
	if err := InitRing(dev, l); err != nil {
		return err
	}
	return storeSuperblock(dev, l, sb)
}

// zeroRange makes a range read as zero. What is zero already isn't written, so
// that sparse files stay sparse.
func zeroRange(dev Device, off, size int64) error {
	buf := make([]byte, min(ioChunk, size))
	zero := make([]byte, len(buf))
	for size > 0 {
		part := buf[:min(int64(len(buf)), size)]
		if _, err := dev.ReadAt(part, off); err != nil {
			return err
		}
		if !allZero(part) {
			if _, err := dev.WriteAt(zero[:len(part)], off); err != nil {
				return err
			}
		}
		off += int64(len(part))
		size -= int64(len(part))
	}
	return nil
}

var zeroBlock [BlockSize]byte

func allZero(b []byte) bool {
	for len(b) > BlockSize {
		if !bytes.Equal(b[:BlockSize], zeroBlock[:]) {
			return false
		}
		b = b[BlockSize:]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}

// Applied is what ApplyAL did.
type Applied struct {
	WasClean bool     // nothing to do
	Hot      []Extent // extents of the log that were marked in the bitmap
	NewBits  uint64   // bits set that had been clear
	Beyond   []Extent // extents of the log that lie beyond the bitmap: ignored
}

// ApplyAL does what has to be done with the metadata of a node that went down
// while attached: the extents that its activity log names are marked out of
// sync if it was Primary, the log is emptied, the superblock is clean again
// (drbd84-protocol, 9.4). Clean metadata is left alone.
//
// Each step is durable before the next: bits, a superblock that is still
// unclean but has MDFALClean, log, clean superblock. So it can be repeated after
// a crash at any point, with the same result: a power failure may tear any
// number of the log's blocks while they are initialised, but then the
// superblock says that nothing depends on them. No kernel leaves that pair
// behind, as it clears MDFALClean in its first superblock.
//
// If the log is damaged and needed, the error is a *CorruptError and nothing
// has been written: the way out is a full sync (Invalidate, or setting
// MDFFullSync). It is not needed if all bits count as set anyway, or if the node neither was
// Primary nor tracked differences for a diskless one.
func ApplyAL(dev Device, l Layout) (Applied, error) {
	sb, l, done, needed, err := pendingAL(dev, l)
	if err != nil || done.WasClean {
		return done, err
	}
	if done.NewBits, err = markExtents(dev, l, done.Hot); err != nil {
		return Applied{}, err
	}
	if err := syncDev(dev); err != nil {
		return Applied{}, err
	}
	if needed {
		sb.Unclean = true
		sb.Flags |= MDFALClean
		if err := storeSuperblock(dev, l, sb); err != nil {
			return Applied{}, err
		}
	}
	if err := InitRing(dev, l); err != nil {
		return Applied{}, err
	}
	sb.Unclean = false
	sb.Flags |= MDFALClean // MDFPrimaryInd stays: attach makes "crashed Primary" of it
	return done, storeSuperblock(dev, l, sb)
}

// PendingAL is what ApplyAL would do, with the same errors; nothing is written.
// NewBits is not counted.
func PendingAL(dev io.ReaderAt, l Layout) (Applied, error) {
	_, _, done, _, err := pendingAL(dev, l)
	return done, err
}

// pendingAL finds the extents that are to be marked. needed tells whether
// anything depends on the log.
func pendingAL(dev io.ReaderAt, in Layout) (sb Superblock, l Layout, done Applied, needed bool, err error) {
	if sb, l, err = ReadSuperblock(dev, in); err != nil {
		return sb, l, Applied{}, false, err
	}
	if sb.Clean() {
		return sb, l, Applied{WasClean: true}, false, nil
	}
	wrote := sb.Flags&MDFPrimaryInd != 0 || sb.UUIDs.Bitmap != 0
	needed = wrote && !(sb.Unclean && sb.Flags&MDFALClean != 0)
	allSet := sb.Flags&(MDFFullSync|MDFALDisabled) != 0
	if needed {
		hot, err := Replay(l.ALBlocks, ReadRing(dev, l))
		switch {
		case err == nil:
			done.Hot = hot
		case allSet && isCorrupt(err): // nothing depends on the log
		default:
			return sb, l, Applied{}, needed, fmt.Errorf("apply activity log: %w", shifted(err, l.AL))
		}
	}
	end := l.markable(sb.LASize)
	n, _ := slices.BinarySearch(done.Hot, Extent(end/bytesPerExtent))
	if n < len(done.Hot) {
		done.Hot, done.Beyond = done.Hot[:n:n], done.Hot[n:]
	}
	return sb, l, done, needed, nil
}

func isCorrupt(err error) bool {
	_, ok := errors.AsType[*CorruptError](err)
	return ok
}

// bytesPerExtent is the part of the bitmap that one extent has, in bytes.
const bytesPerExtent = bitsPerExtent / 8

// markable is how much of the bitmap can hold marks for a device of size
// sectors, in bytes: whole extents.
func (l Layout) markable(size drbd.Sector) int64 {
	return min(int64(BitmapBytes(size)), l.BitmapBytes) / bytesPerExtent * bytesPerExtent
}

// markExtents sets all bits of the extents, which are in ascending order, in
// the bitmap on disk: whole extents at a time as drbdmeta does, as bits beyond
// the device are masked by every reader.
func markExtents(dev Device, l Layout, hot []Extent) (newBits uint64, err error) {
	page := make([]byte, BlockSize)
	for i := 0; i < len(hot); {
		p := hot[i].Page()
		off := int64(p) * BlockSize
		part := page[:min(BlockSize, l.BitmapBytes-off)]
		if _, err := dev.ReadAt(part, l.Bitmap+off); err != nil {
			return newBits, fmt.Errorf("read bitmap: %w", err)
		}
		for ; i < len(hot) && hot[i].Page() == p; i++ {
			at := int64(hot[i])*bytesPerExtent - off
			for j := range part[at:][:bytesPerExtent] {
				b := &part[at+int64(j)]
				newBits += uint64(bits.OnesCount8(^*b))
				*b = 0xff
			}
		}
		if _, err := dev.WriteAt(part, l.Bitmap+off); err != nil {
			return newBits, fmt.Errorf("write bitmap: %w", err)
		}
	}
	return newBits, nil
}

// BitmapBytes is the size of the bitmap of a device of size sectors on
// disk, in bytes: whole pages.
func BitmapBytes(size drbd.Sector) uint64 {
	n := (uint64(size) + sectorsPerBit - 1) / sectorsPerBit
	return (n + bitsPerPage - 1) / bitsPerPage * BlockSize
}

// Wipe makes the metadata unrecognisable by zeroing its superblock, durably.
func Wipe(dev Device, l Layout) error {
	if _, err := dev.WriteAt(make([]byte, BlockSize), l.Superblock); err != nil {
		return fmt.Errorf("wipe superblock: %w", err)
	}
	return syncDev(dev)
}
