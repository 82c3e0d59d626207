package adm

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload", GroupID: groupSetup, Short: "have polluxd and polluxha read their files again", Args: cobra.NoArgs,
		Long: "polluxd reads pollux.toml and the resources, polluxha pollux.toml, cluster.toml and the machines' files, as both do on\n" +
			"SIGHUP. What is wrong is said, and what was read before stays in force for it; nothing that runs is touched.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.reload(cmd.Context()) },
	}
}

// reload has both programs read their files. On a witness there is no polluxd, and
// without a cluster need not be a polluxha: one that does not run is only told of,
// unless it is both.
func (a *app) reload(ctx context.Context) error {
	if a.dryRun {
		fmt.Fprintln(a.Out, "polluxd: reload\npolluxha: reload")
		return nil
	}
	parts := []struct {
		name string
		do   func() error
	}{
		{"polluxd", func() error {
			cl, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer cl.close()
			return cl.call(ctx, adm.Request{Cmd: adm.CmdReload}, nil)
		}},
		{"polluxha", func() error { return a.ask(ctx, adm.HARequest{Cmd: adm.HAReload}, nil, true) }},
	}
	var errs, absent []error
	for _, p := range parts {
		err := p.do()
		switch {
		case err == nil:
			fmt.Fprintf(a.Out, "%s: has read its files again\n", p.name)
		case errors.Is(err, errNoDaemon), errors.Is(err, errNoManager):
			fmt.Fprintf(a.Out, "%s: does not run here\n", p.name)
			absent = append(absent, err)
		default:
			errs = append(errs, err)
		}
	}
	if len(absent) == len(parts) {
		errs = absent
	}
	return a.worst(errs)
}
