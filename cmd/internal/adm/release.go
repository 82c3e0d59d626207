package adm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/blockdev/attach"
	"github.com/pollux-project/pollux/cmd/internal/daemon"
	"github.com/pollux-project/pollux/cmd/internal/takeover"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
	"github.com/pollux-project/pollux/replication/engine"
	"github.com/pollux-project/pollux/replication/meta"
)

// releaseCommand gives adopted resources back to the kernel's DRBD.
func (a *app) releaseCommand() *cobra.Command {
	force := false
	co := &cobra.Command{
		Use: "release {RESOURCE | all}...", GroupID: groupSetup,
		Short: "give an adopted resource back to the kernel's DRBD",
		Long: "The opposite of adopt: takes the resource down, leaves its metadata as drbd.ko wants it, and drops it from adopt of\n" +
			"pollux.toml; then it prints what brings it up in the kernel. Refused while this node is Primary or a client has a\n" +
			"volume open. A resource that polluxd did not leave cleanly needs --force: the extents of its activity log are marked\n" +
			"out of sync, as drbdadm would do.",
		ValidArgsFunction: a.completeForeign(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.handOver(cmd.Context(), "release", args, func(ctx context.Context, d *conf.Daemon, words []string) error {
				return a.release(ctx, d, words, force)
			})
		},
	}
	co.Flags().BoolVar(&force, "force", false, "also if it was not shut down cleanly")
	return co
}

func (a *app) release(ctx context.Context, d *conf.Daemon, words []string, force bool) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	names, err := a.adoptedNames(words, d, cfg)
	if err != nil || len(names) == 0 {
		return err
	}
	var list []*handover
	for _, n := range names {
		h := &handover{name: n}
		if h.r, err = cfg.Resolve(n); err != nil {
			return a.asConfigError(err)
		}
		if err := a.checkRelease(ctx, h, force); err != nil {
			return err
		}
		a.printChecks(h, "release")
		list = append(list, h)
	}
	if err := refuseHandover(list, "released"); err != nil {
		return err
	}
	var errs []error
	for _, h := range list {
		errs = append(errs, a.giveBack(ctx, d, h))
	}
	return a.worst(errs)
}

// adoptedNames are the adopted resources that the words name.
func (a *app) adoptedNames(words []string, d *conf.Daemon, cfg *conf.Config) ([]string, error) {
	var names []string
	for _, w := range words {
		if w == "all" {
			for _, r := range cfg.Resources {
				if r.Adopted && !slices.Contains(names, r.Name) {
					names = append(names, r.Name)
				}
			}
			continue
		}
		r := cfg.Resource(w)
		switch res, _, isVolume := strings.Cut(w, "/"); {
		case isVolume:
			return nil, usageError("'%s': a resource changes its owner as a whole; name the resource %s", w, res)
		case r == nil || r.Ignored:
			return nil, usageError("'%s' not defined in your config (for this host).", w)
		case !r.Foreign:
			return nil, &adm.Error{
				Exit: adm.ExitRefused, Text: fmt.Sprintf("%s: is defined at %s, in Pollux's own files: it was not adopted", w, r.Pos),
				Advice: "for DRBD to have it, take it down and move its definition to " + orElse(d.DRBDConf, conf.DefaultDRBDConf),
			}
		case !r.Adopted:
			return nil, &adm.Error{Exit: adm.ExitRefused, Text: w + ": is not adopted: DRBD has it already", Advice: "drbdadm status " + w}
		}
		if !slices.Contains(names, w) {
			names = append(names, w)
		}
	}
	if len(names) == 0 {
		fmt.Fprintln(a.Out, "nothing is adopted on this node")
	}
	return names, nil
}

// checkRelease fills h; its error means that nothing can be said.
func (a *app) checkRelease(ctx context.Context, h *handover, force bool) error {
	st, err := a.resourceStatus(ctx, h.name)
	var refused *adm.Error
	isDown := errors.Is(err, errNoDaemon) || errors.As(err, &refused) && refused.Number == 158
	if err != nil && !isDown {
		return err
	}
	if err == nil && st.State == adm.StateUp {
		h.findings = checkRunning(h.name, st)
		return nil
	}
	text := "it is down"
	if errors.Is(err, errNoDaemon) {
		text = "polluxd is not running"
	}
	h.findings = []takeover.Finding{{About: "state", Text: text}}
	m := takeover.Machine{Root: a.root}
	for _, v := range h.r.Volumes {
		fs := m.Disk(h.name, v)
		if !takeover.AnyWrong(fs) {
			fs = append(fs, a.uncleanly(h.name, v, force)...)
		}
		h.findings = append(h.findings, fs...)
	}
	return nil
}

// uncleanly is what there is to say of a disk that was not detached cleanly.
func (a *app) uncleanly(name string, v conf.Volume, force bool) []takeover.Finding {
	if v.Disk == "" {
		return nil
	}
	dev, err := takeover.OpenDevices(v, true)
	if err != nil {
		return nil // Disk has just reported it
	}
	defer dev.Close() // only read
	if p, err := meta.PendingAL(dev.Meta, dev.Layout); err != nil || p.WasClean {
		return nil
	}
	f := takeover.Finding{
		Verdict: takeover.Wrong, About: fmt.Sprintf("metadata %d", v.Number), Text: "polluxd did not shut it down cleanly",
		Do: []string{"systemctl start polluxd, polluxadm down " + name, "or polluxadm release --force " + name + ", which applies the activity log"},
	}
	if force {
		f.Verdict, f.Text, f.Do = takeover.Note, f.Text+": its activity log is applied now", nil
	}
	return []takeover.Finding{f}
}

