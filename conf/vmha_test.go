package conf

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestVMFailoverKeys(t *testing.T) {
	v, err := LoadVM("testdata/examples/web.vm.toml")
	if err != nil {
		t.Fatal(err)
	}
	if v.Hypervisor != "qemu" || v.Stickiness != 50 || v.Failback != "window" || v.Prefer["alpha"] != 100 || v.MaxLossBytes != 16<<20 || v.MaxLossSeconds != 5 {
		t.Errorf("%+v", v)
	}
	want := Hooks{
		OnPromote: HookCommand{"/usr/local/bin/tell", "promoted"}, OnUnavailable: HookCommand{"/usr/local/bin/maintenance-page", "web site"},
		Timeout: Duration{10 * time.Second},
	}
	if diff := cmp.Diff(want, v.Hooks); diff != "" {
		t.Errorf("hooks (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]VMLocalDisk{{Path: "/var/lib/pollux/local/web-swap", Size: 2 << 30, Format: "swap"}}, v.LocalDisks); diff != "" {
		t.Errorf("local-disk (-want +got):\n%s", diff)
	}
	sql, err := LoadVM("testdata/examples/sql.vm.toml")
	if err != nil {
		t.Fatal(err)
	}
	if !sql.IsUnits() || sql.Hypervisor != HypervisorSystemd || sql.MAC != "" || len(sql.IPs) != 2 || sql.IPs[1].Interface != "eth0" || len(sql.Mounts) != 2 {
		t.Errorf("%+v", sql)
	}
	c := loadText(t, `resource web-root {`+hosts+`}`)
	v.Nodes = []string{"alpha", "charlie"}
	err = v.CheckResources(c)
	if err == nil || !strings.Contains(err.Error(), `nodes: found "charlie", expected hosts of resource "web-root" of VM web: `) {
		t.Errorf("CheckResources with a node that has no data: %v", err)
	}
	v.Nodes, v.Prefer = nil, map[string]int{"delta": 1}
	err = v.CheckResources(c)
	if err == nil || !strings.Contains(err.Error(), `web.vm.toml:18:1: prefer: found "delta"`) {
		t.Errorf("CheckResources with an unknown preferred node: %v", err)
	}
}

func TestVMFailoverDefaults(t *testing.T) {
	v, err := ParseVM("v.toml", []byte("name='a'\nresources=['r']"))
	if err != nil {
		t.Fatal(err)
	}
	if v.Hypervisor != "qemu" || v.Stickiness != StickinessInfinite || v.Failback != "manual" || v.TargetRole != "running" || v.Monitor.Kind != "process" || v.Restart.Limit != 3 || v.Hooks.Timeout.Duration != 30*time.Second {
		t.Errorf("%+v", v)
	}
	v, err = ParseVM("v.toml", []byte("name='a'\nresources=['r']\nprefer={x=1}\nfailback='window'\nfailback-window='02:00-04:00'"))
	if err != nil || v.Stickiness != 0 {
		t.Errorf("with a window the stickiness is %v, %v; want 0: it would never move", v.Stickiness, err)
	}
}

func TestVMFailoverRefuses(t *testing.T) {
	const base = "name = 'a'\nresources = ['r']\n"
	for _, tt := range []struct{ name, text, want string }{
		{"hypervisor", "hypervisor = 'xl'", `v.toml:3:1: hypervisor: found "xl", expected "qemu"`},
		{"stickiness", "stickiness = 'always'", `found always, expected 0 to 1000000 or "infinite"`},
		{"one node", "nodes = ['a']", `v.toml:3:1: nodes: found a, expected the two nodes`},
		{"same node", "nodes = ['a', 'a']", `nodes: found a, a`},
		{"preferred stranger", "nodes = ['a', 'b']\nprefer = { c = 1 }", `v.toml:4:1: prefer: found "c", expected one of nodes: a, b`},
		{"preference", "prefer = { c = -1 }", `prefer: found -1 for c`},
		{"failback", "failback = 'auto'", `v.toml:3:1: failback: found "auto", expected one of never, manual, window`},
		{"no window", "failback = 'window'\nprefer = { a = 1 }", `v.toml:3:1: failback: found "window" without failback-window`},
		{"window alone", "failback-window = '02:00-04:00'", `expected failback = "window"`},
		{"window that never moves", "failback = 'window'\nprefer = { a = 1 }\nfailback-window = '02:00-04:00'\nstickiness = 'infinite'", `v.toml:6:1: stickiness: found "infinite"`},
		{"nowhere to go back to", "failback = 'window'\nfailback-window = '02:00-04:00'", `without prefer`},
		{"bad window", "failback = 'window'\nprefer = { a = 1 }\nfailback-window = 'Sat 25:00-04:00'", `expected a time of the week`},
		{"bad day", "failback = 'window'\nprefer = { a = 1 }\nfailback-window = 'Sab 02:00-04:00'", `expected a time of the week`},
		{"bad zone", "failback = 'window'\nprefer = { a = 1 }\nfailback-window = '02:00-04:00 Mars/Base'", `found the zone "Mars/Base"`},
		{"monitor", "[monitor]\nkind = 'guess'", `v.toml:4:1: monitor.kind: found "guess"`},
		{"interval below timeout", "[monitor]\ninterval = '1s'\ntimeout = '3s'", `v.toml:4:1: monitor.interval: found 1s with a timeout of 3s, expected at least the timeout`},
		{"no failures", "[monitor]\nfailures = 0", `v.toml:4:1: monitor.failures`},
		{"no address", "[monitor]\nkind = 'connect'", `monitor.address: found "", expected IP:PORT`},
		{"port of a ping", "[monitor]\nkind = 'ping'\naddress = '192.0.2.1:80'", `expected an IP address`},
		{"host name", "[monitor]\nkind = 'http'\naddress = 'web:80'", `expected IP:PORT`},
		{"http request", "[monitor]\nkind = 'http'\naddress = '192.0.2.1:80'\nrequest = 'health'", `expected a path such as "/health"`},
		{"receive", "[monitor]\nkind = 'http'\naddress = '192.0.2.1:80'\nreceive = '('", `v.toml:6:1: monitor.receive: found "("`},
		{"idle address", "[monitor]\naddress = '192.0.2.1:80'", `found it with kind = "process"`},
		{"restart", "[restart]\nlimit = -1", `v.toml:4:1: restart.limit: found -1`},
		{"start-timeout", "start-timeout = '0s'", `v.toml:3:1: start-timeout: found 0s`},
		{"target-role", "target-role = 'on'", `target-role: found "on"`},
		{"half a bound", "max-loss-bytes = '1M'", `expected both max-loss-bytes and max-loss-seconds`},
		{"address", "ips = [ { address = '192.0.2.10' } ]", `expected an address with the length of its prefix`},
		{"network address", "ips = [ { address = '192.0.2.0/24' } ]", `v.toml:3:1: ips: found 192.0.2.0/24, expected the address of a host`},
		{"broadcast", "[[ips]]\naddress = '192.0.2.255/24'", `v.toml:3:1: ips: found 192.0.2.255/24`},
		{"address twice", "ips = [ { address = '192.0.2.1/24' }, { address = '192.0.2.1/25' } ]", `192.0.2.1 is listed twice`},
		{"host address", "ips = [ { address = '192.0.2.1/32' } ]", `without an interface`},
		{"interface", "ips = [ { address = '192.0.2.1/24', interface = 'a/b' } ]", `interface: found "a/b"`},
		{"local disk", "[[local-disk]]\nsize = '1G'", `v.toml:3:1: local-disk: path: found ""`},
		{"size", "[[local-disk]]\npath = '/x'", `local-disk: size: found 0 bytes`},
		{"format", "[[local-disk]]\npath = '/x'\nsize = '1G'\nformat = 'ext4'", `v.toml:6:1: local-disk: format: found "ext4"`},
		{"hook", "[hooks]\non-demote = 'tell x'", `v.toml:4:1: hooks.on-demote: found "tell x", expected the absolute path`},
		{"hook of a number", "[hooks]\non-demote = [1]", `expected a path with its arguments`},
		{"hook's time", "[hooks]\ntimeout = '0s'", `v.toml:4:1: hooks.timeout`},
		{"unit", "units = ['mysql']", `v.toml:3:1: units: found "mysql", expected the name of a systemd unit such as`},
		{"unit twice", "units = ['a.service', 'a.service']", `a.service is listed twice`},
		{"units and memory", "units = ['a.service']\nmemory = '1G'", `v.toml:4:1: memory: found it beside units`},
		{"units and boot", "units = ['a.service']\n[boot]\nkernel = '/k'", `v.toml:4:1: boot: found it beside units`},
		{"agent of units", "units = ['a.service']\n[monitor]\nkind = 'agent'", `units have no guest agent`},
		{"qemu and units", "units = ['a.service']\nhypervisor = 'qemu'", `hypervisor: found "qemu"`},
		{"mount in a machine", "[[mount]]\nvolume = 'r'\npath = '/x'\ntype = 'ext4'", `a machine mounts its disks itself`},
		{"mount of a stranger", "units = ['a.service']\n[[mount]]\nvolume = 's'\npath = '/x'\ntype = 'ext4'", `v.toml:4:1: mount: volume: found "s", expected one of resources: r`},
		{"mount without a type", "units = ['a.service']\n[[mount]]\nvolume = 'r/0'\npath = '/x'", `mount: type`},
		{"relative mount", "units = ['a.service']\n[[mount]]\nvolume = 'r'\npath = 'x'\ntype = 'ext4'", `expected an absolute path`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseVM("v.toml", []byte(base+tt.text))
			var parse *ParseError
			if err == nil || !errors.As(err, &parse) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is\n%v\nwant %q in it", err, tt.want)
			}
		})
	}
}

