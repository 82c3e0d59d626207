package adm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-project/pollux/protocol/adm"
)

type failoverOptions struct {
	peerIsDown string // the peer's name, given by somebody who has looked
	force      bool   // use data that is known to be bad
}

// failover takes the VM over. All checks come before the first change.
func (m *machine) failover(ctx context.Context, o failoverOptions) error {
	if err := m.managedElsewhere(); err != nil {
		return err
	}
	if err := m.notRunning(ctx); err != nil {
		return err
	}
	cl, err := m.a.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.close()
	needForce := false
	for _, name := range m.resources() {
		r, err := cl.resource(ctx, name)
		if err != nil {
			return err
		}
		if err := m.mayTakeOver(r, o); err != nil {
			return err
		}
		needForce = needForce || badData(r) != nil
	}
	if m.a.dryRun {
		return m.describeStart(needForce)
	}
	began := m.a.now()
	s := m.newSteps(cl)
	if err := s.promoteAll(ctx, needForce); err != nil {
		return err
	}
	if err := s.boot(ctx); err != nil {
		return err
	}
	fmt.Fprintf(m.a.Out, "vm %s: taken over in %.2f s\n", m.vm.Name, m.a.now().Sub(began).Seconds())
	return nil
}

// mayTakeOver refuses a failover that could put two writers on the data, or
// put the VM on data that isn't current, unless the operator answers for it.
func (m *machine) mayTakeOver(r adm.Resource, o failoverOptions) error {
	refuse := func(advice, format string, args ...any) error {
		return &adm.Error{Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: failover refused: ", r.Name) + fmt.Sprintf(format, args...), Advice: advice}
	}
	again := fmt.Sprintf("polluxadm vm failover %s", m.vm.Name)
	if r.State != adm.StateUp {
		v := judge(r, m.a.now())
		return refuse(v.Advice, "%s", v.Why)
	}
	if isConnected(r) && r.PeerRole == "Primary" {
		return refuse(fmt.Sprintf("on %s: polluxadm vm stop %s", r.Peer, m.vm.Name),
			"%s is connected and Primary: the VM may be running there", r.Peer)
	}
	if o.peerIsDown != "" && isConnected(r) {
		return refuse(again, "%s is connected, so it is not down", r.Peer)
	}
	if v := badData(r); v != nil && !o.force {
		return &adm.Error{
			Exit:   adm.ExitNeedUpToDate,
			Text:   fmt.Sprintf("%s: failover refused: the data of volume %d on this node is %s", r.Name, v.Volume, v.Disk),
			Advice: fmt.Sprintf("bring %s back; if its data is lost for good, %s --force starts the VM on what is here", r.Peer, again),
		}
	}
	switch {
	case isConnected(r) || o.peerIsDown == r.Peer:
		return nil
	case o.peerIsDown != "":
		return refuse(fmt.Sprintf("%s --peer-is-down %s", again, r.Peer), "--peer-is-down names %q, but the peer is %q", o.peerIsDown, r.Peer)
	}
	return refuse(fmt.Sprintf("make sure that %s is off (look at it, its management board, its power), then: %s --peer-is-down %s", r.Peer, again, r.Peer),
		"%s. It may still be running and writing: then this copy is stale, and starting the VM here makes two that contradict each other", peerAbsent(r, m.a.now()))
}

// badData returns the first volume whose data here is known to be old,
// incomplete or absent; nil if there is none. With the peer connected a
// diskless node could work on the peer's data; for a failover that is no help.
func badData(r adm.Resource) *adm.Volume {
	for i, v := range r.Volumes {
		if v.Disk != "UpToDate" && v.Disk != "Consistent" {
			return &r.Volumes[i]
		}
	}
	return nil
}

// steps does a start or failover one step after the other, prints each with
// its time, and can take back what was done.
type steps struct {
	m        *machine
	cl       *client
	promoted []string
}

func (m *machine) newSteps(cl *client) *steps { return &steps{m: m, cl: cl} }

// step runs and reports one step.
func (s *steps) step(what string, do func() error) error {
	began := s.m.a.now()
	err := do()
	took := s.m.a.now().Sub(began)
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	fmt.Fprintf(s.m.a.Out, "%-40s %s  %.2f s\n", what, outcome, took.Seconds())
	return err
}

// promoteAll makes this node Primary for all of the VM's resources, or for
// none that wasn't before.
func (s *steps) promoteAll(ctx context.Context, force bool) error {
	for _, name := range s.m.resources() {
		r, err := s.cl.resource(ctx, name)
		if err == nil && r.Role == "Primary" {
			fmt.Fprintf(s.m.a.Out, "%-40s already\n", name+": Primary")
			continue
		}
		if err == nil {
			err = s.step(name+": Primary", func() error {
				return s.cl.call(ctx, adm.Request{Cmd: adm.CmdPrimary, Resource: name, Args: adm.Args{Force: force}}, nil)
			})
		}
		if err != nil {
			return s.rollBack(err)
		}
		s.promoted = append(s.promoted, name)
	}
	return nil
}

func (s *steps) boot(ctx context.Context) error {
	err := s.step("vm "+s.m.vm.Name+": boot", func() error {
		limited, cancel := context.WithTimeout(ctx, bootTimeout)
		defer cancel()
		if err := localDisks(s.m.vm); err != nil {
			return err
		}
		return s.m.hv.Start(limited, s.m.guest())
	})
	if err != nil {
		return s.rollBack(err)
	}
	return nil
}

// rollBack demotes what was promoted, last one first, and returns the reason
// with what could not be taken back. It works on when ctx is cancelled: half a
// start is worse than a slow end.
func (s *steps) rollBack(reason error) error {
	if len(s.promoted) == 0 {
		return reason
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout+5*time.Second)
	defer cancel()
	cl, err := s.m.a.dial(ctx) // the first connection may be what broke
	if err != nil {
		return errors.Join(reason, err)
	}
	defer cl.close()
	var left []error
	for _, name := range slices.Backward(s.promoted) {
		if err := s.step(name+": Secondary again", func() error { return demote(ctx, cl, name) }); err != nil {
			left = append(left, err)
		}
	}
	if len(left) > 0 {
		s.m.a.complain("not everything could be taken back: "+errors.Join(left...).Error(), "polluxadm status")
	}
	return reason
}
