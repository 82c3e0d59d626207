package control

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/conf"
)

// files are all files below a directory, with their contents.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		m[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func TestInit(t *testing.T) {
	t.Parallel()
	n := newNode(t, "nodo1")
	if _, _, err := n.store.Load(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("before: %v", err)
	}
	c := n.init(t, "office", freeAddr(t))
	id, loaded, err := n.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	if id.Node != "nodo1" || id.ClusterID != c.ID || loaded.Hash() != c.Hash() || loaded.Nodes[0].PublicKey != id.PublicKey || !id.Admits() {
		t.Errorf("%+v\n%s", id, loaded.Text())
	}
	for path := range files(t, filepath.Dir(n.store.Dir)) {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", path, fi.Mode(), err)
		}
	}
	before := files(t, filepath.Dir(n.store.Dir))
	if _, err := Init(n.store, InitOptions{Cluster: "office", Node: "nodo1", Links: []netip.AddrPort{freeAddr(t)}}); err == nil || !strings.Contains(err.Error(), `is in cluster "office"`) {
		t.Errorf("a second time: %v", err)
	}
	if err := os.Chmod(n.store.KeyFile(), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.store.Load(); err == nil || !strings.Contains(err.Error(), "can be read by others (mode 0640): run `chmod 600") {
		t.Errorf("an open key: %v", err)
	}
	if !same(before, files(t, filepath.Dir(n.store.Dir))) {
		t.Error("something was changed")
	}
	for _, bad := range []InitOptions{
		{Cluster: "a b", Node: "n", Links: addrs(t, 1)},
		{Cluster: "c", Node: "n"},
		{Cluster: "c", Links: addrs(t, 1)},
		{Cluster: "c", Node: "n", Links: addrs(t, 1), Change: func(*conf.Cluster) error { return errors.New("no") }},
	} {
		x := newNode(t, "x")
		if _, err := Init(x.store, bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
		if len(files(t, filepath.Dir(x.store.Dir))) > 0 {
			t.Errorf("%+v left something", bad)
		}
	}
}

// A node that crashed on its way in is either out of it, or in.
func TestInterruptedInit(t *testing.T) {
	t.Parallel()
	n := newNode(t, "a")
	c := n.init(t, "office", freeAddr(t))
	if err := os.Remove(n.store.File); err != nil { // the last step had not come
		t.Fatal(err)
	}
	if _, loaded, err := n.store.Load(); err != nil || loaded.Hash() != c.Hash() {
		t.Errorf("without cluster.toml: %v", err)
	}
	if err := os.Rename(n.store.Dir, n.store.Dir+".new-1"); err != nil { // nor the one before
		t.Fatal(err)
	}
	if err := os.Remove(n.store.File); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.store.Load(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("without the directory: %v", err)
	}
	n.init(t, "office", freeAddr(t))
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		spoil      func(t *testing.T, s Store, c *conf.Cluster)
	}{
		{"another cluster's file", "put the file of that cluster there", func(t *testing.T, s Store, c *conf.Cluster) {
			o := *c
			o.ID = newUUID()
			write(t, s.File, o.Text())
		}},
		{"a file without this node", "was removed from cluster", func(t *testing.T, s Store, c *conf.Cluster) {
			o := *c
			o.Nodes = []conf.ClusterNode{{Name: "other", Links: c.Nodes[0].Links}}
			write(t, s.File, o.Text())
		}},
		{"another key", "another machine has joined under this name", func(t *testing.T, s Store, c *conf.Cluster) {
			o := *c
			o.Nodes = []conf.ClusterNode{{Name: "a", Links: c.Nodes[0].Links, PublicKey: Fingerprint(nil)}}
			write(t, s.File, o.Text())
		}},
		{"a broken file", "cluster.toml:1:1: name: found", func(t *testing.T, s Store, _ *conf.Cluster) { write(t, s.File, "") }},
		{"no key", "node.key", func(t *testing.T, s Store, _ *conf.Cluster) { remove(t, s.KeyFile()) }},
		{"half a certificate", "certificate", func(t *testing.T, s Store, _ *conf.Cluster) {
			write(t, s.CertFile(), files(t, s.Dir)[s.CertFile()][:100])
		}},
		{"another CA", "the node's certificate", func(t *testing.T, s Store, c *conf.Cluster) {
			ca, err := newAuthority("x", c.ID)
			if err != nil {
				t.Fatal(err)
			}
			write(t, s.CAFile(), certPEM(ca.cert.Raw))
		}},
		{"only the file", "move it away first", func(t *testing.T, s Store, _ *conf.Cluster) { remove(t, s.CAFile()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, "a")
			c := n.init(t, "office", freeAddr(t))
			tt.spoil(t, n.store, c)
			before := files(t, filepath.Dir(n.store.Dir))
			if _, _, err := n.store.Load(); err == nil || errors.Is(err, ErrNoCluster) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Load: %v, want %q in it", err, tt.want)
			}
			if _, err := Init(n.store, InitOptions{Cluster: "n", Node: "a", Links: addrs(t, 1)}); err == nil {
				t.Error("Init went over it")
			}
			if !same(before, files(t, filepath.Dir(n.store.Dir))) {
				t.Error("something was changed")
			}
		})
	}
}

