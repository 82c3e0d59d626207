package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// memEnv is an Env for host alpha over files in memory, named absolutely.
func memEnv(files map[string]string) Env {
	m := fstest.MapFS{}
	for name, text := range files {
		m[strings.TrimPrefix(name, "/")] = &fstest.MapFile{Data: []byte(text)}
	}
	return Env{
		Hostname: "alpha",
		ReadFile: func(name string) ([]byte, error) { return fs.ReadFile(m, strings.TrimPrefix(name, "/")) },
		Glob: func(pattern string) ([]string, error) {
			var names []string
			for name := range m {
				if ok, err := path.Match(pattern, "/"+name); err != nil {
					return nil, err
				} else if ok {
					names = append(names, "/"+name)
				}
			}
			return names, nil
		},
	}
}

func loadText(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Load([]string{"/r.res"}, memEnv(map[string]string{"/r.res": text}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func resolve(t *testing.T, c *Config, name string) *Resource {
	t.Helper()
	r, err := c.Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hosts is the part that most tests don't care about.
const hosts = ` device minor 0; disk /dev/a; meta-disk internal;
	on alpha { address 10.0.0.1:7788; } on bravo { address 10.0.0.2:7788; } `

func TestResolveLegacy(t *testing.T) {
	// What how-tos of DRBD 8.3 print.
	r := resolve(t, loadText(t, `
common { protocol B; syncer { rate 40M; al-extents 257; verify-alg sha1; } handlers { outdate-peer "/sbin/fence"; } }
resource web {
	protocol C;
	syncer { csums-alg md5; use-rle; cpu-mask f; on-no-data-accessible suspend-io; c-plan-ahead 0; c-fill-target 24M; }
	disk { fencing resource-only; no-disk-flushes; no-md-flushes; use-bmbv; delay-probe-volume 3; }
	net { no-tcp-cork; after-sb-0pri discard-node-bravo; ping-timeout 7; timeout 50; }
	startup { wfc-timeout 30; degr-wfc-timeout 60; }
	on alpha { device /dev/drbd3; disk /dev/a; address 10.0.0.1:7788; flexible-meta-disk /dev/m; }
	on bravo { device /dev/drbd3; disk /dev/b; address 10.0.0.2:7788; meta-disk /dev/m[2]; }
}`), "web")
	v := r.Volumes[0]
	for _, tt := range []struct {
		what      string
		got, want any
	}{
		{"protocol", r.Net.Protocol, "C"},
		{"resync-rate", v.Options.ResyncRate, uint64(40 << 10)},
		{"al-extents", v.Options.ALExtents, 257},
		{"verify-alg", r.Net.VerifyAlg, "sha1"},
		{"csums-alg", r.Net.CsumsAlg, "md5"},
		{"use-rle", r.Net.UseRLE, true},
		{"cpu-mask", r.Options.CPUMask, "f"},
		{"on-no-data-accessible", r.Options.OnNoDataAccessible, "suspend-io"},
		{"c-plan-ahead", v.Options.CPlanAhead, time.Duration(0)},
		{"c-fill-target", v.Options.CFillTarget, uint64(49152)},
		{"fencing of the volume", v.Options.Fencing, "resource-only"},
		{"fencing", r.Net.Fencing, "resource-only"},
		{"disk-flushes", v.Options.DiskFlushes, false},
		{"disk-drain", v.Options.DiskDrain, true},
		{"tcp-cork", r.Net.TCPCork, false},
		{"after-sb-0pri", r.Net.AfterSB0Pri, "discard-remote"},
		{"ping-timeout", r.Net.PingTimeout, 700 * time.Millisecond},
		{"timeout", r.Net.Timeout, 5 * time.Second},
		{"ping-int", r.Net.PingInterval, 10 * time.Second},
		{"degr-wfc-timeout", r.Startup.DegrWFCTimeout, 30 * time.Second},
		{"outdated-wfc-timeout", r.Startup.OutdatedWFCTimeout, 30 * time.Second},
		{"fence-peer", r.Handlers["fence-peer"], "/sbin/fence"},
		{"device", v.Device, "/dev/drbd3"},
		{"minor", v.Minor, 3},
		{"meta-disk", v.MetaDisk, "/dev/m"},
		{"index", v.MetaIndex, -1},
		{"local", r.Local.Addr, netip.MustParseAddrPort("10.0.0.1:7788")},
		{"peer", r.Peer.Addr, netip.MustParseAddrPort("10.0.0.2:7788")},
		{"peer's name", r.Peer.Name, "bravo"},
	} {
		if diff := cmp.Diff(tt.want, tt.got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.what, diff)
		}
	}
}

func TestResolveNearestWins(t *testing.T) {
	c := loadText(t, `
common { disk { resync-rate 1M; c-min-rate 1M; al-extents 100; c-max-rate 1M; c-fill-target 1; } net { max-buffers 100; } options { cpu-mask 1; } }
resource r {
	disk { resync-rate 2M; c-min-rate 2M; c-max-rate 2M; c-fill-target 2; }
	options { cpu-mask 2; }
	volume 0 { device minor 0; disk /dev/a; disk { resync-rate 3M; c-max-rate 3M; } }
	volume 1 { device minor 1; disk /dev/b; }
	on alpha { node-id 0; address 10.0.0.1:7788; volume 0 { disk { resync-rate 4M; } } options { cpu-mask 3; } }
	on bravo { node-id 1; address 10.0.0.2:7788; }
	connection {
		host alpha port 7000; host bravo address 10.9.9.2:7001;
		net { max-buffers 200; }
		volume 0 { disk { c-max-rate 4M; } }
	}
}`)
	r := resolve(t, c, "r")
	type rates struct{ Resync, Min, Max, Fill uint64 }
	got := []rates{}
	for _, v := range r.Volumes {
		got = append(got, rates{v.Options.ResyncRate >> 10, v.Options.CMinRate >> 10, v.Options.CMaxRate >> 10, v.Options.CFillTarget})
	}
	if diff := cmp.Diff([]rates{{4, 2, 4, 2}, {2, 2, 2, 2}}, got); diff != "" {
		t.Errorf("disk options (-want +got):\n%s", diff)
	}
	if r.Volumes[1].Options.ALExtents != 100 || r.Net.MaxBuffers != 200 || r.Options.CPUMask != "3" {
		t.Errorf("al-extents %d, max-buffers %d, cpu-mask %s; want 100, 200, 3", r.Volumes[1].Options.ALExtents, r.Net.MaxBuffers, r.Options.CPUMask)
	}
	if r.Local.Addr.String() != "10.0.0.1:7000" || r.Peer.Addr.String() != "10.9.9.2:7001" {
		t.Errorf("addresses %s and %s, want those of the connection", r.Local.Addr, r.Peer.Addr)
	}
	if v, ok := r.Option(SectionNet, "max-buffers"); v != "200" || !ok {
		t.Errorf("Option(net, max-buffers) = %q, %v", v, ok)
	}
	if v, ok := r.Volumes[0].Option("resync-rate"); v != "4M" || !ok {
		t.Errorf("Option(resync-rate) = %q, %v", v, ok)
	}
	if _, ok := r.Option(SectionNet, "max-bufers"); ok {
		t.Error("an unknown option was found")
	}
}

// TestOneAddress: two nodes on one machine, as in the demo.
func TestOneAddress(t *testing.T) {
	c := loadText(t, `resource r { device minor 0; disk /tmp/a; on alpha { address 127.0.0.1:7001; } on bravo { address 127.0.0.1:7002; } }`)
	r := resolve(t, c, "r")
	if r.Local.NodeID != 0 || r.Peer.NodeID != 1 || r.Peer.Addr.Port() != 7002 {
		t.Errorf("%+v, %+v", r.Local, r.Peer)
	}
}

func TestResolveStacked(t *testing.T) {
	text := `
resource low { device /dev/drbd0; disk /dev/a; on alpha { address 10.0.0.1:1; } on bravo { address 10.0.0.2:1; } }
resource up { stacked-on-top-of low { device /dev/drbd10; address 10.1.0.1:2; }
	on charlie { device /dev/drbd10; disk /dev/c; address 10.1.0.2:2; } }`
	r := resolve(t, loadText(t, text), "up")
	if r.StackedOn != "low" || r.Volumes[0].Disk != "/dev/drbd0" || r.Volumes[0].MetaIndex != -1 || r.Peer.Name != "charlie" {
		t.Errorf("%+v", r)
	}
}

func TestResolveRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown", `resource x {` + hosts + `}`, `"r" not defined in your config (for this host)`},
		{"other hosts", `resource r { device minor 0; disk /dev/a; on x { address 10.0.0.1:7; } on y { address 10.0.0.2:7; } }`, `"r" not defined in your config (for this host)`},
		{"no peer", `resource r { device minor 0; disk /dev/a; on alpha { address 10.0.0.1:7; } }`, `/r.res:1:1: resource r has no peer`},
		{"three hosts", `resource r { device minor 0; disk /dev/a; on alpha { address 10.0.0.1:7; } on b { address 10.0.0.2:7; } on c { address 10.0.0.3:7; } }`, `/r.res:1:1: resource r has 3 hosts`},
		{"two peers", `resource r { device minor 0; disk /dev/a; on alpha { node-id 0; address 10.0.0.1:7; } on b { node-id 1; address 10.0.0.2:7; } on c { node-id 2; address 10.0.0.3:7; } connection-mesh { hosts alpha b c; } }`, `/r.res:1:1: resource r has 2 peers`},
		{"ssocks", `resource r { device minor 0; disk /dev/a; on alpha { address ssocks 10.0.0.1:7; } on b { address ssocks 10.0.0.2:7; } }`, `expected ipv4 or ipv6`},
		{"two primaries", `resource r { net { protocol A; allow-two-primaries; }` + hosts + `}`, `/r.res:1:32: resource r: allow-two-primaries needs protocol C`},
		{"congestion", `resource r { net { on-congestion pull-ahead; }` + hosts + `}`, `on-congestion pull-ahead needs protocol A`},
		{"stonith", `common { net { fencing resource-and-stonith; } } resource r { protocol A;` + hosts + `}`, `/r.res:1:16: resource r: fencing resource-and-stonith needs protocol B or C`},
		{"rdma", `resource r { net { transport rdma; }` + hosts + `}`, `expected tcp`},
		{"secret", `resource r { net { cram-hmac-alg sha1; }` + hosts + `}`, `cram-hmac-alg needs a shared-secret`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := loadText(t, tt.text).Resolve("r")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, %v; want an error with %q", r, err, tt.want)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"suffix on a port", `resource r { device minor 0; disk /dev/a; on alpha { address 10.0.0.1:7K; } }`, `/r.res:1:71: found "7K", expected port without a suffix`},
		{"suffix on a minor", `resource r { device minor 1M; }`, `found "1M", expected minor number without a suffix`},
		{"end in a resource", `resource r {` + hosts, `found the end of the file, expected "}" for the section that begins in line 1`},
		{"keyword as a name", `resource net { }`, `/r.res:1:10: found "net", expected the name of the resource; write it in double quotes`},
		{"number as a name", `resource 10 { }`, `write it in double quotes`},
		{"empty name", `resource "" { }`, `expected the name of the resource`},
		{"quoted keyword", `resource r { "net" { } }`, `found "net", expected "on"`},
		{"option of another section", `resource r { net { al-extents 100; } }`, `al-extents belongs into disk { }`},
		{"value missing", `resource r { net { timeout; } }`, `found ";", expected a value of timeout`},
		{"no- of a number", `resource r { net { no-timeout; } }`, `only booleans have a form with "no-"`},
		{"second value", `resource r { net { tcp-cork yes no; } }`, `found "no", expected ";"`},
		{"index of internal", `resource r { meta-disk internal [0]; }`, `internal meta-data have no index`},
		{"stray character", `resource r { net { timeout +60; } }`, `found "+" (text with such characters has to be in double quotes)`},
		{"stray semicolon", `resource r { ; }`, `found ";", expected`},
		{"IPv4 out of range", `resource r { device minor 0; disk /dev/a; on alpha { address 10.0.0.332:7; } }`, `expected a valid IPv4 address`},
		{"duplicate option", "resource r { net { ko-count 1;\nko-count 2; }" + hosts + "}", `/r.res:2:1: conflicting use of option ko-count, first used with another value at /r.res:1`},
		{"duplicate by syncer", "resource r { syncer { rate 1M; }\ndisk { resync-rate 2M; }" + hosts + "}", `/r.res:2:8: conflicting use of option resync-rate`},
		{"duplicate device", `resource r { device minor 0; device minor 1; }`, `conflicting use of device`},
		{"duplicate volume", "resource r { volume 1 { }\nvolume 1 { } }", `/r.res:2:1: conflicting use of volume 1 in resource r, first used at /r.res:1`},
		{"duplicate disk", `resource r {` + hosts + `} resource s { device minor 1; disk /dev/a; on alpha { address 10.0.0.1:1; } on bravo { address 10.0.0.2:1; } }`, `conflicting use of disk /dev/a of host alpha`},
		{"duplicate slot", `resource r { device minor 0; disk /dev/a; meta-disk /dev/m[1]; on alpha { address 10.0.0.1:1; } on b { address 10.0.0.2:1; } }
resource s { device minor 1; disk /dev/b; meta-disk /dev/m[1]; on alpha { address 10.0.0.1:2; } on b { address 10.0.0.2:2; } }`, `conflicting use of meta-disk /dev/m[1] of host alpha`},
		{"two local sections", `resource r { device minor 0; disk /dev/a; on alpha { address 10.0.0.1:1; } on alpha.example.com { address 10.0.0.2:1; } }`, `two host sections are about this host`},
		{"peer-device option only", `resource r { connection { disk { al-extents 100; } } }`, `expected a peer-device option`},
		{"become-primary-on", `resource r { startup { become-primary-on zulu; }` + hosts + `}`, `become-primary-on contains 'zulu'`},
		{"both without two primaries", `resource r { startup { become-primary-on both; }` + hosts + `}`, `needs allow-two-primaries`},
		{"slash", `resource ../x {` + hosts + `}`, `resource name "../x"`},
		{"skip without a body", `skip foo;`, `expected "{" after "skip"`},
		{"host proxy", `resource r { on alpha { proxy on alpha { inside 1; } } }`, `found "1", expected "ipv4"`},
		{"stacked on stacked", `resource r { device minor 0; disk /dev/a; on alpha { address 10.0.0.1:1; } on b { address 10.0.0.2:1; } }
resource s { stacked-on-top-of r { device minor 1; address 10.0.0.1:2; } on c { device minor 1; disk /dev/c; address 10.0.0.3:2; } }
resource t { stacked-on-top-of s { device minor 2; address 10.0.0.1:3; } on d { device minor 1; disk /dev/c; address 10.0.0.4:2; } }`, `resource 's' is stacked itself`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load([]string{"/r.res"}, memEnv(map[string]string{"/r.res": tt.text}))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is\n%v\nwant %q in it", err, tt.want)
			}
		})
	}
}

