package conf

import (
	"net/netip"
	"slices"
	"strings"
)

// validate checks what single statements cannot show: that nothing is missing
// and that nothing is used twice. Every finding is collected.
func (l *loader) validate() {
	u := &uses{report: &l.report, first: map[string]use{}}
	for _, r := range l.cfg.Resources {
		l.checkHosts(r)
		l.checkVolumes(r)
		l.checkNodeIDs(r)
		l.checkConnections(r)
		l.checkLocalAddresses(r)
		l.checkReferences(r)
		l.checkTimeouts(r)
		u.resource(r)
	}
	if l.cfg.Common != nil {
		l.checkResyncAfter(&l.cfg.Common.Disk, "common")
	}
	l.checkResyncCycles()
}

// checkHosts looks at the host sections of one resource.
func (l *loader) checkHosts(r *ResourceSection) {
	if len(r.Hosts) == 0 {
		l.errorf(r.Pos, "in resource %s: a host section ('on %s { ... }') is missing", r.Name, orDefault(l.env.Hostname, "HOST"))
	}
	first := map[string]*HostSection{}
	var local *HostSection
	for _, h := range r.Hosts {
		twice := false
		for _, n := range h.Names {
			key := strings.ToLower(n)
			if other := first[key]; other != nil && !twice {
				l.errorf(h.Pos, "conflicting use of host section '%s: %s', first used at %s", r.Name, h.title(), other.Pos.line())
				twice = true
			} else if other == nil {
				first[key] = h
			}
		}
		if h.IsLocal && local != nil && !twice {
			l.errorf(h.Pos, "in resource %s: two host sections are about this host (%s): '%s' and, at %s, '%s'",
				r.Name, l.env.Hostname, h.title(), local.Pos.line(), local.title())
		}
		if h.IsLocal {
			local = h
		}
		if h.Kind == StackedOnTo {
			l.checkStacked(r, h)
		}
		if !h.Address.IsSet() && !addressedByConnections(r, h) {
			l.errorf(h.Pos, "in resource %s, %s { ... }: 'address' keyword missing", r.Name, h.title())
		}
	}
}

