package witness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Bounds on one cluster; our own, several times what 32 nodes with 200 resources
// each need.
const (
	maxResources = 8192
	maxNodes     = 64 // that have or had a lease
	maxQueue     = 1024
	maxBatch     = 256 // changes that become durable together
	minTTL       = 100 * time.Millisecond
	maxTTL       = time.Hour
	defaultTTL   = 6 * time.Second // of a cluster that has never renewed a lease
)

// errBusy says that the queue of a cluster is full.
var errBusy = errors.New("too many requests wait")

// cluster decides for one cluster: one goroutine takes what waits, decides it in
// order, makes all that has changed durable at once, and then answers.
type cluster struct {
	name string
	now  func() time.Duration
	ops  chan *op
	done chan struct{}
	wg   sync.WaitGroup

	// Of the goroutine alone.
	store  *store
	leases map[string]lease
	grace  time.Duration // until then every owner counts as alive
	began  time.Duration

	mu      sync.Mutex
	version uint64        // grows with each change that a watcher should look at
	changed chan struct{} // closed then
	stats   Stats
}

type lease struct {
	session string
	end     time.Duration
	isAlive bool // as watchers were told
}

// op is one request: decide runs in the cluster's goroutine.
type op struct {
	decide func(t *txn) error
	wrote  bool // the answer rests on what is not durable yet
	err    error
	done   chan struct{}
}

// txn is what a batch of requests sees and changes.
type txn struct {
	c       *cluster
	now     time.Duration
	records map[string]arbiter.Record // changed in this batch
	ttl     time.Duration             // changed in this batch, or 0
	news    bool                      // watchers should look
}

// Stats is how a cluster fares, for its status.
type Stats struct {
	Claims, Refused, Renewals, Observes, Failed, Flushes uint64
	Resources                                            int
	LogBytes                                             int64
	Slowest                                              time.Duration // flush, of the last minute
	Ill                                                  string

	slowestAt time.Duration
}

// newCluster reads the records of a cluster and begins to decide.
func newCluster(name string, dir vfs, now func() time.Duration) (*cluster, error) {
	s, err := openStore(dir)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	c := &cluster{
		name: name, now: now, store: s, leases: map[string]lease{},
		ops: make(chan *op, maxQueue), done: make(chan struct{}), changed: make(chan struct{}),
	}
	c.began = now()
	c.grace = c.began + cmp.Or(s.ttl, defaultTTL)
	c.stats.Resources, c.stats.LogBytes = len(s.records), s.size
	c.wg.Go(c.run)
	return c, nil
}

func (c *cluster) close() error {
	close(c.done)
	c.wg.Wait()
	return c.store.close()
}

// do has a request decided. The error is that of decide, or says that nobody knows
// whether it was carried out.
func (c *cluster) do(ctx context.Context, decide func(t *txn) error) error {
	o := &op{decide: decide, done: make(chan struct{})}
	select {
	case c.ops <- o:
	default:
		return errBusy
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return errors.New("the witness stops")
	}
}

// stall is how long this process may stand still (stopped, or its host asleep for
// the scheduler) before leases are prolonged by as much: nobody could renew.
const (
	stallTick = time.Second
	stall     = 2 * time.Second
)

func (c *cluster) run() {
	tick := time.NewTimer(stallTick)
	defer tick.Stop()
	last := c.now()
	var batch []*op
	for {
		batch = batch[:0]
		select {
		case <-c.done:
			return
		case <-tick.C:
		case o := <-c.ops:
			batch = append(batch, o)
		}
		now := c.now()
		if now-last > stall && now-last < maxTTL {
			c.prolong(now - last)
		}
		last = now
		for more := true; more && len(batch) > 0 && len(batch) < maxBatch; {
			select {
			case o := <-c.ops:
				batch = append(batch, o)
			default:
				more = false
			}
		}
		c.serve(batch, now)
		tick.Reset(c.nextLook(now))
	}
}

// nextLook is when a lease ends of which watchers should hear.
func (c *cluster) nextLook(now time.Duration) time.Duration {
	next := stallTick
	for _, l := range c.leases {
		if l.isAlive {
			next = min(next, max(l.end-now, time.Millisecond))
		}
	}
	return next
}

// prolong gives every lease the time that this process has slept.
func (c *cluster) prolong(slept time.Duration) {
	for node, l := range c.leases {
		if l.isAlive {
			l.end += slept
			c.leases[node] = l
		}
	}
	c.grace += slept
}

func (c *cluster) serve(batch []*op, now time.Duration) {
	t := &txn{c: c, now: now, records: map[string]arbiter.Record{}}
	for _, o := range batch {
		o.err = o.decide(t)
		o.wrote = len(t.records) > 0 || t.ttl > 0
	}
	for node, l := range c.leases { // ended, and nobody was told
		if l.isAlive && now >= l.end {
			l.isAlive = false
			c.leases[node] = l
			t.news = true
		}
	}
	if err := c.commit(t); err != nil {
		for _, o := range batch {
			if o.wrote {
				o.err = err
			}
		}
	}
	c.mu.Lock()
	if t.news || len(t.records) > 0 {
		c.version++
		close(c.changed)
		c.changed = make(chan struct{})
	}
	c.mu.Unlock()
	for _, o := range batch {
		close(o.done)
	}
}

