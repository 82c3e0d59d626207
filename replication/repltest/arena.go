package repltest

import (
	"encoding/binary"
	"math/bits"
)

// An arena is the memory of a World. A worker that runs one history after the
// other gives each the same: nothing of one is reached from the next.
type arena struct {
	tables  [][]uint32
	taken   int
	bytes   []byte
	stamps  []stamp
	payload [20][][]byte // by log2 of its sectors; between the stamps they hold zeroes
	lent    []*dataDisk
	caches  [][]sectorVersion
	disks   [][]byte
	opened  int
	queue   []Item
}

// reset takes back everything that was given out.
func (m *arena) reset() {
	m.taken, m.opened = 0, 0
	for _, d := range m.lent {
		m.caches = append(m.caches, d.cache[:0])
	}
	m.lent = m.lent[:0]
	m.bytes, m.stamps = m.bytes[:0], m.stamps[:0]
}

// table is n zeroes, for as long as the World lives.
func (m *arena) table(n int) []uint32 {
	if m.taken == len(m.tables) {
		m.tables = append(m.tables, nil)
	}
	t := &m.tables[m.taken]
	m.taken++
	if cap(*t) < n {
		*t = make([]uint32, n)
	} else {
		*t = (*t)[:n]
		clear(*t)
	}
	return *t
}

// lend gives d an empty cache, for as long as the World lives.
func (m *arena) lend(d *dataDisk) {
	m.lent = append(m.lent, d)
	if n := len(m.caches); n > 0 {
		d.cache = m.caches[n-1]
		m.caches = m.caches[:n-1]
	}
}

// disk is n bytes of zeroes, for as long as the World lives.
func (m *arena) disk(n int) []byte {
	if m.opened == len(m.disks) {
		m.disks = append(m.disks, nil)
	}
	t := &m.disks[m.opened]
	m.opened++
	if cap(*t) < n {
		*t = make([]byte, n)
	} else {
		*t = (*t)[:n]
		clear(*t)
	}
	return *t
}

const arenaChunk = 1 << 16

// header is room for n bytes, for as long as the World lives.
func (m *arena) header(n int) []byte {
	if len(m.bytes)+n > cap(m.bytes) {
		m.bytes = make([]byte, 0, max(arenaChunk, n))
	}
	start := len(m.bytes)
	m.bytes = m.bytes[:start+n]
	return m.bytes[start : start+n : start+n]
}

// list is room for n stamps, for as long as the World lives.
func (m *arena) list(n int) []stamp {
	if len(m.stamps)+n > cap(m.stamps) {
		m.stamps = make([]stamp, 0, max(arenaChunk, n))
	}
	start := len(m.stamps)
	m.stamps = m.stamps[:start+n]
	return m.stamps[start : start+n : start+n]
}

// buffer is room for the payload of so many sectors. Only stamps may be
// written into it: one at the start of each sector.
func (m *arena) buffer(sectors int) []byte {
	k := bits.Len(uint(max(sectors, 1) - 1))
	pool := &m.payload[k]
	if n := len(*pool); n > 0 {
		b := (*pool)[n-1]
		*pool = (*pool)[:n-1]
		return b[:sectors*sectorSize]
	}
	return make([]byte, sectors*sectorSize, sectorSize<<k)
}

// free takes a buffer back.
func (m *arena) free(b []byte) {
	k := bits.Len(uint(cap(b)/sectorSize)) - 1
	if k >= 0 && cap(b) == sectorSize<<k {
		m.payload[k] = append(m.payload[k], b)
	}
}

// stampsOf reads the stamps of a payload: the first bytes of each sector.
func (m *arena) stampsOf(data []byte) []stamp {
	s := m.list(len(data) / sectorSize)
	for i := range s {
		s[i] = binary.BigEndian.Uint32(data[i*sectorSize:])
	}
	return s
}

// payloadOf is a payload with these stamps.
func (m *arena) payloadOf(s []stamp) []byte {
	data := m.buffer(len(s))
	for i, v := range s {
		binary.BigEndian.PutUint32(data[i*sectorSize:], v)
	}
	return data
}

// copyPayload copies the stamps of a payload; nothing else is in it.
func copyPayload(to, from []byte) {
	for i := 0; i+4 <= len(from); i += sectorSize {
		copy(to[i:i+4], from[i:i+4])
	}
}
