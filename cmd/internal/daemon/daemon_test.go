package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/pollux-project/pollux/blockdev/attach"
	"github.com/pollux-project/pollux/protocol/adm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A testDaemon is a daemon with fake engines in a directory of its own.
type testDaemon struct {
	t     *testing.T
	dir   string
	world *fakeWorld
	log   *syncBuffer
	hup   chan os.Signal
	dev   attach.Attacher
	stop  func() error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const settingsText = `node-name = "alpha"
resource-files = ["*.res"]
drbd-conf = ""
control-socket = "polluxd.sock"
state-dir = "state"
nbd.socket = "nbd.sock"
log.format = "json"
`

func resText(name string, minor, port, volumes int) string {
	s := fmt.Sprintf("resource %s {\n", name)
	for v := range volumes {
		s += fmt.Sprintf("\tvolume %d { device minor %d; disk /nonexistent/%s%d; meta-disk internal; }\n", v, minor+v, name, v)
	}
	return s + fmt.Sprintf("\ton alpha { address 127.0.0.1:%d; }\n\ton bravo { address 127.0.0.2:%d; }\n}\n", port, port)
}

func newTestDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "polluxd") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startDaemon runs a daemon on the files (name, text, ...).
func startDaemon(t *testing.T, world *fakeWorld, files ...string) *testDaemon {
	t.Helper()
	return startDaemonWith(t, world, nil, files...)
}

func startDaemonWith(t *testing.T, world *fakeWorld, dev attach.Attacher, files ...string) *testDaemon {
	t.Helper()
	d := &testDaemon{t: t, dir: newTestDir(t), world: world, log: &syncBuffer{}, hup: make(chan os.Signal), dev: dev}
	d.write("pollux.toml", settingsText)
	for i := 0; i < len(files); i += 2 {
		d.write(files[i], files[i+1])
	}
	d.start()
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(d.log.String())
		}
	})
	return d
}

func (d *testDaemon) start() {
	d.t.Helper()
	l, err := load(d.path("pollux.toml"), true)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- run(ctx, l, zerolog.New(d.log), hooks{reload: d.hup, ready: func() { close(ready) }, engines: d.world.make, attacher: d.dev})
	}()
	d.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	select {
	case <-ready:
	case err := <-done:
		cancel()
		d.t.Fatalf("the daemon did not start: %v", err)
	}
}

func (d *testDaemon) path(name string) string { return filepath.Join(d.dir, name) }

