package pair_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/pair/pairtest"
)

func newSide(cfg pair.Config) (pairtest.Side, error) { return pair.New(cfg) }

func nodes() []string { return []string{"a", "b"} }

func claim(node string, seen uint64, in ...string) arbiter.Claim {
	return arbiter.Claim{Resource: "r", Node: node, Session: "s", Seen: seen, InSync: in, Members: nodes()}
}

// world is two hosts with a copy each, and what was acknowledged. A host writes as
// its arbiter's record permits: alone if that names it the sole owner, else only
// what both copies take.
type world struct {
	t    *testing.T
	rng  *rand.Rand
	rig  *pairtest.Rig
	log  []string
	on   map[string]bool
	run  map[string]bool  // the host's service runs
	data map[string][]int // writes that the copy has
	done []int            // writes that were acknowledged
	cut  bool             // the data cable
	late []func()         // requests that are still under way
	next int
	took int // takeovers
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), rig: pairtest.NewRig(t, newSide),
		on: map[string]bool{"a": true, "b": true}, run: map[string]bool{}, data: map[string][]int{},
	}
	w.rig.Wire = func(from, to string, request []byte, deliver func([]byte) ([]byte, error)) ([]byte, error) {
		lost := errors.New("lost")
		switch w.rng.IntN(10) {
		case 0:
			w.say("%s -> %s lost", from, to)
			return nil, lost
		case 1:
			w.say("%s -> %s carried out, answer lost", from, to)
			_, _ = deliver(request) // nobody hears
			return nil, lost
		case 2:
			w.say("%s -> %s late", from, to)
			w.late = append(w.late, func() { _, _ = deliver(request) }) // nobody waits for it
			return nil, lost
		}
		return deliver(request)
	}
	for _, n := range nodes() {
		w.rig.Start(t, n)
	}
	return w
}

func (w *world) say(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(w.log, "\n"))
}

func (w *world) record(node string) arbiter.Record {
	v, err := w.rig.Side(node).Observe(context.Background(), "r")
	if err != nil {
		w.fail("Observe on %s: %v", node, err)
	}
	return v.Records[0]
}

func (w *world) has(node string) bool {
	return !slices.ContainsFunc(w.done, func(n int) bool { return !slices.Contains(w.data[node], n) })
}

// write is one write of a service that runs.
func (w *world) write(node string) {
	rec := w.record(node)
	if !w.on[node] || !w.run[node] || rec.Owner != node {
		return
	}
	other := pairtest.Other(node)
	w.next++
	switch {
	case rec.Sole():
		w.data[node] = append(w.data[node], w.next)
		w.done = append(w.done, w.next)
		w.say("%s writes %d alone under term %d", node, w.next, rec.Term)
	case !w.cut && w.on[other] && w.rig.Side(other) != nil && w.record(other).Term <= rec.Term:
		if !slices.Equal(w.data[node], w.data[other]) {
			w.data[other] = slices.Clone(w.data[node]) // resync
		}
		for _, n := range nodes() {
			w.data[n] = append(w.data[n], w.next)
		}
		w.done = append(w.done, w.next)
		w.say("%s writes %d on both", node, w.next)
	}
}

// claim is what a manager may want in its state.
func (w *world) claim(node string) {
	side, other := w.rig.Side(node), pairtest.Other(node)
	rec := w.record(node)
	c := claim(node, rec.Term, node)
	switch {
	case rec.Term == 0:
		c.InSync = nodes()
	case rec.Owner == node && rec.Sole() && !w.cut && w.on[other]:
		// All is copied over, and from here on both copies take each write: so the
		// service stops going on alone first.
		w.data[other] = slices.Clone(w.data[node])
		c.InSync = nodes()
		w.run[node] = false
	case rec.Owner != node && (w.run[node] || !w.has(node) && w.rng.IntN(2) == 0):
		return
	}
	was := rec
	got, err := side.Acquire(context.Background(), c)
	w.say("%s claims %v over %+v: %+v, %v", node, c.InSync, was, got, err)
	now := w.record(node)
	if now.Owner == node && now.Term > 0 && !now.Released {
		w.run[node] = true
	}
	if err != nil {
		return
	}
	if was.Owner != node && was.Owner != "" {
		w.took++
	}
	if !w.has(node) {
		w.fail("%s was granted %+v, and its copy has %v of %v", node, got, w.data[node], w.done)
	}
}

