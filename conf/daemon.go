package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// The defaults of pollux.toml. Our own choices, after the Filesystem
// Hierarchy Standard.
const (
	DefaultDaemonFile    = "/etc/pollux/pollux.toml"
	DefaultResourceFiles = "/etc/pollux.d/*.res"
	DefaultVMFiles       = "/etc/pollux.d/*.vm.toml"
	DefaultDRBDConf      = "/etc/drbd.conf"
	DefaultControlSocket = "/run/pollux/polluxd.sock"
	DefaultNBDSocket     = "/run/pollux/nbd.sock"
	DefaultStateDir      = "/var/lib/pollux"
)

// DefaultPerfSample is a trade of detail for CPU; docs/metrics.md has what it costs.
const DefaultPerfSample = 64

// maxPerfSample is rarer than anybody needs.
const maxPerfSample = 65536

// Daemon is pollux.toml: what a node is and where its things are. Every key
// may be left out. Relative paths count from the directory of the file, so an
// ordinary user can keep a whole node in one directory. An unknown key is an
// error.
type Daemon struct {
	// node-name is the name that "on" sections of resource files are compared
	// with: case does not matter, and if one of the two has no domain part only
	// the part before the first dot does. Default: the host name.
	NodeName string `toml:"node-name"`

	// resource-files lists files, or patterns with * ? and [...], of resources
	// in DRBD's configuration language. They are read as one configuration:
	// "common" and "global" may stand in one of them only. A pattern that
	// matches nothing is no error, a missing file is.
	// Default: ["/etc/pollux.d/*.res"].
	ResourceFiles []string `toml:"resource-files"`

	// drbd-conf is a DRBD configuration that is read besides; its resources
	// belong to the kernel's DRBD and are not run, see adopt. It is no error if
	// the file does not exist. "" reads none. Default: "/etc/drbd.conf".
	DRBDConf string `toml:"drbd-conf"`

	// adopt names the resources of drbd-conf that Pollux runs on this node. The
	// kernel's DRBD must not have them configured any more: two owners of one
	// disk destroy it. Default: none.
	Adopt []string `toml:"adopt"`

	// vm-files lists files or patterns of descriptions of virtual machines.
	// Default: ["/etc/pollux.d/*.vm.toml"].
	VMFiles []string `toml:"vm-files"`

	// control-socket is the unix socket on which polluxd answers polluxadm; it
	// is made with mode 0600. Default: "/run/pollux/polluxd.sock".
	ControlSocket string `toml:"control-socket"`

	// state-dir is the directory of what polluxd has to remember over a
	// restart; it has to survive a reboot. Default: "/var/lib/pollux".
	StateDir string `toml:"state-dir"`

	// attach-device says how a volume also becomes a block device, /dev/drbdN:
	// "none" not at all, "nbd" by the kernel's nbd driver, "loop" by nbdfuse
	// and a loop device. Both need root. Default: "none".
	AttachDevice string `toml:"attach-device"`

	// nbd is where volumes are served; see NBDListen.
	NBD NBDListen `toml:"nbd"`

	// tls is what resources with net option tls connect with; see TLS.
	TLS TLS `toml:"tls"`

	// log is what is logged and how; see Log.
	Log Log `toml:"log"`

	// perf is how much is measured of where requests spend their time; see Perf.
	Perf Perf `toml:"perf"`

	// metrics is where Prometheus finds them; see Metrics.
	Metrics Metrics `toml:"metrics"`

	// ha is what the failover manager needs of this node; see HA.
	HA HA `toml:"ha"`

	// resource holds one table per resource, [resource.NAME], with what DRBD's
	// language has no word for; see ResourceTable. A name that no file defines
	// is a warning.
	Resource map[string]ResourceTable `toml:"resource"`

	// File is the absolute path it was read from; "" for DefaultDaemon.
	File string `toml:"-"`

	adoptPos    map[string]Pos
	resourcePos map[string]Pos
}

// NBDListen is the table [nbd] of pollux.toml.
type NBDListen struct {
	// socket is the unix socket of the NBD server, made with mode 0600. "" has
	// none. Default: "/run/pollux/nbd.sock".
	Socket string `toml:"socket"`

	// tcp lists addresses to listen on besides, each as a table [[nbd.tcp]].
	// Default: none.
	TCP []NBDTCP `toml:"tcp"`
}

