package fence_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/fence"
)

// xmlMetadata is what the made-up agent prints.
const xmlMetadata = `<?xml version="1.0" ?>
<resource-agent name="fence_fake" shortdesc="a fake">
<parameters>
 <parameter name="action" required="1"><content type="string" default="reboot" /></parameter>
 <parameter name="ip" required="1"><content type="string" /></parameter>
 <parameter name="ipport" required="0"><content type="integer" default="623" /></parameter>
 <parameter name="password" required="0"><content type="string" /></parameter>
 <parameter name="lanplus" required="0"><content type="boolean" default="0" /></parameter>
 <parameter name="auth" required="0"><content type="select"><option value="md5" /><option value="none" /></content></parameter>
</parameters>
<actions><action name="on" /><action name="off" /><action name="status" /><action name="monitor" /><action name="metadata" /></actions>
</resource-agent>`

// fake writes an agent: a shell script that has $action, and $dir to work in. It
// keeps what it got on its command line and its standard input.
func fake(t *testing.T, script string) (program, dir string) {
	t.Helper()
	dir = t.TempDir()
	program = filepath.Join(dir, "fence_fake")
	text := fmt.Sprintf(`#!/bin/sh
dir=%s
cat >"$dir/stdin"; echo "$@" >"$dir/args"
action=$(sed -n 's/^action=//p' "$dir/stdin")
echo "$action" >>"$dir/actions"
if [ "$action" = metadata ]; then cat <<'XML'
%s
XML
exit 0; fi
%s
`, dir, xmlMetadata, script)
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return program, dir
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func devices(t *testing.T, program string, options map[string]string) *fence.Devices {
	t.Helper()
	d, err := fence.New([]fence.Device{{Node: "b", Agent: program, Options: options, Timeout: 5 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestStatus: only a clear answer counts as off.
func TestStatus(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         fence.Power
	}{
		{"on", `echo "Status: ON"; exit 0`, fence.On},
		{"off", `echo "Status: OFF"; exit 2`, fence.Off},
		{"bad options end with the same code as off", `echo "ERROR: Parse error" >&2; exit 2`, fence.Unknown},
		{"off in words, on by the code", `echo "Status: OFF"; exit 0`, fence.Unknown},
		{"on in words, off by the code", `echo "Status: ON"; exit 2`, fence.Unknown},
		{"no connection", `echo "Unable to connect" >&2; exit 1`, fence.Unknown},
		{"killed by a signal", `kill -9 $$`, fence.Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			program, _ := fake(t, c.script)
			got, err := devices(t, program, nil).Status(t.Context(), "b")
			if got != c.want || (err != nil) != (c.want == fence.Unknown) {
				t.Errorf("Status = %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

// TestOff: what the action says does not count, what status says does.
func TestOff(t *testing.T) {
	for _, c := range []struct {
		name, script, wrong string
	}{
		{"at once", `case $action in off) touch "$dir/off";; status) [ -f "$dir/off" ] && { echo Status: OFF; exit 2; }; echo Status: ON;; esac`, ""},
		{"late", `case $action in status) n=$(grep -c status "$dir/actions"); [ "$n" -gt 2 ] && { echo Status: OFF; exit 2; }; echo Status: ON;; esac`, ""},
		{"the action complains, and it is off", `case $action in off) exit 1;; status) echo Status: OFF; exit 2;; esac`, ""},
		{"the action fails", `case $action in off) echo no power control >&2; exit 1;; status) echo Status: ON;; esac`, "no power control"},
		{"the action lies", `case $action in off) echo Success: Powered OFF;; status) echo Status: ON;; esac`, `"on" all the time`},
		{"nobody knows", `case $action in off) exit 0;; status) echo board is gone >&2; exit 1;; esac`, "board is gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program, _ := fake(t, c.script)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // a busy machine starts three programs in it
			defer cancel()
			err := devices(t, program, nil).Off(ctx, "b")
			switch {
			case c.wrong == "" && err != nil:
				t.Errorf("Off: %v", err)
			case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
				t.Errorf("Off: %v, want an error with %q", err, c.wrong)
			}
		})
	}
	if err := devices(t, "/bin/true", nil).Off(t.Context(), "c"); err == nil {
		t.Error("a node without a device was switched off")
	}
}

// TestTwoDevices: a host with two power supplies is off when both are.
func TestTwoDevices(t *testing.T) {
	off, _ := fake(t, `[ $action = status ] && { echo Status: OFF; exit 2; }; exit 0`)
	on, _ := fake(t, `[ $action = status ] && echo Status: ON; exit 0`)
	for _, c := range []struct {
		agents []string
		want   fence.Power
	}{{[]string{off, off}, fence.Off}, {[]string{off, on}, fence.On}, {[]string{off, "/bin/false"}, fence.Unknown}} {
		var all []fence.Device
		for _, a := range c.agents {
			all = append(all, fence.Device{Node: "b", Agent: a})
		}
		d, err := fence.New(all)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if got, _ := d.Status(ctx, "b"); got != c.want {
			t.Errorf("Status of %v = %v, want %v", c.agents, got, c.want)
		}
		if err := d.Off(ctx, "b"); (err == nil) != (c.want == fence.Off) {
			t.Errorf("Off of %v: %v", c.agents, err)
		}
		cancel()
	}
}

// TestHangs: an agent that hangs is killed with all that it started.
func TestHangs(t *testing.T) {
	program, dir := fake(t, `sleep 1000 & echo $! >"$dir/child"; wait`)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	power, err := devices(t, program, nil).Status(ctx, "b")
	if power != fence.Unknown || err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("Status = %v, %v", power, err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it was cut off after %v", took)
	}
	child, err := strconv.Atoi(strings.TrimSpace(read(t, dir, "child")))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the kernel reaps it
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if syscall.Kill(child, 0) != nil || err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its child still runs")
		}
	}
}

// TestSecrets: options go over standard input, and a password is never shown.
func TestSecrets(t *testing.T) {
	program, dir := fake(t, `echo "login as admin with hush-hush failed" >&2; exit 3`)
	d := devices(t, program, map[string]string{"ip": "10.0.0.1", "password": "hush-hush"})
	_, err := d.Status(t.Context(), "b")
	if err == nil || strings.Contains(err.Error(), "hush-hush") || !strings.Contains(err.Error(), "login as admin with *** failed") {
		t.Errorf("Status: %v", err)
	}
	if got := read(t, dir, "args"); got != "\n" {
		t.Errorf("command line: %q", got)
	}
	want := "ip=10.0.0.1\npassword=hush-hush\nnodename=b\naction=status\n"
	if got := read(t, dir, "stdin"); got != want {
		t.Errorf("standard input: %q, want %q", got, want)
	}
	if env := strings.Join(os.Environ(), " "); strings.Contains(env, "hush-hush") {
		t.Error("the password is in the environment")
	}
}

// TestOptions: what the agent would not understand is found before it counts.
func TestOptions(t *testing.T) {
	program, _ := fake(t, "exit 0")
	for _, c := range []struct{ name, value, wrong string }{
		{"", "", ""},
		{"ipport", "9623", ""},
		{"auth", "md5", ""},
		{"lanplus", "1", ""},
		{"ip_addr", "x", `no option "ip_addr"`},
		{"ipport", "none", "a number"},
		{"auth", "md4", "one of md5, none"},
		{"lanplus", "maybe", "1 or 0"},
	} {
		options := map[string]string{"ip": "10.0.0.1"}
		if c.name != "" {
			options[c.name] = c.value
		}
		err := devices(t, program, options).Validate(t.Context(), "b")
		if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s=%s: %v, want %q", c.name, c.value, err, c.wrong)
		}
	}
	if err := devices(t, program, nil).Validate(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), `needs the option "ip"`) {
		t.Errorf("without ip: %v", err)
	}
	for _, d := range []fence.Device{
		{Node: "b", Agent: "fence_nothing"},
		{Node: "b"},
		{Agent: program},
		{Node: "b", Agent: program, Options: map[string]string{"action": "off"}},
		{Node: "b", Agent: program, Options: map[string]string{"ip": "1\naction=on"}},
	} {
		if _, err := fence.New([]fence.Device{d}); err == nil {
			t.Errorf("New accepts %+v", d)
		}
	}
}

// TestSelfTest: the tests run by themselves, and their results can be had.
func TestSelfTest(t *testing.T) {
	program, dir := fake(t, `[ $action = monitor ] && [ -f "$dir/ill" ] && exit 1; [ $action = status ] && echo Status: ON; exit 0`)
	d := devices(t, program, map[string]string{"ip": "1"})
	if got := d.Tests(); len(got) != 1 || !got[0].At.IsZero() || got[0].Node != "b" {
		t.Errorf("before the first test: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.SelfTest(ctx, 20*time.Millisecond)
	}()
	wait := func(what string, ok func(fence.Test) bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(d.Tests()[0]); time.Sleep(5 * time.Millisecond) { // it runs by its own clock
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, d.Tests())
			}
		}
	}
	wait("well", func(r fence.Test) bool { return !r.At.IsZero() && r.Err == nil && r.Power == fence.On })
	if err := os.WriteFile(filepath.Join(dir, "ill"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wait("ill", func(r fence.Test) bool { return r.Err != nil })
	cancel()
	<-ended
	if got := read(t, dir, "actions"); strings.Contains(got, "off") || strings.Contains(got, "on\n") && strings.Contains(got, "\non\n") {
		t.Errorf("a self-test switched something: %q", got)
	}
}
