package pair

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// A Caller brings a request to the other node's Serve, and its answer back. It
// may be called concurrently.
type Caller interface {
	Call(ctx context.Context, request []byte) (answer []byte, err error)
}

// Config describes one side.
type Config struct {
	Cluster string        // the cluster's ID; required
	Node    string        // this one; required
	Peer    string        // the other one; required
	File    string        // where the records are, on a disk that is not replicated; required without Store
	Store   Store         // where they are in its place; nil for File
	Boot    string        // the machine's boot ID, /proc/sys/kernel/random/boot_id; required
	TTL     time.Duration // how often to renew, times three; no lease ends by time here; required
	Attempt time.Duration // for one request to the peer; 0 for a second
	Caller  Caller        // to the peer; required
	Manual  bool          // an owner goes on alone, a takeover needs Force
}

// Arbiter is one side. Each of the two nodes runs one, and hands it what the other
// one's Caller brings.
type Arbiter struct {
	cfg Config
	op  chan struct{} // one change at a time

	mu       sync.Mutex
	st       state
	broken   error
	isClosed bool
	session  string // of this node's lease; "" is none
	resigned string // the session that has resigned
	made     uint64 // number of the last copy of all records that was made
	accept   uint64 // number that the peer's proposals must bear; 0: none is taken
	grant    uint64 // number for own proposals; 0: meet first
	taken    uint64 // number of the last copy of the peer's records that was looked at
	peerRun  uint64
	peerName string // session of the peer's lease
	busy     string // resource that is being proposed
	late     int    // messages from a host that counts as off
	lost     error  // why the peer could not be asked last; nil: it answered
	moved    chan struct{}
	watchers map[int]func()
	watchID  int
}

// New reads the file, and does not wait for the peer.
func New(cfg Config) (*Arbiter, error) {
	if cfg.Store != nil {
		cfg.File = "the records' store"
	}
	for what, v := range map[string]string{
		"Cluster": cfg.Cluster, "Node": cfg.Node, "Peer": cfg.Peer, "File": cfg.File, "Boot": cfg.Boot,
	} {
		if v == "" {
			return nil, fmt.Errorf("arbiter of two nodes: %s is missing", what)
		}
	}
	if cfg.Node == cfg.Peer || cfg.TTL <= 0 || cfg.Caller == nil {
		return nil, errors.New("arbiter of two nodes: two nodes, a TTL and a way to the peer are needed")
	}
	if cfg.Attempt == 0 {
		cfg.Attempt = time.Second
	}
	st, err := load(cfg.File, cfg.Store, cfg.Cluster, cfg.Node)
	if err != nil {
		return nil, fmt.Errorf("arbiter of two nodes: %w", err)
	}
	a := &Arbiter{cfg: cfg, st: st, op: make(chan struct{}, 1), moved: make(chan struct{}), watchers: map[int]func(){}}
	if err := a.newRun(); err != nil {
		return nil, fmt.Errorf("arbiter of two nodes: %w", err)
	}
	return a, nil
}

// newRun begins to count anew: with the seconds of the clock, so that a restored
// file does not repeat a number that the peer has seen.
func (a *Arbiter) newRun() error {
	a.st.Run = max(a.st.Run+1, uint64(time.Now().Unix()))
	a.made, a.accept, a.grant = a.st.Run<<20, 0, 0
	return save(a.cfg.File, a.cfg.Store, &a.st)
}

// TTL is the configured one.
func (a *Arbiter) TTL() time.Duration { return a.cfg.TTL }

// Close ends this side: Serve refuses everything.
func (a *Arbiter) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isClosed = true
	return nil
}

// ready is under the lock.
func (a *Arbiter) ready() error {
	if a.isClosed {
		return errClosed
	}
	return a.broken
}

// keep stores an entry, durably; under the lock. Where that fails nobody knows
// what is on the disk, and nothing more is answered until a restart.
func (a *Arbiter) keep(resource string, e *entry) error {
	a.st.Entries[resource] = e
	return a.save()
}

func (a *Arbiter) save() error {
	if err := save(a.cfg.File, a.cfg.Store, &a.st); err != nil {
		a.broken = fmt.Errorf("the records can't be stored: %w", err)
		return a.broken
	}
	close(a.moved)
	a.moved = make(chan struct{})
	for _, changed := range a.watchers {
		changed()
	}
	return nil
}

