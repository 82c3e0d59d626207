package adm

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

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/protocol/adm"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"polluxadm": polluxadmForTest})
}

// testNow is the clock of the scripts, so that ages are the same in each run.
var testNow = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func polluxadmForTest() {
	time.Local = time.UTC
	a := &app{
		Stdio: Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, getenv: os.Getenv,
		now:           func() time.Time { return testNow },
		root:          os.Getenv("MACHINE"), // a script's own /proc, /sys and /etc
		newHypervisor: func(dir string) (hypervisor.Hypervisor, error) { return fileHypervisor(dir), nil },
	}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// TestScripts runs the real command line against a daemon that answers as the
// script says.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("POLLUX_CONFIG", filepath.Join(e.WorkDir, "pollux.toml"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fakedaemon":  startFakeDaemon,
			"fakemanager": startFakeManager,
			"status":      exitStatus,
		},
	})
}

// exitStatus runs a program and checks its exit status: status 17 polluxadm ...
func exitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE PROGRAM ARG...")
	}
	got := "0"
	err := ts.Exec(args[1], args[2:]...)
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = fmt.Sprint(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// A fakeDaemon answers status from a file and logs every other request. The
// roles follow primary and secondary, unless the script has the command fail.
type fakeDaemon struct {
	ts *testscript.TestScript

	mu      sync.Mutex
	status  adm.Status
	replies map[string]adm.Response // by "cmd resource"
	log     *os.File
}

// startFakeDaemon: fakedaemon STATUS-FILE [REPLIES-FILE]. Requests are logged
// to requests.log.
func startFakeDaemon(ts *testscript.TestScript, neg bool, args []string) {
	d := &fakeDaemon{ts: ts, replies: map[string]adm.Response{}}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &d.status))
	if len(args) > 1 {
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &d.replies))
	}
	var err error
	d.log, err = os.Create(ts.MkAbs("requests.log"))
	ts.Check(err)
	l, err := net.Listen("unix", ts.MkAbs("polluxd.sock"))
	ts.Check(err)
	var wg sync.WaitGroup
	ts.Defer(func() {
		l.Close()
		wg.Wait()
		d.log.Close()
	})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				d.serve(conn)
			}()
		}
	}()
}

func (d *fakeDaemon) serve(conn net.Conn) {
	defer conn.Close()
	lines := adm.NewLineReader(conn, adm.MaxRequest)
	for {
		line, err := lines.Line()
		if err != nil {
			return
		}
		req, err := adm.DecodeRequest(line)
		if err != nil {
			return
		}
		for _, v := range d.answer(req) {
			out, err := adm.AppendLine(nil, v, adm.MaxResponse)
			if err != nil {
				return
			}
			if _, err := conn.Write(out); err != nil {
				return
			}
		}
	}
}

func (d *fakeDaemon) answer(req adm.Request) []any {
	d.mu.Lock()
	defer d.mu.Unlock()
	resp := adm.Response{V: adm.Version, ID: req.ID, OK: true}
	switch req.Cmd {
	case adm.CmdStatus:
		st := adm.Status{Node: d.status.Node}
		for _, r := range d.status.Resources {
			if req.Resource == "" || req.Resource == r.Name {
				st.Resources = append(st.Resources, r)
			}
		}
		resp.Data, _ = json.Marshal(st) // our own types
		return []any{resp}
	case adm.CmdEvents:
		out := []any{resp}
		for _, r := range d.status.Resources {
			out = append(out, adm.Event{V: 1, Kind: adm.EventStatus, Name: r.Name, Resource: &r})
		}
		return append(out, adm.Event{V: 1, Kind: adm.EventReady})
	}
	fmt.Fprintln(d.log, describe(req.Cmd, target{Resource: req.Resource, Volume: req.Volume}, req.Args))
	if r, ok := d.replies[string(req.Cmd)+" "+req.Resource]; ok {
		r.V, r.ID = adm.Version, req.ID
		return []any{r}
	}
	for i := range d.status.Resources {
		r := &d.status.Resources[i]
		if r.Name == req.Resource && req.Cmd == adm.CmdPrimary {
			r.Role = "Primary"
		}
		if r.Name == req.Resource && req.Cmd == adm.CmdSecondary {
			r.Role = "Secondary"
		}
	}
	return []any{resp}
}

// A fileHypervisor "runs" a VM by writing a file in its directory. A VM whose
// name holds "broken" doesn't start.
type fileHypervisor string

func (f fileHypervisor) path(name string) string { return filepath.Join(string(f), name) }

func (f fileHypervisor) Start(_ context.Context, g hypervisor.Guest) error {
	if err := g.Validate(); err != nil {
		return err
	}
	if strings.Contains(g.Name, "broken") {
		return &hypervisor.VMError{Op: "start", Name: g.Name, Err: errors.New("no such kernel")}
	}
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	b, err := json.MarshalIndent(g, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(f.path(g.Name), append(b, '\n'), 0o600)
}

func (f fileHypervisor) Stop(ctx context.Context, name string, _ time.Duration) error {
	if strings.Contains(name, "stubborn") {
		return &hypervisor.VMError{Op: "stop", Name: name, Err: hypervisor.ErrStillRunning}
	}
	return f.Kill(ctx, name)
}

func (f fileHypervisor) Kill(_ context.Context, name string) error {
	if err := os.Remove(f.path(name)); err != nil {
		return &hypervisor.VMError{Op: "kill", Name: name, Err: hypervisor.ErrNotRunning}
	}
	return nil
}

func (f fileHypervisor) Resume(context.Context, string) error { return nil }

func (f fileHypervisor) AskAgent(context.Context, string) error { return hypervisor.ErrNoAgent }

func (f fileHypervisor) Watch(context.Context, string, func(hypervisor.Event)) error {
	return hypervisor.ErrNotRunning
}

func (f fileHypervisor) State(_ context.Context, name string) (hypervisor.State, error) {
	if _, err := os.Stat(f.path(name)); err != nil {
		return hypervisor.State{Name: name}, nil
	}
	return hypervisor.State{Name: name, Phase: hypervisor.Running, PID: 4711, Since: testNow.Add(-time.Hour)}, nil
}

func (f fileHypervisor) List(ctx context.Context) ([]hypervisor.State, error) {
	var list []hypervisor.State
	entries, err := os.ReadDir(string(f))
	if err != nil {
		return nil, nil
	}
	for _, e := range entries {
		st, _ := f.State(ctx, e.Name()) // never fails
		list = append(list, st)
	}
	return list, nil
}
