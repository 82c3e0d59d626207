package bench

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A volume is one resource of the pair, with one volume.
type volume struct {
	name     string // of the resource and its export
	protocol byte
	io       string // "buffered" or "direct"
	bytes    int64  // that clients use
	tls      bool

	// sparse has images with nothing but metadata, the first filled bytes, and a
	// block in each stride of so many bytes, if that isn't 0. The copies are equal
	// and not synced.
	sparse bool
	filled int64
	stride int64
	logKiB int // of the activity log on disk; 0 = the default, 32
}

// pair is two polluxd on this machine, each with all volumes. The first is
// Primary. An experiment makes it by session.pair, then prepares and starts it;
// what it says in between holds for all volumes.
type pair struct {
	lab     *lab
	dir     string // everything of the pair is below it
	bin     string
	link    *link  // what is between the nodes; nil = loopback
	disk    string // further options of all disks, such as "al-extents 67;"
	net     string // further options of all connections, such as "ping-int 3;"
	volumes []volume
	ports   [][2]int   // of each volume's resource, by node
	daemons []*process // by node; empty before start
}

// pair returns a pair that is not made yet, in a directory of the lab.
func (s *session) pair(dir string, volumes ...volume) *pair {
	return &pair{lab: s.lab, dir: s.lab.path(dir), bin: s.cfg.Bin, link: s.link, volumes: volumes}
}

var nodeNames = [2]string{"a", "b"}

func (p *pair) settings(node string) string { return filepath.Join(p.dir, node, "pollux.toml") }

func (p *pair) image(node string, v volume) string {
	return filepath.Join(p.dir, node, v.name+".img")
}

// uri is the export of a volume on the Primary.
func (p *pair) uri(v volume) string {
	return unixURI(filepath.Join(p.dir, nodeNames[0], "nbd.sock"), v.name)
}

// volume finds one by its name, nil if there is none.
func (p *pair) volume(name string) *volume {
	for i := range p.volumes {
		if p.volumes[i].name == name {
			return &p.volumes[i]
		}
	}
	return nil
}

// unixURI names an NBD export on a unix socket.
func unixURI(socket, export string) string {
	u := url.URL{Scheme: "nbd+unix", Path: "/" + export, RawQuery: "socket=" + url.PathEscape(socket)}
	return u.String()
}

// settingsText is pollux.toml of a node; relative paths count from its directory.
func settingsText(node string, volumes []volume) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node-name = %q\n", node)
	b.WriteString(`resource-files = ["../bench.res"]
vm-files = []
drbd-conf = ""
control-socket = "polluxd.sock"
state-dir = "state"

[nbd]
socket = "nbd.sock"

[log]
format = "console"
`)
	if slices.ContainsFunc(volumes, func(v volume) bool { return v.tls }) {
		fmt.Fprintf(&b, "\n[tls]\ncertificate = \"../%[1]s.pem\"\nkey = \"../%[1]s.key\"\nca = \"../ca.pem\"\n", node)
	}
	for _, v := range volumes {
		fmt.Fprintf(&b, "\n[resource.%s]\nio = %q\n", v.name, v.io)
	}
	return b.String()
}

