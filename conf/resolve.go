package conf

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// A Host is one end of a resource's connection.
type Host struct {
	Name   string   // the first name of its section; address_port for a floating one
	Names  []string // all names
	Addr   netip.AddrPort
	Family string // "ipv4" or "ipv6"
	NodeID int    // dialect 9's; -1 if there is none
	// CertNames are the names of which a certificate of the host has to carry
	// one: those of its section, the address of a floating one.
	CertNames []string
}

// A Volume is one volume as this host has it.
type Volume struct {
	Number    int
	Minor     int
	Device    string // "/dev/drbdN" or the name given, always absolute
	Disk      string // path of the backing device or file; "" for a diskless node
	MetaDisk  string // path of the meta-data device; "" for internal
	MetaIndex int    // slot of an indexed MetaDisk; -1 for a flexible or internal one
	Options   DiskOptions

	values map[string]string
}

// Option returns the value of a disk option of this volume as it would be
// written, its default if it is not set. ok is false for an unknown name.
func (v *Volume) Option(name string) (value string, ok bool) {
	value, ok = v.values[name]
	return value, ok
}

// A Resource is what a resource means on this host: nearest values, defaults
// filled in, natural units. The caller owns it.
type Resource struct {
	Name string
	File string // absolute
	Line int

	Local, Peer Host
	Volumes     []Volume // sorted by number
	// StackedOn is the resource below this one, "" for an ordinary one.
	StackedOn string

	Net      NetOptions
	Options  ResourceOptions
	Startup  StartupOptions
	Handlers map[string]string // command lines for /bin/sh -c, by canonical name; unset ones are not there

	values map[Section]map[string]string
}

// Option returns the value of an option as it would be written, its default
// if it is not set; "" also stands for unset text. ok is false if there is no
// such option. For the disk section it is the value at the level of the
// resource; a volume's own may differ.
func (r *Resource) Option(section Section, name string) (value string, ok bool) {
	value, ok = r.values[section][name]
	return value, ok
}

// String gives the name alone, so that a secret is not logged by accident.
func (r *Resource) String() string { return "resource " + r.Name }

// NetOptions are the options of the connection. Sizes are in bytes, sectors
// of 512 bytes or pages of 4 KiB as said.
type NetOptions struct {
	Protocol            string        `drbd:"protocol"` // "A", "B" or "C"
	Timeout             time.Duration `drbd:"timeout"`
	MaxEpochSize        int           `drbd:"max-epoch-size"` // writes
	MaxBuffers          int           `drbd:"max-buffers"`    // pages of 4 KiB
	UnplugWatermark     int           `drbd:"unplug-watermark"`
	ConnectInterval     time.Duration `drbd:"connect-int"`
	PingInterval        time.Duration `drbd:"ping-int"`
	PingTimeout         time.Duration `drbd:"ping-timeout"`
	SndbufBytes         int           `drbd:"sndbuf-size"` // 0 is the system's choice
	RcvbufBytes         int           `drbd:"rcvbuf-size"` // 0 is the system's choice
	KoCount             int           `drbd:"ko-count"`    // 0 is off
	AllowTwoPrimaries   bool          `drbd:"allow-two-primaries"`
	CramHMACAlg         string        `drbd:"cram-hmac-alg"` // "" is no authentication
	SharedSecret        string        `drbd:"shared-secret"`
	AfterSB0Pri         string        `drbd:"after-sb-0pri"` // discard-node-NAME is translated
	AfterSB1Pri         string        `drbd:"after-sb-1pri"`
	AfterSB2Pri         string        `drbd:"after-sb-2pri"`
	AlwaysASBP          bool          `drbd:"always-asbp"`
	RRConflict          string        `drbd:"rr-conflict"`
	DataIntegrityAlg    string        `drbd:"data-integrity-alg"`
	TCPCork             bool          `drbd:"tcp-cork"`
	OnCongestion        string        `drbd:"on-congestion"`
	CongestionFill      uint64        `drbd:"congestion-fill"` // sectors, 0 is off
	CongestionExtents   int           `drbd:"congestion-extents"`
	CsumsAlg            string        `drbd:"csums-alg"`
	CsumsAfterCrashOnly bool          `drbd:"csums-after-crash-only"`
	VerifyAlg           string        `drbd:"verify-alg"`
	UseRLE              bool          `drbd:"use-rle"`
	SocketCheckTimeout  time.Duration `drbd:"socket-check-timeout"` // 0 is PingTimeout
	Fencing             string        `drbd:"fencing"`              // written in disk (8.4) or net (9)
	Transport           string        `drbd:"transport"`            // "" or "tcp"
	AllowRemoteRead     bool          `drbd:"allow-remote-read"`
	ConnectionName      string        `drbd:"_name"`
	LoadBalancePaths    bool          `drbd:"load-balance-paths"`
	TLS                 bool          `drbd:"tls"`
	TLSKeyring          string        `drbd:"tls-keyring"`
	TLSPrivkey          string        `drbd:"tls-privkey"`
	TLSCertificate      string        `drbd:"tls-certificate"`
	RDMACtrlRcvbufBytes int           `drbd:"rdma-ctrl-rcvbuf-size"`
	RDMACtrlSndbufBytes int           `drbd:"rdma-ctrl-sndbuf-size"`
}

