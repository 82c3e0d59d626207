package meta

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

// DumpInfo is the head of a dump: comments that no reader looks at.
type DumpInfo struct {
	Date    string // "2026-11-21 08:53:28 +0000 [1795251208]"
	Host    string
	Command string // the command line
}

// unclean stands in the dump of metadata whose activity log has not been
// applied; restore-md must choke on it.
const unclean = "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap."

// Words per line of a dump, and words between two position comments.
const (
	dumpLine = 4
	dumpMark = 32
)

// Dump writes the metadata of dev as text, in the form of drbdmeta dump-md
// 9.22.0, which restore-md reads. Unlike that release, which always prints
// "flags 0x00000000" for v08, it prints the flags that are set.
// Words of the bitmap appear as they are on disk, padding included.
func Dump(w io.Writer, dev io.ReaderAt, l Layout, info DumpInfo) error {
	sb, l, err := ReadSuperblock(dev, l)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	dumpHead(out, sb, l, info)
	size := BitmapBytes(sb.LASize)
	fmt.Fprintf(out, "# bm-bytes %d;\nbm {\n", size)
	d := wordDumper{w: out, words: size / 8}
	err = readPages(dev, l, int(size/BlockSize), func(_ int, page []byte) {
		for ; len(page) > 0; page = page[8:] {
			d.add(binary.LittleEndian.Uint64(page))
		}
	})
	if err != nil {
		return err
	}
	d.end()
	fmt.Fprintf(out, "}\n# bits-set %d;\n", d.set)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write dump: %w", err)
	}
	return nil
}

func dumpHead(out *bufio.Writer, sb Superblock, l Layout, info DumpInfo) {
	fmt.Fprintf(out, "# DRBD meta data dump\n# %s\n# %s> %s\n#\n\nversion \"v08\";\n\n", info.Date, info.Host, info.Command)
	if !sb.Clean() {
		fmt.Fprintf(out, "%s\n# You should \"apply-al\" first, if you plan to restore this.\n\n", unclean)
	}
	fmt.Fprintf(out, "# md_size_sect %d\n# md_offset %d\n# al_offset %d\n# bm_offset %d\n\n",
		sb.MDSize, l.Superblock, l.AL, l.Bitmap)
	fmt.Fprintf(out, "uuid {\n    0x%016X; 0x%016X; 0x%016X; 0x%016X;\n    flags 0x%08X;\n}\n",
		sb.UUIDs.Current, sb.UUIDs.Bitmap, sb.UUIDs.History[0], sb.UUIDs.History[1], uint32(sb.Flags))
	fmt.Fprintf(out, "# al-extents %d;\nla-size-sect %d;\nbm-byte-per-bit %d;\ndevice-uuid 0x%016X;\n",
		sb.ALExtents, uint64(sb.LASize), bytesPerBit, sb.DeviceUUID)
	fmt.Fprintf(out, "la-peer-max-bio-size %d;\nal-stripes %d;\nal-stripe-size-4k %d;\n",
		sb.PeerMaxBio, sb.ALStripes, sb.ALStripeSize4k)
}

// A wordDumper prints a stream of words, four in a line, and runs of equal
// words, in whole lines, as "N times W". It looks ahead no further than one
// line, so that a run of any length costs no memory.
type wordDumper struct {
	w     *bufio.Writer
	words uint64 // in all
	at    uint64 // words printed
	run   uint64 // words of a run that begins at at, whole lines
	value uint64
	line  [dumpLine]uint64
	n     int // words in line
	set   uint64
}

func (d *wordDumper) add(v uint64) {
	d.set += uint64(bits.OnesCount64(v))
	d.line[d.n] = v
	if d.n++; d.n < dumpLine {
		return
	}
	d.n = 0
	same := d.line[0] == d.line[1] && d.line[1] == d.line[2] && d.line[2] == d.line[3]
	if same && d.run > 0 && d.line[0] == d.value {
		d.run += dumpLine
		return
	}
	d.flushRun()
	if same {
		d.run, d.value = dumpLine, d.line[0]
		return
	}
	d.print(d.line[:])
}

func (d *wordDumper) flushRun() {
	switch {
	case d.run > dumpLine:
		d.mark()
		fmt.Fprintf(d.w, "    %d times 0x%016X;\n", d.run, d.value)
		d.at += d.run
	case d.run == dumpLine:
		d.print([]uint64{d.value, d.value, d.value, d.value})
	}
	d.run = 0
}

func (d *wordDumper) print(words []uint64) {
	d.mark()
	for i, v := range words {
		if i == 0 {
			fmt.Fprint(d.w, "   ")
		}
		fmt.Fprintf(d.w, " 0x%016X;", v)
	}
	fmt.Fprintln(d.w)
	d.at += uint64(len(words))
}

func (d *wordDumper) mark() {
	if d.at%dumpMark == 0 {
		fmt.Fprintf(d.w, "   # at %dkB\n", d.at*bitsPerWord*bytesPerBit/1024)
	}
}

func (d *wordDumper) end() {
	d.flushRun()
	if d.n > 0 {
		d.print(d.line[:d.n])
	}
}
