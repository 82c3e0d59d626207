package repltest

import (
	"fmt"
	"math"
	"slices"

	"github.com/pollux-project/pollux/replication"
)

// A registerOp is what one client's operation did to one sector.
type registerOp struct {
	sector     int
	write      bool
	value      stamp
	start, end int64 // µs; end MaxInt64: a write of unknown fate
}

// checkRegister reports whether the operations on each sector could have
// happened one after the other, each at one moment between its start and its
// end, so that every read gave what was written last: whether the sector is
// linearizable as a register. No value is written twice.
//
// It is the test of Gibbons and Korach: all operations of one value are a zone,
// from the first end to the last start. If that is a stretch of time the value
// was there all along (forward), otherwise it was there at some moment between
// (backward). Two forward zones must not overlap, and no backward zone may lie
// inside a forward one.
func checkRegister(ops []registerOp) error {
	slices.SortStableFunc(ops, func(a, b registerOp) int {
		if a.sector != b.sector {
			return a.sector - b.sector
		}
		return int(int64(a.value) - int64(b.value))
	})
	var zones []zone
	for i := 0; i < len(ops); {
		sector := ops[i].sector
		zones = zones[:0]
		for i < len(ops) && ops[i].sector == sector {
			j := i
			for j < len(ops) && ops[j].sector == sector && ops[j].value == ops[i].value {
				j++
			}
			z, err := zoneOf(ops[i:j])
			if err != nil {
				return err
			}
			zones = append(zones, z)
			i = j
		}
		if err := checkZones(sector, zones); err != nil {
			return err
		}
	}
	return nil
}

// A zone is all that is known of one value of one sector.
type zone struct {
	value   stamp
	from    int64 // the first end
	to      int64 // the last start
	useless bool  // a write of unknown fate that nobody has read
}

func zoneOf(ops []registerOp) (zone, error) {
	z := zone{value: ops[0].value, from: math.MaxInt64, to: math.MinInt64, useless: true}
	began := int64(math.MaxInt64)
	for _, o := range ops {
		if o.write {
			began = o.start
		}
		z.useless = z.useless && o.write && o.end == math.MaxInt64
		z.from, z.to = min(z.from, o.end), max(z.to, o.start)
	}
	for _, o := range ops {
		if !o.write && o.end < began {
			return z, fmt.Errorf("sector %d was read as %d before that was written", o.sector, o.value)
		}
	}
	return z, nil
}

func (z zone) forward() bool { return z.from < z.to }

func checkZones(sector int, zones []zone) error {
	for i, f := range zones {
		if f.useless || !f.forward() {
			continue
		}
		for k, o := range zones {
			if k == i || o.useless {
				continue
			}
			overlap := o.forward() && o.from < f.to && f.from < o.to
			inside := !o.forward() && f.from < o.to && o.from < f.to
			if overlap || inside {
				return fmt.Errorf("sector %d is no register: it held %d from %d to %d µs, and yet %d was there between", sector, f.value, f.from, f.to, o.value)
			}
		}
	}
	return nil
}

// A session is what the clients of one Primary did, from its promotion to its
// end.
type session struct {
	begin int64
	ops   []registerOp
	void  bool // something was lost that may be lost
}

// sampled are the sectors that a session follows: what happens to one of a
// request happens to its neighbours.
const sampled = 4

// record notes what q did to its sectors; got is what a read has got, nil for
// a write.
func (m *Model) record(q *Request, got []stamp) {
	s := &m.sessions[q.node.id]
	if s.void || m.w.cfg.Net[q.node.id].AllowTwoPrimaries || q.node.protocol != 'C' {
		return // the other's clients write too, or less is promised
	}
	o := registerOp{start: q.start, end: m.w.now, write: got == nil, value: q.ID}
	if o.write && (!q.Done || q.Err != nil) {
		o.end = math.MaxInt64
	}
	for i := (q.Sector + sampled - 1) / sampled * sampled; i < q.Sector+q.Count; i += sampled {
		if o.sector = q.Vol<<32 + i; got != nil {
			o.value = got[i-q.Sector]
		} else if q.Op != replication.OpWrite {
			o.value = 0
		}
		s.ops = append(s.ops, o)
	}
}

// endSession checks what the clients of n saw, and begins anew.
func (m *Model) endSession(n *Node) {
	s := &m.sessions[n.id]
	for _, q := range m.pending {
		if q.node == n && q.writes() {
			m.record(q, nil)
		}
	}
	if !s.void {
		if err := checkRegister(m.completeOps(s)); err != nil {
			m.w.fail("%s: %v", n.name, err)
		}
	}
	*s = session{begin: m.w.now, ops: s.ops[:0]}
}

// completeOps adds to a session the writes of what was there before it. Zeroes
// do not tell which write they are from: in a session that trims they are left
// out.
func (m *Model) completeOps(s *session) []registerOp {
	zeroed := false
	written := map[stamp]bool{}
	for _, o := range s.ops {
		zeroed = zeroed || o.write && o.value == 0
		written[o.value] = written[o.value] || o.write
	}
	ops := s.ops
	if zeroed {
		ops = slices.DeleteFunc(ops, func(o registerOp) bool { return o.value == 0 })
	}
	for _, o := range ops {
		if !o.write && !written[o.value] {
			old := registerOp{sector: o.sector, write: true, value: o.value, start: math.MinInt64, end: s.begin}
			if q := m.reqs[o.value]; q != nil && q.end >= s.begin {
				old.end = math.MaxInt64 // of unknown fate: it may have come later
			}
			ops = append(ops, old)
		}
	}
	return ops
}
