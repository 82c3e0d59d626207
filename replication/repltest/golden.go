package repltest

import (
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write golden dialogues anew instead of comparing them")

// A directive is one command of a golden dialogue, in the form of cockroachdb's
// datadriven: a line with the command and its arguments (word, or key=value),
// a line of four dashes, the expected output up to an empty line.
type directive struct {
	t    *testing.T
	path string
	line int
	text string
	cmd  string
	args map[string]string
}

func (d *directive) has(key string) bool {
	_, ok := d.args[key]
	return ok
}

// number is the value of an argument, or def.
func (d *directive) number(key string, def int) int {
	v, ok := d.args[key]
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		d.fatalf("%s=%s is no number", key, v)
	}
	return n
}

func (d *directive) fatalf(format string, args ...any) {
	d.t.Helper()
	d.t.Fatalf("%s:%d: %s: "+format, append([]any{d.path, d.line, d.text}, args...)...)
}

func parseDirective(t *testing.T, path string, line int, text string) *directive {
	d := &directive{t: t, path: path, line: line, text: text, args: map[string]string{}}
	for i, word := range strings.Fields(text) {
		key, value, _ := strings.Cut(word, "=")
		if i == 0 {
			d.cmd = word
		} else {
			d.args[key] = value
		}
	}
	return d
}

// runGolden runs every directive of a file and compares the outputs, or with
// -rewrite replaces them.
func runGolden(t *testing.T, path string, f func(d *directive) string) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	var out []string
	for i := 0; i < len(lines); i++ {
		out = append(out, lines[i])
		if strings.TrimSpace(lines[i]) == "" || strings.HasPrefix(lines[i], "#") {
			continue
		}
		d := parseDirective(t, path, i+1, lines[i])
		if i++; i >= len(lines) || lines[i] != "----" {
			d.fatalf("no ---- behind it")
		}
		var want []string
		for i+1 < len(lines) && lines[i+1] != "" {
			i++
			want = append(want, lines[i])
		}
		got := strings.Split(strings.TrimRight(f(d), "\n"), "\n")
		if diff := cmp.Diff(want, got); diff != "" && !*rewrite {
			d.fatalf("other output than before (-want +got):\n%s", diff)
		}
		out = append(append(out, "----"), got...)
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