func TestSecretIsNotShown(t *testing.T) {
	secret := strings.Repeat("hidden", 20)
	_, err := Load([]string{"/r.res"}, memEnv(map[string]string{"/r.res": `resource r { net { shared-secret ` + secret + `; }` + hosts + `}`}))
	if err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("error is %v", err)
	}
}

func TestInclude(t *testing.T) {
	res := func(name, port, minor string) string {
		return `resource ` + name + ` { device minor ` + minor + `; disk /dev/` + name + `; on alpha { address 10.0.0.1:` + port + `; } on bravo { address 10.0.0.2:` + port + `; } }`
	}
	files := map[string]string{
		"/etc/p.conf":        `include "d/*.res"; include "d/none-*"; include d/a.res; include "p.conf"; ` + res("main", "1", "1"),
		"/etc/d/b.res":       res("b", "2", "2"),
		"/etc/d/a.res":       `include "../e/x.res"; ` + res("a", "3", "3"),
		"/etc/e/x.res":       `include "../d/a.res"; ` + res("x", "4", "4"), // a loop
		"/etc/bad.conf":      "include \"e/bad.res\";\n",
		"/etc/e/bad.res":     "resource r {\n\tnonsense;\n}",
		"/etc/missing.conf":  "global { }\ninclude nothing.res;",
		"/etc/huge.conf":     "include huge.res;",
		"/etc/huge.res":      strings.Repeat("# comment\n", 120000),
		"/etc/chain.conf":    "include c0.res;",
		"/etc/twocommon.res": "common { }\ncommon { }",
	}
	for i := range 40 {
		files["/etc/c"+uitoa(uint64(i))+".res"] = "include c" + uitoa(uint64(i)+1) + ".res;"
	}
	c, err := Load([]string{"/etc/p.conf"}, memEnv(files))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range c.Resources {
		names = append(names, r.Name+" "+r.File)
	}
	want := []string{"x /etc/e/x.res", "a /etc/d/a.res", "b /etc/d/b.res", "main /etc/p.conf"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	for _, tt := range []struct{ file, want string }{
		{"/etc/bad.conf", `/etc/e/bad.res:2:2: found "nonsense", expected`},
		{"/etc/missing.conf", `/etc/missing.conf:2:9: include "nothing.res": file /etc/nothing.res does not exist`},
		{"/etc/huge.conf", `the file is larger than 1024 KiB`},
		{"/etc/chain.conf", `nested more than 32 deep`},
		{"/etc/twocommon.res", `/etc/twocommon.res:2:1: conflicting use of the common section, first used at /etc/twocommon.res:1`},
	} {
		if _, err := Load([]string{tt.file}, memEnv(files)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want %q in it", tt.file, err, tt.want)
		}
	}
	if _, err := Load([]string{"/etc/gone"}, memEnv(files)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
}

func TestStdin(t *testing.T) {
	env := memEnv(nil)
	env.Stdin = strings.NewReader("resource r {\n bad; }")
	if _, err := Load([]string{"-"}, env); err == nil || !strings.HasPrefix(err.Error(), "STDIN:2:2: ") {
		t.Errorf("error is %v", err)
	}
}

// TestAllErrorsAreReported: values and contradictions in one run, by line.
func TestAllErrorsAreReported(t *testing.T) {
	text := "resource r {\n net { timeout 0; ko-count 300; }\n disk { on-io-error x; }\n device minor 0; disk /dev/a;\n on alpha { } on bravo { address 10.0.0.2:70000; }\n}"
	_, err := Load([]string{"/r.res"}, memEnv(map[string]string{"/r.res": text}))
	var list ErrorList
	if !errors.As(err, &list) {
		t.Fatalf("error is %v", err)
	}
	var places []int
	for _, e := range list {
		places = append(places, e.Line)
	}
	if diff := cmp.Diff([]int{2, 2, 3, 5, 5}, places); diff != "" {
		t.Errorf("lines of %v (-want +got):\n%s", err, diff)
	}
}

func TestWarnings(t *testing.T) {
	c := loadText(t, `resource all { net { ko-count 3; ko-count 3; timeout 200; } disk { resync-after gone; throttle-threshold 1; }`+hosts+`} global { }`)
	all := make([]string, 0, len(c.Warnings))
	for _, w := range c.Warnings {
		all = append(all, w.String())
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{"called \"all\"", "ko-count is written twice", "below connect-int", "'gone' mentioned in 'resync-after' option is not known", "throttle-threshold is an option of DRBD 8.3", "should come before"} {
		if !strings.Contains(text, want) {
			t.Errorf("no warning with %q in\n%s", want, text)
		}
	}
	if v, _ := resolve(t, c, "all").Volumes[0].Option("resync-after"); v != "-1" {
		t.Errorf("resync-after %q, want it dropped", v)
	}
}

func TestResyncAfterCycles(t *testing.T) {
	res := func(name string, minor int, after string) string {
		return fmt.Sprintf("resource %s {\n disk { resync-after %s; }\n volume 0 { device minor %d; disk /dev/vg/%s; meta-disk internal; }\n"+
			" on alpha { address 10.0.0.1:%d; } on beta { address 10.0.0.2:%d; }\n}\n", name, after, minor, name, 7700+minor, 7700+minor)
	}
	for _, tt := range []struct {
		name, text, want string
	}{
		{"a chain", res("r0", 0, "r1") + res("r1", 1, "r2/0") + res("r2", 2, "-1"), ""},
		{"itself", res("r0", 0, "r0"), "r0/0 after r0/0"},
		{"two", res("r0", 0, "r1/0") + res("r1", 1, "r0"), "r0/0 after r1/0 after r0/0"},
		{"behind a cycle", res("r0", 0, "r1") + res("r1", 1, "r2") + res("r2", 2, "r1"), "r1/0 after r2/0 after r1/0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "drbd.conf")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load([]string{path}, Env{Hostname: "alpha"})
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path+":") || strings.Count(err.Error(), "wait for one another") != 1 {
				t.Errorf("error %v, want file, line and %q, once", err, tt.want)
			}
		})
	}
}

func TestParseNumber(t *testing.T) {
	for _, tt := range []struct {
		text string
		unit Unit
		want uint64
		ok   bool
	}{
		{"250", KiBps, 250, true},
		{"10M", KiBps, 10240, true},
		{"10m", KiBps, 10240, true},
		{"1s", KiBps, 1, true}, // half a KiB is rounded up
		{"100", SectorUnit, 100, true},
		{"1M", SectorUnit, 2048, true},
		{"2000s", SectorUnit, 2000, true},
		{"8K", Plain, 8192, true},
		{"64k", Byte, 65536, true},
		{"-1", Plain, ^uint64(0), true},
		{"99999999999999999999", Plain, ^uint64(0), true},
		{"18446744073709551615G", Byte, ^uint64(0), true},
		{"10MB", Byte, 0, false},
		{"1.5M", Byte, 0, false},
		{"1T", Byte, 0, false},
		{"0x10", Byte, 0, false},
		{"", Byte, 0, false},
		{"M", Byte, 0, false},
		{"-", Byte, 0, false},
	} {
		if n, ok := ParseNumber(tt.text, tt.unit); n != tt.want || ok != tt.ok {
			t.Errorf("ParseNumber(%q, %d) = %d, %v; want %d, %v", tt.text, tt.unit, n, ok, tt.want, tt.ok)
		}
	}
}

// TestSchema: every row's default is a value it takes, names are unique, and
// each option has exactly one field.
func TestSchema(t *testing.T) {
	if len(optionIndex) != len(options) {
		t.Errorf("%d rows, %d of them different", len(options), len(optionIndex))
	}
	for _, o := range Options() {
		if o.Default != "" && o.Name != "resync-after" {
			if msg := o.checkValue(o.Default); msg != "" {
				t.Errorf("default of %s %s: %s", o.Section, o.Name, msg)
			}
		}
	}
	fields := map[Section]any{SectionNet: NetOptions{}, SectionDisk: DiskOptions{}, SectionOptions: ResourceOptions{}, SectionStartup: StartupOptions{}}
	for section, s := range fields {
		var tags []string
		for i := range reflect.TypeOf(s).NumField() {
			tags = append(tags, reflect.TypeOf(s).Field(i).Tag.Get("drbd"))
		}
		names := optionNames(section)
		slices.Sort(tags)
		slices.Sort(names)
		if diff := cmp.Diff(names, tags); diff != "" {
			t.Errorf("fields for %s (-options +fields):\n%s", section, diff)
		}
	}
}

func TestTokens(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`device/dev/drbd0;`, `word:device/dev/drbd0 punct:;`},
		{`10.1.1.1:7788 10.1.1.1 : 7K`, `ipv4:10.1.1.1 punct:: int:7788 ipv4:10.1.1.1 punct:: int:7K`},
		{`[fd00::1]:80 ::1 ::ffff:10.1.1.1 fe80::1%eth0 a:b`, `punct:[ ipv6:fd00::1 punct:] punct:: int:80 ipv6:::1 ipv6:::ffff:10.1.1.1 ipv6:fe80::1%eth0 word:a punct:: word:b`},
		{`9.2.8 123456789 8k 8K 1.2 1.2.3.4.5`, `version:9.2.8 word:123456789 word:8k int:8K word:1.2 word:1.2.3.4.5`},
		{`"a \"b\" \q # {" # "x`, `string:a "b" q # {`},
		{"a\r\n#b\nc", `word:a word:c`},
		{`1:2`, `int:1 punct:: int:2`},
	} {
		kinds := [...]string{tokPunct: "punct", tokWord: "word", tokString: "string", tokInt: "int", tokIPv4: "ipv4", tokIPv6: "ipv6", tokVersion: "version", tokOther: "other"}
		l := newLexer("f", []byte(tt.text))
		var got []string
		for {
			tok, err := l.next()
			if err != nil {
				t.Fatal(err)
			}
			if tok.kind == tokEOF {
				break
			}
			got = append(got, kinds[tok.kind]+":"+tok.text)
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.text, diff)
		}
	}
}

