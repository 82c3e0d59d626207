package ha

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha/control"
)

// loneNode is a node in no cluster, with a state directory of its own.
func loneNode(t *testing.T) *node {
	t.Helper()
	settings := conf.DefaultDaemon()
	settings.StateDir = t.TempDir()
	settings.HA.ClusterFile = filepath.Join(settings.StateDir, "cluster.toml")
	settings.HA.EtcdDir = filepath.Join(settings.StateDir, "etcd")
	n := &node{settings: settings, log: zerolog.Nop()}
	var err error
	if n.events, err = openEventLog(n.statePath("ha-events.jsonl"), "a", bootClock{}, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.events.close)
	return n
}

// A node that has left its cluster can join another one, whatever arbiter it had: all
// that was of the old one is kept beside. What nobody has moved away is told before
// the new cluster lets it in.
func TestNothingIsLeftOfACluster(t *testing.T) {
	n := loneNode(t)
	settings := n.settings
	if err := n.foreign(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := map[string]string{
		n.recordsPath(): "{}", n.statePath("ha-state.json"): `{"Wishes":[{"Service":"web","Version":1}]}`,
		filepath.Join(settings.HA.EtcdDir, "member"): "",
	}
	for path, text := range left {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.foreign(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("with %s: %v", path, err)
		}
	}
	if err := n.leftover(); err != nil {
		t.Fatal(err)
	}
	if err := n.foreign(t.Context()); err != nil {
		t.Errorf("after it has left: %v", err)
	}
	for path := range left {
		name, err := filepath.Rel(settings.StateDir, path)
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := filepath.Glob(filepath.Join(settings.StateDir, "cluster.left-*", name)); err != nil || len(kept) != 1 {
			t.Errorf("%s is kept as %v, %v", name, kept, err)
		}
	}
}

// A polluxha that was killed while its node left a cluster does the rest when it is
// started again.
func TestLeavingIsCompleted(t *testing.T) {
	n := loneNode(t)
	settings := n.settings
	if _, err := control.Init(clusterStore(settings), control.InitOptions{Cluster: "office", Node: "a", Links: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7790")}}); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(settings.StateDir, "cluster", "left"), nil, 0o600),
		os.Remove(filepath.Join(settings.StateDir, "cluster", "node.key")),
		os.WriteFile(n.recordsPath(), []byte("{}"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if m, err := n.become(); m != nil || err != nil {
		t.Errorf("it becomes %v, %v; want no member", m, err)
	}
	if err := n.foreign(t.Context()); err != nil {
		t.Errorf("it could not join again: %v", err)
	}
}

// The other half of an arbiter is heard, and no third node.
func TestArbiterIsHeardOfItsHalfOnly(t *testing.T) {
	serve := onlyFrom("b", func(context.Context, []byte) ([]byte, error) { return []byte("yes"), nil })
	if answer, err := serve(t.Context(), "b", nil); err != nil || string(answer) != "yes" {
		t.Errorf("b: %q, %v", answer, err)
	}
	if _, err := serve(t.Context(), "c", nil); err == nil {
		t.Error("c is answered")
	}
}
