package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/pollux-project/pollux/protocol/drbd"
	"github.com/pollux-project/pollux/replication"
	"github.com/pollux-project/pollux/replication/meta"
)

// resume is what a daemon that starts again in the same boot knows of its
// former life: a Primary takes its role up only if the peer is connected and
// not Primary, or if it was durably the only writer. After a reboot it is
// Secondary.
type resume struct {
	mu     sync.Mutex
	loaded bool
	wants  bool // was Primary in this boot and has not taken it up
	sole   bool // and was the only writer
}

// roleRecord is the file RES.role in the state directory.
type roleRecord struct {
	Boot    string `json:"boot"`
	Primary bool   `json:"primary"`
}

func (e *Engine) rolePath() string { return filepath.Join(e.cfg.StateDir, e.cfg.Resource+".role") }

// look compares a disk that is being attached with the record.
func (r *resume) look(v *Volume, d *replication.AttachedDisk) {
	e := v.e
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.cfg.StateDir == "" || e.cfg.BootID == "" {
		return
	}
	if !r.loaded {
		r.loaded = true
		b, err := os.ReadFile(e.rolePath())
		var rec roleRecord
		if err == nil && json.Unmarshal(b, &rec) == nil {
			r.wants = rec.Primary && rec.Boot == e.cfg.BootID
			r.sole = r.wants
		}
	}
	if !r.wants {
		return
	}
	f := d.Superblock.Flags
	alone := f&meta.MDFPrimaryInd != 0 && f&meta.MDFConnectedInd == 0 && d.Superblock.UUIDs.Bitmap != 0
	if d.Superblock.Term.Exists() || d.Term.Exists() {
		alone = d.Superblock.Term.Sole != 0 // the core compares it with the rest
	}
	r.sole = r.sole && alone && f&meta.MDFWasUpToDate != 0
}

// frozen says why a former Primary does not serve yet, or is empty.
func (r *resume) frozen(e *Engine) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.wants {
		return ""
	}
	return fmt.Sprintf("this node was Primary before polluxd was restarted; it goes on as soon as %s is connected and not Primary; "+
		"`polluxadm primary %s` or `polluxadm secondary %s` decides otherwise", e.cfg.PeerName, e.cfg.Resource, e.cfg.Resource)
}

// start is called when everything is attached: a sole writer goes on at once.
func (r *resume) start(e *Engine) {
	r.mu.Lock()
	now := r.wants && r.sole
	r.mu.Unlock()
	if now {
		r.take(e, true, "it was the only writer")
	}
}

// connected is called when the peer was reached.
func (r *resume) connected(e *Engine) {
	r.mu.Lock()
	wants := r.wants
	r.mu.Unlock()
	if !wants {
		return
	}
	s := e.Status()
	if s.Conn < drbd.Connected {
		return
	}
	if s.PeerRole == drbd.Primary {
		e.log.Warn().Msg("this node was Primary before the restart, but the peer is Primary now: it stays Secondary")
		r.setPrimary(e, false) //nolint:errcheck // logged by setPrimary
		return
	}
	r.take(e, false, "the peer is connected and not Primary")
}

// take makes this node Primary again: where terms are in use, under the term that
// it had, as long as nobody has promised a higher one.
func (r *resume) take(e *Engine, sole bool, why string) {
	again := func() error { return e.Primary(false) }
	if t := e.Status().Term; t.Promised > 0 {
		again = func() error { return e.PrimaryWithTerm(max(t.Term, 1), sole) }
	}
	if err := again(); err != nil {
		e.log.Warn().Err(err).Msg("the role of Primary cannot be taken up again")
		return
	}
	e.log.Info().Str("reason", why).Msg("Primary again after a restart of the daemon")
}

// setPrimary records what this node is, durably, and ends the waiting.
func (r *resume) setPrimary(e *Engine, primary bool) error {
	r.mu.Lock()
	r.wants, r.sole, r.loaded = false, false, true
	r.mu.Unlock()
	return r.store(e, primary)
}

// store writes the record so that it survives a crash of the daemon; a reboot
// makes it void anyway.
func (r *resume) store(e *Engine, primary bool) error {
	if e.cfg.StateDir == "" || e.cfg.BootID == "" {
		return nil
	}
	if !primary {
		if err := os.Remove(e.rolePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: forget the role: %w", e.cfg.Resource, err)
		}
		return nil
	}
	b, err := json.Marshal(roleRecord{Boot: e.cfg.BootID, Primary: true})
	if err != nil {
		return err
	}
	tmp := e.rolePath() + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("%s: remember the role: %w", e.cfg.Resource, err)
	}
	if err := os.Rename(tmp, e.rolePath()); err != nil {
		return fmt.Errorf("%s: remember the role: %w", e.cfg.Resource, err)
	}
	return nil
}

// Started is called once after all volumes are attached and connect was
// ordered: it lets a former sole Primary go on.
func (e *Engine) Started() { e.resume.start(e) }

// ForgetRole removes what a state directory remembers of a resource's role, once
// another program has owned its disks since: the role is not to be taken up again.
// It is for a resource that no engine runs.
func ForgetRole(stateDir, resource string) error {
	e := &Engine{cfg: Config{StateDir: stateDir, Resource: resource}}
	if err := os.Remove(e.rolePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: forget the role: %w", resource, err)
	}
	return nil
}