func TestSameHost(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"alpha", "ALPHA", true},
		{"alpha", "alpha.example.com", true},
		{"alpha.example.org", "alpha.example.com", false},
		{"alpha.Example.com", "Alpha.example.com", true},
		{"alpha", "alphabet", false},
	} {
		if got := SameHost(tt.a, tt.b); got != tt.want {
			t.Errorf("SameHost(%s, %s) = %v", tt.a, tt.b, got)
		}
	}
}

// TestNamesThatNeedQuotes: a dump with odd names reads back to the same.
func TestNamesThatNeedQuotes(t *testing.T) {
	text := `resource "10" { device minor 0; disk "/dev/a b"; meta-disk "/dev/m\"x" [3];
		handlers { split-brain "a \\ b \" c"; pri-lost ""; }
		on alpha "net" { address 10.0.0.1:1; } on "9.2.8" { address 10.0.0.2:1; } }
	resource skipped { skip { don't + parse "this" { } }` + strings.ReplaceAll(strings.ReplaceAll(hosts, "minor 0", "minor 5"), "/dev/a", "/dev/z") + `}`
	env := memEnv(map[string]string{"/r.res": text})
	c, err := Load([]string{"/r.res"}, env)
	if err != nil {
		t.Fatal(err)
	}
	checkFixedPoint(t, env, c)
	var b bytes.Buffer
	if err := c.Dump(&b, "10"); err != nil || strings.Contains(b.String(), "skipped") || strings.HasPrefix(b.String(), "# /r.res") {
		t.Errorf("dump of one resource: %v\n%s", err, b.String())
	}
	if err := c.Dump(&b, "nothing"); !errors.Is(err, ErrUnknownResource) {
		t.Errorf("dump of an unknown resource: %v", err)
	}
}

