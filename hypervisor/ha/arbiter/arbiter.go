package arbiter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Conditions that callers tell apart with errors.Is. A *RefusedError wraps one of
// the first five; ErrUnreachable is wrapped by adapters and says that nothing is
// known: the claim may have been carried out.
var (
	// ErrChanged says that the record is not the one that the claim was built
	// on: look at it again.
	ErrChanged = errors.New("the record has changed")
	// ErrHeld says that another node owns the resource and its lease has not ended.
	ErrHeld = errors.New("another node holds it")
	// ErrStale says that the claiming node's copy does not count: it lacks
	// writes that were acknowledged.
	ErrStale = errors.New("this node's copy is stale")
	// ErrBehind says that the arbiter knows less than the replicas: it was
	// restored from an old backup, or has lost its state.
	ErrBehind = errors.New("the arbiter is behind the replicas")
	// ErrInvalid says that the claim makes no sense; no retry helps.
	ErrInvalid = errors.New("invalid claim")
	// ErrUnreachable says that the arbiter gave no answer in time.
	ErrUnreachable = errors.New("the arbiter can't be reached")
)

// Record is what the arbiter holds for one resource. It changes by Acquire and
// Release only, by compare-and-swap, and Term only grows. The zero value but for
// Resource stands for "never claimed".
type Record struct {
	Resource   string   `json:"resource"`
	Term       uint64   `json:"term"`       // 0: no record
	Owner      string   `json:"owner"`      // node that may write under Term
	InSync     []string `json:"in_sync"`    // sorted: every write acknowledged under Term is on each of them
	Generation uint64   `json:"generation"` // current UUID of those copies when it was written, bit 0 cleared
	Released   bool     `json:"released"`   // the owner has demoted cleanly: nobody writes
}

// Sole reports whether the owner is the only copy that counts: it may
// acknowledge alone.
func (r Record) Sole() bool { return r.Term > 0 && len(r.InSync) == 1 }

// Counts reports whether the copy of a node holds every acknowledged write.
func (r Record) Counts(node string) bool { return slices.Contains(r.InSync, node) }

// Lease is one node's proof of life with the arbiter. There is one for all of a
// node's resources.
type Lease struct {
	Node    string `json:"node"`
	Session string `json:"session"` // of the manager's process and boot; a new one ends the old
	Alive   bool   `json:"alive"`
}

// View is what the arbiter holds, at one moment.
type View struct {
	Records []Record // of the resources asked for, in that order; Term 0 where there is none
	Leases  []Lease  // of every node that has one, also those that ended and are remembered
	Detail  string   // one line for people: members, leader, what is ill
	Voters  int      // that have a say in the arbiter itself; 0: not known, or it is no such one
}

// Lease returns the lease of a node; one that nobody has heard of is not alive.
func (v View) Lease(node string) Lease {
	for _, l := range v.Leases {
		if l.Node == node {
			return l
		}
	}
	return Lease{Node: node}
}

// Claim asks for a new term of a resource. It is a takeover if the record's owner
// is another node, else the owner changes the set of copies that count.
type Claim struct {
	Resource   string   `json:"resource"`
	Node       string   `json:"node"`       // claims for itself
	Session    string   `json:"session"`    // of its lease
	Seen       uint64   `json:"seen"`       // Term of the record that the claim was built on
	MinTerm    uint64   `json:"min_term"`   // the highest that any replica is known to have promised
	InSync     []string `json:"in_sync"`    // the new set; Node is in it
	Members    []string `json:"members"`    // the nodes that have a copy
	Generation uint64   `json:"generation"` // current UUID of Node's copy, bit 0 cleared
	Fenced     string   `json:"fenced"`     // a node that a fence agent has confirmed to be off, or ""
	Force      bool     `json:"force"`      // the operator answers for what may be lost; audited
}

