package etcd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
)

// Arbiter is the arbiter in etcd.
type Arbiter struct {
	cfg    Config
	prefix string // of all keys, ends in "/"
	etcd   *endpoints
	health *health

	elections elections

	renewing sync.Mutex // one renewal at a time
	held     held

	stop context.CancelFunc
	done chan struct{}
}

// held is the etcd lease that this process made last.
type held struct {
	node, session string
	id            clientv3.LeaseID
	term          uint64 // of raft, as written
}

// storedRecord is the value of a record key.
type storedRecord struct {
	arbiter.Record
	Claim string `json:"claim"` // that wrote it, drawn by chance
}

// storedNode is the value of a node key.
type storedNode struct {
	Session string `json:"session"`
	Term    uint64 `json:"term"`   // raft's, no later than that of the last renewal that counts; see elections
	TTLMS   int64  `json:"ttl_ms"` // how long the node counts on a renewal
}

// New returns the arbiter without waiting for etcd. It reads the TLS files.
func New(cfg Config) (*Arbiter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	e, err := newEndpoints(&cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &Arbiter{cfg: cfg, prefix: "/pollux/" + url.PathEscape(cfg.Cluster) + "/", etcd: e, stop: cancel, done: make(chan struct{})}
	a.health = &health{arbiter: a}
	go func() {
		defer close(a.done)
		a.health.run(ctx)
	}()
	return a, nil
}

// TTL is the configured one; etcd's own lease may last up to a second longer.
func (a *Arbiter) TTL() time.Duration { return a.cfg.TTL }

// Close ends the connections. The lease ends by itself.
func (a *Arbiter) Close() error {
	a.stop()
	<-a.done
	return a.etcd.close()
}

func (a *Arbiter) recordKey(resource string) string {
	return a.prefix + "record/" + url.PathEscape(resource)
}
func (a *Arbiter) nodes() string              { return a.prefix + "node/" }
func (a *Arbiter) nodeKey(node string) string { return a.nodes() + url.PathEscape(node) }

// Acquire carries out a claim; see arbiter.Arbiter.
func (a *Arbiter) Acquire(ctx context.Context, c arbiter.Claim) (arbiter.Record, error) {
	name := rand.Text()
	var granted arbiter.Record
	err := a.etcd.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		for {
			rec, isDone, err := a.tryAcquire(ctx, etcd, c, name)
			if err != nil {
				return err
			}
			if isDone {
				granted = rec
				return nil
			}
		}
	})
	return granted, err
}

// tryAcquire reads, decides and writes once. isDone is false if somebody else
// came between.
func (a *Arbiter) tryAcquire(ctx context.Context, etcd *clientv3.Client, c arbiter.Claim, name string) (rec arbiter.Record, isDone bool, err error) {
	recordKey := a.recordKey(c.Resource)
	was, err := etcd.Txn(ctx).Then(clientv3.OpGet(recordKey), clientv3.OpGet(a.nodes(), clientv3.WithPrefix())).Commit()
	if err != nil {
		return arbiter.Record{}, false, err
	}
	stored, revision, err := decodeRecord(c.Resource, was.Responses[0].GetResponseRange().Kvs)
	if err != nil {
		return arbiter.Record{}, false, err
	}
	if stored.Claim == name {
		return stored.Record, true, nil // carried out; the answer was lost
	}
	a.elections.note(was.Header, time.Now())
	owner, ownerRevision, err := a.lease(stored.Owner, was.Responses[1].GetResponseRange().Kvs, was.Header)
	if err != nil {
		return arbiter.Record{}, false, err
	}
	granted, err := arbiter.Decide(stored.Record, owner, c)
	if err != nil {
		return arbiter.Record{}, false, err
	}
	unchanged := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(recordKey), "=", revision)}
	if isTakeover := stored.Owner != "" && stored.Owner != c.Node; isTakeover {
		if err := a.enoughVoters(ctx, etcd, stored.Record, c); err != nil {
			return arbiter.Record{}, false, err
		}
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(a.nodeKey(stored.Owner)), "=", ownerRevision))
	}
	value, err := json.Marshal(storedRecord{Record: granted, Claim: name})
	if err != nil {
		return arbiter.Record{}, false, err
	}
	txn, err := etcd.Txn(ctx).If(unchanged...).Then(clientv3.OpPut(recordKey, string(value))).Commit()
	if err != nil {
		return arbiter.Record{}, false, err
	}
	return granted, txn.Succeeded, nil
}

