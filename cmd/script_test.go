// Package cmd holds the tests of the programs as users run them: real
// processes, files and sockets.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pollux-project/pollux/cmd/internal/adm"
	"github.com/pollux-project/pollux/cmd/internal/daemon"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"polluxd": func() { os.Exit(daemon.Main(os.Args[1:], os.Stdout, os.Stderr)) },
		"polluxadm": func() {
			os.Exit(adm.Main(context.Background(), os.Args[1:], adm.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
	})
}

// TestScripts runs two nodes on this machine, in the directories a and b of
// each script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"nodes":  makeNodes,
			"status": exitStatus,
			"poll":   poll,
		},
	})
}

// makeNodes: nodes SIZE. Configures the resource r0 on two nodes with disks
// of SIZE bytes: a/pollux.toml is alpha, b/pollux.toml is bravo.
func makeNodes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: nodes SIZE")
	}
	size, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	port := freePort(ts)
	for _, n := range []struct{ dir, name string }{{"a", "alpha"}, {"b", "bravo"}} {
		ts.Check(os.MkdirAll(ts.MkAbs(n.dir), 0o700))
		ts.Check(os.WriteFile(ts.MkAbs(n.dir+"/pollux.toml"), fmt.Appendf(nil, "node-name = %q\nresource-files = [\"../*.res\"]\ndrbd-conf = \"\"\n"+
			"vm-files = [\"*.vm.toml\"]\ncontrol-socket = \"polluxd.sock\"\nstate-dir = \"state\"\nnbd.socket = \"nbd.sock\"\nlog.level = \"debug\"\n", n.name), 0o600))
		ts.Check(os.WriteFile(ts.MkAbs(n.dir+"/disk"), nil, 0o600))
		ts.Check(os.Truncate(ts.MkAbs(n.dir+"/disk"), size))
	}
	ts.Check(os.WriteFile(ts.MkAbs("r0.res"), fmt.Appendf(nil, `resource r0 {
	device minor 0; meta-disk internal;
	disk { c-max-rate 4194304; c-plan-ahead 0; resync-rate 4194304; }
	net { ping-timeout 10; }
	on alpha { disk %s; address 127.0.0.1:%d; }
	on bravo { disk %s; address 127.0.0.2:%d; }
}
`, ts.MkAbs("a/disk"), port, ts.MkAbs("b/disk"), port), 0o600))
}

// freePort finds a port that is free on both nodes' addresses.
func freePort(ts *testscript.TestScript) int {
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		port := l.Addr().(*net.TCPAddr).Port
		m, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port))
		l.Close()
		if err == nil {
			m.Close()
			return port
		}
	}
	ts.Fatalf("no free port")
	return 0
}

// exitStatus: status CODE PROGRAM ARG... checks the exit status.
func exitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE PROGRAM ARG...")
	}
	if got := run(ts, args[1:]); got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

func run(ts *testscript.TestScript, args []string) string {
	err := ts.Exec(args[0], args[1:]...)
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return fmt.Sprint(exit.ExitCode())
	}
	ts.Check(err)
	return "0"
}

// poll: poll CODE PROGRAM ARG... repeats a command until it ends with that
// exit status, for at most 20 seconds.
func poll(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: poll CODE PROGRAM ARG...")
	}
	deadline := time.Now().Add(20 * time.Second)
	for run(ts, args[1:]) != args[0] {
		if time.Now().After(deadline) {
			ts.Fatalf("still not %s after 20 s", args[0])
		}
		time.Sleep(50 * time.Millisecond) // real processes: there is nothing to wait on
	}
}