func (d *testDaemon) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(d.path(name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *testDaemon) dial() net.Conn {
	d.t.Helper()
	c, err := net.Dial("unix", d.path("polluxd.sock"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

// call sends one request on a connection of its own.
func (d *testDaemon) call(req adm.Request) adm.Response {
	d.t.Helper()
	c := d.dial()
	defer c.Close()
	send(d.t, c, req)
	line, err := adm.NewLineReader(c, adm.MaxResponse).Line()
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := adm.DecodeResponse(line)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp
}

func send(t *testing.T, w io.Writer, req adm.Request) {
	t.Helper()
	req.V, req.ID = adm.Version, 1
	line, err := adm.AppendLine(nil, req, adm.MaxRequest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(line); err != nil {
		t.Fatal(err)
	}
}

func (d *testDaemon) status() map[string]adm.Resource {
	d.t.Helper()
	var st adm.Status
	if err := json.Unmarshal(d.call(adm.Request{Cmd: adm.CmdStatus}).Data, &st); err != nil {
		d.t.Fatal(err)
	}
	m := map[string]adm.Resource{}
	for _, r := range st.Resources {
		m[r.Name] = r
	}
	return m
}

func (d *testDaemon) wantOK(cmd adm.Command, res string) {
	d.t.Helper()
	if r := d.call(adm.Request{Cmd: cmd, Resource: res}); !r.OK {
		d.t.Fatalf("%s %s: %d %s", cmd, res, r.Code, r.Error)
	}
}

func TestStartAndCommands(t *testing.T) {
	w := newFakeWorld()
	d := startDaemon(t, w, "r0.res", resText("r0", 0, 7000, 1), "db.res", resText("db", 10, 7001, 2))
	st := d.status()
	if len(st) != 2 || st["r0"].State != adm.StateUp || st["r0"].Connection != "WFConnection" || st["db"].Volumes[1].Disk != "UpToDate" {
		t.Fatalf("after the start: %+v", st)
	}
	if st["r0"].Volumes[0].Export != "r0" || st["db"].Volumes[1].Export != "db/1" {
		t.Errorf("exports: %q %q", st["r0"].Volumes[0].Export, st["db"].Volumes[1].Export)
	}
	d.wantOK(adm.CmdPrimary, "r0")
	one := 1
	if r := d.call(adm.Request{Cmd: adm.CmdDetach, Resource: "db", Volume: &one}); !r.OK {
		t.Fatal(r.Error)
	}
	st = d.status()
	if st["r0"].Role != "Primary" || st["db"].Volumes[0].Disk != "UpToDate" || st["db"].Volumes[1].Disk != "Diskless" {
		t.Errorf("after primary and detach: %+v", st)
	}
	seven := 7
	if r := d.call(adm.Request{Cmd: adm.CmdDetach, Resource: "db", Volume: &seven}); r.Code != 10 || r.Number != 127 {
		t.Errorf("unknown volume: %+v", r)
	}
	if r := d.call(adm.Request{Cmd: adm.CmdPrimary, Resource: "nosuch"}); r.Code != 10 || r.Number != 158 || !strings.Contains(r.Error, "Unknown resource") {
		t.Errorf("unknown resource: %+v", r)
	}
	d.wantOK(adm.CmdDown, "nosuch")
	d.wantOK(adm.CmdDown, "db")
	if st := d.status()["db"]; st.State != adm.StateDown || len(st.Volumes) != 2 {
		t.Errorf("after down: %+v", st)
	}
	if r := d.call(adm.Request{Cmd: adm.CmdPrimary, Resource: "db"}); r.Code != 10 || !strings.Contains(r.Advice, "polluxadm up db") {
		t.Errorf("command for a resource that is down: %+v", r)
	}
	d.wantOK(adm.CmdUp, "db")
	if st := d.status()["db"]; st.State != adm.StateUp {
		t.Errorf("after up: %+v", st)
	}
}

func TestRefusalReachesTheClient(t *testing.T) {
	w := newFakeWorld()
	d := startDaemon(t, w, "r0.res", resText("r0", 0, 7000, 1))
	w.setFail("primary r0", &adm.Error{Exit: 17, Number: -2, Text: "r0: State change failed: (-2) Need access to UpToDate data", Advice: "connect"})
	r := d.call(adm.Request{Cmd: adm.CmdPrimary, Resource: "r0"})
	want := adm.Response{V: 1, ID: 1, Code: 17, Number: -2, Error: "r0: State change failed: (-2) Need access to UpToDate data", Advice: "connect"}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
}

// TestBrokenResource: one that can't come up says why and harms no other, and
// leaves nothing half-done behind.
func TestBrokenResource(t *testing.T) {
	w := newFakeWorld()
	w.setFail("attach db", &adm.Error{Exit: 10, Number: 119, Text: "db: Failure: (119) No valid meta-data signature found.", Advice: "polluxadm create-md db"})
	d := startDaemon(t, w, "r0.res", resText("r0", 0, 7000, 1), "db.res", resText("db", 10, 7001, 2))
	st := d.status()
	if st["r0"].State != adm.StateUp {
		t.Errorf("the good one: %+v", st["r0"])
	}
	if st["db"].State != adm.StateFailed || !strings.Contains(st["db"].Reason, "(119)") || st["db"].Advice != "polluxadm create-md db" {
		t.Errorf("the broken one: %+v", st["db"])
	}
	if !w.engine("db").closed {
		t.Error("the engine of the failed resource was not closed")
	}
	if r := d.call(adm.Request{Cmd: adm.CmdPrimary, Resource: "db"}); r.OK || !strings.Contains(r.Advice, "(119)") {
		t.Errorf("command for it: %+v", r)
	}
	w.setFail("attach db", nil)
	d.wantOK(adm.CmdUp, "db")
	w.setFail("connect db", errors.New("port in use"))
	d.wantOK(adm.CmdDown, "db")
	if r := d.call(adm.Request{Cmd: adm.CmdUp, Resource: "db"}); r.OK || r.Code != 10 {
		t.Errorf("up with a failing connect: %+v", r)
	}
	w.setFail("connect db", nil)
	d.wantOK(adm.CmdUp, "db") // its exports must be free again
}

func TestBadConfigurationStartsNothing(t *testing.T) {
	dir := newTestDir(t)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pollux.toml", settingsText)
	write("a.res", resText("r0", 0, 7000, 1))
	write("b.res", "resource r1 {\n\tdevise minor 1;\n}\n")
	_, err := load(filepath.Join(dir, "pollux.toml"), true)
	if err == nil || !strings.Contains(err.Error(), "b.res:2:") {
		t.Errorf("got %v", err)
	}
	if _, err := load(filepath.Join(dir, "missing.toml"), true); err == nil {
		t.Error("a pollux.toml that was named and is missing was accepted")
	}
	if _, err := load(filepath.Join(dir, "missing.toml"), false); err != nil && !strings.Contains(err.Error(), "pollux.d") {
		t.Errorf("a default pollux.toml may be missing: %v", err)
	}
	var out, errOut bytes.Buffer
	if code := Main([]string{"--check", "--config", filepath.Join(dir, "pollux.toml")}, &out, &errOut); code != 10 || !strings.Contains(errOut.String(), "b.res:2:") {
		t.Errorf("polluxd --check: %d %s", code, errOut.String())
	}
	if code := Main([]string{"--nonsense"}, &out, &errOut); code != 1 {
		t.Errorf("bad flag: %d", code)
	}
	if code := Main([]string{"extra"}, &out, &errOut); code != 1 {
		t.Errorf("extra argument: %d", code)
	}
}

func TestOneDaemonPerDirectory(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 1))
	try := func(name, settings string) error {
		d.write(name, settings)
		l, err := load(d.path(name), true)
		if err != nil {
			t.Fatal(err)
		}
		return run(context.Background(), l, zerolog.Nop(), hooks{engines: d.world.make})
	}
	if err := try("same.toml", settingsText); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another polluxd (process %d)", os.Getpid())) {
		t.Errorf("the same state directory: %v", err)
	}
	if err := try("socket.toml", strings.Replace(settingsText, `"state"`, `"state2"`, 1)); err == nil || !strings.Contains(err.Error(), "polluxd.sock is in use by another process") {
		t.Errorf("the same control socket: %v", err)
	}
	if st := d.status(); st["r0"].State != adm.StateUp {
		t.Errorf("the first daemon suffered: %+v", st)
	}
}

func TestSockets(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 1))
	for _, name := range []string{"polluxd.sock", "nbd.sock"} {
		fi, err := os.Stat(d.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, fi.Mode())
		}
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if got := d.world.calls[len(d.world.calls)-1]; got != "close r0" {
		t.Errorf("the last call was %q", got)
	}
	// What a killed daemon leaves behind is replaced, what is no socket is not.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path("polluxd.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	d.start()
	d.status()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d.write("polluxd.sock", "precious")
	if _, err := listenAdmin(d.path("polluxd.sock")); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a plain file in the way: %v", err)
	}
}

