package conf

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The defaults of cluster.toml. Our own choices: a silent host is given up about
// when its lease ends, and no lease is shorter than five of etcd's heartbeats.
const (
	DefaultKeepalive = time.Second
	DefaultWarntime  = 3 * time.Second
	DefaultDeadtime  = 6 * time.Second
	DefaultInitdead  = 30 * time.Second
	DefaultTTL       = 6 * time.Second
	DefaultHAPort    = 7790 // of the first link, where none is given on a command line
	DefaultEtcdPort  = 2379 // of etcd's clients; its members use the next one
)

// Bounds on cluster.toml. MinTTL: a shorter lease ends while a disk is slow or a
// leader is elected, which the users of etcd leases learnt the hard way. The
// others are our own.
const (
	MinTTL            = 5 * time.Second
	minKeepalive      = 10 * time.Millisecond
	maxClusterTime    = time.Hour
	MaxClusterNodes   = 32
	MaxLinks          = 4
	maxClusterName    = 48
	maxNodeName       = 253 // a host name; RFC 1035
	clusterIDLength   = 36  // a UUID in text
	maxFenceOptions   = 64
	maxEtcdEndpoints  = 16
	fingerprintPrefix = "sha256:"
)

// The kinds of a node, and of an arbiter.
const (
	NodeData    = "data"
	NodeWitness = "witness"

	ArbiterEtcd    = "etcd"
	ArbiterWitness = "witness"
	ArbiterFence   = "fence"
	ArbiterManual  = "manual"
)

// Cluster is cluster.toml: the nodes that stand in for each other, and who says
// which of them may write. The same file has to be on all of them. It is written
// by polluxadm cluster init, join and leave, and may be edited. Relative paths
// count from the directory of the file. An unknown key is an error.
type Cluster struct {
	// name is what people call the cluster: letters, digits, ".", "_" and "-",
	// at most 48. Required.
	Name string `toml:"name"`

	// id tells clusters of one name apart, a UUID. It is made by cluster init.
	// Required.
	ID string `toml:"id"`

	// serial counts the changes; a node takes over the file of the highest.
	// Default: 0.
	Serial int `toml:"serial"`

	// leader-ip is an address that the leader of the cluster has, as IP/BITS.
	// Default: none.
	LeaderIP IPPrefix `toml:"leader-ip"`

	// leader-interface is the network interface that gets it. Default: the one
	// that has another address of that network.
	LeaderInterface string `toml:"leader-interface"`

	// heartbeat says when a node counts as dead; see Heartbeat.
	Heartbeat Heartbeat `toml:"heartbeat"`

	// arbiter says who decides who may write; see ClusterArbiter.
	Arbiter ClusterArbiter `toml:"arbiter"`

	// node lists the nodes, each as a table [[node]]; see ClusterNode.
	Nodes []ClusterNode `toml:"node"`

	// fence lists the fence devices, each as a table [[fence]]; see FenceDevice.
	Fences []FenceDevice `toml:"fence"`

	// File is the absolute path it was read from; "" for one made by a program.
	File string `toml:"-"`

	keys map[string][]Pos
}

// ClusterNode is one table [[node]] of cluster.toml.
type ClusterNode struct {
	// name is the node's, as in pollux.toml and in "on" sections. Required.
	Name string `toml:"name"`

	// kind is "data", or "witness" for a node that has no disks: it has a vote
	// only. Default: "data".
	Kind string `toml:"kind"`

	// links lists where the node listens, IP:PORT or [IPV6]:PORT, each in another
	// network than the last: the management address first, then those of the
	// replication links. The nth link of a node talks to the nth of another. One
	// at least, at most 4. Required.
	Links []netip.AddrPort `toml:"links"`

	// public-key is the fingerprint of the key of the node's certificate,
	// "sha256:" and 64 digits: nobody else is this node. It is set by join.
	// Default: any certificate that the cluster has signed for the name.
	PublicKey string `toml:"public-key"`

	// etcd is where an embedded etcd listens for clients, IP:PORT; its members
	// use the port behind it. Default: the first link's address, port 2379.
	Etcd netip.AddrPort `toml:"etcd"`
}

