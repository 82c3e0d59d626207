package adm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/hypervisor/qemu"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Our own times. bootTimeout bounds the start of the hypervisor's process,
// not the guest's boot. A stopped hypervisor closes its disks; closeTimeout is
// for polluxd to notice.
const (
	bootTimeout  = 60 * time.Second
	killTimeout  = 30 * time.Second
	closeTimeout = 5 * time.Second
)

func newQEMU(runDir string) (hypervisor.Hypervisor, error) {
	return qemu.New(qemu.Config{RunDir: runDir})
}

func (a *app) vmCommand() *cobra.Command {
	vm := &cobra.Command{
		Use: "vm COMMAND NAME", GroupID: groupVM, Short: "run virtual machines on the replicated disks",
		Long: "A machine is described in a file NAME.vm.toml, the same on all its nodes. It runs on the node that is Primary for its\n" +
			"disks, in a process of its own: neither the end of polluxadm nor a restart of polluxd or polluxha stops it.\n\n" +
			"In a cluster (polluxadm cluster) polluxha starts, watches and moves the machines, and these commands are orders to it,\n" +
			"given on any node. Without one they act on this node, at once.",
		RunE: noSubcommand("vm"),
	}
	var asJSON bool
	vm.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON; in a cluster")
	verb := func(use, short, long string, managed adm.HACommand, byHand func(ctx context.Context, m *machine) error) (*cobra.Command, *vmVerb) {
		v := &vmVerb{cmd: managed}
		cmd := &cobra.Command{
			Use: use + " NAME", Short: short, Long: long, ValidArgsFunction: a.completeVMs, Args: oneName("vm "+use, "one VM"),
			RunE: func(cmd *cobra.Command, args []string) error {
				v.json = asJSON
				clustered, err := a.clustered()
				switch {
				case err != nil:
					return err
				case clustered && managed == adm.HAVMStatus:
					return a.showVMs(cmd.Context(), args[0], asJSON)
				case clustered:
					return a.managedVM(cmd.Context(), args[0], *v)
				case byHand == nil:
					return a.noCluster("vm " + use)
				}
				m, err := a.machine(args[0])
				if err != nil {
					return err
				}
				return byHand(cmd.Context(), m)
			},
		}
		return cmd, v
	}
	plain := func(use, short, long string, managed adm.HACommand, byHand func(ctx context.Context, m *machine) error) *cobra.Command {
		cmd, v := verb(use, short, long, managed, byHand)
		if managed != adm.HAVMStatus {
			cmd.Flags().BoolVar(&v.args.NoWait, "no-wait", false, "do not wait until it is done; in a cluster")
		}
		return cmd
	}
	vm.AddCommand(
		plain("start", "boot a machine", "In a cluster: let it run from now on, also after a reboot. Without one: this node becomes Primary for the machine's\n"+
			"resources first; if anything fails, all is as before.", adm.HAVMStart, func(ctx context.Context, m *machine) error { return m.start(ctx) }),
		plain("stop", "shut a machine down, then give up the Primary role",
			"Presses the power button and waits for stop-timeout of the machine's file; then the power is cut. In a cluster it stays\n"+
				"stopped until vm start, also after a reboot.", adm.HAVMStop, func(ctx context.Context, m *machine) error { return m.stop(ctx) }),
		plain("kill", "cut a machine's power, then give up the Primary role", "", adm.HAVMKill, func(ctx context.Context, m *machine) error { return m.kill(ctx) }),
		plain("restart", "shut a machine down and boot it on the same node", "", adm.HAVMRestart, nil),
		plain("enable", "let polluxha start, watch and take over a machine again", "", adm.HAVMEnable, nil),
		plain("disable", "have polluxha leave a machine as it is, running or not", "For work on the machine itself: nothing restarts it, nothing takes it over.", adm.HAVMDisable, nil),
		plain("status", "show a machine and its disks", "", adm.HAVMStatus, func(ctx context.Context, m *machine) error { return m.status(ctx) }),
		a.vmMoveCommand(verb), a.vmFailoverCommand(verb),
		&cobra.Command{
			Use: "list", Short: "list all machines", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				clustered, err := a.clustered()
				if err != nil {
					return err
				}
				if clustered {
					return a.showVMs(cmd.Context(), "", asJSON)
				}
				return a.listVMs(cmd.Context())
			},
		},
	)
	return vm
}

type newVerb func(use, short, long string, managed adm.HACommand, byHand func(ctx context.Context, m *machine) error) (*cobra.Command, *vmVerb)

