package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/conf"
)

// node is one member under test.
type node struct {
	*Channel
	name  string
	store Store
	skew  atomic.Int64 // added to its clock
	log   *syncBuffer

	mu       sync.Mutex
	beats    map[string]Beat // newest per node and link
	changed  int
	links    []LinkChange
	clusters []*conf.Cluster
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newNode(t *testing.T, name string) *node {
	t.Helper()
	dir := t.TempDir()
	return &node{
		name: name, store: Store{Dir: filepath.Join(dir, "cluster"), File: filepath.Join(dir, "cluster.toml")},
		beats: map[string]Beat{}, log: &syncBuffer{},
	}
}

// freeAddr is an address on loopback that nobody listens on.
func freeAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func addrs(t testing.TB, n int) []netip.AddrPort {
	t.Helper()
	list := make([]netip.AddrPort, n)
	for i := range list {
		list[i] = freeAddr(t)
	}
	return list
}

// quick makes the times of a cluster short, and deadtime long enough for a busy
// machine.
func quick(c *conf.Cluster) error {
	c.Heartbeat = conf.Heartbeat{
		Keepalive: conf.Duration{Duration: 20 * time.Millisecond}, Warntime: conf.Duration{Duration: 2 * time.Second},
		Deadtime: conf.Duration{Duration: 4 * time.Second}, Initdead: conf.Duration{Duration: 8 * time.Second},
	}
	return nil
}

func (n *node) init(t *testing.T, cluster string, links ...netip.AddrPort) *conf.Cluster {
	t.Helper()
	c, err := Init(n.store, InitOptions{Cluster: cluster, Node: n.name, Links: links, Change: quick})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start starts the node's channel; change may be nil.
func (n *node) start(t *testing.T, handlers map[string]Handler, change func(*Config)) {
	t.Helper()
	id, c, err := n.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Store: n.store, Identity: id, Cluster: c, Session: n.name + randomHex(4), Boot: "boot-" + n.name, Software: "test",
		Log:       zerolog.New(n.log),
		OnBeat:    n.onBeat,
		OnLink:    func(l LinkChange) { n.mu.Lock(); n.links = append(n.links, l); n.mu.Unlock() },
		OnCluster: func(c *conf.Cluster) { n.mu.Lock(); n.clusters = append(n.clusters, c); n.mu.Unlock() },
		now:       func() time.Duration { return bootTime() + time.Duration(n.skew.Load()) },
	}
	if change != nil {
		change(&cfg)
	}
	if n.Channel, err = Start(cfg, handlers); err != nil {
		t.Fatal(err)
	}
	ch := n.Channel
	t.Cleanup(func() {
		if err := ch.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (n *node) onBeat(b Beat) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.beats[fmt.Sprintf("%s/%d", b.Node, b.Link)] = b
	if b.Changed {
		n.changed++
	}
}

func (n *node) newest(peer string, link int) Beat {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.beats[fmt.Sprintf("%s/%d", peer, link)]
}

func (n *node) peer(name string) Peer {
	for _, p := range n.Peers() {
		if p.Node == name {
			return p
		}
	}
	return Peer{Links: []Link{{}, {}}}
}

// eventually waits for something that other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) { // nothing tells when; bounded
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// join lets a new node in through another one, and starts it.
func (n *node) join(t *testing.T, via *node, kind string, handlers map[string]Handler, links ...netip.AddrPort) {
	t.Helper()
	tok, err := via.NewToken(TokenRequest{Node: n.name, Kind: kind, Links: links})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), n.store, tok.String(), JoinOptions{Node: n.name}); err != nil {
		t.Fatal(err)
	}
	n.start(t, handlers, nil)
}

// pair is two nodes with two links, connected.
func pair(t *testing.T, handlers map[string]Handler) (a, b *node) {
	t.Helper()
	a, b = newNode(t, "a"), newNode(t, "b")
	a.init(t, "office", addrs(t, 2)...)
	a.start(t, handlers, nil)
	b.join(t, a, "", handlers, addrs(t, 2)...)
	meet(t, a, b)
	return a, b
}

// meet waits until all see each other over all links.
func meet(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		for _, o := range nodes {
			if n == o {
				continue
			}
			eventually(t, n.name+" hears "+o.name+" over all links", func() bool {
				p := n.peer(o.name)
				for _, l := range p.Links {
					if l.State != LinkOK {
						return false
					}
				}
				return len(p.Links) > 0
			})
		}
	}
}

