package conf

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The corpus holds files and what the drbdadm of drbd-utils 9.22.0 said about
// them; testdata/corpus/README tells how it was made.

// deviations are the files on which Pollux differs from drbdadm 9 on purpose.
var deviations = map[string]string{
	"21-stacked":                         "drbdadm 9 forgets the device of a stacked section, its dump does not read back",
	"34-duplicate-option":                "stricter: one option with two values in one section is an error, drbdadm 9 refuses to run with it",
	"36-syncer-both-dialects":            "stricter: syncer and net set verify-alg to two values, drbdadm 9 refuses to run with it",
	"60-surprise-slash-in-resource-name": "stricter: the name is part of paths and of the export name web-root/0",
	"64-surprise-duplicate-volume":       "stricter: the same volume number twice is an error with both lines",
}

// conversation is what a file's directives say the run pretended.
func conversation(t *testing.T, path string) (Env, []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	env := Env{Hostname: "alpha"}
	local := map[netip.Addr]bool{netip.MustParseAddr("127.0.0.1"): true}
	args := []string{"dump"}
	for line := range strings.Lines(string(text)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "#@host":
			env.Hostname = strings.TrimSpace(rest)
		case "#@addr":
			for _, a := range strings.Fields(rest) {
				local[netip.MustParseAddr(a)] = true
			}
		case "#@args":
			args = strings.Fields(rest)
		}
	}
	env.LocalAddr = func(a netip.Addr) bool { return local[a] }
	// The run had the file as /etc/drbd.conf and NAME.d as /etc/NAME.d.
	dir := filepath.Dir(path)
	real := func(name string) string {
		if name == "/etc/drbd.conf" {
			return path
		}
		return filepath.Join(dir, strings.TrimPrefix(name, "/etc/"))
	}
	env.ReadFile = func(name string) ([]byte, error) {
		if !strings.HasPrefix(name, "/etc/") {
			return nil, fs.ErrNotExist
		}
		return os.ReadFile(real(name))
	}
	env.Glob = func(pattern string) ([]string, error) {
		names, err := filepath.Glob(real(pattern))
		for i := range names {
			names[i] = "/etc/" + strings.TrimPrefix(names[i], dir+"/")
		}
		return names, err
	}
	return env, args
}

