package conf

import (
	"net/netip"
	"strings"
)

// An Option is one option as it was written.
type Option struct {
	Name   string // canonical, so "resync-rate" for syncer's rate
	Value  string // "" for a flag; names of become-primary-on are joined by a blank
	Pos    Pos    // of the name
	spec   *OptionSpec
	shown  string // the name a dump prints
	hidden bool   // not printed by a dump
}

// An OptionSection is one net, disk, ... section; the zero value is one that
// was not written.
type OptionSection struct {
	Pos     Pos
	Options []Option
	Plugins []string // lines of proxy { plugin { } }
}

// lookup returns the last option of that name, nil if there is none.
func (s *OptionSection) lookup(name string) *Option {
	for i := len(s.Options) - 1; i >= 0; i-- {
		if s.Options[i].Name == name {
			return &s.Options[i]
		}
	}
	return nil
}

// Sections are the option sections of a resource, of common or of a template.
type Sections struct {
	Options, Net, Disk, Startup, Proxy, Handlers OptionSection
	pos                                          Pos // of common
	protocol                                     Pos // statement "protocol X;", 8.3
	syncer                                       Pos
}

// get returns the section of that name, nil if there is no such.
func (s *Sections) get(name Section) *OptionSection {
	switch name {
	case SectionOptions:
		return &s.Options
	case SectionNet:
		return &s.Net
	case SectionDisk:
		return &s.Disk
	case SectionStartup:
		return &s.Startup
	case SectionProxy:
		return &s.Proxy
	case SectionHandlers:
		return &s.Handlers
	}
	return nil
}

// sectionOrder is the order of a dump.
var sectionOrder = []Section{SectionOptions, SectionNet, SectionDisk, SectionStartup, SectionProxy, SectionHandlers}

// Global is the global section with its defaults filled in.
type Global struct {
	Pos                   Pos
	UsageCount            string // "yes", "no", "ask" or "" when not written; Pollux never calls home
	MinorCount            int    // 0 when not written
	DialogRefresh         int    // seconds, -1 when not written
	DisableIPVerification bool
	UdevAlwaysUseVNR      bool
	CmdTimeout            map[string]int // seconds by "short", "medium", "long"
}

// A HostKind says how a host section is headed.
type HostKind uint8

// The kinds of host sections.
const (
	OnHost      HostKind = iota // on NAME...
	FloatingAt                  // floating ADDRESS
	StackedOnTo                 // stacked-on-top-of RESOURCE
)

// An Address is a family word with an address and a port.
type Address struct {
	Family string // "ipv4", "ipv6", "ssocks" or "sdp"; "" when not written
	Text   string // the address as written, without brackets
	Addr   netip.AddrPort
	Pos    Pos
}

// IsSet reports whether an address was written.
func (a Address) IsSet() bool { return a.Family != "" }

// String gives what a dump prints behind the keyword.
func (a Address) String() string {
	host := a.Text
	if a.Family == "ipv6" {
		host = "[" + host + "]"
	}
	return a.Family + " " + host + ":" + uitoa(uint64(a.Addr.Port()))
}

// A HostSection is one on, floating or stacked-on-top-of section as written.
type HostSection struct {
	Kind    HostKind
	Names   []string // on: all names; floating: the made-up one; stacked: the lower resource's hosts
	Lower   string   // the resource below, for stacked-on-top-of
	Pos     Pos
	Address Address
	NodeID  int // -1 when not written and not derived
	Volumes []*VolumeSection
	Proxy   *HostProxy
	Options OptionSection // dialect 9
	IsLocal bool          // this section is about the host that reads

	nodeIDPos Pos
}

// Name is the first name of the section.
func (h *HostSection) Name() string {
	if len(h.Names) == 0 {
		return h.Lower
	}
	return h.Names[0]
}

// title is the head of the section as errors quote it.
func (h *HostSection) title() string {
	switch h.Kind {
	case FloatingAt:
		return "floating " + h.Address.String()
	case StackedOnTo:
		return "stacked-on-top-of " + h.Lower
	case OnHost:
	}
	return "on " + strings.Join(h.Names, " ")
}

// A HostProxy is "proxy on HOST { inside ...; outside ...; }"; kept for dumps.
type HostProxy struct {
	Hosts           []string
	Pos             Pos
	Inside, Outside Address
	Options         OptionSection
}