// entry is under the lock.
func (a *Arbiter) entry(resource string) *entry {
	if e := a.st.Entries[resource]; e != nil {
		return e
	}
	return &entry{Record: arbiter.Record{Resource: resource}}
}

// hasMet reports whether this node's records are good enough to build on alone.
func (a *Arbiter) hasMet() bool { return a.st.Met == a.cfg.Boot && a.resigned == "" }

func unreachable(format string, args ...any) error {
	return fmt.Errorf("%w: %w", arbiter.ErrUnreachable, fmt.Errorf(format, args...))
}

// Acquire carries out a claim, together with the peer or alone; see the package
// comment and arbiter.Arbiter.
func (a *Arbiter) Acquire(ctx context.Context, c arbiter.Claim) (arbiter.Record, error) {
	return a.change(ctx, c.Resource, change{
		force: c.Force,
		alone: func(e *entry) bool {
			isOwn := c.Node == e.Owner && len(c.InSync) == 1 && e.Term > 0
			return isOwn && e.Doubt == nil && e.Sole() || isOwn && a.cfg.Manual && a.hasMet()
		},
		decide: func(rec arbiter.Record) (arbiter.Record, error) { return a.decide(rec, c) },
		seen:   &c.Seen,
	})
}

// decide is under the lock.
func (a *Arbiter) decide(rec arbiter.Record, c arbiter.Claim) (arbiter.Record, error) {
	if c.Node != a.cfg.Node {
		return rec, &arbiter.RefusedError{Record: rec, Err: arbiter.ErrInvalid, Why: fmt.Sprintf("%s claims by way of %s", c.Node, a.cfg.Node)}
	}
	owner := arbiter.Lease{Node: rec.Owner, Alive: true}
	if rec.Owner == a.cfg.Peer && a.st.PeerOff != nil && !a.cfg.Manual {
		owner.Alive = false
	}
	c.Fenced = "" // this side knows better
	got, err := arbiter.Decide(rec, owner, c)
	var refused *arbiter.RefusedError
	if errors.Is(err, arbiter.ErrHeld) && errors.As(err, &refused) {
		refused.Why = fmt.Sprintf("%s owns term %d and is not confirmed to be off", rec.Owner, rec.Term)
		if a.cfg.Manual {
			refused.Why = fmt.Sprintf("%s owns term %d, and without an arbiter only a person can tell that it is off", rec.Owner, rec.Term)
		}
	}
	return got, err
}

// Release marks a record as released; see arbiter.Arbiter.
func (a *Arbiter) Release(ctx context.Context, resource, node string, term uint64) error {
	_, err := a.change(ctx, resource, change{
		alone: func(e *entry) bool { return e.Doubt == nil && e.Sole() && e.Owner == a.cfg.Node },
		decide: func(rec arbiter.Record) (arbiter.Record, error) {
			if rec.Owner != node || rec.Term != term || term == 0 || node != a.cfg.Node {
				return rec, &arbiter.RefusedError{
					Record: rec, Err: arbiter.ErrChanged,
					Why: fmt.Sprintf("%s releases term %d, the record has term %d of %q", node, term, rec.Term, rec.Owner),
				}
			}
			rec.Released = true
			return rec, nil
		},
	})
	return err
}

// change is one change of a record.
type change struct {
	force  bool
	alone  func(*entry) bool // it may be made alone even if the peer may be alive
	decide func(arbiter.Record) (arbiter.Record, error)
	seen   *uint64 // the claim's, if it is one: both records of a doubt are measured by it
}

