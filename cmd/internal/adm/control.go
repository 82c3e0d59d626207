package adm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

// controlCommands are those that ask the daemon to change something.
func (a *app) controlCommands() []*cobra.Command {
	var args adm.Args
	cmd := func(c adm.Command, group, short, long string, flags ...string) *cobra.Command {
		co := a.resourceCommand(string(c), group, short, long, func(ctx context.Context, t target) error {
			return a.control(ctx, c, t, args)
		})
		for _, f := range flags {
			addControlFlag(co, c, f, &args)
		}
		return co
	}
	return []*cobra.Command{
		cmd(adm.CmdUp, groupDaily, "attach the disks, serve them, and connect to the peer",
			"Reads the resource's configuration again, attaches its disks, offers its NBD exports and connects to the peer.\n"+
				"If anything fails nothing is left half-done. polluxd does this for all resources when it starts."),
		cmd(adm.CmdDown, groupDaily, "the opposite of up",
			"Refused while a client holds a volume open. A resource that isn't up is no error."),
		cmd(adm.CmdPrimary, groupDaily, "make this node the one that may write",
			"Only one node can be Primary, and it needs up to date data.\n\n"+
				"--force makes this node's data the valid one, whatever it is: right for the first sync of new disks, and to go on\n"+
				"without the peer when it is lost. What the other node has written since is then thrown away.\n\n"+
				"--term is the word of an arbiter, as polluxha passes it on: this node owns that term now, alone with --sole.\n"+
				"For experts: a term that no arbiter gave can let two nodes write.\n\n"+
				"Where a manager decides (manager in pollux.toml) --force asks for the resource's name, or has it in --confirm.",
			"force", "confirm", "term", "sole"),
		cmd(adm.CmdSecondary, groupDaily, "give up the Primary role",
			"Refused while a client holds a volume open."),
		a.promiseCommand(),
		cmd(adm.CmdConnect, groupDaily, "connect to the peer",
			"After a split brain, on the node whose changes are to be lost: connect --discard-my-data; on the other: connect.", "discard-my-data", "tentative"),
		cmd(adm.CmdDisconnect, groupDaily, "end the connection to the peer",
			"The resource becomes StandAlone and stays so until connect.", "force"),
		cmd(adm.CmdAdjust, groupDaily, "make the running resource agree with its changed configuration file",
			"Brings it up if it isn't, attaches missing disks, reconnects. Options are changed on the live connection wherever DRBD\n"+
				"can do that.", "skip-disk", "skip-net"),
		cmd(adm.CmdResumeIO, groupData, "let I/O go on that is frozen since the peer was lost, or by suspend-io",
			"With fencing resource-and-stonith a Primary that loses its peer stops all I/O until the peer is fenced or back.\n"+
				"Run this only when you know that the peer is down: otherwise both nodes may write (split brain).\n"+
				"Where polluxha decides it wants the resource's name in --confirm.\n\n"+
				"--sole tells polluxha that the peer is off, or does not run the VM: the VM goes on here alone, under a higher term,\n"+
				"although neither peer nor arbiter can be asked. It says what is not known and what may be lost, wants the resource's\n"+
				"name, and is written to the audit log. The peer's data is kept.", "sole", "confirm"),
		cmd(adm.CmdAttach, groupData, "attach the disk again, after a repair", ""),
		cmd(adm.CmdDetach, groupData, "work without the local disk",
			"The node goes on with the peer's data. --force doesn't wait for requests that hang in the disk.", "force"),
		cmd(adm.CmdInvalidate, groupData, "throw away this node's data and copy all of the peer's", ""),
		cmd(adm.CmdInvalidateRemote, groupData, "throw away the peer's data and copy all of this node's", ""),
	}
}

func addControlFlag(co *cobra.Command, c adm.Command, name string, args *adm.Args) {
	f := co.Flags()
	switch name {
	case "force":
		f.BoolVar(&args.Force, "force", false, "do it although data may be lost")
		if c == adm.CmdPrimary {
			f.BoolVarP(&args.Force, "overwrite-data-of-peer", "o", false, "older name of --force")
			co.Flag("overwrite-data-of-peer").Hidden = true
		}
	case "confirm":
		f.StringVar(&args.Confirm, "confirm", "", "the resource's name once more, where a manager decides")
	case "term":
		f.Uint64Var(&args.Term, "term", 0, "as the owner of this term, which an arbiter gave")
	case "sole":
		if c == adm.CmdResumeIO {
			f.BoolVar(&args.Sole, "sole", false, "through polluxha: this node goes on as the only writer, and its VM runs")
			return
		}
		f.BoolVar(&args.Sole, "sole", false, "with --term: the arbiter's record names no other copy, so this node may write alone")
		co.PreRunE = func(*cobra.Command, []string) error {
			if args.Sole && args.Term == 0 {
				return &cobraUsage{fmt.Errorf("%s: --sole is about a term: --term=TERM is missing", c)}
			}
			return nil
		}
	case "discard-my-data":
		f.BoolVar(&args.DiscardMyData, "discard-my-data", false, "give up what this node wrote since the split brain")
	case "skip-disk":
		f.BoolVar(&args.SkipDisk, "skip-disk", false, "leave disks and their options as they are")
	case "skip-net":
		f.BoolVar(&args.SkipNet, "skip-net", false, "leave the connection and its options as they are")
	case "tentative":
		f.BoolVar(&args.Tentative, "tentative", false, "only negotiate, and log what would happen")
	}
}

