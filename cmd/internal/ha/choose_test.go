package ha

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Whatever a new or changed file says, the VM that is in force keeps its name, its disk
// and its address, and people hear why the other one is not.
func TestReloadNewcomersLose(t *testing.T) {
	far := fmt.Sprintf(resourceFile, "far", 3, "a", 7790, "b")
	for _, tt := range []struct {
		name string
		text map[string]string
		want string // what is told
	}{
		{"a file before it takes its name", map[string]string{"a.vm.toml": "name = \"web\"\nresources = [\"far\"]\n"}, "a.vm.toml:1:1: name: it is that of VM web"},
		{"a file behind it takes its name", map[string]string{"z.vm.toml": "name = \"web\"\nresources = [\"far\"]\n"}, "z.vm.toml:1:1: name: it is that of VM web"},
		{"another VM takes its disk", map[string]string{"a.vm.toml": "name = \"a\"\nresources = [\"web\"]\n"}, "web/0 is a disk of VM web"},
		{"another VM takes its disk, and its file is broken", map[string]string{
			"web.vm.toml": "name = 3\n", "a.vm.toml": "name = \"a\"\nresources = [\"web\"]\n",
		}, "web/0 is a disk of VM web"},
		{"another volume of its resource", map[string]string{"a.vm.toml": "name = \"a\"\nresources = [\"web/1\"]\n", "web.res": `resource web {
  volume 0 { device /dev/drbd1 minor 1; disk /dev/ram1; meta-disk internal; }
  volume 1 { device /dev/drbd2 minor 2; disk /dev/ram2; meta-disk internal; }
  on a { address ipv4 127.0.0.1:7788; }
  on b { address ipv4 127.0.0.2:7788; }
}
`}, "resource web belongs to VM web"},
		{"it gets other disks while it runs", map[string]string{"web.vm.toml": "name = \"web\"\nresources = [\"far\"]\n"}, "its disks can't change while it is here: polluxadm vm stop web"},
		{"it and another one swap disks while it runs", map[string]string{
			"web.vm.toml": "name = \"web\"\nresources = [\"far\"]\n", "far.vm.toml": "name = \"far\"\nresources = [\"web\"]\n",
		}, "its disks can't change while it is here"},
		{"it is renamed while it runs", map[string]string{"web.vm.toml": "", "www.vm.toml": "name = \"www\"\nresources = [\"web\"]\n"}, "web/0 is a disk of VM web"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReloader(t)
			hash := r.conf.vm("web").Hash()
			tt.text["far.res"] = far
			for range 2 { // the second reload changes nothing
				if err := r.reload(tt.text); !isPartial(err) || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("reload: %v, want %q", err, tt.want)
				}
				for name, text := range tt.text {
					if text == "" {
						delete(tt.text, name)
					}
				}
			}
			v := r.conf.vm("web")
			if v == nil || v.Hash() != hash || filepath.Base(v.File) != "web.vm.toml" {
				t.Errorf("in force is %+v", v)
			}
			if s := r.status(); s == nil || s.Node != "a" || len(s.Resources) != 1 || s.Resources[0].Storage.Resource != "web" {
				t.Errorf("status %+v", s)
			}
			for _, v := range r.conf.vms {
				if v.Name != "web" {
					t.Errorf("%s is in force as well", v.Name)
				}
			}
			events, _ := r.events.since(0)
			told := 0
			for _, e := range events {
				if e.Level == adm.HALevelWarning && strings.Contains(e.Text, tt.want) {
					told++
				}
			}
			if told != 1 {
				t.Errorf("told %d times: %+v", told, events)
			}
		})
	}
}

// A polluxha that starts anew while a VM's file is wrong, or gone, goes on with what
// was in force, as a reload does.
func TestRecall(t *testing.T) {
	for _, tt := range []struct {
		name string
		file string // "": it is removed
		here bool
		want string // what is told; "": web is as its file says, or forgotten
		kept bool
	}{
		{"as it was", goodVM, true, "", true},
		{"broken, and it runs", "name = \"web\"\nmemori = 1\n", true, "web.vm.toml:2", true},
		{"broken, and it is elsewhere", "name = \"web\"\nmemori = 1\n", false, "web.vm.toml:2", true},
		{"an unknown resource", "name = \"web\"\nresources = [\"wbe\"]\n", true, "did you mean \"web\"?", true},
		{"gone, and it runs", "", true, "its file is gone", true},
		{"gone, and it is elsewhere", "", false, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReloader(t)
			if err := os.MkdirAll(r.settings.StateDir, 0o700); err != nil {
				t.Fatal(err)
			}
			r.remember()
			r.lanes.wait()
			hash, path := r.conf.vm("web").Hash(), r.conf.vm("web").File
			err := os.WriteFile(path, []byte(tt.file), 0o600)
			if tt.file == "" {
				err = os.Remove(path)
			}
			if err != nil {
				t.Fatal(err)
			}
			at := time.Date(2026, 11, 22, 1, 0, 0, 0, time.UTC)
			for range 2 { // and once more: the time of the first stays
				c, err := readWhatCanBe(r.settings)
				if err == nil {
					err = c.recall(func(*conf.VM) bool { return tt.here }, at)
				}
				if err != nil {
					t.Fatal(err)
				}
				v := c.vm("web")
				if (v != nil) != tt.kept || tt.kept && v.Hash() != hash {
					t.Fatalf("in force: %+v, left %+v", v, c.left)
				}
				told := c.leftOut()
				if (told == nil) != (tt.want == "") || told != nil && !strings.Contains(told.Error(), tt.want) {
					t.Errorf("it is told %v, want %q", told, tt.want)
				}
				if told != nil && !strings.Contains(told.Error(), "since 2026-11-22 01:00:00 UTC") {
					t.Errorf("since when: %v", told)
				}
				if cfg, err := c.core(at); err != nil || (len(cfg.Services) == 1) != tt.kept {
					t.Errorf("the core hears %+v, %v", cfg.Services, err)
				}
				r.conf, at = c, at.Add(time.Hour)
				r.remember()
				r.lanes.wait()
			}
		})
	}
}

// A name that nobody has gets the near one, and a VM whose file is wrong its reason.
func TestUnknownNames(t *testing.T) {
	c, err := readAll(files(t, map[string]string{"db.vm.toml": "name = \"db\"\nresources = [\"bd\"]\n", "x.vm.toml": "name = \"mail\"\nmemori = 1\n"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		err  error
		want string
		exit int
	}{
		{c.unknownVM("wbe"), `did you mean "web"?`, adm.ExitUsage},
		{c.unknownVM("Web"), `did you mean "web"?`, adm.ExitUsage},
		{c.unknownVM("mial"), `did you mean "mail"?`, adm.ExitUsage},
		{c.unknownVM("something"), "no file describes it", adm.ExitUsage},
		{c.unknownVM("mail"), "x.vm.toml:2:", adm.ExitRefused},
		{c.unknownNode("thrid"), `did you mean "third"?`, adm.ExitUsage},
		{c.unknownNode("B"), `did you mean "b"?`, adm.ExitUsage},
		{c.unknownNode("x"), "it is not a node of cluster test", adm.ExitUsage},
	} {
		var e *adm.Error
		if !errors.As(tt.err, &e) || e.Exit != tt.exit || e.Advice == "" || !strings.Contains(e.Text, tt.want) {
			t.Errorf("%v, want %q with status %d and advice", tt.err, tt.want, tt.exit)
		}
	}
}
