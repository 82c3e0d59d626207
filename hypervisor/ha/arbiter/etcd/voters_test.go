package etcd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/etcd/embedded"
)

// detail waits until the line for people has all these words.
func detail(t *testing.T, a *etcd.Arbiter, words ...string) string {
	t.Helper()
	var line string
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) { // it is looked at by its own clock
		v, err := a.Observe(background(t))
		if err != nil {
			continue
		}
		line = v.Detail
		missing := false
		for _, w := range words {
			missing = missing || !strings.Contains(line, w)
		}
		if !missing {
			return line
		}
	}
	t.Fatalf("the line is %q, want %q in it", line, words)
	return ""
}

// TestJoin: a cluster of one voter becomes one of two, where nobody takes over by
// itself, and one of three, where somebody does; one that is ill lets nobody in.
func TestJoin(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, true)
	c.configs[0].Voters = map[string]string{"m0": c.configs[0].PeerURL}
	c.start(t, 0)
	c.ready(t, 0)
	ctx := background(t)
	first0 := c.configs[0].ClientURL
	join := func(i int) {
		t.Helper()
		m, err := embedded.Join(ctx, c.configs[i], first0)
		if err != nil {
			t.Fatal(err)
		}
		c.members[i] = m
		c.ready(t, i)
	}
	cfg := c.client("a")
	cfg.Endpoints = cfg.Endpoints[:1]
	detail(t, open(t, cfg), "1 voter", "m0 leads")
	join(1)
	a := open(t, cfg)
	t.Log(detail(t, a, "2 voters", "no automatic failover"))
	rec, _ := acquire(t, a, first("a"))
	over := first("b")
	over.Seen, over.InSync = rec.Term, []string{"b"}
	if _, err := a.Acquire(ctx, over); !errors.Is(err, arbiter.ErrHeld) || !strings.Contains(err.Error(), "add a witness") {
		t.Errorf("takeover with two voters: %v, want ErrHeld", err)
	}
	if err := a.Release(ctx, "r", "a", rec.Term); err != nil {
		t.Fatal(err)
	}
	rec, _ = acquire(t, a, over)
	c.kill(t, 1)
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	if _, err := embedded.Join(short, c.configs[2], first0); err == nil {
		t.Error("a member joins while another does not answer")
	}
	cancel()
	c.start(t, 1)
	c.ready(t, 1)
	join(2)
	a = open(t, c.client("a"))
	t.Log(detail(t, a, "3 voters", "a commit takes"))
	over = first("a")
	over.Seen, over.InSync = rec.Term, []string{"a"}
	if _, err := a.Acquire(ctx, over); !errors.Is(err, arbiter.ErrStale) {
		t.Errorf("takeover with three voters: %v, want ErrStale, as b is alone", err)
	}
	if err := embedded.Remove(ctx, c.configs[0], "m2", first0); err != nil {
		t.Fatal(err)
	}
	detail(t, open(t, cfg), "2 voters")
}

// TestLeaderKilled: the host of the leader dies, and with it a node; its lease ends,
// not before its time, and not much later.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, false)
	c.start(t, 0, 1, 2)
	c.ready(t, 0, 1, 2)
	ctx := background(t)
	line := detail(t, open(t, c.client("x")), "leads")
	leader := strings.Index("012", string(line[strings.Index(line, " leads")-1]))
	cfg := c.client("b")
	b := open(t, cfg)
	rec, _ := acquire(t, b, first("a"))
	sent := time.Now()
	if err := open(t, c.client("a")).Renew(ctx, "a", "s"); err != nil {
		t.Fatal(err)
	}
	c.kill(t, leader)
	over := first("b")
	over.Seen, over.InSync = rec.Term, []string{"b"}
	for {
		_, err := b.Acquire(ctx, over)
		after := time.Since(sent)
		if err == nil {
			t.Logf("m%d led; takeover %v after the last renewal, TTL %v, election timeout %v", leader, after.Round(time.Millisecond), ttl, election)
			if after < ttl {
				t.Errorf("takeover %v after the last renewal", after)
			}
			return
		}
		if !errors.Is(err, arbiter.ErrHeld) {
			t.Fatal(err)
		}
		if after > limit/2 {
			t.Fatalf("no takeover after %v: %v", after, err)
		}
		time.Sleep(20 * time.Millisecond) // an etcd lease ends by real time only
	}
}