// Arbiter keeps one Record for each resource and one Lease for each node. It is
// never in the write path: one compare-and-swap for each change of owner or of
// the copies that count, and one renewal per node. All methods are safe for
// concurrent use and give up when ctx is done, with ErrUnreachable.
type Arbiter interface {
	// Acquire carries a claim out, by Decide, or returns a *RefusedError that
	// has the record as it is. With ErrUnreachable nobody knows: Observe, and
	// compare terms.
	Acquire(ctx context.Context, c Claim) (Record, error)

	// Renew makes or prolongs the lease of a node for another TTL, counted from
	// before the request was sent. Another session of the node ends.
	Renew(ctx context.Context, node, session string) error

	// Release says that node has demoted: the record stays, and any copy that
	// counts may take over at once. A record of another owner or term is
	// ErrChanged, and nothing is changed.
	Release(ctx context.Context, resource, node string, term uint64) error

	// Resign ends the lease of a node at once: it has stopped what it ran.
	Resign(ctx context.Context, node, session string) error

	// Observe returns the records of these resources, and all leases.
	Observe(ctx context.Context, resources ...string) (View, error)

	// Watch calls changed, from any goroutine, whenever Observe may have
	// something new to tell, until ctx is done. It need not know of every
	// change: callers poll besides. changed must not block.
	Watch(ctx context.Context, changed func())

	// TTL is how long a lease lasts without renewal.
	TTL() time.Duration

	Close() error
}

// A RefusedError is a claim that was not carried out.
type RefusedError struct {
	Record Record // as it is
	Err    error  // one of ErrChanged, ErrHeld, ErrStale, ErrBehind, ErrInvalid
	Why    string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: the arbiter refuses: %v: %s", e.Record.Resource, e.Err, e.Why)
}

// Unwrap returns the condition.
func (e *RefusedError) Unwrap() error { return e.Err }

// Decide is every arbiter's decision about a claim: given the record and the
// lease of its owner, the new record, or a *RefusedError. It must be carried out
// atomically: neither record nor lease may change meanwhile.
func Decide(rec Record, owner Lease, c Claim) (Record, error) {
	refuse := func(err error, format string, args ...any) (Record, error) {
		return rec, &RefusedError{Record: rec, Err: err, Why: fmt.Sprintf(format, args...)}
	}
	for _, n := range c.InSync {
		if !slices.Contains(c.Members, n) {
			return refuse(ErrInvalid, "%s is to count but has no copy", n)
		}
	}
	switch {
	case rec.Resource != c.Resource:
		return refuse(ErrInvalid, "the claim is for %q", c.Resource)
	case !slices.Contains(c.InSync, c.Node):
		return refuse(ErrInvalid, "%s claims it, and its own copy is not to count", c.Node)
	case rec.Term != c.Seen:
		return refuse(ErrChanged, "the claim was built on term %d, the record has term %d of %s", c.Seen, rec.Term, rec.Owner)
	}
	all := len(c.InSync) == len(c.Members)
	switch {
	case c.Force, c.Node == rec.Owner && rec.Term >= c.MinTerm:
	case rec.Term < c.MinTerm && !all:
		// Its record is older than a promise that somebody made: it cannot know
		// who wrote last. Only all copies together do.
		return refuse(ErrBehind, "the replicas have promised term %d, the record has term %d: all copies have to be connected once", c.MinTerm, rec.Term)
	case rec.Term == 0 && !all:
		return refuse(ErrStale, "nothing is recorded yet, so nobody knows whether %v is current: all copies have to be connected once", c.InSync)
	case rec.Term < c.MinTerm, rec.Term == 0: // filled from the replicas
		if rec.Owner != "" && rec.Owner != c.Node && owner.Alive && !rec.Released {
			return refuse(ErrHeld, "%s owns term %d, and its lease has not ended", rec.Owner, rec.Term)
		}
	case slices.ContainsFunc(c.InSync, func(n string) bool { return n != c.Node && !rec.Counts(n) }):
		return refuse(ErrInvalid, "a takeover makes no copy current: %v counted under term %d, %v are to", rec.InSync, rec.Term, c.InSync)
	case !rec.Counts(c.Node):
		return refuse(ErrStale, "%v hold what was acknowledged under term %d; %s does not", rec.InSync, rec.Term, c.Node)
	case rec.Released, !owner.Alive, c.Fenced == rec.Owner:
	default:
		return refuse(ErrHeld, "%s owns term %d, and its lease has not ended", rec.Owner, rec.Term)
	}
	in := slices.Clone(c.InSync)
	slices.Sort(in)
	return Record{Resource: c.Resource, Term: NextTerm(max(rec.Term, c.MinTerm)), Owner: c.Node, InSync: slices.Compact(in), Generation: c.Generation}, nil
}
