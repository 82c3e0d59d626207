package conf

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// VM is the description of a virtual machine, one *.vm.toml file each, or of
// systemd units that take its place. The same file has to be on both nodes.
// Relative paths count from the directory of the file. An unknown key is an
// error.
type VM struct {
	// name is what commands call the machine: letters, digits, ".", "_" and
	// "-", at most 48 of them, not beginning with "-" or ".". Required.
	Name string `toml:"name"`

	// resources lists what the machine's disks are, in the order in which it
	// sees them (vda, vdb, ...): RESOURCE for volume 0, or RESOURCE/VOLUME.
	// Each becomes a virtio disk on the resource's NBD export. All resources
	// are promoted before the machine starts. Required, one at least.
	Resources []string `toml:"resources"`

	// read-only lists those of resources that the machine cannot write to, in
	// the same spelling. Default: none.
	ReadOnly []string `toml:"read-only"`

	// memory is a number with M or G, for MiB or GiB. Default: "512M".
	Memory Bytes `toml:"memory"`

	// vcpus is the number of virtual processors, 1 to 255. Default: 1.
	VCPUs int `toml:"vcpus"`

	// boot says what is started; see VMBoot. Default: the firmware boots the
	// first disk.
	Boot VMBoot `toml:"boot"`

	// network is "none", "user" (a private network with no way in),
	// "tap:IFNAME" (a tap device that is there already) or "bridge:BRIDGE"
	// (QEMU's bridge helper makes one). Default: "none".
	Network string `toml:"network"`

	// mac is the address of the network card, 02:00:00:00:00:01 for example;
	// it has to be the same on both nodes. Default: derived from the name, so
	// that it is.
	MAC string `toml:"mac"`

	// console is the file that the serial console is appended to. "" discards
	// it. Default: "".
	Console string `toml:"console"`

	// accel is "kvm", "tcg" (slow, works everywhere) or "auto": KVM where it
	// can be used, else TCG. Default: "auto".
	Accel string `toml:"accel"`

	// extra-args are added to the hypervisor's command line behind all others,
	// one argument an element; there is no shell. Default: none.
	ExtraArgs []string `toml:"extra-args"`

	// graceful says whether stop first presses the machine's power button and
	// waits; false powers it off at once. Default: true.
	Graceful bool `toml:"graceful"`

	// stop-timeout is how long a graceful stop may last before the machine is
	// powered off: a number with "s" or "m". Default: "60s".
	StopTimeout Duration `toml:"stop-timeout"`

	// start-timeout is how long a start may last until the monitor finds it
	// well: a number with "s" or "m", at least 1s. Default: "60s".
	StartTimeout Duration `toml:"start-timeout"`

	// hypervisor is what runs the machine: "qemu". Default: "qemu"; "systemd"
	// for units.
	Hypervisor string `toml:"hypervisor"`

	// units are systemd units that run instead of a machine, on the node that
	// is Primary for resources; they are started in this order and stopped in
	// the reverse one. None of them may be enabled. The keys of a machine (memory
	// to graceful, read-only, local-disk) can't be beside them. Default: none.
	Units []string `toml:"units"`

	// mount lists the volumes that units need mounted; see VMMount. It needs
	// attach-device in pollux.toml. Default: none.
	Mounts []VMMount `toml:"mount"`

	// nodes are the two nodes that have the data. Default: the hosts of the
	// resources.
	Nodes []string `toml:"nodes"`

	// prefer gives nodes a worth, 0 to 1000000: of two that may start it the
	// one with more does. Default: all 0.
	Prefer map[string]int `toml:"prefer"`

	// stickiness is what staying where it runs is worth, in the unit of prefer,
	// or "infinite". Default: "infinite", 0 with failback = "window".
	Stickiness Stickiness `toml:"stickiness"`

	// failback says when it goes back to a preferred node that has returned:
	// "never", "manual" (status says that it could) or "window". It is a planned
	// move then. Default: "manual".
	Failback string `toml:"failback"`

	// failback-window is when: see Window. Default: none.
	FailbackWindow Window `toml:"failback-window"`

	// failsafe has it run on, wherever it runs, while the arbiter is away, whatever
	// becomes of the other node: that one promises, on its disk, not to take over before
	// both have met again, not even if this node is lost meanwhile. For a cluster whose
	// arbiter is etcd or a witness. Default: false.
	Failsafe bool `toml:"failsafe"`

	// target-role is "running" or "stopped": what holds until an operator has
	// said start or stop, which is remembered. Default: "running".
	TargetRole string `toml:"target-role"`

	// restart says what is done if it dies on a node that is well; see VMRestart.
	Restart VMRestart `toml:"restart"`

	// monitor says how it is found to be ill; see VMMonitor.
	Monitor VMMonitor `toml:"monitor"`

	// local-disk lists disks that are not replicated; see VMLocalDisk. They come
	// behind those of resources. Default: none.
	LocalDisks []VMLocalDisk `toml:"local-disk"`

	// ips lists addresses that follow it, added before the hooks run and
	// removed before the Primary role is given up; see VMIP. Default: none.
	IPs []VMIP `toml:"ips"`

	// hooks are run when something has happened; see Hooks.
	Hooks Hooks `toml:"hooks"`

	// max-loss-bytes is how much of what was acknowledged a takeover may lose
	// under protocol A or B, a number with K, M or G: the Primary acknowledges
	// nothing beyond it. Both bounds are needed there for an automatic takeover.
	// Default: none.
	MaxLossBytes Bytes `toml:"max-loss-bytes"`

	// max-loss-seconds is the same as a time, 1 to 86400. Default: none.
	MaxLossSeconds int `toml:"max-loss-seconds"`

	// File is the absolute path it was read from.
	File string `toml:"-"`

	keys map[string][]Pos
	text []byte
}

