package adm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/cmd/internal/daemon"
	"github.com/pollux-project/pollux/cmd/internal/takeover"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
	"github.com/pollux-project/pollux/replication/engine"
)

// adoptCommand takes resources of drbd.conf over from the kernel's DRBD.
func (a *app) adoptCommand() *cobra.Command {
	return &cobra.Command{
		Use: "adopt {RESOURCE | all}...", GroupID: groupSetup,
		Short: "take a resource of drbd.conf over from the kernel's DRBD",
		Long: "The disk stays as it is: same data, same metadata, so only what changes meanwhile is resynced. First a list of checks\n" +
			"is printed; unless all of them hold, for all the resources named, nothing is changed. Then the resource is written into\n" +
			"adopt of pollux.toml, and polluxd brings it up. With -d only the checks are made. The opposite: release.",
		ValidArgsFunction: a.completeForeign(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.handOver(cmd.Context(), "adopt", args, a.adopt)
		},
	}
}

// handOver is what adopt and release have in common.
func (a *app) handOver(ctx context.Context, command string, args []string, run func(context.Context, *conf.Daemon, []string) error) error {
	if len(args) == 0 {
		return &cobraUsage{fmt.Errorf("%s: no resource names specified", command)}
	}
	if a.configFile != "" {
		return usageError("%s: -c is about drbdadm's files; polluxd reads the file that drbd-conf in %s names", command, a.settingsPath())
	}
	d, err := a.settings()
	if err != nil {
		return err
	}
	return run(ctx, d, args)
}

// completeForeign offers the names of drbd.conf that are adopted, or are not.
func (a *app) completeForeign(adopted bool) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		d, err := a.settings()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		stock, err := a.stockConfig(d)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var fit []string
		for _, r := range stock.Resources {
			if slices.Contains(d.Adopt, r.Name) == adopted && !r.Ignored && strings.HasPrefix(r.Name, prefix) {
				fit = append(fit, r.Name)
			}
		}
		return fit, cobra.ShellCompDirectiveNoFileComp
	}
}

// stockConfig is the configuration of the kernel's DRBD.
func (a *app) stockConfig(d *conf.Daemon) (*conf.Config, error) {
	if d.DRBDConf == "" {
		return nil, &adm.Error{
			Exit: adm.ExitRefused, Text: "drbd-conf is empty in " + a.settingsPath() + ": there is nothing to adopt from",
			Advice: "drbd-conf = \"" + conf.DefaultDRBDConf + "\" is the default",
		}
	}
	env := conf.SystemEnv()
	env.Hostname = d.NodeName
	c, err := conf.Load([]string{d.DRBDConf}, env)
	return c, a.asConfigError(err)
}

// A handover is one resource that may change its owner.
type handover struct {
	name     string
	r        *conf.Resource // nil if it can't be resolved: findings say why
	findings []takeover.Finding
}

func (a *app) adopt(ctx context.Context, d *conf.Daemon, words []string) error {
	stock, err := a.stockConfig(d)
	if err != nil {
		return err
	}
	names, err := a.foreignNames(words, d, stock)
	if err != nil || len(names) == 0 {
		return err
	}
	with := *d
	with.Adopt = slices.Clone(d.Adopt)
	for _, n := range names {
		if !slices.Contains(with.Adopt, n) {
			with.Adopt = append(with.Adopt, n)
		}
	}
	env := conf.SystemEnv()
	env.Hostname = d.NodeName
	cfg, err := with.LoadResources(env)
	if err != nil {
		return a.asConfigError(err)
	}
	var list []*handover
	for _, n := range names {
		h := &handover{name: n}
		if h.findings = a.alreadyAdopted(ctx, d, n); h.findings == nil {
			a.checkAdopt(ctx, h, d, &with, cfg, stock)
		}
		a.printChecks(h, "adopt")
		list = append(list, h)
	}
	if err := refuseHandover(list, "adopted"); err != nil {
		return err
	}
	var errs []error
	for _, h := range list {
		if h.r != nil {
			errs = append(errs, a.takeOver(ctx, d, h))
		}
	}
	return a.worst(errs)
}