func write[T []byte | string](t *testing.T, path string, text T) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	a := newNode(t, "a")
	a.init(t, "office", addrs(t, 2)...)
	a.start(t, nil, nil)
	tok, err := a.NewToken(TokenRequest{Node: "b", Links: addrs(t, 2)})
	if err != nil {
		t.Fatal(err)
	}
	text := tok.String()
	got, err := ParseToken("  " + text[:40] + "\n " + text[40:] + "\n")
	if err != nil || got.String() != text || got.Node != "b" || len(got.Addresses) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	for path, content := range files(t, a.store.Dir) {
		if strings.Contains(content, tok.Secret) {
			t.Errorf("%s has the secret", path)
		}
	}
	for _, bad := range []string{"", "pollux1.", "pollux1.!!", text[:len(text)-3], strings.Replace(text, "pollux1", "pollux9", 1), strings.Repeat("x", maxTokenText+1)} {
		if _, err := ParseToken(bad); err == nil || !strings.Contains(err.Error(), "copy the whole line") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	for _, tt := range []struct {
		r    TokenRequest
		want string
	}{
		{TokenRequest{Node: "a", Links: addrs(t, 1)}, "is this node"},
		{TokenRequest{Node: "b", Links: tok.Addresses}, "as well, expected an address of its own"},
		{TokenRequest{Node: "b c", Links: addrs(t, 1)}, "expected a host name"},
		{TokenRequest{Node: "b"}, "found 0 links"},
		{TokenRequest{Node: "b", Kind: "spare", Links: addrs(t, 1)}, "node.kind"},
		{TokenRequest{Node: "b", Links: addrs(t, 1), Life: 48 * time.Hour}, "good for 1 minute to 24h"},
	} {
		if _, err := a.NewToken(tt.r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q in it", tt.r, err, tt.want)
		}
	}
}