func TestHeartbeats(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	if err := a.SetPayload([]byte("one")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b has the payload over both links", func() bool {
		return string(b.newest("a", 0).Payload) == "one" && string(b.newest("a", 1).Payload) == "one"
	})
	if got := b.newest("a", 0); got.Session != a.cfg.Session || got.Boot != "boot-a" || got.Version != 1 {
		t.Errorf("%+v", got)
	}
	if err := a.SetPayload([]byte("two")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b has the next payload", func() bool { return string(b.newest("a", 1).Payload) == "two" })
	b.mu.Lock()
	if b.changed != 2 {
		t.Errorf("the payload changed %d times for b, want 2: once for each SetPayload, whatever the links", b.changed)
	}
	b.mu.Unlock()
	eventually(t, "the round trip is known", func() bool { return a.peer("b").Links[0].RTT > 0 && b.peer("a").Links[1].RTT > 0 })
	if p := a.peer("b"); p.Links[0].Lost != 0 || p.Links[0].RTT > 10*time.Second || p.State() != LinkOK || p.Session != b.cfg.Session || p.Version != Version {
		t.Errorf("%+v", p)
	}
	if err := a.SetPayload(make([]byte, MaxBody+1)); err == nil {
		t.Error("a payload beyond the bound was taken")
	}
	if b.newest("b", 0).Node != "" {
		t.Error("b hears itself")
	}
}

// The times of a link's state are those of a clock that only this node has.
func TestLinkStates(t *testing.T) {
	t.Parallel()
	a, _ := pair(t, nil)
	a.skew.Store(int64(time.Hour)) // as after a suspend: nothing was heard for an hour
	if s := a.peer("b").State(); s != LinkDead && a.peer("b").Silent > time.Hour {
		t.Errorf("silent for an hour, and %s", s)
	}
	eventually(t, "the next heartbeat makes it ok again", func() bool { return a.peer("b").State() == LinkOK })
	a.Close()
	b := newNode(t, "x")
	b.init(t, "other", addrs(t, 1)...)
	b.start(t, nil, nil)
	if len(b.Peers()) != 0 {
		t.Errorf("peers of a cluster of one: %v", b.Peers())
	}
}

// proxy is a wire between two nodes that can be cut.
type proxy struct {
	l      net.Listener
	to     string
	frozen atomic.Bool
	mu     sync.Mutex
	conns  []net.Conn
	gone   chan struct{}
}

func newProxy(t *testing.T, to netip.AddrPort) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to.String(), gone: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			into, err := net.Dial("tcp", p.to)
			if err != nil {
				from.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, from, into)
			p.mu.Unlock()
			for _, c := range [][2]net.Conn{{from, into}, {into, from}} {
				wg.Go(func() { p.copy(c[0], c[1]) })
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(p.gone)
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		wg.Wait()
	})
	return p
}

func (p *proxy) addr() netip.AddrPort { return p.l.Addr().(*net.TCPAddr).AddrPort() }

