package conf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestExamples: the files that the manual shows are read, and fit together.
func TestExamples(t *testing.T) {
	const dir = "testdata/examples"
	env := Env{Hostname: "alpha"}
	files, err := ExpandGlobs([]string{dir + "/*.res"}, env)
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v", files, err)
	}
	c, err := Load(files, env)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
	for _, r := range c.Resources {
		if _, err := c.Resolve(r.Name); err != nil {
			t.Error(err)
		}
	}
	vms, err := LoadVMs([]string{dir + "/*.vm.toml"}, env)
	// Both machines of the examples write to web-root, which is the point of
	// the check; one alone is fine.
	if err == nil || !strings.Contains(err.Error(), "web-root/0 is a disk of VM tiny") {
		t.Errorf("two machines on one disk: %v", err)
	}
	for _, v := range vms {
		if err := v.CheckResources(c); err != nil {
			t.Error(err)
		}
	}
	if _, err := LoadDaemon(dir + "/user.toml"); err != nil {
		t.Error(err)
	}
}

func TestDaemonDefaults(t *testing.T) {
	d, err := LoadDaemon("testdata/examples/pollux.toml")
	if err != nil {
		t.Fatal(err)
	}
	// The example shows the defaults but for these.
	want := DefaultDaemon()
	want.NodeName = "alpha"
	want.Adopt = []string{}
	want.File = d.File
	want.NBD.TCP = []NBDTCP{
		{Listen: netip.MustParseAddrPort("10.1.1.31:10809"), Plaintext: true, Allow: []Prefix{{netip.MustParsePrefix("10.1.1.0/24")}, {netip.MustParsePrefix("fd00:1::7/128")}}},
		{Listen: netip.MustParseAddrPort("127.0.0.1:10809")},
	}
	want.TLS = TLS{Certificate: "/etc/pollux/tls/node.pem", Key: "/etc/pollux/tls/node.key", CA: "/etc/pollux/tls/ca.pem"}
	want.Metrics = Metrics{Listen: netip.MustParseAddrPort("127.0.0.1:9748")}
	want.HA.Listen = netip.MustParseAddrPort("10.1.1.31:7790")
	want.HA.Hooks.OnNodeLost = HookCommand{"/etc/pollux/hooks/node-lost"}
	want.Resource = map[string]ResourceTable{"web-root": {IO: "direct"}}
	same := []cmp.Option{
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b Prefix) bool { return a == b }),
		cmp.FilterPath(func(p cmp.Path) bool { return strings.HasSuffix(p.String(), "Pos") }, cmp.Ignore()),
	}
	if diff := cmp.Diff(want, d, same...); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for addr, want := range map[string]bool{"10.1.1.200": true, "::ffff:10.1.1.200": true, "10.1.2.1": false, "fd00:1::7": true, "fd00:1::8": false} {
		if got := d.NBD.TCP[0].Allows(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Allows(%s) = %v", addr, got)
		}
	}
}