func TestGarbageOnTheControlSocket(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 1))
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00\xff\n", `{"v":99,"id":1,"cmd":"status"}` + "\n", strings.Repeat("x", adm.MaxRequest+1)} {
		c := d.dial()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, garbage); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c) // ends because the daemon closes
		if err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatalf("%.20q: the connection was not closed: %v", garbage, err)
		}
		if err == nil && !strings.Contains(string(answer), `"ok":false`) {
			t.Errorf("%.20q: answer %s", garbage, answer)
		}
	}
	if n := strings.Count(d.log.String(), "connection closed: bad request"); n != 4 {
		t.Errorf("%d reasons were logged, want 4", n)
	}
	d.status() // still there
}

func TestEventStream(t *testing.T) {
	w := newFakeWorld()
	d := startDaemon(t, w, "r0.res", resText("r0", 0, 7000, 1), "db.res", resText("db", 10, 7001, 1))
	c := d.dial()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	send(t, c, adm.Request{Cmd: adm.CmdEvents, Resource: "r0"})
	lines := adm.NewLineReader(c, adm.MaxResponse)
	if _, err := lines.Line(); err != nil {
		t.Fatal(err)
	}
	next := func() adm.Event {
		t.Helper()
		line, err := lines.Line()
		if err != nil {
			t.Fatal(err)
		}
		ev, err := adm.DecodeEvent(line)
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	if ev := next(); ev.Kind != adm.EventStatus || ev.Name != "r0" {
		t.Fatalf("first event %+v", ev)
	}
	if ev := next(); ev.Kind != adm.EventReady {
		t.Fatalf("second event %+v", ev)
	}
	d.wantOK(adm.CmdPrimary, "db") // not asked for
	d.wantOK(adm.CmdPrimary, "r0")
	for ev := next(); ev.Resource.Role != "Primary"; ev = next() {
		if ev.Name != "r0" {
			t.Fatalf("event of %s", ev.Name)
		}
	}
	if err := os.Remove(d.path("r0.res")); err != nil {
		t.Fatal(err)
	}
	d.wantOK(adm.CmdReload, "")
	for ev := next(); ev.Kind != adm.EventGone; ev = next() {
		if ev.Kind != adm.EventStatus {
			t.Fatalf("%+v", ev)
		}
	}
	if err := d.stop(); err != nil { // ends the stream
		t.Fatal(err)
	}
	if _, err := lines.Line(); err == nil {
		t.Error("the stream outlived the daemon")
	}
}

func TestReload(t *testing.T) {
	w := newFakeWorld()
	d := startDaemon(t, w, "r0.res", resText("r0", 0, 7000, 1), "db.res", resText("db", 10, 7001, 1))
	before := slices.Clone(w.calls)

	// A broken file: everything stays, and the reason is told.
	d.write("new.res", "resource new {")
	if r := d.call(adm.Request{Cmd: adm.CmdReload}); r.OK || r.Code != 10 || !strings.Contains(r.Error, "new.res:1:") {
		t.Fatalf("reload with a broken file: %+v", r)
	}
	if diff := cmp.Diff(before, w.calls); diff != "" {
		t.Errorf("a refused reload did something: %s", diff)
	}
	d.hup <- os.Interrupt // any signal: the test's own channel
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(d.log.String(), "reload failed: the old configuration stays in force"); {
		if time.Now().After(deadline) {
			t.Fatal("the signal did not lead to a refused reload")
		}
		time.Sleep(time.Millisecond) // or the reload would see the files half written below
	}
	d.write("new.res", resText("new", 20, 7002, 1))
	if err := os.Remove(d.path("db.res")); err != nil {
		t.Fatal(err)
	}
	d.write("r0.res", strings.Replace(resText("r0", 0, 7000, 1), "\ton alpha", "\tnet { protocol A; }\n\ton alpha", 1))
	d.wantOK(adm.CmdReload, "")
	st := d.status()
	if _, ok := st["db"]; ok || st["new"].State != adm.StateUp || len(st) != 2 {
		t.Errorf("after the reload: %+v", st)
	}
	if !slices.Contains(w.calls, "reconfigure r0") {
		t.Errorf("r0 was not reconfigured: %v", w.calls)
	}
	// A resource in use stays although it is configured no more.
	d.wantOK(adm.CmdPrimary, "new")
	release, err := (&fakeBackend{w.engine("new")}).Open(exportClient)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.path("new.res")); err != nil {
		t.Fatal(err)
	}
	if r := d.call(adm.Request{Cmd: adm.CmdReload}); r.OK || !strings.Contains(r.Error, "new is no longer configured but can't be taken down") {
		t.Errorf("reload with a removed resource in use: %+v", r)
	}
	if d.status()["new"].State != adm.StateUp {
		t.Error("the resource in use is gone")
	}
	release()
	d.wantOK(adm.CmdReload, "")
	if _, ok := d.status()["new"]; ok {
		t.Error("the removed resource is still there")
	}
	// What needs a restart says so.
	d.write("pollux.toml", strings.Replace(settingsText, `"alpha"`, `"bravo"`, 1))
	if r := d.call(adm.Request{Cmd: adm.CmdReload}); r.OK || !strings.Contains(r.Error, "node-name can't be changed while polluxd runs") {
		t.Errorf("changed node-name: %+v", r)
	}
	d.write("pollux.toml", settingsText)
	d.write("r0.res", resText("r0", 0, 7999, 1))
	d.wantOK(adm.CmdAdjust, "r0")
	if got := d.status()["r0"].Address; got != "127.0.0.1:7999" {
		t.Errorf("address after adjust: %s", got)
	}
	d.write("r0.res", resText("r0", 9, 7999, 1))
	if r := d.call(adm.Request{Cmd: adm.CmdAdjust, Resource: "r0"}); r.OK || !strings.Contains(r.Error, "(device, disk or meta-disk) can't be changed while the resource is up") {
		t.Errorf("changed device: %+v", r)
	}
	d.wantOK(adm.CmdDown, "r0")
	d.wantOK(adm.CmdUp, "r0")
	if got := d.status()["r0"].Volumes[0].Minor; got != 9 {
		t.Errorf("minor after down and up: %d", got)
	}
}