func (c *cluster) commit(t *txn) error {
	var err error
	if len(t.records) > 0 || t.ttl > 0 {
		e := entry{TTLMS: t.ttl.Milliseconds()}
		for _, name := range slices.Sorted(maps.Keys(t.records)) {
			e.Records = append(e.Records, t.records[name])
		}
		began := c.now()
		err = c.store.commit(e)
		took := c.now() - began
		c.mu.Lock()
		s := &c.stats
		if took > s.Slowest || began-s.slowestAt > time.Minute {
			s.Slowest, s.slowestAt = took, began
		}
		s.Flushes, s.Resources, s.LogBytes, s.Ill = c.store.flushes, len(c.store.records), c.store.size, ""
		if err != nil {
			s.Ill = err.Error()
			s.Failed++
		}
		c.mu.Unlock()
	}
	return err
}

func (c *cluster) count(f func(s *Stats)) {
	c.mu.Lock()
	f(&c.stats)
	c.mu.Unlock()
}

func (t *txn) record(name string) arbiter.Record {
	r, ok := t.records[name]
	if !ok {
		r, ok = t.c.store.records[name]
	}
	if !ok {
		r = arbiter.Record{Resource: name}
	}
	r.InSync = slices.Clone(r.InSync)
	return r
}

func (t *txn) set(r arbiter.Record) error {
	if _, known := t.c.store.records[r.Resource]; !known && len(t.c.store.records)+len(t.records) >= maxResources {
		return fmt.Errorf("the cluster has %d resources already, at most that many are kept", maxResources)
	}
	t.records[r.Resource] = r
	return nil
}

// lease is as far as this process can know: right behind its start every node may
// have a lease.
func (t *txn) lease(node string) arbiter.Lease {
	l, known := t.c.leases[node]
	return arbiter.Lease{Node: node, Session: l.session, Alive: known && t.now < l.end || !known && t.now < t.c.grace}
}

// acquire carries a claim out. A refusal is a *arbiter.RefusedError.
func (t *txn) acquire(claim arbiter.Claim) (arbiter.Record, error) {
	rec := t.record(claim.Resource)
	granted, err := arbiter.Decide(rec, t.lease(rec.Owner), claim)
	if err == nil {
		err = t.set(granted)
	}
	t.c.count(func(s *Stats) {
		s.Claims++
		if err != nil {
			s.Refused++
		}
	})
	return granted, err
}

func (t *txn) release(resource, node string, term uint64) error {
	rec := t.record(resource)
	if rec.Owner != node || rec.Term != term || term == 0 {
		return &arbiter.RefusedError{
			Record: rec, Err: arbiter.ErrChanged,
			Why: fmt.Sprintf("%s releases term %d, the record has term %d of %q", node, term, rec.Term, rec.Owner),
		}
	}
	if rec.Released {
		return nil
	}
	rec.Released = true
	return t.set(rec)
}

func (t *txn) renew(node, session string, ttl time.Duration) error {
	if ttl < minTTL || ttl > maxTTL {
		return fmt.Errorf("a lease of %v, expected %v to %v", ttl, minTTL, maxTTL)
	}
	old, known := t.c.leases[node]
	if !known && len(t.c.leases) >= maxNodes {
		return fmt.Errorf("%d nodes have leases already, at most that many are kept", maxNodes)
	}
	// The file keeps the longest: it says how long a start has to wait.
	if ttl > t.c.store.ttl && ttl > t.ttl {
		t.ttl = ttl
	}
	if old.session != session || !old.isAlive {
		t.news = true
	}
	t.c.leases[node] = lease{session: session, end: t.now + ttl, isAlive: true}
	t.c.count(func(s *Stats) { s.Renewals++ })
	return nil
}

func (t *txn) resign(node, session string) error {
	l, known := t.c.leases[node]
	if known && l.session != session {
		return nil // another one has begun
	}
	if !known && len(t.c.leases) >= maxNodes {
		return fmt.Errorf("%d nodes have leases already, at most that many are kept", maxNodes)
	}
	t.c.leases[node] = lease{session: session, end: t.now}
	t.news = true
	return nil
}

func (t *txn) observe(resources []string) arbiter.View {
	var v arbiter.View
	nodes := map[string]bool{}
	for _, name := range resources {
		rec := t.record(name)
		v.Records = append(v.Records, rec)
		if rec.Owner != "" {
			nodes[rec.Owner] = true
		}
	}
	for node := range t.c.leases {
		nodes[node] = true
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		v.Leases = append(v.Leases, t.lease(node))
	}
	if wait := t.c.grace - t.now; wait > 0 {
		v.Detail = fmt.Sprintf("the witness has started: for %v more every owner counts as alive", wait.Round(100*time.Millisecond))
	}
	if s := t.c.status(); s.Ill != "" {
		v.Detail = s.Ill
	}
	t.c.count(func(s *Stats) { s.Observes++ })
	return v
}

func (c *cluster) status() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// wait returns the version once it is another one than since, or at the latest
// when ctx is done.
func (c *cluster) wait(ctx context.Context, since uint64) uint64 {
	c.mu.Lock()
	version, changed := c.version, c.changed
	c.mu.Unlock()
	if version != since {
		return version
	}
	select {
	case <-changed:
	case <-ctx.Done():
	case <-c.done:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}
