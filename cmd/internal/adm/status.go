package adm

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

// watchInterval is how often status --watch looks; a resync's rate is not
// steadier than that.
const watchInterval = time.Second

func (a *app) statusCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use: "status [RESOURCE | all]...", GroupID: groupDaily, Short: "show how well each resource is protected",
		Long: "For each resource one sentence, then role, connection and disks as LOCAL/PEER.\n\n" +
			"  protected  both nodes hold the same data\n" +
			"  degraded   only one node has all the data\n" +
			"  at risk    no copy is known to be good, or the two contradict each other\n" +
			"  stopped    it can't be used on this node\n\n" +
			"--json prints the form of \"drbdsetup status --json\" of DRBD 9, with additions in keys that begin with pollux-.",
		ValidArgsFunction: a.completeResources,
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch {
				return a.watchStatus(cmd.Context(), args, asJSON)
			}
			st, err := a.fetchStatus(cmd.Context(), args)
			if err != nil {
				return err
			}
			if asJSON {
				return writeStatusJSON(a.Out, st, a.now())
			}
			writeTree(a.Out, st, a.colours(a.Out), a.now())
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as drbdsetup does")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again each second, until interrupted")
	return cmd
}

// fetchStatus asks for the named resources, or all.
func (a *app) fetchStatus(ctx context.Context, args []string) (adm.Status, error) {
	cl, err := a.dial(ctx)
	if err != nil {
		return adm.Status{}, err
	}
	defer cl.close()
	return cl.status(ctx, args)
}

func (c *client) status(ctx context.Context, names []string) (adm.Status, error) {
	var all adm.Status
	if err := c.call(ctx, adm.Request{Cmd: adm.CmdStatus}, &all); err != nil {
		return all, err
	}
	if len(names) == 0 {
		return all, nil
	}
	st := adm.Status{Node: all.Node}
	for _, n := range names {
		found := n == "all"
		for _, r := range all.Resources {
			if n == "all" || n == r.Name {
				st.Resources, found = append(st.Resources, r), true
			}
		}
		if !found {
			return st, &adm.Error{Exit: adm.ExitRefused, Text: n + ": No such resource", Advice: "polluxadm status shows all that polluxd knows"}
		}
	}
	return st, nil
}

// watchStatus repeats the status. On a terminal the screen is used again.
func (a *app) watchStatus(ctx context.Context, args []string, asJSON bool) error {
	cl, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.close()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	terminal := isTerminal(a.Out)
	for {
		st, err := cl.status(ctx, args)
		if ctx.Err() != nil {
			return nil // interrupted: that is how a watch ends
		}
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if terminal {
			b.WriteString("\x1b[H\x1b[J")
		}
		if asJSON {
			if err := writeStatusJSON(&b, st, a.now()); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(&b, "%s  %s\n\n", a.now().Format(time.DateTime), st.Node)
			writeTree(&b, st, a.colours(a.Out), a.now())
		}
		if _, err := a.Out.Write(b.Bytes()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
