package ha

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
)

const clusterFile = `name = "test"
id = "3e1f8a52-7c0d-4b6e-9a41-5d2c8f60b713"
[arbiter]
kind = "etcd"
[[node]]
name = "a"
links = ["127.0.0.1:7790"]
[[node]]
name = "b"
links = ["127.0.0.2:7790"]
[[node]]
name = "third"
kind = "witness"
links = ["127.0.0.3:7790"]
`

const resourceFile = `resource %[1]s {
  device /dev/drbd%[2]d minor %[2]d; meta-disk internal; disk /dev/ram%[2]d;
  on %[3]s { address ipv4 127.0.0.1:%[4]d; }
  on %[5]s { address ipv4 127.0.0.2:%[4]d; }
}
`

// files makes a node's directory; nil text leaves the file out.
func files(t *testing.T, text map[string]string) *conf.Daemon {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{
		"pollux.toml": "node-name = \"a\"\nresource-files = [\"*.res\"]\nvm-files = [\"*.vm.toml\"]\ndrbd-conf = \"\"\nstate-dir = \"state\"\n" +
			"[ha]\ncluster-file = \"cluster.toml\"\n[resource.web]\nmanager = \"internal\"\n[resource.far]\nmanager = \"internal\"\n",
		"cluster.toml": clusterFile,
		"web.res":      fmt.Sprintf(resourceFile, "web", 1, "a", 7788, "b"),
		"web.vm.toml":  "name = \"web\"\nresources = [\"web\"]\nprefer = { b = 5 }\n",
	}
	for name, s := range text {
		all[name] = s
	}
	for name, s := range all {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := readSettings(filepath.Join(dir, "pollux.toml"), true)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What a VM's file can have wrong leaves that VM alone, with a sentence that says
// what to do; the others are cared for.
func TestConfigurationProblems(t *testing.T) {
	for _, tt := range []struct {
		name   string
		text   map[string]string
		vm     string
		want   string // in what is told of it; "": nothing
		usable int
	}{
		{"as it is", nil, "web", "", 1},
		{"unknown resource", map[string]string{"db.vm.toml": "name = \"db\"\nresources = [\"bd\"]\n"}, "db", `resource "bd" of VM db`, 1},
		{"no manager", map[string]string{
			"db.vm.toml": "name = \"db\"\nresources = [\"db\"]\n", "db.res": fmt.Sprintf(resourceFile, "db", 2, "a", 7789, "b"),
		}, "db", `manager = "internal"`, 1},
		{"a node that is no member", map[string]string{
			"far.vm.toml": "name = \"far\"\nresources = [\"far\"]\n", "far.res": fmt.Sprintf(resourceFile, "far", 3, "a", 7790, "x"),
		}, "far", "copy on x, which is not a node of cluster test", 1},
		{"two VMs on one disk", map[string]string{"db.vm.toml": "name = \"db\"\nresources = [\"web\"]\n"}, "db", "web/0 is a disk of VM web (", 0},
		{"the other one of these", map[string]string{"db.vm.toml": "name = \"db\"\nresources = [\"web\"]\n"}, "web", "web/0 is a disk of VM db (", 0},
		{"two volumes of one resource", map[string]string{"db.vm.toml": "name = \"db\"\nresources = [\"web/1\"]\n"}, "db", "resource web belongs to VM web (", 0},
		{
			"two VMs of one name",
			map[string]string{"a.vm.toml": "name = \"web\"\nresources = [\"far\"]\n", "far.res": fmt.Sprintf(resourceFile, "far", 3, "a", 7790, "b")},
			"web", "name: it is that of VM web (", 0,
		},
		{"a node that it can't prefer", map[string]string{"web.vm.toml": "name = \"web\"\nresources = [\"web\"]\nprefer = { c = 1 }\n"}, "web", "web.vm.toml:3:", 0},
		{"a broken file", map[string]string{"db.vm.toml": "name = \"db\"\nmemori = 1\n"}, "db", "db.vm.toml:2", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := readWhatCanBe(files(t, tt.text))
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := c.core(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			usable := 0
			for _, s := range cfg.Services {
				if s.Problem == "" {
					usable++
				}
			}
			if usable != tt.usable {
				t.Errorf("%d VMs can be used, want %d: %+v", usable, tt.usable, cfg.Services)
			}
			told := c.problems[tt.vm]
			if f, ok := c.leftFile(tt.vm); ok {
				told += f.why
			}
			if (told == "") != (tt.want == "") || !strings.Contains(told, tt.want) {
				t.Errorf("it is told %q, want %q", told, tt.want)
			}
		})
	}
}

// A node that is not in its own cluster's file is told what to do.
func TestConfigurationRefused(t *testing.T) {
	foreign := strings.Replace(clusterFile, `name = "a"`, `name = "x"`, 1)
	if _, err := readWhatCanBe(files(t, map[string]string{"cluster.toml": foreign})); err == nil || !strings.Contains(err.Error(), "polluxadm cluster join") {
		t.Errorf("not in its own cluster: %v", err)
	}
}

// Bounds of loss count only if polluxd holds to them.
func TestLossBounds(t *testing.T) {
	protocolA := strings.Replace(fmt.Sprintf(resourceFile, "web", 1, "a", 7788, "b"), "meta-disk", "net { protocol A; } meta-disk", 1)
	settings := "node-name = \"a\"\nresource-files = [\"*.res\"]\nvm-files = [\"*.vm.toml\"]\ndrbd-conf = \"\"\n[ha]\ncluster-file = \"cluster.toml\"\n" +
		"[resource.web]\nmanager = \"internal\"\nmax-loss-bytes = \"8M\"\nmax-loss-seconds = 5\n"
	for _, tt := range []struct {
		vm   string
		want bool
	}{
		{"", true},
		{"max-loss-bytes = \"8M\"\nmax-loss-seconds = 5\n", true},
		{"max-loss-bytes = \"1M\"\nmax-loss-seconds = 5\n", false},
	} {
		c, err := readAll(files(t, map[string]string{
			"pollux.toml": settings, "web.res": protocolA, "web.vm.toml": "name = \"web\"\nresources = [\"web\"]\n" + tt.vm,
		}))
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := c.core(time.Now())
		f, left := c.leftFile("web")
		switch {
		case err != nil:
			t.Errorf("VM with %q: %v", tt.vm, err)
		case !tt.want:
			if !left || !strings.Contains(f.why, "declare max-loss-bytes") {
				t.Errorf("VM with %q: %+v, %+v", tt.vm, f, cfg.Resources)
			}
		case len(cfg.Resources) != 1 || cfg.Resources[0].Protocol != "A" || cfg.Resources[0].MaxLossBytes == 0:
			t.Errorf("VM with %q: %+v", tt.vm, cfg.Resources)
		}
	}
}

// To the core a failback window lasts all day, or there is none.
func TestFailbackWindow(t *testing.T) {
	c, err := readAll(files(t, map[string]string{
		"web.vm.toml": "name = \"web\"\nresources = [\"web\"]\nprefer = { b = 5 }\nfailback = \"window\"\nfailback-window = \"Sat 02:00-04:00 UTC\"\n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	sat := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		at   time.Time
		want ha.Failback
	}{{sat, ha.FailbackWindow}, {sat.Add(2 * time.Hour), ha.FailbackManual}, {sat.AddDate(0, 0, 1), ha.FailbackManual}} {
		cfg, err := c.core(tt.at)
		if err != nil {
			t.Fatal(err)
		}
		if s := cfg.Services[0]; s.Failback != tt.want {
			t.Errorf("at %v: failback %q, want %q", tt.at, s.Failback, tt.want)
		}
	}
}