// foreignNames are the resources of drbd.conf that the words name.
func (a *app) foreignNames(words []string, d *conf.Daemon, stock *conf.Config) ([]string, error) {
	var names []string
	add := func(n string) {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	for _, w := range words {
		if w == "all" {
			for _, r := range stock.Resources {
				if !r.Ignored && !r.Stacked && !slices.Contains(d.Adopt, r.Name) {
					add(r.Name)
				}
			}
			continue
		}
		r := stock.Resource(w)
		if res, _, isVolume := strings.Cut(w, "/"); isVolume || strings.HasPrefix(w, "minor-") && r == nil {
			return nil, usageError("'%s': a resource changes its owner as a whole; name the resource%s", w, orElse(strings.TrimSuffix(" "+res, " "+w), ""))
		}
		if r == nil || r.Ignored {
			if own, err := a.loadConfig(); err == nil && own.Resource(w) != nil && !own.Resource(w).Foreign {
				return nil, &adm.Error{
					Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: is defined at %s, in Pollux's own files: it is not DRBD's", w, own.Resource(w).Pos),
					Advice: "polluxadm up " + w,
				}
			}
			return nil, usageError("'%s' not defined in your config (for this host).", w)
		}
		add(w)
	}
	if len(names) == 0 {
		fmt.Fprintf(a.Out, "%s has no resource for this host that is not adopted already\n", d.DRBDConf)
	}
	return names, nil
}

// alreadyAdopted is nil unless the resource is adopted and up: then there is
// nothing to do. One that is adopted and down is checked like any other.
func (a *app) alreadyAdopted(ctx context.Context, d *conf.Daemon, name string) []takeover.Finding {
	if !slices.Contains(d.Adopt, name) {
		return nil
	}
	r, err := a.resourceStatus(ctx, name)
	if err != nil || r.State != adm.StateUp {
		return nil
	}
	return []takeover.Finding{{About: "config", Text: "it is adopted and up already: nothing to do"}}
}

// checkAdopt fills h with all that there is to say about one resource.
func (a *app) checkAdopt(ctx context.Context, h *handover, d, with *conf.Daemon, cfg, stock *conf.Config) {
	wrong := func(about, text string, do ...string) {
		h.findings = append(h.findings, takeover.Finding{Verdict: takeover.Wrong, About: about, Text: text, Do: do})
	}
	if stock.Resource(h.name).Stacked {
		wrong("config", "it is stacked on another resource, which Pollux does not do", "leave it to DRBD, or resolve the stack")
		return
	}
	r, err := cfg.Resolve(h.name)
	if err != nil {
		wrong("config", err.Error(), "correct the configuration on both nodes, or leave the resource to DRBD")
		return
	}
	for _, s := range stock.Resources {
		if s.Stacked && !s.Ignored && slices.ContainsFunc(s.Hosts, func(x *conf.HostSection) bool { return x.Lower == h.name }) {
			wrong("config", fmt.Sprintf("%s is stacked on it, and that needs its kernel device", s.Name), "leave both to DRBD")
			return
		}
	}
	without, err := daemon.Runnable(r)
	if err != nil {
		wrong("config", err.Error(), "correct the configuration on both nodes, or leave the resource to DRBD")
		return
	}
	m := takeover.Machine{Root: a.root}
	h.r = r
	kernel := m.Kernel(r)
	h.findings = slices.Concat(m.Config(r, without, conf.SystemEnv().LocalAddr), kernel)
	for _, v := range r.Volumes {
		h.findings = append(h.findings, m.Disk(h.name, v)...)
	}
	h.findings = append(h.findings, m.Device(h.name, r.Volumes, d.AttachDevice)...)
	if a.stockServicesRead(d, h.name) {
		h.findings = append(h.findings, m.Boot(h.name, leftToDRBD(stock, with))...)
	}
	if !takeover.AnyWrong(kernel) { // else it is connected to the kernel here
		h.findings = append(h.findings, m.Peer(ctx, r))
	}
}

// stockServicesRead reports whether the file that drbdadm reads has the resource.
func (a *app) stockServicesRead(d *conf.Daemon, name string) bool {
	path := a.root + takeover.StockConfig
	if d.DRBDConf == path {
		return true
	}
	env := conf.SystemEnv()
	env.Hostname = d.NodeName
	c, err := conf.Load([]string{path}, env)
	return err == nil && c.Resource(name) != nil && !c.Resource(name).Ignored
}

// leftToDRBD are the resources that this host's kernel keeps.
func leftToDRBD(stock *conf.Config, with *conf.Daemon) []string {
	var names []string
	for _, r := range stock.Resources {
		if !r.Ignored && !slices.Contains(with.Adopt, r.Name) {
			names = append(names, r.Name)
		}
	}
	return names
}

// printChecks prints the check list of one resource.
func (a *app) printChecks(h *handover, command string) {
	fmt.Fprintf(a.Out, "%s %s:\n", command, h.name)
	for _, f := range h.findings {
		fmt.Fprintf(a.Out, "  %-5s %-11s %s\n", f.Verdict, f.About, strings.ReplaceAll(f.Text, "\n", "; "))
		for _, do := range f.Do {
			fmt.Fprintf(a.Out, "        %-11s -> %s\n", "", do)
		}
	}
}

// refuseHandover is the error if any check of any resource does not hold.
func refuseHandover(list []*handover, done string) error {
	var names []string
	checks := 0
	for _, h := range list {
		n := 0
		for _, f := range h.findings {
			if f.Verdict == takeover.Wrong {
				n++
			}
		}
		if checks += n; n > 0 {
			names = append(names, h.name)
		}
	}
	if checks == 0 {
		return nil
	}
	what := "1 check does not hold"
	if checks > 1 {
		what = fmt.Sprintf("%d checks do not hold", checks)
	}
	return &adm.Error{
		Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: not %s: %s; nothing was changed", strings.Join(names, ", "), done, what),
		Advice: "do what stands behind ->, then repeat the command",
	}
}

// takeOver makes one resource Pollux's. If polluxd can't bring it up, it is
// DRBD's again.
func (a *app) takeOver(ctx context.Context, d *conf.Daemon, h *handover) error {
	path := a.settingsPath()
	if a.dryRun {
		fmt.Fprintf(a.Out, "would add %q to adopt in %s\npolluxd: up %s\n", h.name, path, h.name)
		return nil
	}
	// What was known of the role is of a time before DRBD owned the disk.
	if err := engine.ForgetRole(d.StateDir, h.name); err != nil {
		return err
	}
	isNew := !slices.Contains(d.Adopt, h.name)
	if err := updateAdopt(path, []string{h.name}, nil); err != nil {
		return err
	}
	err := a.control(ctx, adm.CmdUp, target{Resource: h.name}, adm.Args{})
	switch {
	case errors.Is(err, errNoDaemon):
		fmt.Fprintf(a.Out, "%s: adopted: it is in adopt of %s\n", h.name, path)
		a.complain(h.name+": is not up: polluxd is not running", "systemctl enable --now polluxd")
		return nil
	case err != nil && isNew && ctx.Err() == nil:
		if undo := updateAdopt(path, nil, []string{h.name}); undo != nil {
			return errors.Join(err, undo)
		}
		a.forget(ctx, h.name)
		a.complain(h.name+": not adopted: polluxd could not bring it up, so it is left to DRBD", "")
		return err
	case err != nil:
		return err
	}
	fmt.Fprintf(a.Out, "%s: adopted: it is in adopt of %s, and polluxd has it up\n", h.name, path)
	return nil
}

// forget has the daemon drop a resource that is down and not configured any more.
// It is of no consequence if there is none.
func (a *app) forget(ctx context.Context, name string) {
	if err := a.control(ctx, adm.CmdForget, target{Resource: name}, adm.Args{}); err != nil && !errors.Is(err, errNoDaemon) {
		a.report(err)
	}
}
