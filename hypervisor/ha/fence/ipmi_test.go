package fence_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-project/pollux/hypervisor/ha/fence"
)

// board is a management board: OpenIPMI's simulator on loopback, with a file that
// stands for the host's power.
type board struct {
	port int
	on   string // exists while the host has power
}

// newBoard starts the simulator, speaking IPMI 2.0 (lanplus) with one user.
func newBoard(t *testing.T) board {
	t.Helper()
	for _, name := range []string{"ipmi_sim", "ipmitool", "/usr/sbin/fence_ipmilan"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("%s is not installed: run scripts/bootstrap", name)
		}
	}
	dir := t.TempDir()
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := board{port: free.LocalAddr().(*net.UDPAddr).Port, on: filepath.Join(dir, "on")}
	free.Close()
	write := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("on", "", 0o600)
	power := write("power", fmt.Sprintf(`#!/bin/sh
case "$1 $2 $3" in
"get power "*) [ -f %[1]s ] && echo power:1 || echo power:0 ;;
"set power 0") rm -f %[1]s ;;
"set power 1") touch %[1]s ;;
esac
`, b.on), 0o755)
	conf := write("lan.conf", fmt.Sprintf(`name "suite"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %d
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  user 2 true "admin" "s3cret" admin 10
  chassis_control "%s"
`, b.port, power), 0o600)
	commands := write("suite.emu", "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n", 0o600)
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	sim := exec.Command("ipmi_sim", "-n", "-c", conf, "-f", commands, "-s", state)
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sim.Process.Kill() // it may have ended
		_ = sim.Wait()         // by the signal
	})
	return b
}

func (b board) options() map[string]string {
	return map[string]string{
		"ip": "127.0.0.1", "ipport": fmt.Sprint(b.port), "username": "admin", "password": "s3cret", "lanplus": "1", "cipher": "3",
	}
}

func (b board) isOn() bool {
	_, err := os.Stat(b.on)
	return err == nil
}

// TestIPMI has the real fence_ipmilan switch a host off and on.
func TestIPMI(t *testing.T) {
	b := newBoard(t)
	ctx := t.Context()
	d, err := fence.New([]fence.Device{{Node: "b", Agent: "fence_ipmilan", Options: b.options()}})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for r := d.Test(ctx, "b"); r.Err != nil || r.Power != fence.On; r = d.Test(ctx, "b") { // the simulator starts
		if time.Now().After(deadline) {
			t.Fatalf("self-test: %+v", r)
		}
	}
	if !b.isOn() {
		t.Fatal("the self-test switched the host off")
	}
	began := time.Now()
	if err := d.Off(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	t.Logf("off, and confirmed, after %v", time.Since(began).Round(10*time.Millisecond))
	if b.isOn() {
		t.Fatal("Off was confirmed, and the host has power")
	}
	if p, err := d.Status(ctx, "b"); p != fence.Off || err != nil {
		t.Errorf("Status = %v, %v", p, err)
	}
	if err := d.Off(ctx, "b"); err != nil {
		t.Errorf("Off of a host that is off: %v", err)
	}
	if err := d.Reboot(ctx, "b"); err != nil || !b.isOn() {
		t.Errorf("Reboot: %v; power %v", err, b.isOn())
	}
}

// TestIPMIRefused: what the real agent can't do is told, without the password.
func TestIPMIRefused(t *testing.T) {
	b := newBoard(t)
	for _, c := range []struct {
		name, value, validate string
	}{
		{"password", "wrong-pw", ""},
		{"ipport", "1", ""},
		{"username", "nobody", ""},
		{"lan_plus", "1", `no option "lan_plus"`},
		{"method", "sledge", "one of onoff, cycle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			options := b.options()
			options[c.name] = c.value
			d, err := fence.New([]fence.Device{{Node: "b", Agent: "fence_ipmilan", Options: options, Timeout: 3 * time.Second}})
			if err != nil {
				t.Fatal(err)
			}
			r := d.Test(t.Context(), "b")
			if r.Err == nil || !strings.Contains(r.Err.Error(), c.validate) || strings.Contains(r.Err.Error(), options["password"]) {
				t.Errorf("self-test: %v", r.Err)
			}
			if c.validate == "" {
				if p, err := d.Status(t.Context(), "b"); p != fence.Unknown || err == nil {
					t.Errorf("Status = %v, %v", p, err)
				}
			}
			if !b.isOn() || errors.Is(r.Err, fence.ErrStaysOff) {
				t.Error("the host was switched off")
			}
		})
	}
}
