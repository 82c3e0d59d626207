package conf

import (
	"fmt"
	"net/netip"
	"strings"
)

// Ranges that the grammar itself checks. Source: drbd.h and drbd_limits.h of
// 8.4 (DRBD_MINOR_COUNT, DRBD_VOLUME_MAX), drbdmeta for the index.
const (
	maxVolume = 65534
	maxMinor  = 1<<20 - 1
	maxNodeID = 31
	maxIndex  = 1<<16 - 1
)

// Our own bounds on a resource, so that a hostile file cannot make checks
// that compare everything with everything expensive. DRBD 9 has 32 nodes.
const (
	maxHosts       = 32 // host sections, names of one, hosts of a mesh
	maxConnections = 1000
	maxVolumes     = 1000 // at one level
)

// bounded stops the parser at the element that is one too many.
func (p *parser) bounded(at Pos, what string, have, limit int) {
	if have > limit {
		p.failf(at, "found more than %d %s, expected at most that many", limit, what)
	}
}

// onHost reads "on NAME... { }".
func (p *parser) onHost(r *ResourceSection, at token) {
	h := &HostSection{Kind: OnHost, Pos: at.pos, NodeID: -1}
	for p.err == nil && (len(h.Names) == 0 || !p.tok.is("{")) {
		name := p.name(`a host name or "{"`)
		h.Names = append(h.Names, name.text)
		p.bounded(name.pos, "names of one host", len(h.Names), maxHosts)
	}
	p.hostBody(r, h)
}

// floating reads "floating ADDRESS;" or "floating ADDRESS { }".
func (p *parser) floating(r *ResourceSection, at token) {
	h := &HostSection{Kind: FloatingAt, Pos: at.pos, NodeID: -1}
	h.Address = p.address()
	h.Names = []string{floatingName(h.Address)}
	if p.accept(";") {
		r.Hosts = append(r.Hosts, h)
		p.bounded(h.Pos, "host sections", len(r.Hosts), maxHosts)
		return
	}
	p.hostBody(r, h)
}

// floatingName makes a name of an address: odd characters become "_".
func floatingName(a Address) string {
	text := a.Text + "_" + uitoa(uint64(a.Addr.Port()))
	return strings.Map(func(c rune) rune {
		if c < 128 && isWordByte(byte(c)) {
			return c
		}
		return '_'
	}, text)
}

// stacked reads "stacked-on-top-of RESOURCE { }".
func (p *parser) stacked(r *ResourceSection, at token) {
	h := &HostSection{Kind: StackedOnTo, Pos: at.pos, NodeID: -1}
	h.Lower = p.name("the name of the resource below").text
	p.hostBody(r, h)
}

func (p *parser) hostBody(r *ResourceSection, h *HostSection) {
	what := fmt.Sprintf("resource %s, %s { ... }", r.Name, h.title())
	p.body(func(t token) { p.hostItem(h, what, t) })
	r.Hosts = append(r.Hosts, h)
	p.bounded(h.Pos, "host sections", len(r.Hosts), maxHosts)
}

func (p *parser) hostItem(h *HostSection, what string, t token) {
	stacked := h.Kind == StackedOnTo
	switch {
	case t.is("device"), !stacked && (t.is("meta-disk") || t.is("flexible-meta-disk")):
		p.volumeStatement(implicitVolume(&h.Volumes, t.pos), t)
	case t.is("disk") && (!stacked || p.tok.is("{")):
		p.volumeStatement(implicitVolume(&h.Volumes, t.pos), t)
	case t.is("volume"):
		p.volume(&h.Volumes, t, what)
	case t.is("address"):
		if h.Kind == FloatingAt {
			p.failf(t.pos, "found %s: address statement not allowed for floating {} host sections", t)
			return
		}
		if h.Address.IsSet() {
			p.errorf(t.pos, "conflicting use of address in %s, first used at %s", what, h.Address.Pos.line())
		}
		h.Address = p.address()
		p.expect(";")
	case t.is("node-id"):
		if h.nodeIDPos.IsSet() {
			p.errorf(t.pos, "conflicting use of node-id in %s, first used at %s", what, h.nodeIDPos.line())
		}
		h.NodeID, h.nodeIDPos = p.integer("node-id", 0, maxNodeID)
		p.expect(";")
	case t.is("proxy"):
		h.Proxy = p.hostProxy(t)
	case t.is("options") && !stacked:
		p.once(&h.Options.Pos, t, what)
		p.body(func(t token) { p.plainOption(&h.Options, SectionOptions, t) })
	case t.is("skip"):
		p.skip()
	case stacked:
		p.unexpected(t, `"device", "address", "volume", "node-id", "proxy" or "}"; disk and meta-disk come from the resource below`)
	default:
		p.unexpected(t, `"device", "disk", "meta-disk", "flexible-meta-disk", "address", "volume", "node-id", "options", "proxy", "skip" or "}"`)
	}
}

