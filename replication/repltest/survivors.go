package repltest

import (
	"fmt"
	"math/bits"
)

// A Survival is a class of subsets of what a node had written and not synced
// when its power went. The unit is the sector: a block of 4 KiB, or of the
// activity log, may be found torn.
type Survival uint8

// The classes. Order is that of the disks, data before metadata, and within one
// that of the writes (data) or of the sectors (metadata).
const (
	NothingSurvives    Survival = iota
	HalfSurvives                // which, says CrashPoint.Seed
	EverythingSurvives          // all that was written before the cut, synced or not
	FirstHalfSurvives
	SecondHalfSurvives
	EverySecondSurvives
	DataSurvives     // and nothing of the metadata
	MetadataSurvives // and nothing of the data
	OneSurvives      // number CrashPoint.Index
	AllButOneSurvive // all but number CrashPoint.Index
)

func (s Survival) String() string {
	names := []string{"nothing", "a half", "everything", "the first half", "the second half", "every second", "the data", "the metadata", "one", "all but one"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("Survival(%d)", uint8(s))
}

// survivors counts through what one node had not synced.
type survivors struct {
	class   Survival
	index   int
	total   int
	next    int
	isMeta  bool
	atRatio func() bool // HalfSurvives: chance decides
}

// survives is asked once for each unsynced write, in order.
func (s *survivors) survives() bool {
	k := s.next
	s.next++
	switch s.class {
	case NothingSurvives:
		return false
	case EverythingSurvives:
		return true
	case FirstHalfSurvives:
		return 2*k < s.total
	case SecondHalfSurvives:
		return 2*k >= s.total
	case EverySecondSurvives:
		return k%2 == 0
	case DataSurvives:
		return !s.isMeta
	case MetadataSurvives:
		return s.isMeta
	case OneSurvives:
		return k == s.index
	case AllButOneSurvive:
		return k != s.index
	default: // HalfSurvives
		return s.atRatio()
	}
}

// unsynced is how many writes of n may or may not survive a power cut now.
func (n *Node) unsynced() (total int) {
	for _, v := range n.Vols {
		total += len(v.data.cache)
		for _, word := range v.meta.unsynced {
			total += bits.OnesCount64(word)
		}
	}
	return total
}

// losePower leaves on n's disks what a power cut does: each is replaced by its
// CrashClone.
func (n *Node) losePower(keep float64) {
	s := &survivors{class: HalfSurvives, total: n.unsynced(), atRatio: func() bool { return n.w.dice.chance(keep) }}
	if c := &n.w.crash; c.victim == n {
		s.class, s.index = c.point.Survives, c.point.Index
	}
	for _, v := range n.Vols {
		s.isMeta = false
		v.data.CrashClone(s.survives)
	}
	for _, v := range n.Vols {
		s.isMeta = true
		v.meta.CrashClone(s.survives)
	}
}

// SurvivalPoints are the crash points of one class each at a place p of a
// scenario, where so many writes were unsynced: a few of them, or every class,
// and of the single ones every sector up to a limit.
func SurvivalPoints(p CrashPoint, unsynced int, every bool) (points []CrashPoint) {
	add := func(class Survival, index int) {
		p.Survives, p.Index = class, index
		points = append(points, p)
	}
	p.Seed = uint64(p.Step)
	add(NothingSurvives, 0)
	if unsynced > 0 {
		add(HalfSurvives, 0)
	}
	if !every || unsynced == 0 {
		return points
	}
	for class := EverythingSurvives; class <= MetadataSurvives; class++ {
		add(class, 0)
	}
	const single = 12
	for i := 0; i < unsynced; i += max(1, unsynced/single) {
		add(OneSurvives, i)
		add(AllButOneSurvive, i)
	}
	return points
}
