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
}

// pair is two polluxd on this machine, each with all volumes. The first is
// Primary.
type pair struct {
	lab     *lab
	bin     string
	volumes []volume
	daemons []*process
}

var nodeNames = [2]string{"a", "b"}

func (p *pair) settings(node string) string { return p.lab.path(node, "pollux.toml") }

func (p *pair) image(node string, v volume) string { return p.lab.path(node, v.name+".img") }

func (p *pair) uri(v volume) string { return unixURI(p.lab.path(nodeNames[0], "nbd.sock"), v.name) }

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
func resourceText(dir string, volumes []volume, ports [][2]int) string {
	var b strings.Builder
	b.WriteString("global { disable-ip-verification; }\ncommon { disk { disk-flushes yes; md-flushes yes; c-max-rate 4G; } }\n")
	for i, v := range volumes {
		fmt.Fprintf(&b, "resource %s {\n    device /dev/drbd%d minor %d;\n    meta-disk internal;\n    net { protocol %c; tls %s; }\n", v.name, i, i, v.protocol, map[bool]string{true: "yes", false: "no"}[v.tls])
		for n, node := range nodeNames {
			fmt.Fprintf(&b, "    on %s { disk %q; address ipv4 127.0.0.1:%d; }\n", node, filepath.Join(dir, node, v.name+".img"), ports[i][n])
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// imageBytes is the space that one node's images take.
func (p *pair) imageBytes() (sum int64) {
	for _, v := range p.volumes {
		sum += v.bytes + metaRoom
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

// prepare writes the configuration and the images, with metadata.
func (p *pair) prepare(ctx context.Context) error {
	ports := make([][2]int, len(p.volumes))
	for i := range ports {
		for n := range ports[i] {
			var err error
			if ports[i][n], err = freePort(); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(p.lab.path("bench.res"), []byte(resourceText(p.lab.dir, p.volumes, ports)), 0o600); err != nil {
		return err
	}
	if err := makeCertificates(p.lab.dir, nodeNames[:]); err != nil {
		return err
	}
	for _, node := range nodeNames {
		if err := os.Mkdir(p.lab.path(node), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(p.settings(node), []byte(settingsText(node, p.volumes)), 0o600); err != nil {
			return err
		}
		for _, v := range p.volumes {
			if err := makeImage(p.image(node, v), v.bytes+metaRoom, metaRoom); err != nil {
				return err
			}
			if err := p.adm(ctx, node, "create-md", "--force", v.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// start starts both daemons and brings all volumes in sync.
func (p *pair) start(ctx context.Context) error {
	for _, node := range nodeNames {
		d, err := p.lab.start(filepath.Join(p.bin, "polluxd"), "--config", p.settings(node))
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
		for _, args := range [][]string{{"primary", "--force", v.name}, {"wait-sync", v.name}} {
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
	ctx, cancel := context.WithTimeout(ctx, admTime)
	defer cancel()
	for _, d := range p.daemons {
		defer d.onEnd(cancel)()
	}
	if _, err := run(ctx, filepath.Join(p.bin, "polluxadm"), append([]string{"--config", p.settings(node)}, args...)...); err != nil {
		for i, d := range p.daemons {
			if d.hasEnded() {
				err = fmt.Errorf("polluxd of %s has ended: %v: see %s", nodeNames[i], d.err, p.lab.log.Name()) //nolint:errorlint // nil if it ended well
			}
		}
		return fmt.Errorf("%s %s: %w", node, strings.Join(args, " "), err)
	}
	return nil
}
