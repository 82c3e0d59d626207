package conf

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Dump writes the canonical form, what "drbdadm dump" of dialect 9 prints:
// everything as it was written, nothing merged. With names only those
// resources are written, without the head of the file. It differs from
// drbdadm in two places where its text would not read back: the device of a
// stacked section is printed, and a name that needs quotes has them.
//
// The error wraps ErrUnknownResource or is w's.
func (c *Config) Dump(w io.Writer, names ...string) error { return c.dump(w, false, names) }

// DumpMerged writes the form of "drbdadm -v dump": with everything inherited
// printed in every place it has an effect on.
func (c *Config) DumpMerged(w io.Writer, names ...string) error { return c.dump(w, true, names) }

func (c *Config) dump(w io.Writer, merged bool, names []string) error {
	d := &dumper{host: c.Hostname, merged: merged, shared: c.Common}
	for _, name := range names {
		r := c.Resource(name)
		if r == nil {
			return fmt.Errorf("%q %w", name, ErrUnknownResource)
		}
		d.resource(r)
	}
	if len(names) == 0 {
		fmt.Fprintf(&d.out, "# %s\n", c.File)
		d.global(&c.Global)
		d.common(c.Common)
		for _, r := range c.Resources {
			if !r.Foreign || r.Adopted {
				d.resource(r)
			}
		}
	}
	_, err := w.Write(d.out.Bytes())
	return err
}

// A dumper writes with four blanks per level.
type dumper struct {
	out    bytes.Buffer
	level  int
	host   string
	merged bool
	shared *Sections // the common section that is written
}

// line writes one indented line.
func (d *dumper) line(format string, args ...any) {
	d.out.WriteString(strings.Repeat("    ", d.level))
	fmt.Fprintf(&d.out, format, args...)
	d.out.WriteByte('\n')
}

// block writes "HEAD {", the body one level deeper, and "}".
func (d *dumper) block(head string, body func()) {
	d.line("%s {", head)
	d.level++
	body()
	d.level--
	d.line("}")
}

// volumeLine writes a statement whose value begins in one column whatever
// the level: 25 characters from the start of the outermost section's content.
func (d *dumper) volumeLine(keyword, value string) {
	d.line("%-*s%s;", 25-4*d.level, keyword, value)
}

// wideLine writes a statement padded to 17 at every level.
func (d *dumper) wideLine(keyword, value string) { d.line("%-16s %s;", keyword, value) }

func (d *dumper) option(o *Option) {
	if o.hidden {
		return
	}
	if o.spec.Type == Flag {
		d.line("%s;", quoteWord(o.shown))
		return
	}
	d.line("%-*s %3s;", 24-4*d.level, quoteWord(o.shown), quoteWord(o.Value))
}

// section writes an option section, nothing if there is nothing to write;
// peer-device options come behind the others, as in drbdadm 9.
func (d *dumper) section(name Section, s *OptionSection) {
	shown := slices.DeleteFunc(slices.Clone(s.Options), func(o Option) bool { return o.hidden })
	if len(shown) == 0 && len(s.Plugins) == 0 {
		return
	}
	d.block(string(name), func() {
		for _, peerDevice := range []bool{false, true} {
			for i := range shown {
				if shown[i].spec.PeerDevice == peerDevice {
					d.option(&shown[i])
				}
			}
		}
		if len(s.Plugins) > 0 {
			d.block("plugin", func() {
				for _, p := range s.Plugins {
					d.line("%s;", p)
				}
			})
		}
	})
}

func (d *dumper) sections(s *Sections) {
	for _, name := range sectionOrder {
		d.section(name, s.get(name))
	}
}

func (d *dumper) global(g *Global) {
	usage := g.UsageCount
	if usage == "ask" {
		usage = "" // the default, which drbdadm does not print
	}
	empty := g.MinorCount == 0 && g.DialogRefresh < 0 && usage == "" && !g.DisableIPVerification
	if empty && !d.merged {
		return
	}
	d.block("global", func() {
		if g.DisableIPVerification {
			d.line("disable-ip-verification;")
		}
		if g.MinorCount > 0 {
			d.line("minor-count %d;", g.MinorCount)
		}
		if g.DialogRefresh >= 0 {
			d.line("dialog-refresh %d;", g.DialogRefresh)
		}
		if usage != "" {
			d.line("usage-count %s;", usage)
		}
	})
	d.line("")
}

func (d *dumper) common(s *Sections) {
	if s == nil {
		return
	}
	d.block("common", func() { d.sections(s) })
	d.line("")
}

func (d *dumper) resource(r *ResourceSection) {
	ignored, stacked := "not ignored", "not stacked"
	if r.Ignored {
		ignored = "ignored"
	}
	if r.Stacked {
		stacked = "stacked"
	}
	d.line("# resource %s on %s: %s, %s", r.Name, d.host, ignored, stacked)
	d.line("# defined at %s:%d", r.File, r.Line)
	d.block("resource "+quoteName(r.Name), func() {
		if r.TemplateFile != "" {
			d.line("template-file %s;", quoteName(r.TemplateFile))
		}
		m := r
		switch {
		case d.merged:
			m = mergedView(r)
		case r.Foreign && r.common != nil && r.common != d.shared:
			// An adopted resource inherits from another file's common section.
			c := *r
			c.Sections = mergedSections(r)
			m = &c
		}
		d.volumes(m.Volumes, nil)
		for _, h := range m.Hosts {
			d.hostSection(h, m.Volumes)
		}
		for _, c := range m.Connections {
			d.connection(c)
		}
		for _, x := range m.Meshes {
			d.block("connection-mesh", func() {
				if len(x.Hosts) > 0 {
					d.line("hosts %s;", joinNames(x.Hosts))
				}
				d.section(SectionNet, &x.Net)
			})
		}
		d.sections(&m.Sections)
	})
	d.line("")
}

