package arbiter

import "slices"

// Terms come from two sources that may not know of each other: the arbiter, and a
// person who overrides it while it is away. No two owners may ever have one term, so
// the numbers are divided: those that end in 998 and 999 are a person's, on the first
// and on the second node of a resource, all others the arbiter's. Our own constants.
const (
	termBlock = 1000
	overrides = 2 // the last ones of each block, one for each copy
)

// NextTerm is the term that an arbiter hands out after one.
func NextTerm(after uint64) uint64 {
	if last := after + 1; last%termBlock < termBlock-overrides {
		return last
	}
	return (after/termBlock + 1) * termBlock
}

// OverrideTerm is the term of a person's override on node, one of the two members,
// who sees that after is the highest term: no arbiter and no override on the other
// node ever makes the same one. It leaves room for what the arbiter may have handed
// out unseen.
func OverrideTerm(after uint64, node string, members []string) uint64 {
	term := (after/termBlock+2)*termBlock - overrides
	if node != slices.Min(members) {
		term++
	}
	return term
}
