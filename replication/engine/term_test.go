package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/blockdev"
	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// An owner that is replaced: what it still answers, it has from its peer; then it
// is frozen, and comes back as the new owner's peer. Nobody forgets a promise.
func TestTermTakeover(t *testing.T) {
	a, b := syncedPair(t, nil)
	if err := a.PrimaryWithTerm(5, false); err != nil {
		t.Fatal(err)
	}
	c := a.open()
	c.write(0, pattern(1, 8192))
	if s := b.Status().Term; s.Term != 5 || s.Promised != 5 || s.Unknown != "" {
		t.Errorf("beta knows %+v of term 5", s)
	}
	if err := b.PromiseTerm(6); err != nil {
		t.Fatal(err)
	}
	if err := b.PromiseTerm(5); err == nil || !strings.Contains(err.Error(), "promised") {
		t.Errorf("a lower promise: %v", err)
	}
	a.await("frozen", func(s Status) bool { return slices.Contains(s.Suspended, "term") && s.Conn < drbd.Connected })
	late := c.submit(blockdev.OpWrite, 4096, pattern(2, 4096), 4096)
	if err := b.PrimaryWithTerm(6, true); err != nil {
		t.Fatal(err)
	}
	d := b.open()
	d.write(4096, pattern(3, 4096))
	d.flush()
	if c.s.isDone(late) {
		t.Error("a write under term 5 was answered after term 6 was promised")
	}
	a.crash()
	a.up()
	a.await("the new owner's peer", inSync)
	if s := a.Status(); s.Role != drbd.Secondary || s.Term.Promised != 6 {
		t.Errorf("alpha came back as %v, %+v", s.Role, s.Term)
	}
	assertEqualDisks(t, a, b)

	b.crash()
	b.up()
	b.await("Primary under its term again", func(s Status) bool { return s.Role == drbd.Primary && s.Term.Owned && s.Term.Term == 6 })
}

// The state directory's record is lost, or the metadata was written by another
// program: no promotion under a term until it was learnt again.
func TestTermLost(t *testing.T) {
	a, b := syncedPair(t, nil)
	if err := b.PromiseTerm(3); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(b.cfg.StateDir, "r0-0.term")
	bytes, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := meta.DecodeTermRecord(bytes); err != nil || rec.Promised != 3 || rec.NameHash != meta.NameHash("r0") {
		t.Errorf("the state directory has %+v, %v", rec, err)
	}
	a.crash() // nobody to learn it from
	b.crash()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	b.up()
	if s := b.Status().Term; s.Promised != 3 || s.Unknown == "" {
		t.Errorf("without the state directory: %+v", s)
	}
	var refused *replication.RequestError
	if err := b.PrimaryWithTerm(4, true); !errors.As(err, &refused) || !strings.Contains(err.Error(), "unknown") {
		t.Errorf("promotion under a term: %v", err)
	}
	if err := b.PromiseTerm(4); err != nil {
		t.Fatal(err)
	}
	if err := b.PrimaryWithTerm(4, true); err != nil {
		t.Errorf("after the arbiter told its term: %v", err)
	}
}
