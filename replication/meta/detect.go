package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A Content is something that is on a device already.
type Content struct {
	Name      string // "ext4 filesystem", "LVM2 physical volume", "v09 meta data", ...
	Offset    int64  // of the signature, in bytes
	UsedBytes int64  // data area in use from the start of the device, 0 if not known
	Metadata  bool   // DRBD metadata, of any version
}

// IsUsed reports whether the content needs the device up to UsedBytes.
func (c Content) IsUsed() bool { return c.UsedBytes > 0 }

// headBytes is what DetectContent reads of the start of a device: up to the
// last signature there, the uberblocks of ZFS and the superblock of btrfs.
const headBytes = 256 << 10

// DetectContent looks for what a device of so many bytes holds: file systems,
// volume managers, partition tables, swap, encryption and DRBD metadata. It
// finds nothing on an empty device; Blank tells whether it is empty.
func DetectContent(dev io.ReaderAt, size int64) ([]Content, error) {
	head := make([]byte, headBytes)
	if err := readUpTo(dev, head, 0, size); err != nil {
		return nil, err
	}
	var found []Content
	for _, probe := range headProbes {
		if c, ok := probe(head); ok {
			found = append(found, c)
		}
	}
	tail, err := probeMD(dev, size)
	if err != nil {
		return nil, err
	}
	found = append(found, tail...)
	own, err := probeMetadata(dev, size)
	if err != nil {
		return nil, err
	}
	return append(found, own...), nil
}

// Blank reports whether the start of the device and the range where metadata
// is to be written hold nothing but zeroes.
func Blank(dev io.ReaderAt, size int64, l Layout) (bool, error) {
	start := l.Start()
	end := l.Bitmap + min(l.BitmapBytes, zeroLimit)
	if l.Placement == Internal {
		end = l.End()
	}
	for _, r := range [][2]int64{{0, headBytes}, {start, end}} {
		buf := make([]byte, ioChunk)
		for off := r[0]; off < min(r[1], size); off += ioChunk {
			part := buf[:min(int64(ioChunk), min(r[1], size)-off)]
			if err := readUpTo(dev, part, off, size); err != nil {
				return false, err
			}
			if !allZero(part) {
				return false, nil
			}
		}
	}
	return true, nil
}

// readUpTo fills b from off as far as the device goes; the rest is zero.
func readUpTo(dev io.ReaderAt, b []byte, off, size int64) error {
	n := min(int64(len(b)), max(0, size-off))
	clear(b[n:])
	if n == 0 || off < 0 {
		clear(b)
		return nil
	}
	if _, err := dev.ReadAt(b[:n], off); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("look for existing data: %w", err)
	}
	return nil
}

// A headProbe looks for one kind of content in the start of a device. The
// sources of offsets and fields are each system's own format description; all
// of them are little endian unless it says otherwise.
type headProbe func(head []byte) (Content, bool)

var le, be = binary.LittleEndian, binary.BigEndian

