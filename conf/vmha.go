package conf

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Stickiness is what staying where it runs is worth to a VM, in the unit of
// prefer: a number, or StickinessInfinite.
type Stickiness int

// StickinessInfinite says that a VM never moves only because another node is
// preferred. In a file it is "infinite".
const StickinessInfinite Stickiness = math.MaxInt32

// UnmarshalTOML reads a number or "infinite".
func (s *Stickiness) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		if v >= 0 && v <= maxPreference {
			*s = Stickiness(v)
			return nil
		}
	case string:
		if v == "infinite" {
			*s = StickinessInfinite
			return nil
		}
	}
	return fmt.Errorf("found %v, expected 0 to %d or \"infinite\"", v, maxPreference)
}

// String gives the form of the file.
func (s Stickiness) String() string {
	if s == StickinessInfinite {
		return "infinite"
	}
	return strconv.Itoa(int(s))
}

// HookCommand is a program with its arguments. There is no shell.
type HookCommand []string

// UnmarshalTOML reads a list of texts, or one text that is split at blanks.
func (h *HookCommand) UnmarshalTOML(v any) error {
	wrong := fmt.Errorf("found %v, expected a path with its arguments, as a text or a list of texts", v)
	switch v := v.(type) {
	case string:
		*h = strings.Fields(v)
	case []any:
		list := make(HookCommand, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return wrong
			}
			list = append(list, s)
		}
		*h = list
	default:
		return wrong
	}
	return nil
}

// Hooks is the table [hooks]: what is run when something has happened. Each
// gets one JSON object on its standard input and holds nothing up: it runs
// beside the failover, and is killed with all that it has started when its time
// is over.
type Hooks struct {
	// on-promote is run when the machine (or the units) was started here after
	// this node became Primary. A path with arguments. Default: none, as for all.
	OnPromote HookCommand `toml:"on-promote"`

	// on-demote is run when it was stopped here and before the role is given up.
	OnDemote HookCommand `toml:"on-demote"`

	// on-leader is run when this node becomes the leader of the cluster.
	OnLeader HookCommand `toml:"on-leader"`

	// on-follower is run when this node is the leader no more.
	OnFollower HookCommand `toml:"on-follower"`

	// on-node-lost is run when a node was declared dead.
	OnNodeLost HookCommand `toml:"on-node-lost"`

	// on-unavailable is run when it should run but no node may start it.
	OnUnavailable HookCommand `toml:"on-unavailable"`

	// timeout is how long one run may last. Default: "30s".
	Timeout Duration `toml:"timeout"`
}

// DefaultHooks is the table with nothing in it.
func DefaultHooks() Hooks { return Hooks{Timeout: Duration{30 * time.Second}} }

// VMMonitor is the table [monitor]: how a machine is found to be ill although
// its process is there.
type VMMonitor struct {
	// kind is "process" (the hypervisor's word: there and not paused), "agent"
	// (the guest agent answers), "connect" (TCP), "ping" (ICMP echo) or "http".
	// Default: "process".
	Kind string `toml:"kind"`

	// interval is the time from one probe to the next, never below timeout;
	// ldirectord's checkinterval. Default: "10s".
	Interval Duration `toml:"interval"`

	// timeout is how long one probe may take; ldirectord's checktimeout.
	// Default: "5s".
	Timeout Duration `toml:"timeout"`

	// failures is how many probes in a row have to fail, 1 to 100. Default: 3.
	Failures int `toml:"failures"`

	// address is what is probed: IP for ping, IP:PORT for connect and http.
	// Default: "".
	Address string `toml:"address"`

	// request is what is sent: the path of an HTTP request (default "/"), or
	// text for a TCP connection, with \r and \n as TOML writes them. Default: "".
	Request string `toml:"request"`

	// receive is a regular expression that the answer must match: the body of
	// an HTTP response, or what comes over the TCP connection. Without it an
	// HTTP status below 400, or a connection that was accepted, will do.
	// Default: "".
	Receive string `toml:"receive"`
}

// VMRestart is the table [restart]: what is done with a machine that died, or
// is ill, on a node that is well.
type VMRestart struct {
	// limit is how many times it is started again on its node within the time
	// of within; after that it moves. 0 moves it at once. Default: 3.
	Limit int `toml:"limit"`

	// within is the time that limit counts over. Default: "10m".
	Within Duration `toml:"within"`

	// back-off is the time before the first restart; it doubles with each
	// further one. Default: "5s".
	BackOff Duration `toml:"back-off"`
}

