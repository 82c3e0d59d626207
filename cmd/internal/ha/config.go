package ha

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
)

// A configuration is everything that was read from files and checked.
type configuration struct {
	settings  *conf.Daemon
	cluster   *conf.Cluster // nil: this node is in none
	resources *conf.Config  // nil if they can't be read; polluxd says why
	files     []conf.VMFile // as they were read, right or wrong
	warnings  []string

	// What choose has made of files.
	vms      []*conf.VM        // in force, sorted by name
	problems map[string]string // why one of them can't be used, by its name
	kept     map[string]keptVM // those that are not as their files say, by name
	left     []leftFile        // files that are not in force, sorted by path
}

// readSettings reads pollux.toml at path. One that nobody named may be missing.
func readSettings(path string, named bool) (*conf.Daemon, error) {
	d, err := conf.LoadDaemon(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return conf.DefaultDaemon(), nil
	}
	return d, err
}

// readAll reads the cluster's file, the resources and all VM files. An error in one
// of the first two is an error of the whole: what runs goes on under what was read
// before. Of the VM files choose takes those that are right.
func readAll(settings *conf.Daemon) (*configuration, error) {
	c, err := readCluster(settings)
	if err != nil {
		return nil, err
	}
	if c.cluster == nil {
		return c, nil
	}
	if err := c.readResources(); err != nil {
		return nil, err
	}
	return c, c.readVMs()
}

// readWhatCanBe is readAll for a start: resources that can't be read are a warning.
func readWhatCanBe(settings *conf.Daemon) (*configuration, error) {
	c, err := readCluster(settings)
	if err != nil || c.cluster == nil {
		return c, err
	}
	if err := c.readResources(); err != nil {
		c.warnings = append(c.warnings, err.Error())
	}
	return c, c.readVMs()
}

// readVMs reads the VM files, and takes what is right by itself.
func (c *configuration) readVMs() (err error) {
	if c.files, err = conf.ReadVMFiles(c.settings.VMFiles, conf.SystemEnv()); err != nil {
		return err
	}
	return c.choose(nil, nil, time.Time{})
}

func readCluster(settings *conf.Daemon) (*configuration, error) {
	c := &configuration{settings: settings}
	var err error
	c.cluster, err = conf.LoadCluster(settings.HA.ClusterFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return nil, err
	case c.cluster.Node(settings.NodeName) == nil:
		return nil, fmt.Errorf("%s: this node, %s, is not among the nodes of cluster %s (%s): node-name in %s sets its name, polluxadm cluster join makes it a member",
			c.cluster.File, settings.NodeName, c.cluster.Name, strings.Join(nodeNames(c.cluster), ", "), orElse(settings.File, conf.DefaultDaemonFile))
	}
	return c, nil
}

func (c *configuration) readResources() error {
	r, err := c.settings.LoadResources(conf.SystemEnv())
	if err != nil {
		return err
	}
	c.resources = r
	return nil
}

func (c *configuration) problemOf(v *conf.VM) string {
	if c.resources == nil {
		return "the resources' files can't be read: polluxd --check says where"
	}
	if err := v.CheckResources(c.resources); err != nil {
		return err.Error()
	}
	for _, name := range resourcesOf(v) {
		if m := c.settings.Resource[name].Manager; m != conf.ManagerInternal {
			return fmt.Sprintf("resource %s has no manager = \"internal\": add it to [resource.%s] in %s on both nodes, and polluxadm down, up it",
				name, name, orElse(c.settings.File, conf.DefaultDaemonFile))
		}
		nodes := c.nodesOf(name)
		for _, n := range nodes {
			if c.cluster.Node(n) == nil {
				return fmt.Sprintf("resource %s has a copy on %s, which is not a node of cluster %s: polluxadm cluster join on %s", name, n, c.cluster.Name, n)
			}
		}
		if len(nodes) != 2 {
			return fmt.Sprintf("resource %s has no two nodes with names: automatic failover needs \"on NODE\" sections", name)
		}
	}
	return ""
}

// isMine reports whether this node has a copy of all that a VM needs, or can't tell.
func (c *configuration) isMine(v *conf.VM) bool {
	for _, name := range resourcesOf(v) {
		if !slices.Contains(c.nodesOf(name), c.self()) {
			return false
		}
	}
	return true
}

// self is this node's name, as the cluster's file spells it.
func (c *configuration) self() string { return c.cluster.Node(c.settings.NodeName).Name }

// nodesOf returns the nodes that have a copy of a resource, as the cluster's file
// spells them, sorted as in the resource's file; nil if it is unknown.
func (c *configuration) nodesOf(resource string) []string {
	if c.resources == nil {
		return nil
	}
	s := c.resources.Resource(resource)
	if s == nil {
		return nil
	}
	var nodes []string
	for _, h := range s.Hosts {
		if h.Kind != conf.OnHost || len(h.Names) == 0 {
			continue
		}
		name := h.Names[0]
		if n := c.cluster.Node(name); n != nil {
			name = n.Name
		}
		nodes = append(nodes, name)
	}
	return nodes
}

// core is the configuration as the core takes it. now is for failback windows.
func (c *configuration) core(now time.Time) (ha.Config, error) {
	out := c.base()
	for _, v := range c.vms {
		if c.usable(v) { // else its problem says why; nothing of it is known well enough
			out.Services = append(out.Services, c.service(v, now))
			out.Resources = append(out.Resources, c.resourcesFor(v)...)
		}
	}
	return out, out.Validate()
}

