package etcd_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd/embedded"
)

// handOver has the members that run elect another leader, as a disk that stalls or a
// network that is ill makes them do.
func (c *cluster) handOver(t *testing.T) {
	t.Helper()
	var ids []uint64
	leader, leaders := -1, uint64(0)
	clients := make([]*clientv3.Client, len(c.members))
	for i, m := range c.members {
		if m == nil {
			continue
		}
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.configs[i].ClientURL}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		clients[i] = client
		s, err := client.Status(background(t), c.configs[i].ClientURL)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.Header.MemberId)
		if s.Leader == s.Header.MemberId {
			leader, leaders = i, s.Leader
		}
	}
	for _, id := range ids {
		if leader >= 0 && id != leaders {
			if _, err := clients[leader].MoveLeader(background(t), id); err != nil {
				t.Log(err) // an election comes between
			}
			return
		}
	}
}

// TestElectionsInARow: the host of the leader dies, and the others elect one after the
// other. etcd's lease never ends that way; the node is replaced all the same, and not
// before its time.
func TestElectionsInARow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, false)
	c.start(t, 0, 1, 2)
	c.ready(t, 0, 1, 2)
	ctx := background(t)
	b := open(t, c.client("b"))
	rec, _ := acquire(t, b, first("a"))
	a := open(t, c.client("a"))
	if err := a.Renew(ctx, "a", "s"); err != nil {
		t.Fatal(err)
	}
	// A node that lives renews under each new leader, and keeps its lease.
	over := first("b")
	over.Seen, over.InSync = rec.Term, []string{"b"}
	var sent time.Time
	for began := time.Now(); time.Since(began) < 3*ttl; time.Sleep(ttl / 5) { // real elections
		c.handOver(t)
		now := time.Now()
		if err := a.Renew(ctx, "a", "s"); err != nil {
			t.Fatal(err)
		}
		sent = now
		if _, err := b.Acquire(ctx, over); !errors.Is(err, arbiter.ErrHeld) {
			t.Fatalf("takeover from a node that renews: %v, want ErrHeld", err)
		}
	}
	line := detail(t, open(t, c.client("x")), "leads")
	leader := strings.Index("012", string(line[strings.Index(line, " leads")-1]))
	c.kill(t, leader)
	handed := time.Now()
	for {
		_, err := b.Acquire(ctx, over)
		after := time.Since(sent)
		if err == nil {
			t.Logf("takeover %v after the last renewal, TTL %v", after.Round(time.Millisecond), ttl)
			if after < ttl {
				t.Errorf("takeover %v after the last renewal", after)
			}
			return
		}
		if !errors.Is(err, arbiter.ErrHeld) && !errors.Is(err, arbiter.ErrUnreachable) {
			t.Fatal(err)
		}
		if after > 10*ttl {
			t.Fatalf("no takeover after %v: %v", after, err)
		}
		if time.Since(handed) > ttl/2 {
			handed = time.Now()
			c.handOver(t)
		}
		time.Sleep(20 * time.Millisecond) // elections are real
	}
}

// TestThirdVoterJustJoined: what was seen last may be the time before the witness
// joined; a host that dies then is replaced at once, not at the next look.
func TestThirdVoterJustJoined(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, false)
	c.configs[0].Voters = map[string]string{"m0": c.configs[0].PeerURL}
	c.start(t, 0)
	c.ready(t, 0)
	ctx := background(t)
	join := func(i int) {
		t.Helper()
		m, err := embedded.Join(ctx, c.configs[i], c.configs[0].ClientURL)
		if err != nil {
			t.Fatal(err)
		}
		c.members[i] = m
		c.ready(t, i)
	}
	join(1)
	b := open(t, c.client("b"))
	rec, _ := acquire(t, b, first("a"))
	detail(t, b, "2 voters")
	join(2)
	over := first("b")
	over.Seen, over.InSync = rec.Term, []string{"b"}
	if _, err := b.Acquire(ctx, over); err != nil {
		t.Errorf("takeover right after the third voter has joined: %v", err)
	}
}
