package arbitertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Time limits of the suite: generous, for members of a cluster on a busy machine.
const (
	stepLimit = time.Minute
	patience  = 30 * time.Second // beyond the TTL, for a lease to be seen to end
	poll      = 10 * time.Millisecond
)

// A Means says by what a copy that counts may take over from a silent owner.
type Means int

// The means.
const (
	ByLease Means = iota // the owner's lease has ended
	ByFence              // the owner was confirmed to be off; its lease never ends by itself
	ByForce              // the operator answers for it, nothing else will do
)

// Subject is one arbiter under test, empty, for the two nodes "a" and "b". With a
// nil func the tests that need it do nothing.
type Subject struct {
	// Open returns the arbiter as that node's manager opens it. The subject
	// closes what it opened.
	Open  func(t *testing.T, node string) arbiter.Arbiter
	Means Means
	// Advance moves the arbiter's clock; nil: real time passes, TTL is short.
	Advance func(d time.Duration)
	// Fence powers a node off and has the other one's fence agent confirm it.
	// Needed if Means is ByFence.
	Fence func(t *testing.T, node string)
	// Restart crashes the arbiter and starts it again; the suite opens anew.
	Restart func(t *testing.T)
	// Backup saves the arbiter's state; restore brings it back, as an
	// administrator would, and the suite opens anew.
	Backup func(t *testing.T) (restore func(t *testing.T))
	// Cut takes the arbiter away from both nodes until mend is called.
	Cut func(t *testing.T) (mend func())
}

// Run runs the suite, each test with an arbiter of its own, in parallel.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"FirstClaim", testFirstClaim},
		{"SetOfCopies", testSetOfCopies},
		{"ManyClaimants", testManyClaimants},
		{"Takeover", testTakeover},
		{"Renewals", testRenewals},
		{"Sessions", testSessions},
		{"Release", testRelease},
		{"Resign", testResign},
		{"Stale", testStale},
		{"Terms", testTerms},
		{"Force", testForce},
		{"LateAndTwice", testLateAndTwice},
		{"ManyResources", testManyResources},
		{"Restart", testRestart},
		{"Backup", testBackup},
		{"Canceled", testCanceled},
		{"Cut", testCut},
		{"Closed", testClosed},
		{"Watch", testWatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
			defer cancel()
			b := &bench{Subject: open(t), ctx: ctx, began: time.Now()}
			b.open(t)
			c.test(t, b)
		})
	}
}

var members = []string{"a", "b"}

// bench is what a test works with.
type bench struct {
	Subject
	ctx   context.Context
	a, b  arbiter.Arbiter
	began time.Time
	moved time.Duration
}

func (s *bench) open(t *testing.T) {
	t.Helper()
	s.a, s.b = s.Open(t, "a"), s.Open(t, "b")
}

// now and pass are the arbiter's time: real, or as far as it was moved.
func (s *bench) now() time.Duration {
	if s.Advance != nil {
		return s.moved
	}
	return time.Since(s.began)
}

func (s *bench) pass(d time.Duration) {
	if s.Advance != nil {
		s.moved += d
		s.Advance(d)
		return
	}
	time.Sleep(d) // a lease of a real arbiter ends by real time only
}

func claim(node string, seen uint64, in ...string) arbiter.Claim {
	return arbiter.Claim{Resource: "r", Node: node, Session: node + "1", Seen: seen, MinTerm: seen, InSync: in, Members: members, Generation: 0xa0}
}

// grant makes a claim that must be granted, and checks the answer.
func (s *bench) grant(t *testing.T, at arbiter.Arbiter, c arbiter.Claim) arbiter.Record {
	t.Helper()
	rec, err := at.Acquire(s.ctx, c)
	if err != nil {
		t.Fatalf("Acquire %+v: %v", c, err)
	}
	in := slices.Clone(c.InSync)
	slices.Sort(in)
	want := arbiter.Record{Resource: c.Resource, Term: rec.Term, Owner: c.Node, InSync: in, Generation: c.Generation}
	if diff := cmp.Diff(want, rec); diff != "" || rec.Term <= max(c.Seen, c.MinTerm) {
		t.Fatalf("Acquire %+v (-want +got), and a term above both:\n%s%+v", c, diff, rec)
	}
	return rec
}