// checkRunning is about a resource that polluxd has up.
func checkRunning(name string, st adm.Resource) []takeover.Finding {
	var fs []takeover.Finding
	open := 0
	for _, v := range st.Volumes {
		open += v.OpenCount
	}
	if open > 0 {
		who := "1 client has"
		if open > 1 {
			who = fmt.Sprintf("%d clients have", open)
		}
		fs = append(fs, takeover.Finding{
			Verdict: takeover.Wrong, About: "state", Text: fmt.Sprintf("it is in use: %s it open", who),
			Do: []string{"end the VM or unmount what uses it"},
		})
	}
	if st.Role == "Primary" {
		fs = append(fs, takeover.Finding{
			Verdict: takeover.Wrong, About: "state", Text: "this node is Primary",
			Do: []string{"polluxadm secondary " + name},
		})
	}
	if fs == nil {
		fs = append(fs, takeover.Finding{About: "state", Text: "it is up, " + orElse(st.Role, "Unknown") + ", and nobody has it open"})
	}
	for _, v := range st.Volumes {
		if v.Resync != nil {
			fs = append(fs, takeover.Finding{
				Verdict: takeover.Note, About: fmt.Sprintf("disk %d", v.Volume),
				Text: fmt.Sprintf("a resync is at %.0f%%: it goes on when DRBD is connected", v.Resync.Done()),
			})
		}
	}
	if st.Term != nil {
		fs = append(fs, takeover.Finding{
			Verdict: takeover.Note, About: "term",
			Text: fmt.Sprintf("term %d was promised: drbd.ko knows no terms, so after a return to Pollux it is unknown until it is learnt anew", st.Term.Promised),
		})
	}
	return fs
}

// giveBack makes one resource DRBD's. It stays Pollux's until its metadata is
// clean: what is interrupted before that can be repeated.
func (a *app) giveBack(ctx context.Context, d *conf.Daemon, h *handover) error {
	path := a.settingsPath()
	if a.dryRun {
		fmt.Fprintf(a.Out, "polluxd: down %s\nwould drop %q from adopt in %s\n", h.name, h.name, path)
		return nil
	}
	if err := a.control(ctx, adm.CmdDown, target{Resource: h.name}, adm.Args{}); err != nil {
		return err
	}
	for _, v := range h.r.Volumes {
		if err := removeDevice(ctx, d, h.r, v); err != nil {
			return err
		}
		if err := a.cleanMetadata(h.name, v); err != nil {
			return err
		}
	}
	if err := engine.ForgetRole(d.StateDir, h.name); err != nil {
		return err
	}
	if err := updateAdopt(path, nil, []string{h.name}); err != nil {
		return err
	}
	a.forget(ctx, h.name)
	fmt.Fprintf(a.Out, "%s: released: it is no longer in adopt of %s. DRBD takes it up with:\n", h.name, path)
	m := takeover.Machine{Root: a.root}
	if !m.KernelLoaded() {
		fmt.Fprintln(a.Out, "  modprobe drbd")
	}
	fmt.Fprintf(a.Out, "  drbdadm up %s\n", h.name)
	if !m.DRBDAtBoot(h.name) {
		fmt.Fprintf(a.Out, "  systemctl enable drbd@%s.target     # at each boot\n", h.name)
	}
	return nil
}

// removeDevice removes the block device that a polluxd which died has left: its
// name is the one that drbd.ko's needs. A running one has removed its own.
func removeDevice(ctx context.Context, d *conf.Daemon, r *conf.Resource, v conf.Volume) error {
	err := attach.TakeDown(ctx, attach.Config{Mode: attach.Mode(d.AttachDevice), RunDir: daemon.AttachDir(d)}, attach.Volume{
		Resource: r.Name, Number: v.Number, Implicit: len(r.Volumes) == 1 && v.Number == 0, Minor: v.Minor,
	})
	if err != nil {
		return &adm.Error{
			Exit: adm.ExitStateChange, Number: -12, Text: fmt.Sprintf("%s: State change failed: (-12) Device is held open by someone: %v", r.Name, err),
			Advice: "end what uses " + v.Device + " and repeat the command; nothing was changed",
		}
	}
	return nil
}

// cleanMetadata does what drbdadm does before the kernel attaches: without it
// drbd.ko refuses the disk.
func (a *app) cleanMetadata(name string, v conf.Volume) error {
	if v.Disk == "" {
		return nil
	}
	fail := func(err error) error {
		return &adm.Error{
			Exit: adm.ExitRefused, Text: fmt.Sprintf("%s/%d: metadata of %s: %v", name, v.Number, v.Disk, err),
			Advice: fmt.Sprintf("it is still Pollux's: polluxadm up %s", name),
		}
	}
	dev, err := takeover.OpenDevices(v, false)
	if err != nil {
		return fail(err)
	}
	done, err := meta.ApplyAL(dev.Meta, dev.Layout)
	if cerr := dev.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fail(err)
	}
	if len(done.Hot) > 0 {
		fmt.Fprintf(a.Out, "%s/%d: activity log applied: %d extents, %s more are marked out of sync\n", name, v.Number, len(done.Hot), meta.HumanKB(done.NewBits*4))
	}
	return nil
}