// VMLocalDisk is a table [[local-disk]]: a disk behind the replicated ones that
// exists on each node and is never replicated, for swap and scratch space.
type VMLocalDisk struct {
	// path is a file, made when it is missing, or a block device of the host,
	// which has to be there. The same on both nodes. Required.
	Path string `toml:"path"`

	// size is what a file is made with and a device has to have at least, a
	// number with M or G. Required.
	Size Bytes `toml:"size"`

	// format is "swap", to have a swap signature on it before each start, or
	// "none". Default: "none".
	Format string `toml:"format"`
}

// VMIP is an element of ips: an address that follows the machine or the units.
type VMIP struct {
	// address is the IP with the length of its network's prefix, such as
	// "192.0.2.10/24". Required.
	Address IPPrefix `toml:"address"`

	// interface is what it is added to. Default: the one that has an address of
	// the same network already.
	Interface string `toml:"interface"`
}

// IPPrefix is an address with the length of its network's prefix.
type IPPrefix struct{ netip.Prefix }

// UnmarshalText reads the TOML form.
func (p *IPPrefix) UnmarshalText(text []byte) error {
	v, err := netip.ParsePrefix(string(text))
	if err != nil || v.Addr().Zone() != "" || v.Addr().Is4In6() {
		return fmt.Errorf("found %q, expected an address with the length of its prefix such as \"192.0.2.10/24\"", text)
	}
	p.Prefix = v
	return nil
}

// VMMount is a table [[mount]]: a volume that units need as a directory.
type VMMount struct {
	// volume is RESOURCE or RESOURCE/VOLUME, one of resources. Required.
	Volume string `toml:"volume"`

	// path is the directory, which has to be there. Required.
	Path string `toml:"path"`

	// type is the file system's, such as "ext4". Required.
	Type string `toml:"type"`

	// options are those of mount(8). Default: "".
	Options string `toml:"options"`
}

// Limits of a VM's failover keys, our own and generous.
const (
	maxPreference = 1_000_000
	maxUnits      = 64
	maxIPs        = 64
	maxHookTime   = time.Hour
	maxProbeTime  = time.Hour
	maxRestarts   = 1000
	maxLossTime   = 24 * 3600 // seconds
	minLocalDisk  = 1 << 20
)

// HypervisorSystemd is the effective hypervisor of a description with units.
const HypervisorSystemd = "systemd"

// IsUnits reports whether it describes systemd units instead of a machine.
func (v *VM) IsUnits() bool { return len(v.Units) > 0 }

// settle fills in what depends on other keys.
func (v *VM) settle(f *tomlFile) {
	if v.Hypervisor == "" {
		v.Hypervisor = "qemu"
		if v.IsUnits() {
			v.Hypervisor = HypervisorSystemd
		}
	}
	if v.Failback == "window" && !f.has("stickiness") {
		v.Stickiness = 0
	}
	if v.MAC == "" && !v.IsUnits() {
		v.MAC = derivedMAC(v.Name)
	}
}

// has reports whether a key was written.
func (f *tomlFile) has(key ...string) bool { return len(f.keys[strings.Join(key, "\x00")]) > 0 }

func (v *VM) checkHA(f *tomlFile) {
	v.checkUnits(f)
	v.checkPlacement(f)
	v.checkMonitor(f)
	v.checkLocal(f)
	v.checkIPs(f)
	f.checkHooks(v.Hooks, "hooks")
	f.oneOf(v.TargetRole, []string{"running", "stopped"}, "target-role")
	f.within(v.StartTimeout, time.Second, maxStopTime, "start-timeout")
	if v.Restart.Limit < 0 || v.Restart.Limit > maxRestarts {
		f.errorf(f.at("restart", "limit"), "restart.limit: found %d, expected 0 (move at once) to %d", v.Restart.Limit, maxRestarts)
	}
	f.within(v.Restart.Within, time.Second, maxStopTime, "restart", "within")
	f.within(v.Restart.BackOff, 0, maxStopTime, "restart", "back-off")
	if v.MaxLossSeconds < 0 || v.MaxLossSeconds > maxLossTime {
		f.errorf(f.at("max-loss-seconds"), "max-loss-seconds: found %d, expected 1 to %d", v.MaxLossSeconds, maxLossTime)
	}
	if (v.MaxLossBytes == 0) != (v.MaxLossSeconds == 0) {
		f.errorf(f.at("max-loss-bytes"), "max-loss-bytes: found %d bytes and %d seconds, expected both max-loss-bytes and max-loss-seconds (for protocol A or B), or neither", v.MaxLossBytes, v.MaxLossSeconds)
	}
}

