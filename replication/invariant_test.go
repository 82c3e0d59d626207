package replication_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tool runs the go command in this package's folder.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("go", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestInvariantsCostNothing: without the tag invariants the costly checks are
// an empty function, its call is gone, and nothing of them is in the object
// file; with it, they are there.
func TestInvariantsCostNothing(t *testing.T) {
	said := tool(t, "build", "-gcflags=-m", "-o", filepath.Join(t.TempDir(), "m.a"), ".")
	for _, want := range []string{"can inline (*Resource).mustHoldAll", "inlining call to (*Resource).mustHoldAll"} {
		if !strings.Contains(said, want) {
			t.Errorf("the compiler does not say %q", want)
		}
	}
	for _, tt := range []struct {
		tags string
		want bool
	}{{"", false}, {"invariants", true}} {
		object := filepath.Join(t.TempDir(), "replication.a")
		tool(t, "build", "-tags="+tt.tags, "-o", object, ".")
		symbols := []byte(tool(t, "tool", "nm", object))
		for _, name := range []string{"requestsMustHold", "epochsMustHold", "volumeMustHold", "logMustHold"} {
			if has := bytes.Contains(symbols, []byte("."+name)); has != tt.want {
				t.Errorf("with tags %q the object file has %s: %v", tt.tags, name, has)
			}
		}
	}
}
