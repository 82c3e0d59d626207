package conf

import (
	"hash/crc32"
	"slices"
	"strings"
)

// link connects what Load has read: which sections are about this host, what
// stacked sections stand on, where options are inherited from, node ids.
func (l *loader) link() {
	for _, r := range l.cfg.Resources {
		if !r.Foreign {
			r.common = l.cfg.Common
		}
		r.Ignored = true
		for _, h := range r.Hosts {
			h.IsLocal = l.isLocal(h)
			r.Ignored = r.Ignored && !h.IsLocal
		}
	}
	for _, r := range l.cfg.Resources {
		for _, h := range r.Hosts {
			if h.Kind == StackedOnTo {
				l.linkStacked(r, h)
			}
		}
	}
	for _, r := range l.cfg.Resources {
		deriveNodeIDs(r)
	}
}

func (l *loader) isLocal(h *HostSection) bool {
	switch h.Kind {
	case OnHost:
		return l.env.Hostname != "" && slices.ContainsFunc(h.Names, func(n string) bool { return SameHost(n, l.env.Hostname) })
	case FloatingAt:
		return l.env.LocalAddr != nil && h.Address.Addr.IsValid() && l.env.LocalAddr(h.Address.Addr.Addr())
	case StackedOnTo:
	}
	return false
}

// linkStacked gives a stacked section the hosts of the resource below it.
func (l *loader) linkStacked(r *ResourceSection, h *HostSection) {
	lower := l.resources[h.Lower]
	if lower == nil || lower.hasStacked() {
		return // validate says so
	}
	h.Names = nil
	for _, x := range lower.Hosts {
		h.Names = append(h.Names, x.Names...)
		if x.IsLocal {
			h.IsLocal, r.Ignored, r.Stacked = true, false, true
		}
	}
}

// hasStacked reports whether the resource stands on another one anywhere.
func (r *ResourceSection) hasStacked() bool {
	return slices.ContainsFunc(r.Hosts, func(h *HostSection) bool { return h.Kind == StackedOnTo })
}

// SameHost reports whether a name in a configuration file means the host:
// case is ignored; if both have a domain part all has to be equal, else the
// parts before the first dot.
func SameHost(a, b string) bool {
	shortA, domainA, _ := strings.Cut(a, ".")
	shortB, domainB, _ := strings.Cut(b, ".")
	if domainA != "" && domainB != "" {
		return strings.EqualFold(a, b)
	}
	return strings.EqualFold(shortA, shortB)
}

// nodeIDSeed is the start value of the checksum that derives node ids.
// Source: drbdadm of drbd-utils 9.22.0, as observed on addresses.
const nodeIDSeed = 0x1a656f21

// deriveNodeIDs gives two hosts that have no node ids the ones that drbdadm 9
// makes up: CRC-32C of the addresses' texts, the larger one gets 0. drbdadm
// refuses two hosts at one address; here the lower port gets 0.
func deriveNodeIDs(r *ResourceSection) {
	if len(r.Hosts) != 2 || len(r.Connections) > 0 || len(r.Meshes) > 0 {
		return
	}
	a, b := r.Hosts[0], r.Hosts[1]
	if a.NodeID >= 0 || b.NodeID >= 0 || !a.Address.IsSet() || !b.Address.IsSet() {
		return
	}
	ca, cb := addressSum(a.Address), addressSum(b.Address)
	if ca > cb || ca == cb && a.Address.Addr.Port() < b.Address.Addr.Port() {
		a.NodeID, b.NodeID = 0, 1
	} else {
		a.NodeID, b.NodeID = 1, 0
	}
}

// addressSum is the plain CRC-32C register, without the inversions that
// hash/crc32 adds at both ends.
func addressSum(a Address) uint32 {
	return ^crc32.Update(^uint32(nodeIDSeed), crc32.MakeTable(crc32.Castagnoli), []byte(a.Text))
}

// effectiveVolumes returns the volumes of one host: what its section says,
// field by field completed by the volumes at resource level. The result is
// sorted by number.
func effectiveVolumes(r *ResourceSection, h *HostSection) []*VolumeSection {
	list := make([]*VolumeSection, 0, len(h.Volumes)+len(r.Volumes))
	byNumber := map[int]*VolumeSection{}
	add := func(v *VolumeSection) {
		list = append(list, v)
		if byNumber[v.Number] == nil {
			byNumber[v.Number] = v
		}
	}
	for _, v := range h.Volumes {
		c := *v
		add(&c)
	}
	for _, from := range r.Volumes {
		if byNumber[from.Number] == nil {
			add(newVolume(from.Number, from.Implicit, from.Pos))
		}
		inheritVolume(byNumber[from.Number], from)
	}
	slices.SortStableFunc(list, func(a, b *VolumeSection) int { return a.Number - b.Number })
	return list
}

