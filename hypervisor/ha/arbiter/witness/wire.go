package witness

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Paths of the language, all POST but the last one, which is GET with since and
// epoch: it is answered when the version is another one, or after a while.
const (
	pathAcquire = "/v1/acquire"
	pathRenew   = "/v1/renew"
	pathRelease = "/v1/release"
	pathResign  = "/v1/resign"
	pathObserve = "/v1/observe"
	pathWatch   = "/v1/watch"
)

// Bounds of a request, in bytes and names; our own.
const (
	maxRequest   = 1 << 20 // observing the most resources
	maxResponse  = 16 << 20
	maxNameBytes = 255
	maxCopies    = 32
)

// request has what the verbs need; which fields, they say.
type request struct {
	Claim     *arbiter.Claim `json:"claim,omitempty"`
	Node      string         `json:"node,omitempty"`
	Session   string         `json:"session,omitempty"`
	TTLMS     int64          `json:"ttl_ms,omitempty"`
	Resource  string         `json:"resource,omitempty"`
	Term      uint64         `json:"term,omitempty"`
	Resources []string       `json:"resources,omitempty"`
}

// response is the answer to all of them. Of Refused and Error at most one is there.
type response struct {
	Record  *arbiter.Record `json:"record,omitempty"`
	View    *arbiter.View   `json:"view,omitempty"`
	Refused *refused        `json:"refused,omitempty"`
	Error   string          `json:"error,omitempty"` // nothing was done, or nobody knows
	Epoch   string          `json:"epoch,omitempty"` // of this run of the witness
	Version uint64          `json:"version,omitempty"`
}

type refused struct {
	Reason string         `json:"reason"`
	Why    string         `json:"why"`
	Record arbiter.Record `json:"record"`
}

var reasons = map[string]error{
	"changed": arbiter.ErrChanged, "held": arbiter.ErrHeld, "stale": arbiter.ErrStale, "behind": arbiter.ErrBehind, "invalid": arbiter.ErrInvalid,
}

func refusal(err *arbiter.RefusedError) *refused {
	for word, reason := range reasons {
		if errors.Is(err.Err, reason) {
			return &refused{Reason: word, Why: err.Why, Record: err.Record}
		}
	}
	return &refused{Reason: "invalid", Why: err.Why, Record: err.Record}
}

// err is what the arbiter's caller gets.
func (r *refused) err() error {
	reason := reasons[r.Reason]
	if reason == nil {
		return fmt.Errorf("%w: the witness refuses with %q, which this version does not know", arbiter.ErrUnreachable, r.Reason)
	}
	return &arbiter.RefusedError{Record: r.Record, Err: reason, Why: r.Why}
}

// check refuses what no client of ours sends. names are the client's own.
func (r *request) check(names []string) error {
	all := append([]string{r.Node, r.Session, r.Resource}, r.Resources...)
	node := r.Node
	if c := r.Claim; c != nil {
		all = append(append(all, c.Resource, c.Node, c.Session, c.Fenced), append(c.InSync, c.Members...)...)
		if len(c.InSync) > maxCopies || len(c.Members) > maxCopies {
			return fmt.Errorf("a claim with %d copies, at most %d are allowed", len(c.Members), maxCopies)
		}
		if node = c.Node; c.Resource == "" {
			return errors.New("a claim without a resource")
		}
	}
	if len(r.Resources) > maxResources {
		return fmt.Errorf("%d resources, at most %d are allowed", len(r.Resources), maxResources)
	}
	for _, name := range all {
		if len(name) > maxNameBytes || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return fmt.Errorf("a name of %d bytes, or with control characters", len(name))
		}
	}
	if node != "" && !slices.Contains(names, node) {
		return &notYours{fmt.Sprintf("the certificate is for %s, and the request is for node %q: a node speaks for itself only", strings.Join(names, ", "), node)}
	}
	return nil
}

// notYours is a node that speaks for another one.
type notYours struct{ text string }

func (e *notYours) Error() string { return e.text }

// refuse is what its claim, or its release, gets.
func (e *notYours) refuse(t *txn, q *request) error {
	if q.Claim != nil {
		return &arbiter.RefusedError{Record: t.record(q.Claim.Resource), Err: arbiter.ErrInvalid, Why: e.text}
	}
	return &arbiter.RefusedError{Record: t.record(q.Resource), Err: arbiter.ErrChanged, Why: e.text}
}