func (a *app) vmMoveCommand(verb newVerb) *cobra.Command {
	cmd, v := verb("move", "shut a machine down and boot it on its other node",
		"The disks are handed over without a lease having to end: what its clients notice is the shutdown and the boot.", adm.HAVMMove, nil)
	cmd.Flags().StringVar(&v.node, "to", "", "the node; default: the best of the others")
	cmd.Flags().BoolVar(&v.args.NoWait, "no-wait", false, "do not wait until it is done")
	return cmd
}

func (a *app) vmFailoverCommand(verb newVerb) *cobra.Command {
	var v *vmVerb
	cmd, v := verb("failover", "take a machine over by hand, when nothing else may decide",
		"In a cluster this is the override for when no arbiter can speak: it says what is not known and what may be lost, wants\n"+
			"the machine's name typed, raises the term, keeps the other node's data and is written to the audit log.\n\n"+
			"Without a cluster: promotes the machine's resources here, in their order, and boots it; every step is printed with its time.\n"+
			"If the peer isn't connected nobody can know from here whether it still runs: it may still be writing, and this copy\n"+
			"may be old. Make sure that it is off (look at it, its management board, its power), then name it with --peer-is-down.\n"+
			"Data that is known to be old or incomplete is used with --force only.", adm.HAVMFailover,
		func(ctx context.Context, m *machine) error {
			return m.failover(ctx, failoverOptions{peerIsDown: v.args.PeerIsDown, force: v.args.Force})
		})
	f := cmd.Flags()
	f.StringVar(&v.args.PeerIsDown, "peer-is-down", "", "the name of the other node, which you know to be off")
	f.BoolVar(&v.args.Force, "force", false, "even with Inconsistent or Outdated data")
	f.StringVar(&v.args.Confirm, "confirm", "", "the name of the machine, instead of typing it; in a cluster")
	return cmd
}

func (a *app) noCluster(command string) error {
	d, err := a.settings()
	if err != nil {
		return err
	}
	return &adm.Error{
		Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: this node is in no cluster (there is no %s)", command, d.HA.ClusterFile),
		Advice: "polluxadm cluster init makes one; without it: vm start, stop, kill, status, failover, list",
	}
}

// A machine is one described VM with what acts on it.
type machine struct {
	a   *app
	vm  *conf.VM
	hv  hypervisor.Hypervisor
	nbd string // unix socket of the daemon's NBD server
}

func (a *app) vms() ([]*conf.VM, *conf.Daemon, error) {
	d, err := a.settings()
	if err != nil {
		return nil, nil, err
	}
	vms, err := conf.LoadVMs(d.VMFiles, conf.SystemEnv())
	if err != nil {
		return nil, nil, a.asConfigError(err)
	}
	return vms, d, nil
}

// hypervisorFor makes the adapter; its files lie beside the control socket,
// which a reboot clears as it ends all VMs.
func (a *app) hypervisorFor(d *conf.Daemon) (hypervisor.Hypervisor, error) {
	return a.newHypervisor(filepath.Join(filepath.Dir(d.ControlSocket), "vm"))
}

// machine looks a VM up and checks its file against the resources.
func (a *app) machine(name string) (*machine, error) {
	vms, d, err := a.vms()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(vms, func(v *conf.VM) bool { return v.Name == name })
	if i < 0 {
		return nil, &adm.Error{
			Exit: adm.ExitUsage, Text: fmt.Sprintf("vm %s: no file describes it", name),
			Advice: "descriptions are read from " + strings.Join(d.VMFiles, " ") + "; polluxadm vm list shows what they hold",
		}
	}
	c, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	if err := vms[i].CheckResources(c); err != nil {
		return nil, a.asConfigError(err)
	}
	if err := runsAlone(vms[i]); err != nil {
		return nil, err
	}
	if d.NBD.Socket == "" {
		return nil, &adm.Error{
			Exit: adm.ExitRefused, Text: fmt.Sprintf("vm %s: polluxd has no NBD unix socket", name),
			Advice: "set nbd.socket in " + a.settingsPath() + ": a VM's disks are served on it",
		}
	}
	hv, err := a.hypervisorFor(d)
	if err != nil {
		return nil, err
	}
	return &machine{a: a, vm: vms[i], hv: hv, nbd: d.NBD.Socket}, nil
}