// DiskOptions are the options of one volume on this host.
type DiskOptions struct {
	Size                     uint64        `drbd:"size"` // sectors, 0 is all there is
	MaxBioBvecs              int           `drbd:"max-bio-bvecs"`
	OnIOError                string        `drbd:"on-io-error"`
	Fencing                  string        `drbd:"fencing"`
	DiskBarrier              bool          `drbd:"disk-barrier"`
	DiskFlushes              bool          `drbd:"disk-flushes"`
	DiskDrain                bool          `drbd:"disk-drain"`
	MDFlushes                bool          `drbd:"md-flushes"`
	ResyncAfter              string        `drbd:"resync-after"` // RESOURCE or RESOURCE/VOLUME, "-1" for none
	ALExtents                int           `drbd:"al-extents"`   // of 4 MiB
	ALUpdates                bool          `drbd:"al-updates"`
	DiscardZeroesIfAligned   bool          `drbd:"discard-zeroes-if-aligned"`
	DisableWriteSame         bool          `drbd:"disable-write-same"`
	DiskTimeout              time.Duration `drbd:"disk-timeout"` // 0 is off
	ReadBalancing            string        `drbd:"read-balancing"`
	RSDiscardGranularity     int           `drbd:"rs-discard-granularity"` // bytes, 0 is off
	MaxBioSize               int           `drbd:"max-bio-size"`           // bytes
	Diskless                 bool          `drbd:"diskless"`
	BlockSize                int           `drbd:"block-size"`          // bytes
	DiscardGranularity       int           `drbd:"discard-granularity"` // bytes
	ResyncRate               uint64        `drbd:"resync-rate"`         // KiB/s
	CPlanAhead               time.Duration `drbd:"c-plan-ahead"`        // 0 is the fixed ResyncRate
	CDelayTarget             time.Duration `drbd:"c-delay-target"`
	CFillTarget              uint64        `drbd:"c-fill-target"` // sectors, 0 is CDelayTarget
	CMaxRate                 uint64        `drbd:"c-max-rate"`    // KiB/s
	CMinRate                 uint64        `drbd:"c-min-rate"`    // KiB/s
	Bitmap                   bool          `drbd:"bitmap"`
	PeerTiebreaker           bool          `drbd:"peer-tiebreaker"`
	ResyncWithoutReplication bool          `drbd:"resync-without-replication"`
}

// ResourceOptions are the options of the resource as a whole.
type ResourceOptions struct {
	CPUMask                    string        `drbd:"cpu-mask"`
	OnNoDataAccessible         string        `drbd:"on-no-data-accessible"` // "io-error" or "suspend-io"
	AutoPromote                bool          `drbd:"auto-promote"`
	PeerAckWindow              uint64        `drbd:"peer-ack-window"` // sectors
	PeerAckDelay               time.Duration `drbd:"peer-ack-delay"`
	TwoPCTimeout               time.Duration `drbd:"twopc-timeout"`
	TwoPCRetryTimeout          time.Duration `drbd:"twopc-retry-timeout"`
	AutoPromoteTimeout         time.Duration `drbd:"auto-promote-timeout"`
	MaxIODepth                 uint64        `drbd:"max-io-depth"`
	Quorum                     string        `drbd:"quorum"`
	OnNoQuorum                 string        `drbd:"on-no-quorum"`
	QuorumMinimumRedundancy    string        `drbd:"quorum-minimum-redundancy"`
	OnSuspendedPrimaryOutdated string        `drbd:"on-suspended-primary-outdated"`
	DRBD8CompatMode            bool          `drbd:"drbd8-compat-mode"`
	DRBD8APICompatibility      bool          `drbd:"drbd8-api-compatibility"`
}

