package daemon

import (
	"slices"
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/adm"
)

// managedDaemon has the resources plain, intern and pace, each with its manager.
func managedDaemon(t *testing.T, w *fakeWorld) *testDaemon {
	t.Helper()
	pace := strings.Replace(resText("pace", 20, 7002, 1), "{", "{\n\tnet { fencing resource-and-stonith; }\n\thandlers { fence-peer /bin/false; }\n", 1)
	return startDaemon(t, w,
		"pollux.toml", settingsText+"[resource.intern]\nmanager = \"internal\"\nmax-loss-bytes = \"1M\"\nmax-loss-seconds = 1\n[resource.pace]\nmanager = \"pacemaker\"\n",
		"plain.res", resText("plain", 0, 7000, 1), "intern.res", resText("intern", 10, 7001, 2), "pace.res", pace)
}

func TestManagers(t *testing.T) {
	w := newFakeWorld()
	d := managedDaemon(t, w)
	for _, tt := range []struct {
		name, res string
		cmd       adm.Command
		args      adm.Args
		call      string // of the engine; "": refused
		text      string // of the refusal, or of its advice
	}{
		{"plain", "plain", adm.CmdPrimary, adm.Args{}, "primary plain", ""},
		{"a term for an unmanaged one", "plain", adm.CmdPrimary, adm.Args{Term: 3, Sole: true}, "primary-with-term 3 true plain", ""},
		{"plain of a managed one", "intern", adm.CmdPrimary, adm.Args{}, "", "polluxha decides who is Primary"},
		{"forced without the name", "intern", adm.CmdPrimary, adm.Args{Force: true}, "", "--confirm=intern"},
		{"forced with another name", "intern", adm.CmdPrimary, adm.Args{Force: true, Confirm: "plain"}, "", "may be running and writing"},
		{"forced", "intern", adm.CmdPrimary, adm.Args{Force: true, Confirm: "intern"}, "force-term 1998 true intern", ""},
		{"a term", "intern", adm.CmdPrimary, adm.Args{Term: 3}, "primary-with-term 3 false intern", ""},
		{"a vote", "pace", adm.CmdPrimary, adm.Args{}, "primary-by-vote false pace", ""},
		{"pacemaker, forced without the name", "pace", adm.CmdPrimary, adm.Args{Force: true}, "", "Pacemaker decides who is Primary"},
		{"failsafe", "intern", adm.CmdFailsafe, adm.Args{}, "failsafe true intern", ""},
		{"failsafe over", "intern", adm.CmdFailsafeOver, adm.Args{}, "failsafe false intern", ""},
		{"freeze", "intern", adm.CmdFreeze, adm.Args{}, "freeze intern", ""},
		{"thaw", "intern", adm.CmdThaw, adm.Args{}, "thaw intern", ""},
		{"one lease", "plain", adm.CmdLease, adm.Args{LeaseMS: 5}, "lease 5 plain", ""},
		{"all leases", "", adm.CmdLease, adm.Args{LeaseMS: 7}, "lease 7 intern", ""},
		{"lease of nobody", "nobody", adm.CmdLease, adm.Args{LeaseMS: 7}, "", "Unknown resource"},
		{"two primaries", "intern", adm.CmdNetOptions, adm.Args{Options: map[string]string{"allow-two-primaries": "yes"}}, "", "a manager has one node write"},
		{"protocol", "pace", adm.CmdNetOptions, adm.Args{Options: map[string]string{"protocol": "B"}}, "", "needs max-loss-bytes"},
		{"protocol of a plain one", "plain", adm.CmdNetOptions, adm.Args{Options: map[string]string{"protocol": "A"}}, "reconfigure plain", ""},
		{"congestion", "intern", adm.CmdNetOptions, adm.Args{Options: map[string]string{"protocol": "A", "on-congestion": "disconnect", "congestion-fill": "1M"}}, "", "has to ask first"},
		{"fencing", "intern", adm.CmdDiskOptions, adm.Args{Options: map[string]string{"fencing": "dont-care"}}, "", "without asking"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.mu.Lock()
			w.calls = nil
			w.mu.Unlock()
			r := d.call(adm.Request{Cmd: tt.cmd, Resource: tt.res, Args: tt.args})
			w.mu.Lock()
			defer w.mu.Unlock()
			switch {
			case tt.call != "" && (!r.OK || !slices.Contains(w.calls, tt.call)):
				t.Errorf("%+v; the engine was asked %q, want %q", r, w.calls, tt.call)
			case tt.call == "" && (r.OK || len(w.calls) > 0 || !strings.Contains(r.Error+r.Advice, tt.text)):
				t.Errorf("%+v; the engine was asked %q; want a refusal with %q", r, w.calls, tt.text)
			}
			if slices.Contains(w.calls, "lease 7 plain") || slices.Contains(w.calls, "lease 7 pace") {
				t.Errorf("the lease of polluxha was told to others: %q", w.calls)
			}
		})
	}
	if !strings.Contains(d.log.String(), `"audit":true`) {
		t.Error("the override is not in the audit log")
	}
}

// TestManagedExports: none under the bare name, one for each volume of each
// incarnation, and the refusals name the incarnation's owner.
func TestManagedExports(t *testing.T) {
	w := newFakeWorld()
	d := managedDaemon(t, w)
	exports := func() []string {
		var names []string
		for _, r := range []string{"intern", "pace", "plain"} {
			for _, v := range d.status()[r].Volumes {
				names = append(names, v.Export)
			}
		}
		return names
	}
	if got := exports(); !slices.Equal(got, []string{"", "", "pace", "plain"}) {
		t.Errorf("exports %q", got)
	}
	export := func(incarnation string) adm.Response {
		return d.call(adm.Request{Cmd: adm.CmdExport, Resource: "intern", Args: adm.Args{Incarnation: incarnation}})
	}
	if r := export("a@b"); r.OK || !strings.Contains(r.Error, "incarnation") {
		t.Errorf("a bad name: %+v", r)
	}
	if r := export("i1"); !r.OK || !strings.Contains(string(r.Data), `"1":"intern/1@i1"`) {
		t.Errorf("export: %+v", r)
	}
	if got := exports(); !slices.Equal(got, []string{"intern/0@i1", "intern/1@i1", "pace", "plain"}) {
		t.Errorf("exports %q", got)
	}
	if r := export("i1"); !r.OK {
		t.Errorf("the same once more: %+v", r)
	}
	if r := export("i2"); !r.OK {
		t.Errorf("another one: %+v", r)
	}
	if r := d.call(adm.Request{Cmd: adm.CmdUnexport, Resource: "intern", Args: adm.Args{Incarnation: "i1"}}); !r.OK || d.status()["intern"].Incarnation != "i2" {
		t.Errorf("unexport of one that is over: %+v", r)
	}
	// polluxd starts again, in the same boot.
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d.start()
	if got := d.status()["intern"].Incarnation; got != "i2" {
		t.Errorf("after the restart the incarnation is %q", got)
	}
	d.wantOK(adm.CmdUnexport, "intern")
	if got := exports(); got[0] != "" {
		t.Errorf("exports %q", got)
	}
	d.write("pollux.toml", settingsText)
	if r := d.call(adm.Request{Cmd: adm.CmdAdjust, Resource: "intern"}); r.OK || !strings.Contains(r.Error, "manager can't be changed while the resource is up") {
		t.Errorf("another manager: %+v", r)
	}
}
