package wiretest

import (
	"fmt"
	"strconv"
	"strings"
)

// A Poke is one operation of the program poke: what an application in the guest
// does to a volume.
type Poke struct {
	Volume int
	Below  bool // on the backing device, behind DRBD's back
	Op     byte // w write, W write with FUA, r read, f flush, d discard, z zero out, p punch a hole
	Offset int64
	Length int64
	Fill   byte // every byte of what is written
}

// Pokes are the operations of a command, in rows: the operations of one row are
// under way together, one row after the other. ok is false if the command is
// none of poke's, or a loop of the shell.
//
//	poke /dev/drbd0 w 8k 4k 11 f                       two rows of one
//	poke /dev/drbd0 P 8 2m 4k 16 4k                    one row of eight
//	poke /dev/drbd0 w 0 4k 01 & poke /dev/drbd1 ...    one row of two
func Pokes(command string) (rows [][]Poke, ok bool) {
	if strings.Contains(command, "while") || !strings.HasPrefix(command, "poke /dev/") {
		return nil, false
	}
	for part := range strings.SplitSeq(command, ";") {
		var beside [][]Poke
		for one := range strings.SplitSeq(part, "&") {
			words := strings.Fields(one)
			if len(words) == 0 || words[0] == "wait" {
				continue
			}
			row, err := pokes(words[1:])
			if err != nil {
				return nil, false
			}
			for i, together := range row {
				if i == len(beside) {
					beside = append(beside, nil)
				}
				beside[i] = append(beside[i], together...)
			}
		}
		rows = append(rows, beside...)
	}
	return rows, true
}

func pokes(words []string) (rows [][]Poke, err error) {
	device := words[0]
	at := Poke{Below: strings.HasPrefix(device, "/dev/mapper/")}
	if at.Volume, err = strconv.Atoi(device[len(device)-1:]); err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	next := func() string {
		if len(words) == 0 {
			return ""
		}
		w := words[0]
		words = words[1:]
		return w
	}
	number := func() int64 {
		n, e := Bytes(next())
		if e != nil {
			err = e
		}
		return n
	}
	fill := func() byte {
		b, e := strconv.ParseUint(next(), 16, 8)
		if e != nil {
			err = e
		}
		return byte(b)
	}
	words = words[1:]
	for len(words) > 0 && err == nil {
		p := at
		op := next()
		p.Op = op[0]
		switch op {
		case "f":
			rows = append(rows, []Poke{p})
		case "w", "W":
			p.Offset, p.Length, p.Fill = number(), number(), fill()
			rows = append(rows, []Poke{p})
		case "r", "d", "z", "p":
			p.Offset, p.Length = number(), number()
			rows = append(rows, []Poke{p})
		case "P":
			n := number()
			p.Op = 'w'
			p.Offset, p.Length, p.Fill = number(), number(), fill()
			step := number()
			row := make([]Poke, n)
			for i := range row {
				row[i] = p
				row[i].Offset += int64(i) * step
			}
			rows = append(rows, row)
		default:
			return nil, fmt.Errorf("poke does not know %q", op)
		}
	}
	return rows, err
}

// Bytes is a number of bytes with a unit: "512", "4k", "1m".
func Bytes(text string) (int64, error) {
	unit := int64(1)
	if n, ok := strings.CutSuffix(text, "k"); ok {
		unit, text = 1<<10, n
	} else if n, ok := strings.CutSuffix(text, "m"); ok {
		unit, text = 1<<20, n
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n * unit, err
}

// GI is what a line "gi VOLUME ..." of a node says about its metadata.
type GI struct {
	Volume          int
	Current, Bitmap uint64
	History         [2]uint64
	Consistent      bool
	WasUpToDate     bool
	Primary         bool
	Connected       bool
}

// ParseGI takes the Text of a Note.
func ParseGI(text string) (gi GI, ok bool) {
	rest, ok := strings.CutPrefix(text, "gi ")
	if !ok {
		return gi, false
	}
	f := strings.Fields(rest)
	if len(f) < 2 {
		return gi, false // the node has no disk
	}
	var err error
	if gi.Volume, err = strconv.Atoi(f[0]); err != nil {
		return gi, false
	}
	parts := strings.Split(f[len(f)-1], ":")
	if len(parts) < 8 {
		return gi, false
	}
	for i, to := range []*uint64{&gi.Current, &gi.Bitmap, &gi.History[0], &gi.History[1]} {
		if *to, err = strconv.ParseUint(parts[i], 16, 64); err != nil {
			return gi, false
		}
	}
	for i, to := range []*bool{&gi.Consistent, &gi.WasUpToDate, &gi.Primary, &gi.Connected} {
		*to = parts[4+i] == "1"
	}
	return gi, true
}

// Proc is what a line of /proc/drbd says about a node.
type Proc struct {
	Conn, Role, Peer, Disk, PeerDisk string
	Protocol                         string // "" while there is no connection
	OutOfSyncKiB                     int64
}

// ParseProc takes the Text of a Note.
func ParseProc(text string) (p Proc, ok bool) {
	f := strings.Fields(text)
	if len(f) < 4 || !strings.HasPrefix(f[0], "cs:") {
		return p, false
	}
	for i, w := range f {
		key, value, _ := strings.Cut(w, ":")
		switch key {
		case "cs":
			p.Conn = value
		case "ro":
			p.Role, p.Peer, _ = strings.Cut(value, "/")
		case "ds":
			p.Disk, p.PeerDisk, _ = strings.Cut(value, "/")
		case "oos":
			p.OutOfSyncKiB, _ = strconv.ParseInt(value, 10, 64) // a line that is cut has none
		case "A", "B", "C":
			if i == 3 {
				p.Protocol = w
			}
		}
	}
	return p, true
}
