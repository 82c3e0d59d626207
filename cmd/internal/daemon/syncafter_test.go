package daemon

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/protocol/adm"
)

func TestMustWait(t *testing.T) {
	const idle, syncing, paused, diskless = "idle", "syncing", "paused", "diskless"
	for _, tt := range []struct {
		name   string
		after  map[string]string
		states map[string]string
		want   map[string]bool
	}{
		{"nobody is busy", map[string]string{"b": "a"}, map[string]string{"a": idle, "b": syncing}, map[string]bool{"b": false}},
		{"the one before is", map[string]string{"b": "a"}, map[string]string{"a": syncing, "b": syncing}, map[string]bool{"a": false, "b": true}},
		{"a pause of the one before holds up", map[string]string{"b": "a"}, map[string]string{"a": paused, "b": idle}, map[string]bool{"b": true}},
		{"through an idle one", map[string]string{"c": "b", "b": "a"}, map[string]string{"a": syncing, "b": idle, "c": syncing}, map[string]bool{"b": true, "c": true}},
		{"a diskless one in between ends the chain", map[string]string{"c": "b", "b": "a"}, map[string]string{"a": syncing, "b": diskless, "c": syncing}, map[string]bool{"b": false, "c": false}},
		{"the one before is not up", map[string]string{"b": "gone"}, map[string]string{"b": syncing}, map[string]bool{"b": false}},
		{"a cycle ends", map[string]string{"a": "b", "b": "a"}, map[string]string{"a": idle, "b": idle}, map[string]bool{"a": false, "b": false}},
		{"two wait for one", map[string]string{"b": "a", "c": "a"}, map[string]string{"a": syncing, "b": idle, "c": syncing}, map[string]bool{"b": true, "c": true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nodes := map[volumeKey]syncNode{}
			for name, state := range tt.states {
				v := adm.Volume{Disk: "UpToDate", Replication: "Connected"}
				switch state {
				case syncing:
					v.Replication = "SyncTarget"
				case paused:
					v.ResyncPausedBy = []string{"user"}
				case diskless:
					v.Disk = "Diskless"
				}
				nodes[volumeKey{name, 0}] = syncNodeOf(v, tt.after[name])
			}
			for name, want := range tt.want {
				if got := mustWait(nodes, volumeKey{name, 0}); got != want {
					t.Errorf("%s waits: %v, want %v", name, got, want)
				}
			}
		})
	}
}

// TestResyncAfter: the second of a chain waits while the first is resynced, the
// third while either is.
func TestResyncAfter(t *testing.T) {
	after := func(text, res string) string {
		return strings.Replace(text, "{\n", "{\n\tdisk { resync-after "+res+"; }\n", 1)
	}
	w := newFakeWorld()
	startDaemon(t, w, "a.res", resText("a", 0, 7000, 1), "b.res", after(resText("b", 1, 7001, 1), "a"), "c.res", after(resText("c", 2, 7002, 1), "b/0"))
	sync := func(res string, on bool) {
		e := w.engine(res)
		if err := e.do("resync", func() { e.syncing = on }); err != nil {
			t.Fatal(err)
		}
	}
	waits := func(b, c bool) func() bool {
		return func() bool {
			for res, want := range map[string]bool{"a": false, "b": b, "c": c} {
				if v := w.engine(res).Status().Volumes[0]; (len(v.ResyncPausedBy) > 0) != want {
					return false
				}
			}
			return true
		}
	}
	sync("b", true)
	sync("c", true)
	eventually(t, "c waits for b", waits(false, true))
	sync("a", true)
	eventually(t, "both wait for a", waits(true, true))
	sync("a", false)
	eventually(t, "b goes on first", waits(false, true))
	sync("b", false)
	eventually(t, "c goes on last", waits(false, false))
}
