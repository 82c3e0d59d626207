package ha

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Validate reports everything that is wrong with the configuration, one sentence
// each, joined.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	c.validateNodes(bad)
	c.Timing.validate(c.Arbiter, bad)
	seen := map[string]bool{}
	for i := range c.Resources {
		r := &c.Resources[i]
		if seen[r.Name] {
			bad("resource %s: it is listed twice", r.Name)
		}
		seen[r.Name] = true
		c.validateResource(r, bad)
	}
	users, names := map[string]string{}, map[string]bool{}
	for i := range c.Services {
		s := &c.Services[i]
		if names[s.Name] || s.Name == "" {
			bad("vm %q: it has no name, or another one has it, too", s.Name)
		}
		names[s.Name] = true
		c.validateService(s, bad)
		for _, r := range s.Resources {
			if other := users[r]; other != "" {
				bad("vm %s: resource %s belongs to vm %s already: give each its own", s.Name, r, other)
			}
			users[r] = s.Name
		}
	}
	return errors.Join(errs...)
}

type complain = func(format string, args ...any)

func (c *Config) validateNodes(bad complain) {
	data := 0
	for i, n := range c.Nodes {
		if n.Name == "" || strings.HasPrefix(n.Name, "_") {
			bad("node %q: want a name that does not begin with \"_\"", n.Name)
		}
		if slices.ContainsFunc(c.Nodes[:i], func(o Node) bool { return o.Name == n.Name }) {
			bad("node %s: it is listed twice", n.Name)
		}
		if !n.Witness {
			data++
		}
	}
	if c.node(c.Self) == nil {
		bad("node %s: the cluster file does not list this node: join the cluster, or correct the name", c.Self)
	}
	switch c.Arbiter {
	case ArbiterEtcd, ArbiterWitness, ArbiterManual:
	case ArbiterFence:
		// One is a cluster that is being made. Where an agent is missing nothing is
		// confirmed, so nobody takes over; the cluster's file is told of that.
		if data > 2 {
			bad("arbiter \"fence\": it works with two data nodes, and there are %d: use etcd or a witness", data)
		}
	default:
		bad("arbiter %q: want etcd, witness, fence or manual", c.Arbiter)
	}
}

func (t *Timing) validate(kind ArbiterKind, bad complain) {
	if t.Keepalive <= 0 || 3*t.Keepalive > t.Warntime {
		bad("warntime %d ms: want at least three times keepalive (%d ms)", t.Warntime, t.Keepalive)
	}
	if t.Warntime >= t.Deadtime {
		bad("deadtime %d ms: want more than warntime (%d ms)", t.Deadtime, t.Warntime)
	}
	if t.Initdead < 2*t.Deadtime {
		bad("initdead %d ms: want at least twice deadtime (%d ms): nodes that boot at the same time are not dead", t.Initdead, t.Deadtime)
	}
	if t.Margin < 0 || t.FenceDelay < 0 {
		bad("margin %d ms, fence delay %d ms: want 0 or more", t.Margin, t.FenceDelay)
	}
	if !kind.HasLeases() {
		return
	}
	if t.TTL < MinTTL && !t.ShortTTL || t.TTL < 30 {
		bad("ttl %d ms: want at least %d: a slow disk or a pause ends a shorter lease", t.TTL, MinTTL)
	}
	if t.Deadtime < t.TTL {
		bad("deadtime %d ms: want at least ttl (%d ms), as the lease decides", t.Deadtime, t.TTL)
	}
}

func (c *Config) validateResource(r *Resource, bad complain) {
	if r.Name == "" || strings.HasPrefix(r.Name, "_") {
		bad("resource %q: names that begin with \"_\" are the arbiter's own", r.Name)
	}
	if r.Nodes[0] == r.Nodes[1] {
		bad("resource %s: it needs copies on two nodes, and has %s twice", r.Name, r.Nodes[0])
	}
	for _, name := range r.Nodes {
		if n := c.node(name); n == nil || n.Witness {
			bad("resource %s: %q is no data node of the cluster: the names in the resource's \"on\" sections have to be those of the cluster file", r.Name, name)
		}
	}
	if !slices.Contains([]string{"A", "B", "C"}, r.Protocol) {
		bad("resource %s: protocol %q: want A, B or C", r.Name, r.Protocol)
	}
}

// failsOver reports whether a service is to be taken over without a person.
func (c *Config) failsOver(s *Service) bool { return c.Arbiter.Automatic() && !s.Manual }