// promiseCommand is promise-term, whose last argument is the term.
func (a *app) promiseCommand() *cobra.Command {
	co := a.resourceCommand(string(adm.CmdPromiseTerm), groupData, "refuse the writes of every lower term from now on",
		"What polluxha does on both nodes before one of them takes over. It is on disk when the command ends, and can't be\n"+
			"taken back: a term only grows. A Primary with a lower one is cut off. For experts.", nil)
	co.Use = string(adm.CmdPromiseTerm) + " {RESOURCE|all}... TERM"
	co.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return &cobraUsage{errors.New("promise-term: expected a resource and a term")}
		}
		last := len(args) - 1
		term, err := strconv.ParseUint(args[last], 10, 64)
		if err != nil || term == 0 {
			return &cobraUsage{fmt.Errorf("promise-term: found %q, expected a term: a number from 1", args[last])}
		}
		ts, err := a.targets(args[:last])
		if err != nil {
			return err
		}
		var errs []error
		for _, t := range ts {
			errs = append(errs, a.control(cmd.Context(), adm.CmdPromiseTerm, t, adm.Args{Term: term}))
		}
		return a.worst(errs)
	}
	return co
}

// control asks the daemon for one command.
func (a *app) control(ctx context.Context, c adm.Command, t target, args adm.Args) error {
	req := adm.Request{Cmd: c, Resource: t.Resource, Volume: t.Volume, Args: args}
	if c == adm.CmdResumeIO && args.Sole {
		return a.resumeSole(ctx, t.Resource, args.Confirm)
	}
	if a.dryRun {
		fmt.Fprintf(a.Out, "polluxd: %s\n", describe(c, t, args))
		return nil
	}
	cl, err := a.dial(ctx)
	if err != nil {
		if c == adm.CmdDown && errors.Is(err, errNoDaemon) {
			return nil // nothing is up where no daemon runs
		}
		return err
	}
	defer cl.close()
	if c == adm.CmdPrimary && args.Force && args.Confirm == "" {
		if req.Args.Confirm, err = a.confirmed(ctx, cl, t.Resource); err != nil {
			return err
		}
	}
	if err := cl.call(ctx, req, nil); err != nil || c != adm.CmdPrimary || args.Term > 0 {
		return err
	}
	return a.warnAlone(ctx, cl, t)
}

// confirmed is the name that is asked for if a manager decides about a resource;
// where nobody can be asked polluxd says what to do.
func (a *app) confirmed(ctx context.Context, cl *client, name string) (string, error) {
	r, err := cl.resource(ctx, name)
	if err != nil || r.Manager == "" || !isTerminalInput(a.In) {
		return "", err
	}
	what := "what is on this node becomes the valid data"
	if !isConnected(r) {
		what = peerAbsent(r, a.now()) + ": it may still be writing, and this copy may be old"
	}
	fmt.Fprintf(a.Err, "%s: manager = %q decides who is Primary. %s.\nThe other copy is left as it is. Type the name of the resource to go on without the manager: ", name, r.Manager, what)
	line, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && line == "" {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

// warnAlone tells who has promoted a node without its peer what nobody can
// know from here. The promotion itself is allowed, as drbdadm allows it.
func (a *app) warnAlone(ctx context.Context, cl *client, t target) error {
	r, err := cl.resource(ctx, t.Resource)
	if err != nil {
		return err
	}
	if isConnected(r) {
		return nil
	}
	fmt.Fprintf(a.Err, "%s: warning: %s: it may still be writing, and this copy may be old\n", r.Name, peerAbsent(r, a.now()))
	return nil
}

// describe is the request as one would type it.
func describe(c adm.Command, t target, args adm.Args) string {
	s := string(c)
	for _, o := range []struct {
		on   bool
		name string
	}{
		{args.Force, "--force"},
		{args.DiscardMyData, "--discard-my-data"},
		{args.Tentative, "--tentative"},
		{args.AssumeClean, "--assume-clean"},
		{args.AssumePeerHasSpace, "--assume-peer-has-space"},
		{args.ClearBitmap, "--clear-bitmap"},
		{args.SkipDisk, "--skip-disk"},
		{args.SkipNet, "--skip-net"},
		{args.Reset, "--reset"},
		{args.Sole, "--sole"},
	} {
		if o.on {
			s += " " + o.name
		}
	}
	if words := describeOptions(args); words != "" {
		s += " " + words
	}
	if args.Term > 0 {
		if c == adm.CmdPromiseTerm {
			return fmt.Sprintf("%s %s %d", s, t, args.Term)
		}
		s += fmt.Sprintf(" --term=%d", args.Term)
	}
	if args.Confirm != "" {
		s += " --confirm=" + args.Confirm
	}
	if args.Incarnation != "" {
		return fmt.Sprintf("%s %s %s", s, t, args.Incarnation)
	}
	return s + " " + t.String()
}

// resourceStatus asks the daemon about one resource.
func (a *app) resourceStatus(ctx context.Context, name string) (adm.Resource, error) {
	cl, err := a.dial(ctx)
	if err != nil {
		return adm.Resource{}, err
	}
	defer cl.close()
	return cl.resource(ctx, name)
}

func (c *client) resource(ctx context.Context, name string) (adm.Resource, error) {
	var st adm.Status
	if err := c.call(ctx, adm.Request{Cmd: adm.CmdStatus, Resource: name}, &st); err != nil {
		return adm.Resource{}, err
	}
	if len(st.Resources) != 1 {
		return adm.Resource{}, &adm.Error{Exit: adm.ExitEnvironment, Text: fmt.Sprintf("%s: polluxd gave no status", name)}
	}
	return st.Resources[0], nil
}
