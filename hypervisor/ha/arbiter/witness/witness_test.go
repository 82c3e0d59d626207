package witness

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter"
	"github.com/pollux-project/pollux/hypervisor/ha/arbiter/arbitertest"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// site is a cluster of the nodes "a" and "b", with their certificates.
type site struct {
	ca   string // file
	own  map[string]tls.Certificate
	name string
}

func newSite(t testing.TB, name string) *site {
	t.Helper()
	s := &site{name: name, own: map[string]tls.Certificate{}}
	addr := func() netip.AddrPort {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	store := func() control.Store {
		dir := t.TempDir()
		return control.Store{Dir: filepath.Join(dir, "cluster"), File: filepath.Join(dir, "cluster.toml")}
	}
	a, b := store(), store()
	if _, err := control.Init(a, control.InitOptions{Cluster: name, Node: "a", Links: []netip.AddrPort{addr()}}); err != nil {
		t.Fatal(err)
	}
	id, c, err := a.Load()
	if err != nil {
		t.Fatal(err)
	}
	ch, err := control.Start(control.Config{Store: a, Identity: id, Cluster: c, Session: "s", Log: zerolog.Nop()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	tok, err := ch.NewToken(control.TokenRequest{Node: "b", Kind: conf.NodeData, Links: []netip.AddrPort{addr()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.Join(context.Background(), b, tok.String(), control.JoinOptions{Node: "b"}); err != nil {
		t.Fatal(err)
	}
	s.ca = a.CAFile()
	for name, st := range map[string]control.Store{"a": a, "b": b} {
		id, _, err := st.Load()
		if err != nil {
			t.Fatal(err)
		}
		s.own[name] = id.TLSCertificate()
	}
	return s
}

// host is the machine of a witness, which can lose its process.
type host struct {
	t    testing.TB
	dir  string
	addr netip.AddrPort
	now  func() time.Duration
	disk func(string) vfs
	s    *Server
	done chan error
}

func newHost(t testing.TB, now func() time.Duration, sites ...*site) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), now: now}
	for _, s := range sites {
		h.add(s)
	}
	h.start()
	t.Cleanup(func() {
		if h.s != nil {
			h.stop()
		}
	})
	return h
}

func (h *host) add(s *site) {
	h.t.Helper()
	text, err := os.ReadFile(s.ca)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(h.dir, "clusters"), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "clusters", s.name+".pem"), text, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) start() {
	h.t.Helper()
	s, err := NewServer(Config{Dir: h.dir, Log: zerolog.Nop(), now: h.now, disk: h.disk})
	if err != nil {
		h.t.Fatal(err)
	}
	at := "127.0.0.1:0"
	if h.addr.IsValid() {
		at = h.addr.String()
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		h.t.Fatal(err)
	}
	h.addr = l.Addr().(*net.TCPAddr).AddrPort()
	h.s, h.done = s, make(chan error, 1)
	go func() { h.done <- s.Serve(l) }()
}

func (h *host) stop() {
	h.t.Helper()
	if err := h.s.Close(); err != nil {
		h.t.Error(err)
	}
	if err := <-h.done; err != nil {
		h.t.Error(err)
	}
	h.s = nil
}

func (h *host) client(s *site, node string, ttl time.Duration) *Client {
	h.t.Helper()
	c, err := NewClient(ClientConfig{Address: h.addr, Fingerprint: h.s.Fingerprint(), Certificate: s.own[node], TTL: ttl})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestConformance(t *testing.T) {
	s := newSite(t, "office")
	arbitertest.Run(t, func(t *testing.T) arbitertest.Subject {
		clock := new(arbitertest.Clock)
		h := newHost(t, clock.Now, s)
		return arbitertest.Subject{
			Open:    func(_ *testing.T, node string) arbiter.Arbiter { return h.client(s, node, 6*time.Second) },
			Advance: clock.Advance,
			Restart: func(*testing.T) { h.stop(); h.start() },
			Backup: func(t *testing.T) func(*testing.T) {
				saved := filepath.Join(t.TempDir(), "saved")
				if err := os.CopyFS(saved, os.DirFS(h.dir)); err != nil {
					t.Fatal(err)
				}
				return func(t *testing.T) {
					h.stop()
					if err := os.RemoveAll(h.dir); err != nil {
						t.Fatal(err)
					}
					if err := os.CopyFS(h.dir, os.DirFS(saved)); err != nil {
						t.Fatal(err)
					}
					if err := os.Chmod(filepath.Join(h.dir, "witness.key"), 0o600); err != nil {
						t.Fatal(err)
					}
					h.start()
				}
			},
			Cut: func(*testing.T) func() { h.stop(); return h.start },
		}
	})
}

// Clusters do not see each other, and a node speaks for itself only.
func TestIsolation(t *testing.T) {
	one, two := newSite(t, "one"), newSite(t, "two")
	h := newHost(t, nil, one, two)
	ctx := t.Context()
	a1, b1, a2 := h.client(one, "a", time.Second), h.client(one, "b", time.Second), h.client(two, "a", time.Second)
	claim := func(node string, seen uint64) arbiter.Claim {
		return arbiter.Claim{Resource: "r", Node: node, Session: "s", Seen: seen, InSync: []string{"a", "b"}, Members: []string{"a", "b"}}
	}
	rec, err := a1.Acquire(ctx, claim("a", 0))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := a2.Observe(ctx, "r"); err != nil || v.Records[0].Term != 0 || len(v.Leases) != 0 {
		t.Errorf("the other cluster sees %+v, %v", v, err)
	}
	if rec2, err := a2.Acquire(ctx, claim("a", 0)); err != nil || rec2.Term != rec.Term {
		t.Errorf("the same resource in the other cluster: %+v, %v", rec2, err)
	}
	if _, err := b1.Acquire(ctx, claim("a", rec.Term)); !errors.Is(err, arbiter.ErrInvalid) {
		t.Errorf("b claims for a: %v", err)
	}
	if err := b1.Release(ctx, "r", "a", rec.Term); !errors.Is(err, arbiter.ErrChanged) {
		t.Errorf("b releases for a: %v", err)
	}
	if err := b1.Renew(ctx, "a", "s"); !errors.Is(err, arbiter.ErrUnreachable) || !strings.Contains(err.Error(), "speaks for itself only") {
		t.Errorf("b renews for a: %v", err)
	}
	if err := b1.Resign(ctx, "a", "s"); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("b resigns for a: %v", err)
	}
	if v, err := a1.Observe(ctx, "r"); err != nil || v.Records[0].Released || v.Records[0].Term != rec.Term {
		t.Errorf("after all that: %+v, %v", v, err)
	}

	// A cluster that nobody has made known, and a witness that is another one.
	stranger := newSite(t, "one")
	if err := h.client(stranger, "a", time.Second).Renew(ctx, "a", "s"); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("a stranger: %v", err)
	}
	wrong, err := NewClient(ClientConfig{Address: h.addr, Fingerprint: control.Fingerprint(nil), Certificate: one.own["a"], TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	if err := wrong.Renew(ctx, "a", "s"); !errors.Is(err, arbiter.ErrUnreachable) || !strings.Contains(err.Error(), "compare with `pollux-witness status`") {
		t.Errorf("another witness: %v", err)
	}

	// A cluster that is removed gets no answer any more, connection or not; its
	// records are there when it comes back.
	file := filepath.Join(h.dir, "clusters", "one.pem")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := h.s.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := a1.Observe(ctx, "r"); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Errorf("a removed cluster: %v", err)
	}
	if _, err := a2.Observe(ctx, "r"); err != nil {
		t.Errorf("the cluster beside it: %v", err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "clusters", "renamed.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "clusters", "same.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "clusters", "broken.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.s.Reload(); err != nil {
		t.Fatal(err)
	}
	if v, err := a1.Observe(ctx, "r"); err != nil || v.Records[0].Term != rec.Term {
		t.Errorf("a cluster under a new name: %+v, %v", v, err)
	}
	st := h.s.Status()
	if len(st.Clusters) != 2 || len(st.Problems) != 2 || !strings.Contains(strings.Join(st.Problems, "\n"), "is that of cluster renamed already") {
		t.Errorf("status: %+v", st)
	}
}

// What no client sends is refused and harms nobody.
func TestBadRequests(t *testing.T) {
	s := newSite(t, "office")
	h := newHost(t, nil, s)
	c := h.client(s, "a", time.Second)
	post := func(method, path, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "https://"+h.addr.String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.http.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer a.Body.Close()
		text, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		return a.StatusCode, string(text)
	}
	long := strings.Repeat("x", 300)
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", pathAcquire, "", 400, "no JSON"},
		{"POST", pathAcquire, "{}", 404, "does not know"},
		{"POST", pathAcquire, `{"claim":{"node":"a"}}`, 400, "without a resource"},
		{"POST", pathAcquire, `{"claim":{"resource":"` + long + `","node":"a"}}`, 400, "a name of 300 bytes"},
		{"POST", pathAcquire, `{"claim":{"resource":"r\n","node":"a"}}`, 400, "control characters"},
		{"POST", pathAcquire, `{"claim":{"resource":"r","node":"a","members":[` + strings.Repeat(`"a",`, 40) + `"a"]}}`, 400, "41 copies"},
		{"POST", pathRenew, `{"node":"a","ttl_ms":1}`, 503, "a lease of 1ms"},
		{"POST", pathRenew, `{"ttl_ms":6000}`, 404, "does not know"},
		{"POST", pathObserve, `{"resources":["` + strings.Repeat(`a","`, 9000) + `"]}`, 400, "at most 8192"},
		{"POST", pathObserve, `{"resources":["` + strings.Repeat("x", 2<<20) + `"]}`, 400, "too large"},
		{"GET", pathObserve, "{}", 404, "does not know"},
		{"POST", "/v2/acquire", "{}", 404, "does not know"},
		{"POST", "/", "{}", 404, "does not know"},
	} {
		if status, text := post(tt.method, tt.path, tt.body); status != tt.status || !strings.Contains(text, tt.want) {
			t.Errorf("%s %s %.60s: %d %.200s, want %d and %q", tt.method, tt.path, tt.body, status, text, tt.status, tt.want)
		}
	}
	if err := c.Renew(t.Context(), "a", "s"); err != nil {
		t.Errorf("after all that: %v", err)
	}
	for range 3 { // no TLS, and nothing at all
		nc, err := net.Dial("tcp", h.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Renew(t.Context(), "a", "s"); err != nil {
		t.Errorf("beside strangers: %v", err)
	}
}

// A cluster that asks too much is slowed down; the one beside it is not.
func TestRate(t *testing.T) {
	one, two := newSite(t, "one"), newSite(t, "two")
	h := newHost(t, nil, one, two)
	m := h.s.clusters["one"]
	m.mu.Lock()
	m.tokens, m.filled = 1, time.Now().Add(time.Hour) // used up, and refilled later
	m.mu.Unlock()
	a := h.client(one, "a", time.Second)
	if m.allow("a"); m.allow("a") {
		t.Error("a request beyond the allowance was taken")
	}
	if err := a.Renew(t.Context(), "a", "s"); !errors.Is(err, arbiter.ErrUnreachable) || !strings.Contains(err.Error(), "requests a second") {
		t.Errorf("beyond its allowance: %v", err)
	}
	if err := h.client(two, "a", time.Second).Renew(t.Context(), "a", "s"); err != nil {
		t.Errorf("the cluster beside it: %v", err)
	}
	l := &limited{hosts: map[netip.Addr]int{}}
	x, y := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for range maxHostConns {
		if !l.take(x) {
			t.Fatal("a connection within the bound was refused")
		}
	}
	if l.take(x) || !l.take(y) {
		t.Error("one host may have all connections, or keeps another out")
	}
	if l.give(x); !l.take(x) {
		t.Error("a place that was given back is not free")
	}
}

// While the witness itself stood still nobody could renew: no lease ends by that.
func TestStandstill(t *testing.T) {
	clock := new(arbitertest.Clock)
	c, err := newCluster("office", newCrashDir(1), clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close() //nolint:errcheck // in memory
	ask := func(f func(x *txn) error) {
		t.Helper()
		if err := c.do(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	clock.Advance(defaultTTL + time.Second) // in one step: it sleeps
	ask(func(x *txn) error { return x.renew("a", "s", 6*time.Second) })
	alive := func() (is bool) {
		ask(func(x *txn) error { is = x.lease("a").Alive; return nil })
		return is
	}
	clock.Advance(30 * time.Second) // stopped for half a minute
	if !alive() {
		t.Error("a lease ended while the witness was stopped")
	}
	for range 7 {
		clock.Advance(time.Second) // running
		_ = alive()
	}
	if alive() {
		t.Error("a lease without renewal does not end")
	}
}

// Watchers hear of a lease's end without asking, and of nothing when nothing is.
func TestWatchLeaseEnd(t *testing.T) {
	s := newSite(t, "office")
	h := newHost(t, nil, s)
	a, b := h.client(s, "a", 300*time.Millisecond), h.client(s, "b", time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	calls := make(chan time.Time, 100)
	var wg sync.WaitGroup
	wg.Go(func() { b.Watch(ctx, func() { calls <- time.Now() }) })
	<-calls // the first answer
	renewed := time.Now()
	if err := a.Renew(ctx, "a", "s"); err != nil {
		t.Fatal(err)
	}
	<-calls // a new session
	if err := a.Renew(ctx, "a", "s"); err != nil {
		t.Fatal(err)
	}
	ended := <-calls
	if d := ended.Sub(renewed); d < 300*time.Millisecond {
		t.Errorf("the end of a lease was told %v after its renewal", d)
	}
	if v, err := b.Observe(ctx); err != nil || v.Lease("a").Alive {
		t.Errorf("%+v, %v", v, err)
	}
	cancel()
	wg.Wait()
	if len(calls) > 0 {
		t.Errorf("%d calls too many", len(calls))
	}
}