// NBDTCP is one table [[nbd.tcp]] of pollux.toml.
type NBDTCP struct {
	// listen is IP:PORT or [IPV6]:PORT; host names are not resolved. NBD's
	// registered port is 10809. Required.
	Listen netip.AddrPort `toml:"listen"`

	// plaintext has to be true for an address beyond loopback: whoever sees
	// the network then sees and can change the data. Default: false.
	Plaintext bool `toml:"plaintext"`

	// allow lists the clients that may connect, as IP or IP/BITS. It is
	// required for an address beyond loopback; an empty list on a loopback
	// address allows all local users. Default: none.
	Allow []Prefix `toml:"allow"`
}

// Prefix is a network or one address, "10.1.0.0/16" or "10.1.2.3".
type Prefix struct{ netip.Prefix }

// UnmarshalText reads the TOML form.
func (p *Prefix) UnmarshalText(text []byte) error {
	s := string(text)
	if a, err := netip.ParseAddr(s); err == nil {
		p.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	n, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("found %q, expected an address such as 10.1.2.3 or a network such as 10.1.0.0/16", s)
	}
	if n.Masked() != n {
		return fmt.Errorf("found %q with bits set behind the network part, expected %s", s, n.Masked())
	}
	p.Prefix = n
	return nil
}

// Allows reports whether a client may connect; an empty list allows everyone.
func (t *NBDTCP) Allows(client netip.Addr) bool {
	client = client.Unmap().WithZone("")
	return len(t.Allow) == 0 || slices.ContainsFunc(t.Allow, func(p Prefix) bool { return p.Contains(client) })
}

// TLS is the table [tls] of pollux.toml: three files in PEM. All are needed,
// or none; polluxd reads them for each connection to a peer, so that a renewed
// certificate is in use from the next one on.
type TLS struct {
	// certificate is this node's, with intermediate ones behind it. Its
	// subjectAltName has to carry the name of the node's "on" sections as a DNS
	// name (the address, for a floating section), and if it has an
	// extendedKeyUsage both serverAuth and clientAuth. Default: none.
	Certificate string `toml:"certificate"`

	// key is the private key of the certificate, without a passphrase. Nobody
	// but its owner may have access to the file (mode 0600). Default: none.
	Key string `toml:"key"`

	// ca holds the certificates of those who sign the peers' certificates.
	// The peer has to be signed by one of them. Default: none.
	CA string `toml:"ca"`
}

// IsSet reports whether the table is there.
func (t *TLS) IsSet() bool { return *t != TLS{} }

// Log is the table [log] of pollux.toml.
type Log struct {
	// level is the least important kind of message to log: "trace", "debug"
	// (per request), "info" (changes of state), "warn" or "error".
	// Default: "info".
	Level string `toml:"level"`

	// format is "json", one object a line for machines, "console" for people,
	// or "auto": console on a terminal, else json. Default: "auto".
	Format string `toml:"format"`
}

// Perf is the table [perf] of pollux.toml.
type Perf struct {
	// sample is of how many requests at least one is measured, 0 to 65536: of a
	// busy client one of so many, of a quiet one each. 0 measures nothing. A
	// resource that is up keeps what it came up with. Default: 64.
	Sample int `toml:"sample"`
}

// Metrics is the table [metrics] of pollux.toml: one of its two places, or none.
type Metrics struct {
	// listen is the IP:PORT or [IPV6]:PORT where /metrics is served for
	// Prometheus. Default: none.
	Listen netip.AddrPort `toml:"listen"`

	// socket is a unix socket for the same, made with mode 0600. Default: none.
	Socket string `toml:"socket"`

	// plaintext has to be true for an address beyond loopback: whoever reaches
	// it can read names, sizes and states of all resources. Default: false.
	Plaintext bool `toml:"plaintext"`
}

