package meta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/protocol/drbd"
)

// A ParseError says what is wrong in the text of a dump.
type ParseError struct {
	Line int // 1-based
	Msg  string
}

func (e *ParseError) Error() string { return fmt.Sprintf("Parse error in line %d: %s", e.Line, e.Msg) }

// A WordRun is Count times the same 64-bit word of a bitmap, bit 0 lowest.
type WordRun struct {
	Count uint64
	Word  uint64
}

// A DumpText is a parsed dump: what restore-md writes.
type DumpText struct {
	LASize         drbd.Sector
	UUIDs          UUIDs
	Flags          Flags
	DeviceUUID     uint64
	PeerMaxBio     uint32
	ALStripes      uint32
	ALStripeSize4k uint32
	Bitmap         []WordRun
}

// maxRuns bounds the memory of a parsed dump: it is the number of words of a
// 1 TiB device, each written out. Longer texts must use "times".
const maxRuns = 1 << 22

// ParseDump reads the text of a dump of v08. Errors: *ParseError (also for
// dumps of other formats and of unclean metadata), or that of r.
func ParseDump(r io.Reader) (*DumpText, error) {
	p := &dumpParser{lex: dumpLexer{r: bufio.NewReader(r), line: 1}}
	d := &DumpText{ALStripes: defaultStripes, ALStripeSize4k: defaultStripeSize4k}
	if err := p.parse(d); err != nil {
		return nil, err
	}
	return d, nil
}

type dumpParser struct {
	lex dumpLexer
	tok token
}

func (p *dumpParser) next() error {
	tok, err := p.lex.next()
	p.tok = tok
	return err
}

func (p *dumpParser) fail(want string) error {
	got := "got '" + p.tok.text + "'"
	if p.tok.text == "" {
		got = "end of file encountered"
	}
	return &ParseError{Line: p.tok.line, Msg: want + " expected; " + got}
}

// expect consumes exactly these tokens.
func (p *dumpParser) expect(texts ...string) error {
	for _, text := range texts {
		if p.tok.text != text {
			return p.fail("'" + text + "'")
		}
		if err := p.next(); err != nil {
			return err
		}
	}
	return nil
}

// number consumes a decimal or 0x number of at most so many bits.
func (p *dumpParser) number(size int) (uint64, error) {
	text, base := p.tok.text, 10
	if rest, ok := strings.CutPrefix(text, "0x"); ok {
		text, base = rest, 16
	}
	v, err := strconv.ParseUint(text, base, size)
	if errors.Is(err, strconv.ErrRange) {
		return 0, &ParseError{Line: p.tok.line, Msg: fmt.Sprintf("%s does not fit %d bits", p.tok.text, size)}
	}
	if err != nil {
		return 0, p.fail("a number")
	}
	return v, p.next()
}

func (p *dumpParser) parse(d *DumpText) error {
	if err := p.next(); err != nil {
		return err
	}
	if err := p.version(); err != nil {
		return err
	}
	if err := p.uuids(d); err != nil {
		return err
	}
	var perBit uint64
	var peerBio, stripes, stripeSize uint64
	var laSize uint64
	for _, f := range []struct {
		key      string
		size     int
		to       *uint64
		optional bool // missing in dumps of old tools
	}{
		{"la-size-sect", 64, &laSize, false},
		{"bm-byte-per-bit", 32, &perBit, false},
		{"device-uuid", 64, &d.DeviceUUID, false},
		{"la-peer-max-bio-size", 32, &peerBio, true},
		{"al-stripes", 32, &stripes, true},
		{"al-stripe-size-4k", 32, &stripeSize, true},
	} {
		if f.optional && p.tok.text != f.key {
			continue
		}
		if err := p.field(f.key, f.size, f.to); err != nil {
			return err
		}
	}
	if perBit != bytesPerBit {
		return &ParseError{Line: p.tok.line, Msg: fmt.Sprintf("bm-byte-per-bit is %d, only %d is known", perBit, bytesPerBit)}
	}
	if laSize > maxSectors {
		return &ParseError{Line: p.tok.line, Msg: fmt.Sprintf("la-size-sect is %d, at most %d", laSize, uint64(maxSectors))}
	}
	d.LASize, d.PeerMaxBio = drbd.Sector(laSize), uint32(peerBio)
	if stripes != 0 || stripeSize != 0 {
		if err := checkStripes(stripes, stripeSize); err != nil {
			return &ParseError{Line: p.tok.line, Msg: err.Error()}
		}
		d.ALStripes, d.ALStripeSize4k = uint32(stripes), uint32(stripeSize)
	}
	return p.bitmap(d)
}