// hostProxy reads "proxy on HOST... { }", which is kept for dumps only.
func (p *parser) hostProxy(at token) *HostProxy {
	x := &HostProxy{Pos: at.pos}
	p.expect("on")
	for p.err == nil && (len(x.Hosts) == 0 || !p.tok.is("{")) {
		x.Hosts = append(x.Hosts, p.name(`a host name or "{"`).text)
		p.bounded(at.pos, "hosts of a proxy", len(x.Hosts), maxHosts)
	}
	p.body(func(t token) {
		switch {
		case t.is("inside"):
			x.Inside = p.address()
			p.expect(";")
		case t.is("outside"):
			x.Outside = p.address()
			p.expect(";")
		case t.is("options"):
			p.once(&x.Options.Pos, t, "proxy")
			p.body(func(t token) { p.proxyOption(&x.Options, t) })
		default:
			p.unexpected(t, `"inside", "outside", "options" or "}"`)
		}
	})
	p.warnf(at.pos, "the proxy is not supported by Pollux and ignored")
	return x
}

// address reads a family, an address and a port.
func (p *parser) address() Address {
	a := Address{Family: "ipv4", Pos: p.tok.pos}
	t := p.next()
	switch {
	case t.is("ipv6"):
		a.Family = "ipv6"
		p.expect("[")
		if t = p.next(); t.kind != tokIPv6 {
			p.unexpected(t, "an IPv6 address")
		}
		p.expect("]")
	case t.is("ipv4"), t.is("ssocks"), t.is("sci"), t.is("sdp"):
		if a.Family = t.text; t.text == "sci" {
			a.Family = "ssocks" // the older name
		}
		if t = p.next(); t.kind != tokIPv4 {
			p.unexpected(t, "an IPv4 address")
		}
	case t.kind == tokIPv6:
		p.failf(t.pos, "found %s, expected an IPv4 address; an IPv6 address is written ipv6 [ADDRESS]:PORT", t)
	case t.kind != tokIPv4:
		p.unexpected(t, `"ipv4", "ipv6", "ssocks", "sdp" or an IPv4 address (host names are not resolved)`)
	}
	p.expect(":")
	port, _ := p.integer("port", 1, 65535)
	if p.err != nil {
		return a
	}
	a.Text = t.text
	ip, err := netip.ParseAddr(t.text)
	if err != nil || (a.Family == "ipv6") != ip.Is6() {
		p.errorf(t.pos, "found %s, expected a valid %s address", t, map[bool]string{true: "IPv6", false: "IPv4"}[a.Family == "ipv6"])
		return a
	}
	a.Addr = netip.AddrPortFrom(ip, uint16(port)) //nolint:gosec // integer has checked the range
	return a
}

// implicitVolume returns the implicit volume 0 of a level, made if needed.
func implicitVolume(list *[]*VolumeSection, pos Pos) *VolumeSection {
	for _, v := range *list {
		if v.Implicit {
			return v
		}
	}
	v := newVolume(0, true, pos)
	*list = append(*list, v)
	return v
}

// volume reads "volume N { }".
func (p *parser) volume(list *[]*VolumeSection, at token, what string) {
	n, _ := p.integer("volume number", 0, maxVolume)
	v := newVolume(n, false, at.pos)
	for _, o := range *list {
		if o.Number == n && !o.Implicit {
			p.errorf(at.pos, "conflicting use of volume %d in %s, first used at %s", n, what, o.Pos.line())
		}
	}
	p.body(func(t token) {
		if t.is("skip") {
			p.skip()
			return
		}
		p.volumeStatement(v, t)
	})
	*list = append(*list, v)
	p.bounded(at.pos, "volumes", len(*list), maxVolumes)
}

