package hatestbed

import (
	"path/filepath"
	"testing"
)

// The control's patches fit the source as it is, and each changes it.
func TestBlindPatchesApply(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := patched(root, blindPatches); err != nil {
		t.Error(err)
	}
	if _, err := patched(root, []patch{{"replication/term.go", "no such text", ""}}); err == nil {
		t.Error("a patch that doesn't fit is no error")
	}
}