// refuse makes a claim that must be refused for that reason, and checks that the
// refusal shows the record as it is.
func (s *bench) refuse(t *testing.T, at arbiter.Arbiter, c arbiter.Claim, reason error) {
	t.Helper()
	rec, err := at.Acquire(s.ctx, c)
	if !errors.Is(err, reason) {
		t.Fatalf("Acquire %+v = %+v, %v, want %v", c, rec, err, reason)
	}
	var refused *arbiter.RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("Acquire %+v: %v is no refusal", c, err)
	}
	if refused.Why == "" {
		t.Errorf("Acquire %+v is refused without a reason", c)
	}
	if diff := cmp.Diff(s.record(t, at, c.Resource), refused.Record); diff != "" {
		t.Errorf("a refusal shows another record (-is +shown):\n%s", diff)
	}
}

func (s *bench) view(t *testing.T, at arbiter.Arbiter, resources ...string) arbiter.View {
	t.Helper()
	v, err := at.Observe(s.ctx, resources...)
	if err != nil {
		t.Fatalf("Observe: %v", err)
	}
	if len(v.Records) != len(resources) {
		t.Fatalf("Observe %v shows %d records", resources, len(v.Records))
	}
	return v
}

func (s *bench) record(t *testing.T, at arbiter.Arbiter, resource string) arbiter.Record {
	t.Helper()
	return s.view(t, at, resource).Records[0]
}

// wantRecord checks what both nodes are shown.
func (s *bench) wantRecord(t *testing.T, want arbiter.Record) {
	t.Helper()
	for i, at := range []arbiter.Arbiter{s.a, s.b} {
		if diff := cmp.Diff(want, s.record(t, at, want.Resource)); diff != "" {
			t.Errorf("record as %s sees it (-want +got):\n%s", members[i], diff)
		}
	}
}

func (s *bench) renew(t *testing.T, at arbiter.Arbiter, node, session string) {
	t.Helper()
	if err := at.Renew(s.ctx, node, session); err != nil {
		t.Fatalf("Renew of %s: %v", node, err)
	}
}

// first has both nodes renew and a own the resource, both copies counting.
func (s *bench) first(t *testing.T) arbiter.Record {
	t.Helper()
	s.renew(t, s.a, "a", "a1")
	s.renew(t, s.b, "b", "b1")
	return s.grant(t, s.a, claim("a", 0, "a", "b"))
}

// takeover has b take over from a, which renewed at last at the time sent and is
// silent since, by whatever means the arbiter has; and no sooner.
func (s *bench) takeover(t *testing.T, c arbiter.Claim, sent time.Duration) arbiter.Record {
	t.Helper()
	switch s.Means {
	case ByFence:
		s.refuse(t, s.b, c, arbiter.ErrHeld)
		s.Fence(t, "a")
		c.Fenced = "a"
	case ByForce:
		s.refuse(t, s.b, c, arbiter.ErrHeld)
		c.Force = true
	case ByLease:
		for {
			rec, err := s.b.Acquire(s.ctx, c)
			after := s.now() - sent
			switch {
			case err == nil && after < s.b.TTL():
				t.Fatalf("takeover %v after the last renewal, the lease is for %v", after, s.b.TTL())
			case err == nil:
				return rec
			case !errors.Is(err, arbiter.ErrHeld):
				t.Fatalf("Acquire %+v: %v", c, err)
			case after > s.b.TTL()+patience:
				t.Fatalf("no takeover %v after the last renewal: %v", after, err)
			}
			s.pass(s.b.TTL() / 20)
		}
	}
	return s.grant(t, s.b, c)
}

