package conf

import (
	"fmt"
	"slices"
)

// Who decides about failover: ResourceTable.Manager.
const (
	ManagerNone      = "none"
	ManagerInternal  = "internal"
	ManagerPacemaker = "pacemaker"
)

// IsManaged reports whether somebody else than the operator decides who writes.
func (t *ResourceTable) IsManaged() bool {
	return t.Manager == ManagerInternal || t.Manager == ManagerPacemaker
}

// checkTable looks at one table [resource.NAME] alone.
func (f *tomlFile) checkTable(name string, t *ResourceTable) {
	f.oneOf(t.IO, []string{"", "direct", "buffered"}, "resource", name, "io")
	f.oneOf(t.Manager, []string{"", ManagerNone, ManagerInternal, ManagerPacemaker}, "resource", name, "manager")
	if t.MaxLossSeconds < 0 || t.MaxLossSeconds > maxLossSeconds {
		f.errorf(f.at("resource", name, "max-loss-seconds"), "resource.%s.max-loss-seconds: found %d, expected 0 to %d", name, t.MaxLossSeconds, maxLossSeconds)
	}
	if t.MaxLossBytes > maxLossBytes {
		f.errorf(f.at("resource", name, "max-loss-bytes"), "resource.%s.max-loss-bytes: found %d bytes, expected at most %d", name, uint64(t.MaxLossBytes), uint64(maxLossBytes))
	}
	switch {
	case t.MaxLossBytes > 0 && t.MaxLossSeconds == 0:
		f.errorf(f.at("resource", name, "max-loss-bytes"), "resource.%s: max-loss-seconds is missing beside max-loss-bytes, expected both", name)
	case t.MaxLossBytes == 0 && t.MaxLossSeconds > 0:
		f.errorf(f.at("resource", name, "max-loss-seconds"), "resource.%s: max-loss-bytes is missing beside max-loss-seconds, expected both", name)
	}
}

// More than a day, or 1 TiB, is no bound.
const (
	maxLossSeconds = 24 * 3600
	maxLossBytes   = 1 << 40
)

// checkManaged refuses what contradicts a manager: to go on alone without asking
// and a failover by itself exclude each other, and terms have one owner.
func (d *Daemon) checkManaged(l *loader) {
	for _, s := range l.cfg.Resources {
		t, ok := d.Resource[s.Name]
		if !ok || !s.Runnable() {
			continue
		}
		m := managed{l: l, s: s, t: t, at: d.resourcePos[s.Name]}
		protocol, pos := m.option(SectionNet, "protocol")
		loses := protocol == "A" || protocol == "a" || protocol == "B" || protocol == "b"
		switch {
		case loses && t.IsManaged() && t.MaxLossBytes == 0:
			m.refuse(pos, "found protocol %s, under which the peer may lack what was acknowledged: expected max-loss-bytes and max-loss-seconds in [resource.%s], or protocol C", protocol, s.Name)
		case !loses && t.MaxLossBytes > 0:
			l.warnf(m.at, "[resource.%s]: max-loss-bytes and max-loss-seconds have no effect under protocol C, which loses nothing", s.Name)
		}
		if t.IsManaged() {
			m.check()
		}
		if t.Manager == ManagerInternal && d.AttachDevice == "loop" {
			l.errorf(m.at, "[resource.%s]: manager = \"internal\" beside attach-device = \"loop\", whose helper can't be told from other clients, expected attach-device \"nbd\" or \"none\"", s.Name)
		}
	}
}

// managed is a resource with a manager.
type managed struct {
	l  *loader
	s  *ResourceSection
	t  ResourceTable
	at Pos // of its table
}

func (m *managed) check() {
	if v, pos := m.option(SectionNet, "allow-two-primaries"); v == "yes" {
		m.refuse(pos, "found allow-two-primaries, expected none: a manager has one node write")
	}
	handler, handlerPos := m.option(SectionHandlers, "fence-peer")
	if v, pos := m.option(SectionNet, "on-congestion"); v != "block" {
		m.refuse(pos, "found on-congestion %s, expected block: a Primary that does without its peer's copy has to ask first", v)
	}
	if m.t.Manager == ManagerPacemaker {
		if handler == "" {
			m.refuse(m.s.Pos, "found no handler fence-peer, expected one (crm-fence-peer.sh): without it a Primary that loses its peer stands still")
		}
		if v, pos := m.option(SectionNet, "fencing"); v != "resource-and-stonith" {
			m.refuse(orPos(pos, m.s.Pos), "found fencing %s, expected resource-and-stonith: a Primary that loses its peer asks before it goes on", v)
		}
		return
	}
	if handler != "" {
		m.refuse(handlerPos, "found handler fence-peer, expected none: polluxha asks its arbiter, and nobody else, before a node goes on alone")
	}
	for _, o := range m.everywhere("fencing") {
		if o.Value != "resource-and-stonith" {
			m.refuse(o.Pos, "found fencing %s, which lets a node go on alone without asking, expected resource-and-stonith or nothing: automatic failover and that exclude each other", o.Value)
		}
	}
	if v, pos := m.option(SectionStartup, "become-primary-on"); v != "" {
		m.refuse(pos, "found become-primary-on, expected none: polluxha decides who is Primary")
	}
}

func orPos(p, instead Pos) Pos {
	if p == (Pos{}) {
		return instead
	}
	return p
}

func (m *managed) refuse(p Pos, format string, args ...any) {
	m.l.errorf(p, "in resource %s: %s; manager = %q is at %s", m.s.Name, fmt.Sprintf(format, args...), m.t.Manager, m.at.line())
}

// option is an option of the resource or of its connection.
func (m *managed) option(section Section, name string) (string, Pos) {
	if section == SectionNet {
		for _, n := range m.connections() {
			if o := n.lookup(name); o != nil {
				return nearestOption(section, name, []*OptionSection{n})
			}
		}
	}
	return effectiveOption(m.s, section, name)
}

// connections are the net sections of the resource's connections.
func (m *managed) connections() []*OptionSection {
	var nets []*OptionSection
	for _, c := range m.s.Connections {
		nets = append(nets, &c.Net)
	}
	for _, x := range m.s.Meshes {
		nets = append(nets, &x.Net)
	}
	return nets
}

// everywhere is what is written of a disk option, or of fencing in a net section,
// wherever it counts.
func (m *managed) everywhere(name string) []*Option {
	levels := slices.Concat([]*OptionSection{&m.s.Net, &m.s.Disk}, m.connections())
	if in := m.s.inherited(); in != nil {
		levels = append(levels, &in.Net, &in.Disk)
	}
	volumes := slices.Clone(m.s.Volumes)
	for _, h := range m.s.Hosts {
		volumes = append(volumes, h.Volumes...)
	}
	for _, c := range m.s.Connections {
		levels, volumes = append(levels, &c.Disk), append(volumes, c.Volumes...)
	}
	for _, v := range volumes {
		levels = append(levels, &v.DiskOptions)
	}
	var found []*Option
	for _, s := range levels {
		if o := s.lookup(name); o != nil && !slices.ContainsFunc(found, func(p *Option) bool { return p.Pos == o.Pos }) {
			found = append(found, o)
		}
	}
	return found
}
