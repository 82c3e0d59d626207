package replication_test

import (
	"os"
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

// covered is what the golden dialogues have to show: every row of the UUID
// decision table (drbd84-protocol, 5.4) and every trace of its appendix D.
var covered = []string{
	"uuid rule 10", "uuid rule 20", "uuid rule 30", "uuid rule 34", "uuid rule 35", "uuid rule 36", "uuid rule 37",
	"uuid rule 40 nobody crashed", "uuid rule 40 one crashed", "uuid rule 40 both crashed",
	"uuid rule 41 without the feature", "uuid rule 41 both Primary", "uuid rule 41 one is Primary",
	"uuid rule 50", "uuid rule 51", "uuid rule 60", "uuid rule 70", "uuid rule 71", "uuid rule 80",
	"uuid rule 90", "uuid rule 100", "uuid rule none",
	"trace D.1", "trace D.2", "trace D.3", "trace D.4", "trace D.5",
}

// TestScriptsCover looks for lines "# covers: A, B" in the dialogues. That a
// rule's script reaches this rule on a node is in its output: "rule 34 verdict".
func TestScriptsCover(t *testing.T) {
	paths, err := filepath.Glob("testdata/script/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < 60 {
		t.Errorf("%d dialogues, at least 60 are wanted", len(paths))
	}
	has := map[string]bool{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(b), "# ") {
			t.Errorf("%s does not begin with what happens in it", path)
		}
		for line := range strings.Lines(string(b)) {
			list, ok := strings.CutPrefix(strings.TrimSpace(line), "# covers: ")
			if !ok {
				continue
			}
			for name := range strings.SplitSeq(list, ", ") {
				has[name] = true
				if rule, ok := strings.CutPrefix(name, "uuid rule "); ok && rule != "none" {
					number, _, _ := strings.Cut(rule, " ")
					if !strings.Contains(string(b), " rule "+number+" verdict ") {
						t.Errorf("%s covers %s, but no node comes to it", path, name)
					}
				}
			}
		}
	}
	for _, name := range covered {
		if !has[name] {
			t.Errorf("no dialogue covers %s", name)
		}
		delete(has, name)
	}
	for name := range has {
		t.Errorf("a dialogue covers %s, which is not on the list", name)
	}
}