// volumeStatement reads one statement of a volume; t is its first word.
func (p *parser) volumeStatement(v *VolumeSection, t token) {
	switch {
	case t.is("device"):
		p.device(v, t)
	case t.is("disk") && p.tok.is("{"):
		v.diskSee = true
		p.once(&v.DiskOptions.Pos, t, fmt.Sprintf("volume %d", v.Number))
		p.body(func(t token) { p.plainOption(&v.DiskOptions, SectionDisk, t) })
	case t.is("disk"):
		p.again(t, v.DiskPos)
		v.Disk, v.DiskPos, v.diskSee = p.name("the path of the backing disk").text, t.pos, true
		p.expect(";")
	case t.is("meta-disk"), t.is("flexible-meta-disk"):
		p.metaDisk(v, t)
	case t.is("tiebreaker"):
		y := p.next()
		if !y.is("yes") && !y.is("no") {
			p.unexpected(y, `"yes" or "no"`)
		}
		v.Tiebreaker = y.text
		p.expect(";")
	default:
		p.unexpected(t, `"device", "disk", "meta-disk", "flexible-meta-disk" or "}"`)
	}
}

// again reports a statement that a volume has already.
func (p *parser) again(t token, first Pos) {
	if first.IsSet() {
		p.errorf(t.pos, "conflicting use of %s, first used at %s", t.text, first.line())
	}
}

func (p *parser) metaDisk(v *VolumeSection, t token) {
	p.again(t, v.MetaDiskPos)
	path := p.name(`"internal" or the path of the meta-data disk`)
	v.MetaDisk, v.MetaDiskPos = path.text, t.pos
	if t.is("flexible-meta-disk") {
		p.expect(";")
		return
	}
	if p.accept("[") {
		if path.text == "internal" {
			p.failf(path.pos, "internal meta-data have no index, found \"[\", expected \";\"")
		}
		v.MetaIndex, _ = p.integer("index of the meta-data", 0, maxIndex)
		p.expect("]")
		p.expect(";")
		return
	}
	p.expect(";", "[")
}

// device reads the rest of "device NAME;", "device NAME minor N;" or "device
// minor N;". What is wrong with a name is kept for validate: foreign hosts
// may have names we don't care about.
func (p *parser) device(v *VolumeSection, t token) {
	p.again(t, v.DevicePos)
	v.DevicePos = t.pos
	if p.accept("minor") {
		v.Minor, _ = p.integer("minor number", 0, maxMinor)
		v.Device = ""
		p.expect(";")
		return
	}
	name := p.name(`a device name or "minor"`).text
	if strings.HasPrefix(name, "drbd") {
		name = "/dev/" + name
	}
	v.Device = name
	if p.accept("minor") {
		v.Minor, _ = p.integer("minor number", 0, maxMinor)
		p.expect(";")
	} else {
		p.expect(";", "minor")
	}
	if n, ok := minorOfName(name); ok && v.Minor < 0 {
		v.Minor = n
	}
}

// minorOfName returns N of /dev/drbdN.
func minorOfName(device string) (int, bool) {
	digits, ok := strings.CutPrefix(device, "/dev/drbd")
	if !ok || digits == "" || len(digits) > 7 || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n := 0
	for _, c := range digits {
		n = n*10 + int(c-'0')
	}
	return n, n <= maxMinor
}

