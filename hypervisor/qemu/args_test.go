package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pollux-project/pollux/hypervisor"
)

func TestArgs(t *testing.T) {
	g := hypervisor.Guest{
		Name: "web", MemoryBytes: 512 << 20, VCPUs: 2,
		Disks: []hypervisor.Disk{
			{Socket: "/run/a,b/nbd.sock", Export: "web-root"},
			{Socket: "/run/nbd.sock", Export: "web-data-with-a-long-name/1", ReadOnly: true},
			{Socket: "/run/nbd.sock", Export: "web-log/0@17"},
			{Path: "/nonexistent/swap"},
		},
		Boot: hypervisor.Boot{Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", Cmdline: "root=/dev/vda ro"},
		Networks: []hypervisor.Network{
			{Kind: hypervisor.UserNetwork},
			{Kind: hypervisor.BridgeNetwork, Bridge: "br0", MAC: "52:54:00:00:00:01"},
		},
		ConsoleLog: "/var/log/web,1.console",
		ExtraArgs:  []string{"-no-reboot"},
	}
	p := paths{pid: "/run/vm/web/pid", monitor: "/run/vm/web/qmp", events: "/run/vm/web/ev,1", agent: "/run/vm/web/agent", log: "/run/vm/web/log"}
	got, err := args(g, p, []string{"-accel", "tcg,thread=multi", "-cpu", "max"}, 300*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(`
-name guest=web,debug-threads=on
-nodefaults
-no-user-config
-display none
-machine q35
-m size=512M
-smp 2
-accel tcg,thread=multi
-cpu max
-rtc base=utc
-object rng-random,id=rng,filename=/dev/urandom
-device virtio-rng-pci,rng=rng
-chardev socket,id=qmp,path=/run/vm/web/qmp,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev file,id=console,path=/var/log/web,,1.console,append=on
-serial chardev:console
-kernel /boot/vmlinuz
-initrd /boot/initrd
-append root=/dev/vda ro
-blockdev {"cache":{"direct":false,"no-flush":false},"detect-zeroes":"off","discard":"unmap","driver":"nbd","export":"web-root","node-name":"disk0","open-timeout":10,"read-only":false,"reconnect-delay":300,"server":{"path":"/run/a,b/nbd.sock","type":"unix"}}
-device {"drive":"disk0","driver":"virtio-blk-pci","id":"vd0","rerror":"stop","serial":"web-root","werror":"stop","write-cache":"on"}
-blockdev {"cache":{"direct":false,"no-flush":false},"detect-zeroes":"off","discard":"unmap","driver":"nbd","export":"web-data-with-a-long-name/1","node-name":"disk1","open-timeout":10,"read-only":true,"reconnect-delay":300,"server":{"path":"/run/nbd.sock","type":"unix"}}
-device {"drive":"disk1","driver":"virtio-blk-pci","id":"vd1","rerror":"stop","serial":"web-data-with-a-long","werror":"stop","write-cache":"on"}
-blockdev {"cache":{"direct":false,"no-flush":false},"detect-zeroes":"off","discard":"unmap","driver":"nbd","export":"web-log/0@17","node-name":"disk2","open-timeout":10,"read-only":false,"reconnect-delay":300,"server":{"path":"/run/nbd.sock","type":"unix"}}
-device {"drive":"disk2","driver":"virtio-blk-pci","id":"vd2","rerror":"stop","serial":"web-log/0","werror":"stop","write-cache":"on"}
-blockdev {"cache":{"direct":false,"no-flush":false},"detect-zeroes":"off","discard":"unmap","driver":"raw","file":{"driver":"file","filename":"/nonexistent/swap"},"node-name":"disk3","read-only":false}
-device {"drive":"disk3","driver":"virtio-blk-pci","id":"vd3","rerror":"stop","serial":"local3","werror":"stop","write-cache":"on"}
-netdev user,id=net0
-device virtio-net-pci,netdev=net0
-netdev bridge,id=net1,br=br0
-device virtio-net-pci,netdev=net1,mac=52:54:00:00:00:01
-chardev socket,id=events,path=/run/vm/web/ev,,1,server=on,wait=off
-mon chardev=events,mode=control
-device virtio-serial-pci,id=serial0
-chardev socket,id=agent,path=/run/vm/web/agent,server=on,wait=off
-device virtserialport,bus=serial0.0,chardev=agent,name=org.qemu.guest_agent.0
-device pvpanic
-device i6300esb,id=watchdog
-action panic=shutdown,watchdog=reset
-sandbox on,obsolete=deny,resourcecontrol=deny
-pidfile /run/vm/web/pid
-D /run/vm/web/log
-daemonize
-no-reboot
`), "\n")
	if diff := cmp.Diff(want, options(got)); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
}

// options joins each option with its value.
func options(argv []string) (lines []string) {
	for _, a := range argv {
		if strings.HasPrefix(a, "-") {
			lines = append(lines, a)
		} else {
			lines[len(lines)-1] += " " + a
		}
	}
	return lines
}

func TestFirmwareBootsFirstDisk(t *testing.T) {
	g := hypervisor.Guest{Disks: []hypervisor.Disk{{Export: "a"}, {Export: "b"}}, Boot: hypervisor.Boot{Firmware: "/fw"}}
	argv, err := args(g, paths{}, nil, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(argv, " ")
	for _, want := range []string{"-bios /fw", "-boot strict=on", `{"bootindex":1,"drive":"disk0"`} {
		if !strings.Contains(line, want) {
			t.Errorf("args = %s, want %s in it", line, want)
		}
	}
	if strings.Count(line, "bootindex") != 1 {
		t.Errorf("args = %s, want one boot disk", line)
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct{ in, want string }{{"abcd", "abcd"}, {"abcde", "abcd"}, {"abcß", "abc"}, {"", ""}} {
		if got := cut(tt.in, 4); got != tt.want {
			t.Errorf("cut(%q, 4) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestAccel(t *testing.T) {
	no := errors.New("none here")
	tcg, kvm := "-accel tcg,thread=multi -cpu max", "-accel kvm -cpu host"
	for _, tt := range []struct {
		accel  hypervisor.Accel
		usable error
		want   string
	}{
		{"", nil, kvm},
		{"", no, tcg},
		{hypervisor.AccelAuto, nil, kvm},
		{hypervisor.AccelAuto, no, tcg},
		{hypervisor.AccelTCG, nil, tcg},
		{hypervisor.AccelTCG, no, tcg},
		{hypervisor.AccelKVM, nil, kvm},
		{hypervisor.AccelKVM, no, ""},
	} {
		got, err := accelArgs(tt.accel, tt.usable)
		if strings.Join(got, " ") != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("accelArgs(%q, %v) = %q, %v, want %q", tt.accel, tt.usable, got, err, tt.want)
		}
	}
}

func TestKVMUsable(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	device := file("kvm", "")
	for _, tt := range []struct{ name, device, cpuinfo, want string }{
		{"intel", device, "processor : 0\nflags\t\t: fpu vmx sse\n", ""},
		{"amd", device, "flags : fpu svm\n", ""},
		{"no device", filepath.Join(dir, "none"), "flags : vmx\n", "has no"},
		{"PVM in a virtual machine", device, "flags : fpu hypervisor vmx_like\nflags : vmx\n", "neither vmx nor svm"},
		{"no flags at all", device, "Features : fp asimd\n", "neither vmx nor svm"},
	} {
		err := kvmUsable(tt.device, file("cpuinfo", tt.cpuinfo))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: kvmUsable = %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{RunDir: "/run/vm"}, ""},
		{Config{}, "absolute"},
		{Config{RunDir: "vm"}, "absolute"},
		{Config{RunDir: "/run/vm", ReconnectDelay: time.Millisecond}, "whole seconds"},
		{Config{RunDir: "/run/vm", ReconnectDelay: -time.Second}, "whole seconds"},
		{Config{RunDir: "/run/vm", Binary: "/usr/bin/kvm"}, "starts with qemu"},
	} {
		_, err := New(tt.cfg)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v) = %v, want %q", tt.cfg, err, tt.want)
		}
	}
}

func TestSaid(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if got := said("", log); got != "no reason given" {
		t.Errorf("said() without a word = %q", got)
	}
	if err := os.WriteFile(log, []byte("qemu-system-x86_64: two\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := said("qemu-system-x86_64: one\n", log), "one; two"; got != want {
		t.Errorf("said() = %q, want %q", got, want)
	}
	if got := said(strings.Repeat("x", 2*maxMessage), log); len(got) > maxMessage+len("…") {
		t.Errorf("said() has %d bytes", len(got))
	}
}
