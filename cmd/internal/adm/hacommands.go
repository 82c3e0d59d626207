package adm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// vmVerb is a command for one machine of a cluster.
type vmVerb struct {
	cmd  adm.HACommand
	json bool
	args adm.HAArgs
	node string
}

// ask sends one request to polluxha, shows its progress, and gives the answer.
func (a *app) ask(ctx context.Context, req adm.HARequest, data any, asJSON bool) error {
	m, err := a.dialManager(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	p := a.newProgressView(asJSON)
	err = m.Call(ctx, req, data, p.step)
	p.end()
	return managerError(ctx, err)
}

// order is ask for a command that has nothing to tell but that it is done.
func (a *app) order(ctx context.Context, req adm.HARequest, asJSON bool, done string) error {
	if a.dryRun {
		fmt.Fprintf(a.Out, "polluxha: %s %s\n", req.Cmd, strings.TrimSpace(req.VM+" "+req.Node))
		return nil
	}
	began := a.now()
	if err := a.ask(ctx, req, nil, asJSON); err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(map[string]any{"ok": true, "command": req.Cmd, "vm": req.VM, "node": req.Node})
	}
	fmt.Fprintf(a.Out, "%s (%.2f s)\n", done, a.now().Sub(began).Seconds())
	return nil
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.Out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// typedName asks for a name to be typed again before something that may lose data
// or stops a machine; given is the answer that came with the command line.
func (a *app) typedName(name, given, warning string) (string, error) {
	if given != "" {
		if given != name {
			return "", usageError("--confirm %s: the name is %q", given, name)
		}
		return given, nil
	}
	if !isTerminalInput(a.In) {
		return "", &adm.Error{Exit: adm.ExitRefused, Text: warning + " Nothing was done.", Advice: fmt.Sprintf("if that is what you want, add: --confirm %s", name)}
	}
	fmt.Fprintf(a.Err, "%s\nType the name of the machine to go on: ", warning)
	line, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && line == "" {
		return "", err
	}
	if strings.TrimSpace(line) != name {
		return "", &adm.Error{Exit: adm.ExitRefused, Text: fmt.Sprintf("%q is not %q: nothing was done", strings.TrimSpace(line), name)}
	}
	return name, nil
}

// managedVM runs a verb of a machine through polluxha.
func (a *app) managedVM(ctx context.Context, name string, v vmVerb) error {
	req := adm.HARequest{Cmd: v.cmd, VM: name, Node: v.node, Args: v.args}
	done := map[adm.HACommand]string{
		adm.HAVMStart: "runs", adm.HAVMStop: "is stopped, and stays so", adm.HAVMKill: "is killed, and stays stopped", adm.HAVMMove: "has moved",
		adm.HAVMRestart: "runs again", adm.HAVMEnable: "is polluxha's", adm.HAVMDisable: "is left alone from now on", adm.HAVMFailover: "was taken over",
	}[v.cmd]
	if v.cmd == adm.HAVMFailover && !a.dryRun {
		if err := a.mayFailOver(ctx, name, v.args.PeerIsDown); err != nil {
			return err
		}
		confirm, err := a.typedName(name, v.args.Confirm, failoverWarning(name, v.args))
		if err != nil {
			return err
		}
		req.Args.Confirm = confirm
	}
	if v.args.NoWait {
		done = "order taken"
	}
	return a.order(ctx, req, v.json, fmt.Sprintf("vm %s: %s", name, done))
}

// mayFailOver refuses names that nobody has before anybody is asked to type them.
func (a *app) mayFailOver(ctx context.Context, name, peer string) error {
	var vms adm.HAVMs
	if err := a.ask(ctx, adm.HARequest{Cmd: adm.HAVMStatus, VM: name}, &vms, true); err != nil {
		return err
	}
	if peer == "" || len(vms.VMs) == 0 || len(vms.VMs[0].Nodes) == 0 || slices.Contains(vms.VMs[0].Nodes, peer) {
		return nil
	}
	nodes := vms.VMs[0].Nodes
	return &adm.Error{
		Exit: adm.ExitUsage, Text: fmt.Sprintf("vm %s: --peer-is-down %s: it is not a node of this machine%s", name, peer, conf.DidYouMean(peer, nodes)),
		Advice: "its nodes are " + strings.Join(nodes, ", "),
	}
}

func failoverWarning(name string, o adm.HAArgs) string {
	w := fmt.Sprintf("vm %s: failover by hand: what the other node acknowledged and this one lacks is not in the machine that starts; its copy is kept.", name)
	if o.PeerIsDown != "" {
		w += fmt.Sprintf(" You answer for it that %s is off: if it is not, two machines of one name run.", o.PeerIsDown)
	}
	if o.Force {
		w += " --force: a copy that is known to lack acknowledged writes is used."
	}
	return w
}

// showVMs is vm list and vm status.
func (a *app) showVMs(ctx context.Context, name string, asJSON bool) error {
	req := adm.HARequest{Cmd: adm.HAVMList}
	if name != "" {
		req = adm.HARequest{Cmd: adm.HAVMStatus, VM: name}
	}
	var vms adm.HAVMs
	if err := a.ask(ctx, req, &vms, asJSON); err != nil {
		return err
	}
	switch {
	case asJSON:
		return a.printJSON(vms)
	case name == "":
		writeVMs(a.Out, vms.VMs, a.colours(a.Out))
	default:
		for _, v := range vms.VMs {
			writeVM(a.Out, v, a.colours(a.Out), a.now())
		}
	}
	return nil
}

func (a *app) nodeCommand() *cobra.Command {
	node := &cobra.Command{
		Use: "node COMMAND", GroupID: groupVM, Short: "the nodes of the cluster, and what may run on them",
		RunE: noSubcommand("node"),
	}
	var asJSON, noWait bool
	node.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	list := &cobra.Command{
		Use: "list", Short: "list the nodes, their machines and free memory", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var c adm.HACluster
			if err := a.ask(cmd.Context(), adm.HARequest{Cmd: adm.HANodeList}, &c, asJSON); err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(c)
			}
			writeNodes(a.Out, c, a.colours(a.Out))
			return nil
		},
	}
	one := func(use, short, long string, c adm.HACommand, done string) *cobra.Command {
		cmd := &cobra.Command{
			Use: use + " NODE", Short: short, Long: long, Args: oneName("node "+use, "a node"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.order(cmd.Context(), adm.HARequest{Cmd: c, Node: args[0], Args: adm.HAArgs{NoWait: noWait}}, asJSON, fmt.Sprintf("node %s: %s", args[0], done))
			},
		}
		cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until it is done")
		return cmd
	}
	leave := &cobra.Command{
		Use: "leave", Short: "let this node go down in good order", Args: cobra.NoArgs,
		Long: "Before this host is shut down: its machines move, or stop where the other node can't take them, and its lease ends, so\n" +
			"that nobody waits for it. Nothing runs here until polluxha starts again. The unit pollux-leave.service does it at each\n" +
			"shutdown.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.order(cmd.Context(), adm.HARequest{Cmd: adm.HANodeLeave, Args: adm.HAArgs{NoWait: noWait}}, asJSON, "nothing runs on this node any more")
		},
	}
	leave.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until it is done")
	node.AddCommand(list,
		one("standby", "move all machines away, and keep them away", "The node stays in the cluster and keeps its copies up to date, but nothing runs on it until\n"+
			"\"polluxadm node online\", also not after a reboot.", adm.HANodeStandby, "standby"),
		one("online", "let machines run on a node again", "Nothing moves back by this; see failback in the machines' files.", adm.HANodeOnline, "online"),
		one("evacuate", "move all machines away once", "", adm.HANodeEvacuate, "no machine runs on it any more"),
		leave,
	)
	return node
}

