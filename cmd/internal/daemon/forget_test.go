package daemon

import (
	"os"
	"testing"

	"github.com/pollux-project/pollux/protocol/adm"
)

// TestForget: what the files no longer define goes, once it is down, and does not
// come up again by its old configuration.
func TestForget(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 1), "r1.res", resText("r1", 10, 7001, 1))
	d.wantOK(adm.CmdForget, "r0")
	if _, ok := d.status()["r0"]; !ok {
		t.Error("a resource that is defined was forgotten")
	}
	if err := os.Remove(d.path("r0.res")); err != nil {
		t.Fatal(err)
	}
	d.wantOK(adm.CmdForget, "r0")
	if st := d.status()["r0"]; st.State != adm.StateUp {
		t.Errorf("a resource that is up was forgotten: %+v", st)
	}
	d.wantOK(adm.CmdDown, "r0")
	if r := d.call(adm.Request{Cmd: adm.CmdUp, Resource: "r0"}); r.OK || r.Number != 158 {
		t.Errorf("up by the old configuration: %+v", r)
	}
	if _, ok := d.status()["r0"]; ok {
		t.Error("it is still there")
	}
	d.wantOK(adm.CmdForget, "r0")
	if st := d.status()["r1"]; st.State != adm.StateUp {
		t.Errorf("the other one: %+v", st)
	}
}