func testFirstClaim(t *testing.T, s *bench) {
	s.wantRecord(t, arbiter.Record{Resource: "r"})
	s.refuse(t, s.a, claim("a", 0, "a"), arbiter.ErrStale)
	s.refuse(t, s.a, claim("a", 0, "b"), arbiter.ErrInvalid)
	s.refuse(t, s.a, claim("a", 3, "a", "b"), arbiter.ErrChanged)
	rec := s.first(t)
	s.wantRecord(t, rec)
	s.refuse(t, s.b, claim("b", 0, "a", "b"), arbiter.ErrChanged)
	s.wantRecord(t, rec)
	s.wantRecord(t, arbiter.Record{Resource: "other"})
}

func testSetOfCopies(t *testing.T, s *bench) {
	rec := s.first(t)
	for i := range 3 {
		alone := s.grant(t, s.a, claim("a", rec.Term, "a"))
		if !alone.Sole() || alone.Counts("b") {
			t.Errorf("round %d: %+v isn't the owner's alone", i, alone)
		}
		s.wantRecord(t, alone)
		rec = s.grant(t, s.a, claim("a", alone.Term, "b", "a"))
		s.wantRecord(t, rec)
	}
	stranger := claim("a", rec.Term, "a", "c")
	s.refuse(t, s.a, stranger, arbiter.ErrInvalid)
}

// testManyClaimants has all of them claim what they saw: one wins, each time.
func testManyClaimants(t *testing.T, s *bench) {
	rec := s.first(t)
	const claimants, rounds = 6, 4
	for round := range rounds {
		owner := s.a
		if rec.Owner == "b" {
			owner = s.b
		}
		if err := owner.Release(s.ctx, "r", rec.Owner, rec.Term); err != nil {
			t.Fatal(err)
		}
		type answer struct {
			rec arbiter.Record
			err error
		}
		answers := make(chan answer, claimants)
		for i := range claimants {
			node, at := "a", s.a
			if i%2 == 1 {
				node, at = "b", s.b
			}
			c := claim(node, rec.Term, "a", "b")
			c.Generation = uint64(0x100 + 2*i) // tells them apart
			go func() {
				r, err := at.Acquire(s.ctx, c)
				answers <- answer{r, err}
			}()
		}
		var won []arbiter.Record
		for range claimants {
			a := <-answers
			switch {
			case a.err == nil:
				won = append(won, a.rec)
			case !errors.Is(a.err, arbiter.ErrChanged):
				t.Errorf("round %d: %v, want ErrChanged", round, a.err)
			}
		}
		if len(won) != 1 {
			t.Fatalf("round %d: %d of %d claims were granted: %+v", round, len(won), claimants, won)
		}
		if won[0].Term <= rec.Term {
			t.Fatalf("round %d: term %d after %d", round, won[0].Term, rec.Term)
		}
		rec = won[0]
		s.wantRecord(t, rec)
	}
}

func testTakeover(t *testing.T, s *bench) {
	rec := s.first(t)
	sent := s.now()
	s.renew(t, s.a, "a", "a1")
	over := s.takeover(t, claim("b", rec.Term, "b"), sent)
	if over.Owner != "b" || !over.Sole() || over.Term <= rec.Term {
		t.Fatalf("takeover gave %+v after %+v", over, rec)
	}
	if diff := cmp.Diff(over, s.record(t, s.b, "r")); diff != "" {
		t.Errorf("record after the takeover (-want +got):\n%s", diff)
	}
	// The old owner wakes up and goes on.
	if _, err := s.a.Acquire(s.ctx, claim("a", rec.Term, "a")); !errors.Is(err, arbiter.ErrChanged) &&
		(s.Means != ByFence || !errors.Is(err, arbiter.ErrUnreachable)) {
		t.Errorf("the overtaken owner's claim: %v", err)
	}
	if got := s.record(t, s.b, "r"); got.Owner != "b" || got.Term != over.Term {
		t.Errorf("the overtaken owner changed the record to %+v", got)
	}
}

