package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Our own constants. etcd's manual wants 99 of 100 WAL syncs done within 10 ms; a
// commit is two of them, and two ways over the network.
const (
	lookInterval  = 10 * time.Second
	probeInterval = 30 * time.Second
	slowCommit    = 100 * time.Millisecond
	fullShare     = 0.8 // of the quota: beyond it etcd soon takes no writes
)

// health looks at the cluster from time to time. It is safe for concurrent use.
type health struct {
	arbiter *Arbiter

	mu        sync.Mutex
	members   []*etcdserverpb.Member
	leader    uint64 // member ID, 0: none
	silent    []string
	complaint []string
	commit    time.Duration // of the last probe
	probeErr  error
}

func (h *health) run(ctx context.Context) {
	var probed time.Time
	for {
		if time.Since(probed) >= probeInterval {
			probed = time.Now()
			h.probe(ctx)
		}
		h.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookInterval):
		}
	}
}

// probe commits a small value, as a claim would.
func (h *health) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, h.arbiter.cfg.TTL)
	defer cancel()
	a := h.arbiter
	var took time.Duration
	err := a.etcd.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		began := time.Now()
		_, err := etcd.Put(ctx, a.prefix+"probe/"+a.cfg.Node, "")
		took = time.Since(began)
		return err
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commit, h.probeErr = took, err
}

// look asks each endpoint how it is.
func (h *health) look(ctx context.Context) {
	a := h.arbiter
	var silent, complaint []string
	var leader uint64
	for n, url := range a.cfg.Endpoints {
		s, err := h.status(ctx, n)
		switch {
		case err != nil:
			silent = append(silent, strings.TrimPrefix(strings.TrimPrefix(url, "https://"), "http://"))
			continue
		case s.Leader != 0:
			leader = s.Leader
		}
		complaint = append(complaint, s.Errors...)
		if q := s.DbSizeQuota; q > 0 && float64(s.DbSizeInUse) > fullShare*float64(q) {
			complaint = append(complaint, fmt.Sprintf("its database is at %d of %d MiB", s.DbSizeInUse>>20, q>>20))
		}
	}
	slices.Sort(complaint)
	complaint = slices.Compact(complaint)

	ctx, cancel := context.WithTimeout(ctx, a.etcd.attempt)
	defer cancel()
	var members []*etcdserverpb.Member
	err := a.etcd.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		list, err := etcd.MemberList(ctx, clientv3.WithSerializable())
		if err == nil {
			members = list.Members
		}
		return err
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent, h.complaint, h.leader = silent, complaint, leader
	if err == nil {
		h.members = members
	}
}

func (h *health) status(ctx context.Context, n int) (*etcdserverpb.StatusResponse, error) {
	e := h.arbiter.etcd
	c, err := e.client(n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.attempt)
	defer cancel()
	return clientv3.RetryMaintenanceClient(c, c.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
}

// setMembers notes what etcd has just said.
func (h *health) setMembers(members []*etcdserverpb.Member) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members = members
}

// voters is how many members have a vote; 0: not yet known.
func (h *health) voters() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, m := range h.members {
		if !m.IsLearner {
			n++
		}
	}
	return n
}

// line is View.Detail.
func (h *health) line() string {
	voters := h.voters()
	h.mu.Lock()
	defer h.mu.Unlock()
	var parts []string
	switch voters {
	case 0:
		parts = append(parts, "etcd: its members aren't known yet")
	case 1:
		parts = append(parts, "etcd: 1 voter")
	case 2:
		parts = append(parts, "etcd: 2 voters, of which none may fail: no automatic failover")
	default:
		parts = append(parts, fmt.Sprintf("etcd: %d voters", voters))
	}
	if h.leader == 0 {
		parts = append(parts, "no leader")
	}
	for _, m := range h.members {
		if m.ID == h.leader && m.ID != 0 {
			parts = append(parts, m.Name+" leads")
		}
		if m.IsLearner {
			parts = append(parts, m.Name+" is learning")
		}
	}
	switch {
	case h.probeErr != nil:
		parts = append(parts, "it commits nothing")
	case h.commit > slowCommit:
		parts = append(parts, fmt.Sprintf("a commit takes %v: its disk or network is slow", h.commit.Round(time.Millisecond)))
	case h.commit > 0:
		parts = append(parts, fmt.Sprintf("a commit takes %v", h.commit.Round(100*time.Microsecond)))
	}
	for _, s := range h.silent {
		parts = append(parts, s+" doesn't answer")
	}
	parts = append(parts, h.complaint...)
	if f := h.arbiter.cfg.Member; f != nil {
		if s := f(); s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ", ")
}