func TestDaemonPathsAreRelativeToTheFile(t *testing.T) {
	d, err := ParseDaemon("/srv/node/pollux.toml", []byte("node-name='a'\nstate-dir='state'\ncontrol-socket='/x/s'\nresource-files=['*.res']\ndrbd-conf=''\n[nbd]\nsocket='n.sock'"))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{d.StateDir, d.ControlSocket, d.ResourceFiles[0], d.DRBDConf, d.NBD.Socket, d.HA.ClusterFile, d.HA.EtcdDir}
	if diff := cmp.Diff([]string{"/srv/node/state", "/x/s", "/srv/node/*.res", "", "/srv/node/n.sock", "/srv/node/state/cluster.toml", "/srv/node/state/etcd"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDaemonRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", "node-name = 'a'\nnode_name = 'b'", `p.toml:2:1: unknown key "node_name", did you mean "node-name"?`},
		{"unknown key in a table", "[log]\n\n  levle = 'info'", `p.toml:3:3: unknown key "log.levle", did you mean "level"?`},
		{"unknown key in a resource", "[resource.a]\nio = 'direct'\n[resource.\"b c\"]\nmode = 1", `p.toml:4:1: unknown key "resource.\"b c\".mode", expected one of io`},
		{"unknown table", "[[nbd.tpc]]\nlisten = 1", `p.toml:1:1: unknown key "nbd.tpc", did you mean "tcp"?`},
		{"second of an array", "[[nbd.tcp]]\nlisten='127.0.0.1:1'\n[[nbd.tcp]]\nlisten='127.0.0.1:2'\nfoo=1", `p.toml:5:1: unknown key "nbd.tcp.foo"`},
		{"behind a long string", "state-dir = '''\na\n[x]\n'''\nfoo = [\n 1, # ]\n 2]\nbar = 1", "p.toml:8:1: unknown key \"bar\""},
		{"syntax", "node-name = \n", `p.toml:1:`},
		{"wrong type", "\nadopt = 'r0'", `p.toml:2:`},
		{"wrong type in a table", "[log]\nlevel = 3", `p.toml:2:`},
		{"level", "[log]\nlevel = 'loud'", `p.toml:2:1: log.level: found "loud", expected one of trace, debug, info, warn, error`},
		{"attach", "attach-device = 'yes'", `p.toml:1:1: attach-device: found "yes", expected one of none, nbd, loop`},
		{"io", "[resource.r]\nio = 'fast'", `p.toml:2:1: resource.r.io: found "fast"`},
		{"sample", "[perf]\nsample = -1", `p.toml:2:1: perf.sample: found -1, expected 0 to 65536`},
		{"metrics without plaintext", "[metrics]\nlisten = '10.0.0.1:9748'", `p.toml:2:1: metrics.listen: 10.0.0.1:9748 is not a loopback address and there is no TLS`},
		{"metrics without a port", "[metrics]\nlisten = '127.0.0.1:0'", `p.toml:2:1: metrics.listen: 127.0.0.1:0 has no port`},
		{"metrics at two places", "[metrics]\nlisten = '127.0.0.1:9748'\nsocket = '/m'", `p.toml:2:1: metrics.listen: found 127.0.0.1:9748 beside a socket`},
		{"metrics on the control socket", "control-socket = '/a'\n[metrics]\nsocket = '/a'", `p.toml:3:1: metrics.socket: found "/a", which is another socket`},
		{"tcp without plaintext", "[[nbd.tcp]]\nlisten = '10.0.0.1:10809'\nallow = ['10.0.0.2']", `p.toml:2:1: nbd.tcp.listen: 10.0.0.1:10809 is not a loopback address and there is no TLS`},
		{"tcp without a list", "[[nbd.tcp]]\nlisten = '0.0.0.0:10809'\nplaintext = true", `expected "allow = [...]" beside it`},
		{"tcp without listen", "[[nbd.tcp]]\nplaintext = true", `p.toml:1:1: nbd.tcp: listen is missing`},
		{"tcp host name", "[[nbd.tcp]]\nlisten = 'localhost:10809'", `p.toml:2:`},
		{"tcp twice", "[[nbd.tcp]]\nlisten = '[::1]:1'\n[[nbd.tcp]]\nlisten = '[::1]:1'", `p.toml:4:1: nbd.tcp.listen: [::1]:1 is listed twice`},
		{"tls without a key", "[log]\nlevel = 'info'\n[tls]\ncertificate = 'c.pem'\nca = 'ca.pem'", `p.toml:3:1: tls: key is missing, expected the path of a file in PEM`},
		{"network with host bits", "[[nbd.tcp]]\nlisten = '[::1]:1'\nallow = ['10.1.1.1/24']", `expected 10.1.1.0/24`},
		{"empty path", "state-dir = ''", `p.toml:1:1: state-dir: found an empty path`},
		{"long socket", "control-socket = '/" + strings.Repeat("x", 120) + "'", `expected at most 107 for a unix socket`},
		{"one socket twice", "control-socket = '/a'\n[nbd]\nsocket = '/a'", `p.toml:3:1: nbd.socket: found "/a", which is the control socket`},
		{"ha socket", "[ha]\nsocket = '/run/pollux/polluxd.sock'", `p.toml:2:1: ha.socket: found "/run/pollux/polluxd.sock", which is a socket of polluxd`},
		{"ha listen", "[ha]\nlisten = '10.1.1.1:0'", `p.toml:2:1: ha.listen: 10.1.1.1:0 has no port`},
		{"hook timeout", "[ha]\n[ha.hooks]\ntimeout = '1ms'", `p.toml:3:1: ha.hooks.timeout: found 1ms, expected 10ms to`},
		{"unknown hook", "[ha.hooks]\non-leder = 'x'", `p.toml:2:1: unknown key "ha.hooks.on-leder", did you mean "on-leader"?`},
		{"node name", "node-name = 'a b'", `p.toml:1:1: node-name: found "a b"`},
		{"adopt from nothing", "drbd-conf = ''\nadopt = ['r0']", `p.toml:2:1: adopt:`},
		{"empty pattern", "vm-files = ['']", `vm-files: found an empty text`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseDaemon("p.toml", []byte("\n")[:0:0])
			if err != nil && !strings.Contains(err.Error(), "node-name") {
				t.Fatalf("an empty file: %v", err)
			}
			_, err = ParseDaemon("p.toml", []byte(tt.text))
			var parse *ParseError
			if err == nil || !errors.As(err, &parse) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is\n%v\nwant %q in it", err, tt.want)
			}
		})
	}
}