func orDefault(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

func (l *loader) checkStacked(r *ResourceSection, h *HostSection) {
	switch lower := l.resources[h.Lower]; {
	case lower == nil && r.Foreign: // an adopted resource; resolve says so
	case lower == nil:
		l.errorf(r.Pos, "in resource %s, referenced resource '%s' not defined", r.Name, h.Lower)
	case lower.hasStacked():
		l.errorf(h.Pos, "in resource %s: resource '%s' is stacked itself, found it as the resource below, expected an ordinary one", r.Name, h.Lower)
	}
}

// addressedByConnections reports whether every connection that names the host
// gives it an address, and at least one does.
func addressedByConnections(r *ResourceSection, h *HostSection) bool {
	found := false
	for _, c := range r.Connections {
		lines := slices.Concat(append(c.Paths, c.Hosts)...)
		for i := range lines {
			if !slices.Contains(h.Names, lines[i].Host) {
				continue
			}
			if !lines[i].Address.IsSet() {
				return false
			}
			found = true
		}
	}
	return found
}

// checkVolumes looks at the volumes of every host of one resource.
func (l *loader) checkVolumes(r *ResourceSection) {
	l.checkMixing(r)
	for _, v := range r.Volumes {
		l.checkDeviceName(v)
	}
	var reference []*VolumeSection
	for i, h := range r.Hosts {
		if h.IsLocal {
			for _, v := range h.Volumes {
				l.checkDeviceName(v)
			}
		}
		volumes := effectiveVolumes(r, h)
		l.checkComplete(r, h, volumes)
		if i == 0 {
			reference = volumes
			continue
		}
		l.compareVolumes(r, r.Hosts[0], h, reference, volumes)
	}
}

// checkMixing refuses implicit and explicit volumes in one resource.
func (l *loader) checkMixing(r *ResourceSection) {
	levels := [][]*VolumeSection{r.Volumes}
	for _, h := range r.Hosts {
		levels = append(levels, h.Volumes)
	}
	var first *VolumeSection
	for _, level := range levels {
		for _, v := range level {
			if first == nil {
				first = v
			}
			if v.Implicit != first.Implicit {
				l.errorf(v.Pos, "in resource %s: you must not mix implicit and explicit volumes, the other kind begins at %s", r.Name, first.Pos.line())
				break
			}
		}
	}
}

func (l *loader) checkComplete(r *ResourceSection, h *HostSection, volumes []*VolumeSection) {
	if len(volumes) == 0 {
		l.errorf(h.Pos, "in resource %s, %s { ... }: 'device' keyword missing", r.Name, h.title())
		return
	}
	for _, v := range volumes {
		where := h.title() + " { ... }"
		if !v.Implicit {
			where += ", volume " + uitoa(uint64(v.Number)) + " { ... }"
		}
		if !v.DevicePos.IsSet() {
			l.errorf(h.Pos, "in resource %s, %s: 'device' keyword missing", r.Name, where)
		}
		if v.Disk == "" && h.Kind != StackedOnTo {
			l.errorf(h.Pos, "in resource %s, %s: 'disk' keyword missing", r.Name, where)
		}
	}
}

// compareVolumes demands that all hosts have the same set.
func (l *loader) compareVolumes(r *ResourceSection, a, b *HostSection, va, vb []*VolumeSection) {
	has := func(list []*VolumeSection, n int) bool {
		_, found := slices.BinarySearchFunc(list, n, func(v *VolumeSection, n int) int { return v.Number - n })
		return found
	}
	for _, v := range va {
		if !has(vb, v.Number) {
			l.errorf(r.end, "in resource %s, %s { ... }: volume %d not defined on %s", r.Name, a.title(), v.Number, b.Name())
		}
	}
	for _, v := range vb {
		if !has(va, v.Number) {
			l.errorf(r.end, "in resource %s, %s { ... }: volume %d missing (present on %s)", r.Name, a.title(), v.Number, b.Name())
		}
	}
}

// checkDeviceName compares a device's name with its minor.
func (l *loader) checkDeviceName(v *VolumeSection) {
	if !v.DevicePos.IsSet() || v.Device == "" {
		return
	}
	rest, ok := strings.CutPrefix(v.Device, "/dev/drbd")
	switch n, numbered := minorOfName(v.Device); {
	case !ok:
		l.errorf(v.DevicePos, "found device name %q, device name must start with /dev/drbd (/dev/ is optional, but drbd is required)", v.Device)
	case numbered && n != v.Minor:
		l.errorf(v.DevicePos, "found device %q with minor %d: explicit minor number must match with device name; try \"device /dev/drbd%d minor %d;\" or leave off one of them", v.Device, v.Minor, v.Minor, v.Minor)
	case !numbered && !strings.HasPrefix(rest, "_"):
		l.errorf(v.DevicePos, "found device name %q, expected /dev/drbdN with a minor number N, or /dev/drbd_NAME minor N (mind the '_')", v.Device)
	case !numbered && v.Minor < 0:
		l.errorf(v.DevicePos, "found device name %q without a minor number, expected \"minor N\" behind it", v.Device)
	}
}

// checkNodeIDs looks at dialect 9's numbers of the hosts.
func (l *loader) checkNodeIDs(r *ResourceSection) {
	first := map[int]*HostSection{}
	any9 := len(r.Connections) > 0 || len(r.Meshes) > 0
	for _, h := range r.Hosts {
		if h.NodeID < 0 {
			continue
		}
		any9 = true
		if other := first[h.NodeID]; other != nil {
			l.errorf(h.nodeIDPos, "conflicting use of node-id '%s:%d', first used at %s", r.Name, h.NodeID, other.nodeIDPos.line())
		}
		first[h.NodeID] = h
	}
	for _, h := range r.Hosts {
		if any9 && h.NodeID < 0 && len(r.Hosts) > 1 && h.Address.IsSet() {
			l.errorf(h.Pos, "in resource %s, %s { ... }: 'node-id' keyword missing", r.Name, h.title())
		}
	}
	if len(r.Hosts) > 2 && len(r.Connections) == 0 && len(r.Meshes) == 0 {
		l.warnf(r.Pos, "in resource %s: use explicit 'connection' sections (or a 'connection-mesh' section) with more than two 'on' sections", r.Name)
	}
}

// checkConnections looks up the hosts that connections name.
func (l *loader) checkConnections(r *ResourceSection) {
	for _, m := range r.Meshes {
		for _, n := range m.Hosts {
			if r.hostByName(n) == nil {
				l.errorf(r.Pos, "in resource %s: there is no 'on' section for hostname '%s' named in the connection-mesh", r.Name, n)
			}
		}
	}
	for _, c := range r.Connections {
		if len(c.Paths) == 0 && len(c.Hosts) != 2 {
			l.errorf(c.Pos, "in resource %s: a connection needs two hosts, found %d", r.Name, len(c.Hosts))
		}
		lines := slices.Concat(append(c.Paths, c.Hosts)...)
		for i := range lines {
			if r.hostOfLine(&lines[i]) == nil && lines[i].Host != "" {
				l.errorf(lines[i].Pos, "in resource %s: there is no 'on' section for hostname '%s' named in the connection", r.Name, lines[i].Host)
			}
		}
	}
}

// checkLocalAddresses looks whether this host has the addresses it is to
// listen on.
func (l *loader) checkLocalAddresses(r *ResourceSection) {
	h := r.Local()
	if h == nil || l.env.LocalAddr == nil || l.cfg.Global.DisableIPVerification {
		return
	}
	if h.Kind == StackedOnTo {
		return // its address moves with the resource below
	}
	checked := map[netip.Addr]bool{}
	check := func(a Address) {
		ip := a.Addr.Addr()
		if !ip.IsValid() || checked[ip] || l.env.LocalAddr(ip) {
			return
		}
		checked[ip] = true
		l.errorf(a.Pos, "in resource %s, %s: IP %s not found on this host", r.Name, h.title(), a.Text)
	}
	check(h.Address)
	for _, p := range pairsOf(r) {
		for _, path := range p.paths {
			if p.a == h {
				check(path[0])
			}
			if p.b == h {
				check(path[1])
			}
		}
	}
}

// checkReferences looks up the hosts and resources that options name.
func (l *loader) checkReferences(r *ResourceSection) {
	l.checkResyncAfter(&r.Disk, "resource "+r.Name)
	for _, v := range r.Volumes {
		l.checkResyncAfter(&v.DiskOptions, "resource "+r.Name)
	}
	for _, h := range r.Hosts {
		for _, v := range h.Volumes {
			l.checkResyncAfter(&v.DiskOptions, "resource "+r.Name)
		}
	}
	nets := []*OptionSection{&r.Net}
	for _, c := range r.Connections {
		nets = append(nets, &c.Net)
	}
	for _, net := range nets {
		if o := net.lookup("after-sb-0pri"); o != nil {
			if node, ok := strings.CutPrefix(o.Value, discardNode); ok && r.hostByName(node) == nil {
				l.errorf(o.Pos, "found after-sb-0pri %s, expected the name of a host of resource %s behind %q", o.Value, r.Name, discardNode)
			}
		}
	}
	if o := r.Startup.lookup("become-primary-on"); o != nil {
		if o.Value == "both" {
			if v, _ := effectiveOption(r, SectionNet, "allow-two-primaries"); v != "yes" {
				l.errorf(o.Pos, "in resource %s: become-primary-on both needs allow-two-primaries in the net section", r.Name)
			}
			return
		}
		for _, n := range strings.Fields(o.Value) {
			if r.hostByName(n) == nil {
				l.errorf(o.Pos, "in resource %s: become-primary-on contains '%s', which is not named with the 'on' sections", r.Name, n)
			}
		}
	}
}

// checkResyncAfter drops a resync-after whose resource is not known, with a
// warning: a leftover must not stop a cluster manager.
func (l *loader) checkResyncAfter(s *OptionSection, where string) {
	for i := range s.Options {
		o := &s.Options[i]
		if o.Name != "resync-after" || o.hidden {
			continue
		}
		name, _, _ := strings.Cut(o.Value, "/")
		if l.resources[name] == nil {
			l.warnf(o.Pos, "in %s: resource '%s' mentioned in 'resync-after' option is not known; the option is dropped", where, name)
			o.hidden = true
		}
	}
}

// checkTimeouts warns of a timeout that is not below the intervals it has to
// be below.
func (l *loader) checkTimeouts(r *ResourceSection) {
	timeout, pos := effectiveOption(r, SectionNet, "timeout")
	n, ok := ParseNumber(timeout, Decisecond)
	if !ok || !pos.IsSet() {
		return
	}
	for _, name := range []string{"connect-int", "ping-int"} {
		value, _ := effectiveOption(r, SectionNet, name)
		if seconds, ok := ParseNumber(value, Second); ok && n >= 10*seconds && seconds <= 120 {
			l.warnf(pos, "in resource %s: timeout %s (tenths of a second) should be below %s %s (seconds)", r.Name, timeout, name, value)
		}
	}
}

// uses finds what two places claim.
type uses struct {
	*report
	first map[string]use
}

type use struct {
	pos      Pos
	resource *ResourceSection
	host     *HostSection
}

// claim reports whether key is new; if not it says where it was used first.
func (u *uses) claim(key, what string, here use) {
	if other, ok := u.first[key]; ok {
		// Two sections about one host are reported as such.
		if other.resource != here.resource || other.host == here.host && other.pos != here.pos {
			u.errorf(here.pos, "conflicting use of %s in resource %s, first used at %s in resource %s", what, here.resource.Name, other.pos.line(), other.resource.Name)
		}
		return
	}
	u.first[key] = here
}

// resource claims the minors, disks, meta-data slots and addresses of all
// hosts of a resource, this one and foreign ones.
func (u *uses) resource(r *ResourceSection) {
	for _, h := range r.Hosts {
		host := h.Name()
		if h.IsLocal {
			host = "\x00this host" // a floating section and an "on" section may both be us
		}
		volumes := effectiveVolumes(r, h)
		for _, v := range volumes {
			u.volume(r, h, strings.ToLower(host), v)
		}
	}
	u.addresses(r)
}

func (u *uses) volume(r *ResourceSection, h *HostSection, host string, v *VolumeSection) {
	if v.DevicePos.IsSet() && v.Minor >= 0 {
		n := uitoa(uint64(v.Minor))
		u.claim("minor\x00"+host+"\x00"+n, "device minor "+n+" of host "+h.Name(), use{v.DevicePos, r, h})
	}
	if h.Kind == StackedOnTo || v.Disk == "" || v.Disk == "none" {
		return
	}
	u.claim("disk\x00"+host+"\x00"+v.Disk, "disk "+v.Disk+" of host "+h.Name(), use{v.DiskPos, r, h})
	if v.MetaDisk != "" && v.MetaDisk != "internal" {
		what := v.MetaDisk
		if v.MetaIndex >= 0 {
			what += "[" + uitoa(uint64(v.MetaIndex)) + "]"
		}
		u.claim("meta\x00"+host+"\x00"+what, "meta-disk "+what+" of host "+h.Name(), use{v.MetaDiskPos, r, h})
	}
}

// addresses claims each endpoint for one resource; in a resource the two ends
// of a connection differ. Loopback addresses are each host's own.
func (u *uses) addresses(r *ResourceSection) {
	claim := func(h *HostSection, a Address) {
		if !a.Addr.IsValid() || a.Addr.Port() == 0 {
			return // reported already
		}
		key := "ip\x00" + a.Family + a.Addr.String()
		if a.Addr.Addr().IsLoopback() {
			key += "\x00" + strings.ToLower(h.Name())
			if h.IsLocal {
				key = "ip\x00" + a.Family + a.Addr.String() + "\x00"
			}
		}
		if other, ok := u.first[key]; ok && other.resource == r {
			return // the ends are compared below, several connections may share one
		}
		u.claim(key, "IP '"+a.Addr.String()+"'", use{a.Pos, r, h})
	}
	pairs := pairsOf(r)
	for _, p := range pairs {
		for _, path := range p.paths {
			claim(p.a, path[0])
			claim(p.b, path[1])
			if path[0].IsSet() && path[0].Addr.IsValid() && path[0].Addr.Port() > 0 && path[0].Addr == path[1].Addr {
				u.errorf(path[1].Pos, "conflicting use of IP '%s' in resource %s: both ends of a connection have it, first used at %s", path[1].Addr, r.Name, path[0].Pos.line())
			}
		}
	}
	if len(pairs) > 0 {
		return
	}
	for _, h := range r.Hosts {
		claim(h, h.Address)
	}
}