// change makes one change.
func (a *Arbiter) change(ctx context.Context, resource string, c change) (arbiter.Record, error) {
	select {
	case a.op <- struct{}{}:
		defer func() { <-a.op }()
	case <-ctx.Done():
		return arbiter.Record{}, unreachable("%w", context.Cause(ctx))
	}
	a.mu.Lock()
	isNew := a.st.Met != a.cfg.Boot
	a.mu.Unlock()
	if isNew { // a node that has booted first hears whether the other one has changed the record, too
		_ = a.meet(ctx) // if that can't be asked, tryAlone decides what may be done without it
	}
	for isFresh := false; ; isFresh = true {
		if ctx.Err() != nil {
			return arbiter.Record{}, unreachable("%w", context.Cause(ctx))
		}
		rec, isDone, err := a.tryAlone(resource, c, false)
		if isDone || err != nil {
			if err == nil {
				a.push(ctx)
			}
			return rec, err
		}
		rec, isDone, err = a.tryTogether(ctx, resource, c)
		if isDone && err != nil && !isFresh {
			// What it was decided on may be old: the peer may have gone on alone.
			a.mu.Lock()
			a.grant = 0
			a.mu.Unlock()
			continue
		}
		if isDone {
			return rec, err
		}
		if err != nil && c.force {
			rec, _, err = a.tryAlone(resource, c, true)
			return rec, err
		}
		if err != nil {
			return arbiter.Record{}, unreachable("%s can't be asked, and isn't confirmed to be off: %w", a.cfg.Peer, err)
		}
	}
}

// push tells the peer of what was changed alone, if it answers soon.
func (a *Arbiter) push(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pushLimit)
	defer cancel()
	a.mu.Lock()
	isOff := a.st.PeerOff != nil
	a.grant = 0
	a.mu.Unlock()
	if !isOff {
		_ = a.meet(ctx) // it learns it when it is met next
	}
}

// pushLimit is what a change that is made already may take longer; our own choice.
const pushLimit = 200 * time.Millisecond

// tryAlone makes the change here only, if that is safe or forced.
func (a *Arbiter) tryAlone(resource string, c change, force bool) (rec arbiter.Record, isDone bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return arbiter.Record{}, true, unreachable("%w", err)
	}
	if a.resigned != "" && !force {
		return arbiter.Record{}, true, unreachable("this node has resigned")
	}
	e := a.entry(resource)
	isOff := a.st.PeerOff != nil && a.hasMet()
	if !force && !isOff && !c.alone(e) {
		return arbiter.Record{}, false, nil
	}
	granted, err := c.on(e)
	if err != nil && !force && !isOff {
		return arbiter.Record{}, false, nil // the peer may know better
	}
	if err != nil || isSame(granted, e) {
		return granted, true, err
	}
	granted.Term = max(granted.Term, e.termFor(granted))
	if force { // a person may say the same on the other node
		granted.Term = arbiter.OverrideTerm(granted.Term, a.cfg.Node, []string{a.cfg.Node, a.cfg.Peer})
	}
	next := &entry{Record: granted, ID: rand.Text(), Common: slices.Clone(e.Common), Floor: e.Floor}
	if !slices.Contains(next.Common, e.ID) {
		next.Common = append(next.Common, e.ID) // it may have come with a meeting whose answer was lost
	}
	if e.Doubt != nil {
		next.Common = append(next.Common, e.Doubt.ID)
	}
	if err := a.keep(resource, next); err != nil {
		return arbiter.Record{}, true, unreachable("%w", err)
	}
	return next.shown(), true, nil
}

// on decides for an entry; in doubt, for both records that may be in effect.
func (c change) on(e *entry) (arbiter.Record, error) {
	granted, err := c.decide(e.Record)
	if err != nil || e.Doubt == nil {
		return granted, err
	}
	other := e.Doubt.Record
	if c.seen != nil && *c.seen == e.Term {
		was := *c.seen
		*c.seen = other.Term
		defer func() { *c.seen = was }()
	}
	return c.decide(other)
}

// isSame reports whether there is nothing to change.
func isSame(r arbiter.Record, e *entry) bool {
	return e.Doubt == nil && r.Term == e.Term && r.Owner == e.Owner && r.Released == e.Released && slices.Equal(r.InSync, e.InSync) && r.Term > 0
}

// termFor is the lowest term that a change of this entry may have: a release keeps
// its own.
func (e *entry) termFor(r arbiter.Record) uint64 {
	if r.Term == e.Term {
		return r.Term
	}
	return arbiter.NextTerm(e.top())
}