// EtcdClient returns where the node's embedded etcd listens for clients.
func (n *ClusterNode) EtcdClient() netip.AddrPort {
	if n.Etcd.IsValid() || len(n.Links) == 0 {
		return n.Etcd
	}
	return netip.AddrPortFrom(n.Links[0].Addr(), DefaultEtcdPort)
}

// EtcdPeer returns where the node's embedded etcd listens for other members.
func (n *ClusterNode) EtcdPeer() netip.AddrPort {
	c := n.EtcdClient()
	return netip.AddrPortFrom(c.Addr(), c.Port()+1)
}

// Heartbeat is the table [heartbeat] of cluster.toml. The words are those of
// Linux-HA's ha.cf.
type Heartbeat struct {
	// keepalive is how often each link carries a sign of life. Default: "1s".
	Keepalive Duration `toml:"keepalive"`

	// warntime is how long a link may be silent before that is told as "late":
	// at least three times keepalive. Default: "3s".
	Warntime Duration `toml:"warntime"`

	// deadtime is how long a node may be silent on all links before it counts as
	// dead: more than warntime, and where a lease decides not less than the
	// arbiter's ttl. Default: "6s".
	Deadtime Duration `toml:"deadtime"`

	// initdead is the same for a node that was not heard of since this one
	// started: at least twice deadtime. Default: "30s".
	Initdead Duration `toml:"initdead"`
}

// ClusterArbiter is the table [arbiter] of cluster.toml.
type ClusterArbiter struct {
	// kind is "etcd", "witness" (the program pollux-witness on a third host),
	// "fence" (two nodes that can switch each other off), or "manual": a node
	// goes on alone, and the other never starts anything by itself.
	// Default: "manual".
	Kind string `toml:"kind"`

	// ttl is how long a node's lease lasts without renewal, "5s" at least.
	// Default: "6s".
	TTL Duration `toml:"ttl"`

	// unsafe-short-ttl permits a ttl below 5s, for tests: a slow disk or a busy
	// machine then costs a failover. Default: false.
	UnsafeShortTTL bool `toml:"unsafe-short-ttl"`

	// etcd says how etcd is reached; see EtcdTable.
	Etcd EtcdTable `toml:"etcd"`

	// witness says how pollux-witness is reached; see WitnessTable.
	Witness WitnessTable `toml:"witness"`
}

// Leases reports whether a lease says when a silent node may be given up.
func (a *ClusterArbiter) Leases() bool { return a.Kind == ArbiterEtcd || a.Kind == ArbiterWitness }