func (w *world) step() {
	node := nodes()[w.rng.IntN(2)]
	other := pairtest.Other(node)
	switch n := w.rng.IntN(100); {
	case n < 5:
		w.cut = !w.cut
		w.say("data cable cut: %v", w.cut)
	case n < 10:
		isCut := w.rng.IntN(2) == 0
		w.rig.Cut(isCut)
		w.say("control cable cut: %v", isCut)
	case n < 16 && len(w.late) > 0:
		i := w.rng.IntN(len(w.late))
		w.say("a late request arrives")
		f := w.late[i]
		w.late = slices.Delete(w.late, i, i+1)
		f()
	case !w.on[node] && n < 60:
		w.on[node] = true
		w.rig.Start(w.t, node)
		w.say("%s boots", node)
	case !w.on[node]:
	case n < 20:
		w.rig.Stop(node)
		w.rig.Start(w.t, node)
		w.say("the manager on %s starts anew", node)
	case n < 28 && w.on[other]:
		s := w.rig.Side(node).(*pair.Arbiter)
		boot, isOff, err := s.Arm()
		w.say("%s shoots %s: %v, %v", node, other, isOff, err)
		if err == nil && !isOff {
			w.off(other)
			if err := s.ConfirmOff(boot); err != nil {
				w.say("not confirmed: %v", err)
			}
		}
	case n < 31:
		w.off(node)
		w.say("%s loses power", node)
	case n < 35 && !w.run[node]:
		if rec := w.record(node); rec.Owner == node {
			err := w.rig.Side(node).Release(context.Background(), "r", node, rec.Term)
			w.say("%s releases term %d: %v", node, rec.Term, err)
		}
	case n < 38:
		w.run[node] = false
		err := w.rig.Side(node).Resign(context.Background(), node, "s")
		w.say("%s resigns: %v", node, err)
		w.rig.Stop(node)
		w.rig.Start(w.t, node)
	case n < 48:
		_ = w.rig.Side(node).Renew(context.Background(), node, "s") // it has no errors that matter here
		w.say("%s renews", node)
	case n < 75:
		w.claim(node)
	default:
		w.write(node)
	}
}

func (w *world) off(node string) {
	w.on[node], w.run[node] = false, false
	w.rig.PowerOff(node)
}

// TestNothingLost: whatever happens to messages, cables, managers and hosts, who is
// granted a resource has all that was acknowledged; and in the end all is well.
func TestNothingLost(t *testing.T) {
	seeds, took, done := 300, 0, 0
	if testing.Short() {
		seeds = 60
	}
	for seed := range uint64(seeds) {
		w := newWorld(t, seed)
		for range 120 {
			w.step()
		}
		w.heal(t)
		took += w.took
		done += len(w.done)
	}
	t.Logf("%d histories with %d takeovers and %d acknowledged writes", seeds, took, done)
	if took < seeds/10 || done < seeds {
		t.Error("too little happens: the test is blind")
	}
}

// heal mends everything, and both nodes agree on an owner soon.
func (w *world) heal(t *testing.T) {
	w.rig.Wire = nil
	w.rig.Cut(false)
	w.cut, w.late = false, nil
	for _, n := range nodes() {
		if !w.on[n] {
			w.on[n] = true
			w.rig.Start(t, n)
		}
	}
	for round := range 3 {
		for _, n := range nodes() {
			if err := w.rig.Side(n).Renew(context.Background(), n, fmt.Sprintf("heal%d", round)); err != nil {
				w.fail("Renew: %v", err)
			}
		}
	}
	a, b := w.record("a"), w.record("b")
	if a.Term != b.Term || a.Owner != b.Owner || !slices.Equal(a.InSync, b.InSync) {
		w.fail("mended, a sees %+v, b sees %+v", a, b)
	}
	owner := a.Owner
	if owner == "" {
		owner = "a"
		if a.Term != 0 || len(w.done) > 0 {
			w.fail("nobody owns it any more: %+v", a)
		}
	}
	got, err := w.rig.Side(owner).Acquire(context.Background(), claim(owner, a.Term, nodes()...))
	if err != nil || !w.has(owner) {
		w.fail("mended, the owner %s is not granted both copies, or lacks %v of %v: %+v, %v", owner, w.data[owner], w.done, got, err)
	}
}