// Two machines with one address would take it from each other.
func TestVMsShareNoAddress(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		text := "name = '" + name + "'\nresources = ['" + name + "']\nips = [ { address = '192.0.2.10/24' } ]\n"
		if err := os.WriteFile(dir+"/"+name+".vm.toml", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := LoadVMs([]string{dir + "/*.vm.toml"}, Env{})
	if err == nil || !strings.Contains(err.Error(), "b.vm.toml:3:1: ips: 192.0.2.10 is an address of VM a") {
		t.Errorf("LoadVMs: %v", err)
	}
}

func TestWindow(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("2006-01-02 15:04 MST", s) // 2026-11-21 is a Saturday
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tt := range []struct {
		window, at string
		want       bool
	}{
		{"Sat 02:00-04:00 UTC", "2026-11-21 02:00 UTC", true},
		{"Sat 02:00-04:00 UTC", "2026-11-21 03:59 UTC", true},
		{"Sat 02:00-04:00 UTC", "2026-11-21 04:00 UTC", false},
		{"Sat 02:00-04:00 UTC", "2026-11-22 03:00 UTC", false},
		{"02:00-04:00", "2026-11-22 03:00 UTC", true},
		{"Sat 22:00-02:00", "2026-11-22 01:59 UTC", true},
		{"Sat 22:00-02:00", "2026-11-22 22:30 UTC", false},
		{"Sat 22:00-02:00", "2026-11-21 01:00 UTC", false},
		{"Fri-Mon 10:00-24:00", "2026-11-23 23:59 UTC", true},
		{"Fri-Mon 10:00-24:00", "2026-11-24 10:00 UTC", false},
		{"Sat 02:00-04:00 Europe/Rome", "2026-11-21 01:30 UTC", true},
		{"Sat 02:00-04:00 Europe/Rome", "2026-11-21 03:30 UTC", false},
	} {
		var w Window
		if err := w.UnmarshalText([]byte(tt.window)); err != nil {
			t.Fatal(err)
		}
		if got := w.Holds(at(tt.at)); got != tt.want {
			t.Errorf("%s at %s: %v, want %v", tt.window, tt.at, got, tt.want)
		}
	}
	if (Window{}).Holds(time.Now()) {
		t.Error("no window holds")
	}
}

func TestVMHash(t *testing.T) {
	hash := func(text string) string {
		t.Helper()
		v, err := ParseVM("/etc/v.toml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return v.Hash()
	}
	const base = "name = 'a'\nresources = ['r']\n"
	same := hash(base)
	for _, text := range []string{
		"# a comment\nresources = [ 'r' ]\nname = \"a\"",
		base + "memory = '512M'\nfailback = 'manual'\n[restart]\nlimit = 3",
		base + "hypervisor = 'qemu'\nmac = '" + derivedMAC("a") + "'",
	} {
		if hash(text) != same {
			t.Errorf("another hash for the same machine:\n%s", text)
		}
	}
	seen := map[string]string{same: "nothing"}
	for _, more := range []string{
		"memory = '1G'", "vcpus = 2", "boot = { kernel = '/k' }", "prefer = { x = 1 }", "prefer = { y = 1 }", "prefer = { x = 2 }",
		"stickiness = 0", "stop-timeout = '61s'", "target-role = 'stopped'", "ips = [ { address = '192.0.2.1/24' } ]",
		"ips = [ { address = '192.0.2.1/25' } ]", "hooks = { on-demote = '/a b' }", "hooks = { on-demote = ['/a b'] }",
		"local-disk = [ { path = '/x', size = '1G' } ]", "units = ['a.service']", "units = ['b.service']", "graceful = false",
		"nodes = ['a', 'b']", "extra-args = ['a', 'b']", "extra-args = ['ab']",
		"prefer = { x = 1 }\nfailback = 'window'\nfailback-window = '02:00-04:00'",
		"prefer = { x = 1 }\nfailback = 'window'\nfailback-window = '02:00-05:00'",
	} {
		h := hash(base + more)
		if other, ok := seen[h]; ok {
			t.Errorf("%q has the hash of %q", more, other)
		}
		seen[h] = more
	}
	for _, path := range []string{"/etc/pollux.d/v.toml", "/home/x/v.toml"} {
		v, err := ParseVM(path, []byte(base+"console = 'log'\nlocal-disk = [ { path = 'swap', size = '1G' } ]"))
		if err != nil {
			t.Fatal(err)
		}
		if h := v.Hash(); seen[h] != "" && seen[h] != "relative paths" {
			t.Errorf("%s: the hash of %q", path, seen[h])
		} else if len(seen) > 0 && seen[h] == "" && path == "/home/x/v.toml" {
			t.Error("the same file in another directory has another hash")
		} else {
			seen[h] = "relative paths"
		}
	}
	if want := "9a6c08ea92723107"; same != want {
		t.Errorf("the hash of a description is %s, was %s: nodes of two versions would not agree", same, want)
	}
}

// The manual page names every key of the description, with its table.
func TestVMManual(t *testing.T) {
	text, err := os.ReadFile("../docs/pollux.vm.5")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.ReplaceAll(string(text), `\-`, "-")
	var check func(reflect.Type)
	check = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			tag := f.Tag.Get("toml")
			if tag == "" || tag == "-" {
				continue
			}
			if !strings.Contains(manual, "\n.B "+tag+"\n") && !strings.Contains(manual, "\n.B "+tag+" ") && !strings.Contains(manual, ".BR "+tag+" ") && !strings.Contains(manual, "["+tag+"]") && !strings.Contains(manual, `", `+tag) && !strings.Contains(manual, `" `+tag) {
				t.Errorf("docs/pollux.vm.5 does not name %s", tag)
			}
			sub := f.Type
			if sub.Kind() == reflect.Slice {
				sub = sub.Elem()
			}
			if sub.Kind() == reflect.Struct && !isLeaf(sub) {
				check(sub)
			}
		}
	}
	check(reflect.TypeFor[VM]())
}
