package arbiter

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDecide has a row for each reason to grant or to refuse.
func TestDecide(t *testing.T) {
	both, a, b := []string{"a", "b"}, []string{"a"}, []string{"b"}
	rec := func(term uint64, owner string, in []string) Record {
		return Record{Resource: "r", Term: term, Owner: owner, InSync: in}
	}
	released := rec(4, "a", both)
	released.Released = true
	claim := func(node string, seen, minTerm uint64, in []string) Claim {
		return Claim{Resource: "r", Node: node, Seen: seen, MinTerm: minTerm, InSync: in, Members: both, Generation: 7}
	}
	fenced, forced := claim("b", 4, 4, b), claim("b", 4, 4, b)
	fenced.Fenced, forced.Force = "a", true
	anew := claim("b", 5, 5, []string{"b", "c"})
	anew.Members = []string{"a", "b", "c"}
	for _, c := range []struct {
		name  string
		rec   Record
		alive bool // the owner's lease
		claim Claim
		want  error
		term  uint64
	}{
		{"the first claim needs both copies", rec(0, "", nil), false, claim("a", 0, 0, both), nil, 1},
		{"the first claim of one copy", rec(0, "", nil), false, claim("a", 0, 0, a), ErrStale, 0},
		{"the owner goes on alone", rec(4, "a", both), true, claim("a", 4, 4, a), nil, 5},
		{"the owner goes on alone after its lease", rec(4, "a", both), false, claim("a", 4, 4, a), nil, 5},
		{"the owner counts its peer again", rec(5, "a", a), true, claim("a", 5, 5, both), nil, 6},
		{"takeover while the owner lives", rec(4, "a", both), true, claim("b", 4, 4, b), ErrHeld, 0},
		{"takeover from a silent owner", rec(4, "a", both), false, claim("b", 4, 4, b), nil, 5},
		{"takeover by a stale copy", rec(5, "a", a), false, claim("b", 5, 5, b), ErrStale, 0},
		{"takeover that counts a copy anew", rec(5, "a", both), false, anew, ErrInvalid, 0},
		{"takeover after a clean end", released, true, claim("b", 4, 4, both), nil, 5},
		{"takeover after a confirmed fence", rec(4, "a", both), true, fenced, nil, 5},
		{"the operator answers for it", rec(4, "a", both), true, forced, nil, 5},
		{"an overtaken claim", rec(6, "b", b), true, claim("a", 4, 4, a), ErrChanged, 0},
		{"an arbiter from a backup, one copy", rec(2, "a", both), false, claim("b", 2, 6, b), ErrBehind, 0},
		{"an arbiter from a backup, its owner alone", rec(2, "a", both), true, claim("a", 2, 6, a), ErrBehind, 0},
		{"an arbiter from a backup is filled by both", rec(2, "a", a), false, claim("b", 2, 6, both), nil, 7},
		{"an arbiter that lost everything", rec(0, "", nil), false, claim("b", 0, 6, both), nil, 7},
		{"an arbiter from a backup, and its owner lives", rec(2, "a", both), true, claim("b", 2, 6, both), ErrHeld, 0},
		{"a copy of a stranger", rec(4, "a", both), true, claim("a", 4, 4, []string{"a", "c"}), ErrInvalid, 0},
		{"a claim for another node", rec(4, "a", both), false, claim("b", 4, 4, a), ErrInvalid, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Decide(c.rec, Lease{Node: c.rec.Owner, Alive: c.alive}, c.claim)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			var refused *RefusedError
			if errors.As(err, &refused) {
				if diff := cmp.Diff(c.rec, refused.Record); diff != "" {
					t.Errorf("a refusal shows another record (-is +shown):\n%s", diff)
				}
				return
			}
			want := Record{Resource: "r", Term: c.term, Owner: c.claim.Node, InSync: c.claim.InSync, Generation: 7}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}