// resourceText is the configuration of the resources, one for both nodes.
// disk-flushes is DRBD's default; it is written here because the comparison
// rests on it. Both nodes have one address, so their names can't be told from it.
func (p *pair) resourceText(ports [][2]int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "global { disable-ip-verification; }\ncommon { disk { disk-flushes yes; md-flushes yes; c-max-rate 4G; %s } net { %s } }\n", p.disk, p.net)
	for i, v := range p.volumes {
		fmt.Fprintf(&b, "resource %s {\n    device /dev/drbd%d minor %d;\n    meta-disk internal;\n    net { protocol %c; tls %s; }\n", v.name, i, i, v.protocol, map[bool]string{true: "yes", false: "no"}[v.tls])
		for n, node := range nodeNames {
			fmt.Fprintf(&b, "    on %s { disk %q; address ipv4 %s:%d; }\n", node, p.image(node, v), p.link.host(n), ports[i][n])
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// imageBytes is the space that one node's images take.
func (p *pair) imageBytes() (sum int64) {
	for _, v := range p.volumes {
		sum += v.imageBytes()
	}
	return sum
}

// images are the files of one volume, or of all if v is nil.
func (p *pair) images(v *volume) (paths []string) {
	for _, have := range p.volumes {
		for _, node := range nodeNames {
			if v == nil || have == *v {
				paths = append(paths, p.image(node, have))
			}
		}
	}
	return paths
}

func (p *pair) writeResources() error {
	return os.WriteFile(filepath.Join(p.dir, "bench.res"), []byte(p.resourceText(p.ports)), 0o600)
}

// choosePorts gives each node of each resource a port.
func (p *pair) choosePorts() error {
	p.ports = make([][2]int, len(p.volumes))
	for i := range p.ports {
		for n := range p.ports[i] {
			var err error
			if p.ports[i][n], err = p.lab.nextPort(); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare writes the configuration and the images, with metadata.
func (p *pair) prepare(ctx context.Context) error {
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return err
	}
	if err := p.choosePorts(); err != nil {
		return err
	}
	if err := p.writeResources(); err != nil {
		return err
	}
	if err := makeCertificates(p.dir, nodeNames[:]); err != nil {
		return err
	}
	for _, node := range nodeNames {
		if err := os.Mkdir(filepath.Join(p.dir, node), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(p.settings(node), []byte(settingsText(node, p.volumes)), 0o600); err != nil {
			return err
		}
		for _, v := range p.volumes {
			if err := p.makeCopy(ctx, node, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// start starts both daemons and brings all volumes in sync.
func (p *pair) start(ctx context.Context) error {
	for n, node := range nodeNames {
		argv := p.link.onNode(n, filepath.Join(p.bin, "polluxd"), "--config", p.settings(node))
		d, err := p.lab.start(argv[0], argv[1:]...)
		if err != nil {
			return err
		}
		p.daemons = append(p.daemons, d)
		if err := p.lab.await(ctx, d, func(ctx context.Context) error { return p.adm(ctx, node, "status", "all") }); err != nil {
			return err
		}
	}
	for _, v := range p.volumes {
		// The daemon answers before all its resources are up.
		if err := p.lab.await(ctx, p.daemons[0], func(ctx context.Context) error {
			return p.adm(ctx, nodeNames[0], "wait-connect", "--timeout", "20s", v.name)
		}); err != nil {
			return err
		}
		for _, args := range v.firstOrders() {
			if err := p.adm(ctx, nodeNames[0], args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// stop ends both daemons, cleanly.
func (p *pair) stop() error {
	for len(p.daemons) > 0 {
		last := len(p.daemons) - 1
		d := p.daemons[last]
		p.daemons = p.daemons[:last]
		if err := p.lab.stop(d); err != nil {
			return err
		}
	}
	return nil
}

// admTime is how long an order may take, a whole resync included.
const admTime = 5 * time.Minute

// adm runs polluxadm on a node. It fails when a daemon has ended: the other one
// would wait for it for ever.
func (p *pair) adm(ctx context.Context, node string, args ...string) error {
	_, err := p.ask(ctx, node, args...)
	return err
}

// ask is adm with what it prints.
func (p *pair) ask(ctx context.Context, node string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, admTime)
	defer cancel()
	for _, d := range p.daemons {
		defer d.onEnd(cancel)()
	}
	text, err := run(ctx, filepath.Join(p.bin, "polluxadm"), append([]string{"--config", p.settings(node)}, args...)...)
	if err != nil {
		for i, d := range p.daemons {
			if d.hasEnded() {
				err = fmt.Errorf("polluxd of %s has ended: %v: see %s", nodeNames[i], d.err, p.lab.log.Name()) //nolint:errorlint // nil if it ended well
			}
		}
		return "", fmt.Errorf("%s %s: %w", node, strings.Join(args, " "), err)
	}
	return text, nil
}
