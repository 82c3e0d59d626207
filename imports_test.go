// Package pollux_test checks what holds for the repository as a whole.
package pollux_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pollux-project/pollux"

// impure are the parts of the standard library that a pure package must not
// see: clock, chance, input and output, other goroutines.
var impure = []string{
	"context", "crypto/rand", "internal", "io/fs", "io/ioutil", "log", "math/rand", "net", "os", "plugin",
	"runtime", "sync", "syscall", "testing", "time", "unsafe",
}

// embeddedEtcd runs an etcd member within the program.
const embeddedEtcd = "hypervisor/ha/arbiter/etcd/embedded"

// A rule says what the packages at and below a folder may import besides the
// standard library; folders of this module stand for exactly that package.
type rule struct {
	folder string
	pure   bool // not all of the standard library: see impure
	allow  []string
}

// rules are the arrows of ARCHITECTURE.md, section "Who may import whom". The
// rule of the longest folder counts. .golangci.yml has the same for editors.
var rules = []rule{
	{folder: "protocol"},
	{folder: "protocol/drbd/wiretest", allow: []string{"protocol/drbd"}},
	{folder: "protocol/nbd", allow: []string{"github.com/pojntfx/go-nbd/pkg/protocol"}},
	{folder: "replication", pure: true, allow: []string{"protocol/drbd", "replication/meta"}},
	{folder: "replication/meta", pure: true, allow: []string{"protocol/drbd"}},
	{folder: "replication/repltest", allow: []string{"protocol/drbd", "replication", "replication/meta", "internal/fuzztest", "github.com/google/go-cmp/cmp"}},
	{folder: "replication/engine", allow: []string{
		"blockdev", "internal/perf", "protocol/drbd", "replication", "replication/meta", "github.com/rs/zerolog", "golang.org/x/sys/unix",
	}},
	{folder: "blockdev", allow: []string{"internal/perf", "golang.org/x/sys/unix"}},
	{folder: "blockdev/export", allow: []string{"blockdev", "internal/perf", "protocol/nbd", "github.com/rs/zerolog", "golang.org/x/sys/unix"}},
	{folder: "blockdev/attach", allow: []string{
		"protocol/nbd", "github.com/mdlayher/genetlink", "github.com/mdlayher/netlink", "golang.org/x/sys/unix",
	}},
	{folder: "blockdev/blocktest", allow: []string{"blockdev", "blockdev/export", "golang.org/x/sys/unix"}},
	{folder: "conf", allow: []string{"github.com/BurntSushi/toml"}},
	{folder: "hypervisor", allow: []string{"hypervisor"}},
	{folder: "hypervisor/hvtest", allow: []string{"hypervisor", "github.com/google/go-cmp/cmp"}},
	{folder: "hypervisor/qemu", allow: []string{"hypervisor", "golang.org/x/sys/unix"}},
	{folder: "hypervisor/ha", pure: true, allow: []string{"hypervisor/ha/arbiter"}},
	{folder: "hypervisor/ha/arbiter", allow: []string{"hypervisor/ha/arbiter"}},
	{folder: "hypervisor/ha/arbiter/fence", allow: []string{"hypervisor/ha/arbiter", "hypervisor/ha/arbiter/pair"}},
	{folder: "hypervisor/ha/arbiter/manual", allow: []string{"hypervisor/ha/arbiter/pair"}},
	{folder: "hypervisor/ha/arbiter/pair/pairtest", allow: []string{"hypervisor/ha/arbiter", "hypervisor/ha/arbiter/arbitertest", "hypervisor/ha/arbiter/pair"}},
	{folder: "hypervisor/ha/arbiter/etcd", allow: []string{
		"hypervisor/ha/arbiter", "go.etcd.io/etcd/api/v3/etcdserverpb", "go.etcd.io/etcd/api/v3/mvccpb", "go.etcd.io/etcd/api/v3/v3rpc/rpctypes",
		"go.etcd.io/etcd/client/v3", "go.uber.org/zap", "google.golang.org/grpc/codes", "google.golang.org/grpc/status",
	}},
	{folder: embeddedEtcd, allow: []string{ // client programs stay small without it
		"go.etcd.io/etcd/api/v3/etcdserverpb", "go.etcd.io/etcd/api/v3/v3rpc/rpctypes", "go.etcd.io/etcd/client/pkg/v3/transport",
		"go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/server/v3/embed", "go.uber.org/zap", "go.uber.org/zap/zapcore",
		"github.com/prometheus/client_golang/prometheus",
	}},
	{folder: "hypervisor/ha/arbiter/arbitertest", allow: []string{"hypervisor/ha/arbiter", "github.com/google/go-cmp/cmp"}},
	{folder: "hypervisor/ha/arbiter/witness", allow: []string{"hypervisor/ha/arbiter", "hypervisor/ha/control", "github.com/rs/zerolog"}},
	{folder: "hypervisor/ha/fence"},
	{folder: "hypervisor/ha/control", allow: []string{"conf", "github.com/rs/zerolog", "golang.org/x/sys/unix"}},
	{folder: "hypervisor/ha/hatest", allow: []string{
		"hypervisor/ha", "hypervisor/ha/arbiter", "hypervisor/ha/arbiter/fence", "hypervisor/ha/arbiter/manual", "hypervisor/ha/arbiter/pair",
		"protocol/drbd", "replication", "replication/meta", "replication/repltest", "internal/fuzztest", "github.com/google/go-cmp/cmp",
	}},
	{folder: "hypervisor/units", allow: []string{"hypervisor", "golang.org/x/sys/unix"}},
	{folder: "hypervisor/monitor", allow: []string{"golang.org/x/sys/unix"}},
	{folder: "hypervisor/hook"},
	{folder: "hypervisor/vip", allow: []string{"github.com/vishvananda/netlink", "golang.org/x/sys/unix"}},
	{folder: "internal/fuzztest"},
	{folder: "internal/perf"},
	{folder: "lvm", allow: []string{"github.com/containerd/btrfs/v2", "golang.org/x/sys/unix"}},
}