// ResourceTable is one table [resource.NAME] of pollux.toml.
type ResourceTable struct {
	// io says how the backing disk is used: "direct" past the page cache with
	// O_DIRECT, "buffered" through it, "" is direct for block devices and
	// buffered for files. Flushes reach the medium either way. Default: "".
	IO string `toml:"io"`

	// manager is who decides which node is Primary: "none" is the operator,
	// "internal" is polluxha, "pacemaker" is a Pacemaker cluster. Under a manager
	// a peer that knows no terms (drbd.ko) is refused, and so are
	// allow-two-primaries and all with which a node goes on alone without asking.
	// It needs down and up to change. Default: "none".
	Manager string `toml:"manager"`

	// max-loss-bytes and max-loss-seconds are what a failover may lose under
	// protocol A or B: clients are not answered while the peer has not
	// acknowledged more bytes than this ("16M"), or the oldest of them for longer.
	// Both or neither; 0 seconds is no bound. Under a manager protocols A and B need them.
	// Default: 0.
	MaxLossBytes   Bytes `toml:"max-loss-bytes"`
	MaxLossSeconds int   `toml:"max-loss-seconds"`
}

// DefaultDaemon is pollux.toml with nothing in it.
func DefaultDaemon() *Daemon {
	return &Daemon{
		ResourceFiles: []string{DefaultResourceFiles},
		DRBDConf:      DefaultDRBDConf,
		VMFiles:       []string{DefaultVMFiles},
		ControlSocket: DefaultControlSocket,
		StateDir:      DefaultStateDir,
		AttachDevice:  "none",
		NBD:           NBDListen{Socket: DefaultNBDSocket},
		Log:           Log{Level: "info", Format: "auto"},
		Perf:          Perf{Sample: DefaultPerfSample},
		NodeName:      hostname(),
		HA:            defaultHA(),
	}
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "" // Validate asks for node-name then
	}
	return name
}

// LoadDaemon reads pollux.toml. The error is an ErrorList, a *ParseError, or
// wraps the file system's.
func LoadDaemon(path string) (*Daemon, error) {
	src, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return ParseDaemon(path, src)
}

// ParseDaemon is LoadDaemon for a text; path is for messages and relative
// paths.
func ParseDaemon(path string, src []byte) (*Daemon, error) {
	d := DefaultDaemon()
	d.HA.ClusterFile, d.HA.EtcdDir = "", "" // depend on state-dir
	f, err := decodeTOML(path, src, d)
	if err != nil {
		return nil, err
	}
	d.File = path
	f.absPath(&d.File)
	for _, p := range []*string{&d.DRBDConf, &d.ControlSocket, &d.StateDir, &d.NBD.Socket, &d.Metrics.Socket, &d.TLS.Certificate, &d.TLS.Key, &d.TLS.CA} {
		f.absPath(p)
	}
	for _, list := range [][]string{d.ResourceFiles, d.VMFiles} {
		for i := range list {
			f.absPath(&list[i])
		}
	}
	d.HA.absPaths(f, d.StateDir)
	d.adoptPos, d.resourcePos = map[string]Pos{}, map[string]Pos{}
	for _, name := range d.Adopt {
		d.adoptPos[name] = f.at("adopt")
	}
	for name := range d.Resource {
		d.resourcePos[name] = f.at("resource", name)
	}
	d.check(f)
	if err := f.err(); err != nil {
		return nil, err
	}
	return d, nil
}

// Validate checks a Daemon that was made or changed by a program, for example
// by flags. Places in its errors are those of an empty file.
func (d *Daemon) Validate() error {
	f := &tomlFile{name: orDefault(d.File, "pollux.toml"), keys: map[string][]Pos{}}
	d.check(f)
	return f.err()
}