// testRenewals: an owner that renews in time is never overtaken.
func testRenewals(t *testing.T, s *bench) {
	rec := s.first(t)
	sent := s.now()
	s.renew(t, s.a, "a", "a1")
	step := s.a.TTL() / 3
	for s.now() < s.a.TTL()*5/2 {
		s.pass(step)
		if _, err := s.b.Acquire(s.ctx, claim("b", rec.Term, "b")); err == nil {
			if late := s.now() - sent; late < s.a.TTL() {
				t.Fatalf("b took over from an owner that renewed %v ago", late)
			}
			return // the machine stood still for a whole lease
		} else if !errors.Is(err, arbiter.ErrHeld) {
			t.Fatal(err)
		}
		sent = s.now()
		s.renew(t, s.a, "a", "a1")
	}
	if l := s.view(t, s.b).Lease("a"); !l.Alive || l.Session != "a1" {
		t.Errorf("lease of a node that renews: %+v", l)
	}
}

// testSessions: a new session of a node takes the place of the old one, which
// can't end it.
func testSessions(t *testing.T, s *bench) {
	rec := s.first(t)
	again := s.Open(t, "a")
	s.renew(t, again, "a", "a2")
	if l := s.view(t, s.a).Lease("a"); !l.Alive || l.Session != "a2" {
		t.Fatalf("lease after a new session began: %+v", l)
	}
	if err := again.Resign(s.ctx, "a", "a1"); err != nil {
		t.Fatalf("Resign of an ended session: %v", err)
	}
	if l := s.view(t, s.a).Lease("a"); !l.Alive || l.Session != "a2" {
		t.Fatalf("the old session ended the new one: %+v", l)
	}
	s.refuse(t, s.b, claim("b", rec.Term, "b"), arbiter.ErrHeld)
	if l := s.view(t, s.a).Lease("nobody"); l.Alive {
		t.Errorf("a node that never renewed is alive: %+v", l)
	}
}

func testRelease(t *testing.T, s *bench) {
	rec := s.first(t)
	for _, wrong := range []struct {
		resource, node string
		term           uint64
	}{{"r", "b", rec.Term}, {"r", "a", rec.Term - 1}, {"r", "a", rec.Term + 1}, {"other", "a", 0}, {"other", "a", 1}} {
		if err := s.a.Release(s.ctx, wrong.resource, wrong.node, wrong.term); !errors.Is(err, arbiter.ErrChanged) {
			t.Errorf("Release %+v: %v, want ErrChanged", wrong, err)
		}
	}
	s.wantRecord(t, rec)
	if err := s.a.Release(s.ctx, "r", "a", rec.Term); err != nil {
		t.Fatal(err)
	}
	released := rec
	released.Released = true
	s.wantRecord(t, released)
	// The owner lives on, and yet the other may go ahead at once, with both copies.
	over := s.grant(t, s.b, claim("b", rec.Term, "a", "b"))
	s.wantRecord(t, over)
	// And back: the owner itself, after its own release.
	if err := s.b.Release(s.ctx, "r", "b", over.Term); err != nil {
		t.Fatal(err)
	}
	s.wantRecord(t, s.grant(t, s.b, claim("b", over.Term, "a", "b")))
}

func testResign(t *testing.T, s *bench) {
	rec := s.first(t)
	if err := s.a.Resign(s.ctx, "a", "a1"); err != nil {
		t.Fatal(err)
	}
	if l := s.view(t, s.b).Lease("a"); l.Alive {
		t.Errorf("a node that resigned is alive: %+v", l)
	}
	if s.Means == ByForce {
		s.refuse(t, s.b, claim("b", rec.Term, "b"), arbiter.ErrHeld)
		return
	}
	s.grant(t, s.b, claim("b", rec.Term, "b"))
}

// testStale: a copy that lacks acknowledged writes never takes over by itself.
func testStale(t *testing.T, s *bench) {
	rec := s.first(t)
	rec = s.grant(t, s.a, claim("a", rec.Term, "a"))
	if err := s.a.Release(s.ctx, "r", "a", rec.Term); err != nil {
		t.Fatal(err)
	}
	if err := s.a.Resign(s.ctx, "a", "a1"); err != nil {
		t.Fatal(err)
	}
	s.refuse(t, s.b, claim("b", rec.Term, "b"), arbiter.ErrStale)
	both := claim("b", rec.Term, "a", "b")
	s.refuse(t, s.b, both, arbiter.ErrStale)
	rec.Released = true
	s.wantRecord(t, rec)
}

