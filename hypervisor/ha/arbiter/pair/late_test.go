package pair_test

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair/pairtest"
)

// TestLateCopy: what one side says of all its records arrives after two changes that
// it has proposed since, as a request or as an answer. It is old, and no change that
// both sides have made apart.
func TestLateCopy(t *testing.T) {
	for _, asked := range []string{"a", "b"} { // who asks for all records
		t.Run(asked, func(t *testing.T) {
			rig := pairtest.NewRig(t, newSide)
			a, b := rig.Open(t, "a"), rig.Open(t, "b")
			ctx := t.Context()
			rec, err := a.Acquire(ctx, claim("a", 0, "a", "b"))
			if err != nil {
				t.Fatal(err)
			}
			rig.Stop("a") // both are to meet again
			rig.Stop("b")
			rig.Start(t, "a")
			rig.Start(t, "b")
			changes := func() {
				if err := a.Release(ctx, "r", "a", rec.Term); err != nil {
					t.Error(err)
				}
				if rec, err = a.Acquire(ctx, claim("a", rec.Term, "a", "b")); err != nil {
					t.Error(err)
				}
			}
			copies := 0
			rig.Wire = func(from, _ string, request []byte, deliver func([]byte) ([]byte, error)) ([]byte, error) {
				if from != asked || !strings.Contains(string(request), `"kind":"sync"`) || copies > 0 {
					return deliver(request)
				}
				copies++
				if asked == "a" { // the request is late: a has a number from b's own
					if err := b.Renew(ctx, "b", "b1"); err != nil {
						t.Error(err)
					}
					changes()
					return deliver(request)
				}
				answer, err := deliver(request)
				changes()
				return answer, err
			}
			who := map[string]arbiter.Arbiter{"a": a, "b": b}[asked]
			if err := who.Renew(ctx, asked, "s"); err != nil {
				t.Error(err)
			}
			rig.Wire = nil
			if copies == 0 {
				t.Fatal("nobody asked for all records")
			}
			v, err := b.Observe(ctx, "r")
			if err != nil || v.Records[0].Term != rec.Term || v.Records[0].Released || strings.Contains(v.Detail, "both nodes have changed") {
				t.Errorf("b has %+v, %v, want term %d", v, err, rec.Term)
			}
		})
	}
}