// within checks a time.
func (f *tomlFile) within(d Duration, low, high time.Duration, key ...string) {
	if d.Duration < low || d.Duration > high {
		f.errorf(f.at(key...), "%s: found %v, expected %v to %v", strings.Join(key, "."), d, low, high)
	}
}

// checkUnits: units and a machine exclude each other.
func (v *VM) checkUnits(f *tomlFile) {
	if !v.IsUnits() {
		f.oneOf(v.Hypervisor, []string{"", "qemu"}, "hypervisor")
		if len(v.Mounts) > 0 {
			f.errorf(f.at("mount"), "mount: found it beside a machine, expected it beside units: a machine mounts its disks itself")
		}
		return
	}
	f.oneOf(v.Hypervisor, []string{"", HypervisorSystemd}, "hypervisor")
	for _, key := range []string{"memory", "vcpus", "boot", "network", "mac", "console", "accel", "extra-args", "graceful", "read-only", "local-disk"} {
		if f.has(key) {
			f.errorf(f.at(key), "%s: found it beside units, expected either units or the keys of a machine", key)
		}
	}
	if len(v.Units) > maxUnits {
		f.errorf(f.at("units"), "units: found %d, expected at most %d", len(v.Units), maxUnits)
	}
	for i, u := range v.Units {
		if !validUnit(u) {
			f.errorf(f.at("units"), "units: found %q, expected the name of a systemd unit such as \"mysql.service\"", u)
		}
		if slices.Contains(v.Units[:i], u) {
			f.errorf(f.at("units"), "units: %s is listed twice", u)
		}
	}
	seen := map[string]bool{}
	for i, m := range v.Mounts {
		at := f.inTable([]string{"mount"}, i, []string{"mount"})
		name, volume, _ := parseVolumeName(m.Volume)
		switch known := slices.ContainsFunc(v.Disks(), func(d VMDisk) bool { return d.Resource == name && d.Volume == volume }); {
		case !known:
			f.errorf(at, "mount: volume: found %q, expected one of resources: %s", m.Volume, strings.Join(v.Resources, ", "))
		case !filepath.IsAbs(m.Path) || strings.ContainsAny(m.Path, " \t\n\\"):
			f.errorf(at, "mount: path: found %q, expected an absolute path without blanks", m.Path)
		case seen[m.Path]:
			f.errorf(at, "mount: path: %s is listed twice", m.Path)
		case m.Type == "" || strings.ContainsAny(m.Type+m.Options, " \t\n\x00"):
			f.errorf(at, "mount: type: found %q with options %q, expected a file system such as \"ext4\" and options without blanks", m.Type, m.Options)
		}
		seen[m.Path] = true
	}
}

var unitPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9:_.@\\-]*\.(service|target|socket|mount|timer|path|slice|scope)$`)

func validUnit(s string) bool { return len(s) < 256 && unitPattern.MatchString(s) }

// checkPlacement: where it may run and when it moves.
func (v *VM) checkPlacement(f *tomlFile) {
	if n := len(v.Nodes); n != 0 && (n != 2 || v.Nodes[0] == v.Nodes[1]) {
		f.errorf(f.at("nodes"), "nodes: found %s, expected the two nodes that have the data", strings.Join(v.Nodes, ", "))
	}
	for _, name := range sortedKeys(v.Prefer) {
		at := f.at("prefer", name)
		if p := v.Prefer[name]; p < 0 || p > maxPreference {
			f.errorf(at, "prefer: found %d for %s, expected 0 to %d", p, name, maxPreference)
		}
		if len(v.Nodes) > 0 && !slices.Contains(v.Nodes, name) {
			f.errorf(at, "prefer: found %q, expected one of nodes: %s", name, strings.Join(v.Nodes, ", "))
		}
	}
	f.oneOf(v.Failback, []string{"never", "manual", "window"}, "failback")
	switch window := v.Failback == "window"; {
	case window && !v.FailbackWindow.IsSet():
		f.errorf(f.at("failback"), "failback: found \"window\" without failback-window, expected one such as failback-window = \"Sat 02:00-04:00 UTC\"")
	case !window && v.FailbackWindow.IsSet():
		f.errorf(f.at("failback-window"), "failback-window: found it with failback = %q, expected failback = \"window\"", v.Failback)
	case window && v.Stickiness == StickinessInfinite && f.has("stickiness"):
		f.errorf(f.at("stickiness"), "stickiness: found \"infinite\" with failback = \"window\", so that it never moves back, expected a number")
	case window && len(v.Prefer) == 0:
		f.errorf(f.at("failback"), "failback: found \"window\" without prefer, expected prefer = { NODE = 100, ... }: without it there is no node to go back to")
	}
}

// checkMonitor: ldirectord's rule, an interval below its timeout makes probes
// overlap and a slow service ill.
func (v *VM) checkMonitor(f *tomlFile) {
	m := v.Monitor
	at := func(key string) Pos { return f.at("monitor", key) }
	f.oneOf(m.Kind, []string{"process", "agent", "connect", "ping", "http"}, "monitor", "kind")
	f.within(m.Interval, 100*time.Millisecond, maxProbeTime, "monitor", "interval")
	f.within(m.Timeout, 10*time.Millisecond, maxProbeTime, "monitor", "timeout")
	if m.Interval.Duration < m.Timeout.Duration {
		f.errorf(at("interval"), "monitor.interval: found %v with a timeout of %v, expected at least the timeout", m.Interval, m.Timeout)
	}
	if m.Failures < 1 || m.Failures > 100 {
		f.errorf(at("failures"), "monitor.failures: found %d, expected 1 to 100", m.Failures)
	}
	if m.Kind == "agent" && v.IsUnits() {
		f.errorf(at("kind"), "monitor.kind: found \"agent\" beside units, expected process, connect, ping or http: units have no guest agent")
	}
	switch m.Kind {
	case "connect", "http":
		host, port, err := net.SplitHostPort(m.Address)
		_, ipErr := netip.ParseAddr(host)
		if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || ipErr != nil || portErr != nil || n == 0 {
			f.errorf(at("address"), "monitor.address: found %q, expected IP:PORT such as \"192.0.2.10:80\"", m.Address)
		}
	case "ping":
		if _, err := netip.ParseAddr(m.Address); err != nil {
			f.errorf(at("address"), "monitor.address: found %q, expected an IP address", m.Address)
		}
	default:
		for key, value := range map[string]string{"address": m.Address, "request": m.Request, "receive": m.Receive} {
			if value != "" {
				f.errorf(at(key), "monitor.%s: found it with kind = %q, which has no use for it, expected kind = connect, ping or http", key, m.Kind)
			}
		}
	}
	if m.Kind == "http" && m.Request != "" && (!strings.HasPrefix(m.Request, "/") || strings.ContainsAny(m.Request, " \r\n")) {
		f.errorf(at("request"), "monitor.request: found %q, expected a path such as \"/health\"", m.Request)
	}
	if m.Kind == "ping" && m.Request+m.Receive != "" {
		f.errorf(at("request"), "monitor.request: found request or receive with kind = \"ping\", expected neither")
	}
	if _, err := regexp.Compile(m.Receive); err != nil {
		f.errorf(at("receive"), "monitor.receive: found %q, expected a regular expression: %v", m.Receive, err)
	}
}

func (v *VM) checkLocal(f *tomlFile) {
	if n := len(v.Resources) + len(v.LocalDisks); n > maxVMDisks && len(v.LocalDisks) > 0 {
		f.errorf(f.at("local-disk"), "local-disk: found %d disks in all, expected at most %d", n, maxVMDisks)
	}
	seen := map[string]bool{}
	for i, d := range v.LocalDisks {
		at := func(key string) Pos { return f.inTable([]string{"local-disk"}, i, []string{"local-disk", key}) }
		switch {
		case d.Path == "" || strings.ContainsAny(d.Path, "\n\x00"):
			f.errorf(at("path"), "local-disk: path: found %q, expected the path of a file or a block device of the host", d.Path)
		case seen[d.Path]:
			f.errorf(at("path"), "local-disk: path: %s is listed twice", d.Path)
		case d.Size < minLocalDisk || d.Size > maxVMMemory || d.Size%(1<<20) != 0:
			f.errorf(at("size"), "local-disk: size: found %d bytes, expected whole MiB from 1M to %dG", d.Size, maxVMMemory>>30)
		case d.Format != "" && d.Format != "none" && d.Format != "swap":
			f.errorf(at("format"), "local-disk: format: found %q, expected swap or none", d.Format)
		}
		seen[d.Path] = true
	}
}

func (v *VM) checkIPs(f *tomlFile) {
	if len(v.IPs) > maxIPs {
		f.errorf(f.at("ips"), "ips: found %d, expected at most %d", len(v.IPs), maxIPs)
	}
	seen := map[netip.Addr]bool{}
	for i, ip := range v.IPs {
		at := f.inTable([]string{"ips"}, i, []string{"ips"})
		a := ip.Address.Addr()
		switch {
		case !a.IsValid():
			f.errorf(at, "ips: an address is missing, expected address = \"192.0.2.10/24\"")
		case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || isNetworkOrBroadcast(ip.Address.Prefix):
			f.errorf(at, "ips: found %s, expected the address of a host", ip.Address)
		case seen[a]:
			f.errorf(at, "ips: %s is listed twice", a)
		case len(ip.Interface) > maxIfName || strings.ContainsAny(ip.Interface, "/ \t\n:"):
			f.errorf(at, "ips: interface: found %q, expected the name of an interface of at most %d characters", ip.Interface, maxIfName)
		case ip.Interface == "" && ip.Address.Bits() == a.BitLen():
			f.errorf(at, "ips: found %s without an interface, expected one, or the length of the network's prefix to find it by", ip.Address)
		}
		seen[a] = true
	}
}

// isNetworkOrBroadcast: the first address of an IPv4 network, and the last.
func isNetworkOrBroadcast(p netip.Prefix) bool {
	if !p.Addr().Is4() || p.Bits() >= 31 {
		return false
	}
	a := p.Addr().As4()
	n := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	host := uint32(math.MaxUint32) >> p.Bits()
	return n&host == 0 || n&host == host
}

// checkHooks checks a table of hooks, of a VM or of the node.
func (f *tomlFile) checkHooks(h Hooks, table ...string) {
	for _, x := range []struct {
		key string
		cmd HookCommand
	}{
		{"on-promote", h.OnPromote},
		{"on-demote", h.OnDemote},
		{"on-leader", h.OnLeader},
		{"on-follower", h.OnFollower},
		{"on-node-lost", h.OnNodeLost},
		{"on-unavailable", h.OnUnavailable},
	} {
		key := append(slices.Clone(table), x.key)
		if len(x.cmd) > 0 && !filepath.IsAbs(x.cmd[0]) || strings.ContainsRune(strings.Join(x.cmd, ""), 0) {
			f.errorf(f.at(key...), "%s: found %q, expected the absolute path of a program with its arguments", strings.Join(key, "."), strings.Join(x.cmd, " "))
		}
	}
	f.within(h.Timeout, 10*time.Millisecond, maxHookTime, append(slices.Clone(table), "timeout")...)
}

// checkNodes compares nodes and prefer with the hosts of a resource.
func (v *VM) checkNodes(rep *report, r *ResourceSection) {
	var hosts []string
	for _, h := range r.Hosts {
		if h.Kind != OnHost {
			return // its hosts have no names
		}
		hosts = append(hosts, h.Names...)
	}
	for _, n := range v.Nodes {
		if !slices.Contains(hosts, n) {
			rep.errorf(v.place("nodes"), "nodes: found %q, expected hosts of resource %q of VM %s: %s", n, r.Name, v.Name, strings.Join(hosts, ", "))
		}
	}
	for _, n := range sortedKeys(v.Prefer) {
		if !slices.Contains(hosts, n) {
			rep.errorf(v.place("prefer", n), "prefer: found %q, expected hosts of resource %q of VM %s: %s", n, r.Name, v.Name, strings.Join(hosts, ", "))
		}
	}
}
