package conf

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/internal/fuzztest"
)

// confMemory is what reading some files may allocate: a fixed part, and so many
// bytes for each byte that is read (an include may be read more than once).
const (
	confMemory  = 64 << 20
	confPatient = 3 * time.Minute // on a busy machine
)

// FuzzTree reads a tree of files: includes, templates and inheritance, sections
// that come twice. The text is cut into files at the bytes 0; "include" finds
// them as /0.res, /1.res and so on. An error names a place; what is accepted
// resolves without a panic, and its dump says the same again.
func FuzzTree(f *testing.F) {
	const hosts = "on alpha { address 10.0.0.1:7000; device minor 0; disk /dev/a; meta-disk internal; }\n" +
		"on bravo { address 10.0.0.2:7000; device minor 0; disk /dev/b; meta-disk internal; }\n"
	for _, files := range [][]string{
		{"include \"1.res\";\nresource r0 {\n" + hosts + "}\n", "global { usage-count no; }\ncommon { net { protocol C; } disk { c-max-rate 1M; } }\n"},
		{"include \"*.res\";\n", "resource r1 {\n" + hosts + "}\n"},
		{"include \"1.res\";\ninclude \"2.res\";\n", "include \"2.res\";\n", "include \"1.res\";\n"},
		{"include \"0.res\";\nresource r0 { net { ping-int 3; ping-int 4; } }\n"},
		{"resource r0 {\n net { verify-alg md5; }\n volume 0 { device minor 1; disk /dev/a; meta-disk /dev/m [0]; }\n volume 1 { device minor 2; disk /dev/b; meta-disk internal; disk { size 1G; } }\n" +
			" on alpha { address 10.0.0.1:7000; }\n on bravo { address 10.0.0.2:7000; volume 1 { disk /dev/c; } }\n}\n"},
		{"resource low {\n" + hosts + "}\nresource up {\n stacked-on-top-of low { device minor 9; address 10.1.0.1:7001; }\n on c { device minor 9; disk /dev/c; meta-disk internal; address 10.1.0.2:7001; }\n}\n"},
		{"resource r0 { options { on-no-data-accessible suspend-io; } startup { wfc-timeout 10; } handlers { split-brain \"/bin/true 'a b'\"; }\n" +
			" floating 10.0.0.1:7000 { device minor 0; disk /dev/a; meta-disk internal; } floating ipv6 [fe80::1]:7000 { device minor 0; disk /dev/a; meta-disk internal; }\n}\n"},
		{"resource r0 { disk { resync-after r1; } " + hosts + "}\nresource r1 { disk { resync-after r0; } device minor 3; " +
			strings.ReplaceAll(strings.ReplaceAll(hosts, "7000", "7001"), "minor 0", "minor 3") + "}\n"},
		{"resource r0 {\n template-file \"/1.res\";\n" + hosts + "}\n", "common { net { protocol A; } }\n"},
	} {
		f.Add(strings.Join(files, "\x00"))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 64<<10 {
			return
		}
		watchdog := time.AfterFunc(confPatient, func() { panic("a configuration is not read to its end") })
		defer watchdog.Stop()
		files := map[string]string{}
		for i, part := range strings.Split(text, "\x00") {
			if i == 16 {
				break
			}
			files[fmt.Sprintf("/%d.res", i)] = part
		}
		env := memEnv(files)
		fuzztest.Bounded(t, confMemory, func() {
			c, err := Load([]string{"/0.res"}, env)
			if err == nil {
				useConfig(t, env, c)
			} else {
				mustHavePlace(t, err)
			}
		})
	})
}

func mustHavePlace(t *testing.T, err error) {
	t.Helper()
	var list ErrorList
	var parse *ParseError
	switch {
	case errors.As(err, &list):
		for _, e := range list {
			if e.File == "" || e.Line < 1 || e.Col < 1 {
				t.Errorf("no place: %v", e)
			}
		}
	case !errors.As(err, &parse):
		t.Errorf("%T: %v", err, err)
	}
}

// useConfig resolves and dumps; a dump in the words of its own says the same.
func useConfig(t *testing.T, env Env, c *Config) {
	hasTemplate := false
	for _, r := range c.Resources {
		hasTemplate = hasTemplate || r.TemplateFile != ""
		one, err := c.Resolve(r.Name)
		if err != nil {
			continue
		}
		if again, err := c.Resolve(r.Name); err != nil || len(Changes(one, again)) != 0 {
			t.Errorf("%s resolved twice differs: %v, %v", r.Name, Changes(one, again), err)
		}
	}
	var b bytes.Buffer
	if err := c.DumpMerged(&b); err != nil {
		t.Fatal(err)
	}
	if !hasTemplate {
		checkFixedPoint(t, env, c)
	}
}