// free may import everything: programs, and what measures them.
var free = []string{"cmd", "bench"}

func TestImports(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); base == "testdata" || name == "build" || name == "bin" || name != "." && strings.HasPrefix(base, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, ".go") {
			files++
			checkFile(t, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d Go files were found: the test looks in the wrong place", files)
	}
}

func checkFile(t *testing.T, name string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	isTest := strings.HasSuffix(name, "_test.go")
	for _, spec := range f.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if why := refused(path.Dir(name), isTest, imported); why != "" {
			t.Errorf("%s imports %q: %s", name, imported, why)
		}
	}
}

// refused says why a file of the package in folder may not import a path, or
// is empty.
func refused(folder string, isTest bool, imported string) string {
	own, isOwn := strings.CutPrefix(imported, module+"/")
	switch {
	case isOwn && within(own, "cmd") && !within(folder, "cmd"):
		return "only programs may import what is below cmd"
	case isTest:
		return ""
	case isOwn && isForTests(own) && !isForTests(folder):
		return "packages at and below *test are for _test.go files"
	case imported == "github.com/prometheus/client_golang/prometheus" && folder != "cmd/internal/daemon" && folder != embeddedEtcd:
		return "only cmd/internal/daemon knows of Prometheus, and who runs etcd, which counts its syncs there"
	case slices.ContainsFunc(free, func(f string) bool { return within(folder, f) }):
		return ""
	}
	r := ruleFor(folder)
	isStandard := !strings.Contains(strings.Split(imported, "/")[0], ".")
	switch {
	case r == nil:
		return "there is no rule for this folder: add one to imports_test.go and ARCHITECTURE.md"
	case isStandard && r.pure && slices.ContainsFunc(impure, func(p string) bool { return within(imported, p) }):
		return "this package is pure: it learns such things by events"
	case isStandard:
		return ""
	case isOwn && slices.Contains(r.allow, own), !isOwn && slices.Contains(r.allow, imported):
		return ""
	}
	return "not among what this folder may import: " + strings.Join(r.allow, ", ")
}

func ruleFor(folder string) *rule {
	var best *rule
	for i := range rules {
		if r := &rules[i]; within(folder, r.folder) && (best == nil || len(r.folder) > len(best.folder)) {
			best = r
		}
	}
	return best
}

// isForTests reports whether a path is a folder named *test, or lies below one.
func isForTests(p string) bool {
	return slices.ContainsFunc(strings.Split(p, "/"), func(name string) bool { return strings.HasSuffix(name, "test") })
}

// within reports whether a path is the folder or lies below it.
func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

func TestImportRules(t *testing.T) {
	for _, tt := range []struct {
		folder   string
		isTest   bool
		imported string
		ok       bool
	}{
		{"replication", false, "time", false},
		{"replication", false, "math/rand/v2", false},
		{"replication", false, "math/bits", true},
		{"replication", true, "time", true},
		{"replication/engine", false, "time", true},
		{"replication", false, module + "/replication/engine", false},
		{"replication/meta", false, module + "/replication", false},
		{"protocol/drbd", false, "github.com/rs/zerolog", false},
		{"hypervisor/qemu", false, module + "/replication", false},
		{"conf", true, module + "/cmd/internal/daemon", false},
		{"cmd/internal/e2e", true, module + "/cmd/internal/daemon", true},
		{"replication/engine", false, module + "/blockdev/blocktest", false},
		{"replication/engine", true, module + "/blockdev/blocktest", true},
		{"replication/engine", false, module + "/replication/repltest/hostile", false},
		{"replication/repltest/hostile", false, module + "/internal/fuzztest", true},
		{"newfolder", false, "fmt", false},
	} {
		if why := refused(tt.folder, tt.isTest, tt.imported); (why == "") != tt.ok {
			t.Errorf("%s (test %v) imports %s: %q; expected allowed = %v", tt.folder, tt.isTest, tt.imported, why, tt.ok)
		}
	}
}
