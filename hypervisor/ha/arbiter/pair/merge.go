package pair

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// merge decides which of two entries of one resource holds, when the nodes meet:
// mine is this node's, theirs the other one's. The other one calls it with the two
// exchanged, or with the result as theirs, and comes to the same record.
func merge(mine, theirs *entry) *entry {
	switch {
	case mine.ID == theirs.ID:
		if mine.Doubt == nil && slices.Equal(mine.Common, []string{mine.ID}) {
			return mine
		}
		return settled(mine, []string{mine.ID})
	case mine.Doubt != nil && mine.Doubt.ID == theirs.ID:
		return adopt(theirs, mine.Floor)
	case theirs.Doubt != nil && theirs.Doubt.ID == mine.ID:
		return mine // I took their proposal; they learn that from mine
	case slices.Contains(mine.Common, theirs.ID): // they have not changed it since
		if mine.Doubt == nil {
			return mine
		}
		return settled(mine, mine.Common)
	case slices.Contains(theirs.Common, mine.ID):
		return adopt(theirs, mine.Floor)
	}
	return split(mine, theirs)
}

// settled is an entry whose proposal, if there was one, never arrived: it is
// refused from now on.
func settled(mine *entry, common []string) *entry {
	return &entry{Record: mine.Record, ID: mine.ID, Common: common, Floor: mine.top(), Split: mine.Split}
}

// adopt is the peer's entry as this node's own.
func adopt(theirs *entry, floor uint64) *entry {
	return &entry{Record: theirs.Record, ID: theirs.ID, Common: []string{theirs.ID}, Floor: max(floor, theirs.Floor), Split: theirs.Split}
}

// split is an entry that says nothing, in place of two that both sides have
// changed without the other: like a resource that was never claimed, with a term
// that is above all.
func split(mine, theirs *entry) *entry {
	ids := []string{mine.ID, theirs.ID}
	slices.Sort(ids)
	sum := sha256.Sum256([]byte(ids[0] + " " + ids[1]))
	name := mine.Resource
	if name == "" {
		name = theirs.Resource
	}
	id := hex.EncodeToString(sum[:8])
	return &entry{
		Record: arbiter.Record{Resource: name}, ID: id, Common: append(ids, id),
		Floor: max(mine.top(), theirs.top()), Split: true,
	}
}