// enoughVoters refuses an automatic takeover where the death of one host would
// have silenced etcd: two voters are worse than one. What was seen last may be old
// by now, and a takeover does not wait for the next look: etcd is asked.
func (a *Arbiter) enoughVoters(ctx context.Context, etcd *clientv3.Client, rec arbiter.Record, c arbiter.Claim) error {
	if rec.Released || c.Force || c.Fenced == rec.Owner || a.health.voters() != 2 {
		return nil
	}
	list, err := etcd.MemberList(ctx)
	if err != nil {
		return err
	}
	a.health.setMembers(list.Members)
	if a.health.voters() != 2 {
		return nil
	}
	return &arbiter.RefusedError{
		Record: rec, Err: arbiter.ErrHeld,
		Why: "etcd has two voters, of which none may fail: automatic failover needs three; add a witness",
	}
}

func decodeRecord(resource string, kvs []*mvccpb.KeyValue) (rec storedRecord, revision int64, err error) {
	rec.Resource = resource
	if len(kvs) == 0 {
		return rec, 0, nil
	}
	if err := json.Unmarshal(kvs[0].Value, &rec); err != nil {
		return rec, 0, fmt.Errorf("key %s: %w", kvs[0].Key, err)
	}
	return rec, kvs[0].ModRevision, nil
}

// lease looks a node's lease up among the node keys of one answer; revision 0 is none.
func (a *Arbiter) lease(node string, kvs []*mvccpb.KeyValue, h *etcdserverpb.ResponseHeader) (l arbiter.Lease, revision int64, err error) {
	l.Node = node
	for _, kv := range kvs {
		if string(kv.Key) == a.nodeKey(node) {
			var n storedNode
			if err := json.Unmarshal(kv.Value, &n); err != nil {
				return l, 0, fmt.Errorf("key %s: %w", kv.Key, err)
			}
			isOver := a.elections.ended(n, h.GetRaftTerm(), time.Now())
			return arbiter.Lease{Node: node, Session: n.Session, Alive: !isOver}, kv.ModRevision, nil
		}
	}
	return l, 0, nil
}

// Renew makes or prolongs a node's lease; see arbiter.Arbiter. The node's key is
// looked at each time: whoever deleted it, or put another session there, ended
// this lease, whatever etcd's lease says. After an election it is written anew.
func (a *Arbiter) Renew(ctx context.Context, node, session string) error {
	a.renewing.Lock()
	defer a.renewing.Unlock()
	return a.etcd.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		if h := a.held; h.node == node && h.session == session {
			_, err := etcd.KeepAliveOnce(ctx, h.id)
			if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return err
			}
			if err == nil {
				got, err := etcd.Get(ctx, a.nodeKey(node))
				if err != nil {
					return err
				}
				a.elections.note(got.Header, time.Now())
				if len(got.Kvs) == 1 && clientv3.LeaseID(got.Kvs[0].Lease) == h.id {
					if h.term == got.Header.GetRaftTerm() {
						return nil
					}
					return a.writeNode(ctx, etcd, h, got.Kvs[0].ModRevision, got.Header.GetRaftTerm())
				}
			}
		}
		return a.newLease(ctx, etcd, node, session)
	})
}

// newLease is called with renewing held.
func (a *Arbiter) newLease(ctx context.Context, etcd *clientv3.Client, node, session string) error {
	a.held = held{}
	lease, err := etcd.Grant(ctx, int64(math.Ceil(a.cfg.TTL.Seconds())))
	if err != nil {
		return err
	}
	return a.writeNode(ctx, etcd, held{node: node, session: session, id: lease.ID}, 0, lease.GetRaftTerm())
}

// writeNode puts the node's key, bound to the lease h.id, with raft's term, and again
// if there was an election meanwhile: a term that is too low would end the lease
// early. If revision is not 0, the key is what it was then, or nothing is written. It
// is called with renewing held.
func (a *Arbiter) writeNode(ctx context.Context, etcd *clientv3.Client, h held, revision int64, term uint64) error {
	key := a.nodeKey(h.node)
	for {
		h.term = term
		value, err := json.Marshal(storedNode{Session: h.session, Term: term, TTLMS: a.cfg.TTL.Milliseconds()})
		if err != nil {
			return err
		}
		var unchanged []clientv3.Cmp
		if revision != 0 {
			unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(key), "=", revision))
		}
		txn, err := etcd.Txn(ctx).If(unchanged...).Then(clientv3.OpPut(key, string(value), clientv3.WithLease(h.id), clientv3.WithPrevKV())).Commit()
		if err != nil {
			return err // a lease without a key ends by itself
		}
		if !txn.Succeeded {
			return errKeyChanged
		}
		if was := txn.Responses[0].GetResponsePut().PrevKv; revision == 0 && was != nil && was.Lease != 0 && clientv3.LeaseID(was.Lease) != h.id {
			// The key has left the old lease already, and its holder sees that at its
			// next renewal: this only cleans up.
			_, _ = etcd.Revoke(ctx, clientv3.LeaseID(was.Lease))
		}
		if term = txn.Header.GetRaftTerm(); term == h.term {
			a.held = h
			return nil
		}
		revision = txn.Header.GetRevision()
	}
}

// errKeyChanged ends one attempt to renew; the next one looks again.
var errKeyChanged = errors.New("the node's key has changed meanwhile")

