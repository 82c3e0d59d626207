package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pollux-project/pollux/blockdev/export"
	"github.com/pollux-project/pollux/conf"
)

// A resourceSpec is one resource as this node has to run it.
type resourceSpec struct {
	*conf.Resource
	Node string   // this node's name
	IO   string   // "direct", "buffered", or "" by the kind of disk
	TLS  conf.TLS // files, if net option tls is set

	Manager                      string // "", or conf.ManagerInternal or ManagerPacemaker
	MaxLossBytes, MaxLossSeconds uint64
}

// HandlerEnv is the environment of the handlers beside PATH: about the resource as
// a whole, lists are separated by blanks (drbd-cli, "fence-peer" handler).
func (s resourceSpec) HandlerEnv() []string {
	var minors, volumes, disks []string
	for _, v := range s.Volumes {
		minors = append(minors, strconv.Itoa(v.Minor))
		volumes = append(volumes, strconv.Itoa(v.Number))
		disks = append(disks, v.Disk)
	}
	return []string{
		"DRBD_RESOURCE=" + s.Name,
		"DRBD_CONF=" + s.File,
		"DRBD_MINOR=" + strings.Join(minors, " "),
		"DRBD_VOLUME=" + strings.Join(volumes, " "),
		"DRBD_LL_DISK=" + strings.Join(disks, " "),
		"DRBD_PEER=" + s.Peer.Name,
		"DRBD_PEERS=" + strings.Join(s.Peer.Names, " "),
		"DRBD_PEER_AF=" + s.Peer.Family,
		"DRBD_PEER_ADDRESS=" + s.Peer.Addr.Addr().String(),
	}
}

// A loadedConfig is everything that was read from files, checked, and not yet
// acted on.
type loadedConfig struct {
	settings *conf.Daemon
	files    []string // resource files that were read
	specs    []resourceSpec
	warnings []string
}

// load reads pollux.toml at path and all resource files. A pollux.toml that
// nobody named may be missing. Any error in any file is an error of the
// whole, so that nothing is started on half a configuration.
func load(path string, named bool) (*loadedConfig, error) {
	settings, err := conf.LoadDaemon(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		settings, err = conf.DefaultDaemon(), nil
	}
	if err != nil {
		return nil, err
	}
	return loadResources(settings)
}

func loadResources(settings *conf.Daemon) (*loadedConfig, error) {
	cfg, err := settings.LoadResources(conf.SystemEnv())
	if err != nil {
		return nil, err
	}
	l := &loadedConfig{settings: settings, files: cfg.Files}
	for _, w := range cfg.Warnings {
		l.warnings = append(l.warnings, w.String())
	}
	others := 0
	for _, s := range cfg.Resources {
		switch {
		case s.Ignored:
			others++ // of other nodes
			continue
		case !s.Runnable():
			l.warnings = append(l.warnings, fmt.Sprintf("resource %s of %s is left to the kernel's DRBD; adopt in pollux.toml would change that", s.Name, s.File))
			continue
		case s.Stacked:
			l.warnings = append(l.warnings, fmt.Sprintf("resource %s is stacked, which Pollux doesn't do; it is left out", s.Name))
			continue
		}
		r, err := cfg.Resolve(s.Name)
		if err != nil {
			return nil, err
		}
		table := settings.Resource[s.Name]
		spec := resourceSpec{
			Resource: r, Node: settings.NodeName, IO: table.IO, MaxLossBytes: uint64(table.MaxLossBytes), MaxLossSeconds: uint64(table.MaxLossSeconds),
		}
		if table.IsManaged() {
			spec.Manager = table.Manager
		}
		if r.Net.TLS {
			spec.TLS = settings.TLS
		}
		l.specs = append(l.specs, spec)
	}
	if len(l.specs) == 0 && others > 0 {
		l.warnings = append(l.warnings, fmt.Sprintf("none of the %d configured resources is for this node: no \"on %s\" in %s; node-name in pollux.toml sets the name",
			others, settings.NodeName, strings.Join(cfg.Files, " ")))
	}
	return l, nil
}

// listeners are the places where NBD is served.
func listeners(s *conf.Daemon) []export.Listener {
	var ls []export.Listener
	if s.NBD.Socket != "" {
		ls = append(ls, export.Listener{Network: "unix", Address: s.NBD.Socket})
	}
	for _, t := range s.NBD.TCP {
		l := export.Listener{Network: "tcp", Address: t.Listen.String(), Plaintext: t.Plaintext, Allow: []netip.Prefix{}}
		for _, p := range t.Allow {
			l.Allow = append(l.Allow, p.Prefix)
		}
		ls = append(ls, l)
	}
	return ls
}
