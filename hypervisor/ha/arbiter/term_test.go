package arbiter

import "testing"

// TestTermsNeverCollide lets the arbiter and the operators of both nodes make terms
// from the same number, and from each other's: no two of them are equal, and each is
// higher than what it was made from.
func TestTermsNeverCollide(t *testing.T) {
	members := []string{"b", "a"}
	for start := uint64(0); start < 3000; start++ {
		made := map[uint64]string{}
		make := func(who string, after, term uint64) uint64 {
			if other := made[term]; term <= after || other != "" && other != who {
				t.Fatalf("%s makes term %d after %d, as %q did", who, term, after, other)
			}
			made[term] = who
			return term
		}
		arb := start
		for range 5 {
			arb = make("the arbiter", arb, NextTerm(arb))
		}
		a, b := start, start
		for range 3 {
			a = make("a person on a", a, OverrideTerm(a, "a", members))
			b = make("a person on b", b, OverrideTerm(b, "b", members))
			make("the arbiter", a, NextTerm(a))
			make("the arbiter", b, NextTerm(b))
			make("a person on a", b, OverrideTerm(b, "a", members))
		}
		if OverrideTerm(start, "a", members) < start+900 {
			t.Fatalf("an override after %d leaves no room for what the arbiter gave unseen", start)
		}
	}
}

// TestDecideAfterOverride: the arbiter's next term is never a person's.
func TestDecideAfterOverride(t *testing.T) {
	rec := Record{Resource: "r", Term: 997, Owner: "a", InSync: []string{"a", "b"}}
	c := Claim{Resource: "r", Node: "a", Seen: 997, MinTerm: 997, InSync: []string{"a"}, Members: rec.InSync}
	if got, err := Decide(rec, Lease{}, c); err != nil || got.Term != 1000 {
		t.Errorf("after term 997: %+v, %v; 998 and 999 are the operators'", got, err)
	}
}
