package ha

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/adm"
)

// snapshot asks the core, and remembers what belongs to its answer.
func (m *manager) snapshot(ctx context.Context) (s ha.Snapshot, c *configuration, now ha.Tick, err error) {
	if !m.do(ctx, func() { s, c, now = m.core.Snapshot(), m.conf, m.now() }) {
		err = errStopping
	}
	return s, c, now, err
}

func level(l ha.Level) string {
	if l == "" {
		return adm.HALevelOK
	}
	return string(l)
}

// vmStatus answers vm-list and, with a name, vm-status.
func (m *manager) vmStatus(ctx context.Context, name string) (any, error) {
	s, c, now, err := m.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if _, ok := c.leftFile(name); name != "" && c.vm(name) == nil && !ok {
		return nil, c.unknownVM(name)
	}
	out := adm.HAVMs{Node: s.Self, VMs: []adm.HAVM{}}
	for _, v := range c.vms {
		if name != "" && v.Name != name {
			continue
		}
		i := slices.IndexFunc(s.Services, func(x ha.ServiceStatus) bool { return x.Name == v.Name })
		if i < 0 {
			out.VMs = append(out.VMs, unusable(v.Name, v.File, orElse(c.problems[v.Name], "its file can't be used")))
			continue
		}
		out.VMs = append(out.VMs, m.vmLine(v, s.Services[i], now))
	}
	for _, f := range c.left {
		if _, ok := c.leftFile(f.name); ok && (name == "" || name == f.name) {
			out.VMs = append(out.VMs, unusable(f.name, f.file, f.why))
		}
	}
	slices.SortStableFunc(out.VMs, func(a, b adm.HAVM) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// unusable is a VM that the core was not told of.
func unusable(name, file, why string) adm.HAVM {
	return adm.HAVM{
		Name: name, State: adm.VMBlocked, Enabled: true, Level: adm.HALevelCritical, SameConfig: true, Why: why,
		Advice: "correct it on all nodes of the VM, then polluxadm reload", Protection: "not protected", File: file,
		Nodes: []string{}, Resources: []adm.HAResource{},
	}
}

func (m *manager) vmLine(v *conf.VM, s ha.ServiceStatus, now ha.Tick) adm.HAVM {
	out := adm.HAVM{
		Name: v.Name, State: string(s.State), Node: s.Node, Target: targetWord(s.Target, v), Enabled: s.Enabled, Hypervisor: v.Hypervisor,
		Nodes: s.Nodes, Level: level(s.Level), Why: s.Why, Advice: s.Advice, Protection: s.Protection, Incarnation: s.Incarnation,
		Restarts: s.Restarts, SameConfig: s.SameFile, MemoryBytes: uint64(v.Memory), Monitor: s.Monitor, File: v.File,
		Resources: []adm.HAResource{},
	}
	if v.IsUnits() {
		out.MemoryBytes = 0
	}
	if s.Since > 0 {
		t := m.wall().Add(-time.Duration(now-s.Since) * time.Millisecond).UTC()
		out.Since = &t
	}
	for _, ip := range v.IPs {
		out.IPs = append(out.IPs, ip.Address.String())
	}
	for _, r := range s.Resources {
		out.Resources = append(out.Resources, resourceLine(r))
	}
	return out
}

func targetWord(t ha.Target, v *conf.VM) string {
	switch t {
	case ha.TargetStarted:
		return "running"
	case ha.TargetStopped:
		return "stopped"
	default:
		return v.TargetRole // disabled: what the file says holds once it is enabled
	}
}

func resourceLine(r ha.ResourceStatus) adm.HAResource {
	st := r.Storage
	out := adm.HAResource{
		Name: orElse(r.Record.Resource, st.Resource), Term: r.Record.Term, Owner: r.Record.Owner, InSync: r.Record.InSync,
		Released: r.Record.Released, Role: string(st.Role), LocalTerm: st.Term, Promised: st.Promised, Sole: st.Sole,
		Frozen: st.Frozen, MaxLoss: r.MaxLoss,
	}
	if r.Record.Generation != 0 {
		out.Generation = fmt.Sprintf("%016X", r.Record.Generation)
	}
	if out.InSync == nil {
		out.InSync = []string{}
	}
	if st.Up {
		out.Disk, out.PeerDisk, out.Connection = string(st.Disk), string(st.PeerDisk), "not connected"
		if st.Connected {
			out.Connection = "Connected"
		}
	}
	return out
}

// clusterStatus answers cluster-status and node-list.
func (m *manager) clusterStatus(ctx context.Context) (any, error) {
	s, c, now, err := m.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	cl := c.cluster
	out := adm.HACluster{
		Name: cl.Name, ID: cl.ID, Node: s.Self, Level: level(s.Level), Verdict: s.Verdict, Advice: s.Advice, ConfigHash: clusterHash(cl),
		Arbiter: adm.HAArbiter{
			Kind: cl.Arbiter.Kind, Reachable: s.Arbiter.Reachable, Detail: s.Arbiter.Detail, TTLMS: cl.Arbiter.TTL.Milliseconds(),
			SinceMS: -1, SelfTest: m.selfTest(),
		},
		Nodes: []adm.HANode{},
	}
	if why := c.unusableVM(); why != "" && (out.Level == adm.HALevelOK || out.Level == adm.HALevelInfo) {
		out.Level, out.Verdict, out.Advice = adm.HALevelWarning, why, "correct its file on all nodes of the VM, then polluxadm reload"
	}
	if s.Arbiter.Since > 0 {
		out.Arbiter.SinceMS = int64(now - s.Arbiter.Since)
	}
	for _, n := range s.Nodes {
		out.Nodes = append(out.Nodes, m.nodeLine(n, s, cl, now))
	}
	return out, nil
}

func (m *manager) nodeLine(n ha.NodeStatus, s ha.Snapshot, cl *conf.Cluster, now ha.Tick) adm.HANode {
	out := adm.HANode{
		Name: n.Name, Kind: adm.NodeData, State: string(n.State), Online: n.Online, Standby: n.Standby, Term: n.Term, Votes: "-",
		InSync: n.InSync, Copies: n.Copies, Lease: n.Lease, Session: n.Session, VMs: n.Services,
		MemoryBytes: n.Health.MemoryBytes, FreeBytes: n.Health.FreeBytes, SameConfig: n.SameFile, Why: n.Why,
	}
	if n.Witness {
		out.Kind = adm.NodeWitness
	}
	if cl.Arbiter.Kind == conf.ArbiterEtcd && cl.Arbiter.Etcd.Embedded() {
		out.Votes = "1"
	}
	if n.LastSeen > 0 {
		out.SilentMS = int64(now - n.LastSeen)
	}
	if n.Name == s.Self {
		out.SilentMS, out.LeaseMS, out.Version = 0, max(0, int64(s.Arbiter.LeaseEnds-now)), service.Version
		return out
	}
	out.Links, out.Version = m.peers.links(n.Name), m.peers.version(n.Name)
	return out
}

// unusableVM is a sentence about a VM that the core was not told of; "": there is none.
func (c *configuration) unusableVM() string {
	for _, f := range c.left {
		if _, ok := c.leftFile(f.name); ok {
			return fmt.Sprintf("vm %s: %s", f.name, f.why)
		}
	}
	for _, v := range c.vms {
		if !c.usable(v) {
			return fmt.Sprintf("vm %s: %s", v.Name, orElse(c.problems[v.Name], "its file can't be used"))
		}
	}
	return ""
}

// vm returns the VM of a name, or nil.
func (c *configuration) vm(name string) *conf.VM {
	for _, v := range c.vms {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// vmOf returns the VM that a resource belongs to, or nil.
func (c *configuration) vmOf(resource string) *conf.VM {
	for _, v := range c.vms {
		if slices.Contains(resourcesOf(v), resource) {
			return v
		}
	}
	return nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