func (p *dumpParser) field(key string, size int, to *uint64) error {
	if err := p.expect(key); err != nil {
		return err
	}
	v, err := p.number(size)
	if err != nil {
		return err
	}
	*to = v
	return p.expect(";")
}

func (p *dumpParser) version() error {
	if err := p.expect("version"); err != nil {
		return err
	}
	switch p.tok.text {
	case `"v08"`:
	case `"v06"`, `"v07"`, `"v09"`:
		return &ParseError{Line: p.tok.line, Msg: "dump of format " + p.tok.text + ": Pollux uses v08 (DRBD 8.4)"}
	default:
		return p.fail(`"v08"`)
	}
	if err := p.next(); err != nil {
		return err
	}
	if err := p.expect(";"); err != nil {
		return err
	}
	if strings.HasPrefix(p.tok.text, "This_is_an_unclean") {
		return &ParseError{Line: p.tok.line, Msg: "this is the dump of unclean meta data, its bitmap cannot be trusted; apply-al first and dump again"}
	}
	return nil
}

func (p *dumpParser) uuids(d *DumpText) error {
	if err := p.expect("uuid", "{"); err != nil {
		return err
	}
	for _, to := range []*uint64{&d.UUIDs.Current, &d.UUIDs.Bitmap, &d.UUIDs.History[0], &d.UUIDs.History[1]} {
		v, err := p.number(64)
		if err != nil {
			return err
		}
		*to = v
		if err := p.expect(";"); err != nil {
			return err
		}
	}
	var flags uint64
	if err := p.field("flags", 32, &flags); err != nil {
		return err
	}
	d.Flags = Flags(flags)
	return p.expect("}")
}

func (p *dumpParser) bitmap(d *DumpText) error {
	if err := p.expect("bm", "{"); err != nil {
		return err
	}
	room := BitmapBytes(d.LASize) / 8
	for p.tok.text != "}" {
		line := p.tok.line
		run := WordRun{Count: 1}
		v, err := p.number(64)
		if err != nil {
			return err
		}
		if run.Word = v; p.tok.text == "times" {
			if err := p.next(); err != nil {
				return err
			}
			run.Count = v
			if run.Word, err = p.number(64); err != nil {
				return err
			}
		}
		if err := p.expect(";"); err != nil {
			return err
		}
		if run.Count > room {
			return &ParseError{Line: line, Msg: fmt.Sprintf("bitmap is longer than that of %d sectors", uint64(d.LASize))}
		}
		room -= run.Count
		if n := len(d.Bitmap); n > 0 && d.Bitmap[n-1].Word == run.Word {
			d.Bitmap[n-1].Count += run.Count
		} else if d.Bitmap = append(d.Bitmap, run); n >= maxRuns {
			return &ParseError{Line: line, Msg: fmt.Sprintf("more than %d runs of words", maxRuns)}
		}
	}
	if err := p.expect("}"); err != nil {
		return err
	}
	if p.tok.text != "" {
		return p.fail("end of file")
	}
	return nil
}

// Restore writes the metadata that d describes to dev, as drbdmeta restore-md
// does: with an empty activity log, and clean. l gives the place; the geometry
// of the activity log is d's. Words that d does not have are zero.
func Restore(dev Device, l Layout, d *DumpText) error {
	sb := Superblock{MDSize: l.MDSize, ALStripes: d.ALStripes, ALStripeSize4k: d.ALStripeSize4k}
	l, err := l.withStripes(sb)
	if err != nil {
		return err
	}
	sb = NewSuperblock(l)
	sb.LASize, sb.UUIDs, sb.DeviceUUID, sb.PeerMaxBio = d.LASize, d.UUIDs, d.DeviceUUID, d.PeerMaxBio
	sb.Flags = d.Flags | MDFALClean
	if err := l.Check(sb); err != nil {
		return err
	}
	return build(dev, l, sb, func() error { return writeRuns(dev, l, d) })
}

// writeRuns writes the bitmap of d in chunks. Zero words need no writing: the
// area has been cleared.
func writeRuns(dev Device, l Layout, d *DumpText) error {
	buf := make([]byte, 0, ioChunk)
	at := l.Bitmap
	end := l.Bitmap + l.BitmapBytes
	flush := func() error {
		part := buf[:min(int64(len(buf)), end-at)]
		if !allZero(part) {
			if _, err := dev.WriteAt(part, at); err != nil {
				return fmt.Errorf("write bitmap: %w", err)
			}
		}
		at += int64(len(buf))
		buf = buf[:0]
		return nil
	}
	for _, run := range d.Bitmap {
		for range run.Count {
			buf = binary.LittleEndian.AppendUint64(buf, run.Word)
			if len(buf) == cap(buf) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	for len(buf)%BlockSize != 0 {
		buf = append(buf, 0)
	}
	return flush()
}