// testTerms: a term is above all that a replica has promised.
func testTerms(t *testing.T, s *bench) {
	c := claim("a", 0, "a", "b")
	c.MinTerm = 41
	s.renew(t, s.a, "a", "a1")
	rec := s.grant(t, s.a, c)
	for seen := rec.Term; rec.Term < 60; seen = rec.Term {
		c := claim("a", seen, "a", "b")
		c.MinTerm = seen + 5
		rec = s.grant(t, s.a, c)
	}
	c = claim("a", rec.Term, "a", "b")
	c.MinTerm = 1<<62 + 1
	s.wantRecord(t, s.grant(t, s.a, c))
}

func testForce(t *testing.T, s *bench) {
	rec := s.first(t)
	rec = s.grant(t, s.a, claim("a", rec.Term, "a"))
	c := claim("b", rec.Term, "b")
	s.refuse(t, s.b, c, arbiter.ErrStale)
	c.Force = true
	over := s.grant(t, s.b, c)
	s.wantRecord(t, over)
	s.refuse(t, s.a, claim("a", rec.Term, "a"), arbiter.ErrChanged)
}

// testLateAndTwice: what arrives again, or long after it was sent, does nothing.
func testLateAndTwice(t *testing.T, s *bench) {
	c := claim("a", 0, "a", "b")
	s.renew(t, s.a, "a", "a1")
	one := s.grant(t, s.a, c)
	s.refuse(t, s.a, c, arbiter.ErrChanged)
	two := s.grant(t, s.a, claim("a", one.Term, "a"))
	s.refuse(t, s.a, c, arbiter.ErrChanged)
	s.refuse(t, s.a, claim("a", one.Term, "a", "b"), arbiter.ErrChanged)
	if err := s.a.Release(s.ctx, "r", "a", one.Term); !errors.Is(err, arbiter.ErrChanged) {
		t.Errorf("a late Release: %v, want ErrChanged", err)
	}
	s.wantRecord(t, two)
	for range 2 {
		if err := s.a.Release(s.ctx, "r", "a", two.Term); err != nil {
			t.Errorf("Release, also for the second time: %v", err)
		}
	}
	two.Released = true
	s.wantRecord(t, two)
}

