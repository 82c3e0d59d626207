package ha

import (
	"context"
	"fmt"
	"strings"

	"github.com/pollux-project/pollux/cmd/internal/service"
	"github.com/pollux-project/pollux/hypervisor/ha"
	"github.com/pollux-project/pollux/protocol/adm"
)

// verbs are the commands that are the core's business.
var verbs = map[adm.HACommand]ha.Verb{
	adm.HAVMStart: ha.StartVerb, adm.HAVMStop: ha.StopVerb, adm.HAVMKill: ha.KillVerb, adm.HAVMMove: ha.MoveVerb,
	adm.HAVMRestart: ha.RestartVerb, adm.HAVMEnable: ha.EnableVerb, adm.HAVMDisable: ha.DisableVerb,
	adm.HAVMFailover: ha.FailoverVerb, adm.HAVMResumeSole: ha.ResumeSoleVerb,
	adm.HANodeStandby: ha.StandbyVerb, adm.HANodeOnline: ha.OnlineVerb, adm.HANodeEvacuate: ha.EvacuateVerb, adm.HANodeLeave: ha.LeaveVerb,
}

// steps has the word that a progress line begins with.
const progressStep = "ha"

// errStopping answers a command that polluxha's end has cut off.
var errStopping = &adm.Error{
	Exit: adm.ExitEnvironment, Text: "polluxha is stopping: what was begun goes on or is taken up again when it runs",
	Advice: "see with polluxadm vm status what has become of it",
}

// handle carries out one request about VMs and nodes.
func (m *manager) handle(ctx context.Context, from caller, req adm.HARequest, progress func(adm.HAProgress)) (any, error) {
	if verb, ok := verbs[req.Cmd]; ok {
		return nil, m.operator(ctx, from, verb, req, progress)
	}
	switch req.Cmd {
	case adm.HAVMList, adm.HAVMStatus:
		return m.vmStatus(ctx, req.VM)
	case adm.HAClusterStatus, adm.HANodeList:
		return m.clusterStatus(ctx)
	case adm.HADrill:
		return m.drill(ctx, from, req, progress)
	default:
		return nil, &adm.Error{Exit: adm.ExitUsage, Text: fmt.Sprintf("polluxha: command %q is not for a member of a cluster", req.Cmd)}
	}
}

// operator has the core carry out what a person wants, and waits for its answer.
func (m *manager) operator(ctx context.Context, from caller, verb ha.Verb, req adm.HARequest, progress func(adm.HAProgress)) error {
	if err := m.known(ctx, req); err != nil {
		return err
	}
	if verb == ha.StartVerb {
		if err := m.addressesFree(ctx, req.VM); err != nil {
			return err
		}
	}
	if verb == ha.LeaveVerb {
		req.Node = m.self
	}
	a := req.Args
	if override := a.Force || a.PeerIsDown != "" || verb == ha.ResumeSoleVerb; override && a.Confirm == req.VM {
		err := m.audit.add(auditEntry{
			Node: m.self, UID: from.uid, PID: from.pid, Command: string(req.Cmd), VM: req.VM, Peer: a.PeerIsDown, Force: a.Force,
			Text: "the operator answers for what only he can know, and for what may be lost",
		})
		if err != nil {
			return fmt.Errorf("vm %s: not done: %w", req.VM, err)
		}
	}
	m.events.add(adm.HAEvent{
		Kind: adm.HAEventOperator, VM: req.VM, Peer: req.Node,
		Text: fmt.Sprintf("%s, by user %d", strings.Join(strings.Fields(fmt.Sprint(req.Cmd, " ", req.VM, " ", req.Node)), " "), from.uid),
	})
	return m.command(ctx, ha.Command{
		Verb: verb, Service: req.VM, Node: req.Node, PeerIsDown: a.PeerIsDown, Force: a.Force, Confirm: a.Confirm, NoWait: a.NoWait,
	}, progress)
}

func (m *manager) command(ctx context.Context, cmd ha.Command, progress func(adm.HAProgress)) error {
	answers := make(chan ha.Order, 64)
	if !m.do(ctx, func() {
		m.lastID++
		cmd.ID = m.lastID
		m.commands[cmd.ID] = answers
		m.event(ha.Event{Kind: ha.Commanded, Command: cmd})
	}) {
		return errStopping
	}
	for {
		select {
		case o, ok := <-answers:
			switch {
			case !ok:
				return errStopping
			case o.Asks:
				return &adm.Error{Exit: adm.ExitRefused, Number: adm.HAConfirm, Text: o.Err}
			case o.Err != "":
				return &adm.Error{Exit: adm.ExitRefused, Text: o.Err}
			case o.Text != "":
				progress(adm.HAProgress{Step: progressStep, VM: cmd.Service, Text: o.Text})
			}
			if o.Done {
				return nil
			}
		case <-ctx.Done():
			m.box.post(func() { delete(m.commands, cmd.ID) })
			return errStopping
		}
	}
}

// known refuses names that nobody has.
func (m *manager) known(ctx context.Context, req adm.HARequest) error {
	var err error
	ok := m.do(ctx, func() {
		switch {
		case req.VM != "" && m.conf.vm(req.VM) == nil:
			err = m.conf.unknownVM(req.VM)
		case req.VM != "" && !m.conf.usable(m.conf.vm(req.VM)):
			err = &adm.Error{
				Exit: adm.ExitRefused, Text: fmt.Sprintf("vm %s: its file can't be used: %s", req.VM, orElse(m.conf.problems[req.VM], "its resources are unknown")),
				Advice: "correct it on all nodes of the VM, then polluxadm reload",
			}
		case req.Node != "" && m.conf.cluster.Node(req.Node) == nil:
			err = m.conf.unknownNode(req.Node)
		case req.Args.PeerIsDown != "" && m.conf.cluster.Node(req.Args.PeerIsDown) == nil:
			err = m.conf.unknownNode(req.Args.PeerIsDown)
		}
	})
	if !ok {
		return errStopping
	}
	return err
}

// addressesFree refuses a start by hand if one of the VM's addresses answers on the
// network although it runs nowhere. (A takeover is not held up by it: the old node's
// kernel may still answer for a node that is dead otherwise.)
func (m *manager) addressesFree(ctx context.Context, vm string) error {
	var w *watcher
	runs := false
	if !m.do(ctx, func() {
		w = m.services[vm]
		for _, s := range m.core.Snapshot().Services {
			runs = runs || s.Name == vm && s.State != ha.StateStopped && s.State != ha.StateFailed && s.State != ha.StateBlocked
		}
	}) {
		return errStopping
	}
	if w == nil || runs {
		return nil
	}
	if err := w.work.addressesFree(ctx); err != nil {
		return &adm.Error{
			Exit: adm.ExitRefused, Text: fmt.Sprintf("vm %s: %v: nothing was started", vm, err),
			Advice: "find out who has it, or change ips in the VM's file on all its nodes",
		}
	}
	return nil
}

// hello describes this polluxha.
func hello(node, session, boot, cluster string, pid int) adm.HAHelloData {
	return adm.HAHelloData{Version: service.Version, Protocol: adm.Version, PID: pid, Node: node, Session: session, BootID: boot, Cluster: cluster}
}
