package conf

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEditAdopt: the list changes, and nothing else of the file.
func TestEditAdopt(t *testing.T) {
	for _, tt := range []struct {
		name, src string
		add, drop string
		want      string
	}{
		{"an empty file", "", "r0", "", "adopt = [\"r0\"]\n"},
		{"no list", "node-name = \"a\" # me\n\n# the log\n[log]\nlevel = \"info\"\n", "r0", "", "node-name = \"a\" # me\nadopt = [\"r0\"]\n\n# the log\n[log]\nlevel = \"info\"\n"},
		{"no newline at the end", "node-name = 'a'", "r0", "", "node-name = 'a'\nadopt = [\"r0\"]\n"},
		{"tables only", "# node a\n# of two\n\n[log]\nlevel = 'info'\n", "r0", "", "# node a\n# of two\nadopt = [\"r0\"]\n\n[log]\nlevel = 'info'\n"},
		{"comments only", "# nothing", "r0", "", "# nothing\nadopt = [\"r0\"]\n"},
		{"behind a list over lines", "resource-files = [\n  'x', # ]\n]\n[log]\n", "r0", "", "resource-files = [\n  'x', # ]\n]\nadopt = [\"r0\"]\n[log]\n"},
		{"an empty list", "adopt = [ ] # none\n", "r0", "", "adopt = [\"r0\" ] # none\n"},
		{"a list in a line", "adopt = ['r0']\n", "r1 r2", "", "adopt = ['r0', \"r1\", \"r2\"]\n"},
		{"a final comma", "adopt = ['r0',]\n", "r1", "", "adopt = ['r0', \"r1\",]\n"},
		{"a list over lines", "adopt = [\n  'r0', # the first\n  # to come: more\n]\n", "r1", "", "adopt = [\n  'r0', # the first\n  # to come: more\n  \"r1\",\n]\n"},
		{"the same without a final comma", "adopt = [\n\t'r0' # the first\n]\n", "r1", "", "adopt = [\n\t'r0', # the first\n\t\"r1\",\n]\n"},
		{"there already", "adopt=['r0']", "r0", "", "adopt=['r0']"},
		{"drop the only one", "adopt = [\"r0\"] # one\n", "", "r0", "adopt = [] # one\n"},
		{"drop the first", "adopt = ['r0', 'r1']\n", "", "r0", "adopt = ['r1']\n"},
		{"drop the last", "adopt = ['r0', 'r1']\n", "", "r1", "adopt = ['r0']\n"},
		{"drop the last before a comma", "adopt = ['r0', 'r1',]\n", "", "r1", "adopt = ['r0', ]\n"},
		{"drop the middle", "adopt = ['a', 'r0', 'b']\n", "", "r0", "adopt = ['a', 'b']\n"},
		{"drop a line", "adopt = [\n  'a', # one\n  'r0', # two\n  'b', # three\n]\n", "", "r0", "adopt = [\n  'a', # one\n  'b', # three\n]\n"},
		{"drop what stands twice", "adopt = ['r0', 'a', 'r0']\n", "", "r0", "adopt = ['a']\n"},
		{"drop what is not there", "adopt = ['a']\n", "", "r0", "adopt = ['a']\n"},
		{"one in, one out", "adopt = ['a', 'r0']\n", "b", "r0", "adopt = ['a', \"b\"]\n"},
		{"a name that looks like one", "adopt = ['r0, r1', \"r\\u0030\"] # 'r0'\n", "", "r0", "adopt = ['r0, r1'] # 'r0'\n"},
		{"another table's adopt", "[resource.adopt]\nio = 'direct'\n", "r0", "", "adopt = [\"r0\"]\n\n[resource.adopt]\nio = 'direct'\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := EditAdopt("p.toml", []byte(tt.src), strings.Fields(tt.add), strings.Fields(tt.drop))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	for _, tt := range []struct{ name, src, want string }{
		{"a file that is wrong", "adopt = [\n", "p.toml:"},
		{"drbd-conf is off", "drbd-conf = ''\n", "by hand: adopt = [\"r0\"]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := EditAdopt("p.toml", []byte(tt.src), []string{"r0"}, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q, %v, want an error with %q", got, err, tt.want)
			}
		})
	}
}

// FuzzEditAdopt: whatever a right file looks like, the edit means what it should,
// or is refused; and undoing it gives the old list.
func FuzzEditAdopt(f *testing.F) {
	for _, s := range []string{"", "adopt = []", "adopt = [\n 'a', # x\n]\n[log]\n", "# c\n\n[log]\nlevel='info'", "'adopt' = ['''a''',]", "resource-files=[\"]\"]\nadopt=['a'\n,'b']"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		old, err := ParseDaemon("p.toml", []byte(src))
		if err != nil {
			return
		}
		text, err := EditAdopt("p.toml", []byte(src), []string{"new"}, nil)
		if err != nil {
			return // it says what to do by hand
		}
		back, err := EditAdopt("p.toml", text, nil, []string{"new"})
		if err != nil {
			return
		}
		now, err := ParseDaemon("p.toml", back)
		if err != nil {
			t.Fatalf("%q became %q: %v", src, back, err)
		}
		if want := strings.Join(old.Adopt, " "); strings.Join(now.Adopt, " ") != strings.TrimSpace(strings.ReplaceAll(" "+want+" ", " new ", " ")) {
			t.Errorf("%q became %q: %q", src, back, now.Adopt)
		}
	})
}