// StartupOptions are for waiting at the start; 0 waits for ever. A degraded
// time is never longer than the ordinary one, an outdated one never longer
// than the degraded one.
type StartupOptions struct {
	WFCTimeout         time.Duration `drbd:"wfc-timeout"`
	DegrWFCTimeout     time.Duration `drbd:"degr-wfc-timeout"`
	OutdatedWFCTimeout time.Duration `drbd:"outdated-wfc-timeout"`
	WaitAfterSB        bool          `drbd:"wait-after-sb"`
	BecomePrimaryOn    []string      `drbd:"become-primary-on"` // host names, or "both" alone
	StackedTimeouts    bool          `drbd:"stacked-timeouts"`
}

// effectiveOption returns the value of an option at the level of the
// resource: its own, the inherited one or the default with the zero Pos.
func effectiveOption(r *ResourceSection, section Section, name string) (string, Pos) {
	levels := []*OptionSection{r.get(section)}
	if in := r.inherited(); in != nil {
		levels = append(levels, in.get(section))
	}
	return nearestOption(section, name, levels)
}

// nearestOption looks an option up in levels, nearest first.
func nearestOption(section Section, name string, levels []*OptionSection) (string, Pos) {
	for _, s := range levels {
		if o := s.lookup(name); o != nil && (!o.hidden || o.spec.Type == Names) {
			if o.spec.Type == Flag {
				return "yes", o.Pos
			}
			return o.Value, o.Pos
		}
	}
	spec := optionIndex[optionKey{section, name}]
	if spec == nil {
		return "", Pos{}
	}
	return spec.Default, Pos{}
}

// Resolve returns what a resource means on this host. It fails for a resource
// that is not defined for this host (ErrUnknownResource), that belongs to
// drbd.ko because nothing adopts it, or that asks for what Pollux cannot do;
// the last is a *ParseError at the statement.
func (c *Config) Resolve(name string) (*Resource, error) {
	s := c.Resource(name)
	if s == nil || s.Ignored {
		return nil, fmt.Errorf("%q %w", name, ErrUnknownResource)
	}
	if !s.Runnable() {
		return nil, errorAt(s.Pos, "resource %s belongs to the kernel's DRBD: it stands in %s and pollux.toml does not adopt it", s.Name, s.File)
	}
	p, local, peer, err := findPeer(s)
	if err != nil {
		return nil, err
	}
	r := &Resource{Name: s.Name, File: s.File, Line: s.Line, values: map[Section]map[string]string{}}
	if r.Local, err = resolveHost(s, local, p, p.a == local); err != nil {
		return nil, err
	}
	if r.Peer, err = resolveHost(s, peer, p, p.a == peer); err != nil {
		return nil, err
	}
	if local.Kind == StackedOnTo {
		r.StackedOn = local.Lower
	}
	r.fillOptions(s, local, p)
	if err := c.fillVolumes(r, s, local, p); err != nil {
		return nil, err
	}
	r.translateDiscardNode(s, local)
	if err := r.check(s, p, c.withoutTLS); err != nil {
		return nil, err
	}
	return r, nil
}

// findPeer returns the one connection of this host and its ends.
func findPeer(s *ResourceSection) (p *pair, local, peer *HostSection, err error) {
	local = s.Local()
	pairs := slices.DeleteFunc(pairsOf(s), func(p pair) bool { return p.a != local && p.b != local })
	switch {
	case len(pairs) == 1:
	case len(pairs) > 1:
		return nil, nil, nil, errorAt(s.Pos, "resource %s has %d peers on this host: Pollux replicates to one peer, expected one connection", s.Name, len(pairs))
	case len(s.Hosts) > 2:
		return nil, nil, nil, errorAt(s.Pos, "resource %s has %d hosts: Pollux replicates between two, expected two host sections or one connection of this host", s.Name, len(s.Hosts))
	default:
		return nil, nil, nil, errorAt(s.Pos, "resource %s has no peer for this host: expected a second host section ('on NAME { ... }')", s.Name)
	}
	p = &pairs[0]
	peer = p.a
	if peer == local {
		peer = p.b
	}
	return p, local, peer, nil
}

func resolveHost(s *ResourceSection, h *HostSection, p *pair, first bool) (Host, error) {
	a := p.paths[0][1]
	if first {
		a = p.paths[0][0]
	}
	if a.Family != "ipv4" && a.Family != "ipv6" {
		return Host{}, errorAt(h.Pos, "resource %s, %s: found address family %q, expected ipv4 or ipv6: Pollux speaks TCP only", s.Name, h.title(), a.Family)
	}
	host := Host{Name: h.Name(), Names: slices.Clone(h.Names), Addr: a.Addr, Family: a.Family, NodeID: h.NodeID, CertNames: slices.Clone(h.Names)}
	if h.Kind == FloatingAt {
		host.CertNames = []string{a.Addr.Addr().Unmap().WithZone("").String()}
	}
	return host, nil
}