// Tokens that are no good (any more), and joins that must not be: nothing is
// changed on any node.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	a := newNode(t, "a")
	a.init(t, "office", addrs(t, 1)...)
	a.start(t, nil, nil)
	other := newNode(t, "b")
	other.init(t, "office", addrs(t, 1)...)
	token := func(life time.Duration) Token {
		tok, err := a.NewToken(TokenRequest{Node: "b", Links: addrs(t, 1), Life: life})
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	fresh := newNode(t, "b")
	good := token(0)
	wrong := func(change func(*Token)) string {
		x := good
		change(&x)
		return x.String()
	}
	hash := a.Cluster().Hash()
	for _, tt := range []struct {
		name, token string
		store       Store
		o           JoinOptions
		want        string
	}{
		{"for another node", good.String(), fresh.store, JoinOptions{Node: "c"}, `the token is for node "b", and this one is "c"`},
		{"a guessed secret", wrong(func(x *Token) { x.Secret = strings.Repeat("0", 32) }), fresh.store, JoinOptions{Node: "b"}, "used up, has expired or was given out by another node"},
		{"another CA", wrong(func(x *Token) { x.CA = Fingerprint(nil) }), fresh.store, JoinOptions{Node: "b"}, "belongs to another cluster than the token"},
		{"another id", wrong(func(x *Token) { x.ClusterID = newUUID() }), fresh.store, JoinOptions{Node: "b"}, "belongs to the cluster with id"},
		{"nobody there", wrong(func(x *Token) { x.Addresses = addrs(t, 1) }), fresh.store, JoinOptions{Node: "b"}, "is polluxha running on the node that gave the token out"},
		{"a node of a cluster of the same name", good.String(), other.store, JoinOptions{Node: "b"}, "another one of the same name: nothing was changed"},
		{"foreign data", good.String(), fresh.store, JoinOptions{Node: "b", Foreign: func(context.Context) error { return errors.New("resource web has terms of another cluster") }}, "resource web has terms of another cluster"},
		{"too new", good.String(), fresh.store, JoinOptions{Node: "b", versions: [2]int{2, 3}}, "upgrade this node first"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := files(t, filepath.Dir(tt.store.Dir))
			if _, err := Join(t.Context(), tt.store, tt.token, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q in it", err, tt.want)
			}
			if !same(before, files(t, filepath.Dir(tt.store.Dir))) || a.Cluster().Hash() != hash {
				t.Error("something was changed")
			}
		})
	}
	list, err := a.store.tokens(good.Expires.Add(time.Second))
	if err != nil || len(list) != 0 {
		t.Errorf("behind its time: %v, %v", list, err)
	}
	if _, err := Join(t.Context(), fresh.store, good.String(), JoinOptions{Node: "b"}); err == nil {
		t.Error("an expired token was taken")
	}
	old, newer := token(0), token(time.Minute)
	if _, err := Join(t.Context(), fresh.store, old.String(), JoinOptions{Node: "b"}); err == nil || !strings.Contains(err.Error(), "used up") {
		t.Errorf("the older one of two: %v", err)
	}
	var said []string
	c, err := Join(t.Context(), fresh.store, newer.String(), JoinOptions{Node: "b", Progress: func(s string) { said = append(said, s) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(said) < 2 || c.Serial != 2 || c.Hash() != a.Cluster().Hash() {
		t.Errorf("serial %d, progress %q", c.Serial, said)
	}
	again := newNode(t, "b")
	if _, err := Join(t.Context(), again.store, newer.String(), JoinOptions{Node: "b"}); err == nil {
		t.Error("a token was good twice")
	}
}

// Three nodes come and go, one at a time; all have the same cluster.toml.
func TestMembership(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	w := newNode(t, "w")
	w.join(t, b, conf.NodeWitness, nil, addrs(t, 1)...) // through any data node
	meet(t, a, b, w)
	agree := func(nodes ...*node) {
		t.Helper()
		for _, n := range nodes {
			eventually(t, n.name+" has the newest cluster.toml", func() bool { return n.Cluster().Hash() == nodes[0].Cluster().Hash() })
			if _, c, err := n.store.Load(); err != nil || c.Hash() != n.Cluster().Hash() {
				t.Errorf("%s: on disk: %v", n.name, err)
			}
		}
	}
	agree(a, b, w)
	if w.id.Admits() || !b.id.Admits() {
		t.Error("the CA's key belongs on nodes with disks only")
	}
	if _, err := w.NewToken(TokenRequest{Node: "x", Links: addrs(t, 1)}); err == nil || !strings.Contains(err.Error(), "run polluxadm cluster token on one of [a b]") {
		t.Errorf("a token of the witness: %v", err)
	}

	// One that is away: nobody comes in, and nobody else leaves.
	w.Close()
	eventually(t, "w is missed", func() bool { return a.peer("w").State() != LinkOK })
	x := newNode(t, "x")
	tok, err := a.NewToken(TokenRequest{Node: "x", Links: addrs(t, 2)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), x.store, tok.String(), JoinOptions{Node: "x"}); err == nil || !strings.Contains(err.Error(), "w is not well") || !strings.Contains(err.Error(), "one node at a time") {
		t.Errorf("join while one is away: %v", err)
	}
	if err := a.MayLeave(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "w is not well") {
		t.Errorf("asked before: %v", err)
	}
	if err := a.Leave(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "w is not well") {
		t.Errorf("leave while another one is away: %v", err)
	}
	if a.Cluster().Serial != 3 {
		t.Errorf("serial %d", a.Cluster().Serial)
	}
	// The one that is away may be taken out, and the token of before is still good.
	before := a.Cluster()
	if err := a.MayLeave(t.Context(), "w"); err != nil || a.Cluster() != before {
		t.Errorf("asked before: %v, then it is %+v", err, a.Cluster())
	}
	if err := a.Leave(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	agree(a, b)
	if _, err := Join(t.Context(), x.store, tok.String(), JoinOptions{Node: "x"}); err != nil {
		t.Fatal(err)
	}
	x.start(t, nil, nil)
	meet(t, a, b, x)
	agree(a, b, x)

	// w returns, and hears why it is not let in.
	w.start(t, nil, nil)
	eventually(t, "w is told that it is out", func() bool {
		return strings.Contains(w.peer("a").Links[0].Why+w.log.String(), `no member of cluster`)
	})

	// A node takes itself out: it is told, forgets its keys, and keeps the rest.
	if err := x.Leave(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	agree(a, b)
	x.mu.Lock()
	if len(x.clusters) == 0 || x.clusters[len(x.clusters)-1].Node("x") != nil {
		t.Errorf("x was not told")
	}
	x.mu.Unlock()
	x.Close()
	kept, err := x.store.Retire()
	if err != nil {
		t.Fatal(err)
	}
	for path := range files(t, filepath.Dir(x.store.Dir)) {
		if strings.HasSuffix(path, ".key") || !strings.HasPrefix(path, kept) {
			t.Errorf("after leaving there is %s", path)
		}
	}
	if _, _, err := x.store.Load(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("after leaving: %v", err)
	}
	if err := a.Leave(t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), `node nobody: it is not a node of cluster`) {
		t.Errorf("nobody leaves: %v", err)
	}
	if err := b.Leave(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := b.Leave(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "the only node") {
		t.Errorf("the last one leaves: %v", err)
	}
}

// A machine that was lost is replaced: the new one has the name, the old one is
// not believed any more.
func TestReplacedMachine(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	links := a.Cluster().Node("b").Links
	if _, err := a.NewToken(TokenRequest{Node: "b", Links: links}); err == nil || !strings.Contains(err.Error(), "b is in the cluster and alive") {
		t.Errorf("a token for a living node: %v", err)
	}
	b.Close()
	a.skew.Store(int64(time.Hour))
	eventually(t, "b is dead", func() bool { return a.peer("b").State() == LinkDead })
	fresh := newNode(t, "b")
	fresh.join(t, a, "", nil, links...)
	meet(t, a, fresh)
	to := a.Cluster().Node("a").Links[0]
	if got := strangeHello(t, b.id, to); !strings.Contains(got, "with another key") {
		t.Errorf("the old machine: %q", got)
	}
}

// Two nodes that let somebody in at the same moment: one of them does, or none.
func TestTwoChangesAtOnce(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	for round := range 4 {
		serial := a.Cluster().Serial
		type one struct {
			n   *node
			tok string
			err error
		}
		list := []*one{}
		for i, via := range []*node{a, b} {
			n := newNode(t, string(rune('p'+2*round+i)))
			tok, err := via.NewToken(TokenRequest{Node: n.name, Kind: conf.NodeWitness, Links: addrs(t, 1)})
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, &one{n: n, tok: tok.String()})
		}
		var wg sync.WaitGroup
		for _, o := range list {
			wg.Go(func() { _, o.err = Join(t.Context(), o.n.store, o.tok, JoinOptions{Node: o.n.name}) })
		}
		wg.Wait()
		eventually(t, "both have one cluster.toml", func() bool { return a.Cluster().Hash() == b.Cluster().Hash() })
		in := 0
		for _, o := range list {
			if o.err == nil {
				in++
				o.n.start(t, nil, nil)
				meet(t, a, b, o.n)
				if err := a.Leave(t.Context(), o.n.name); err != nil {
					t.Fatal(err)
				}
				o.n.Close()
				in-- // and out again: serial counts both
				serial += 2
			} else if !strings.Contains(o.err.Error(), "another change") && !strings.Contains(o.err.Error(), "is not well") && !strings.Contains(o.err.Error(), "serial") {
				t.Errorf("refused with: %v", o.err)
			}
		}
		eventually(t, "b has followed", func() bool { return b.Cluster().Hash() == a.Cluster().Hash() })
		if got := a.Cluster().Serial; got != serial {
			t.Errorf("round %d: serial %d, want %d", round, got, serial)
		}
	}
}

// A node that says no, for whatever reason, ends the change on all.
func TestUnfit(t *testing.T) {
	t.Parallel()
	a, b := newNode(t, "a"), newNode(t, "b")
	a.init(t, "office", addrs(t, 1)...)
	a.start(t, nil, nil)
	tok, err := a.NewToken(TokenRequest{Node: "b", Links: addrs(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), b.store, tok.String(), JoinOptions{Node: "b"}); err != nil {
		t.Fatal(err)
	}
	var asked []Change
	b.start(t, nil, func(c *Config) {
		c.Unfit = func(_ context.Context, ch Change) error {
			asked = append(asked, ch)
			if ch.Leaves == "b" {
				return errors.New("VM web runs here: polluxadm node evacuate b moves it away")
			}
			return nil
		}
	})
	meet(t, a, b)
	if err := a.Leave(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "b: VM web runs here") {
		t.Errorf("%v", err)
	}
	if len(asked) != 1 || a.Cluster().Serial != 2 {
		t.Errorf("asked %+v, serial %d", asked, a.Cluster().Serial)
	}
	w := newNode(t, "w") // at once: the change before has left nothing behind
	w.join(t, a, conf.NodeWitness, nil, addrs(t, 1)...)
	meet(t, a, b, w)
}

// A node that begins anew because of the one it lets in has told it so before.
func TestJoinOutlivesRestart(t *testing.T) {
	t.Parallel()
	a := newNode(t, "a")
	a.init(t, "office", freeAddr(t))
	closed := make(chan error, 1)
	a.start(t, nil, func(c *Config) {
		c.OnCluster = func(*conf.Cluster) {
			go func() { closed <- a.Close() }()
			<-a.ctx.Done()
			time.Sleep(20 * time.Millisecond) // what hangs on the context is told by another goroutine
		}
	})
	b := newNode(t, "b")
	b.join(t, a, "", nil, addrs(t, 1)...)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	a.start(t, nil, nil)
	meet(t, a, b)
}

// A node that was away while the members changed gets the new file.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	b.Close()
	eventually(t, "b is missed", func() bool { return a.peer("b").State() != LinkOK })
	edited := *a.Cluster()
	edited.Serial += 3
	edited.Heartbeat.Initdead = conf.Duration{Duration: time.Minute}
	if err := a.Reload(&edited); err != nil {
		t.Fatal(err)
	}
	b.start(t, nil, nil)
	eventually(t, "b has it", func() bool { return b.Cluster().Hash() == edited.Hash() })
	if got := files(t, filepath.Dir(b.store.File))[b.store.File]; !bytes.Equal([]byte(got), edited.Text()) {
		t.Errorf("on b's disk:\n%s", got)
	}
	meet(t, a, b)
}
