package etcd_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/arbitertest"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd"
)

// TestConformance runs the suite against one member with TLS that all tests share,
// each with a prefix of its own; what restarts or is cut off has one for itself.
func TestConformance(t *testing.T) {
	shared := newCluster(t, 1, true)
	shared.start(t, 0)
	shared.ready(t, 0)
	arbitertest.Run(t, func(t *testing.T) arbitertest.Subject {
		name := t.Name()[strings.LastIndex(t.Name(), "/")+1:]
		c := shared
		if name == "Restart" || name == "Backup" {
			c = newCluster(t, 1, false)
			c.start(t, 0)
			c.ready(t, 0)
		}
		cfg := c.client("")
		s := arbitertest.Subject{Open: func(t *testing.T, node string) arbiter.Arbiter {
			cfg := cfg
			cfg.Cluster, cfg.Node = name, node
			return open(t, cfg)
		}}
		switch name {
		case "Restart":
			s.Restart = func(t *testing.T) {
				c.kill(t, 0)
				c.start(t, 0)
				c.ready(t, 0)
			}
		case "Backup":
			s.Backup = func(t *testing.T) func(*testing.T) { return backup(t, c) }
		case "Cut":
			u, err := url.Parse(cfg.Endpoints[0])
			if err != nil {
				t.Fatal(err)
			}
			way := newCable(t, u.Host)
			cfg.Endpoints = []string{"https://" + way.listener.Addr().String()}
			s.Cut = func(*testing.T) func() {
				way.cut()
				return way.mend
			}
		}
		return s
	})
}

// backup copies the data of a stopped member, as an administrator may do.
func backup(t *testing.T, c *cluster) (restore func(*testing.T)) {
	t.Helper()
	saved := filepath.Join(t.TempDir(), "backup")
	c.kill(t, 0)
	if err := os.CopyFS(saved, os.DirFS(c.configs[0].Dir)); err != nil {
		t.Fatal(err)
	}
	c.start(t, 0)
	c.ready(t, 0)
	return func(t *testing.T) {
		c.kill(t, 0)
		if err := os.RemoveAll(c.configs[0].Dir); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(c.configs[0].Dir, os.DirFS(saved)); err != nil {
			t.Fatal(err)
		}
		c.start(t, 0)
		c.ready(t, 0)
	}
}

func first(node string) arbiter.Claim {
	return arbiter.Claim{Resource: "r", Node: node, Session: "s", InSync: []string{"a", "b"}, Members: []string{"a", "b"}, Generation: 2}
}

// acquire claims the next term for its owner, and tells how long that took.
func acquire(t testing.TB, a *etcd.Arbiter, c arbiter.Claim) (arbiter.Record, time.Duration) {
	t.Helper()
	began := time.Now()
	rec, err := a.Acquire(background(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return rec, time.Since(began)
}

// TestMembersFail: one of three dies, whichever, and claims go on; two die, and
// nothing is known; they come back, and nothing was lost.
func TestMembersFail(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, true)
	c.start(t, 0, 1, 2)
	c.ready(t, 0, 1, 2)
	a := open(t, c.client("a"))
	ctx := background(t)
	rec, _ := acquire(t, a, first("a"))
	next := func() {
		t.Helper()
		claim := first("a")
		claim.Seen, claim.MinTerm = rec.Term, rec.Term
		rec, _ = acquire(t, a, claim)
	}
	for i := range 3 {
		c.kill(t, i)
		next()
		if err := a.Renew(ctx, "a", "s"); err != nil {
			t.Fatalf("Renew without member %d: %v", i, err)
		}
		c.start(t, i)
		c.ready(t, i)
		next()
	}
	c.kill(t, 1)
	c.kill(t, 2)
	claim := first("a")
	claim.Seen = rec.Term
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := a.Acquire(short, claim); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("Acquire without a majority: %v, want ErrUnreachable", err)
	}
	if _, err := a.Observe(short, "r"); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("Observe without a majority: %v, want ErrUnreachable", err)
	}
	c.start(t, 1)
	for {
		v, err := a.Observe(ctx, "r")
		if err == nil {
			if got := v.Records[0]; got.Owner != "a" || got.Term < rec.Term {
				t.Errorf("with a majority back the record is %+v, it was %+v", got, rec)
			}
			rec = v.Records[0]
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	next()
}

// TestUserAndPassword: a user with a role for the prefix is all that is needed, and
// a wrong password is told at once.
func TestUserAndPassword(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, false)
	c.start(t, 0)
	c.ready(t, 0)
	ctx := background(t)
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{c.configs[0].ClientURL}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(root.UserAdd(ctx, "root", "rootpw"))
	must(root.UserGrantRole(ctx, "root", "root"))
	must(root.RoleAdd(ctx, "pollux"))
	must(root.RoleGrantPermission(ctx, "pollux", "/pollux/c/", "/pollux/c0", clientv3.PermissionType(clientv3.PermReadWrite)))
	must(root.UserAdd(ctx, "pollux", "secret"))
	must(root.UserGrantRole(ctx, "pollux", "pollux"))
	must(root.AuthEnable(ctx))

	cfg := c.client("a")
	cfg.User, cfg.Password = "pollux", "secret"
	a := open(t, cfg)
	if err := a.Renew(ctx, "a", "s"); err != nil {
		t.Fatal(err)
	}
	rec, _ := acquire(t, a, first("a"))
	// The member forgets its tokens, the client has to log in again.
	c.kill(t, 0)
	c.start(t, 0)
	c.ready(t, 0)
	claim := first("a")
	claim.Seen = rec.Term
	acquire(t, a, claim)
	if err := a.Renew(ctx, "a", "s"); err != nil {
		t.Fatal(err)
	}

	for what, wrong := range map[string]func(*etcd.Config){
		"a wrong password":  func(c *etcd.Config) { c.Password = "wrong" },
		"no user":           func(c *etcd.Config) { c.User, c.Password = "", "" },
		"another's cluster": func(c *etcd.Config) { c.Cluster = "other" },
	} {
		cfg := cfg
		wrong(&cfg)
		began := time.Now()
		_, err := open(t, cfg).Observe(ctx, "r")
		if !errors.Is(err, arbiter.ErrUnreachable) || ctx.Err() != nil {
			t.Errorf("%s: %v, want ErrUnreachable", what, err)
		}
		t.Logf("%s, after %v: %v", what, time.Since(began).Round(time.Millisecond), err)
	}
}

// BenchmarkClaim is one claim with three voters on loopback, TLS, each with its own log.
func BenchmarkClaim(b *testing.B) {
	c := newCluster(b, 3, true)
	c.start(b, 0, 1, 2)
	c.ready(b, 0, 1, 2)
	a := open(b, c.client("a"))
	rec, _ := acquire(b, a, first("a"))
	var times []time.Duration
	for b.Loop() {
		claim := first("a")
		claim.Seen = rec.Term
		var took time.Duration
		rec, took = acquire(b, a, claim)
		times = append(times, took)
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "median-us")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
}
