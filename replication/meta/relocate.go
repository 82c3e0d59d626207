package meta

import (
	"fmt"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A Relocation is internal metadata on its way to the new end of a device that
// has grown. Marked and Final are encoded superblocks of the new place, 4 KiB
// each: Final is what counts in the end, Marked (see MarkFullSync) says that
// neither bitmap nor activity log do yet.
type Relocation struct {
	From, To      Layout
	Marked, Final []byte
	// Bitmap gives the new bitmap page by page; the page is valid until the
	// next call. It is called once.
	Bitmap func(write func(page int, data []byte) error) error
}

// Do moves the metadata. A crash at any moment leaves one of three: the old
// metadata untouched at the old place and no superblock at the new one; a new
// superblock that asks for a full sync; or the new metadata. Each is durable
// before the next begins.
//
// The old place is data from then on, the same on both nodes: it is zeroed, so
// that no later reader takes it for metadata. The caller lets no other metadata
// I/O and no write to the new part of the volume happen meanwhile.
func (r *Relocation) Do(dev Device) error {
	if r.From.Placement != Internal || r.To.Placement != Internal || r.To.Superblock <= r.From.Superblock {
		return fmt.Errorf("move metadata: from %d to %d, %v to %v", r.From.Superblock, r.To.Superblock, r.From.Placement, r.To.Placement)
	}
	overlap := r.To.Start() < r.From.End()
	if !overlap {
		if err := r.areas(dev); err != nil {
			return err
		}
	}
	if err := r.superblock(dev, r.Marked); err != nil {
		return err
	}
	if overlap {
		if err := r.areas(dev); err != nil {
			return err
		}
	}
	if err := zeroRange(dev, r.From.Start(), min(r.From.End(), r.To.Start())-r.From.Start()); err != nil {
		return fmt.Errorf("clear the old place of the metadata: %w", err)
	}
	if err := syncDev(dev); err != nil {
		return err
	}
	return r.superblock(dev, r.Final)
}

// areas writes bitmap and activity log at the new place, durably.
func (r *Relocation) areas(dev Device) error {
	pages := 0
	err := r.Bitmap(func(page int, data []byte) error {
		off := int64(page) * BlockSize
		n := min(int64(len(data)), r.To.BitmapBytes-off)
		if n <= 0 {
			return fmt.Errorf("bitmap page %d lies beyond the metadata", page)
		}
		pages = max(pages, page+1)
		_, err := dev.WriteAt(data[:n], r.To.Bitmap+off)
		return err
	})
	if err != nil {
		return fmt.Errorf("write bitmap: %w", err)
	}
	if rest := r.To.BitmapBytes - int64(pages)*BlockSize; rest > 0 {
		if err := zeroRange(dev, r.To.Bitmap+int64(pages)*BlockSize, rest); err != nil {
			return fmt.Errorf("clear bitmap: %w", err)
		}
	}
	return InitRing(dev, r.To) // and makes all of it durable
}

func (r *Relocation) superblock(dev Device, b []byte) error {
	if _, err := dev.WriteAt(b, r.To.Superblock); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return syncDev(dev)
}

// MarkFullSync makes sb one that depends on neither bitmap nor activity log:
// whoever attaches it sets all bits.
func MarkFullSync(sb Superblock) Superblock {
	sb.Flags |= MDFFullSync | MDFALDisabled | MDFALClean
	sb.Unclean = false
	return sb
}

// Place gives sb the offsets that l asks for.
func (l Layout) Place(sb Superblock) Superblock {
	sb.ALOffset, sb.BMOffset, sb.MDSize = l.alOffset(), l.bmOffset(), l.MDSize
	return sb
}

// Room is the largest volume that the bitmap area has bits for, in sectors.
func (l Layout) Room() drbd.Sector {
	return drbd.Sector(min(uint64(l.BitmapBytes)/sectorSize*sectorsPerBMSector, maxSectors))
}

// Moved returns the layout of metadata after its device has got another size,
// with the geometry of l; moved is whether anything lies elsewhere now. For
// flexible metadata the area keeps the size that its superblock says.
func (l Layout) Moved(dataBytes, metaBytes int64) (to Layout, moved bool, err error) {
	if l.Placement == FlexExternal {
		metaBytes = min(metaBytes, int64(l.MDSize)*sectorSize)
	}
	to, err = NewLayout(l.Placement, l.Index, dataBytes, metaBytes, l.Stripes, l.StripeSize4k)
	if err != nil {
		return l, false, err
	}
	if l.Placement != Internal {
		to.MetaBytes = l.MetaBytes
	}
	return to, to.Superblock != l.Superblock || to.AL != l.AL || to.Bitmap != l.Bitmap, nil
}

// MoveOffline moves the metadata of a volume that nobody uses from where it
// was on a smaller device to the end of the device as it is now, and applies
// its activity log first. The size of the volume stays: the nodes agree on a
// larger one when they connect.
func MoveOffline(dev Device, from, to Layout) error {
	if _, err := ApplyAL(dev, from); err != nil {
		return err
	}
	sb, bm, err := Load(dev, from)
	if err != nil {
		return err
	}
	_, from, err = ReadSuperblock(dev, from)
	if err != nil {
		return err
	}
	if to, err = to.withStripes(sb); err != nil {
		return err
	}
	sb = to.Place(sb)
	marked, final := make([]byte, BlockSize), make([]byte, BlockSize)
	m := MarkFullSync(sb)
	m.Encode(marked)
	sb.Encode(final)
	r := Relocation{From: from, To: to, Marked: marked, Final: final, Bitmap: func(write func(int, []byte) error) error {
		page := make([]byte, BlockSize)
		for p := range bm.Pages() {
			bm.EncodePage(p, page)
			if err := write(p, page); err != nil {
				return err
			}
		}
		return nil
	}}
	return r.Do(dev)
}
