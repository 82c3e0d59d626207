package hatestbed

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

// An Arbiter is who decides when the hosts do not hear each other.
type Arbiter string

// The arbiters. The third host has nothing to say with the last one.
const (
	ArbiterEtcd    Arbiter = "etcd"    // a member of etcd in each polluxha
	ArbiterWitness Arbiter = "witness" // pollux-witness on the third host
	ArbiterFence   Arbiter = "fence"   // who has switched the other one off
)

const (
	clusterName  = "rack"
	haPort       = 7790
	witnessPort  = 7791
	joinPatience = time.Minute
)

// managerArgs are polluxha's.
func (s *Site) managerArgs(*Host) []string { return nil }

// startHost starts all that a host runs.
func (s *Site) startHost(ctx context.Context, h *Host) error {
	if h.Data {
		if err := s.Start(ctx, h, "polluxd"); err != nil {
			return err
		}
	}
	switch {
	case h.Data, s.Arbiter == ArbiterEtcd:
		return s.StartManager(ctx, h)
	case s.Arbiter == ArbiterWitness:
		return s.startWitness(ctx, h)
	}
	return nil
}

// BringUp makes metadata and a cluster, and starts everything. The copies are
// equal, so nothing is copied at first.
func (s *Site) BringUp(ctx context.Context) error {
	for _, h := range s.dataHosts() {
		if _, err := s.Adm(ctx, h, "create-md", "--force", resourceName); err != nil {
			return err
		}
	}
	for _, h := range s.Hosts {
		if err := s.startHost(ctx, h); err != nil {
			return err
		}
	}
	first := s.Hosts[0]
	if _, err := s.Adm(ctx, first, "wait-connect", "--timeout", "30s", resourceName); err != nil {
		return err
	}
	if _, err := s.Adm(ctx, first, "new-current-uuid", "--clear-bitmap", resourceName+"/0"); err != nil {
		return err
	}
	if err := s.waitFor(ctx, startPatience, "both copies to be UpToDate", s.InSync); err != nil {
		return err
	}
	return s.form(ctx)
}

// form makes the cluster: one node after the other, as an operator does it.
func (s *Site) form(ctx context.Context) error {
	first := s.Hosts[0]
	options, err := s.arbiterOptions(ctx)
	if err != nil {
		return err
	}
	var c adm.HACluster
	if err := first.order(ctx, adm.HARequest{Cmd: adm.HAClusterInit, Args: adm.HAArgs{
		Cluster: clusterName, Links: first.heartbeats(), Arbiter: string(s.Arbiter), ArbiterOptions: options,
	}}, &c); err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	if err := s.introduce(ctx); err != nil {
		return err
	}
	for _, h := range s.Hosts[1:] {
		if !s.manages(h) {
			continue
		}
		kind := adm.NodeData
		if !h.Data {
			kind = adm.NodeWitness
		}
		var t adm.HAToken
		if err := first.order(ctx, adm.HARequest{Cmd: adm.HAClusterToken, Node: h.Name, Args: adm.HAArgs{Kind: kind, Links: h.heartbeats()}}, &t); err != nil {
			return fmt.Errorf("a token for %s: %w", h.Name, err)
		}
		var joined adm.HACluster
		if err := h.order(ctx, adm.HARequest{Cmd: adm.HAClusterJoin, Args: adm.HAArgs{Token: t.Token}}, &joined); err != nil {
			return fmt.Errorf("%s joins: %w", h.Name, err)
		}
		if s.Arbiter == ArbiterFence {
			return s.armFences(ctx)
		}
		if err := s.meets(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// meets waits until the first node and a new one see each other and reach the
// arbiter: only then may the next join.
func (s *Site) meets(ctx context.Context, h *Host) error {
	return s.waitFor(ctx, joinPatience, h.Name+" as a member that is well", func() bool {
		for _, asked := range []*Host{s.Hosts[0], h} {
			c, err := asked.cluster(ctx)
			if err != nil || !c.Arbiter.Reachable || !slices.ContainsFunc(c.Nodes, func(n adm.HANode) bool { return n.Name == h.Name }) {
				return false
			}
			for _, n := range c.Nodes {
				if !n.Online || n.State == adm.NodeError {
					return false
				}
			}
		}
		return true
	})
}

// order is ask for what takes its time.
func (h *Host) order(ctx context.Context, req adm.HARequest, answer any) error {
	return h.request(ctx, joinPatience, req, answer)
}

// heartbeats are the addresses that the host's manager listens on.
func (h *Host) heartbeats() []string {
	links := []string{fmt.Sprintf("%s:%d", h.Address(Management), haPort)}
	if h.Data {
		links = append(links, fmt.Sprintf("%s:%d", h.Address(Replication), haPort))
	}
	return links
}

// sleep waits, or ends with ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