func (d *dumper) hostSection(h *HostSection, above []*VolumeSection) {
	head := "on " + joinNames(h.Names)
	switch h.Kind {
	case FloatingAt:
		head = fmt.Sprintf("%-16s %s", "floating", h.Address)
	case StackedOnTo:
		head = "stacked-on-top-of " + quoteName(h.Lower)
	case OnHost:
	}
	d.block(head, func() {
		if h.Kind == StackedOnTo {
			d.line("# on %s ", strings.Join(h.Names, " "))
		}
		if h.NodeID >= 0 {
			d.line("node-id %d;", h.NodeID)
		}
		d.section(SectionOptions, &h.Options)
		d.volumes(h.Volumes, above)
		if h.Kind != FloatingAt && h.Address.IsSet() {
			d.wideLine("address", h.Address.String())
		}
		if h.Proxy != nil {
			d.proxy("", h.Proxy)
		}
	})
}

func (d *dumper) proxy(prefix string, x *HostProxy) {
	d.block(prefix+"proxy on "+joinNames(x.Hosts), func() {
		if x.Inside.IsSet() {
			d.wideLine("inside", x.Inside.String())
		}
		if x.Outside.IsSet() {
			d.wideLine("outside", x.Outside.String())
		}
		d.section(SectionOptions, &x.Options)
	})
}

// volumes writes volumes by number. A volume that has a disk section but no
// disk of its own shows the one it inherits from above, as drbdadm 9 does.
func (d *dumper) volumes(list, above []*VolumeSection) {
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, func(a, b *VolumeSection) int { return a.Number - b.Number })
	for _, v := range sorted {
		if v.diskSee && v.Disk == "" {
			c := *v
			for _, a := range above {
				if a.Number == v.Number {
					c.Disk = a.Disk
				}
			}
			v = &c
		}
		if v.Implicit {
			d.volume(v)
		} else {
			d.block("volume "+strconv.Itoa(v.Number), func() { d.volume(v) })
		}
	}
}

func (d *dumper) volume(v *VolumeSection) {
	d.section(SectionDisk, &v.DiskOptions)
	if v.DevicePos.IsSet() {
		device := ""
		if v.Device != "" {
			device = quoteName(v.Device) + " "
		}
		if v.Minor >= 0 { // a foreign host may have a device we know no minor of
			device += "minor " + strconv.Itoa(v.Minor)
		}
		d.volumeLine("device", strings.TrimSuffix(device, " "))
	}
	if v.diskSee && v.Disk != "" {
		d.volumeLine("disk", quoteName(v.Disk))
	}
	if v.MetaDiskPos.IsSet() {
		switch {
		case v.MetaDisk == "internal":
			d.volumeLine("meta-disk", "internal")
		case v.MetaIndex >= 0:
			d.wideLine("meta-disk", fmt.Sprintf("%s [%d]", quoteName(v.MetaDisk), v.MetaIndex))
		default:
			d.wideLine("meta-disk", quoteName(v.MetaDisk))
		}
	}
	if v.Tiebreaker != "" {
		d.line("tiebreaker %s;", v.Tiebreaker)
	}
}

func (d *dumper) connection(c *Connection) {
	d.block("connection", func() {
		for i := range c.Hosts {
			d.hostLine(&c.Hosts[i])
		}
		for _, path := range c.Paths {
			d.block("path", func() {
				for i := range path {
					d.hostLine(&path[i])
				}
			})
		}
		d.section(SectionNet, &c.Net)
		d.section(SectionDisk, &c.Disk)
		for _, v := range c.Volumes {
			d.block("volume "+strconv.Itoa(v.Number), func() { d.section(SectionDisk, &v.DiskOptions) })
		}
	})
}

// hostLine writes a host of a connection. The address is set off by the
// indentation, as drbdadm does it.
func (d *dumper) hostLine(l *HostLine) {
	text := "host " + quoteName(l.Host)
	if l.Host == "" {
		text = fmt.Sprintf("%-16s %s", "address", l.Address)
	} else if l.Address.IsSet() {
		text += " " + strings.Repeat("    ", d.level) + fmt.Sprintf("%-16s%s", "address", l.Address)
	} else if l.Port > 0 {
		text += " port " + strconv.Itoa(l.Port)
	}
	switch {
	case l.Via != nil:
		d.proxy(text+" via ", l.Via)
	case l.Outside.IsSet():
		d.line("%s via outside-address %s;", text, l.Outside)
	default:
		d.line("%s;", text)
	}
}

func joinNames(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quoteName(n)
	}
	return strings.Join(quoted, " ")
}

// quoteWord quotes a text that is empty or has a character that words have
// not.
func quoteWord(s string) string {
	plain := s != "" && len(s) <= maxWord
	for i := 0; i < len(s) && plain; i++ {
		plain = isWordByte(s[i])
	}
	if plain {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// quoteName quotes a name that would not be read as one without.
func quoteName(s string) string {
	if needsQuotes(s) && s != "internal" {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s
}

func uitoa(n uint64) string { return strconv.FormatUint(n, 10) }