// fillOptions resolves all sections but the volumes' disk options.
func (r *Resource) fillOptions(s *ResourceSection, local *HostSection, p *pair) {
	levels := func(section Section) []*OptionSection {
		var l []*OptionSection
		switch section {
		case SectionNet:
			l = append(l, &p.net)
		case SectionOptions:
			l = append(l, &local.Options)
		case SectionDisk, SectionStartup, SectionHandlers, SectionProxy:
		}
		l = append(l, s.get(section))
		if in := s.inherited(); in != nil {
			l = append(l, in.get(section))
		}
		return l
	}
	for i := range options {
		o := &options[i]
		if o.Alias != "" {
			continue
		}
		if r.values[o.Section] == nil {
			r.values[o.Section] = map[string]string{}
		}
		value, _ := nearestOption(o.Section, o.Name, levels(o.Section))
		r.values[o.Section][o.Name] = value
	}
	r.values[SectionDisk]["fencing"] = r.values[SectionNet]["fencing"]
	r.values[SectionNet]["protocol"] = strings.ToUpper(r.values[SectionNet]["protocol"])
	r.Handlers = map[string]string{}
	for name, command := range r.values[SectionHandlers] {
		if command != "" {
			r.Handlers[name] = command
		}
	}
	fill(&r.Net, SectionNet, r.values[SectionNet])
	fill(&r.Options, SectionOptions, r.values[SectionOptions])
	fill(&r.Startup, SectionStartup, r.values[SectionStartup])
	r.Startup.limit()
}

// limit lowers the waiting times as drbdadm does: if wfc-timeout is set, the
// degraded one is at most that, and the outdated one at most the degraded one.
func (s *StartupOptions) limit() {
	if s.WFCTimeout > 0 && (s.DegrWFCTimeout == 0 || s.DegrWFCTimeout > s.WFCTimeout) {
		s.DegrWFCTimeout = s.WFCTimeout
	}
	if s.DegrWFCTimeout > 0 && (s.OutdatedWFCTimeout == 0 || s.OutdatedWFCTimeout > s.DegrWFCTimeout) {
		s.OutdatedWFCTimeout = s.DegrWFCTimeout
	}
}

// fillVolumes resolves the volumes of this host with their disk options.
func (c *Config) fillVolumes(r *Resource, s *ResourceSection, local *HostSection, p *pair) error {
	for _, from := range effectiveVolumes(s, local) {
		v := Volume{
			Number: from.Number, Minor: from.Minor, Device: from.Device,
			Disk: from.Disk, MetaDisk: from.MetaDisk, MetaIndex: from.MetaIndex,
		}
		if v.Device == "" {
			v.Device = fmt.Sprintf("/dev/drbd%d", v.Minor)
		}
		if v.Disk == "none" {
			v.Disk = ""
		}
		if v.MetaDisk == "internal" {
			v.MetaDisk = ""
		}
		if local.Kind == StackedOnTo {
			if err := c.stackedDisk(&v, s, local); err != nil {
				return err
			}
		}
		levels := diskLevels(s, from, p)
		v.values = map[string]string{}
		for i := range options {
			if o := &options[i]; o.Section == SectionDisk {
				v.values[o.Name], _ = nearestOption(SectionDisk, o.Name, levels)
				if o.Name == "fencing" && !slices.ContainsFunc(levels, func(s *OptionSection) bool { return s.lookup("fencing") != nil }) {
					v.values[o.Name] = r.Net.Fencing
				}
			}
		}
		fill(&v.Options, SectionDisk, v.values)
		r.Volumes = append(r.Volumes, v)
	}
	return nil
}

// diskLevels are the disk sections that count for a volume, nearest first.
func diskLevels(s *ResourceSection, v *VolumeSection, p *pair) []*OptionSection {
	var levels []*OptionSection
	for _, x := range p.volumes {
		if x.Number == v.Number {
			levels = append(levels, &x.DiskOptions)
		}
	}
	levels = append(levels, &p.disk, &v.DiskOptions)
	for _, x := range s.Volumes {
		if x.Number == v.Number {
			levels = append(levels, &x.DiskOptions)
		}
	}
	levels = append(levels, &s.Disk)
	if in := s.inherited(); in != nil {
		levels = append(levels, &in.Disk)
	}
	return levels
}

