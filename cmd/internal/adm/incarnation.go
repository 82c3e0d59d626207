package adm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

// managedCommands are what polluxha asks of polluxd besides terms, for experts
// and for hypervisors that it does not know.
func (a *app) managedCommands() []*cobra.Command {
	plain := func(c adm.Command, short, long string) *cobra.Command {
		return a.resourceCommand(string(c), groupData, short, long, func(ctx context.Context, t target) error {
			return a.control(ctx, c, t, adm.Args{})
		})
	}
	return []*cobra.Command{
		a.incarnationCommand(adm.CmdExport, "export a managed resource's volumes to one start of a VM",
			"The exports are called RESOURCE/VOLUME@INCARNATION (RESOURCE@INCARNATION if there is one volume). The first process\n"+
				"that opens one has them all, and nobody else. Those of any other incarnation end; while requests of it are frozen\n"+
				"this is refused. polluxha does this for each start of a VM. For experts."),
		a.incarnationCommand(adm.CmdUnexport, "end the exports of a start of a VM, and its connections",
			"Without INCARNATION: of whichever there is. For experts."),
		plain(adm.CmdFreeze, "have all I/O of a Primary with a term wait, until thaw or a new term",
			"What polluxha does before it kills a VM whose lease has ended: reads wait, too. For experts."),
		plain(adm.CmdFailsafe, "ask the peer of a Primary with a term to stand back",
			"It answers when its disk says Outdated; when the connection ends, this node goes on alone. polluxha does this while\n"+
				"the arbiter is away, if the VM's file has failsafe = true. For experts."),
		plain(adm.CmdFailsafeOver, "end failsafe", "The peer counts again. For experts."),
		plain(adm.CmdThaw, "end freeze", "What is frozen for its term stays frozen. For experts."),
	}
}

// incarnationCommand is export or unexport, whose last argument is the incarnation.
func (a *app) incarnationCommand(c adm.Command, short, long string) *cobra.Command {
	co := a.resourceCommand(string(c), groupData, short, long, nil)
	co.Use, co.Args = string(c)+" RESOURCE INCARNATION", cobra.ExactArgs(2)
	if c == adm.CmdUnexport {
		co.Use, co.Args = string(c)+" RESOURCE [INCARNATION]", cobra.RangeArgs(1, 2)
	}
	co.RunE = func(cmd *cobra.Command, args []string) error {
		incarnation := ""
		if len(args) == 2 {
			incarnation = args[1]
		}
		if incarnation != "" && !adm.ValidIncarnation(incarnation) || len(args) == 2 && incarnation == "" {
			return &cobraUsage{fmt.Errorf("%s: found %q, expected an incarnation: 1 to 64 letters, digits, dots, hyphens and underscores", c, incarnation)}
		}
		ts, err := a.targets(args[:1])
		if err != nil {
			return err
		}
		var errs []error
		for _, t := range ts {
			errs = append(errs, a.incarnate(cmd.Context(), c, t, incarnation))
		}
		return errors.Join(errs...)
	}
	return co
}

// incarnate asks for one of the two and prints the names of exports.
func (a *app) incarnate(ctx context.Context, c adm.Command, t target, incarnation string) error {
	args := adm.Args{Incarnation: incarnation}
	if a.dryRun {
		fmt.Fprintf(a.Out, "polluxd: %s\n", describe(c, t, args))
		return nil
	}
	cl, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.close()
	req := adm.Request{Cmd: c, Resource: t.Resource, Args: args}
	if c == adm.CmdUnexport {
		return cl.call(ctx, req, nil)
	}
	var ex adm.Exports
	if err := cl.call(ctx, req, &ex); err != nil {
		return err
	}
	for _, v := range slices.Sorted(maps.Keys(ex.Names)) {
		fmt.Fprintln(a.Out, ex.Names[v])
	}
	return nil
}