func (d *Daemon) check(f *tomlFile) {
	if d.NodeName == "" || strings.ContainsAny(d.NodeName, " \t\n/") {
		f.errorf(f.at("node-name"), "node-name: found %q, expected a host name", d.NodeName)
	}
	for key, path := range map[string]string{"control-socket": d.ControlSocket, "state-dir": d.StateDir} {
		if path == "" {
			f.errorf(f.at(key), "%s: found an empty path, expected a path", key)
		}
	}
	f.socketPath(d.ControlSocket, "control-socket")
	f.socketPath(d.NBD.Socket, "nbd", "socket")
	if d.NBD.Socket != "" && d.NBD.Socket == d.ControlSocket {
		f.errorf(f.at("nbd", "socket"), "nbd.socket: found %q, which is the control socket, expected another path", d.NBD.Socket)
	}
	f.oneOf(d.AttachDevice, []string{"none", "nbd", "loop"}, "attach-device")
	for _, file := range []struct{ key, path string }{{"certificate", d.TLS.Certificate}, {"key", d.TLS.Key}, {"ca", d.TLS.CA}} {
		if d.TLS.IsSet() && file.path == "" {
			f.errorf(f.at("tls"), "tls: %s is missing, expected the path of a file in PEM", file.key)
		}
	}
	f.oneOf(d.Log.Level, []string{"trace", "debug", "info", "warn", "error"}, "log", "level")
	f.oneOf(d.Log.Format, []string{"auto", "json", "console"}, "log", "format")
	if n := d.Perf.Sample; n < 0 || n > maxPerfSample {
		f.errorf(f.at("perf", "sample"), "perf.sample: found %d, expected 0 to %d", n, maxPerfSample)
	}
	f.checkMetrics(d)
	f.checkHA(d)
	for _, list := range []struct {
		key      string
		patterns []string
	}{{"resource-files", d.ResourceFiles}, {"vm-files", d.VMFiles}, {"adopt", d.Adopt}} {
		if slices.Contains(list.patterns, "") {
			f.errorf(f.at(list.key), "%s: found an empty text in the list, expected a name", list.key)
		}
	}
	if len(d.Adopt) > 0 && d.DRBDConf == "" {
		f.errorf(f.at("adopt"), "adopt: found names, but drbd-conf is empty, so there is nothing to adopt from")
	}
	for name, r := range d.Resource {
		f.checkTable(name, &r)
	}
	seen := map[netip.AddrPort]bool{}
	for i := range d.NBD.TCP {
		f.checkTCP(&d.NBD.TCP[i], i, seen)
	}
}

// maxSocketPath is the longest path of a unix socket. Source: sun_path of
// unix(7), 108 bytes with the final zero.
const maxSocketPath = 107

func (f *tomlFile) socketPath(path string, key ...string) {
	if len(path) > maxSocketPath {
		f.errorf(f.at(key...), "%s: the path %q is %d bytes long, expected at most %d for a unix socket", strings.Join(key, "."), path, len(path), maxSocketPath)
	}
}

func (f *tomlFile) checkMetrics(d *Daemon) {
	m := &d.Metrics
	f.socketPath(m.Socket, "metrics", "socket")
	listen := f.at("metrics", "listen")
	switch {
	case m.Socket != "" && (m.Socket == d.ControlSocket || m.Socket == d.NBD.Socket):
		f.errorf(f.at("metrics", "socket"), "metrics.socket: found %q, which is another socket of polluxd, expected another path", m.Socket)
	case m.Listen == netip.AddrPort{}:
	case m.Socket != "":
		f.errorf(listen, "metrics.listen: found %s beside a socket, expected one of the two", m.Listen)
	case m.Listen.Port() == 0:
		f.errorf(listen, "metrics.listen: %s has no port, expected IP:PORT such as \"127.0.0.1:9748\"", m.Listen)
	case !m.Listen.Addr().Unmap().IsLoopback() && !m.Plaintext:
		f.errorf(listen, "metrics.listen: %s is not a loopback address and there is no TLS, expected \"plaintext = true\" beside it to say that the network is trusted", m.Listen)
	}
}

func (f *tomlFile) checkTCP(t *NBDTCP, n int, seen map[netip.AddrPort]bool) {
	tables := []string{"nbd", "tcp"}
	table := f.inTable(tables, n, tables)
	listen := f.inTable(tables, n, []string{"nbd", "tcp", "listen"})
	if !t.Listen.IsValid() || t.Listen.Port() == 0 {
		f.errorf(table, "nbd.tcp: listen is missing or has no port, expected IP:PORT such as \"127.0.0.1:10809\"")
		return
	}
	if seen[t.Listen] {
		f.errorf(listen, "nbd.tcp.listen: %s is listed twice", t.Listen)
	}
	seen[t.Listen] = true
	if t.Listen.Addr().Unmap().IsLoopback() {
		return
	}
	if !t.Plaintext {
		f.errorf(listen, "nbd.tcp.listen: %s is not a loopback address and there is no TLS, expected \"plaintext = true\" beside it to say that the network is trusted", t.Listen)
	}
	if len(t.Allow) == 0 {
		f.errorf(listen, "nbd.tcp.listen: %s is not a loopback address, expected \"allow = [...]\" beside it with the clients that may connect", t.Listen)
	}
}