// stackedDisk makes the device of the resource below a volume's disk.
func (c *Config) stackedDisk(v *Volume, s *ResourceSection, h *HostSection) error {
	lower := c.Resource(h.Lower)
	if lower == nil || lower.Local() == nil {
		return errorAt(h.Pos, "resource %s: the resource %s below it is not defined for this host", s.Name, h.Lower)
	}
	for _, x := range effectiveVolumes(lower, lower.Local()) {
		if x.Number == v.Number {
			v.Disk, v.MetaDisk, v.MetaIndex = x.Device, "", -1
			if v.Disk == "" {
				v.Disk = fmt.Sprintf("/dev/drbd%d", x.Minor)
			}
			return nil
		}
	}
	return errorAt(h.Pos, "resource %s: the resource %s below it has no volume %d", s.Name, h.Lower, v.Number)
}

// translateDiscardNode turns 8.4's discard-node-NAME into what it means here.
func (r *Resource) translateDiscardNode(s *ResourceSection, local *HostSection) {
	node, ok := strings.CutPrefix(r.Net.AfterSB0Pri, discardNode)
	if !ok {
		return
	}
	r.Net.AfterSB0Pri = "discard-remote"
	if s.hostByName(node) == local {
		r.Net.AfterSB0Pri = "discard-local"
	}
	r.values[SectionNet]["after-sb-0pri"] = r.Net.AfterSB0Pri
}

// check refuses combinations that DRBD's kernel module refuses at connect,
// and what Pollux does not have. Source: 8.4's drbd_nl.c, check_net_options.
func (r *Resource) check(s *ResourceSection, p *pair, withoutTLS string) error {
	at := func(section Section, name string) Pos {
		levels := []*OptionSection{s.get(section)}
		if section == SectionNet {
			levels = append([]*OptionSection{&p.net}, levels...)
		}
		if in := s.inherited(); in != nil {
			levels = append(levels, in.get(section))
		}
		if _, pos := nearestOption(section, name, levels); pos.IsSet() {
			return pos
		}
		return s.Pos
	}
	n := &r.Net
	if option, msg := r.conflict(); msg != "" {
		return errorAt(at(SectionNet, option), "resource %s: %s", s.Name, strings.Replace(option+" "+msg, " it needs", " needs", 1))
	}
	switch {
	case n.Transport != "" && n.Transport != "tcp":
		return errorAt(at(SectionNet, "transport"), "resource %s: found transport %s, expected tcp: Pollux has no other", s.Name, n.Transport)
	case n.TLS && withoutTLS != "":
		return errorAt(at(SectionNet, "tls"), "resource %s: found tls yes, expected the table [tls] with certificate, key and ca in %s", s.Name, withoutTLS)
	}
	return nil
}

// fill sets the fields of a struct from values by their drbd tags. Every
// value has passed checkValue before.
func fill(into any, section Section, values map[string]string) {
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("drbd")
		spec := optionIndex[optionKey{section, name}]
		if spec == nil {
			panic(fmt.Sprintf("conf: field for the unknown option %s of section %s", name, section))
		}
		field, text := v.Field(i), values[name]
		switch field.Interface().(type) {
		case string:
			field.SetString(text)
		case bool:
			field.SetBool(text == "yes")
		case []string:
			field.Set(reflect.ValueOf(strings.Fields(text)))
		case time.Duration:
			n, _ := ParseNumber(text, spec.Unit)
			field.SetInt(int64(n) * int64(spec.Unit.duration())) //nolint:gosec // at most 300,000 s
		case int:
			n, _ := ParseNumber(text, spec.Unit)
			field.SetInt(int64(n)) //nolint:gosec // below 2^41
		case uint64:
			n, _ := ParseNumber(text, spec.Unit)
			field.SetUint(n)
		default:
			panic(fmt.Sprintf("conf: no rule for the type of the field for %s", name))
		}
	}
}

// duration is the length of one unit of time.
func (u Unit) duration() time.Duration {
	switch u {
	case Decisecond:
		return 100 * time.Millisecond
	case Second:
		return time.Second
	case Millisecond:
		return time.Millisecond
	case Plain, Byte, SectorUnit, KiBps:
	}
	panic("conf: a unit that is no time where a time is wanted")
}

func netipWithPort(a netip.AddrPort, port int) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), uint16(port)) //nolint:gosec // the parser has checked the range
}
