package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/internal/perf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// An incarnation is one start of what uses a resource, and the exports that it
// has: RES/VOL@INCARNATION of each volume, and RES@INCARNATION if there is one.
// The first process that opens one of them has all of them, and nobody else ever:
// a hypervisor that was stopped and wakes up after its VM was started anew finds
// its incarnation gone, or somebody else's.
type incarnation struct {
	log  zerolog.Logger
	res  string
	name string
	save func(*incarnationRecord) error

	mu    sync.Mutex
	owner process
	bound bool // an Open of the owner has succeeded: it keeps the incarnation
	opens map[*opened]struct{}
}

// opened is one Open that was not released.
type opened struct{ release func() }

// A process is one process of this boot: its number may be another's later.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since the boot (proc(5), starttime)
	Name  string `json:"name"`  // of its program
}

func (p process) same(q process) bool { return p.PID == q.PID && p.Start == q.Start }

func (p process) String() string { return fmt.Sprintf("process %d (%s)", p.PID, p.Name) }

// processOf looks a process up.
func processOf(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// PID (NAME) STATE ...: the name may hold blanks and parentheses.
	text := string(b)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return process{}, fmt.Errorf("/proc/%d/stat: not in the form of proc(5)", pid)
	}
	fields := strings.Fields(text[end+1:])
	const startTime = 22 - 3 // the state is field 3
	p := process{PID: pid, Name: text[open+1 : end]}
	if len(fields) <= startTime {
		return process{}, fmt.Errorf("/proc/%d/stat: not in the form of proc(5)", pid)
	}
	if _, err := fmt.Sscan(fields[startTime], &p.Start); err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	return p, nil
}

// admit decides about a client; an admitted one that is no question has the
// incarnation from now on, unless the volume refuses it.
func (i *incarnation) admit(c export.ClientInfo) error {
	if c.Export == "" {
		return fmt.Errorf("%s: is exported to its VM only: name the export, RES/VOL@INCARNATION", i.res)
	}
	if c.PID == 0 {
		return fmt.Errorf("%s@%s: is for one process of this machine, by the unix socket; this client's process can't be told", i.res, i.name)
	}
	p, err := processOf(c.PID)
	if err != nil {
		return fmt.Errorf("%s@%s: the client's process can't be told: %w", i.res, i.name, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.owner.PID != 0 && !i.owner.same(p):
		return fmt.Errorf("%s@%s: belongs to %v, so %v is refused: each start of a VM has an incarnation of its own", i.res, i.name, i.owner, p)
	case c.IsQuestion, i.owner.PID != 0:
		return nil
	}
	if err := i.save(&incarnationRecord{Owner: p}); err != nil {
		return err
	}
	i.owner = p
	return nil
}

// settle follows an Open that was admitted: a client that the volume has refused
// before any other Open keeps nobody else out.
func (i *incarnation) settle(c export.ClientInfo, release func(), err error) func() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		if !i.bound && i.owner.PID == c.PID {
			i.owner = process{}
			if err := i.save(&incarnationRecord{}); err != nil {
				i.log.Error().Err(err).Msg("incarnation")
			}
		}
		return nil
	}
	if !c.IsQuestion && !i.bound {
		i.bound = true
		i.log.Info().Str("incarnation", i.name).Int("pid", i.owner.PID).Str("program", i.owner.Name).Msg("the incarnation has its client")
	}
	o := &opened{release: sync.OnceFunc(release)}
	if i.opens == nil {
		i.opens = map[*opened]struct{}{}
	}
	i.opens[o] = struct{}{}
	return func() {
		i.mu.Lock()
		delete(i.opens, o)
		i.mu.Unlock()
		o.release()
	}
}

// abandon gives the volumes back for clients that are disconnected, while requests
// of theirs are still under way: nobody waits for these, and a frozen resource can
// be demoted.
func (i *incarnation) abandon() {
	i.mu.Lock()
	opens := i.opens
	i.opens = nil
	i.mu.Unlock()
	for o := range opens {
		o.release()
	}
}

// An incarnationBackend is a volume that one incarnation may use.
type incarnationBackend struct {
	export.Backend
	i *incarnation
}

// Open implements export.Backend.
func (b *incarnationBackend) Open(c export.ClientInfo) (release func(), err error) {
	if err := b.i.admit(c); err != nil {
		b.i.log.Warn().Str("export", c.Export).Err(err).Msg("NBD client refused")
		return nil, err
	}
	release, err = b.Backend.Open(c)
	return b.i.settle(c, release, err), err
}

// Perf implements export.Measured.
func (b *incarnationBackend) Perf() *perf.Volume {
	if m, ok := b.Backend.(export.Measured); ok {
		return m.Perf()
	}
	return nil
}

// incarnationRecord is the file RES.incarnation in the state directory; it is of
// one boot, as processes are.
type incarnationRecord struct {
	Boot        string  `json:"boot"`
	Incarnation string  `json:"incarnation"`
	Owner       process `json:"owner"`
}

func (r *resource) incarnationPath() string {
	return filepath.Join(r.d.currentSettings().StateDir, r.name+".incarnation")
}

// saveIncarnation writes the record, so that it outlives this process but no boot.
func (r *resource) saveIncarnation(rec *incarnationRecord) error {
	rec.Boot = r.d.bootID
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	tmp := r.incarnationPath() + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("%s: remember the incarnation: %w", r.name, err)
	}
	if err := os.Rename(tmp, r.incarnationPath()); err != nil {
		return fmt.Errorf("%s: remember the incarnation: %w", r.name, err)
	}
	return nil
}

