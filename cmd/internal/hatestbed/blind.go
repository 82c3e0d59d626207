package hatestbed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A patch is one change of the source: the text stands there exactly once.
type patch struct{ file, was, is string }

// blindPatches take the check of terms from the core: a replica accepts any
// Primary, an owner that has lost its peer goes on without asking, one that was
// replaced does not stop. The rounds must find what that breaks.
var blindPatches = []patch{
	{
		"replication/term.go",
		"func (t *terms) accepts(term uint64) bool { return term >= t.promised }",
		"func (t *terms) accepts(uint64) bool { return true }",
	},
	{
		"replication/term.go",
		"func (r *Resource) termFreeze() string {\n",
		"func (r *Resource) termFreeze() string {\n\tif true {\n\t\treturn \"\"\n\t}\n",
	},
	{
		"replication/term.go",
		"func (r *Resource) termOver() bool {\n",
		"func (r *Resource) termOver() bool {\n\tif true {\n\t\treturn false\n\t}\n",
	},
	{
		"replication/term.go",
		"func (r *Resource) sharesTerm() bool {\n",
		"func (r *Resource) sharesTerm() bool {\n\tif true {\n\t\treturn false\n\t}\n",
	},
}

// patched returns the files that patches change, by their path, with their new text.
func patched(root string, patches []patch) (map[string]string, error) {
	text := map[string]string{}
	for _, p := range patches {
		path := filepath.Join(root, p.file)
		if _, known := text[path]; !known {
			b, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			text[path] = string(b)
		}
		if n := strings.Count(text[path], p.was); n != 1 {
			return nil, fmt.Errorf("%s: the text %q stands there %d times, want once: the control has to follow the source", p.file, p.was, n)
		}
		text[path] = strings.Replace(text[path], p.was, p.is, 1)
	}
	return text, nil
}

// BuildBlind builds a polluxd without the check of terms from the source at root,
// and puts it beside links to the other programs of bin, all into dir.
func BuildBlind(ctx context.Context, root, bin, dir string) error {
	texts, err := patched(root, blindPatches)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for path, text := range texts {
		file := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(path, root), "/", "-"))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		overlay.Replace[path] = file
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", list, "-o", filepath.Join(dir, "polluxd"), "./cmd/polluxd")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build polluxd without the check of terms: %w: %s", err, out)
	}
	for _, name := range []string{"polluxadm", "polluxmeta", "polluxha", "pollux-witness"} {
		if err := os.Symlink(filepath.Join(bin, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