// inheritVolume fills the unset fields of v. Options are not touched: their
// order of inheritance is resolve's.
func inheritVolume(v, from *VolumeSection) {
	if !v.DevicePos.IsSet() {
		v.Device, v.Minor, v.DevicePos = from.Device, from.Minor, from.DevicePos
	}
	if v.Disk == "" {
		v.Disk, v.DiskPos, v.diskSee = from.Disk, from.DiskPos, from.diskSee || v.diskSee
	}
	if !v.MetaDiskPos.IsSet() && v.Disk != "none" {
		v.MetaDisk, v.MetaIndex, v.MetaDiskPos = from.MetaDisk, from.MetaIndex, from.MetaDiskPos
	}
	if v.Tiebreaker == "" {
		v.Tiebreaker = from.Tiebreaker
	}
}

// inheritOptions adds the options of from that s has not got, each in front:
// the order in which drbdadm 9 prints merged values.
func inheritOptions(s *OptionSection, from *OptionSection, take func(*Option) bool) {
	for i := range from.Options {
		o := from.Options[i]
		if s.lookup(o.Name) == nil && (take == nil || take(&o)) {
			s.Options = append([]Option{o}, s.Options...)
		}
	}
	if len(s.Plugins) == 0 {
		s.Plugins = from.Plugins
	}
}

// mergedView returns a copy of the resource with everything inherited written
// out, as "drbdadm -v dump" prints it.
func mergedView(r *ResourceSection) *ResourceSection {
	m := *r
	m.Volumes, m.Hosts = nil, nil
	m.Sections = mergedSections(r)
	for _, h := range r.Hosts {
		c := *h
		c.Volumes = nil
		for _, v := range effectiveVolumes(r, h) {
			v.DiskOptions = mergedDisk(r, v, &m.Disk)
			if v.DevicePos.IsSet() && v.Device == "" {
				v.Device = "/dev/drbd" + uitoa(uint64(v.Minor)) //nolint:gosec // checked to be a minor
			}
			c.Volumes = append(c.Volumes, v)
		}
		m.Hosts = append(m.Hosts, &c)
	}
	mergeConnections(&m, r)
	return &m
}

// mergedSections returns the sections of a resource with what they inherit.
func mergedSections(r *ResourceSection) Sections {
	m := r.Sections
	in := r.inherited()
	if in == nil {
		return m
	}
	for _, name := range sectionOrder {
		s := *m.get(name)
		s.Options = slices.Clone(s.Options)
		inheritOptions(&s, in.get(name), nil)
		*m.get(name) = s
	}
	return m
}

// mergedDisk returns the disk options of a host's volume: its own, those of
// the volume at resource level, those of the resource.
func mergedDisk(r *ResourceSection, v *VolumeSection, disk *OptionSection) OptionSection {
	s := OptionSection{Pos: v.DiskOptions.Pos, Options: slices.Clone(v.DiskOptions.Options)}
	for _, from := range r.Volumes {
		if from.Number == v.Number {
			inheritOptions(&s, &from.DiskOptions, nil)
		}
	}
	inheritOptions(&s, disk, nil)
	return s
}

// mergeConnections writes out the connection of every pair of hosts.
func mergeConnections(m, r *ResourceSection) {
	m.Connections, m.Meshes = nil, nil
	for _, p := range pairsOf(r) {
		c := &Connection{Pos: r.Pos}
		for _, path := range p.paths {
			c.Paths = append(c.Paths, []HostLine{{Host: p.a.shownName(), Address: path[0]}, {Host: p.b.shownName(), Address: path[1]}})
		}
		if p.inMesh {
			inheritOptions(&c.Net, &p.net, nil)
		} else {
			c.Net = OptionSection{Options: slices.Clone(p.net.Options)}
		}
		inheritOptions(&c.Net, &m.Net, nil)
		c.Disk = p.disk
		c.Volumes = mergedPeerDevices(m, r, &p)
		m.Connections = append(m.Connections, c)
	}
}