// Text is what it was read from.
func (v *VM) Text() string { return string(v.text) }

// VMBoot is the table [boot] of a VM's description. With a kernel the
// hypervisor loads that, else the firmware boots the first disk.
type VMBoot struct {
	// kernel is the path of a kernel image on the host. Default: "".
	Kernel string `toml:"kernel"`

	// initrd is the path of its initial RAM disk; needs kernel. Default: "".
	Initrd string `toml:"initrd"`

	// cmdline is the kernel's command line; needs kernel. Default: "".
	Cmdline string `toml:"cmdline"`

	// firmware is the path of a firmware image, for UEFI; not with kernel.
	// "" is the hypervisor's own (BIOS). Default: "".
	Firmware string `toml:"firmware"`
}

// Bytes is a size of memory in bytes, written as "512M" or "2G".
type Bytes uint64

// UnmarshalText reads the TOML form.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := string(text)
	n, ok := ParseNumber(s, Byte)
	if !ok || s == "" || isDigit(s[len(s)-1]) || s[len(s)-1] == 's' {
		return fmt.Errorf("found %q, expected a number with M or G such as \"512M\"", s)
	}
	*b = Bytes(n)
	return nil
}

// String gives the form that UnmarshalText reads, in MiB, or in KiB if it is
// no whole number of MiB.
func (b Bytes) String() string {
	if b%(1<<20) != 0 {
		return strconv.FormatUint(uint64(b)>>10, 10) + "K"
	}
	return strconv.FormatUint(uint64(b)>>20, 10) + "M"
}

// Duration is a time written as "60s", "2m" or "500ms".
type Duration struct{ time.Duration }

// UnmarshalText reads the TOML form.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("found %q, expected a time with its unit such as \"60s\"", text)
	}
	d.Duration = v
	return nil
}

// Limits of a VM. Memory: a kernel doesn't start in less; the rest is
// generous.
const (
	minVMMemory = 16 << 20
	maxVMMemory = 16 << 40
	maxVCPUs    = 255
	maxVMName   = 48
	maxIfName   = 15 // IFNAMSIZ less the final zero
	maxVMDisks  = 24 // vda to vdx
	maxStopTime = 24 * time.Hour
)

// DefaultVM is a description with nothing in it; it lacks a name and
// resources.
func DefaultVM() *VM {
	return &VM{
		Memory: 512 << 20, VCPUs: 1, Network: "none", Accel: "auto", Graceful: true,
		StopTimeout: Duration{60 * time.Second}, StartTimeout: Duration{60 * time.Second},
		Stickiness: StickinessInfinite, Failback: "manual", TargetRole: "running",
		Restart: VMRestart{Limit: 3, Within: Duration{10 * time.Minute}, BackOff: Duration{5 * time.Second}},
		Monitor: VMMonitor{Kind: "process", Interval: Duration{10 * time.Second}, Timeout: Duration{5 * time.Second}, Failures: 3},
		Hooks:   DefaultHooks(),
	}
}

// LoadVM reads the description of a VM. The error is an ErrorList, a
// *ParseError, or wraps the file system's.
func LoadVM(path string) (*VM, error) {
	src, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("read the description of a VM: %w", err)
	}
	return ParseVM(path, src)
}