// connection reads "connection [NAME] { }" of dialect 9.
func (p *parser) connection(r *ResourceSection, at token) {
	c := &Connection{Pos: at.pos}
	if !p.tok.is("{") {
		name := p.name(`a connection name or "{"`)
		p.warnf(name.pos, "explicitly named connections are deprecated, the name %s is ignored", name)
	}
	what := "a connection of resource " + r.Name
	p.body(func(t token) {
		switch {
		case t.is("host"), t.is("address"):
			c.Hosts = append(c.Hosts, p.hostLine(t))
		case t.is("path"):
			var path []HostLine
			p.body(func(t token) {
				if !t.is("host") && !t.is("address") {
					p.unexpected(t, `"host", "address" or "}"`)
					return
				}
				path = append(path, p.hostLine(t))
			})
			if p.err == nil && len(path) != 2 {
				p.errorf(t.pos, "a path needs two hosts, found %d", len(path))
			}
			c.Paths = append(c.Paths, path)
		case t.is("net"):
			p.once(&c.Net.Pos, t, what)
			p.body(func(t token) { p.plainOption(&c.Net, SectionNet, t) })
		case t.is("disk"):
			p.once(&c.Disk.Pos, t, what)
			p.body(func(t token) { p.peerDeviceOption(&c.Disk, t) })
		case t.is("volume"):
			p.connectionVolume(c, t)
		case t.is("skip"):
			p.skip()
		default:
			p.unexpected(t, `"host", "address", "path", "net", "disk", "volume", "skip" or "}"`)
		}
	})
	r.Connections = append(r.Connections, c)
	p.bounded(c.Pos, "connections", len(r.Connections), maxConnections)
}

func (p *parser) connectionVolume(c *Connection, at token) {
	n, _ := p.integer("volume number", 0, maxVolume)
	v := newVolume(n, false, at.pos)
	p.body(func(t token) {
		if !t.is("disk") {
			p.unexpected(t, `"disk" or "}"`)
			return
		}
		p.once(&v.DiskOptions.Pos, t, fmt.Sprintf("volume %d", n))
		p.body(func(t token) { p.peerDeviceOption(&v.DiskOptions, t) })
	})
	c.Volumes = append(c.Volumes, v)
	p.bounded(at.pos, "volumes", len(c.Volumes), maxVolumes)
}

// peerDeviceOption reads an option of the disk section that may differ by
// connection.
func (p *parser) peerDeviceOption(sec *OptionSection, t token) {
	spec := optionIndex[optionKey{SectionDisk, strings.TrimPrefix(t.text, "no-")}]
	if spec != nil && !spec.PeerDevice {
		p.failf(t.pos, "found %s, expected a peer-device option (resync-rate, c-plan-ahead, c-delay-target, c-fill-target, c-max-rate, c-min-rate, bitmap): %s belongs to the device and cannot differ by connection", t, t.text)
		return
	}
	p.plainOption(sec, SectionDisk, t)
}

// hostLine reads "host NAME [address A | port N] [via ...];" or "address A;".
func (p *parser) hostLine(t token) HostLine {
	l := HostLine{Pos: t.pos}
	if t.is("address") {
		l.Address = p.address()
	} else {
		l.Host = p.name("a host name").text
		if p.accept("address") {
			l.Address = p.address()
		} else if p.accept("port") {
			l.Port, _ = p.integer("port", 1, 65535)
		}
	}
	if p.tok.is("via") {
		via := p.next()
		if p.accept("outside-address") {
			l.Outside = p.address()
		} else {
			p.expect("proxy", "outside-address")
			l.Via = p.hostProxy(via)
			p.accept(";")
			return l
		}
	}
	p.expect(";")
	return l
}

// mesh reads "connection-mesh { hosts NAME...; net { } }" of dialect 9.
func (p *parser) mesh(r *ResourceSection, at token) {
	m := &Mesh{Pos: at.pos}
	p.body(func(t token) {
		switch {
		case t.is("hosts"):
			for p.err == nil && (len(m.Hosts) == 0 || !p.tok.is(";")) {
				name := p.name(`a host name or ";"`)
				m.Hosts = append(m.Hosts, name.text)
				p.bounded(name.pos, "hosts of a connection-mesh", len(m.Hosts), maxHosts)
			}
			p.expect(";")
		case t.is("net"):
			p.once(&m.Net.Pos, t, "a connection-mesh of resource "+r.Name)
			p.body(func(t token) { p.plainOption(&m.Net, SectionNet, t) })
		case t.is("skip"):
			p.skip()
		default:
			p.unexpected(t, `"hosts", "net", "skip" or "}"`)
		}
	})
	r.Meshes = append(r.Meshes, m)
	p.bounded(m.Pos, "meshes", len(r.Meshes), maxHosts)
}