func (p *proxy) copy(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		for p.frozen.Load() { // a cut cable: nothing passes, nobody is told
			select {
			case <-p.gone:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// A link that carries nothing any more is seen to be late, then dead; the other
// one carries on, requests included, and the first one comes back by itself.
func TestLinkCut(t *testing.T) {
	t.Parallel()
	a, b := newNode(t, "a"), newNode(t, "b")
	a.init(t, "office", addrs(t, 2)...)
	a.start(t, nil, nil)
	real := freeAddr(t)
	wire := newProxy(t, real)
	tok, err := a.NewToken(TokenRequest{Node: "b", Links: []netip.AddrPort{wire.addr(), freeAddr(t)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), b.store, tok.String(), JoinOptions{Node: "b"}); err != nil {
		t.Fatal(err)
	}
	echo := func(_ context.Context, from string, body []byte, _ func([]byte) error) ([]byte, error) {
		return append([]byte(from+":"), body...), nil
	}
	b.start(t, map[string]Handler{"echo": echo}, func(c *Config) { c.Listen = real })
	meet(t, a, b)
	wire.frozen.Store(true)
	eventually(t, "link 0 is late", func() bool { return a.peer("b").Links[0].State == LinkLate })
	if p := a.peer("b"); p.Links[1].State != LinkOK || p.State() != LinkOK {
		t.Errorf("with one link of two: %+v", p)
	}
	got, err := a.Request(t.Context(), "b", "echo", []byte("hi"), nil)
	if err != nil || string(got) != "a:hi" {
		t.Errorf("a request with one link cut: %q, %v", got, err)
	}
	// Nobody waits for the peer that takes nothing, however much there is for it.
	began := time.Now()
	for i := range 30 {
		if err := a.SetPayload(bytes.Repeat([]byte{byte(i)}, MaxBody)); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(began); d > 3*time.Second { // less than deadtime, when it would be given up
		t.Errorf("30 payloads beside a link that takes nothing took %v", d)
	}
	eventually(t, "link 0 is dead", func() bool { return a.peer("b").Links[0].State == LinkDead && b.peer("a").Links[0].State == LinkDead })
	if why := a.peer("b").Links[0].Why; why == "" {
		t.Error("a dead link without a reason")
	}
	wire.frozen.Store(false)
	meet(t, a, b)
	eventually(t, "what did not come is counted", func() bool { return a.peer("b").Links[0].Lost > 0 })
	a.mu.Lock()
	defer a.mu.Unlock()
	down := 0
	for _, l := range a.links {
		if l.Link == 0 && !l.Up && l.Why != "" {
			down++
		}
	}
	if last := a.links[len(a.links)-1]; down == 0 || !last.Up {
		t.Errorf("what was told of the links: %+v", a.links)
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	ended := make(chan error, 100)
	a, _ := pair(t, map[string]Handler{
		"parts": func(_ context.Context, from string, body []byte, part func([]byte) error) ([]byte, error) {
			for i := range 3 {
				if err := part(fmt.Appendf(nil, "%s%d", body, i)); err != nil {
					return nil, err
				}
			}
			return []byte("end of " + from), nil
		},
		"refuse": func(context.Context, string, []byte, func([]byte) error) ([]byte, error) {
			return nil, errors.New("not today")
		},
		"large": func(_ context.Context, _ string, body []byte, _ func([]byte) error) ([]byte, error) {
			return make([]byte, len(body)+1), nil
		},
		"wait": func(ctx context.Context, _ string, _ []byte, _ func([]byte) error) ([]byte, error) {
			select {
			case <-ctx.Done():
				ended <- ctx.Err()
				return nil, ctx.Err()
			case <-release:
				return nil, nil
			}
		},
	})
	for _, to := range []string{"a", "b"} { // itself, and the other one
		var parts []string
		got, err := a.Request(t.Context(), to, "parts", []byte("x"), func(b []byte) { parts = append(parts, string(b)) })
		if err != nil || string(got) != "end of a" || strings.Join(parts, " ") != "x0 x1 x2" {
			t.Errorf("%s: %q %q %v", to, got, parts, err)
		}
		var remote *RemoteError
		if _, err := a.Request(t.Context(), to, "refuse", nil, nil); !errors.As(err, &remote) || remote.Text != "not today" || remote.Node != to {
			t.Errorf("%s: a refusal: %v", to, err)
		}
		if _, err := a.Request(t.Context(), to, "newer", nil, nil); !errors.As(err, &remote) || !strings.Contains(remote.Text, "does not know the request") {
			t.Errorf("%s: an unknown request: %v", to, err)
		}
	}
	if got, err := a.Request(t.Context(), "b", "large", make([]byte, MaxBody-1), nil); err != nil || len(got) != MaxBody {
		t.Errorf("the largest answer: %d bytes, %v", len(got), err)
	}
	if _, err := a.Request(t.Context(), "b", "large", make([]byte, MaxBody), nil); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("an answer beyond the bound: %v", err)
	}
	if _, err := a.Request(t.Context(), "b", "large", make([]byte, MaxBody+1), nil); err == nil {
		t.Error("a request beyond the bound was sent")
	}
	if _, err := a.Request(t.Context(), "z", "parts", nil, nil); err == nil || !strings.Contains(err.Error(), "no node") {
		t.Errorf("to nobody: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Request(ctx, "b", "wait", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer in time: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the handler ended with %v: it has to know the limit", err)
	}
	var wg sync.WaitGroup
	var refused atomic.Int32
	for range maxRequests + 5 {
		wg.Go(func() {
			if _, err := a.Request(t.Context(), "b", "wait", nil, nil); err != nil {
				refused.Add(1)
			}
		})
	}
	eventually(t, "five too many are refused", func() bool { return refused.Load() == 5 })
	close(release)
	wg.Wait()
	if refused.Load() != 5 {
		t.Errorf("%d refused", refused.Load())
	}
}

// A peer that stops answering in the middle: the caller learns it.
func TestRequestOverALostConnection(t *testing.T) {
	t.Parallel()
	began := make(chan struct{}, 1)
	a, b := pair(t, map[string]Handler{"hang": func(ctx context.Context, _ string, _ []byte, _ func([]byte) error) ([]byte, error) {
		began <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	got := make(chan error, 1)
	go func() {
		_, err := a.Request(context.Background(), "b", "hang", nil, nil)
		got <- err
	}()
	<-began
	b.Close()
	if err := <-got; err == nil {
		t.Error("no error")
	}
	eventually(t, "b is known to be away", func() bool {
		_, err := a.Request(t.Context(), "b", "hang", nil, nil)
		return errors.Is(err, ErrNotConnected) && a.peer("b").Links[0].Why != ""
	})
}

// A program that is started again has a new session: what it says counts, though
// its numbers begin anew.
func TestNewSession(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	for i := range 5 {
		if err := b.SetPayload([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a has b's payload", func() bool { return bytes.Equal(a.newest("b", 0).Payload, []byte{4}) })
	old := b.cfg.Session
	b.Close()
	b.start(t, nil, nil)
	if err := b.SetPayload([]byte("new")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a has the new payload", func() bool { return string(a.newest("b", 0).Payload) == "new" })
	if s := a.newest("b", 0).Session; s == old || s != a.peer("b").Session {
		t.Errorf("session %q after %q", s, old)
	}
}

// While the deciding part hangs there are no heartbeats: silence is the truth.
func TestVital(t *testing.T) {
	t.Parallel()
	a, b := newNode(t, "a"), newNode(t, "b")
	a.init(t, "office", addrs(t, 1)...)
	var hangs atomic.Bool
	a.start(t, nil, func(c *Config) { c.Vital = func() bool { return !hangs.Load() } })
	b.join(t, a, "", nil, addrs(t, 1)...)
	meet(t, a, b)
	hangs.Store(true)
	eventually(t, "b finds a late", func() bool { return b.peer("a").State() == LinkLate })
	if s := a.peer("b").State(); s != LinkOK {
		t.Errorf("a finds b %s", s)
	}
	hangs.Store(false)
	eventually(t, "b finds a well", func() bool { return b.peer("a").State() == LinkOK })
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		own, peer [2]int
		want      int
		text      string
	}{
		{[2]int{1, 2}, [2]int{1, 1}, 1, ""},
		{[2]int{1, 2}, [2]int{2, 3}, 2, ""},
		{[2]int{2, 3}, [2]int{2, 3}, 3, ""},
		{[2]int{2, 3}, [2]int{1, 1}, 0, "upgrade it first"},
		{[2]int{1, 1}, [2]int{2, 3}, 0, "upgrade this node first"},
	} {
		v, err := agree(tt.own, hello{Node: "b", Min: tt.peer[0], Max: tt.peer[1]})
		if v != tt.want || (err == nil) != (tt.text == "") || err != nil && !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v with %v: %d, %v", tt.own, tt.peer, v, err)
		}
	}
	// Over the wire: a newer node meets an older one, and one that is too old.
	a, b := pair(t, nil)
	b.Close()
	b.start(t, nil, func(c *Config) { c.versions = [2]int{1, 2} })
	meet(t, a, b)
	if v := a.peer("b").Version; v != 1 {
		t.Errorf("versions 1 and 1 to 2 agree on %d", v)
	}
	b.Close()
	b.start(t, nil, func(c *Config) { c.versions = [2]int{2, 3} })
	eventually(t, "both say why", func() bool {
		return strings.Contains(a.peer("b").Links[0].Why, "upgrade") && strings.Contains(b.log.String(), "versions 1 to 1")
	})
}

// strangeConn does a TLS handshake as somebody else.
func strangeHello(t *testing.T, id *Identity, to netip.AddrPort) string {
	t.Helper()
	nc, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	_, body, err := helloFrom(nc, id)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	to := a.Cluster().Node("a").Links[0]

	other := newNode(t, "b")
	other.init(t, "office", addrs(t, 1)...) // another cluster of the same name
	foreign, _, err := other.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	if got := strangeHello(t, foreign, to); !strings.Contains(got, `another cluster that is called "office" as well (id `+foreign.ClusterID) {
		t.Errorf("two clusters of one name: %q", got)
	}
	third := newNode(t, "b")
	third.init(t, "lab", addrs(t, 1)...)
	if foreign, _, err = third.store.Load(); err != nil {
		t.Fatal(err)
	}
	if got := strangeHello(t, foreign, to); !strings.Contains(got, `belongs to another cluster, "lab"`) {
		t.Errorf("another cluster: %q", got)
	}

	// Whom the CA has signed, and who is no member, or has another key.
	c := a.Cluster()
	for _, tt := range []struct{ name, want string }{{"c", `"c" is no member of cluster "office"`}, {"b", "with another key than the one that joined"}} {
		key, text, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		der, err := a.id.authority().issue(c, tt.name, nil, &key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		id, err := newIdentity(a.id.CA, nil, certPEM(der), text)
		if err != nil {
			t.Fatal(err)
		}
		if got := strangeHello(t, id, to); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q in it", tt.name, got, tt.want)
		}
	}

	// Somebody who says nothing sensible is not answered, and harms nobody.
	for _, junk := range []string{"GET / HTTP/1.1\r\n\r\n", strings.Repeat("\x16\x03\x01", 100), ""} {
		nc, err := net.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(nc, junk); err != nil {
			t.Error(err)
		}
		nc.(*net.TCPConn).CloseWrite() //nolint:errcheck // the other side may be gone
		_, _ = io.Copy(io.Discard, nc) // to its end, which has to come
		nc.Close()
	}
	meet(t, a, b)
}

// A wrong address: the node that answers there says so.
func TestWrongNodeAnswers(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	c := newNode(t, "c")
	c.join(t, a, conf.NodeWitness, nil, addrs(t, 2)...)
	meet(t, a, b, c)
	mixed := *a.Cluster()
	mixed.Nodes = append([]conf.ClusterNode(nil), mixed.Nodes...)
	mixed.Node("b").Links, mixed.Node("c").Links = mixed.Node("c").Links, mixed.Node("b").Links
	if err := a.Reload(&mixed); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a says who answers", func() bool {
		return strings.Contains(a.peer("b").Links[0].Why, `node "c" answers there, not "b"`)
	})
	if err := a.Reload(&conf.Cluster{ID: "x"}); err == nil {
		t.Error("the file of another cluster was taken")
	}
}