// TestStrangers: without a certificate of the CA nobody is let in, as client or as
// member.
func TestStrangers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, true)
	c.start(t, 0)
	c.ready(t, 0)
	ca, cert, key := certs(t)
	for name, change := range map[string]func(*etcd.Config){
		"no certificate":     func(c *etcd.Config) { c.Cert, c.Key = "", "" },
		"another CA's":       func(c *etcd.Config) { c.Cert, c.Key = cert, key },
		"etcd isn't trusted": func(c *etcd.Config) { c.CA = ca },
		"etcd of another name": func(c *etcd.Config) {
			c.Endpoints = []string{strings.Replace(c.Endpoints[0], "127.0.0.1", "localhost", 1)}
		},
	} {
		cfg := c.client("a")
		change(&cfg)
		ctx, cancel := context.WithTimeout(background(t), time.Second)
		if _, err := open(t, cfg).Observe(ctx); !errors.Is(err, arbiter.ErrUnreachable) {
			t.Errorf("%s: %v, want ErrUnreachable", name, err)
		}
		cancel()
	}
}

func TestConfig(t *testing.T) {
	good := etcd.Config{Cluster: "c", Node: "a", TTL: time.Second, Endpoints: []string{"https://10.0.0.1:2379"}}
	if _, err := etcd.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*etcd.Config){
		"no cluster":                 func(c *etcd.Config) { c.Cluster = "" },
		"no endpoint":                func(c *etcd.Config) { c.Endpoints = nil },
		"no scheme":                  func(c *etcd.Config) { c.Endpoints = []string{"10.0.0.1:2379"} },
		"no TLS on the network":      func(c *etcd.Config) { c.Endpoints = []string{"http://10.0.0.1:2379"} },
		"a path":                     func(c *etcd.Config) { c.Endpoints = []string{"https://10.0.0.1:2379/x"} },
		"a TTL below etcd's seconds": func(c *etcd.Config) { c.TTL = time.Second / 2 },
		"a key without certificate":  func(c *etcd.Config) { c.Key = "x" },
		"no such file":               func(c *etcd.Config) { c.CA = "/nonexistent" },
		"a user without password":    func(c *etcd.Config) { c.User = "x" },
	} {
		cfg := good
		change(&cfg)
		if _, err := etcd.New(cfg); err == nil {
			t.Errorf("%s: New accepts it", name)
		}
	}
}

// TestMember: what can't be a member says why, and a disk that is full ends the
// member, not the program.
func TestMember(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, false)
	for name, change := range map[string]func(*embedded.Config){
		"no name":                 func(c *embedded.Config) { c.Name = "" },
		"not among the voters":    func(c *embedded.Config) { c.Voters = map[string]string{"x": c.PeerURL} },
		"no voters and no data":   func(c *embedded.Config) { c.Voters = nil },
		"https without key":       func(c *embedded.Config) { c.PeerURL = strings.Replace(c.PeerURL, "http", "https", 1) },
		"an election too short":   func(c *embedded.Config) { c.Election = c.Heartbeat },
		"a directory that is not": func(c *embedded.Config) { c.Dir = "/dev/null/x" },
	} {
		cfg := c.configs[0]
		change(&cfg)
		if m, err := embedded.Start(cfg); err == nil {
			t.Errorf("%s: Start accepts it", name)
			_ = m.Close() // it should not be there
		}
	}
	c.start(t, 0)
	c.ready(t, 0)
	second := c.configs[0]
	if _, err := embedded.Start(second); err == nil {
		t.Error("two members with one address and one directory")
	}
	c.kill(t, 0)
	// A log that is damaged: etcd would end the process.
	logs, err := filepath.Glob(filepath.Join(c.configs[0].Dir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	if err := os.WriteFile(logs[0], []byte(strings.Repeat("broken", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(c.configs[0]); err == nil {
		t.Error("a member starts with a damaged log")
	} else {
		t.Log(err)
	}
}