// ParseVM is LoadVM for a text; path is for messages and relative paths.
func ParseVM(path string, src []byte) (*VM, error) {
	v := DefaultVM()
	f, err := decodeTOML(path, src, v)
	if err != nil {
		return nil, err
	}
	v.File, v.keys, v.text = path, f.keys, src
	for _, p := range []*string{&v.File, &v.Boot.Kernel, &v.Boot.Initrd, &v.Boot.Firmware, &v.Console} {
		f.absPath(p)
	}
	for i := range v.LocalDisks {
		f.absPath(&v.LocalDisks[i].Path)
	}
	v.check(f)
	if err := f.err(); err != nil {
		return nil, err
	}
	v.settle(f)
	return v, nil
}

// LoadVMs reads all descriptions that the patterns match, sorted by name.
// Two machines of one name, or one disk that two machines write to, are
// errors.
func LoadVMs(patterns []string, env Env) ([]*VM, error) {
	files, err := ExpandGlobs(patterns, env)
	if err != nil {
		return nil, err
	}
	var vms []*VM
	for _, path := range files {
		v, err := LoadVM(path)
		if err != nil {
			return nil, err
		}
		vms = append(vms, v)
	}
	var rep report
	for _, c := range VMConflicts(vms) {
		var e *ParseError
		if errors.As(c.Errs[1], &e) {
			rep.errs = append(rep.errs, e)
		}
	}
	slices.SortFunc(vms, func(a, b *VM) int { return strings.Compare(a.Name, b.Name) })
	return vms, rep.err()
}

// A VMDisk is one disk of a VM.
type VMDisk struct {
	Resource string
	Volume   int
	ReadOnly bool
}

// Export is the name of the NBD export of the disk: RESOURCE/VOLUME.
func (d VMDisk) Export() string { return d.Resource + "/" + strconv.Itoa(d.Volume) }

// Disks returns the disks in their order. The VM has to be valid.
func (v *VM) Disks() []VMDisk {
	disks := make([]VMDisk, 0, len(v.Resources))
	for _, text := range v.Resources {
		name, volume, ok := parseVolumeName(text)
		if ok {
			disks = append(disks, VMDisk{Resource: name, Volume: volume, ReadOnly: slices.Contains(v.ReadOnly, text)})
		}
	}
	return disks
}

// parseVolumeName reads RESOURCE or RESOURCE/VOLUME.
func parseVolumeName(text string) (name string, volume int, ok bool) {
	name, number, has := strings.Cut(text, "/")
	if has {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > maxVolume || strconv.Itoa(n) != number {
			return "", 0, false
		}
		volume = n
	}
	return name, volume, name != "" && !strings.ContainsAny(name, " \t\n\"")
}

// CheckResources compares the disks with the resources of this node. The
// error is an ErrorList at the places in the VM's file.
func (v *VM) CheckResources(c *Config) error {
	var rep report
	pos := v.place("resources")
	seen := map[string]bool{}
	for _, d := range v.Disks() {
		r := c.Resource(d.Resource)
		if r == nil || !r.Runnable() {
			rep.errorf(pos, "resources: resource %q of VM %s is %v%s", d.Resource, v.Name, ErrUnknownResource, DidYouMean(d.Resource, c.Names()))
			continue
		}
		has := func(x *VolumeSection) bool { return x.Number == d.Volume }
		if !slices.ContainsFunc(effectiveVolumes(r, r.Local()), has) {
			rep.errorf(pos, "resources: resource %q of VM %s has no volume %d", d.Resource, v.Name, d.Volume)
		}
		if !seen[r.Name] {
			v.checkNodes(&rep, r)
		}
		seen[r.Name] = true
	}
	return rep.err()
}

// place is where a key stands in the VM's file.
func (v *VM) place(key ...string) Pos {
	f := &tomlFile{name: orDefault(v.File, "vm.toml"), keys: v.keys}
	return f.at(key...)
}

// Validate checks a VM that was made or changed by a program.
func (v *VM) Validate() error {
	f := &tomlFile{name: orDefault(v.File, "vm.toml"), keys: v.keys}
	v.check(f)
	return f.err()
}

