package adm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

// perfOptions are those of polluxadm perf.
type perfOptions struct {
	asJSON, watch, reset bool
	interval             float64 // seconds, 0 = not given
}

// watchPerf is how long each table of perf --watch is of, unless it is said, in
// seconds: at a thousand writes a second a p99 has ten samples above it.
const watchPerf = 2

func (a *app) perfCommand() *cobra.Command {
	var o perfOptions
	cmd := &cobra.Command{
		Use: "perf " + resourceUsage, GroupID: groupDaily, Short: "show where the time of reads and writes goes",
		Long: "For each volume and kind of request a table: how long each hop of its way took, and what share of the whole\n" +
			"was spent waiting for it. Where two hops run in parallel the slower one has the share. A sentence says what to\n" +
			"look at first. Times are since the volume was attached or the last --reset, or of --interval SECONDS.\n\n" +
			"  NBD in        the request was read, until polluxd takes it up     local queue  the order to write, to its system call\n" +
			"  conflict      an overlapping write, or frozen I/O, is waited for  local write  that system call\n" +
			"  activity log  its extent is entered there first                   send         until it is in the socket to the peer\n" +
			"  ack           the peer's answer, to the request complete          peer         from there to the peer's answer: network and peer\n" +
			"  reply         until the answer is in the client's socket          rest         what is left of the total",
		ValidArgsFunction: a.completeResources,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return &cobraUsage{errors.New("perf: no resource names specified")}
			case cmd.Flags().Changed("interval") && (o.interval < 0.1 || o.interval > 86400):
				return &cobraUsage{fmt.Errorf("--interval: found %g, expected 0.1 to 86400 seconds", o.interval)}
			case o.reset && (o.watch || o.interval > 0):
				return &cobraUsage{errors.New("--reset: it goes with neither --interval nor --watch, which need none")}
			}
			ts, err := a.targets(args)
			if err != nil {
				return err
			}
			return a.perf(cmd.Context(), ts, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.asJSON, "json", false, "print JSON: one object for each resource")
	f.BoolVar(&o.reset, "reset", false, "count anew from now on; what was counted is shown once more")
	f.Float64Var(&o.interval, "interval", 0, "look for so many `SECONDS`, and show what happened then")
	f.BoolVarP(&o.watch, "watch", "w", false, "the same again and again, until interrupted; --interval is 2 seconds if it isn't given")
	return cmd
}

func (a *app) perf(ctx context.Context, ts []target, o perfOptions) error {
	if a.dryRun {
		for _, t := range ts {
			fmt.Fprintf(a.Out, "polluxd: perf %s\n", t)
		}
		return nil
	}
	cl, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.close()
	if o.watch && o.interval == 0 {
		o.interval = watchPerf
	}
	var errs []error
	var old []adm.Perf
	for {
		now, kept, err := cl.perf(ctx, ts, o.reset, &errs)
		if o.watch && ctx.Err() != nil {
			return nil // interrupted: that is how a watch ends
		}
		if err != nil {
			return err
		}
		if ts = kept; len(ts) == 0 {
			return a.worst(errs)
		}
		if len(old) == len(now) || o.interval == 0 {
			if err := a.printPerf(now, old, o); err != nil {
				return err
			}
			if !o.watch {
				return a.worst(errs)
			}
		}
		old = now
		select {
		case <-ctx.Done():
			if o.watch {
				return nil
			}
			return ctx.Err()
		case <-time.After(time.Duration(o.interval * float64(time.Second))):
		}
	}
}

// perf asks for all targets; those that are refused are left out from now on.
func (c *client) perf(ctx context.Context, ts []target, reset bool, refused *[]error) (all []adm.Perf, kept []target, err error) {
	for _, t := range ts {
		var p adm.Perf
		var no *adm.Error
		err := c.call(ctx, adm.Request{Cmd: adm.CmdPerf, Resource: t.Resource, Volume: t.Volume, Args: adm.Args{Reset: reset}}, &p)
		switch {
		case errors.As(err, &no) && no.Exit != adm.ExitEnvironment:
			*refused = append(*refused, err)
		case err != nil:
			return nil, nil, err
		default:
			all, kept = append(all, p), append(kept, t)
		}
	}
	return all, kept, nil
}

// printPerf prints what was measured, or what of it is not in old.
func (a *app) printPerf(now, old []adm.Perf, o perfOptions) error {
	var b bytes.Buffer
	if o.watch && !o.asJSON && isTerminal(a.Out) {
		b.WriteString("\x1b[H\x1b[J")
	}
	for i, p := range now {
		var before *adm.Perf
		if old != nil {
			before = &old[i] // of the same target: their number is the same
		}
		r := perfReportOf(p, before)
		if o.asJSON {
			e := json.NewEncoder(&b)
			e.SetIndent("", "  ")
			if err := e.Encode(r); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			fmt.Fprintln(&b)
		}
		writePerf(&b, r, a.colours(a.Out))
	}
	_, err := io.Copy(a.Out, &b)
	return err
}