// TestHostileSizes: files at the limit end in time and stack.
func TestHostileSizes(t *testing.T) {
	fill := func(head, part string, size int) string {
		return head + strings.Repeat(part, (size-len(head))/len(part))
	}
	for name, text := range map[string]string{
		"skip":      fill("skip ", "{", maxFileBytes),
		"volumes":   fill("resource r {", "volume 1{}", maxFileBytes),
		"hosts":     fill("resource r {", "on a{}", maxFileBytes),
		"names":     fill("resource r { on ", "a ", maxFileBytes),
		"mesh":      fill("resource r { connection-mesh { hosts ", "a ", maxFileBytes),
		"options":   fill("resource r { net {", "ko-count 1;", maxFileBytes),
		"resources": fill("", "resource r{}", maxFileBytes),
		"proxy":     fill("resource r { proxy {", "a b;", maxFileBytes),
		"primaries": fill("resource r { startup { become-primary-on ", "a ", maxFileBytes),
		"string":    fill("resource \"", "a", maxFileBytes),
	} {
		start := time.Now()
		if _, err := Load([]string{"/r.res"}, memEnv(map[string]string{"/r.res": text})); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
	}
	for name, text := range map[string]string{
		"arrays":  fill("a = ", "[", maxTOMLBytes),
		"tables":  fill("a = ", "{a=", maxTOMLBytes),
		"dots":    fill("[a", ".a", maxTOMLBytes),
		"headers": fill("", "[a]\n", maxTOMLBytes),
		"string":  fill("a = \"\"\"", "\n", maxTOMLBytes),
	} {
		start := time.Now()
		if _, err := ParseDaemon("p.toml", []byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range corpusFiles(&testing.T{}, ".conf") {
		env, _ := conversation(&testing.T{}, name)
		text, err := env.ReadFile("/etc/drbd.conf")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		env := memEnv(map[string]string{"/r.res": text})
		env.LocalAddr = func(a netip.Addr) bool { return a.As16()[15]&1 == 1 }
		c, err := Load([]string{"/r.res"}, env)
		if err != nil {
			var list ErrorList
			var parse *ParseError
			switch {
			case errors.As(err, &list):
				for _, e := range list {
					if e.File == "" || e.Line < 1 || e.Col < 1 {
						t.Errorf("no place: %v", e)
					}
				}
			case errors.As(err, &parse):
			case len(text) <= maxFileBytes:
				t.Errorf("no ParseError: %v", err)
			}
			return
		}
		for _, r := range c.Resources {
			_, _ = c.Resolve(r.Name) // whatever it says, it must not panic
		}
		var b bytes.Buffer
		if err := c.DumpMerged(&b); err != nil {
			t.Fatal(err)
		}
		for _, r := range c.Resources {
			if r.TemplateFile != "" {
				return
			}
		}
		checkFixedPoint(t, env, c)
	})
}