// Resign ends a node's lease, if it is still that session's; see arbiter.Arbiter.
func (a *Arbiter) Resign(ctx context.Context, node, session string) error {
	a.renewing.Lock()
	defer a.renewing.Unlock()
	return a.etcd.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		key := a.nodeKey(node)
		got, err := etcd.Get(ctx, key)
		if err != nil {
			return err
		}
		l, revision, err := a.lease(node, got.Kvs, got.Header)
		if err != nil || l.Session != session {
			return err
		}
		a.held = held{}
		_, err = etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(clientv3.OpDelete(key)).Commit()
		return err
	})
}

// Release marks a record as released; see arbiter.Arbiter.
func (a *Arbiter) Release(ctx context.Context, resource, node string, term uint64) error {
	key := a.recordKey(resource)
	return a.etcd.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		for {
			got, err := etcd.Get(ctx, key)
			if err != nil {
				return err
			}
			rec, revision, err := decodeRecord(resource, got.Kvs)
			switch {
			case err != nil:
				return err
			case rec.Owner != node || rec.Term != term || term == 0:
				return &arbiter.RefusedError{
					Record: rec.Record, Err: arbiter.ErrChanged,
					Why: fmt.Sprintf("%s releases term %d, the record has term %d of %q", node, term, rec.Term, rec.Owner),
				}
			case rec.Released:
				return nil
			}
			rec.Released = true
			value, err := json.Marshal(rec)
			if err != nil {
				return err
			}
			txn, err := etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(clientv3.OpPut(key, string(value))).Commit()
			if err != nil || txn.Succeeded {
				return err
			}
		}
	})
}

// Observe reads everything below the prefix at one revision; see arbiter.Arbiter.
// A lease that has ended leaves nothing behind.
func (a *Arbiter) Observe(ctx context.Context, resources ...string) (arbiter.View, error) {
	v := arbiter.View{Records: make([]arbiter.Record, len(resources))}
	err := a.etcd.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		got, err := etcd.Txn(ctx).Then(
			clientv3.OpGet(a.prefix+"record/", clientv3.WithPrefix()), clientv3.OpGet(a.nodes(), clientv3.WithPrefix())).Commit()
		if err != nil {
			return err
		}
		a.elections.note(got.Header, time.Now())
		byKey := map[string]*mvccpb.KeyValue{}
		for _, kv := range got.Responses[0].GetResponseRange().Kvs {
			byKey[string(kv.Key)] = kv
		}
		for i, name := range resources {
			var kvs []*mvccpb.KeyValue
			if kv := byKey[a.recordKey(name)]; kv != nil {
				kvs = append(kvs, kv)
			}
			rec, _, err := decodeRecord(name, kvs)
			if err != nil {
				return err
			}
			v.Records[i] = rec.Record
		}
		v.Leases = v.Leases[:0]
		kvs := got.Responses[1].GetResponseRange().Kvs
		for _, kv := range kvs {
			node, err := url.PathUnescape(strings.TrimPrefix(string(kv.Key), a.nodes()))
			if err != nil {
				return fmt.Errorf("key %s: %w", kv.Key, err)
			}
			l, _, err := a.lease(node, kvs, got.Header)
			if err != nil {
				return err
			}
			v.Leases = append(v.Leases, l)
		}
		return nil
	})
	if err != nil {
		return arbiter.View{}, err
	}
	v.Detail, v.Voters = a.health.line(), a.health.voters()
	return v, nil
}

// Watch calls changed for each change of a record or a lease; see arbiter.Arbiter.
func (a *Arbiter) Watch(ctx context.Context, changed func()) {
	for pause := minPause; ctx.Err() == nil; pause = min(2*pause, maxPause) {
		n, moved := a.etcd.inUse()
		if etcd, err := a.etcd.client(n); err == nil && a.watch(ctx, etcd, moved, changed) {
			pause = minPause
		}
		changed() // what was missed meanwhile
		select {
		case <-ctx.Done():
		case <-moved:
		case <-time.After(pause):
		}
	}
}

// watch watches through one endpoint until that fails or another is in use. It
// reports whether it ever heard of anything.
func (a *Arbiter) watch(ctx context.Context, etcd *clientv3.Client, moved <-chan struct{}, changed func()) (heard bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := etcd.Watch(clientv3.WithRequireLeader(ctx), a.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	for {
		select {
		case <-moved:
			return heard
		case w, ok := <-events:
			if !ok || w.Err() != nil {
				return heard
			}
			heard = true
			if w.Created || a.concerns(w.Events) {
				changed()
			}
		}
	}
}

// concerns leaves out the probes.
func (a *Arbiter) concerns(events []*clientv3.Event) bool {
	for _, e := range events {
		if !strings.HasPrefix(string(e.Kv.Key), a.prefix+"probe/") {
			return true
		}
	}
	return false
}
