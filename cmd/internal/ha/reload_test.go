package ha

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/adm"
)

// noPeers is a control channel with nobody at its other end.
type noPeers struct{}

func (noPeers) setBeat([]byte) {}
func (noPeers) ask(context.Context, string, string, []byte) ([]byte, error) {
	return nil, errors.New("nobody is there")
}
func (noPeers) links(string) []adm.HALink { return nil }
func (noPeers) version(string) string     { return "" }
func (noPeers) close()                    {}

// reloader is a manager whose VM web runs here.
type reloader struct {
	*manager
	t *testing.T
}

func newReloader(t *testing.T) *reloader {
	m := performer(t, t.TempDir(), &slowStorage{})
	m.peers, m.work = noPeers{}, func(*conf.VM) workload { return nil }
	m.event(ha.Event{Kind: ha.Started, Session: "s", Boot: "b"})
	r := &reloader{m, t}
	r.see(ha.PhaseRunning, ha.Primary)
	return r
}

func (r *reloader) see(p ha.Phase, role ha.Role) {
	r.seen["web"], r.stores["web"] = ha.Seen{Phase: p}, ha.Storage{Resource: "web", Up: true, Role: role}
	r.event(ha.Event{Kind: ha.ServiceChanged, Service: "web", Seen: r.seen["web"]})
	r.event(ha.Event{Kind: ha.StorageChanged, Storage: r.stores["web"]})
}

// reload writes files (nil text removes) and takes over what they say.
func (r *reloader) reload(text map[string]string) error {
	r.t.Helper()
	dir := filepath.Dir(r.settings.File)
	for name, s := range text {
		path := filepath.Join(dir, name)
		err := os.WriteFile(path, []byte(s), 0o600)
		if s == "" {
			err = os.Remove(path)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	settings, err := readSettings(r.settings.File, true)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := readAll(settings)
	if err != nil {
		return err
	}
	if _, err := r.takeOver(c); err != nil {
		return err
	}
	return c.leftOut()
}

func (r *reloader) status() *ha.ServiceStatus {
	for _, s := range r.core.Snapshot().Services {
		if s.Name == "web" {
			return &s
		}
	}
	return nil
}

const goodVM = "name = \"web\"\nresources = [\"web\"]\nprefer = { b = 5 }\n"

// A VM file that is wrong leaves in force what it said before, with a sentence; the
// others are taken over, and a file that is right again ends it.
func TestReloadKeepsWhatRuns(t *testing.T) {
	for _, tt := range []struct {
		name string
		text map[string]string
		want string
	}{
		{"unknown resource", map[string]string{"web.vm.toml": "name = \"web\"\nresources = [\"nix\"]\n"}, "web.vm.toml:2"},
		{"no TOML", map[string]string{"web.vm.toml": "name = \"web\"\nresources = [\n"}, "web.vm.toml:"},
		{"unknown key", map[string]string{"web.vm.toml": goodVM + "memori = 1\n"}, "web.vm.toml:4"},
		{"a resource that is not managed", map[string]string{
			"web.vm.toml": "name = \"web\"\nresources = [\"db\"]\n", "db.res": fmt.Sprintf(resourceFile, "db", 2, "a", 7789, "b"),
		}, `manager = "internal"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReloader(t)
			hash := r.conf.vm("web").Hash()
			tt.text["far.vm.toml"] = "name = \"far\"\nresources = [\"far\"]\n"
			tt.text["far.res"] = fmt.Sprintf(resourceFile, "far", 3, "a", 7790, "b")
			for i := range 2 { // the second reload changes nothing
				err := r.reload(tt.text)
				if !isPartial(err) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "the old one stays in force") {
					t.Fatalf("reload %d: %v, want %q", i, err, tt.want)
				}
			}
			s := r.status()
			if s == nil || s.Node != "a" || s.Level != ha.Warning || !strings.Contains(s.Why, tt.want) {
				t.Fatalf("status %+v", s)
			}
			if v := r.conf.vm("web"); v.Hash() != hash || r.conf.problems["web"] != "" {
				t.Errorf("in force: %+v, problem %q", v, r.conf.problems["web"])
			}
			if r.conf.vm("far") == nil {
				t.Error("the other VM was not taken over")
			}
			events, _ := r.events.since(0)
			told := 0
			for _, e := range events {
				if e.VM == "web" && e.Level == adm.HALevelWarning && strings.Contains(e.Text, tt.want) {
					told++
				}
			}
			if told != 1 {
				t.Errorf("%d warnings, want one: %+v", told, events)
			}
			if err := r.reload(map[string]string{"web.vm.toml": goodVM}); err != nil {
				t.Errorf("right again: %v", err)
			}
			if s := r.status(); strings.Contains(s.Why, "its file is wrong") {
				t.Errorf("right again: %+v", s)
			}
		})
	}
}

// The description of a VM that runs here outlives its file until the VM is stopped.
func TestReloadKeepsRemoved(t *testing.T) {
	r := newReloader(t)
	if err := r.reload(map[string]string{"web.vm.toml": ""}); !isPartial(err) || !strings.Contains(err.Error(), "its file is gone") {
		t.Fatalf("reload: %v", err)
	}
	r.forgetRemoved()
	if s := r.status(); s == nil || s.Node != "a" || !strings.Contains(s.Why, "until the VM is stopped") {
		t.Fatalf("while it runs: %+v", s)
	}
	r.see(ha.PhaseStopped, ha.Secondary)
	r.forgetRemoved()
	if s := r.status(); s != nil || r.conf.vm("web") != nil {
		t.Errorf("stopped: %+v", s)
	}
	// One that is elsewhere, or stopped, goes with its file.
	r = newReloader(t)
	r.see(ha.PhaseStopped, ha.Secondary)
	if err := r.reload(map[string]string{"web.vm.toml": ""}); err != nil || r.conf.vm("web") != nil {
		t.Errorf("a stopped one: %v", err)
	}
}

// What can't be kept is refused, and all stays as it was.
func TestReloadRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		text map[string]string
		want string
	}{
		{"the resource of a VM that runs is gone", map[string]string{"web.res": ""}, "vm web is here"},
		{"another arbiter meanwhile", map[string]string{
			"web.vm.toml": "name = 3\n", "cluster.toml": strings.Replace(clusterFile, `"etcd"`, `"manual"`, 1),
		}, "the arbiter can't be changed now"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReloader(t)
			before := r.conf
			if err := r.reload(tt.text); err == nil || isPartial(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("reload: %v, want %q", err, tt.want)
			}
			if s := r.status(); r.conf != before || s == nil || s.Node != "a" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// The sentence gives the time that the first reload has seen.
func TestKeptSince(t *testing.T) {
	r := newReloader(t)
	at := time.Date(2026, 11, 22, 1, 0, 0, 0, time.UTC)
	r.wall = func() time.Time { return at }
	for range 2 {
		if err := r.reload(map[string]string{"web.vm.toml": "name = 3\n"}); err == nil || !strings.Contains(err.Error(), "since 2026-11-22 01:00:00 UTC: ") {
			t.Errorf("%v", err)
		}
		at = at.Add(time.Hour)
	}
}