func (v *VM) check(f *tomlFile) {
	if !validVMName(v.Name) {
		f.errorf(f.at("name"), "name: found %q, expected 1 to %d letters, digits, \".\", \"_\" and \"-\", the first a letter, a digit or \"_\"", v.Name, maxVMName)
	}
	v.checkDisks(f)
	if v.Memory < minVMMemory || v.Memory > maxVMMemory || v.Memory%(1<<20) != 0 {
		f.errorf(f.at("memory"), "memory: found %d bytes, expected whole MiB from %dM to %dG", v.Memory, minVMMemory>>20, maxVMMemory>>30)
	}
	if v.VCPUs < 1 || v.VCPUs > maxVCPUs {
		f.errorf(f.at("vcpus"), "vcpus: found %d, expected 1 to %d", v.VCPUs, maxVCPUs)
	}
	if v.Boot.Kernel == "" && (v.Boot.Initrd != "" || v.Boot.Cmdline != "") {
		f.errorf(f.at("boot"), "boot: found initrd or cmdline without kernel, expected kernel beside them")
	}
	if v.Boot.Kernel != "" && v.Boot.Firmware != "" {
		f.errorf(f.at("boot", "firmware"), "boot: found kernel and firmware, expected one of them")
	}
	v.checkNetwork(f)
	f.oneOf(v.Accel, []string{"auto", "kvm", "tcg"}, "accel")
	v.checkHA(f)
	if v.StopTimeout.Duration < 0 || v.StopTimeout.Duration > maxStopTime {
		f.errorf(f.at("stop-timeout"), "stop-timeout: found %v, expected 0s to %v", v.StopTimeout, maxStopTime)
	}
	for _, s := range slices.Concat(v.ExtraArgs, []string{v.Boot.Cmdline, v.Console}) {
		if strings.ContainsRune(s, 0) {
			f.errorf(f.at("extra-args"), "found a zero character in %q, expected text that can be an argument", s)
		}
	}
}

func validVMName(s string) bool {
	if s == "" || len(s) > maxVMName || s[0] == '-' || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		if !isWordByte(s[i]) || s[i] == '/' {
			return false
		}
	}
	return true
}

func (v *VM) checkDisks(f *tomlFile) {
	if len(v.Resources) == 0 || len(v.Resources) > maxVMDisks {
		f.errorf(f.at("resources"), "resources: found %d, expected 1 to %d: each becomes a disk of the machine", len(v.Resources), maxVMDisks)
	}
	seen := map[string]bool{}
	for _, text := range v.Resources {
		name, volume, ok := parseVolumeName(text)
		if !ok {
			f.errorf(f.at("resources"), "resources: found %q, expected RESOURCE or RESOURCE/VOLUME", text)
			continue
		}
		id := name + "/" + strconv.Itoa(volume)
		if seen[id] {
			f.errorf(f.at("resources"), "resources: %s is listed twice", id)
		}
		seen[id] = true
	}
	for _, text := range v.ReadOnly {
		if !slices.Contains(v.Resources, text) {
			f.errorf(f.at("read-only"), "read-only: found %q, expected one of resources: %s", text, strings.Join(v.Resources, ", "))
		}
	}
}

func (v *VM) checkNetwork(f *tomlFile) {
	kind, name, has := strings.Cut(v.Network, ":")
	switch {
	case !has && (kind == "none" || kind == "user"):
	case has && (kind == "tap" || kind == "bridge"):
		if name == "" || len(name) > maxIfName || strings.ContainsAny(name, "/ \t\n,=") {
			f.errorf(f.at("network"), "network: found %q, expected the name of an interface of 1 to %d characters behind %q", v.Network, maxIfName, kind+":")
		}
	default:
		f.errorf(f.at("network"), "network: found %q, expected \"none\", \"user\", \"tap:IFNAME\" or \"bridge:BRIDGE\"", v.Network)
	}
	if v.MAC == "" {
		return
	}
	mac, err := net.ParseMAC(v.MAC)
	if err != nil || len(mac) != 6 {
		f.errorf(f.at("mac"), "mac: found %q, expected six bytes such as 02:00:00:00:00:01", v.MAC)
	} else if mac[0]&1 != 0 {
		f.errorf(f.at("mac"), "mac: found %q, a multicast address, expected an even first byte", v.MAC)
	}
}

// NetworkKind splits network into its kind ("none", "user", "tap", "bridge")
// and the interface or bridge, "" for the first two.
func (v *VM) NetworkKind() (kind, name string) {
	kind, name, _ = strings.Cut(v.Network, ":")
	return kind, name
}

// derivedMAC makes a locally administered address of a name. FNV-1a, as the
// same name has to give the same address on both nodes and in all versions.
func derivedMAC(name string) string {
	sum := uint64(14695981039346656037)
	for i := range len(name) {
		sum = (sum ^ uint64(name[i])) * 1099511628211
	}
	return fmt.Sprintf("02:70:%02x:%02x:%02x:%02x", byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
}