func corpusFiles(t *testing.T, suffix string) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/corpus/*" + suffix)
	if err != nil || len(names) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	return names
}

func TestCorpusAccepted(t *testing.T) {
	for _, path := range corpusFiles(t, ".conf") {
		base := strings.TrimSuffix(path, ".conf")
		name := filepath.Base(base)
		if strings.HasSuffix(path, ".bad.conf") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			env, args := conversation(t, path)
			c, err := Load([]string{"/etc/drbd.conf"}, env)
			if deviations[name] != "" && name != "21-stacked" {
				if err == nil {
					t.Fatalf("accepted, though %s", deviations[name])
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(base + ".dump")
			if errors.Is(err, fs.ErrNotExist) {
				want = nil
			} else if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			dump := c.Dump
			if args[0] == "-v" {
				dump = c.DumpMerged
			}
			if err := dump(&got); err != nil {
				t.Fatal(err)
			}
			if args[len(args)-1] == "dump" && want != nil && deviations[name] == "" {
				if diff := cmp.Diff(string(want), got.String()); diff != "" {
					t.Errorf("dump (-drbdadm +conf):\n%s", diff)
				}
			}
			checkFixedPoint(t, env, c)
		})
	}
}

var definedAt = regexp.MustCompile(`(?m)^# defined at .*$`)

// checkFixedPoint loads the dump of c and compares its dump.
func checkFixedPoint(t *testing.T, env Env, c *Config) {
	t.Helper()
	var first, second bytes.Buffer
	if err := c.Dump(&first); err != nil {
		t.Fatal(err)
	}
	files := env.ReadFile
	env.ReadFile = func(name string) ([]byte, error) {
		if name == c.File {
			return first.Bytes(), nil
		}
		return files(name)
	}
	again, err := Load([]string{c.File}, env)
	if err != nil {
		t.Fatalf("the dump does not load: %v\n%s", err, first.String())
	}
	if err := again.Dump(&second); err != nil {
		t.Fatal(err)
	}
	strip := func(b *bytes.Buffer) string { return definedAt.ReplaceAllString(b.String(), "# defined at") }
	if diff := cmp.Diff(strip(&first), strip(&second)); diff != "" {
		t.Errorf("the dump of a dump differs (-first +second):\n%s", diff)
	}
}

// badLines are the files where the line differs from drbdadm 9's report.
// Everywhere else the line of the first error has to be the same.
var badLines = map[string]string{
	"e26-duplicate-minor":               "drbdadm 9 reports line 0; the line is 8.4's",
	"e27-duplicate-address":             "drbdadm 9 reports line 0; the line is 8.4's",
	"e28-implicit-and-explicit-volumes": "drbdadm 9 reports where its scanner stands after the resource; the lines are 8.4's",
	"e29-volume-sets-differ":            "drbdadm 9 reports where its scanner stands after the resource; the line is 8.4's",
	"e34-ip-not-local":                  "drbdadm 9 reports no line; the line is 8.4's",
	"e40-same-endpoints":                "drbdadm 9 reports neither file nor line; the line is 8.4's",
}

// badKinds is what kind of error each file has to give, as a pattern.
var badKinds = map[string]string{
	"e01-missing-semicolon":             `found "disk", expected .*";"`,
	"e02-eof-in-resource":               `found the end of the file, expected "}"`,
	"e03-unknown-toplevel":              `found "resources", expected .*"resource"`,
	"e04-unknown-in-resource":           `found "replicate", expected .*"protocol"`,
	"e05-unknown-net-option":            `found "max-bufers", expected an option.*"max-buffers"`,
	"e06-unknown-disk-option":           `found "on-io-errors", expected an option.*"on-io-error"`,
	"e07-bad-enum":                      `"ignore" for on-io-error: value is not valid(?s:.*)"discard-zero-changes" for after-sb-1pri: value is not valid`,
	"e08-not-a-number":                  `"soon" for timeout: value is not a number(?s:.*)"10x" for ping-int: value is not a number`,
	"e09-too-small":                     `"0" for timeout: value is too small(?s:.*)"31" for max-buffers: value is too small`,
	"e10-too-big":                       `"601" for timeout: value is too big(?s:.*)"301" for c-plan-ahead: value is too big`,
	"e11-bad-boolean":                   `"maybe" for allow-two-primaries: value is not 'yes' or 'no'(?s:.*)"true" for tcp-cork`,
	"e12-duplicate-resource":            `conflicting use of resource section "r0", first used at /etc/drbd.conf:3`,
	"e13-duplicate-host-section":        `conflicting use of host section 'r0: on alpha', first used at /etc/drbd.conf:5`,
	"e14-no-host-sections":              `in resource r0: a host section .*is missing`,
	"e15-missing-device":                `on alpha { ... }: 'device' keyword missing(?s:.*)on bravo { ... }: 'device' keyword missing`,
	"e16-missing-disk":                  `on alpha { ... }: 'disk' keyword missing(?s:.*)on bravo { ... }: 'disk' keyword missing`,
	"e17-missing-address":               `on bravo { ... }: 'address' keyword missing`,
	"e18-port-out-of-range":             `port 70000 is out of range(?s:.*)port 0 is out of range`,
	"e19-hostname-as-address":           `found "alpha.example.com", expected .*"ipv6"`,
	"e20-ipv6-no-brackets":              `found "fd00::1:7788", expected "\["`,
	"e21-unterminated-string":           `unterminated double quoted string`,
	"e22-string-too-long":               `quoted string too long`,
	"e23-token-too-long":                `word too long`,
	"e24-secret-too-long":               `shared-secret: value is too long`,
	"e25-include-missing":               `e25-does-not-exist.conf does not exist`,
	"e26-duplicate-minor":               `conflicting use of device minor 3 of host alpha .*first used at /etc/drbd.conf:4`,
	"e27-duplicate-address":             `conflicting use of IP '10.1.1.31:7788'.*first used at /etc/drbd.conf:4`,
	"e28-implicit-and-explicit-volumes": `you must not mix implicit and explicit volumes`,
	"e29-volume-sets-differ":            `volume 0 not defined on bravo(?s:.*)volume 1 missing \(present on bravo\)`,
	"e30-global-twice":                  `conflicting use of the global section, first used at /etc/drbd.conf:3`,
	"e31-hosts-in-common":               `in the common section, there are no host sections allowed`,
	"e32-discard-unknown-node":          `discard-node-zulu, expected the name of a host`,
	"e33-stacked-on-unknown":            `in resource r0-U, referenced resource 'r0' not defined`,
	"e34-ip-not-local":                  `in resource r0, on alpha: IP 10.9.9.9 not found on this host`,
	"e35-minor-mismatch":                `explicit minor number must match with device name`,
	"e36-bad-device-name":               `device name must start with /dev/drbd`,
	"e39-two-net-sections":              `conflicting use of section net in resource r0, first used at /etc/drbd.conf:4`,
	"e40-same-endpoints":                `conflicting use of IP '10.1.1.31:7788'.*first used at /etc/drbd.conf:5`,
	"e41-floating-with-address":         `address statement not allowed for floating {} host sections`,
	"e43-protocol-d":                    `"D" for protocol: value is not valid, expected one of A, B, C`,
	"e45-usage-count-value":             `found "maybe", expected "yes", "no" or "ask"`,
	"e46-meta-disk-index-not-number":    `found "x", expected index`,
	"e48-glued-tokens":                  `found "device/dev/drbd0", expected "device"`,
	"e49-v9-unknown-mesh-host":          `no 'on' section for hostname 'charlie' named in the connection-mesh`,
	"e50-v9-node-id-twice":              `conflicting use of node-id 'r0:1', first used at /etc/drbd.conf:5`,
	"e51-v9-quorum-value":               `"most" for quorum: value is not valid(?s:.*)"freeze" for on-no-quorum: value is not valid`,
	"e52-v9-node-id-missing":            `on charlie { ... }: 'node-id' keyword missing`,
}

var reportedLine = regexp.MustCompile(`(?m)^(/etc/drbd\.conf:\d+):`)

func TestCorpusRefused(t *testing.T) {
	for _, path := range corpusFiles(t, ".bad.conf") {
		base := strings.TrimSuffix(path, ".bad.conf")
		name := filepath.Base(base)
		t.Run(name, func(t *testing.T) {
			env, _ := conversation(t, path)
			c, err := Load([]string{"/etc/drbd.conf"}, env)
			if err == nil || c != nil {
				t.Fatal("accepted")
			}
			var parse *ParseError
			if !errors.As(err, &parse) || parse.Line < 1 || parse.Col < 1 {
				t.Fatalf("no place in the error: %v", err)
			}
			oracle := base + ".err"
			if badLines[name] != "" {
				oracle += "84"
			}
			report, readErr := os.ReadFile(oracle)
			if readErr != nil {
				t.Fatal(readErr)
			}
			want, got := reportedLine.FindSubmatch(report), reportedLine.FindStringSubmatch(err.Error())
			if want == nil || got == nil || string(want[1]) != got[1] {
				t.Errorf("first line %q, drbdadm's %q", got, want)
			}
			if kind := badKinds[name]; kind == "" {
				t.Errorf("no kind of error is listed for %s, it is: %v", name, err)
			} else if !regexp.MustCompile(kind).MatchString(err.Error()) {
				t.Errorf("error is\n%v\nwant a match of %s", err, kind)
			}
		})
	}
}