func (r *resource) currentIncarnation() *incarnation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inc
}

func (r *resource) setIncarnation(i *incarnation) {
	r.mu.Lock()
	r.inc = i
	r.mu.Unlock()
	r.d.hub.changed(r.name)
}

func (r *resource) newIncarnation(name string, owner process) *incarnation {
	i := &incarnation{log: r.log, res: r.name, name: name, owner: owner, bound: owner.PID != 0}
	i.save = func(rec *incarnationRecord) error {
		rec.Incarnation = name
		return r.saveIncarnation(rec)
	}
	return i
}

// atIncarnation is the name of an export for one incarnation.
func atIncarnation(name, incarnation string) string { return name + "@" + incarnation }

// exportTo serves the volumes to a new incarnation. What the one before has under
// way has to end first: a write of an old start must not follow the reads of a new one.
func (r *resource) exportTo(eng engineAPI, name string) (adm.Exports, error) {
	spec := r.runningSpec()
	ex := adm.Exports{Incarnation: name, Names: map[int]string{}}
	for _, v := range spec.Volumes {
		ex.Names[v.Number] = atIncarnation(exportName(spec, v.Number), name)
	}
	if old := r.currentIncarnation(); old != nil && old.name == name {
		return ex, nil
	}
	if err := r.unexport(""); err != nil {
		return ex, err
	}
	i := r.newIncarnation(name, process{})
	if err := i.save(&incarnationRecord{}); err != nil {
		return ex, err
	}
	return ex, r.serveTo(eng, spec, i)
}

// serveTo registers the exports of an incarnation, or none.
func (r *resource) serveTo(eng engineAPI, spec resourceSpec, i *incarnation) error {
	for _, v := range spec.Volumes {
		b := &incarnationBackend{Backend: eng.Backend(v.Number), i: i}
		for _, name := range exportNames(spec, v.Number) {
			if err := r.d.nbd.Add(atIncarnation(name, i.name), b); err != nil {
				return errors.Join(err, r.endIncarnation(spec, i, drainTimeout))
			}
		}
	}
	r.setIncarnation(i)
	return nil
}

// frozenDrain is how long the requests of an incarnation that is ended may take
// to come back; frozen ones never do. Our own.
const frozenDrain = 2 * time.Second

// unexport ends an incarnation, or whatever there is with "". It is an error if
// its requests do not come back, as those that are frozen don't; the incarnation
// is over all the same.
func (r *resource) unexport(name string) error {
	i := r.currentIncarnation()
	if i == nil || name != "" && name != i.name {
		return r.endLeftovers()
	}
	err := r.endIncarnation(r.runningSpec(), i, frozenDrain)
	if rerr := os.Remove(r.incarnationPath()); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("%s: forget the incarnation: %w", r.name, rerr))
	}
	r.log.Info().Str("incarnation", i.name).AnErr("left", err).Msg("the incarnation is over")
	return err
}

// endIncarnation removes the exports and disconnects the clients.
func (r *resource) endIncarnation(spec resourceSpec, i *incarnation, limit time.Duration) error {
	r.setIncarnation(nil)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	left := false
	for _, v := range spec.Volumes {
		for _, name := range exportNames(spec, v.Number) {
			if err := r.d.nbd.Remove(ctx, atIncarnation(name, i.name)); err != nil && !errors.Is(err, export.ErrNoExport) {
				left = true
				r.noteLeftover(atIncarnation(name, i.name))
			}
		}
	}
	if left {
		i.abandon()
		return r.requestsLeft()
	}
	return nil
}

func (r *resource) noteLeftover(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leftovers = append(r.leftovers, name)
}

// endLeftovers waits for the requests of incarnations that are over.
func (r *resource) endLeftovers() error {
	r.mu.Lock()
	names := r.leftovers
	r.leftovers = nil
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), frozenDrain)
	defer cancel()
	left := false
	for _, name := range names {
		if err := r.d.nbd.Disconnect(ctx, name); err != nil {
			left = true
			r.noteLeftover(name)
		}
	}
	if left {
		return r.requestsLeft()
	}
	return nil
}

// requestsLeft says that requests of an incarnation that is over are under way.
func (r *resource) requestsLeft() error {
	why := "the disk or the peer does not answer"
	if eng := r.engine(); eng != nil {
		st := eng.Status()
		switch {
		case st.Term != nil && st.Term.Frozen != "":
			why = st.Term.Frozen
		case len(st.Suspended) > 0:
			why = "I/O is suspended: " + strings.Join(st.Suspended, ", ")
		}
	}
	return &adm.Error{
		Exit: adm.ExitStateChange, Number: inUse,
		Text:   fmt.Sprintf("%s: State change failed: (-12) Device is held open by someone: requests of the incarnation that was ended have not come back: %s", r.name, why),
		Advice: "repeat the command when I/O goes on, or demote this node if another one owns the data",
	}
}

// resumeIncarnation serves the incarnation that an earlier polluxd of this boot
// has served: its client connects again and repeats what was not answered.
func (r *resource) resumeIncarnation(eng engineAPI, spec resourceSpec) error {
	b, err := os.ReadFile(r.incarnationPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var rec incarnationRecord
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err != nil || rec.Boot != r.d.bootID || !adm.ValidIncarnation(rec.Incarnation) {
		if err != nil {
			r.log.Warn().Err(err).Msg("the record of the incarnation cannot be used: nothing is exported to it")
		}
		return os.Remove(r.incarnationPath())
	}
	return r.serveTo(eng, spec, r.newIncarnation(rec.Incarnation, rec.Owner))
}