func TestAdopt(t *testing.T) {
	res := func(name, n string) string {
		return "resource " + name + " { device minor " + n + "; disk /dev/" + name + "; on alpha { address 10.0.0.1:" + n + "; } on bravo { address 10.0.0.2:" + n + "; } }\n"
	}
	drbd := "common { net { protocol A; } }\n" + res("old", "2") + res("mine", "3") + res("web", "9")
	load := func(t *testing.T, toml, drbdConf string) (*Config, error) {
		t.Helper()
		d, err := ParseDaemon("/p.toml", []byte("node-name = 'alpha'\nresource-files = ['/p.d/*.res']\ndrbd-conf = '/drbd.conf'\n"+toml))
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{"/p.d/web.res": "common { net { protocol B; } }\n" + res("web", "1")}
		if drbdConf != "" {
			files["/drbd.conf"] = drbdConf
		}
		return d.LoadResources(memEnv(files))
	}
	c, err := load(t, "adopt = ['mine']\n[resource.nobody]\nio = 'direct'", drbd)
	if err != nil {
		t.Fatal(err)
	}
	if r := resolve(t, c, "mine"); r.Net.Protocol != "A" {
		t.Errorf("protocol %s, want that of drbd.conf's common section", r.Net.Protocol)
	}
	if r := resolve(t, c, "web"); r.Net.Protocol != "B" || r.File != "/p.d/web.res" {
		t.Errorf("web is %+v", r)
	}
	if _, err := c.Resolve("old"); err == nil || !strings.Contains(err.Error(), "/drbd.conf:2:1: resource old belongs to the kernel's DRBD") {
		t.Errorf("old: %v", err)
	}
	var dump strings.Builder
	if err := c.Dump(&dump); err != nil || strings.Contains(dump.String(), "resource old") || !strings.Contains(dump.String(), "protocol           A;") {
		t.Errorf("dump: %v\n%s", err, dump.String())
	}
	warned := ""
	for _, w := range c.Warnings {
		warned += w.String() + "\n"
	}
	for _, want := range []string{"/drbd.conf:4:1: warning: resource web is defined at /p.d/web.res:2 as well", "/p.toml:5:1: warning: [resource.nobody]"} {
		if !strings.Contains(warned, want) {
			t.Errorf("no warning %q in\n%s", want, warned)
		}
	}
	for _, tt := range []struct{ name, toml, drbd, want string }{
		{"unknown", "adopt = ['gone']", drbd, `/p.toml:4:1: adopt: found "gone"`},
		{"in both", "adopt = ['web']", drbd, `/p.toml:4:1: adopt: resource "web" is defined in Pollux's own files as well, at /p.d/web.res:2 and /drbd.conf:4`},
		{"broken", "adopt = ['mine']", "resource {", `/drbd.conf:1:10: found "{"`},
		{"missing", "adopt = ['mine']", "", "file does not exist"},
		{"one disk", "adopt = ['mine']", strings.ReplaceAll(drbd, "/dev/mine", "/dev/web") + "#", "conflicting use of disk /dev/web"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := load(t, tt.toml, tt.drbd); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
	for _, drbd := range []string{"", "broken"} {
		if c, err := load(t, "", drbd); err != nil || len(c.Resources) != 1 {
			t.Errorf("nothing adopted, drbd.conf %q: %v", drbd, err)
		}
	}
}

func TestVM(t *testing.T) {
	v, err := LoadVM("testdata/examples/web.vm.toml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]VMDisk{{"web-root", 0, false}, {"db", 1, true}}, v.Disks()); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	kind, bridge := v.NetworkKind()
	if v.Memory != 1<<30 || v.VCPUs != 2 || kind != "bridge" || bridge != "br0" || v.StopTimeout.Duration != 90*time.Second || v.Disks()[1].Export() != "db/1" {
		t.Errorf("%+v", v)
	}
	tiny, err := LoadVM("testdata/examples/tiny.vm.toml")
	if err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(wd, "testdata/examples/vmlinuz"); tiny.Boot.Kernel != want || !tiny.Graceful || tiny.Network != "none" || tiny.MAC != derivedMAC("tiny") {
		t.Errorf("%+v, want the kernel %s", tiny, want)
	}
	if err := tiny.Validate(); err != nil {
		t.Error(err)
	}
	c := loadText(t, `resource db {`+hosts+`}`)
	err = v.CheckResources(c)
	if err == nil || !strings.Contains(err.Error(), `web.vm.toml:3:1: resources: resource "web-root" of VM web is not defined`) || !strings.Contains(err.Error(), `"db" of VM web has no volume 1`) {
		t.Errorf("CheckResources: %v", err)
	}
}

func TestVMRefuses(t *testing.T) {
	const base = "name = 'a'\nresources = ['r']\n"
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", `v.toml:1:1: name: found ""`},
		{"unknown key", base + "memroy = '1G'", `v.toml:3:1: unknown key "memroy", did you mean "memory"?`},
		{"memory number", base + "memory = '512'", `v.toml:3:`},
		{"memory unit", base + "memory = '512MB'", `expected a number with M or G`},
		{"little memory", base + "memory = '1M'", `v.toml:3:1: memory: found 1048576 bytes`},
		{"vcpus", base + "vcpus = 0", `v.toml:3:1: vcpus: found 0, expected 1 to 255`},
		{"initrd alone", base + "[boot]\ninitrd = 'x'", `v.toml:3:1: boot: found initrd or cmdline without kernel`},
		{"kernel and firmware", base + "[boot]\nkernel = 'x'\nfirmware = 'y'", `v.toml:5:1: boot: found kernel and firmware`},
		{"network", base + "network = 'tap'", `v.toml:3:1: network: found "tap"`},
		{"tap name", base + "network = 'tap:a/b'", `expected the name of an interface`},
		{"mac", base + "mac = '1:2'", `v.toml:3:1: mac: found "1:2"`},
		{"multicast", base + "mac = '01:00:00:00:00:01'", `a multicast address`},
		{"accel", base + "accel = 'hvf'", `v.toml:3:1: accel: found "hvf", expected one of auto, kvm, tcg`},
		{"timeout", base + "stop-timeout = '60'", `expected a time with its unit`},
		{"timeout as a number", base + "stop-timeout = 60", `v.toml:3:`},
		{"twice", "name = 'a'\nresources = ['r', 'r/0']", `v.toml:2:1: resources: r/0 is listed twice`},
		{"volume", "name = 'a'\nresources = ['r/x']", `expected RESOURCE or RESOURCE/VOLUME`},
		{"read-only", base + "read-only = ['s']", `v.toml:3:1: read-only: found "s", expected one of resources: r`},
		{"name", "name = '../a'\nresources = ['r']", `v.toml:1:1: name: found "../a"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseVM("v.toml", []byte(tt.text))
			var parse *ParseError
			if err == nil || !errors.As(err, &parse) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is\n%v\nwant %q in it", err, tt.want)
			}
		})
	}
}

func FuzzTOML(f *testing.F) {
	for _, name := range []string{"pollux.toml", "user.toml", "web.vm.toml", "tiny.vm.toml", "sql.vm.toml", "cluster.toml"} {
		text, err := os.ReadFile("testdata/examples/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, parse := range []func() error{
			func() error { _, err := ParseDaemon("f.toml", text); return err },
			func() error { _, err := ParseVM("f.toml", text); return err },
			func() error { return parseClusterTwice(t, text) },
		} {
			err := parse()
			if err == nil || len(text) > maxTOMLBytes {
				continue
			}
			var at *ParseError
			if !errors.As(err, &at) || at.Line < 1 || at.Col < 1 || at.File != "f.toml" {
				t.Errorf("no place in %v", err)
			}
		}
	})
}