func testManyResources(t *testing.T, s *bench) {
	s.renew(t, s.a, "a", "a1")
	s.renew(t, s.b, "b", "b1")
	const resources = 40
	var names []string
	done := make(chan error, resources)
	for i := range resources {
		name := fmt.Sprintf("vm-%d.disk_%d", i, i%3)
		names = append(names, name)
		node, at := "a", s.a
		if i%2 == 1 {
			node, at = "b", s.b
		}
		c := claim(node, 0, "a", "b")
		c.Resource, c.Generation = name, uint64(2*i)
		go func() {
			_, err := at.Acquire(s.ctx, c)
			done <- err
		}()
	}
	for range resources {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(names) // the answer is in the order of the question
	for i, r := range s.view(t, s.b, names...).Records {
		n := resources - 1 - i
		want := arbiter.Record{Resource: names[i], Term: r.Term, Owner: members[n%2], InSync: members, Generation: uint64(2 * n)}
		if diff := cmp.Diff(want, r); diff != "" || r.Term == 0 {
			t.Errorf("record %d (-want +got):\n%s", i, diff)
		}
	}
}

// testRestart: records survive, and whoever may have been alive is so for a TTL.
func testRestart(t *testing.T, s *bench) {
	if s.Restart == nil {
		return
	}
	rec := s.first(t)
	s.pass(s.a.TTL() / 2)
	s.renew(t, s.a, "a", "a1")
	sent := s.now()
	s.Restart(t)
	s.open(t)
	s.wantRecord(t, rec)
	over := s.takeover(t, claim("b", rec.Term, "b"), sent)
	if over.Owner != "b" || over.Term <= rec.Term {
		t.Errorf("takeover after a restart gave %+v", over)
	}
}

// testBackup: an arbiter that knows less than the replicas decides nothing, until
// all of them together fill it.
func testBackup(t *testing.T, s *bench) {
	if s.Backup == nil {
		return
	}
	old := s.first(t)
	restore := s.Backup(t)
	rec := s.grant(t, s.a, claim("a", old.Term, "a"))
	rec = s.grant(t, s.a, claim("a", rec.Term, "a", "b"))
	rec = s.grant(t, s.a, claim("a", rec.Term, "a"))
	restore(t)
	s.open(t)
	s.wantRecord(t, old)
	late := claim("b", old.Term, "b")
	late.MinTerm = rec.Term
	s.refuse(t, s.b, late, arbiter.ErrBehind)
	owner := claim("a", old.Term, "a")
	owner.MinTerm = rec.Term
	s.refuse(t, s.a, owner, arbiter.ErrBehind)
	owner.InSync = members
	filled := s.grant(t, s.a, owner)
	if filled.Term <= rec.Term {
		t.Errorf("filled with term %d, the replicas had %d", filled.Term, rec.Term)
	}
	s.wantRecord(t, filled)
}

// unreachable makes every call, and each must say that nothing is known.
func unreachable(t *testing.T, ctx context.Context, at arbiter.Arbiter) {
	t.Helper()
	_, acquire := at.Acquire(ctx, claim("a", 0, "a", "b"))
	_, observe := at.Observe(ctx, "r")
	for verb, err := range map[string]error{
		"Acquire": acquire, "Observe": observe, "Renew": at.Renew(ctx, "a", "a1"),
		"Release": at.Release(ctx, "r", "a", 1), "Resign": at.Resign(ctx, "a", "a1"),
	} {
		if !errors.Is(err, arbiter.ErrUnreachable) {
			t.Errorf("%s: %v, want ErrUnreachable", verb, err)
		}
	}
}

func testCanceled(t *testing.T, s *bench) {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	unreachable(t, ctx, s.a)
	s.wantRecord(t, arbiter.Record{Resource: "r"})
	s.first(t)
}

// testCut: without an arbiter every call ends with its context, and later all is
// as it was.
func testCut(t *testing.T, s *bench) {
	if s.Cut == nil {
		return
	}
	rec := s.first(t)
	mend := s.Cut(t)
	ctx, cancel := context.WithTimeout(s.ctx, 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.a.Acquire(ctx, claim("a", rec.Term, "a")); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("Acquire: %v, want ErrUnreachable", err)
	}
	if err := s.a.Release(ctx, "r", "a", rec.Term); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("Release: %v, want ErrUnreachable", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("two calls with 100 ms took %v", took)
	}
	mend()
	// Whether they were carried out nobody knows: one looks again.
	var got arbiter.Record
	for {
		v, err := s.a.Observe(s.ctx, "r")
		if err == nil {
			got = v.Records[0]
			break
		}
		if s.ctx.Err() != nil {
			t.Fatalf("Observe, with the arbiter back: %v", err)
		}
		time.Sleep(poll) // the way to it needs a moment to come back
	}
	if got.Owner != "a" || got.Term < rec.Term {
		t.Errorf("after the cut the record is %+v, it was %+v", got, rec)
	}
	s.grant(t, s.a, claim("a", got.Term, "a", "b"))
}

func testClosed(t *testing.T, s *bench) {
	c := s.Open(t, "b")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	unreachable(t, s.ctx, c)
}

func testWatch(t *testing.T, s *bench) {
	ctx, cancel := context.WithCancel(s.ctx)
	changed, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		s.b.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	rec := s.first(t)
	for round := range 3 {
		for told := false; !told; {
			rec = s.grant(t, s.a, claim("a", rec.Term, "a", "b"))
			select {
			case <-changed:
				told = true
			case <-time.After(poll): // the watch may begin after the claim
			}
			if ctx.Err() != nil {
				t.Fatalf("round %d: nobody tells of new terms", round)
			}
		}
	}
	cancel()
	<-ended
}
