package conf

import (
	"net/netip"
	"path/filepath"
)

// DefaultHASocket is our own choice.
const DefaultHASocket = "/run/pollux/polluxha.sock"

// HA is the table [ha] of pollux.toml: what polluxha, the failover manager, needs
// of this node. What all nodes share is in cluster.toml.
type HA struct {
	// cluster-file is where cluster.toml is. Default: cluster.toml in state-dir.
	ClusterFile string `toml:"cluster-file"`

	// socket is the unix socket on which polluxha answers polluxadm; it is made
	// with mode 0600. Default: "/run/pollux/polluxha.sock".
	Socket string `toml:"socket"`

	// listen is where polluxha listens for other nodes on the first link, IP:PORT
	// or [IPV6]:PORT; 0.0.0.0 and [::] are all addresses. Default: the first of
	// the node's links in cluster.toml.
	Listen netip.AddrPort `toml:"listen"`

	// watchdog is the device that resets this machine if a VM whose lease has
	// ended can't be killed, "/dev/watchdog" for example. "" has none.
	// Default: "".
	Watchdog string `toml:"watchdog"`

	// embedded-etcd says that this node runs a member of etcd inside polluxha,
	// for arbiter "etcd" without endpoints. Default: false.
	EmbeddedEtcd bool `toml:"embedded-etcd"`

	// etcd-dir is that member's directory: never on a replicated disk.
	// Default: etcd in state-dir.
	EtcdDir string `toml:"etcd-dir"`

	// hooks are run when something has happened on this node, whatever the VM; a
	// VM's own come besides. See Hooks.
	Hooks Hooks `toml:"hooks"`
}

func defaultHA() HA {
	h := HA{Socket: DefaultHASocket, Hooks: DefaultHooks()}
	h.fill(DefaultStateDir)
	return h
}

// absPaths makes the paths of the table absolute, and fills in those that depend
// on stateDir.
func (h *HA) absPaths(f *tomlFile, stateDir string) {
	for _, p := range []*string{&h.ClusterFile, &h.Socket, &h.Watchdog, &h.EtcdDir} {
		f.absPath(p)
	}
	h.fill(stateDir)
}

func (h *HA) fill(stateDir string) {
	h.ClusterFile = orDefault(h.ClusterFile, filepath.Join(stateDir, "cluster.toml"))
	h.EtcdDir = orDefault(h.EtcdDir, filepath.Join(stateDir, "etcd"))
}

func (f *tomlFile) checkHA(d *Daemon) {
	h := &d.HA
	f.socketPath(h.Socket, "ha", "socket")
	switch h.Socket {
	case "":
		f.errorf(f.at("ha", "socket"), "ha.socket: found an empty path, expected a path")
	case d.ControlSocket, d.NBD.Socket, d.Metrics.Socket:
		f.errorf(f.at("ha", "socket"), "ha.socket: found %q, which is a socket of polluxd, expected another path", h.Socket)
	}
	if h.Listen.IsValid() && h.Listen.Port() == 0 {
		f.errorf(f.at("ha", "listen"), "ha.listen: %s has no port, expected IP:PORT such as \"10.1.1.31:%d\"", h.Listen, DefaultHAPort)
	}
	f.checkHooks(h.Hooks, "ha", "hooks")
}
