package hypervisor_test

import (
	"strings"
	"testing"

	"github.com/pollux-project/pollux/hypervisor"
)

func TestGuestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*hypervisor.Guest)
		want   string // "" = valid
	}{
		{"as it is", func(*hypervisor.Guest) {}, ""},
		{"no name", func(g *hypervisor.Guest) { g.Name = "" }, "name"},
		{"name with a path", func(g *hypervisor.Guest) { g.Name = "../web" }, "name"},
		{"name too long", func(g *hypervisor.Guest) { g.Name = strings.Repeat("x", 64) }, "name"},
		{"no memory", func(g *hypervisor.Guest) { g.MemoryBytes = 0 }, "memory"},
		{"memory in MiB", func(g *hypervisor.Guest) { g.MemoryBytes = 512 }, "memory"},
		{"no CPU", func(g *hypervisor.Guest) { g.VCPUs = 0 }, "vcpus"},
		{"relative console", func(g *hypervisor.Guest) { g.ConsoleLog = "console" }, "absolute"},
		{"relative socket", func(g *hypervisor.Guest) { g.Disks[0].Socket = "nbd.sock" }, "disk 0: NBD socket"},
		{"no export", func(g *hypervisor.Guest) { g.Disks[0].Export = "" }, "export"},
		{"export with a zero", func(g *hypervisor.Guest) { g.Disks[0].Export = "a\x00b" }, "export"},
		{"too many disks", func(g *hypervisor.Guest) { g.Disks = make([]hypervisor.Disk, 25) }, "at most 24"},
		{"relative kernel", func(g *hypervisor.Guest) { g.Boot.Kernel = "vmlinuz" }, "kernel"},
		{"initrd without kernel", func(g *hypervisor.Guest) { g.Boot.Initrd = "/initrd" }, "need a kernel"},
		{"nothing to boot", func(g *hypervisor.Guest) { g.Disks = nil }, "nothing to boot"},
		{"diskless", func(g *hypervisor.Guest) { g.Disks = nil; g.Boot.Kernel = "/vmlinuz" }, ""},
		{"network", func(g *hypervisor.Guest) { g.Networks = []hypervisor.Network{{Kind: "tap"}} }, "network 0: kind"},
		{"bridge", func(g *hypervisor.Guest) { g.Networks = []hypervisor.Network{{Kind: "bridge"}} }, "bridge"},
		{"bad MAC", func(g *hypervisor.Guest) {
			g.Networks = []hypervisor.Network{{Kind: "user", MAC: "52:54"}}
		}, "MAC"},
		{"group MAC", func(g *hypervisor.Guest) {
			g.Networks = []hypervisor.Network{{Kind: "user", MAC: "01:00:5e:00:00:01"}}
		}, "MAC"},
		{"good MAC", func(g *hypervisor.Guest) {
			g.Networks = []hypervisor.Network{{Kind: "user", MAC: "52:54:00:00:00:01"}}
		}, ""},
		{"local disk", func(g *hypervisor.Guest) { g.Disks[0] = hypervisor.Disk{Path: "/x"} }, ""},
		{"relative local disk", func(g *hypervisor.Guest) { g.Disks[0] = hypervisor.Disk{Path: "x"} }, "absolute"},
		{"both kinds of disk", func(g *hypervisor.Guest) { g.Disks[0].Path = "/x" }, "want one of the two"},
		{"units", func(g *hypervisor.Guest) { *g = hypervisor.Guest{Name: "db", Units: []string{"mysql.service"}} }, ""},
		{"unit", func(g *hypervisor.Guest) { g.Units = []string{"--now.service"} }, "name of a systemd unit"},
		{"mount", func(g *hypervisor.Guest) {
			g.Units, g.Mounts = []string{"mysql.service"}, []hypervisor.Mount{{Device: "drbd0", Dir: "/x", Type: "ext4"}}
		}, "want absolute paths"},
		{"accel", func(g *hypervisor.Guest) { g.Accel = "xen" }, "accel"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := hypervisor.Guest{
				Name: "web", MemoryBytes: 1 << 30, VCPUs: 1,
				Disks: []hypervisor.Disk{{Socket: "/run/nbd.sock", Export: "web-root/0"}},
			}
			tt.change(&g)
			err := g.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate = %v, want %q", err, tt.want)
			}
		})
	}
}