func TestHeldOpen(t *testing.T) {
	w := newFakeWorld()
	d := startDaemon(t, w, "r0.res", resText("r0", 0, 7000, 1))
	d.wantOK(adm.CmdPrimary, "r0")
	release, err := (&fakeBackend{w.engine("r0")}).Open(exportClient)
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []adm.Command{adm.CmdSecondary, adm.CmdDown} {
		if r := d.call(adm.Request{Cmd: cmd, Resource: "r0"}); r.Code != 11 || r.Number != -12 {
			t.Errorf("%s while open: %+v", cmd, r)
		}
	}
	release()
	d.wantOK(adm.CmdSecondary, "r0")
	d.wantOK(adm.CmdDown, "r0")
	d.wantOK(adm.CmdDown, "r0")
}

func TestHello(t *testing.T) {
	d := startDaemon(t, newFakeWorld(), "r0.res", resText("r0", 0, 7000, 1))
	var h adm.Hello
	if err := json.Unmarshal(d.call(adm.Request{Cmd: adm.CmdHello}).Data, &h); err != nil {
		t.Fatal(err)
	}
	if h.Node != "alpha" || h.Protocol != adm.Version || h.PID != os.Getpid() || h.BootID == "" || len(h.ConfigFiles) != 1 ||
		len(h.NBDListen) != 1 || h.NBDListen[0] != "unix:"+d.path("nbd.sock") {
		t.Errorf("%+v", h)
	}
}