func (c *Config) validateService(s *Service, bad complain) {
	var nodes [2]string
	for i, name := range s.Resources {
		r := c.resource(name)
		if r == nil {
			bad("vm %s: resource %q is unknown, or not \"manager = internal\": correct the name, or bring the resource under polluxha", s.Name, name)
			continue
		}
		if pair := r.pair(); i == 0 {
			nodes = pair
		} else if nodes != [2]string{} && pair != nodes {
			bad("vm %s: resource %s is on %v, and %s on %v: all resources of a VM have to be on the same two nodes", s.Name, name, pair, s.Resources[0], nodes)
		}
		if s.Failsafe && r.AloneUnasked { // I3
			bad("vm %s: failsafe has the other node promise not to take over before this one goes on alone, and resource %s goes on alone without asking: choose one", s.Name, name)
		}
		if !c.failsOver(s) {
			continue
		}
		if r.AloneUnasked { // I3
			bad("vm %s: resource %s goes on alone without asking, and the VM fails over automatically: both nodes could write. Choose: fencing resource-and-stonith, or manual failover", s.Name, name)
		}
		if r.Protocol != "C" && (r.MaxLossBytes == 0 || r.MaxLossMS == 0) {
			bad("vm %s: resource %s has protocol %s, so a failover may lose writes: declare max-loss-bytes and max-loss-seconds, or use protocol C, or manual failover", s.Name, name, r.Protocol)
		}
	}
	if s.Failsafe && !c.Arbiter.HasLeases() {
		bad("vm %s: failsafe is for the time in which the arbiter is away, and arbiter \"%s\" is the two nodes themselves: leave failsafe out, or use etcd or a witness", s.Name, c.Arbiter)
	}
	if len(s.Resources) == 0 {
		bad("vm %s: it has no resource: name one at least", s.Name)
	}
	for _, p := range s.Prefer {
		if nodes != [2]string{} && p.Node != nodes[0] && p.Node != nodes[1] {
			bad("vm %s: it prefers %s, which has no copy: its nodes are %s and %s", s.Name, p.Node, nodes[0], nodes[1])
		}
	}
	switch s.Failback {
	case "", FailbackNever, FailbackManual:
	case FailbackWindow:
		if s.WindowFrom == s.WindowTo || min(s.WindowFrom, s.WindowTo) < 0 || max(s.WindowFrom, s.WindowTo) > 24*60 {
			bad("vm %s: failback window from minute %d to %d of the day: want two different times", s.Name, s.WindowFrom, s.WindowTo)
		}
	default:
		bad("vm %s: failback %q: want never, manual or window", s.Name, s.Failback)
	}
	switch s.Target {
	case "", TargetStarted, TargetStopped, TargetDisabled:
	default:
		bad("vm %s: target-role %q: want started, stopped or disabled", s.Name, s.Target)
	}
	if s.StartTimeout <= 0 || s.StopTimeout <= 0 {
		bad("vm %s: start-timeout %d ms, stop-timeout %d ms: want more than 0", s.Name, s.StartTimeout, s.StopTimeout)
	}
}

func (c *Config) node(name string) *Node {
	for i := range c.Nodes {
		if c.Nodes[i].Name == name {
			return &c.Nodes[i]
		}
	}
	return nil
}

func (c *Config) resource(name string) *Resource {
	for i := range c.Resources {
		if c.Resources[i].Name == name {
			return &c.Resources[i]
		}
	}
	return nil
}

// pair is the two nodes of a resource, sorted.
func (r *Resource) pair() [2]string {
	if r.Nodes[0] > r.Nodes[1] {
		return [2]string{r.Nodes[1], r.Nodes[0]}
	}
	return r.Nodes
}

// peerOf is the node that has the other copy.
func (r *Resource) peerOf(node string) string {
	if r.Nodes[0] == node {
		return r.Nodes[1]
	}
	return r.Nodes[0]
}

// score is how much s wants to be on a node.
func (s *Service) score(node string) int64 {
	for _, p := range s.Prefer {
		if p.Node == node {
			return p.Score
		}
	}
	return 0
}

// margin is Margin or its default.
func (t *Timing) margin() Tick {
	if t.Margin > 0 {
		return t.Margin
	}
	return t.TTL / 6
}

func (t *Timing) fenceDelay() Tick {
	if t.FenceDelay > 0 {
		return t.FenceDelay
	}
	return t.Deadtime
}
