package adm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/cmd/internal/metacli"
	"github.com/pollux-project/pollux/cmd/internal/takeover"
	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// metadataCommands work on the metadata of disks that nobody has attached;
// they need no daemon.
func (a *app) metadataCommands() []*cobra.Command {
	var force, ignoreSanity bool
	var stripes, stripeKB, maxPeers string
	create := a.resourceCommand("create-md", groupSetup, "prepare the disks: write empty metadata on them",
		"Done once, on both nodes, before the first up. With internal metadata the last part of the disk is used: make a file\n"+
			"system on the Pollux device afterwards, not on the disk. A disk that holds a file system or other metadata is refused,\n"+
			"unless you confirm or give --force.",
		func(_ context.Context, t target) error {
			var extra []string
			if stripes != "" {
				extra = append(extra, "--al-stripes="+stripes)
			}
			if stripeKB != "" {
				extra = append(extra, "--al-stripe-size-kB="+stripeKB)
			}
			if ignoreSanity {
				extra = append(extra, "--ignore-sanity-checks")
			}
			return a.eachMeta(t, "create-md", force, extra...)
		})
	create.Flags().BoolVar(&force, "force", false, "answer all questions with yes")
	create.Flags().BoolVar(&ignoreSanity, "ignore-sanity-checks", false, "even where a file system would be destroyed")
	create.Flags().StringVar(&stripes, "al-stripes", "", "number of stripes of the activity log")
	create.Flags().StringVar(&stripeKB, "al-stripe-size-kB", "", "size of one stripe in KiB")
	create.Flags().StringVar(&maxPeers, "max-peers", "", "accepted and ignored: the format has one peer")
	create.Flag("max-peers").Hidden = true

	wipe := a.resourceCommand("wipe-md", groupSetup, "remove the metadata: the disk belongs to Pollux no more",
		"The data itself stays.", func(_ context.Context, t target) error { return a.eachMeta(t, "wipe-md", force) })
	wipe.Flags().BoolVar(&force, "force", false, "answer all questions with yes")

	dump := a.resourceCommand("dump-md", groupScripts, "print the metadata as text",
		"For a copy, or to look at. polluxmeta restore-md reads it.",
		func(_ context.Context, t target) error { return a.eachMeta(t, "dump-md", force) })
	dump.Flags().BoolVar(&force, "force", false, "also if the metadata is unclean")

	apply := a.resourceCommand("apply-al", groupScripts, "replay the activity log, as attach does by itself", "",
		func(_ context.Context, t target) error { return a.eachMeta(t, "apply-al", false) })
	return []*cobra.Command{create, wipe, dump, apply, a.outdateCommand(), a.checkResizeCommand()}
}

// outdateCommand is about the running resource or, if it isn't up, about the
// metadata on its disk.
func (a *app) outdateCommand() *cobra.Command {
	return a.resourceCommand("outdate", groupData, "mark this node's data as old",
		"An Outdated node can't become Primary. Refused while connected; done on the disk if the resource isn't up.",
		func(ctx context.Context, t target) error {
			err := a.control(ctx, adm.CmdOutdate, t, adm.Args{})
			var refused *adm.Error
			if errors.Is(err, errNoDaemon) || errors.As(err, &refused) && refused.Number == 158 {
				return a.eachMeta(t, "outdate", false)
			}
			return err
		})
}

// eachMeta runs a polluxmeta command on the metadata of each of t's volumes.
func (a *app) eachMeta(t target, command string, force bool, extra ...string) error {
	vols, err := a.volumes(t)
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range vols {
		if v.Disk == "" {
			continue // diskless by configuration: nothing to write on
		}
		args := extra
		if force {
			args = append([]string{"--force"}, extra...)
		}
		errs = append(errs, a.runMeta(v, command, args...))
	}
	return a.worst(errs)
}

// runMeta runs one polluxmeta command; it prints what it has to say itself.
func (a *app) runMeta(v conf.Volume, command string, options ...string) error {
	args := append([]string{"polluxmeta"}, options...)
	args = append(args, strconv.Itoa(v.Minor), "v08")
	args = append(args, metaPlace(v)...)
	args = append(args, command)
	if a.dryRun {
		fmt.Fprintln(a.Out, strings.Join(args, " "))
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown" // a comment in a dump
	}
	code := metacli.Run(metacli.Env{
		Args: args, Stdin: a.In, Stdout: a.Out, Stderr: a.Err, IsTerminal: isTerminalInput(a.In), Host: host, Now: a.now,
	})
	if code != metacli.ExitDone {
		return codeError(code)
	}
	return nil
}

// metaPlace are the DEVICE INDEX words of polluxmeta for a volume.
func metaPlace(v conf.Volume) []string { return takeover.MetaWords(v) }
