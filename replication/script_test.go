package replication_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/replication/repltest"
)

// TestScripts runs the golden dialogues in testdata/script; -rewrite writes
// them anew, whose diff is to be read.
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) { repltest.RunScript(t, path) })
	}
}
