package etcd

import (
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// elections remembers when this process first heard of each leader of etcd, by the
// raft term of the answers.
//
// Each new leader begins all leases anew, so that after a few elections in a row the
// lease of a node that has died would last several times its TTL. But a node writes
// the raft term of its renewals beside its session, and a renewal counts only once
// that is written. So whoever renewed last under term V sent that before any answer
// came from a later term: a TTL after the first such answer its lease has ended by its
// own clock, whatever etcd's says. It is safe for concurrent use.
type elections struct {
	mu      sync.Mutex
	cluster uint64
	seen    []election // terms grow
}

type election struct {
	term uint64
	at   time.Time
}

// keepElections bounds the memory. Older ones are forgotten, which makes a wait longer.
const keepElections = 64

// note takes the header of an answer that needed a majority. Terms that go back are an
// etcd that was restored from a backup: what was seen of the old one counts no more.
func (e *elections) note(h *etcdserverpb.ResponseHeader, now time.Time) {
	term, cluster := h.GetRaftTerm(), h.GetClusterId()
	e.mu.Lock()
	defer e.mu.Unlock()
	last := uint64(0)
	if n := len(e.seen); n > 0 {
		last = e.seen[n-1].term
	}
	switch {
	case cluster != e.cluster, term < last:
		e.cluster, e.seen = cluster, append(e.seen[:0], election{term, now})
	case term > last:
		e.seen = append(e.seen, election{term, now})
		if len(e.seen) > keepElections {
			e.seen = slices.Delete(e.seen, 0, 1)
		}
	}
}

// ended tells whether a node that has written term beside its session has lost its
// lease by now, as far as elections tell.
func (e *elections) ended(n storedNode, current uint64, now time.Time) bool {
	if n.Term == 0 || current <= n.Term || n.TTLMS <= 0 {
		return false // nothing was written, or no election has come since
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.seen {
		if s.term > n.Term {
			return now.Sub(s.at) > time.Duration(n.TTLMS)*time.Millisecond
		}
	}
	return false
}