// A VolumeSection is a volume, or the statements of an implicit volume 0, as
// written at one level.
type VolumeSection struct {
	Number   int
	Implicit bool // written without "volume 0 { }"
	Pos      Pos

	Device    string // "/dev/drbd..." or "" when only a minor was given
	Minor     int    // -1 when not written
	DevicePos Pos

	Disk    string // "none" for a diskless node of dialect 9
	DiskPos Pos
	diskSee bool // "disk" was seen, be it a statement or a section

	MetaDisk    string // "internal" or a path
	MetaIndex   int    // slot of an indexed external device, else -1
	MetaDiskPos Pos

	DiskOptions OptionSection
	Tiebreaker  string // "yes", "no" or "" (newer than drbd-utils 9.22)
}

func newVolume(n int, implicit bool, pos Pos) *VolumeSection {
	return &VolumeSection{Number: n, Implicit: implicit, Pos: pos, Minor: -1, MetaIndex: -1}
}

// A HostLine is "host NAME ...;" of a connection or path.
type HostLine struct {
	Host    string // "" for a bare address line
	Pos     Pos
	Address Address
	Port    int        // "host NAME port N", 0 when not written
	Via     *HostProxy // legacy, kept for dumps
	Outside Address    // "via outside-address", kept for dumps
}

// A Connection is a connection section of dialect 9.
type Connection struct {
	Pos     Pos
	Hosts   []HostLine
	Paths   [][]HostLine
	Net     OptionSection
	Disk    OptionSection
	Volumes []*VolumeSection // disk options only
}

// A Mesh is a connection-mesh section of dialect 9.
type Mesh struct {
	Pos   Pos
	Hosts []string
	Net   OptionSection
}

// A ResourceSection is one resource as written. It belongs to a Config and is
// read-only.
type ResourceSection struct {
	Name string
	File string // absolute path
	Line int
	Pos  Pos // of "resource", with the file as errors name it
	// Ignored: no section of it is about this host; it is checked and dumped
	// but cannot be resolved.
	Ignored bool
	// Stacked: the section of this host is a stacked-on-top-of one.
	Stacked bool
	// Foreign: it stands in a drbd.conf that is read besides Pollux's own
	// files; Adopted: pollux.toml says that it runs here nevertheless.
	Foreign, Adopted bool

	Hosts       []*HostSection
	Volumes     []*VolumeSection // written at resource level
	Connections []*Connection
	Meshes      []*Mesh
	Sections

	end      Pos // the closing brace
	common   *Sections
	template *Sections
	// TemplateFile is the absolute path that replaces common (dialect 9).
	TemplateFile string
}

// Local returns the section of this host, nil if the resource is ignored.
func (r *ResourceSection) Local() *HostSection {
	for _, h := range r.Hosts {
		if h.IsLocal {
			return h
		}
	}
	return nil
}

// Runnable reports whether Pollux may run the resource on this host.
func (r *ResourceSection) Runnable() bool { return !r.Ignored && (!r.Foreign || r.Adopted) }

// inherited returns what the resource inherits from: its template, else
// common; nil if there is neither.
func (r *ResourceSection) inherited() *Sections {
	if r.template != nil {
		return r.template
	}
	return r.common
}

// A Config is all that Load has read. It is not changed afterwards and safe
// for concurrent use.
type Config struct {
	File      string // absolute path of the first file; "STDIN" for standard input
	Hostname  string // the host it was read for
	Global    Global
	Common    *Sections // nil when not written
	Resources []*ResourceSection
	Warnings  []Warning
	// Files lists the absolute path of every file that was read, in order.
	Files []string

	withoutTLS string // the pollux.toml that has no [tls]; "" if it has, or if there is none to look at
}

// Names lists the resources that can be used on this host.
func (c *Config) Names() []string {
	var names []string
	for _, r := range c.Resources {
		if r.Runnable() {
			names = append(names, r.Name)
		}
	}
	return names
}

// Resource returns the section of that name, nil if there is none.
func (c *Config) Resource(name string) *ResourceSection {
	for _, r := range c.Resources {
		if r.Name == name {
			return r
		}
	}
	return nil
}