// tryTogether makes the change on both nodes. Without isDone and error, somebody
// came between.
func (a *Arbiter) tryTogether(ctx context.Context, resource string, c change) (rec arbiter.Record, isDone bool, err error) {
	if err := a.meet(ctx); err != nil {
		return arbiter.Record{}, false, err
	}
	a.mu.Lock()
	e := a.entry(resource)
	if err := a.ready(); err != nil || a.grant == 0 || e.Doubt != nil || a.resigned != "" {
		a.grant = 0 // resolve it first
		a.mu.Unlock()
		return arbiter.Record{}, false, err
	}
	granted, err := c.decide(e.Record)
	if err != nil || isSame(granted, e) {
		a.mu.Unlock()
		return granted, true, err
	}
	granted.Term = max(granted.Term, e.termFor(granted))
	next := &entry{Record: granted, ID: rand.Text()}
	next.Common = []string{next.ID}
	doubtful := *e
	doubtful.Doubt = next
	request := message{Kind: kindPropose, Number: a.grant, Made: a.made, Resource: resource, Old: e.ID, New: next}
	if err := a.keep(resource, &doubtful); err != nil {
		a.mu.Unlock()
		return arbiter.Record{}, true, unreachable("%w", err)
	}
	a.busy = resource
	a.mu.Unlock()

	answer, err := a.call(ctx, request)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = ""
	if err != nil {
		return arbiter.Record{}, false, err // in doubt
	}
	e = a.entry(resource)
	isOurs := e.Doubt != nil && e.Doubt.ID == next.ID
	if answer.Kind != kindOK {
		a.grant = 0 // see what it has
		if isOurs {
			was := *e
			was.Doubt, was.Floor = nil, e.top()
			if err := a.keep(resource, &was); err != nil {
				return arbiter.Record{}, true, unreachable("%w", err)
			}
		}
		return arbiter.Record{}, false, nil
	}
	if isOurs { // else a meeting has found it there already
		next.Floor = e.Floor
		if err := a.keep(resource, next); err != nil {
			return arbiter.Record{}, true, unreachable("%w", err)
		}
	}
	return next.shown(), true, nil
}

// Observe shows the records as they are on this node; see arbiter.Arbiter.
func (a *Arbiter) Observe(ctx context.Context, resources ...string) (arbiter.View, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := errors.Join(ctx.Err(), a.ready()); err != nil {
		return arbiter.View{}, unreachable("%w", err)
	}
	var v arbiter.View
	for _, name := range resources {
		v.Records = append(v.Records, a.entry(name).shown())
	}
	if a.session != "" {
		v.Leases = append(v.Leases, arbiter.Lease{Node: a.cfg.Node, Session: a.session, Alive: true})
	}
	v.Leases = append(v.Leases, arbiter.Lease{Node: a.cfg.Peer, Session: a.peerName, Alive: a.st.PeerOff == nil})
	v.Detail = a.detail()
	return v, nil
}

// detail is under the lock.
func (a *Arbiter) detail() string {
	var parts []string
	switch off := a.st.PeerOff; {
	case off != nil && off.Fenced:
		parts = append(parts, a.cfg.Peer+" was confirmed to be off")
	case off != nil:
		parts = append(parts, a.cfg.Peer+" has resigned")
	case a.lost != nil:
		parts = append(parts, fmt.Sprintf("%s can't be asked: %v", a.cfg.Peer, a.lost))
	case a.grant == 0 && a.accept == 0:
		parts = append(parts, a.cfg.Peer+" was not met yet")
	}
	if !a.hasMet() {
		parts = append(parts, "this node decides nothing alone before it has met "+a.cfg.Peer)
	}
	if a.late > 0 {
		parts = append(parts, fmt.Sprintf("%s counts as off and has sent %d messages: the fence device does not do what it says", a.cfg.Peer, a.late))
	}
	for _, name := range slices.Sorted(maps.Keys(a.st.Entries)) {
		switch e := a.st.Entries[name]; {
		case e.Split:
			parts = append(parts, name+": both nodes have changed the record alone, all copies have to be connected once")
		case e.Doubt != nil:
			parts = append(parts, name+": whether the last claim was carried out is seen when "+a.cfg.Peer+" answers")
		}
	}
	return strings.Join(parts, "; ")
}

// Watch calls changed when a record or the peer's state has changed; see arbiter.Arbiter.
func (a *Arbiter) Watch(ctx context.Context, changed func()) {
	a.mu.Lock()
	a.watchID++
	id := a.watchID
	a.watchers[id] = changed
	a.mu.Unlock()
	<-ctx.Done()
	a.mu.Lock()
	delete(a.watchers, id)
	a.mu.Unlock()
}