// LoadResources reads the resource files and drbd-conf. Of the latter only
// what adopt names can be resolved; the rest is there with Foreign set, for
// dump and for people. A drbd-conf that does not parse is a warning as long
// as nothing is adopted from it. Env.Hostname is replaced by node-name.
func (d *Daemon) LoadResources(env Env) (*Config, error) {
	env.Hostname = d.NodeName
	files, err := ExpandGlobs(d.ResourceFiles, env)
	if err != nil {
		return nil, err
	}
	l := newLoader(env)
	for _, f := range files {
		if err := l.loadMain(f); err != nil {
			return nil, err
		}
	}
	foreign, err := d.loadForeign(l, env)
	if err != nil {
		return nil, err
	}
	d.warnUnknownTables(l, foreign)
	l.link()
	l.validate()
	d.checkManaged(l)
	if err := l.err(); err != nil {
		return nil, err
	}
	l.cfg.Resources = append(l.cfg.Resources, foreign...)
	if l.cfg.File == "" {
		l.cfg.File = orDefault(d.File, DefaultDaemonFile)
	}
	l.cfg.Warnings = l.warnings
	if !d.TLS.IsSet() {
		l.cfg.withoutTLS = orDefault(d.File, DefaultDaemonFile)
	}
	return l.cfg, nil
}

// loadForeign reads drbd-conf, hands the adopted resources to l and returns
// the others.
func (d *Daemon) loadForeign(l *loader, env Env) ([]*ResourceSection, error) {
	if d.DRBDConf == "" {
		return nil, nil
	}
	nowhere := Pos{File: orDefault(d.File, "pollux.toml"), Line: 1, Col: 1}
	other := newLoader(env)
	err := other.loadMain(d.DRBDConf)
	if err == nil {
		_, err = other.finish()
	}
	if errors.Is(err, fs.ErrNotExist) && len(d.Adopt) == 0 {
		return nil, nil
	}
	if err != nil && len(d.Adopt) > 0 {
		return nil, err
	}
	if err != nil {
		l.warnf(Pos{File: d.DRBDConf, Line: 1, Col: 1}, "not read, which does no harm as nothing is adopted from it: %v", err)
		return nil, nil
	}
	for _, w := range other.warnings {
		l.warnf(w.Pos, "%s", w.Msg)
	}
	for _, name := range d.Adopt {
		r := other.cfg.Resource(name)
		pos := nowhere
		if p, ok := d.adoptPos[name]; ok {
			pos = p
		}
		if r == nil {
			l.errorf(pos, "adopt: found %q, expected the name of a resource of %s", name, d.DRBDConf)
		} else if first := l.resources[name]; first != nil {
			l.errorf(pos, "adopt: resource %q is defined in Pollux's own files as well, at %s and %s", name, first.Pos.line(), r.Pos.line())
		}
	}
	var rest []*ResourceSection
	for _, r := range other.cfg.Resources {
		r.Foreign, r.Adopted = true, slices.Contains(d.Adopt, r.Name)
		switch {
		case r.Adopted && l.resources[r.Name] == nil:
			l.resources[r.Name] = r
			l.cfg.Resources = append(l.cfg.Resources, r)
		case r.Adopted: // reported above
		case l.resources[r.Name] != nil:
			l.warnf(r.Pos, "resource %s is defined at %s as well, which is the one Pollux runs; the kernel's DRBD must not have it up", r.Name, l.resources[r.Name].Pos.line())
		default:
			rest = append(rest, r)
		}
	}
	l.cfg.Files = append(l.cfg.Files, other.cfg.Files...)
	return rest, nil
}

// warnUnknownTables warns of [resource.NAME] without such a resource.
func (d *Daemon) warnUnknownTables(l *loader, foreign []*ResourceSection) {
	for name, pos := range d.resourcePos {
		known := func(r *ResourceSection) bool { return r.Name == name }
		if !slices.ContainsFunc(l.cfg.Resources, known) && !slices.ContainsFunc(foreign, known) {
			l.warnf(pos, "[resource.%s]: no file defines a resource of that name", name)
		}
	}
}