// base is the configuration without any service.
func (c *configuration) base() ha.Config {
	cl := c.cluster
	out := ha.Config{
		Self: c.self(), Cluster: cl.Name, Hash: clusterHash(cl), Arbiter: ha.ArbiterKind(cl.Arbiter.Kind),
		LeaderAddress: cl.LeaderIP.IsValid(), Watchdog: c.settings.HA.Watchdog != "", ReserveBytes: reserveBytes,
		Timing: ha.Timing{
			Keepalive: ticks(cl.Heartbeat.Keepalive), Warntime: ticks(cl.Heartbeat.Warntime), Deadtime: ticks(cl.Heartbeat.Deadtime),
			Initdead: ticks(cl.Heartbeat.Initdead), TTL: ticks(cl.Arbiter.TTL), ShortTTL: cl.Arbiter.UnsafeShortTTL,
		},
	}
	if cl.Arbiter.Kind == conf.ArbiterEtcd && cl.Arbiter.Etcd.Embedded() {
		out.Voters = len(cl.Nodes)
	}
	for _, n := range cl.Nodes {
		hasFence := slices.ContainsFunc(cl.Fences, func(f conf.FenceDevice) bool { return conf.SameHost(f.Node, n.Name) })
		out.Nodes = append(out.Nodes, ha.Node{Name: n.Name, Witness: n.Kind == conf.NodeWitness, Fence: hasFence})
	}
	return out
}

func (c *configuration) resourcesFor(v *conf.VM) []ha.Resource {
	var list []ha.Resource
	for _, name := range resourcesOf(v) {
		list = append(list, c.resource(name, v))
	}
	return list
}

// usable reports whether the core can be told of a VM at all: its resources have
// two nodes each, which are members.
func (c *configuration) usable(v *conf.VM) bool {
	for _, name := range resourcesOf(v) {
		nodes := c.nodesOf(name)
		if len(nodes) != 2 || c.cluster.Node(nodes[0]) == nil || c.cluster.Node(nodes[1]) == nil {
			return false
		}
	}
	return true
}

func (c *configuration) service(v *conf.VM, now time.Time) ha.Service {
	s := ha.Service{
		Name: v.Name, Resources: resourcesOf(v), Hash: v.Hash(), Problem: c.problems[v.Name], Notice: c.kept[v.Name].sentence(), NoVM: v.IsUnits(),
		Failback: ha.Failback(v.Failback), MemoryBytes: uint64(v.Memory), Addresses: len(v.IPs) > 0,
		StartTimeout: ticks(v.StartTimeout), StopTimeout: ticks(v.StopTimeout),
		RestartLimit: v.Restart.Limit, RestartDelay: ticks(v.Restart.BackOff), RestartReset: ticks(v.Restart.Within),
		Failsafe: v.Failsafe,
		Target:   ha.TargetStarted, Stickiness: int64(v.Stickiness),
	}
	if v.TargetRole == "stopped" {
		s.Target = ha.TargetStopped
	}
	if v.Restart.Limit == 0 {
		s.RestartLimit = -1 // at once elsewhere; 0 would be the core's default
	}
	if v.IsUnits() {
		s.MemoryBytes = 0
	}
	for _, n := range sortedKeys(v.Prefer) {
		name := n
		if m := c.cluster.Node(n); m != nil {
			name = m.Name
		}
		if !slices.Contains(c.nodesOf(s.Resources[0]), name) {
			continue // Problem says so
		}
		s.Prefer = append(s.Prefer, ha.Preference{Node: name, Score: int64(v.Prefer[n])})
	}
	// Days and zones are this side's: to the core the window is all day, or there is none.
	if s.Failback == ha.FailbackWindow {
		if v.FailbackWindow.Holds(now) {
			s.WindowTo = minutesOfDay
		} else {
			s.Failback = ha.FailbackManual
		}
	}
	return s
}

const minutesOfDay = 24 * 60

func (c *configuration) resource(name string, v *conf.VM) ha.Resource {
	nodes := c.nodesOf(name)
	r := ha.Resource{Name: name, Nodes: [2]string{nodes[0], nodes[1]}, Protocol: "C"}
	if full, err := c.resources.Resolve(name); err == nil {
		r.Protocol = full.Net.Protocol
	}
	t := c.settings.Resource[name]
	r.MaxLossBytes, r.MaxLossMS = uint64(t.MaxLossBytes), uint64(1000*t.MaxLossSeconds)
	// What the VM's file declares has to be what polluxd holds to.
	if v.MaxLossBytes > 0 && (t.MaxLossBytes == 0 || t.MaxLossBytes > v.MaxLossBytes || t.MaxLossSeconds > v.MaxLossSeconds) {
		r.MaxLossBytes, r.MaxLossMS = 0, 0
	}
	return r
}

// reserveBytes is what a node keeps for itself: polluxd, polluxha and the system. Our own.
const reserveBytes = 256 << 20

func ticks(d conf.Duration) ha.Tick { return ha.Tick(d.Milliseconds()) }

// resourcesOf lists the resources of a VM's disks, each once, in order.
func resourcesOf(v *conf.VM) []string {
	var names []string
	for _, d := range v.Disks() {
		if !slices.Contains(names, d.Resource) {
			names = append(names, d.Resource)
		}
	}
	return names
}

func nodeNames(c *conf.Cluster) []string {
	var names []string
	for _, n := range c.Nodes {
		names = append(names, n.Name)
	}
	return names
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// clusterHash names what the cluster's file says; 16 hexadecimal digits. What
// differs in layout only does not count.
func clusterHash(c *conf.Cluster) string {
	sum := sha256.Sum256(c.Text())
	return hex.EncodeToString(sum[:8])
}
