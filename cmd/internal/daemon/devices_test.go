package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-project/pollux/blockdev/attach"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A fakeAttacher hands out devices that exist on paper.
type fakeAttacher struct {
	mu       sync.Mutex
	attached map[string]bool // by export
	inUse    map[string]bool
	fail     error
	patient  bool // what the last SetPatient said
}

type fakeDevice struct {
	a      *fakeAttacher
	export string
	minor  int
}

func (a *fakeAttacher) Attach(_ context.Context, v attach.Volume) (attach.Device, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return nil, a.fail
	}
	a.attached[v.Export] = true
	return &fakeDevice{a, v.Export, v.Minor}, nil
}

func (d *fakeDevice) Path() string                            { return fmt.Sprintf("/dev/nbd%d", d.minor) }
func (d *fakeDevice) SetReadOnly(context.Context, bool) error { return nil }

func (d *fakeDevice) SetPatient(isPatient bool) error {
	d.a.set(func() { d.a.patient = isPatient })
	return nil
}

func (d *fakeDevice) Detach(context.Context) error {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	if d.a.inUse[d.export] {
		return fmt.Errorf("%s: %w by mount", d.Path(), attach.ErrInUse)
	}
	delete(d.a.attached, d.export)
	return nil
}

func (a *fakeAttacher) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *fakeAttacher) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.attached)
}

func TestBlockDevicesFollowTheRole(t *testing.T) {
	w := newFakeWorld()
	a := &fakeAttacher{attached: map[string]bool{}, inUse: map[string]bool{}}
	d := startDaemonWith(t, w, a, "db.res", resText("db", 10, 7001, 2))
	if a.count() != 0 {
		t.Fatal("a Secondary has block devices")
	}
	d.wantOK(adm.CmdPrimary, "db")
	if st := d.status()["db"]; a.count() != 2 || st.Volumes[1].BlockDevice != "/dev/nbd11" {
		t.Fatalf("a Primary has %d block devices: %+v", a.count(), st.Volumes)
	}
	// In use: refused, and the one that was not in use is there again.
	a.set(func() { a.inUse["db/1"] = true })
	for _, cmd := range []adm.Command{adm.CmdSecondary, adm.CmdDown} {
		r := d.call(adm.Request{Cmd: cmd, Resource: "db"})
		if r.Code != 11 || r.Number != -12 || !strings.Contains(r.Error, "/dev/nbd11") || !strings.Contains(r.Advice, "umount") {
			t.Errorf("%s of a mounted device: %+v", cmd, r)
		}
	}
	if st := d.status()["db"]; st.Role != "Primary" || a.count() != 2 {
		t.Errorf("after the refusal: %s, %d devices", st.Role, a.count())
	}
	a.set(func() { a.inUse["db/1"] = false })
	// The engine refuses: the devices come back.
	w.setFail("secondary db", heldOpen("db"))
	if r := d.call(adm.Request{Cmd: adm.CmdSecondary, Resource: "db"}); r.Number != -12 || a.count() != 2 {
		t.Errorf("after a refusal by the engine: %+v, %d devices", r, a.count())
	}
	// It refuses because it has not heard yet that the devices are gone.
	time.AfterFunc(100*time.Millisecond, func() { w.setFail("secondary db", nil) })
	d.wantOK(adm.CmdSecondary, "db")
	if a.count() != 0 {
		t.Error("a demoted resource has block devices")
	}
	// No device is no reason to refuse the promotion.
	a.set(func() { a.fail = errors.New("no nbd driver") })
	d.wantOK(adm.CmdPrimary, "db")
	if st := d.status()["db"]; !strings.Contains(st.Volumes[0].AttachProblem, "no nbd driver") || st.Role != "Primary" {
		t.Errorf("without a driver: %+v", st)
	}
}

// eventually polls for what the daemon does in the background.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(10 * time.Millisecond) // asks again: nothing tells a test that a device has come
	}
}

// No other change of status follows: the daemon must try again by itself, or
// what waits for the device fails.
func TestBlockDeviceIsTriedAgain(t *testing.T) {
	w := newFakeWorld()
	a := &fakeAttacher{attached: map[string]bool{}, fail: errors.New("the engine lets nobody in yet")}
	d := startDaemonWith(t, w, a, "db.res", resText("db", 10, 7001, 1))
	d.wantOK(adm.CmdPrimary, "db")
	a.set(func() { a.fail = nil })
	eventually(t, "a block device", func() bool { return a.count() == 1 })
}

// Requests to a frozen resource wait without limit.
func TestBlockDeviceOfAFrozenResourceIsPatient(t *testing.T) {
	w := newFakeWorld()
	a := &fakeAttacher{attached: map[string]bool{}}
	d := startDaemonWith(t, w, a, "db.res", resText("db", 10, 7001, 1))
	d.wantOK(adm.CmdPrimary, "db")
	for _, frozen := range [][]string{{"no-data"}, nil} {
		e := w.engine("db")
		e.mu.Lock()
		e.frozen = frozen
		changed := e.changed
		e.mu.Unlock()
		changed()
		eventually(t, "the device to follow", func() bool {
			is := false
			a.set(func() { is = a.patient })
			return is == (frozen != nil)
		})
	}
}

func TestAttachDeviceNeedsASocket(t *testing.T) {
	d := startDaemon(t, newFakeWorld())
	d.write("other.toml", strings.NewReplacer(`nbd.socket = "nbd.sock"`, `nbd.socket = ""`).Replace(settingsText)+"\n")
	l, err := load(d.path("other.toml"), true)
	if err != nil {
		t.Fatal(err)
	}
	l.settings.AttachDevice = "nbd"
	if _, err := newDeviceMaker(l.settings); err == nil || !strings.Contains(err.Error(), "needs nbd.socket") {
		t.Errorf("got %v", err)
	}
}