// mergedPeerDevices returns the volumes of a connection with the options that
// they inherit; those that the connection names itself come first.
func mergedPeerDevices(m, r *ResourceSection, p *pair) []*VolumeSection {
	volumes := effectiveVolumes(r, r.Hosts[0])
	ofConnection := func(v *VolumeSection) int {
		return slices.IndexFunc(p.volumes, func(x *VolumeSection) bool { return x.Number == v.Number })
	}
	slices.SortStableFunc(volumes, func(a, b *VolumeSection) int {
		ia, ib := ofConnection(a), ofConnection(b)
		switch {
		case ia >= 0 && ib < 0:
			return -1
		case ia < 0 && ib >= 0:
			return 1
		}
		return ia - ib
	})
	var merged []*VolumeSection
	for _, v := range volumes {
		x := newVolume(v.Number, false, v.Pos)
		if i := ofConnection(v); i >= 0 {
			x.DiskOptions.Options = slices.Clone(p.volumes[i].DiskOptions.Options)
		}
		inheritOptions(&x.DiskOptions, &p.disk, nil)
		disk := mergedDisk(r, v, &m.Disk)
		inheritOptions(&x.DiskOptions, &disk, func(o *Option) bool { return o.spec.PeerDevice })
		merged = append(merged, x)
	}
	return merged
}

// shownName is the name of a host in a merged connection.
func (h *HostSection) shownName() string {
	if h.Kind == FloatingAt {
		return h.Address.Text + ":" + uitoa(uint64(h.Address.Addr.Port()))
	}
	return h.Name()
}

// A pair is two hosts that have a connection, with what belongs to it.
type pair struct {
	a, b    *HostSection
	paths   [][2]Address
	net     OptionSection
	disk    OptionSection
	volumes []*VolumeSection
	inMesh  bool
}

// hostByName finds a host section by any of its names.
func (r *ResourceSection) hostByName(name string) *HostSection {
	for _, h := range r.Hosts {
		if slices.Contains(h.Names, name) || h.Kind == FloatingAt && h.shownName() == name {
			return h
		}
	}
	return nil
}

// hostOfLine finds the host section a line of a connection is about.
func (r *ResourceSection) hostOfLine(l *HostLine) *HostSection {
	if l.Host != "" {
		return r.hostByName(l.Host)
	}
	for _, h := range r.Hosts {
		if h.Address.Addr == l.Address.Addr {
			return h
		}
	}
	return nil
}

// addressOf is the address that a line of a connection gives a host.
func addressOf(l *HostLine, h *HostSection) Address {
	a := h.Address
	if l.Address.IsSet() {
		a = l.Address
	} else if l.Port > 0 && a.IsSet() {
		a.Addr = netipWithPort(a.Addr, l.Port)
	}
	return a
}

// pairsOf returns the connections of a resource: those of connection and
// connection-mesh sections, or, without any, the one of its two hosts.
func pairsOf(r *ResourceSection) []pair {
	var pairs []pair
	for _, c := range r.Connections {
		p := pair{net: c.Net, disk: c.Disk, volumes: c.Volumes}
		lines := c.Paths
		if len(lines) == 0 {
			lines = [][]HostLine{c.Hosts}
		}
		for _, path := range lines {
			if len(path) != 2 {
				continue
			}
			a, b := r.hostOfLine(&path[0]), r.hostOfLine(&path[1])
			if a == nil || b == nil || a == b {
				continue
			}
			p.a, p.b = a, b
			p.paths = append(p.paths, [2]Address{addressOf(&path[0], a), addressOf(&path[1], b)})
		}
		if p.a != nil {
			pairs = append(pairs, p)
		}
	}
	for _, m := range r.Meshes {
		for i, a := range m.Hosts {
			for _, b := range m.Hosts[i+1:] {
				ha, hb := r.hostByName(a), r.hostByName(b)
				if ha != nil && hb != nil && ha != hb {
					pairs = append(pairs, pair{a: ha, b: hb, net: m.Net, inMesh: true, paths: [][2]Address{{ha.Address, hb.Address}}})
				}
			}
		}
	}
	if len(r.Connections) == 0 && len(r.Meshes) == 0 && len(r.Hosts) == 2 {
		a, b := r.Hosts[0], r.Hosts[1]
		pairs = append(pairs, pair{a: a, b: b, paths: [][2]Address{{a.Address, b.Address}}})
	}
	return pairs
}
