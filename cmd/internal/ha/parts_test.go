package ha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/pollux-project/pollux/protocol/adm"
)

// The alarm fires at its time, can be moved both ways, and a past time is now.
func TestAlarm(t *testing.T) {
	var c bootClock
	a, err := c.alarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	start := c.now()
	a.set(start + 3600_000)
	a.set(start + 20)
	<-a.fired()
	if took := c.now() - start; took < 20 {
		t.Errorf("fired after %d ms, want 20", took)
	}
	a.set(start - 1000)
	<-a.fired()
	a.set(start + 3600_000)
	a.set(-1)
	select {
	case <-a.fired():
		t.Error("it fires though it was taken back")
	default:
	}
}

func TestLanes(t *testing.T) {
	var l lanes
	var mu sync.Mutex
	order := map[string][]int{}
	both := make(chan struct{})
	l.do("a", func() { both <- struct{}{} }) // waits for lane b: lanes don't wait for each other
	l.do("b", func() { <-both })
	for i := range 100 {
		for _, lane := range []string{"a", "b"} {
			l.do(lane, func() {
				mu.Lock()
				defer mu.Unlock()
				order[lane] = append(order[lane], i)
			})
		}
	}
	l.wait()
	for lane, got := range order {
		for i, n := range got {
			if n != i {
				t.Fatalf("lane %s ran %v", lane, got)
			}
		}
	}
	if len(order["a"]) != 100 || len(l.queue) != 0 {
		t.Errorf("%d ran, %d lanes are left", len(order["a"]), len(l.queue))
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := store[map[string]int]{path: filepath.Join(dir, "state.json")}
	if v, err := s.load(); err != nil || v != nil {
		t.Fatalf("nothing written yet: %v, %v", v, err)
	}
	if err := s.save(map[string]int{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if v, err := s.load(); err != nil || v["a"] != 1 {
		t.Fatalf("load: %v, %v", v, err)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 {
		t.Errorf("the directory holds %v", left)
	}
	if err := os.WriteFile(s.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(); err == nil || !strings.Contains(err.Error(), "state.json") {
		t.Errorf("a file that is cut: %v", err)
	}
}

func TestEventLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	open := func(full func(error)) *eventLog {
		l, err := openEventLog(path, "a", bootClock{}, full)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open(nil)
	_, more := l.since(0)
	for i := range 3 {
		l.add(adm.HAEvent{Kind: adm.HAEventVM, Text: fmt.Sprint(i)})
	}
	<-more
	l.close()
	// A line that a crash has cut is left out, and numbers go on.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"v":1,"se` + "\n") //nolint:errcheck // the check below misses it
	f.Close()
	full := make(chan error, 2)
	l = open(func(err error) { full <- err })
	defer l.close()
	e := l.add(adm.HAEvent{Kind: adm.HAEventVM, Text: "3"})
	list, _ := l.since(2)
	if e.Seq != 4 || len(list) != 2 || list[0].Text != "2" || list[1].Text != "3" || list[1].Node != "a" {
		t.Errorf("event %d, since 2: %+v", e.Seq, list)
	}
	l.f.Close() // as a disk that takes nothing more
	if l.add(adm.HAEvent{Text: "4"}); <-full == nil {
		t.Error("nobody was told that the log can't be written")
	}
	if list, _ := l.since(4); len(list) != 1 {
		t.Errorf("what can't be written is not in memory either: %v", list)
	}
}

func TestEventLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l, err := openEventLog(path, "a", bootClock{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	text := strings.Repeat("x", 32<<10)
	for range 400 {
		l.add(adm.HAEvent{Text: text})
	}
	l.close()
	total := int64(0)
	for _, p := range []string{path, path + ".1"} {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		total += fi.Size()
	}
	if total > 2*eventFileSize {
		t.Errorf("%d bytes on disk", total)
	}
}

// A disk that does not answer holds up nobody who has something to tell, nor the end.
func TestEventLogOnADiskThatHangs(t *testing.T) {
	full := make(chan error, 2)
	l, err := openEventLog(filepath.Join(t.TempDir(), "events.jsonl"), "a", bootClock{}, func(err error) { full <- err })
	if err != nil {
		t.Fatal(err)
	}
	r, hangs, err := os.Pipe() // nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	l.f.Close()
	l.f = hangs
	text := strings.Repeat("x", 32<<10)
	for range 2 * eventBacklog {
		l.add(adm.HAEvent{Text: text})
	}
	if err := <-full; !errors.Is(err, errStuck) {
		t.Errorf("told of %v", err)
	}
	if list, _ := l.since(0); len(list) != 2*eventBacklog {
		t.Errorf("%d events are in memory", len(list))
	}
	l.close()
	r.Close() // it answers at last
	<-l.ended
}

type fakeHandler struct {
	log  *eventLog
	from caller
}

func (h *fakeHandler) handle(ctx context.Context, from caller, req adm.HARequest, progress func(adm.HAProgress)) (any, error) {
	h.from = from
	switch req.Cmd {
	case adm.HAVMStart:
		progress(adm.HAProgress{Step: "promote", Text: "r0"})
		progress(adm.HAProgress{Step: "start", Text: "web"})
		return nil, nil
	case adm.HAVMStop:
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case adm.HAHello:
		return adm.HAHelloData{Node: "a"}, nil
	default:
		return nil, &adm.Error{Exit: adm.ExitRefused, Text: "web: no", Advice: "wait"}
	}
}

func (h *fakeHandler) since(seq uint64) ([]adm.HAEvent, <-chan struct{}) { return h.log.since(seq) }

func TestServer(t *testing.T) {
	dir := t.TempDir()
	log, err := openEventLog(filepath.Join(dir, "events.jsonl"), "a", bootClock{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer log.close()
	h := &fakeHandler{log: log}
	path := filepath.Join(dir, "ha.sock")
	s, err := listen(path, h, bootClock{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi.Mode(), err)
	}
	dial := func() (net.Conn, *adm.LineReader) {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, adm.NewLineReader(c, adm.MaxResponse)
	}
	conn, lines := dial()
	ask := func(req string) (texts []string, last adm.HAMessage) {
		fmt.Fprintln(conn, req)
		for {
			line, err := lines.Line()
			if err != nil {
				t.Fatalf("%s: %v", req, err)
			}
			if last, err = adm.DecodeHAMessage(line); err != nil {
				t.Fatal(err)
			}
			if last.Progress == nil {
				return texts, last
			}
			texts = append(texts, last.Progress.Step)
		}
	}
	if _, m := ask(`{"v":1,"id":1,"cmd":"hello"}`); !m.OK || !strings.Contains(string(m.Data), `"node":"a"`) {
		t.Errorf("hello: %+v", m)
	}
	if h.from.pid != int32(os.Getpid()) || h.from.uid != uint32(os.Getuid()) {
		t.Errorf("the caller is %+v", h.from)
	}
	if steps, m := ask(`{"v":1,"id":2,"cmd":"vm-start","vm":"web"}`); !m.OK || m.ID != 2 || strings.Join(steps, " ") != "promote start" {
		t.Errorf("start: %v %+v", steps, m)
	}
	if _, m := ask(`{"v":1,"id":3,"cmd":"vm-move","vm":"web"}`); m.OK || m.Advice != "wait" || m.Code != adm.ExitRefused {
		t.Errorf("refusal: %+v", m)
	}

	log.add(adm.HAEvent{Kind: adm.HAEventVM, VM: "web", Text: "one"})
	stream, events := dial()
	fmt.Fprintln(stream, `{"v":1,"id":4,"cmd":"events","args":{"follow":true}}`)
	next := func() string {
		line, err := events.Line()
		if err != nil {
			t.Fatal(err)
		}
		var e adm.HAEvent
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		return e.Kind + e.Text
	}
	if got := []string{next(), next(), next()}; strings.Join(got, " ") != " vmone ready" {
		t.Errorf("stream: %q", got)
	}
	log.add(adm.HAEvent{Kind: adm.HAEventVM, Text: "two"})
	if got := next(); got != "vmtwo" {
		t.Errorf("stream goes on with %q", got)
	}

	// The end of the server ends a command that waits, and answers it.
	fmt.Fprintln(conn, `{"v":1,"id":5,"cmd":"vm-stop","vm":"web"}`)
	time.AfterFunc(10*time.Millisecond, s.close) // whether before or after the request is read, it is answered or the connection ends
	if line, err := lines.Line(); err == nil {
		if m, err := adm.DecodeHAMessage(line); err != nil || m.OK {
			t.Errorf("a command that was cut off: %+v, %v", m, err)
		}
	}
	s.close()
}

func TestServerRefusesBadRequests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ha.sock")
	s, err := listen(path, &fakeHandler{}, bootClock{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, req := range []string{"{", `{"v":1,"cmd":"reboot"}`, strings.Repeat("x", adm.MaxRequest+1)} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(c, req)
		lines := adm.NewLineReader(c, adm.MaxResponse)
		line, err := lines.Line()
		if err != nil {
			t.Fatalf("%.20s: %v", req, err)
		}
		if m, err := adm.DecodeHAMessage(line); err != nil || m.OK || m.Advice == "" {
			t.Errorf("%.20s: %+v, %v", req, m, err)
		}
		if _, err := lines.Line(); err == nil {
			t.Errorf("%.20s: the connection goes on", req)
		}
		c.Close()
	}
}

func TestWatchdogUnconfigured(t *testing.T) {
	w := &watchdog{}
	if err := w.check(); err != nil {
		t.Error(err)
	}
	if err := w.arm("web"); err == nil || !strings.Contains(err.Error(), "ha.watchdog") {
		t.Errorf("arm: %v", err)
	}
	w = &watchdog{path: filepath.Join(t.TempDir(), "none")}
	if err := w.check(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("check: %v", err)
	}
}

// The machine is spared once the last of the VMs is gone that could not be killed.
func TestWatchdogDisarmed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog") // a file takes what the device does
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := &watchdog{path: path}
	for _, vm := range []string{"web", "db"} {
		if err := w.arm(vm); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct{ vm, written string }{{"mail", ""}, {"web", ""}, {"db", "V"}, {"db", "V"}} {
		if err := w.disarm(step.vm); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != step.written {
			t.Errorf("after the end of %s: %q %v, want %q", step.vm, b, err, step.written)
		}
	}
}
