package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/haclient"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Limits of what polluxha does.
const (
	orderLimit   = 60 * time.Second
	clusterLimit = 60 * time.Second
	takeLimit    = 40 * time.Second
	askLimit     = 2 * time.Second
)

// order has a node's polluxha do something, and prints what it says meanwhile.
func (d *demo) order(ctx context.Context, n *node, req adm.HARequest) error {
	return d.request(ctx, n, req, nil)
}

func (d *demo) request(ctx context.Context, n *node, req adm.HARequest, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	if err := haclient.Call(ctx, n.path("polluxha.sock"), req, answer, func(p adm.HAProgress) { d.rep.detail("%s", p.Text) }); err != nil {
		return fmt.Errorf("on %s: %s: %w", n.name, req.Cmd, err)
	}
	return nil
}

// formCluster makes a cluster of the three nodes; each runs a member of etcd.
func (d *demo) formCluster(ctx context.Context) error {
	d.rep.chapter("polluxha on all three: a cluster with etcd inside, three votes")
	if err := d.order(ctx, d.alpha, adm.HARequest{Cmd: adm.HAClusterInit, Args: adm.HAArgs{
		Cluster: clusterName, Arbiter: "etcd", Links: d.alpha.links(),
	}}); err != nil {
		return err
	}
	for _, n := range []*node{d.beta, d.gamma} {
		kind := adm.NodeData
		if n.witness {
			kind = adm.NodeWitness
		}
		var t adm.HAToken
		if err := d.request(ctx, d.alpha, adm.HARequest{Cmd: adm.HAClusterToken, Node: n.name, Args: adm.HAArgs{Kind: kind, Links: n.links()}}, &t); err != nil {
			return err
		}
		if err := d.order(ctx, n, adm.HARequest{Cmd: adm.HAClusterJoin, Args: adm.HAArgs{Token: t.Token}}); err != nil {
			return err
		}
	}
	return d.waitCluster(ctx)
}

func (n *node) links() []string { return []string{fmt.Sprintf("%s:%d", n.address, managerPort)} }

// waitCluster waits until each node sees all others, and the arbiter answers.
func (d *demo) waitCluster(ctx context.Context) error {
	return d.poll(ctx, clusterLimit, func(ctx context.Context) error {
		for _, n := range []*node{d.alpha, d.beta, d.gamma} {
			var c adm.HACluster
			if err := haclient.Call(ctx, n.path("polluxha.sock"), adm.HARequest{Cmd: adm.HAClusterStatus}, &c, nil); err != nil {
				return fmt.Errorf("%s: %w", n.name, err)
			}
			if !c.Arbiter.Reachable || len(c.Nodes) != 3 {
				return fmt.Errorf("%s sees %d nodes: %s", n.name, len(c.Nodes), c.Verdict)
			}
			for _, o := range c.Nodes {
				if !o.Online || o.State == adm.NodeError {
					return fmt.Errorf("%s sees %s as %s: %s", n.name, o.Name, o.State, o.Why)
				}
			}
		}
		return nil
	})
}

// waitVM waits until a node's polluxha knows the VM as it is to be.
func (d *demo) waitVM(ctx context.Context, n *node, fits func(adm.HAVM) bool) error {
	return d.poll(ctx, takeLimit, func(ctx context.Context) error {
		var all adm.HAVMs
		if err := haclient.Call(ctx, n.path("polluxha.sock"), adm.HARequest{Cmd: adm.HAVMStatus, VM: vmName}, &all, nil); err != nil {
			return err
		}
		if len(all.VMs) != 1 {
			return errors.New("polluxha does not know the VM")
		}
		if vm := all.VMs[0]; !fits(vm) {
			return fmt.Errorf("%s sees the VM as %s on %q: %s", n.name, vm.State, vm.Node, vm.Why)
		}
		return nil
	})
}

// poll asks until nothing is wrong, or says what was wrong last.
func (d *demo) poll(ctx context.Context, limit time.Duration, wrong func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	for {
		asking, done := context.WithTimeout(ctx, askLimit)
		err := wrong(asking)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %v: %w", limit, err)
		}
	}
}
