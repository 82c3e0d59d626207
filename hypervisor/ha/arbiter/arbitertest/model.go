package arbitertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Clock is a monotonic clock that stands still until somebody moves it. Its zero
// value is ready; it is safe for concurrent use.
type Clock struct{ now atomic.Int64 }

// Now returns the time since the clock was made.
func (c *Clock) Now() time.Duration { return time.Duration(c.now.Load()) }

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) { c.now.Add(int64(d)) }

// Model is an arbiter in memory. It never waits and starts no goroutine, so a
// simulation may call it from its one thread. It is safe for concurrent use.
type Model struct {
	ttl time.Duration
	now func() time.Duration

	mu       sync.Mutex
	records  map[string]arbiter.Record
	leases   map[string]modelLease
	grace    time.Duration // until then every owner may be alive: the model was started anew
	isDown   bool
	watchers map[int]func()
	watchID  int
}

type modelLease struct {
	session string
	end     time.Duration
}

// NewModel makes an empty arbiter. now is its monotonic clock.
func NewModel(ttl time.Duration, now func() time.Duration) *Model {
	return &Model{
		ttl: ttl, now: now,
		records: map[string]arbiter.Record{}, leases: map[string]modelLease{}, watchers: map[int]func(){},
	}
}

// Client returns the arbiter as one node sees it. Its Close ends that client only.
func (m *Model) Client() arbiter.Arbiter { return &client{m: m} }

// SetDown cuts the arbiter off, or ends that: while it is down everything fails
// with ErrUnreachable.
func (m *Model) SetDown(isDown bool) {
	m.mu.Lock()
	m.isDown = isDown
	m.mu.Unlock()
	m.notify()
}

// Restart is a crash and a new start: records stay, and as nobody knows when a
// lease was last renewed, all count as alive for one TTL.
func (m *Model) Restart() {
	m.mu.Lock()
	m.leases = map[string]modelLease{}
	m.grace = m.now() + m.ttl
	m.mu.Unlock()
	m.notify()
}

// Backup returns a copy of all records.
func (m *Model) Backup() map[string]arbiter.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return cloneRecords(m.records)
}

// Restore puts the records of a backup in place of what there is, and restarts.
func (m *Model) Restore(backup map[string]arbiter.Record) {
	m.mu.Lock()
	m.records = cloneRecords(backup)
	m.mu.Unlock()
	m.Restart()
}

func cloneRecords(records map[string]arbiter.Record) map[string]arbiter.Record {
	out := maps.Clone(records)
	for name, r := range out {
		out[name] = clone(r)
	}
	return out
}

func clone(r arbiter.Record) arbiter.Record {
	r.InSync = slices.Clone(r.InSync)
	return r
}

// lease is under the lock.
func (m *Model) lease(node string) arbiter.Lease {
	l, isKnown := m.leases[node]
	now := m.now()
	return arbiter.Lease{Node: node, Session: l.session, Alive: isKnown && now < l.end || !isKnown && now < m.grace}
}

// record is under the lock.
func (m *Model) record(resource string) arbiter.Record {
	if r, ok := m.records[resource]; ok {
		return clone(r)
	}
	return arbiter.Record{Resource: resource}
}

func (m *Model) notify() {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.watchers))
	m.mu.Unlock()
	for _, changed := range all {
		changed()
	}
}

// client is one node's way to the model.
type client struct {
	m        *Model
	isClosed atomic.Bool
}

// do runs f under the lock, unless there is no way to the model.
func (c *client) do(ctx context.Context, f func(m *Model) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", arbiter.ErrUnreachable, err)
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.m.isDown || c.isClosed.Load() {
		return arbiter.ErrUnreachable
	}
	return f(c.m)
}

func (c *client) Acquire(ctx context.Context, claim arbiter.Claim) (arbiter.Record, error) {
	var rec arbiter.Record
	err := c.do(ctx, func(m *Model) error {
		rec = m.record(claim.Resource)
		granted, err := arbiter.Decide(rec, m.lease(rec.Owner), claim)
		if err != nil {
			return err
		}
		rec = granted
		m.records[claim.Resource] = clone(granted)
		return nil
	})
	if err != nil {
		return arbiter.Record{}, err
	}
	c.m.notify()
	return rec, nil
}

func (c *client) Renew(ctx context.Context, node, session string) error {
	isNew := false
	err := c.do(ctx, func(m *Model) error {
		isNew = m.leases[node].session != session || !m.lease(node).Alive
		m.leases[node] = modelLease{session: session, end: m.now() + m.ttl}
		return nil
	})
	if isNew {
		c.m.notify()
	}
	return err
}

func (c *client) Release(ctx context.Context, resource, node string, term uint64) error {
	err := c.do(ctx, func(m *Model) error {
		rec := m.record(resource)
		if rec.Owner != node || rec.Term != term || term == 0 {
			return &arbiter.RefusedError{
				Record: rec, Err: arbiter.ErrChanged,
				Why: fmt.Sprintf("%s releases term %d, the record has term %d of %q", node, term, rec.Term, rec.Owner),
			}
		}
		rec.Released = true
		m.records[resource] = rec
		return nil
	})
	if err == nil {
		c.m.notify()
	}
	return err
}

func (c *client) Resign(ctx context.Context, node, session string) error {
	err := c.do(ctx, func(m *Model) error {
		if l, ok := m.leases[node]; !ok || l.session == session {
			m.leases[node] = modelLease{session: session, end: m.now()}
		}
		return nil
	})
	if err == nil {
		c.m.notify()
	}
	return err
}

func (c *client) Observe(ctx context.Context, resources ...string) (arbiter.View, error) {
	var v arbiter.View
	err := c.do(ctx, func(m *Model) error {
		nodes := map[string]bool{}
		for _, name := range resources {
			rec := m.record(name)
			v.Records = append(v.Records, rec)
			nodes[rec.Owner] = rec.Owner != ""
		}
		for node := range m.leases {
			nodes[node] = true
		}
		for _, node := range slices.Sorted(maps.Keys(nodes)) {
			if nodes[node] {
				v.Leases = append(v.Leases, m.lease(node))
			}
		}
		return nil
	})
	return v, err
}

func (c *client) Watch(ctx context.Context, changed func()) {
	c.m.mu.Lock()
	c.m.watchID++
	id := c.m.watchID
	c.m.watchers[id] = changed
	c.m.mu.Unlock()
	<-ctx.Done()
	c.m.mu.Lock()
	delete(c.m.watchers, id)
	c.m.mu.Unlock()
}

func (c *client) TTL() time.Duration { return c.m.ttl }

func (c *client) Close() error {
	c.isClosed.Store(true)
	return nil
}
