package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// PromiseTerm promises never again to accept writes of a lower term than this
// one, which an arbiter gave somebody. It is on disk when it returns. An equal
// promise is good again and again; a lower one is refused.
func (e *Engine) PromiseTerm(term uint64) error {
	return e.do(replication.Command{Kind: replication.CmdPromiseTerm, Term: term})
}

// PrimaryWithTerm makes this node the owner of a term, or gives a Primary a new
// one. sole says that the arbiter's record for this term names no other copy:
// then it may write without its peer. Everything of it is on disk when it returns.
func (e *Engine) PrimaryWithTerm(term uint64, sole bool) error {
	if term == 0 {
		return e.refuse(codeInvalid, "%s: Failure: (%d) Invalid configuration request: terms begin with 1", e.cfg.Resource, codeInvalid)
	}
	if err := e.do(replication.Command{Kind: replication.CmdPrimary, Term: term, Sole: sole}); err != nil {
		return err
	}
	return e.resume.setPrimary(e, true)
}

// PrimaryByVote is Primary under the next term that neither copy has promised,
// for a resource whose manager hands out none: see replication.Command.Vote.
func (e *Engine) PrimaryByVote(force bool) error {
	if err := e.do(replication.Command{Kind: replication.CmdPrimary, Vote: true, Force: force}); err != nil {
		return err
	}
	return e.resume.setPrimary(e, true)
}

// ForceTerm is PrimaryWithTerm by an operator who answers for data that are not
// known to be current; a term that is unknown counts as learnt.
func (e *Engine) ForceTerm(term uint64, sole bool) error {
	if err := e.PromiseTerm(term); err != nil {
		return err
	}
	if err := e.do(replication.Command{Kind: replication.CmdPrimary, Term: term, Sole: sole, Force: true}); err != nil {
		return err
	}
	return e.resume.setPrimary(e, true)
}

// Freeze has all I/O of a Primary wait, reads too, until Thaw or a new term; it is
// for the failover manager, whose resources have terms.
func (e *Engine) Freeze() error { return e.do(replication.Command{Kind: replication.CmdFreeze}) }

// Thaw ends Freeze. What the terms freeze stays frozen.
func (e *Engine) Thaw() error { return e.do(replication.Command{Kind: replication.CmdThaw}) }

// Failsafe has this Primary ask its peer to stand back, or takes that back: a peer that
// does is Outdated, durably, from the end of the connection on, and this node then goes
// on alone under its term.
func (e *Engine) Failsafe(on bool) error {
	kind := replication.CmdFailsafeOver
	if on {
		kind = replication.CmdFailsafe
	}
	return e.do(replication.Command{Kind: kind})
}

// Lease tells how long the failover manager's lease lasts from now on, in
// milliseconds: after that an owner of a shared term reads only as long as it hears
// of its peer. A later lease does not make up for a peer that was silent when one had
// ended: its word does, or a new term. 0: there is none.
func (e *Engine) Lease(ms uint64) error {
	e.mu.Lock()
	if e.sleeps = ms > 0; e.sleeps {
		e.slept.look(time.Since(e.start))
	}
	e.mu.Unlock()
	return e.do(replication.Command{Kind: replication.CmdLease, LeaseMS: ms})
}

// Orphan reports whether the manager's lease has ended while this Primary, whose term is
// shared, is without its peer: its I/O is frozen, and what uses it is to be ended.
func (e *Engine) Orphan() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.core.Term().Orphan
}

const codeInvalid = 162

// termPath is the file of a volume's term record in the state directory.
func (v *Volume) termPath() string {
	return filepath.Join(v.e.cfg.StateDir, fmt.Sprintf("%s-%d.term", v.e.cfg.Resource, v.cfg.Number))
}

// loadTerm reads the state directory's copy of the term record. One that is
// damaged counts as none: the term is unknown then.
func (v *Volume) loadTerm() (rec meta.TermRecord, noFile bool) {
	if v.e.cfg.StateDir == "" {
		return rec, true
	}
	b, err := os.ReadFile(v.termPath())
	if err == nil {
		rec, err = meta.DecodeTermRecord(b)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		v.e.log.Warn().Err(err).Str("file", v.termPath()).Msg("the term record cannot be used")
	}
	return rec, false
}

// storeTerm replaces it durably: a crash leaves the old one or the new one.
func (v *Volume) storeTerm(rec []byte) error {
	if v.e.cfg.StateDir == "" {
		return nil
	}
	return replaceFile(v.termPath(), rec)
}

// replaceFile writes a new file of that name and makes it durable.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // after the rename there is none
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