// resources are the resources of the VM's disks, each once, in order.
func (m *machine) resources() []string {
	var names []string
	for _, d := range m.vm.Disks() {
		if !slices.Contains(names, d.Resource) {
			names = append(names, d.Resource)
		}
	}
	return names
}

// guest is the VM as the hypervisor takes it.
func (m *machine) guest() hypervisor.Guest {
	v := m.vm
	g := hypervisor.Guest{
		Name: v.Name, MemoryBytes: int64(v.Memory), VCPUs: v.VCPUs, ConsoleLog: v.Console, Accel: hypervisor.Accel(v.Accel),
		Boot:      hypervisor.Boot{Kernel: v.Boot.Kernel, Initrd: v.Boot.Initrd, Cmdline: v.Boot.Cmdline, Firmware: v.Boot.Firmware},
		ExtraArgs: slices.Clone(v.ExtraArgs),
	}
	for _, d := range v.Disks() {
		g.Disks = append(g.Disks, hypervisor.Disk{Socket: m.nbd, Export: d.Export(), ReadOnly: d.ReadOnly})
	}
	for _, d := range v.LocalDisks {
		g.Disks = append(g.Disks, hypervisor.Disk{Path: d.Path})
	}
	switch kind, name := v.NetworkKind(); kind {
	case "user":
		g.Networks = []hypervisor.Network{{Kind: hypervisor.UserNetwork, MAC: v.MAC}}
	case "bridge":
		g.Networks = []hypervisor.Network{{Kind: hypervisor.BridgeNetwork, Bridge: name, MAC: v.MAC}}
	case "tap": // made by somebody else: QEMU only opens it
		g.ExtraArgs = append([]string{
			"-netdev", "tap,id=polluxtap,script=no,downscript=no,ifname=" + name,
			"-device", "virtio-net-pci,netdev=polluxtap,mac=" + v.MAC,
		}, g.ExtraArgs...)
	}
	return g
}

// notRunning refuses if the VM runs on this node, or may do so.
func (m *machine) notRunning(ctx context.Context) error {
	st, err := m.hv.State(ctx, m.vm.Name)
	if err != nil {
		return err
	}
	if st.Phase == hypervisor.Stopped {
		return nil
	}
	return &adm.Error{
		Exit: adm.ExitRefused, Text: fmt.Sprintf("vm %s: it is already running on this node (%s, process %d)", m.vm.Name, st.Phase, st.PID),
		Advice: "polluxadm vm status " + m.vm.Name,
	}
}

// start promotes and boots; on a failure it demotes again what it promoted.
func (m *machine) start(ctx context.Context) error {
	if m.a.dryRun {
		return m.describeStart(false)
	}
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
	s := m.newSteps(cl)
	if err := s.promoteAll(ctx, false); err != nil {
		return err
	}
	return s.boot(ctx)
}

// describeStart is the dry run of start and failover.
func (m *machine) describeStart(force bool) error {
	for _, r := range m.resources() {
		fmt.Fprintf(m.a.Out, "polluxd: %s\n", describe(adm.CmdPrimary, target{Resource: r}, adm.Args{Force: force}))
	}
	fmt.Fprintf(m.a.Out, "hypervisor: start %s\n", m.vm.Name)
	return nil
}

func (m *machine) stop(ctx context.Context) error {
	if m.a.dryRun {
		return m.describeStop("stop")
	}
	if !m.vm.Graceful {
		return m.kill(ctx)
	}
	grace := m.vm.StopTimeout.Duration
	err := m.hv.Stop(ctx, m.vm.Name, grace)
	switch {
	case errors.Is(err, hypervisor.ErrNotRunning):
		fmt.Fprintf(m.a.Out, "vm %s: was not running\n", m.vm.Name)
	case errors.Is(err, hypervisor.ErrStillRunning), errors.Is(err, hypervisor.ErrPaused):
		fmt.Fprintf(m.a.Err, "vm %s: did not shut down (%v): cutting its power\n", m.vm.Name, err)
		return m.kill(ctx)
	case err != nil:
		return err
	default:
		fmt.Fprintf(m.a.Out, "vm %s: shut down\n", m.vm.Name)
	}
	return m.demoteAll(ctx)
}

func (m *machine) kill(ctx context.Context) error {
	if m.a.dryRun {
		return m.describeStop("kill")
	}
	limited, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	err := m.hv.Kill(limited, m.vm.Name)
	switch {
	case errors.Is(err, hypervisor.ErrNotRunning):
		fmt.Fprintf(m.a.Out, "vm %s: was not running\n", m.vm.Name)
	case err != nil:
		return err
	default:
		fmt.Fprintf(m.a.Out, "vm %s: killed\n", m.vm.Name)
	}
	return m.demoteAll(ctx)
}

