package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A plant is a regression that the budget must notice: some text of a source
// file, what takes its place, and the start of the line that must be broken.
type plant struct {
	name, file string
	old, new   string
	only       string // what is measured
	broken     string
}

var plants = []plant{
	{
		"an allocation for each submitted batch", "replication/engine/volume.go",
		"\te := v.e\n\tb := e.newBatch()\n\tfor len(reqs) > 0 {", "\te := v.e\n\tb := new(batch)\n\tfor len(reqs) > 0 {",
		"^allocations/", "allocations/qd1: was ",
	},
	{
		"a system call for each local write", "replication/engine/volume.go",
		"\t\t_, err := v.data.WriteAt(op.data, off)\n", "\t\tv.data.ReadAt(op.data[:512], off)\n\t\t_, err := v.data.WriteAt(op.data, off)\n",
		"^syscalls/", "syscalls/qd1/far/data: was ",
	},
	{
		"a loop in each step", "replication/resource.go",
		"\tr.actions = r.actions[:0]\n", "\tr.actions = r.actions[:0]\n\tfor i := range Tick(500) {\n\t\tif i > ev.At+1000 {\n\t\t\tr.now = i\n\t\t}\n\t}\n",
		"^instructions/", "instructions/core: was ",
	},
}

// overlay writes the changed file and the overlay that puts it in its place.
func (p plant) overlay(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../..", p.file))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), p.old); n != 1 {
		t.Fatalf("%s has this text %d times, want it once:\n%s", p.file, n, p.old)
	}
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err == nil {
		err = os.WriteFile(changed, []byte(strings.Replace(string(text), p.old, p.new, 1)), 0o600)
	}
	if err == nil {
		err = os.WriteFile(overlay, list, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return overlay
}

// TestBudgetPlanted plants one regression at a time, and has TestBudget notice it
// if -budget=planted; that each can be planted is tested always.
func TestBudgetPlanted(t *testing.T) {
	for _, p := range plants {
		t.Run(strings.ReplaceAll(p.name, " ", "_"), func(t *testing.T) {
			overlay := p.overlay(t)
			if *budgetFlag != "planted" {
				return
			}
			cmd := exec.Command("go", "test", ".", "-count=1", "-run=^TestBudget$", "-budget=check", "-budget-only="+p.only)
			// The test builds the programs by the same flags.
			cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+overlay))
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "\n          "+p.broken) {
				t.Errorf("not noticed: %v\n%s", err, out)
				return
			}
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(strings.TrimSpace(line), p.broken) {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	}
}
