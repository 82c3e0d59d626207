// Package records defines what the demo's guest writes, and judges whether
// what was acknowledged is still there. The guest and the judge share nothing
// else.
//
// Record n (1, 2, 3, …) is the n-th block of 512 bytes of one file, readable
// as text:
//
//	offset  bytes  content
//	0       14     "pollux-record "
//	14      10     number, decimal, with leading zeros
//	24      5      " run "
//	29      16     run, hexadecimal: a random number that each boot of the guest draws
//	45      1      " "
//	46      456    filling that depends on number and run
//	502     1      " "
//	503     8      CRC-32C, hexadecimal, of the 503 bytes before it
//	511     1      newline
//
// After the record's fsync the guest prints "ACK n crc" with its checksum. The
// checksum is what makes a lost record visible even if a later run of the
// guest, not finding it, writes another one with the same number.
package records

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// Size of a record, in bytes: one sector, the unit that disks write whole.
const Size = 512

const (
	magic    = "pollux-record "
	fillFrom = 46
	sumFrom  = 503
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrEmpty says that a block holds nothing but zeros: nothing was ever written
// there, or it was lost.
var ErrEmpty = errors.New("the block is empty")

// Record is what one block says.
type Record struct {
	Number uint64 // from 1
	Run    uint64
	Sum    uint32 // CRC-32C
}

// Offset returns where record number stands in its file, in bytes.
func Offset(number uint64) int64 { return int64(number-1) * Size }

// Encode returns the block of record number.
func Encode(number, run uint64) ([]byte, Record) {
	b := make([]byte, 0, Size)
	b = fmt.Appendf(b, "%s%010d run %016x ", magic, number, run)
	for i := len(b); i < sumFrom-1; i++ {
		b = append(b, 'a'+byte((number*7+run+uint64(i)*(number%5+1))%26))
	}
	b = append(b, ' ')
	sum := crc32.Checksum(b, castagnoli)
	b = fmt.Appendf(b, "%08x\n", sum)
	return b, Record{Number: number, Run: run, Sum: sum}
}

// Decode reads one block. Damaged ones, whichever byte it is, are errors.
func Decode(b []byte) (Record, error) {
	if len(b) != Size {
		return Record{}, fmt.Errorf("the block has %d bytes, want %d", len(b), Size)
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		return Record{}, ErrEmpty
	}
	if !bytes.HasPrefix(b, []byte(magic)) {
		return Record{}, fmt.Errorf("the block doesn't start with %q", magic)
	}
	sum := crc32.Checksum(b[:sumFrom], castagnoli)
	if want := fmt.Appendf(nil, "%08x\n", sum); !bytes.Equal(b[sumFrom:], want) {
		return Record{}, fmt.Errorf("the checksum is %q, want %q", b[sumFrom:], want)
	}
	number, err := strconv.ParseUint(string(b[14:24]), 10, 64)
	if err != nil {
		return Record{}, fmt.Errorf("number: %w", err)
	}
	run, err := strconv.ParseUint(string(b[29:45]), 16, 64)
	if err != nil {
		return Record{}, fmt.Errorf("run: %w", err)
	}
	return Record{Number: number, Run: run, Sum: sum}, nil
}

// Damage is a block of the file that isn't the record that belongs there.
type Damage struct {
	Number uint64 // of the record that belongs there
	Err    error
}

// Read reads a whole file of records. Block n-1 must hold record n; one that
// doesn't is reported, and a last block that isn't whole is reported as well.
// The error is that of r.
func Read(r io.Reader) (map[uint64]Record, []Damage, error) {
	found := make(map[uint64]Record)
	var damaged []Damage
	block := make([]byte, Size)
	for number := uint64(1); ; number++ {
		n, err := io.ReadFull(r, block)
		if errors.Is(err, io.EOF) {
			return found, damaged, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return found, damaged, fmt.Errorf("read record %d: %w", number, err)
		}
		rec, err := Decode(block[:n])
		if err == nil && rec.Number != number {
			err = fmt.Errorf("the block holds record %d", rec.Number)
		}
		if err != nil {
			damaged = append(damaged, Damage{Number: number, Err: err})
			continue
		}
		found[number] = rec
	}
}

// Ack is one acknowledgement as the guest printed it.
type Ack struct {
	Number uint64
	Sum    uint32
}

// Line returns the acknowledgement as a line for the console.
func (a Ack) Line() string { return fmt.Sprintf("ACK %d %08x\n", a.Number, a.Sum) }

// ParseAck reads a line of the console, without its newline.
func ParseAck(line string) (Ack, bool) {
	fields := strings.Fields(line)
	if len(fields) != 3 || fields[0] != "ACK" || len(fields[2]) != 8 {
		return Ack{}, false
	}
	number, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil || number == 0 {
		return Ack{}, false
	}
	sum, err := strconv.ParseUint(fields[2], 16, 32)
	if err != nil {
		return Ack{}, false
	}
	return Ack{Number: number, Sum: uint32(sum)}, true
}

// Acks returns the acknowledgements in a console log, in their order. A last
// line without its end doesn't count: the guest had not finished saying it.
func Acks(console string) []Ack {
	var acks []Ack
	for line := range strings.Lines(console) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		if a, ok := ParseAck(strings.TrimRight(line, "\r\n")); ok {
			acks = append(acks, a)
		}
	}
	return acks
}

// Loss is an acknowledged record that isn't there.
type Loss struct {
	Ack Ack
	Why string
}

// Judge compares what was acknowledged with what is there.
func Judge(acks []Ack, found map[uint64]Record, damaged []Damage) []Loss {
	broken := make(map[uint64]error)
	for _, d := range damaged {
		broken[d.Number] = d.Err
	}
	var lost []Loss
	for _, a := range acks {
		rec, ok := found[a.Number]
		switch {
		case ok && rec.Sum == a.Sum:
		case ok:
			lost = append(lost, Loss{a, fmt.Sprintf("another record, %08x, stands in its place", rec.Sum)})
		case broken[a.Number] != nil:
			lost = append(lost, Loss{a, broken[a.Number].Error()})
		default:
			lost = append(lost, Loss{a, "the file ends before it"})
		}
	}
	return lost
}
