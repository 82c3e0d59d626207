package hostile

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/pollux-project/pollux/internal/fuzztest"
	"github.com/pollux-project/pollux/replication/meta"
)

// crcAt is where a block of the activity log has its checksum (drbd84-protocol, 8.4).
const crcAt = 8

// Spoil changes metadata as a program says: fields of the superblock, blocks of
// the activity log with a right checksum or a wrong one, pages of the bitmap.
// What lies beyond the device is left out.
func Spoil(dev meta.Device, l meta.Layout, program []byte) {
	in := fuzztest.NewProgram(program)
	block := make([]byte, meta.BlockSize)
	for range 64 {
		if in.Left() == 0 {
			return
		}
		op := in.Byte()
		at := l.Superblock
		switch op & 7 {
		case 3, 4:
			at = l.RingBlock(int(in.Byte()) % l.ALBlocks)
		case 5:
			at = l.Bitmap + int64(in.Byte())*meta.BlockSize
		}
		if _, err := dev.ReadAt(block, at); err != nil {
			continue
		}
		switch op & 7 {
		case 0, 1: // a number of the superblock, or of what is behind it
			values := []uint64{0, 1, 8, 0xffffffff, 1 << 31, 1<<31 - 1, 1 << 63, 1<<64 - 1, 1<<63 - 1, 7, 64, 1 << 41, 1<<41 + 1, 1 << 20, 65534, 65535}
			field, v := int(in.Byte())*4%200, values[op>>4]
			if op&8 != 0 {
				binary.BigEndian.PutUint64(block[field:], v)
			} else {
				binary.BigEndian.PutUint32(block[field:], uint32(v))
			}
		case 2, 6: // some bits of it
			block[int(in.Byte())%200] ^= in.Byte()
		case 3: // a field of a block of the ring
			binary.BigEndian.PutUint32(block[int(in.Byte())*4%460:], in.Uint32())
		case 4, 5: // the same anywhere
			field := int(in.Byte())*16 + int(op>>4)
			for i := range 1 + int(in.Byte())&15 {
				if field+i < len(block) {
					block[field+i] = in.Byte()
				}
			}
		case 7: // a whole sector is gone
			clear(block[int(op>>3&7)*512:][:512])
		}
		if op&7 == 3 || op&7 == 4 && op&8 != 0 {
			sumALBlock(block)
		}
		dev.WriteAt(block, at) //nolint:errcheck // it was read a moment ago
	}
}

// sumALBlock gives a block of the activity log its checksum: CRC-32C over all
// of it, started from 0 and not inverted.
func sumALBlock(b []byte) {
	binary.BigEndian.PutUint32(b[crcAt:], 0)
	binary.BigEndian.PutUint32(b[crcAt:], ^crc32.Update(0xffffffff, crc32.MakeTable(crc32.Castagnoli), b))
}
