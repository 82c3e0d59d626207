package control

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A Retire that was cut off, wherever, is known to be so, and the next one completes it:
// the node is in no cluster, has no keys, and all else is in one place.
func TestRetireIsCompleted(t *testing.T) {
	for done := range 5 {
		dir := t.TempDir()
		s := Store{Dir: filepath.Join(dir, "cluster"), File: filepath.Join(dir, "cluster.toml")}
		if _, err := Init(s, InitOptions{Cluster: "office", Node: "a", Links: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7790")}}); err != nil {
			t.Fatal(err)
		}
		beside := filepath.Join(dir, "ha-state.json")
		steps := []func() error{
			func() error { return WriteFile(beside, []byte("{}")) },
			func() error { return WriteFile(s.leftFile(), nil) },
			func() error { return errors.Join(os.Remove(s.caKeyFile()), os.Remove(s.KeyFile())) },
			func() error { return os.Rename(s.File, filepath.Join(s.Dir, "cluster.toml.last")) },
			func() error { return os.Rename(beside, filepath.Join(s.Dir, "ha-state.json")) },
		}
		for _, step := range steps[:done+1] {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if s.IsRetiring() != (done > 0) {
			t.Errorf("after %d steps: it is being left: %v", done, s.IsRetiring())
		}
		kept, err := s.Retire(beside)
		if err != nil {
			t.Fatalf("after %d steps: %v", done, err)
		}
		for path := range files(t, dir) {
			if strings.HasSuffix(path, ".key") || !strings.HasPrefix(path, kept+"/") {
				t.Errorf("after %d steps there is %s", done, path)
			}
		}
		for _, name := range []string{"ca.pem", "cluster.toml.last", "ha-state.json"} {
			if _, err := os.Lstat(filepath.Join(kept, name)); err != nil {
				t.Errorf("after %d steps: %v", done, err)
			}
		}
		if _, _, err := s.Load(); s.IsRetiring() || !errors.Is(err, ErrNoCluster) {
			t.Errorf("after %d steps: %v", done, err)
		}
	}
}

// What can't be moved away, as a directory that is a mount of its own, stays, is told,
// and does not hold the node in the cluster.
func TestRetireLeavesWhatStays(t *testing.T) {
	dir := t.TempDir()
	s := Store{Dir: filepath.Join(dir, "cluster"), File: filepath.Join(dir, "cluster.toml")}
	if _, err := Init(s, InitOptions{Cluster: "office", Node: "a", Links: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7790")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Retire("/proc"); err == nil || !strings.Contains(err.Error(), "/proc") {
		t.Errorf("%v, want what stays", err)
	}
	if _, _, err := s.Load(); s.IsRetiring() || !errors.Is(err, ErrNoCluster) {
		t.Errorf("%v", err)
	}
}