func TestHandlerEnv(t *testing.T) {
	dir := newTestDir(t)
	if err := os.WriteFile(filepath.Join(dir, "pollux.toml"), []byte(settingsText), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "db.res"), []byte(resText("db", 10, 7001, 2)), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := load(filepath.Join(dir, "pollux.toml"), true)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"DRBD_RESOURCE=db", "DRBD_CONF=" + filepath.Join(dir, "db.res"), "DRBD_MINOR=10 11", "DRBD_VOLUME=0 1",
		"DRBD_LL_DISK=/nonexistent/db0 /nonexistent/db1", "DRBD_PEER=bravo", "DRBD_PEERS=bravo", "DRBD_PEER_AF=ipv4", "DRBD_PEER_ADDRESS=127.0.0.2",
	}
	if diff := cmp.Diff(want, l.specs[0].HandlerEnv()); diff != "" {
		t.Error(diff)
	}
}

func TestComponentsStopInReverse(t *testing.T) {
	var got []string
	part := func(name string, fail bool) component {
		return component{name, func() (func(), error) {
			if fail {
				return nil, errors.New(name + " is broken")
			}
			got = append(got, "+"+name)
			return func() { got = append(got, "-"+name) }, nil
		}}
	}
	stop, err := startAll([]component{part("a", false), part("b", false)}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := startAll([]component{part("c", false), part("d", true), part("e", false)}, zerolog.Nop()); err == nil {
		t.Error("a failing component was ignored")
	}
	if diff := cmp.Diff([]string{"+a", "+b", "-b", "-a", "+c", "-c"}, got); diff != "" {
		t.Error(diff)
	}
}
