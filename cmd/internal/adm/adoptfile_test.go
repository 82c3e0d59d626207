package adm

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/pollux-project/pollux/conf"
)

// TestUpdateAdopt: the file keeps what it is, a link included, and two who change
// it at once do not lose each other's change.
func TestUpdateAdopt(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "kept", "real.toml"), filepath.Join(dir, "pollux.toml")
	if err := os.Mkdir(filepath.Dir(real), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(real, []byte("# mine\nnode-name = 'a'\n"), 0o640); err != nil { //nolint:gosec // the mode is the point
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	names := []string{"r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7"}
	var wg sync.WaitGroup
	for _, n := range names {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := updateAdopt(link, []string{n}, nil); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if err := updateAdopt(link, nil, names[1:]); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(real); err != nil || string(b) != "# mine\nnode-name = 'a'\nadopt = [\"r0\"]\n" {
		t.Errorf("%q, %v", b, err)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link: %v, %v", fi, err)
	}
	if fi, err := os.Stat(real); err != nil || fi.Mode() != 0o640 {
		t.Errorf("the file: %v, %v", fi, err)
	}
	if left, err := os.ReadDir(filepath.Dir(real)); err != nil || len(left) != 1 {
		t.Errorf("what is left there: %v, %v", left, err)
	}
	// A node without settings gets some.
	fresh := filepath.Join(dir, "etc", "pollux", "pollux.toml")
	if err := updateAdopt(fresh, []string{"r0"}, nil); err != nil {
		t.Fatal(err)
	}
	if d, err := conf.LoadDaemon(fresh); err != nil || len(d.Adopt) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	// What can't be read is not replaced.
	if err := os.WriteFile(fresh, []byte("adopt = [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := updateAdopt(fresh, []string{"r1"}, nil); err == nil {
		t.Error("a broken file was changed")
	}
	if b, err := os.ReadFile(fresh); err != nil || string(b) != "adopt = [\n" {
		t.Errorf("%q, %v", b, err)
	}
}