var headProbes = []headProbe{
	probeExt, probeXFS, probeBtrfs, probeSwap, probeLVM, probeNTFS, probeFAT,
	probeGPT, probeMBR, probeReiser,
	magicAt("LUKS encrypted device", 0, "LUKS\xba\xbe"),
	magicAt("JFS filesystem", 32768, "JFS1"),
	magicAt("F2FS filesystem", 1024, "\x10\x20\xf5\xf2"),
	magicAt("ISO 9660 filesystem", 32769, "CD001"),
	magicAt("squashfs filesystem", 0, "hsqs"),
	magicAt("bcache device", 4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
	magicAt("Ceph bluestore", 0, "bluestore block device"),
	magicAt("QEMU qcow2 image", 0, "QFI\xfb"),
	magicAt("VDO device", 0, "dmvdo001"),
	magicAt("bcachefs filesystem", 4096+24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
	probeZFS,
}

func magicAt(name string, off int, magic string) headProbe {
	return func(head []byte) (Content, bool) {
		ok := string(head[off:][:len(magic)]) == magic
		return Content{Name: name, Offset: int64(off)}, ok
	}
}

// product is a*b as a size in bytes, 0 if that cannot be one.
func product(a, b uint64) int64 {
	if a == 0 || b == 0 || a > (1<<62)/b {
		return 0
	}
	return int64(a * b)
}

func probeExt(head []byte) (Content, bool) {
	const sb, compatJournal, incompatExtents, incompat64Bit = 1024, 0x4, 0x40, 0x80
	if le.Uint16(head[sb+56:]) != 0xef53 {
		return Content{}, false
	}
	shift := le.Uint32(head[sb+24:])
	if shift > 6 { // blocks of 64 KiB at most
		return Content{}, false
	}
	name := "ext2"
	if le.Uint32(head[sb+92:])&compatJournal != 0 {
		name = "ext3"
	}
	incompat := le.Uint32(head[sb+96:])
	if incompat&incompatExtents != 0 {
		name = "ext4"
	}
	blocks := uint64(le.Uint32(head[sb+4:]))
	if incompat&incompat64Bit != 0 {
		blocks |= uint64(le.Uint32(head[sb+0x150:])) << 32
	}
	return Content{Name: name + " filesystem", Offset: sb, UsedBytes: product(blocks, 1024<<shift)}, true
}

func probeXFS(head []byte) (Content, bool) { // big endian
	if string(head[:4]) != "XFSB" {
		return Content{}, false
	}
	return Content{Name: "xfs filesystem", UsedBytes: product(uint64(be.Uint32(head[4:])), be.Uint64(head[8:]))}, true
}

func probeBtrfs(head []byte) (Content, bool) {
	const sb = 64 << 10
	if string(head[sb+0x40:][:8]) != "_BHRfS_M" {
		return Content{}, false
	}
	return Content{Name: "btrfs filesystem", Offset: sb, UsedBytes: product(le.Uint64(head[sb+0x70:]), 1)}, true
}

func probeSwap(head []byte) (Content, bool) {
	for _, page := range []int{4096, 8192, 16384, 65536} {
		magic := string(head[page-10 : page])
		if magic == "SWAPSPACE2" || magic == "SWAP-SPACE" {
			last := uint64(le.Uint32(head[1028:]))
			return Content{Name: "swap space", Offset: int64(page - 10), UsedBytes: product(last+1, uint64(page))}, true
		}
	}
	return Content{}, false
}

func probeLVM(head []byte) (Content, bool) {
	for off := 0; off < 4*sectorSize; off += sectorSize {
		label := head[off:]
		if string(label[:8]) != "LABELONE" || string(label[24:32]) != "LVM2 001" {
			continue
		}
		c := Content{Name: "LVM2 physical volume", Offset: int64(off)}
		if at := le.Uint32(label[20:]); at < sectorSize-40 { // device size after a UUID of 32 bytes
			c.UsedBytes = product(le.Uint64(label[at+32:]), 1)
		}
		return c, true
	}
	return Content{}, false
}

func probeNTFS(head []byte) (Content, bool) {
	switch string(head[3:11]) {
	case "NTFS    ":
		return Content{Name: "NTFS filesystem", UsedBytes: product(le.Uint64(head[40:])+1, uint64(le.Uint16(head[11:])))}, true
	case "EXFAT   ":
		return Content{Name: "exFAT filesystem", UsedBytes: product(le.Uint64(head[72:]), 1<<(head[108]&15))}, true
	}
	return Content{}, false
}

func isFAT(head []byte) bool {
	return string(head[54:59]) == "FAT12" || string(head[54:59]) == "FAT16" || string(head[82:87]) == "FAT32"
}

func probeFAT(head []byte) (Content, bool) {
	if !isFAT(head) {
		return Content{}, false
	}
	sectors := uint64(le.Uint16(head[19:]))
	if sectors == 0 {
		sectors = uint64(le.Uint32(head[32:]))
	}
	return Content{Name: "FAT filesystem", UsedBytes: product(sectors, uint64(le.Uint16(head[11:])))}, true
}

func probeGPT(head []byte) (Content, bool) {
	for _, sector := range []int{512, 4096} {
		if string(head[sector:][:8]) == "EFI PART" {
			// The second copy of the table is at the end of the device.
			return Content{Name: "GPT partition table", Offset: int64(sector), UsedBytes: product(le.Uint64(head[sector+32:])+1, uint64(sector))}, true
		}
	}
	return Content{}, false
}

func probeMBR(head []byte) (Content, bool) {
	if head[510] != 0x55 || head[511] != 0xaa || isFAT(head) || string(head[3:7]) == "NTFS" || string(head[3:8]) == "EXFAT" {
		return Content{}, false
	}
	end, used := uint64(0), false
	for off := 446; off < 510; off += 16 {
		e := head[off : off+16]
		if e[0]&0x7f != 0 {
			return Content{}, false // no partition table, some boot sector
		}
		if e[4] != 0 {
			used = true
			end = max(end, uint64(le.Uint32(e[8:]))+uint64(le.Uint32(e[12:])))
		}
	}
	return Content{Name: "DOS partition table", Offset: 446, UsedBytes: product(end, sectorSize)}, used
}

func probeReiser(head []byte) (Content, bool) {
	const sb = 64 << 10
	if !bytes.HasPrefix(head[sb+52:], []byte("ReIsEr")) {
		return Content{}, false
	}
	return Content{Name: "reiserfs filesystem", Offset: sb, UsedBytes: product(uint64(le.Uint32(head[sb:])), uint64(le.Uint16(head[sb+44:])))}, true
}

func probeZFS(head []byte) (Content, bool) { // either byte order
	const magic = 0x00bab10c
	for off := 128 << 10; off+8 <= len(head); off += 1024 {
		if le.Uint64(head[off:]) == magic || be.Uint64(head[off:]) == magic {
			return Content{Name: "ZFS member", Offset: int64(off)}, true
		}
	}
	return Content{}, false
}

// probeMD finds members of Linux software RAID; the superblock is at the
// start or at the end, as its version says.
func probeMD(dev io.ReaderAt, size int64) ([]Content, error) {
	const magic = 0xa92b4efc
	places := []int64{0, 4096, (size/512 - 16) &^ 7 * 512, size&^0xffff - 0x10000}
	b := make([]byte, 512)
	for _, off := range places {
		if off < 0 {
			continue
		}
		if err := readUpTo(dev, b, off, size); err != nil {
			return nil, err
		}
		if le.Uint32(b) == magic || be.Uint32(b) == magic {
			return []Content{{Name: "Linux RAID member", Offset: off}}, nil
		}
	}
	return nil, nil
}

// probeMetadata finds DRBD metadata of any version in all the places that it
// can have on this device but slots of an indexed one.
func probeMetadata(dev io.ReaderAt, size int64) ([]Content, error) {
	b := make([]byte, BlockSize)
	places := []struct {
		off  int64
		what string
	}{
		{size/BlockSize*BlockSize - BlockSize, "flexible-size internal"},
		{size/BlockSize*BlockSize - indexedSize*sectorSize, "internal"}, // v07
		{0, "external"},
	}
	var found []Content
	for _, at := range places {
		if at.off < 0 {
			continue
		}
		if err := readUpTo(dev, b, at.off, size); err != nil {
			return nil, err
		}
		if v := MetadataVersion(b); v != "" {
			found = append(found, Content{Name: fmt.Sprintf("%s %s meta data", v, at.what), Offset: at.off, Metadata: true})
		}
	}
	return found, nil
}

// MetadataVersion says which version of DRBD metadata begins with this block:
// "v07", "v08", "v09" or "".
func MetadataVersion(block []byte) string {
	switch be.Uint32(block[magicOffset:]) {
	case magicClean, magicUnclean:
		return "v08"
	case magicV09:
		return "v09"
	}
	if be.Uint32(block[magicOffsetV07:]) == magicV07 {
		return "v07"
	}
	return ""
}