func (m *machine) describeStop(how string) error {
	fmt.Fprintf(m.a.Out, "hypervisor: %s %s\n", how, m.vm.Name)
	for _, r := range slices.Backward(m.resources()) {
		fmt.Fprintf(m.a.Out, "polluxd: secondary %s\n", r)
	}
	return nil
}

// demoteAll gives up the Primary role for the VM's resources, last one first.
func (m *machine) demoteAll(ctx context.Context) error {
	cl, err := m.a.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.close()
	var errs []error
	for _, name := range slices.Backward(m.resources()) {
		r, err := cl.resource(ctx, name)
		if err == nil && r.Role != "Primary" {
			continue
		}
		if err == nil {
			err = demote(ctx, cl, name)
		}
		if err == nil {
			fmt.Fprintf(m.a.Out, "%s: Secondary\n", name)
		}
		errs = append(errs, err)
	}
	return m.a.worst(errs)
}

// demote asks again while the daemon still sees the disk open: the hypervisor
// has closed it, the daemon is about to read so.
func demote(ctx context.Context, cl *client, name string) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := cl.call(ctx, adm.Request{Cmd: adm.CmdSecondary, Resource: name}, nil)
		var refused *adm.Error
		if !errors.As(err, &refused) || refused.Number != -12 {
			return err
		}
		select {
		case <-ctx.Done():
			return err // still held open, by somebody else
		case <-tick.C:
		}
	}
}

func (m *machine) status(ctx context.Context) error {
	st, err := m.hv.State(ctx, m.vm.Name)
	if err != nil {
		return err
	}
	fmt.Fprintln(m.a.Out, vmLine(m.vm.Name, st, m.a.now()))
	all, err := m.a.fetchStatus(ctx, nil)
	if errors.Is(err, errNoDaemon) {
		return err
	}
	if err != nil {
		return err
	}
	for i, d := range m.vm.Disks() {
		line := fmt.Sprintf("    vd%c  %-20s", 'a'+i, d.Export())
		j := slices.IndexFunc(all.Resources, func(r adm.Resource) bool { return r.Name == d.Resource })
		if j < 0 {
			fmt.Fprintf(m.a.Out, "%s  not known to polluxd\n", line)
			continue
		}
		v := judge(all.Resources[j], m.a.now())
		fmt.Fprintf(m.a.Out, "%s  %s  %s\n", line, orElse(all.Resources[j].Role, "-"), m.a.colours(m.a.Out).level(v.Level, v.String()))
	}
	return nil
}

func vmLine(name string, st hypervisor.State, now time.Time) string {
	if st.Phase == hypervisor.Stopped {
		return fmt.Sprintf("%s  stopped on this node", name)
	}
	s := fmt.Sprintf("%s  %s on this node for %s, process %d", name, st.Phase, roundAge(now.Sub(st.Since)), st.PID)
	if st.Reason != "" {
		s += " (" + st.Reason + ")"
	}
	return s
}

// listVMs shows all described VMs, and those that run without a description.
func (a *app) listVMs(ctx context.Context) error {
	vms, d, err := a.vms()
	if err != nil {
		return err
	}
	hv, err := a.hypervisorFor(d)
	if err != nil {
		return err
	}
	running, err := hv.List(ctx)
	if err != nil {
		return err
	}
	find := func(name string) hypervisor.State {
		for _, st := range running {
			if st.Name == name {
				return st
			}
		}
		return hypervisor.State{Name: name}
	}
	for _, v := range vms {
		fmt.Fprintf(a.Out, "%s  (%s)\n", vmLine(v.Name, find(v.Name), a.now()), strings.Join(v.Resources, " "))
	}
	for _, st := range running {
		if !slices.ContainsFunc(vms, func(v *conf.VM) bool { return v.Name == st.Name }) {
			fmt.Fprintf(a.Out, "%s  (no file describes it)\n", vmLine(st.Name, st, a.now()))
		}
	}
	return nil
}

func (a *app) completeVMs(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	vms, _, err := a.vms()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var fit []string
	for _, v := range vms {
		if strings.HasPrefix(v.Name, prefix) {
			fit = append(fit, v.Name)
		}
	}
	return fit, cobra.ShellCompDirectiveNoFileComp
}
