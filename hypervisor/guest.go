package hypervisor

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
)

// Limits of a description. They only catch slips such as a missing unit.
const (
	minMemoryBytes = 1 << 20
	maxVCPUs       = 1024
	maxDisks       = 24
)

// namePattern allows what is safe in a file name, an option and an export name.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Guest describes a virtual machine completely; nothing of it is kept by the
// adapter after Start. Paths must be absolute.
type Guest struct {
	Name        string // letters, digits, ".", "_", "-"; at most 63
	MemoryBytes int64  // a multiple of 1 MiB
	VCPUs       int
	Disks       []Disk // in the guest's order: the first is vda
	Boot        Boot
	Networks    []Network
	ConsoleLog  string // the serial console is appended to this file; "" = dropped
	Accel       Accel
	ExtraArgs   []string // handed to the hypervisor's command line as they are, last

	// Units are systemd units that run instead of a machine, in the order of
	// their start; then only Name, Mounts and Disks (for State) count.
	Units  []string
	Mounts []Mount // before the first unit starts, in this order
}

// Disk is one virtio disk, on an NBD export or on a file of this machine.
type Disk struct {
	Socket   string // path of the unix socket of the NBD server
	Export   string // export name; what follows an "@" is the incarnation
	Path     string // a file or block device of this machine instead of the two above; see PrepareLocalDisk
	ReadOnly bool
	Serial   string // shown to the guest (/dev/disk/by-id/virtio-SERIAL), cut to 20 bytes; "" = Export without its incarnation
}

// Mount is a file system that units need.
type Mount struct {
	Device  string // block device of this machine
	Dir     string // exists
	Type    string // "ext4"
	Options string // of mount(8); "" = none
}

// Boot says where the guest's first instruction comes from. Kernel set: that
// kernel is loaded directly. Otherwise the firmware boots from the first disk.
type Boot struct {
	Kernel   string
	Initrd   string
	Cmdline  string
	Firmware string // firmware image; "" = the hypervisor's own BIOS
}

// NetworkKind says what a virtual network card is plugged into.
type NetworkKind string

// The kinds of network.
const (
	UserNetwork   NetworkKind = "user"   // outgoing only, needs no privileges
	BridgeNetwork NetworkKind = "bridge" // a bridge of this machine
)

// Network is one virtio network card.
type Network struct {
	Kind   NetworkKind
	Bridge string // name of the bridge, for BridgeNetwork
	MAC    string // "" = chosen by the hypervisor; give one, or the guest's address changes with the node
}

// Accel says how the guest's CPU is made.
type Accel string

// The ways. The zero value is AccelAuto.
const (
	AccelAuto Accel = "auto" // KVM where it is really usable, else TCG
	AccelKVM  Accel = "kvm"  // KVM or an error
	AccelTCG  Accel = "tcg"  // emulation
)

// Validate says what of the description can't be run. It looks at the
// description only, not at the machine.
func (g Guest) Validate() error {
	switch {
	case !namePattern.MatchString(g.Name):
		return fmt.Errorf("name %q: want letters, digits, '.', '_' or '-', at most 63, starting with a letter or digit", g.Name)
	case len(g.Units) > 0:
		return g.validateUnits()
	case g.MemoryBytes < minMemoryBytes || g.MemoryBytes%(1<<20) != 0:
		return fmt.Errorf("memory %d bytes: want a multiple of 1 MiB", g.MemoryBytes)
	case g.VCPUs < 1 || g.VCPUs > maxVCPUs:
		return fmt.Errorf("vcpus %d: want 1 to %d", g.VCPUs, maxVCPUs)
	case len(g.Disks) > maxDisks:
		return fmt.Errorf("%d disks: at most %d", len(g.Disks), maxDisks)
	case g.ConsoleLog != "" && !filepath.IsAbs(g.ConsoleLog):
		return fmt.Errorf("console log %q: want an absolute path", g.ConsoleLog)
	}
	for i, d := range g.Disks {
		if err := d.validate(); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
	}
	for i, n := range g.Networks {
		if err := n.validate(); err != nil {
			return fmt.Errorf("network %d: %w", i, err)
		}
	}
	switch g.Accel {
	case "", AccelAuto, AccelKVM, AccelTCG:
	default:
		return fmt.Errorf("accel %q: want auto, kvm or tcg", g.Accel)
	}
	return g.Boot.validate(len(g.Disks))
}

// unitPattern: names of systemd.unit(5), without what would be an option or a path.
var unitPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9:_.@\\-]{0,254}$`)

func (g Guest) validateUnits() error {
	for _, u := range g.Units {
		if !unitPattern.MatchString(u) || !strings.Contains(u, ".") {
			return fmt.Errorf("unit %q: want the name of a systemd unit such as mysql.service", u)
		}
	}
	for _, m := range g.Mounts {
		if !filepath.IsAbs(m.Device) || !filepath.IsAbs(m.Dir) || m.Type == "" {
			return fmt.Errorf("mount of %q at %q: want absolute paths and a type", m.Device, m.Dir)
		}
	}
	return nil
}

// ValidName tells whether name can name a VM.
func ValidName(name string) bool { return namePattern.MatchString(name) }

func (d Disk) validate() error {
	switch {
	case d.Path != "" && (d.Socket != "" || d.Export != ""):
		return fmt.Errorf("found the path %q beside an NBD export: want one of the two", d.Path)
	case d.Path != "" && !filepath.IsAbs(d.Path):
		return fmt.Errorf("path %q: want an absolute path", d.Path)
	case d.Path != "":
		return nil
	case !filepath.IsAbs(d.Socket):
		return fmt.Errorf("NBD socket %q: want an absolute path", d.Socket)
	case d.Export == "":
		return errors.New("the export name is empty")
	case len(d.Export) > 4096 || strings.ContainsRune(d.Export, 0):
		return fmt.Errorf("export name %.64q: longer than 4096 bytes, or holds a zero byte", d.Export)
	}
	return nil
}

func (n Network) validate() error {
	switch n.Kind {
	case UserNetwork:
	case BridgeNetwork:
		if !namePattern.MatchString(n.Bridge) {
			return fmt.Errorf("bridge %q: want the name of a bridge of this machine", n.Bridge)
		}
	default:
		return fmt.Errorf("kind %q: want user or bridge", n.Kind)
	}
	if n.MAC == "" {
		return nil
	}
	hw, err := net.ParseMAC(n.MAC)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
		return fmt.Errorf("MAC address %q: want six bytes of a single card, such as 52:54:00:12:34:56", n.MAC)
	}
	return nil
}

func (b Boot) validate(disks int) error {
	for _, f := range []struct{ what, path string }{{"kernel", b.Kernel}, {"initrd", b.Initrd}, {"firmware", b.Firmware}} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			return fmt.Errorf("%s %q: want an absolute path", f.what, f.path)
		}
	}
	switch {
	case b.Kernel == "" && (b.Initrd != "" || b.Cmdline != ""):
		return errors.New("initrd and cmdline need a kernel")
	case b.Kernel == "" && disks == 0:
		return errors.New("nothing to boot: neither a kernel nor a disk")
	}
	return nil
}
