package selftest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the repository as seen from this package.
const root = "../../.."

// A bug is one planted bug.
type bug struct {
	name  string // ten/skip_barrier_wait
	title string
	finds string // sim, hasim, crash or script
	files []overlayFile
}

// An overlayFile is one source file with some of its text replaced.
type overlayFile struct {
	path  string // from the root of the repository
	hunks [][2]string
}

// loadBugs reads the bugs below replication/testdata/selftest, and those of
// failover.
func loadBugs(t *testing.T) []bug {
	t.Helper()
	var paths []string
	for _, pattern := range []string{"/replication/testdata/selftest/*/*.txt", "/hypervisor/ha/hatest/testdata/ha/*.txt"} {
		more, err := filepath.Glob(root + pattern)
		if err != nil || len(more) == 0 {
			t.Fatalf("no planted bugs: %v", err)
		}
		paths = append(paths, more...)
	}
	var bugs []bug
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(filepath.Dir(p)) + "/" + strings.TrimSuffix(filepath.Base(p), ".txt")
		x, err := parseBug(name, string(b))
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		bugs = append(bugs, x)
	}
	slices.SortFunc(bugs, func(a, b bug) int { return strings.Compare(order(a.name), order(b.name)) })
	return bugs
}

// order has the ten before the others.
func order(name string) string {
	if strings.HasPrefix(name, "ten/") {
		return "0" + name
	}
	return "1" + name
}

func parseBug(name, text string) (bug, error) {
	b := bug{name: name, finds: "sim"}
	var at *[]string // where the lines of a hunk go
	var was, is []string
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		fail := func(why string) (bug, error) { return b, fmt.Errorf("line %d: %s: %q", i+1, why, line) }
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "<<<<" && at == nil:
			if len(b.files) == 0 {
				return fail("no file line before it")
			}
			was, is = nil, nil
			at = &was
		case line == "====" && at == &was:
			at = &is
		case line == ">>>>" && at == &is:
			f := &b.files[len(b.files)-1]
			f.hunks = append(f.hunks, [2]string{strings.Join(was, "\n"), strings.Join(is, "\n")})
			at = nil
		case at != nil:
			*at = append(*at, line)
		case word == "#":
			if b.title == "" {
				b.title = strings.TrimSuffix(rest, ".")
			}
		case word == "found":
			b.finds = strings.TrimPrefix(rest, "by ")
		case word == "file":
			b.files = append(b.files, overlayFile{path: rest})
		case line != "":
			return fail("neither comment, file, found by nor a hunk")
		}
	}
	switch {
	case at != nil:
		return b, fmt.Errorf("the last hunk has no >>>>")
	case b.title == "" || len(b.files) == 0:
		return b, fmt.Errorf("no title or no file")
	case !slices.Contains([]string{"sim", "hasim", "crash", "script"}, b.finds):
		return b, fmt.Errorf("found by %q: sim, hasim, crash or script", b.finds)
	}
	return b, nil
}

// planted is the file with the bug in it.
func (f overlayFile) planted() (string, error) {
	b, err := os.ReadFile(filepath.Join(root, f.path))
	if err != nil {
		return "", err
	}
	text := string(b)
	for _, h := range f.hunks {
		if n := strings.Count(text, h[0]); n != 1 {
			return "", fmt.Errorf("%s: the text to be replaced stands there %d times, not once; find the place that does this now and name it in the overlay:\n%s", f.path, n, h[0])
		}
		text = strings.Replace(text, h[0], h[1], 1)
	}
	return text, nil
}

// overlay writes the files of b into dir and returns the path of what
// go build -overlay takes.
func (b bug) overlay(dir string) (string, error) {
	replace := map[string]string{}
	for i, f := range b.files {
		text, err := f.planted()
		if err != nil {
			return "", err
		}
		src, err := filepath.Abs(filepath.Join(root, f.path))
		if err != nil {
			return "", err
		}
		replace[src] = filepath.Join(dir, fmt.Sprintf("planted%d.go", i))
		if err := os.WriteFile(replace[src], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	doc, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, doc, 0o600)
}

// TestOverlaysApply holds the planted bugs to the sources: whoever moves a line
// that one of them replaces is told here, not by a self-test that tests nothing.
func TestOverlaysApply(t *testing.T) {
	for _, b := range loadBugs(t) {
		t.Run(b.name, func(t *testing.T) {
			for _, f := range b.files {
				if _, err := f.planted(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestParseBug(t *testing.T) {
	const whole = "# Title.\n# more\nfound by crash\nfile x.go\n<<<<\na\n\nb\n====\nc\n>>>>\n"
	b, err := parseBug("ten/x", whole)
	if err != nil || b.title != "Title" || b.finds != "crash" || len(b.files) != 1 || b.files[0].hunks[0] != [2]string{"a\n\nb", "c"} {
		t.Errorf("%+v, %v", b, err)
	}
	for _, bad := range []string{
		"", "# T\n", "# T\nfile x\n<<<<\na\n", "# T\n<<<<\n", "# T\nfile x\nfound by luck\n", "# T\nfile x\nhello\n",
	} {
		if _, err := parseBug("x", bad); err == nil {
			t.Errorf("%q is taken for a bug", bad)
		}
	}
}
