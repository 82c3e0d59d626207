package hatestbed

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-project/pollux/cmd/internal/haclient"
	"github.com/pollux-project/pollux/protocol/adm"
)

// askPatience is how long polluxha may take for what it knows by heart.
const askPatience = 2 * time.Second

// calm is how long the client must have been served before all is well. The last
// word of a stopped host that wakes may still lead its packets astray: then it is
// longer.
const (
	calm      = time.Second
	wakenCalm = 3 * time.Second
)

// ask asks a host's polluxha for what it knows.
func (h *Host) ask(ctx context.Context, req adm.HARequest, answer any) error {
	return h.request(ctx, askPatience, req, answer)
}

// request sends one request to a host's polluxha; answer receives what it says.
func (h *Host) request(ctx context.Context, patience time.Duration, req adm.HARequest, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := haclient.Call(ctx, h.socket("polluxha"), req, answer, nil); err != nil {
		return fmt.Errorf("on %s: %w", h.Name, err)
	}
	return nil
}

// cluster is what a host's polluxha knows of the cluster.
func (h *Host) cluster(ctx context.Context) (c adm.HACluster, err error) {
	err = h.ask(ctx, adm.HARequest{Cmd: adm.HAClusterStatus}, &c)
	return c, err
}

// machine is what a host's polluxha knows of the virtual machine.
func (h *Host) machine(ctx context.Context) (adm.HAVM, error) {
	var all adm.HAVMs
	err := h.ask(ctx, adm.HARequest{Cmd: adm.HAVMStatus, VM: vmName}, &all)
	if err == nil && len(all.VMs) != 1 {
		err = fmt.Errorf("on %s: polluxha shows %d machines, want one", h.Name, len(all.VMs))
	}
	if err != nil {
		return adm.HAVM{}, err
	}
	return all.VMs[0], nil
}

// unwell says what is not as it should be before a fault strikes, in one
// sentence; "" if all is well: the copies agree and count, the machine runs, every
// polluxha sees all others, and the arbiter answers each.
func (s *Site) unwell(ctx context.Context) string {
	if !s.InSync() {
		return "the copies are not in sync"
	}
	primary := s.Primary()
	if primary == nil {
		return "there is not one Primary"
	}
	if r, ok := s.sights[primary.Name].Now(); !ok || r.Term == nil || r.Term.Sole || r.Term.Marked || r.Term.Frozen != "" {
		return fmt.Sprintf("%s does not share its term with the other copy: %+v", primary.Name, r.Term)
	}
	for _, h := range s.Hosts {
		if !s.manages(h) {
			continue
		}
		c, err := h.cluster(ctx)
		switch {
		case err != nil:
			return fmt.Sprintf("polluxha on %s does not answer: %v", h.Name, err)
		case !c.Arbiter.Reachable:
			return fmt.Sprintf("%s does not reach the arbiter: %s", h.Name, c.Arbiter.Detail)
		}
		for _, n := range c.Nodes {
			if !n.Online || n.State == adm.NodeError {
				return fmt.Sprintf("%s sees %s as %s: %s", h.Name, n.Name, n.State, n.Why)
			}
			if n.Kind == adm.NodeData && s.Arbiter != ArbiterFence && n.Lease != "alive" {
				return fmt.Sprintf("%s sees the lease of %s as %s", h.Name, n.Name, n.Lease)
			}
		}
		if !h.Data {
			continue
		}
		vm, err := h.machine(ctx)
		if err != nil {
			return fmt.Sprintf("polluxha on %s does not know the machine: %v", h.Name, err)
		}
		if why := machineUnwell(vm, h, primary); why != "" {
			return why
		}
	}
	if now := time.Now(); len(s.Customer.Acked(now.Add(-answerPatience))) == 0 || s.Customer.LongestGap(now.Add(-s.calm)) > answerPatience {
		return fmt.Sprintf("the client was not served without a break for %v", s.calm)
	}
	return ""
}

func machineUnwell(vm adm.HAVM, h, primary *Host) string {
	if vm.State != adm.VMRunning || vm.Node != primary.Name {
		return fmt.Sprintf("%s sees the machine as %s on %q: %s", h.Name, vm.State, vm.Node, vm.Why)
	}
	for _, r := range vm.Resources {
		if len(r.InSync) != 2 || r.Owner != primary.Name {
			return fmt.Sprintf("the record on %s has owner %q and %v in sync", h.Name, r.Owner, slices.Clone(r.InSync))
		}
	}
	return ""
}

// manages tells whether a host runs polluxha: with etcd the third one does, too.
func (s *Site) manages(h *Host) bool { return h.Data || s.Arbiter == ArbiterEtcd }

// settled waits until all is well.
func (s *Site) settled(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	why := ""
	for {
		switch now := s.unwell(ctx); {
		case now == "":
			return nil
		case ctx.Err() == nil:
			why = now // else it is only that nobody could be asked any more
		}
		select {
		case <-time.After(10 * pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("not well again within %v: %s", limit, why)
		}
	}
}
