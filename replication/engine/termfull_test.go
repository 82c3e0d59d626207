package engine

import (
	"os"
	"strings"
	"testing"
)

// A state directory that is full (here: away) while terms change: what was promised is
// on disk all the same, no further term is taken, and none after a crash; once there is
// room again, the next one is.
func TestTermStateDirFull(t *testing.T) {
	a, b := syncedPair(t, nil)
	if err := a.PrimaryWithTerm(5, false); err != nil {
		t.Fatal(err)
	}
	dir := a.cfg.StateDir
	full := func(is bool) {
		t.Helper()
		from, to := dir+".away", dir
		if is {
			from, to = to, from
		}
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	b.crash()
	a.await("frozen", func(s Status) bool { return s.Term.Frozen != "" })
	full(true)
	if err := a.PrimaryWithTerm(6, true); err != nil && !strings.Contains(err.Error(), "state directory") && !strings.Contains(err.Error(), "remember") {
		t.Errorf("a term that the metadata has: %v", err)
	}
	if s := a.Status().Term; s.Promised != 6 || s.Unknown == "" {
		t.Errorf("with a full state directory: %+v", s)
	}
	if err := a.PrimaryWithTerm(7, true); err == nil {
		t.Error("another term, while it is full")
	}
	full(false)
	_ = a.PrimaryWithTerm(7, true) // has it written; refused if that is not done yet
	a.await("told that there is room", func(s Status) bool { return s.Term.Unknown == "" })
	if err := a.PrimaryWithTerm(8, true); err != nil {
		t.Errorf("another term, once there is room: %v", err)
	}
	if s := a.Status().Term; s.Promised != 8 || s.Unknown != "" {
		t.Errorf("once there is room: %+v", s)
	}
	a.crash()
	a.up()
	if s := a.Status().Term; s.Promised != 8 || s.Unknown != "" {
		t.Errorf("after a crash: %+v", s)
	}
}