// EtcdTable is the table [arbiter.etcd] of cluster.toml.
type EtcdTable struct {
	// endpoints lists an etcd cluster's client URLs, "https://10.1.1.5:2379";
	// http is for loopback addresses only. Default: none, the nodes run etcd
	// themselves (polluxha --embedded-etcd), and each has a vote.
	Endpoints []string `toml:"endpoints"`

	// user and password-file are for an etcd with authentication. The file holds
	// the password on one line, mode 0600. Default: none.
	User         string `toml:"user"`
	PasswordFile string `toml:"password-file"`

	// ca holds who signs etcd's certificates; cert and key are what this node
	// shows, in PEM. Default: the cluster's own.
	CA   string `toml:"ca"`
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

// Embedded reports whether the nodes run etcd themselves.
func (e *EtcdTable) Embedded() bool { return len(e.Endpoints) == 0 }

// WitnessTable is the table [arbiter.witness] of cluster.toml.
type WitnessTable struct {
	// address is the witness's, IP:PORT. Required for kind "witness".
	Address netip.AddrPort `toml:"address"`

	// fingerprint is that of the witness's own certificate, as pollux-witness
	// prints it: "sha256:" and 64 digits. Either it or ca is required.
	Fingerprint string `toml:"fingerprint"`

	// ca holds who signs the witness's certificate, which has to be for its
	// address. Default: none.
	CA string `toml:"ca"`

	// cert and key are what this node shows, in PEM. Default: its certificate of
	// the cluster.
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

// FenceDevice is one table [[fence]] of cluster.toml.
type FenceDevice struct {
	// node is whom it switches off. Required.
	Node string `toml:"node"`

	// agent is a program of package fence-agents, "fence_ipmilan" for example, or
	// a path. Required.
	Agent string `toml:"agent"`

	// options are given to the agent on its standard input, one NAME=VALUE each;
	// see the agent's man page. action and nodename are set by Pollux.
	// Default: none.
	Options map[string]string `toml:"options"`
}

// DefaultCluster is cluster.toml with nothing in it; it lacks a name, an id and
// nodes.
func DefaultCluster() *Cluster {
	return &Cluster{
		Heartbeat: Heartbeat{Duration{DefaultKeepalive}, Duration{DefaultWarntime}, Duration{DefaultDeadtime}, Duration{DefaultInitdead}},
		Arbiter:   ClusterArbiter{Kind: ArbiterManual, TTL: Duration{DefaultTTL}},
	}
}

// LoadCluster reads cluster.toml. The error is an ErrorList, a *ParseError, or
// wraps the file system's.
func LoadCluster(path string) (*Cluster, error) {
	src, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("read the description of the cluster: %w", err)
	}
	return ParseCluster(path, src)
}

// ParseCluster is LoadCluster for a text; path is for messages and relative paths.
func ParseCluster(path string, src []byte) (*Cluster, error) {
	c := DefaultCluster()
	f, err := decodeTOML(path, src, c)
	if err != nil {
		return nil, err
	}
	c.File, c.keys = path, f.keys
	e, w := &c.Arbiter.Etcd, &c.Arbiter.Witness
	for _, p := range []*string{&c.File, &e.PasswordFile, &e.CA, &e.Cert, &e.Key, &w.CA, &w.Cert, &w.Key} {
		f.absPath(p)
	}
	for i := range c.Nodes {
		c.Nodes[i].Kind = orDefault(c.Nodes[i].Kind, NodeData)
	}
	c.check(f)
	if err := f.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Validate checks a Cluster that was made or changed by a program.
func (c *Cluster) Validate() error {
	f := c.file()
	c.check(f)
	return f.err()
}

func (c *Cluster) file() *tomlFile {
	return &tomlFile{name: orDefault(c.File, "cluster.toml"), keys: c.keys}
}

// Node returns the node of a name, compared as SameHost does, or nil.
func (c *Cluster) Node(name string) *ClusterNode {
	for i := range c.Nodes {
		if SameHost(c.Nodes[i].Name, name) {
			return &c.Nodes[i]
		}
	}
	return nil
}

// DataNodes returns the names of the nodes that have disks.
func (c *Cluster) DataNodes() []string {
	var names []string
	for _, n := range c.Nodes {
		if n.Kind != NodeWitness {
			names = append(names, n.Name)
		}
	}
	return names
}

func (c *Cluster) check(f *tomlFile) {
	if !validVMName(c.Name) {
		f.errorf(f.at("name"), "name: found %q, expected 1 to %d letters, digits, \".\", \"_\" and \"-\", the first a letter, a digit or \"_\"", c.Name, maxClusterName)
	}
	if !validUUID(c.ID) {
		f.errorf(f.at("id"), "id: found %q, expected a UUID such as polluxadm cluster init makes one", c.ID)
	}
	if c.Serial < 0 {
		f.errorf(f.at("serial"), "serial: found %d, expected 0 or more", c.Serial)
	}
	if len(c.LeaderInterface) > maxIfName || strings.ContainsAny(c.LeaderInterface, "/ \t\n") {
		f.errorf(f.at("leader-interface"), "leader-interface: found %q, expected the name of an interface of at most %d characters", c.LeaderInterface, maxIfName)
	}
	if c.LeaderInterface != "" && !c.LeaderIP.IsValid() {
		f.errorf(f.at("leader-interface"), "leader-interface: found %q without leader-ip, expected both or none", c.LeaderInterface)
	}
	c.checkTimes(f)
	c.checkArbiter(f)
	c.checkNodes(f)
	c.checkFences(f)
}

func (c *Cluster) checkTimes(f *tomlFile) {
	h, ttl := &c.Heartbeat, c.Arbiter.TTL.Duration
	for _, t := range []struct {
		key string
		d   time.Duration
	}{{"keepalive", h.Keepalive.Duration}, {"warntime", h.Warntime.Duration}, {"deadtime", h.Deadtime.Duration}, {"initdead", h.Initdead.Duration}} {
		if t.d < minKeepalive || t.d > maxClusterTime {
			f.errorf(f.at("heartbeat", t.key), "heartbeat.%s: found %v, expected %v to %v", t.key, t.d, minKeepalive, maxClusterTime)
		}
	}
	if ttl < minKeepalive || ttl > maxClusterTime {
		f.errorf(f.at("arbiter", "ttl"), "arbiter.ttl: found %v, expected %v to %v", ttl, MinTTL, maxClusterTime)
	}
	if f.err() != nil {
		return // what follows would say the same again
	}
	if h.Warntime.Duration < 3*h.Keepalive.Duration {
		f.errorf(f.at("heartbeat", "warntime"), "heartbeat.warntime: found %v, expected at least three times keepalive (%v): one lost packet is no warning", h.Warntime, 3*h.Keepalive.Duration)
	}
	if h.Deadtime.Duration <= h.Warntime.Duration {
		f.errorf(f.at("heartbeat", "deadtime"), "heartbeat.deadtime: found %v, expected more than warntime (%v)", h.Deadtime, h.Warntime)
	}
	if h.Initdead.Duration < 2*h.Deadtime.Duration {
		f.errorf(f.at("heartbeat", "initdead"), "heartbeat.initdead: found %v, expected at least twice deadtime (%v): machines that boot together do not come up in the same second", h.Initdead, 2*h.Deadtime.Duration)
	}
	if ttl < MinTTL && !c.Arbiter.UnsafeShortTTL {
		f.errorf(f.at("arbiter", "ttl"), "arbiter.ttl: found %v, expected at least %v: a shorter lease ends while a disk is slow (tests: unsafe-short-ttl = true)", ttl, MinTTL)
	}
	if c.Arbiter.Leases() && h.Deadtime.Duration < ttl {
		f.errorf(f.at("heartbeat", "deadtime"), "heartbeat.deadtime: found %v, expected at least arbiter.ttl (%v): with arbiter %q the lease decides", h.Deadtime, ttl, c.Arbiter.Kind)
	}
}

func (c *Cluster) checkArbiter(f *tomlFile) {
	a := &c.Arbiter
	f.oneOf(a.Kind, []string{ArbiterEtcd, ArbiterWitness, ArbiterFence, ArbiterManual}, "arbiter", "kind")
	c.checkEtcd(f)
	w := &a.Witness
	pos := func(key string) Pos { return f.at("arbiter", "witness", key) }
	switch {
	case *w == WitnessTable{} && a.Kind != ArbiterWitness:
		return
	case !usableLink(w.Address):
		f.errorf(pos("address"), "arbiter.witness.address: found %q, expected IP:PORT of a host that runs pollux-witness", addrText(w.Address))
	case w.Fingerprint == "" && w.CA == "":
		f.errorf(pos("fingerprint"), "arbiter.witness: found neither fingerprint nor ca, expected the fingerprint that `pollux-witness status` prints on the witness")
	case w.Fingerprint != "" && !validFingerprint(w.Fingerprint):
		f.errorf(pos("fingerprint"), "arbiter.witness.fingerprint: found %q, expected %q and 64 digits 0 to 9 and a to f", w.Fingerprint, fingerprintPrefix)
	}
	if (w.Cert == "") != (w.Key == "") {
		f.errorf(pos("cert"), "arbiter.witness: found one of cert and key, expected both or none")
	}
	for i, n := range c.Nodes {
		if w.Address.IsValid() && slices.Contains(n.Links, w.Address) {
			f.errorf(pos("address"), "arbiter.witness.address: %s is a link of %s, expected a third host: a witness that dies with a node is none", w.Address, c.Nodes[i].Name)
		}
	}
}

func (c *Cluster) checkEtcd(f *tomlFile) {
	e := &c.Arbiter.Etcd
	at := func(key string) Pos { return f.at("arbiter", "etcd", key) }
	if len(e.Endpoints) > maxEtcdEndpoints {
		f.errorf(at("endpoints"), "arbiter.etcd.endpoints: found %d, expected at most %d", len(e.Endpoints), maxEtcdEndpoints)
	}
	for i, text := range e.Endpoints {
		u, err := url.Parse(text)
		switch {
		case err != nil || u.Host == "" || u.Port() == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || strings.Trim(u.Path, "/") != "":
			f.errorf(at("endpoints"), "arbiter.etcd.endpoints: found %q, expected a URL such as \"https://10.1.1.5:2379\"", text)
		case u.Scheme == "http" && !loopbackHost(u.Hostname()):
			f.errorf(at("endpoints"), "arbiter.etcd.endpoints: found %q without TLS, expected https: whoever sees the network could take a resource over", text)
		case slices.Contains(e.Endpoints[:i], text):
			f.errorf(at("endpoints"), "arbiter.etcd.endpoints: %s is listed twice", text)
		}
	}
	if (e.User == "") != (e.PasswordFile == "") {
		f.errorf(at("user"), "arbiter.etcd: found one of user and password-file, expected both or none")
	}
	if (e.Cert == "") != (e.Key == "") {
		f.errorf(at("cert"), "arbiter.etcd: found one of cert and key, expected both or none")
	}
}

func (c *Cluster) checkNodes(f *tomlFile) {
	if len(c.Nodes) == 0 || len(c.Nodes) > MaxClusterNodes {
		f.errorf(f.at("node"), "node: found %d nodes, expected 1 to %d tables [[node]]", len(c.Nodes), MaxClusterNodes)
		return
	}
	users := map[netip.AddrPort]string{} // of an address, and what for
	claim := func(p Pos, key string, a netip.AddrPort, who string) {
		if other := users[a]; other != "" {
			f.errorf(p, "%s: %s is that of %s as well, expected an address of its own", key, a, other)
		}
		users[a] = who
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		table := []string{"node"}
		at := func(key string) Pos { return f.inTable(table, i, []string{"node", key}) }
		if n.Name == "" || len(n.Name) > maxNodeName || !validHostName(n.Name) {
			f.errorf(at("name"), "node.name: found %q, expected a host name", n.Name)
		}
		if j := slices.IndexFunc(c.Nodes[:i], func(o ClusterNode) bool { return SameHost(o.Name, n.Name) }); j >= 0 {
			f.errorf(at("name"), "node.name: %q is also %q, expected different names (case and domain do not count)", n.Name, c.Nodes[j].Name)
		}
		if n.Kind != "" && n.Kind != NodeData && n.Kind != NodeWitness {
			f.errorf(at("kind"), "node.kind: found %q, expected one of %s, %s", n.Kind, NodeData, NodeWitness)
		}
		if n.PublicKey != "" && !validFingerprint(n.PublicKey) {
			f.errorf(at("public-key"), "node.public-key: found %q, expected %q and 64 digits 0 to 9 and a to f", n.PublicKey, fingerprintPrefix)
		}
		if len(n.Links) == 0 || len(n.Links) > MaxLinks {
			f.errorf(at("links"), "node.links: found %d links of node %q, expected 1 to %d: the management address, then those of the replication links", len(n.Links), n.Name, MaxLinks)
		}
		for _, l := range n.Links {
			if !usableLink(l) {
				f.errorf(at("links"), "node.links: found %q, expected IP:PORT that other nodes can reach", addrText(l))
				continue
			}
			claim(at("links"), "node.links", l, "node "+n.Name)
		}
		if c.Arbiter.Kind != ArbiterEtcd || !c.Arbiter.Etcd.Embedded() || len(n.Links) == 0 {
			continue
		}
		if e := n.EtcdClient(); !usableLink(e) || e.Port() == 65535 {
			f.errorf(at("etcd"), "node.etcd: found %q, expected IP:PORT with a port below 65535: the members of etcd use the next one", addrText(e))
		} else {
			claim(at("etcd"), "node.etcd", e, "etcd on "+n.Name)
			claim(at("etcd"), "node.etcd", n.EtcdPeer(), "etcd on "+n.Name)
		}
	}
	if len(c.DataNodes()) == 0 {
		f.errorf(f.at("node"), "node: found witnesses only, expected a node of kind \"data\"")
	}
}

func (c *Cluster) checkFences(f *tomlFile) {
	seen := map[string]bool{}
	for i, d := range c.Fences {
		at := func(key string) Pos { return f.inTable([]string{"fence"}, i, []string{"fence", key}) }
		n := c.Node(d.Node)
		switch {
		case n == nil:
			f.errorf(at("node"), "fence.node: found %q, expected the name of a node", d.Node)
		case seen[n.Name]:
			f.errorf(at("node"), "fence.node: %s has two fence devices, expected one", n.Name)
		default:
			seen[n.Name] = true
		}
		if base := d.Agent[strings.LastIndexByte(d.Agent, '/')+1:]; !strings.HasPrefix(base, "fence_") || !validVMName(base) ||
			base != d.Agent && !strings.HasPrefix(d.Agent, "/") {
			f.errorf(at("agent"), "fence.agent: found %q, expected a program such as \"fence_ipmilan\", or its absolute path", d.Agent)
		}
		if len(d.Options) > maxFenceOptions {
			f.errorf(at("options"), "fence.options: found %d, expected at most %d", len(d.Options), maxFenceOptions)
		}
		for name, value := range d.Options {
			switch {
			case name == "" || strings.ContainsAny(name, "= \t\n\x00") || strings.ContainsAny(value, "\n\x00"):
				f.errorf(at("options"), "fence.options: found %q, expected a name and a value of one line", name)
			case name == "action" || name == "nodename":
				f.errorf(at("options"), "fence.options: found %q, which Pollux sets itself", name)
			}
		}
	}
}

// AutomaticFailover says why nodes of this cluster can't start anything by
// themselves, or is nil. The file is right without it: a cluster grows node by
// node. The error is an ErrorList.
func (c *Cluster) AutomaticFailover() error {
	f := c.file()
	kind := f.at("arbiter", "kind")
	data := c.DataNodes()
	if len(data) < 2 {
		f.errorf(f.at("node"), "no automatic failover: there is one node of kind \"data\": add another one with polluxadm cluster join")
	}
	switch c.Arbiter.Kind {
	case ArbiterManual:
		f.errorf(kind, "no automatic failover: arbiter.kind is \"manual\": protected against the loss of a disk, not of a host; choose etcd, witness or fence")
	case ArbiterEtcd:
		if n := len(c.Nodes); c.Arbiter.Etcd.Embedded() && (n < 3 || n%2 == 0 && len(data) == n) {
			f.errorf(kind, "no automatic failover: the nodes' own etcd has %d voters, expected an odd number from 3 on: add a node of kind \"witness\", which needs no disk", n)
		}
	case ArbiterFence:
		if len(data) != 2 {
			f.errorf(kind, "no automatic failover: there are %d nodes of kind \"data\", and arbiter \"fence\" is for two: choose etcd or witness", len(data))
		}
		for _, name := range data {
			if !slices.ContainsFunc(c.Fences, func(d FenceDevice) bool { return SameHost(d.Node, name) }) {
				f.errorf(kind, "no automatic failover: nothing switches %s off: add a table [[fence]] for it", name)
			}
		}
	}
	return f.err()
}

func usableLink(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
}

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func loopbackHost(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

func validHostName(s string) bool {
	for i := range len(s) {
		if !isWordByte(s[i]) || s[i] == '/' {
			return false
		}
	}
	return s != "" && s[0] != '-' && s[0] != '.'
}

// validUUID takes the usual text of a UUID in small letters.
func validUUID(s string) bool {
	if len(s) != clusterIDLength {
		return false
	}
	for i := range len(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (s[i] == '-') || !dash && !isLowerHex(s[i]) {
			return false
		}
	}
	return true
}

func validFingerprint(s string) bool {
	digits, ok := strings.CutPrefix(s, fingerprintPrefix)
	if !ok || len(digits) != 64 {
		return false
	}
	for i := range len(digits) {
		if !isLowerHex(digits[i]) {
			return false
		}
	}
	return true
}

func isLowerHex(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'f' }

// sortedNodes is the order in which nodes are written.
func sortedNodes(nodes []ClusterNode) []ClusterNode {
	s := slices.Clone(nodes)
	slices.SortFunc(s, func(a, b ClusterNode) int { return cmp.Compare(a.Name, b.Name) })
	return s
}