// TestFile: a file of another node, of another format, or half of one is refused;
// so is a directory that can't be written.
func TestFile(t *testing.T) {
	rig := pairtest.NewRig(t, newSide)
	cfg := pair.Config{Cluster: "c", Node: "a", Peer: "b", File: rig.File("a"), Boot: "1", TTL: 1, Caller: nowhere{}}
	if _, err := pair.New(cfg); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*pair.Config)
	}{
		{"another node", func(c *pair.Config) { c.Node = "x" }},
		{"another cluster", func(c *pair.Config) { c.Cluster = "x" }},
		{"no such directory", func(c *pair.Config) { c.File = "/nonexistent/file" }},
		{"no peer", func(c *pair.Config) { c.Peer = "" }},
		{"itself", func(c *pair.Config) { c.Peer = "a" }},
	} {
		bad := cfg
		c.change(&bad)
		if _, err := pair.New(bad); err == nil {
			t.Errorf("%s: New accepts it", c.name)
		}
	}
	for _, text := range []string{"", "{", `{"format":9,"cluster":"c","node":"a"}`, `{"format":1,"cluster":"c","node":"a","entries":{"r":null}}`} {
		if err := os.WriteFile(cfg.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pair.New(cfg); err == nil {
			t.Errorf("New accepts the file %q", text)
		}
	}
}

type nowhere struct{}

func (nowhere) Call(context.Context, []byte) ([]byte, error) { return nil, errors.New("nobody there") }

// TestServe: what a stranger or a broken peer sends changes nothing.
func TestServe(t *testing.T) {
	rig := pairtest.NewRig(t, newSide)
	a := rig.Start(t, "a")
	rig.Start(t, "b")
	if _, err := a.Acquire(t.Context(), claim("a", 0, "a", "b")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(rig.File("a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{
		"", "{", "null", `{}`,
		`{"kind":"sync","cluster":"x","from":"b","boot":"b-1","run":9999999999}`,
		`{"kind":"sync","cluster":"c","from":"z","boot":"b-1","run":9999999999}`,
		`{"kind":"hello","cluster":"c","from":"b","boot":"b-1","run":1}`,
		`{"kind":"sync","cluster":"c","from":"b","boot":"b-1","run":9999999999,"number":9,"entries":{"r":null}}`,
		`{"kind":"sync","cluster":"c","from":"b","boot":"b-1","run":9999999999,"number":9,"entries":{"r":{"resource":"q"}}}`,
		`{"kind":"propose","cluster":"c","from":"b","boot":"b-1","run":9999999999,"resource":"r"}`,
	} {
		if answer, err := a.Serve(t.Context(), []byte(request)); err == nil {
			t.Errorf("%s is answered: %s", request, answer)
		}
	}
	// A proposal with a number that was never given.
	answer, err := a.Serve(t.Context(), []byte(`{"kind":"propose","cluster":"c","from":"b","boot":"b-1","run":9999999999,"number":1,"resource":"r","old":"","new":{"resource":"r","term":99,"owner":"b","in_sync":["b"],"id":"z"}}`))
	if err == nil && !strings.Contains(string(answer), "refused") {
		t.Errorf("a proposal out of nowhere is answered: %s", answer)
	}
	after, err := os.ReadFile(rig.File("a"))
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("the records have changed:\n%s\n%s", before, after)
	}
}
