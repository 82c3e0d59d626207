package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pollux-project/pollux/hypervisor"
)

// Limits of QEMU and of the kernel.
const (
	maxSerial   = 20  // bytes; VIRTIO_BLK_ID_BYTES of the virtio specification
	maxSunPath  = 107 // bytes of a unix socket's path; sun_path holds 108 with its zero
	bootFirst   = 1   // bootindex of the disk that the firmware boots
	openTimeout = 10  // seconds that a starting QEMU tries to reach the NBD server
)

// args returns QEMU's command line for g, without the program's name. It
// depends on its arguments, and on whether a local disk is a device.
func args(g hypervisor.Guest, p paths, accel []string, reconnect time.Duration) ([]string, error) {
	a := []string{
		"-name", "guest=" + escape(g.Name) + ",debug-threads=on",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35",
		"-m", "size=" + strconv.FormatInt(g.MemoryBytes>>20, 10) + "M",
		"-smp", strconv.Itoa(g.VCPUs),
	}
	a = append(a, accel...)
	a = append(a, "-rtc", "base=utc",
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
		"-chardev", "socket,id=qmp,path="+escape(p.monitor)+",server=on,wait=off", "-mon", "chardev=qmp,mode=control")
	if g.ConsoleLog != "" {
		a = append(a, "-chardev", "file,id=console,path="+escape(g.ConsoleLog)+",append=on", "-serial", "chardev:console")
	}
	a = append(a, bootArgs(g.Boot)...)
	for i, d := range g.Disks {
		disk, err := diskArgs(i, d, g.Boot.Kernel == "", reconnect)
		if err != nil {
			return nil, err
		}
		a = append(a, disk...)
	}
	for i, n := range g.Networks {
		a = append(a, networkArgs(i, n)...)
	}
	a = append(a, serviceArgs(p)...)
	// spawn and elevateprivileges can't be denied: -daemonize forks and calls
	// setsid under the filter already, and a bridge needs QEMU's setuid helper.
	a = append(a, "-sandbox", "on,obsolete=deny,resourcecontrol=deny",
		"-pidfile", p.pid, "-D", p.log, "-daemonize")
	return append(a, g.ExtraArgs...), nil
}

func bootArgs(b hypervisor.Boot) []string {
	var a []string
	if b.Firmware != "" {
		a = append(a, "-bios", b.Firmware)
	}
	if b.Kernel == "" {
		return append(a, "-boot", "strict=on")
	}
	a = append(a, "-kernel", b.Kernel)
	if b.Initrd != "" {
		a = append(a, "-initrd", b.Initrd)
	}
	if b.Cmdline != "" {
		a = append(a, "-append", b.Cmdline)
	}
	return a
}

// diskArgs joins one NBD export, or a local disk, to the guest as a virtio disk.
//
// The guest must never see an error only because the daemon is away for a
// moment: requests wait for the reconnection. When that takes too long, or the
// volume refuses (frozen, demoted), QEMU stops the guest's CPUs (werror and
// rerror = stop) and keeps the failed requests for Resume. Reporting the error
// would make the guest's filesystem go read-only, although nothing is lost.
//
// The write cache is on and flushes are passed through: the guest orders its
// writes, and the volume decides what a flush means.
func diskArgs(i int, d hypervisor.Disk, boots bool, reconnect time.Duration) ([]string, error) {
	node := fmt.Sprintf("disk%d", i)
	block := map[string]any{
		"node-name": node, "read-only": d.ReadOnly, "discard": "unmap", "detect-zeroes": "off",
		"cache": map[string]any{"direct": false, "no-flush": false},
	}
	if d.Path != "" {
		block["driver"], block["file"] = "raw", map[string]any{"driver": fileDriver(d.Path), "filename": d.Path}
	} else {
		block["driver"], block["export"] = "nbd", d.Export
		block["server"] = map[string]any{"type": "unix", "path": d.Socket}
		block["reconnect-delay"], block["open-timeout"] = int64(reconnect/time.Second), openTimeout
	}
	// The incarnation changes with each start; what the guest calls its disk must not.
	serial, _, _ := strings.Cut(d.Export, "@")
	if d.Serial != "" {
		serial = d.Serial
	} else if d.Path != "" {
		serial = fmt.Sprintf("local%d", i)
	}
	device := map[string]any{
		"driver": "virtio-blk-pci", "id": fmt.Sprintf("vd%d", i), "drive": node, "serial": cut(serial, maxSerial),
		"write-cache": "on", "werror": "stop", "rerror": "stop",
	}
	if boots && i == 0 {
		device["bootindex"] = bootFirst
	}
	b, err := json.Marshal(block)
	if err != nil {
		return nil, fmt.Errorf("disk %d: %w", i, err)
	}
	dev, err := json.Marshal(device)
	if err != nil {
		return nil, fmt.Errorf("disk %d: %w", i, err)
	}
	return []string{"-blockdev", string(b), "-device", string(dev)}, nil
}

func networkArgs(i int, n hypervisor.Network) []string {
	netdev := fmt.Sprintf("user,id=net%d", i)
	if n.Kind == hypervisor.BridgeNetwork {
		netdev = fmt.Sprintf("bridge,id=net%d,br=%s", i, n.Bridge)
	}
	card := fmt.Sprintf("virtio-net-pci,netdev=net%d", i)
	if n.MAC != "" {
		card += ",mac=" + n.MAC
	}
	return []string{"-netdev", netdev, "-device", card}
}

// serviceArgs are what the manager needs: a second monitor for Watch, the
// channel of the guest's agent, and the devices by which a guest reports a panic
// and feeds a watchdog, if it does. A guest that panics is ended, one that does
// not feed its watchdog any more is reset: QEMU's defaults, but said.
// They come behind disks and cards, whose PCI addresses are then those that
// they had before these existed.
func serviceArgs(p paths) []string {
	return []string{
		"-chardev", "socket,id=events,path=" + escape(p.events) + ",server=on,wait=off", "-mon", "chardev=events,mode=control",
		"-device", "virtio-serial-pci,id=serial0",
		"-chardev", "socket,id=agent,path=" + escape(p.agent) + ",server=on,wait=off",
		"-device", "virtserialport,bus=serial0.0,chardev=agent,name=" + agentPort,
		"-device", "pvpanic", "-device", "i6300esb,id=watchdog", "-action", "panic=shutdown,watchdog=reset",
	}
}

// fileDriver: QEMU has one driver for files and one for block devices.
func fileDriver(path string) string {
	if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeDevice != 0 {
		return "host_device"
	}
	return "file"
}

// escape doubles commas: in QEMU's option lists a single one ends a value.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) string {
	for len(s) > n {
		r := []rune(s)
		s = string(r[:len(r)-1])
	}
	return s
}