func (a *app) drillCommand() *cobra.Command {
	var kill, confirm string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "drill --kill primary VM", GroupID: groupVM, Short: "rehearse the death of a machine's host",
		Long: "Kills the machine and what serves its disks on the node where it runs, as a power failure would, and shows what\n" +
			"its clients saw: when the loss was noticed, when the other node had the right to write, when the machine ran again.\n" +
			"This is a real outage of some seconds. The name of the machine has to be typed, or given with --confirm.",
		Args: oneName("drill", "a virtual machine"), ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if kill != "primary" {
				return usageError("drill: --kill %s: what can be killed is: primary", orElse(kill, "(missing)"))
			}
			if err := a.mayFailOver(cmd.Context(), args[0], ""); err != nil {
				return err
			}
			typed, err := a.typedName(args[0], confirm, fmt.Sprintf("vm %s: drill: its host is killed now, as by a power failure; its clients wait some seconds.", args[0]))
			if err != nil {
				return err
			}
			var result adm.HADrillResult
			if err := a.ask(cmd.Context(), adm.HARequest{Cmd: adm.HADrill, VM: args[0], Args: adm.HAArgs{Kill: kill, Confirm: typed}}, &result, asJSON); err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(result)
			}
			writeDrill(a.Out, result, a.colours(a.Out))
			if result.OutageMS < 0 {
				return codeError(adm.ExitRefused)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&kill, "kill", "", "what is killed: primary")
	cmd.Flags().StringVar(&confirm, "confirm", "", "the name of the machine, instead of typing it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// clusterEvents prints polluxha's events, one line each.
func (a *app) clusterEvents(ctx context.Context, args adm.HAArgs, asJSON bool) error {
	m, err := a.dialManager(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Call(ctx, adm.HARequest{Cmd: adm.HAEvents, Args: args}, nil, nil); err != nil {
		return managerError(ctx, err)
	}
	for {
		e, err := m.Event(ctx)
		switch {
		case ctx.Err() != nil:
			return nil // interrupted: that is how it ends
		case err != nil:
			return managerError(ctx, err)
		case e.Kind == adm.HAEventReady && !args.Follow:
			return nil
		case e.Kind == adm.HAEventReady:
			continue
		}
		if !asJSON {
			fmt.Fprintln(a.Out, haEventLine(e, a.colours(a.Out)))
			continue
		}
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.Out, "%s\n", b)
	}
}

// oneName wants exactly one argument.
func oneName(command, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return &cobraUsage{fmt.Errorf("%s: the name of %s is needed", command, what)}
		}
		return nil
	}
}

// noSubcommand is what a command does that only has others below it.
func noSubcommand(name string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			var names []string
			for _, c := range cmd.Commands() {
				names = append(names, c.Name())
			}
			return &cobraUsage{fmt.Errorf("%s: unknown command '%s'%s", name, args[0], conf.DidYouMean(args[0], names))}
		}
		return &cobraUsage{errors.New(name + ": a command is missing")}
	}
}
