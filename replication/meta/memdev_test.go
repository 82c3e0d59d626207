package meta

import (
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A memDevice is a sparse device in memory. Writes become durable with Sync.
// After so many steps (writes and syncs) the power fails: if left is 0, the
// write that meets it is torn after tear bytes and everything after fails.
type memDevice struct {
	size     int64
	pages    map[int64]*[BlockSize]byte // as read
	durable  map[int64]*[BlockSize]byte
	unsynced []int64
	left     int // steps until the power fails, < 0: never
	tear     int
	writes   int
	syncs    int
}

var errPower = errors.New("power failure")

func newMemDevice(size int64) *memDevice {
	return &memDevice{
		size: size, left: -1,
		pages: make(map[int64]*[BlockSize]byte), durable: make(map[int64]*[BlockSize]byte),
	}
}

func (d *memDevice) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, fmt.Errorf("read of %d bytes at %d of %d", len(p), off, d.size)
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		part := p[n:min(len(p), n+int(BlockSize-at%BlockSize))]
		if page := d.pages[at/BlockSize]; page != nil {
			copy(part, page[at%BlockSize:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	return len(p), nil
}

func (d *memDevice) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(p), off, d.size)
	}
	d.writes++
	whole := p
	var err error
	if d.left == 0 {
		p, err = p[:min(len(p), d.tear)], errPower
	} else if d.left > 0 {
		d.left--
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		part := p[n:min(len(p), n+int(BlockSize-at%BlockSize))]
		page := new([BlockSize]byte)
		if old := d.pages[at/BlockSize]; old != nil {
			*page = *old
		}
		copy(page[at%BlockSize:], part)
		d.pages[at/BlockSize] = page
		d.unsynced = append(d.unsynced, at/BlockSize)
		n += len(part)
	}
	return len(whole), err
}

func (d *memDevice) Sync() error {
	d.syncs++
	if d.left == 0 {
		return errPower
	}
	if d.left > 0 {
		d.left--
	}
	for _, at := range d.unsynced {
		d.durable[at] = d.pages[at]
	}
	d.unsynced = d.unsynced[:0]
	return nil
}

// crash returns the device as it comes up again: every block that had not been
// synced is the new or the old one, as keep says.
func (d *memDevice) crash(keep func() bool) *memDevice {
	c := newMemDevice(d.size)
	for at, page := range d.durable {
		c.pages[at], c.durable[at] = page, page
	}
	for _, at := range d.unsynced {
		if keep() {
			c.pages[at], c.durable[at] = d.pages[at], d.pages[at]
		}
	}
	return c
}

// samples are the images unpacked so far; no test changes one.
var samples = map[string]*memDevice{}

// sample returns a copy of an image of testdata.
func sample(t testing.TB, name string) *memDevice {
	t.Helper()
	if samples[name] == nil {
		samples[name] = unpackSample(t, name)
	}
	return samples[name].crash(nil)
}

func unpackSample(t testing.TB, name string) *memDevice {
	t.Helper()
	d := newMemDevice(0)
	unpack(t, name, func(off int64, b []byte) {
		d.size = off + int64(len(b))
		if allZero(b) {
			return
		}
		for ; len(b) > 0; b = b[BlockSize:] {
			page := [BlockSize]byte(b[:BlockSize])
			d.pages[off/BlockSize], d.durable[off/BlockSize] = &page, &page
			off += BlockSize
		}
	})
	return d
}

func unpack(t testing.TB, name string, each func(off int64, b []byte)) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".img.bz2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bzip2.NewReader(f)
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			each(off, buf[:n])
			off += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}
