package adm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/conf"
	"github.com/pollux-project/pollux/protocol/adm"
)

// A sectors is a flag that counts sectors of 512 bytes, with drbd.conf's
// suffixes for other units.
type sectors struct{ n *uint64 }

func (s sectors) Set(text string) error {
	n, ok := conf.ParseNumber(text, conf.SectorUnit)
	if !ok || n > maxSectors {
		return errors.New("expected a number of sectors of 512 bytes, or one with the suffix K, M or G")
	}
	*s.n = n
	return nil
}

func (s sectors) String() string { return "" }
func (s sectors) Type() string   { return "SIZE" }

// maxSectors is 1 PiB, the limit of DRBD's tools.
const maxSectors = 1 << 41

// operateCommands are those about running replication: resync, verify, size,
// suspended I/O.
func (a *app) operateCommands() []*cobra.Command {
	run := func(c adm.Command, short, long string, flags func(co *cobra.Command, args *adm.Args)) *cobra.Command {
		var args adm.Args
		co := a.resourceCommand(string(c), groupData, short, long, func(ctx context.Context, t target) error {
			return a.control(ctx, c, t, args)
		})
		if flags != nil {
			flags(co, &args)
		}
		return co
	}
	return []*cobra.Command{
		run(adm.CmdVerify, "compare the two copies, block by block",
			"Online verify: both nodes read all blocks and compare checksums while the resource is in use. It returns at once;\n"+
				"status shows how far it is. Blocks that differ are marked out of sync and logged, and not repaired: disconnect and\n"+
				"connect do that if one node is Primary, and take its data for the right ones; else use invalidate on the node with\n"+
				"the wrong data. The configuration must have a verify-alg. To stop it: disconnect; the next one goes on from there.",
			func(co *cobra.Command, args *adm.Args) {
				co.Flags().Var(sectors{&args.StartSector}, "start", "begin at this sector (default: where the last one was cut off)")
				co.PreRun = func(cmd *cobra.Command, _ []string) {
					if !cmd.Flags().Changed("start") {
						args.StartSector = adm.VerifyContinue
					}
				}
				co.Flags().Var(sectors{&args.StopSector}, "stop", "stop before this sector (default: the end)")
			}),
		run(adm.CmdPauseSync, "pause the resync", "It stays paused, also across a reconnect, until resume-sync on this node.", nil),
		run(adm.CmdResumeSync, "let a paused resync go on",
			"Ends the pause of this node. A pause of the peer, or for a resync-after, is not touched.", nil),
		run(adm.CmdSuspendIO, "have all reads and writes wait",
			"Clients wait until resume-io; nothing is lost or refused. For moments when the disk must not change, such as the\n"+
				"copy of a backing device.", nil),
		run(adm.CmdResize, "use what the disks have grown by",
			"After both nodes' backing devices were enlarged, on the Primary, while connected. The new part is synced from the\n"+
				"Primary. Clients that are attached keep the old size until they attach anew.",
			func(co *cobra.Command, args *adm.Args) {
				f := co.Flags()
				f.Var(sectors{&args.SizeSectors}, "size", "use at most so much (default unit: sectors of 512 bytes)")
				f.BoolVar(&args.AssumeClean, "assume-clean", false, "don't sync the new part: it is equal on both, all zero perhaps")
				f.BoolVar(&args.AssumePeerHasSpace, "assume-peer-has-space", false, "without the peer: it has been enlarged as well")
			}),
		run(adm.CmdNewCurrentUUID, "begin a new data generation",
			"With --clear-bitmap, on two new and connected disks, both count as equal without a first sync: right only if nothing\n"+
				"will be read that was not written, or if both are known to be equal. On a StandAlone node it is the first step of\n"+
				"bringing the peer a copy of the disk by truck.",
			func(co *cobra.Command, args *adm.Args) {
				co.Flags().BoolVar(&args.ClearBitmap, "clear-bitmap", false, "and forget what differs: the copies are equal")
			}),
		a.optionsCommand(adm.CmdDiskOptions, conf.SectionDisk),
		a.optionsCommand(adm.CmdNetOptions, conf.SectionNet),
	}
}

// optionsCommand changes single options of a running resource. Without any it
// returns to the configuration's, as drbdadm does.
func (a *app) optionsCommand(c adm.Command, section conf.Section) *cobra.Command {
	var args adm.Args
	values := map[string]*string{}
	co := a.resourceCommand(string(c), groupData, fmt.Sprintf("change %s options of a running resource", section),
		fmt.Sprintf("Each option of the %s section of drbd.conf can be given as --NAME=VALUE. It is in force until adjust, or until the\n"+
			"resource is down; status shows what differs from the file. Without any option the file's values are put in force.", section),
		func(ctx context.Context, t target) error { return a.control(ctx, c, t, args) })
	// polluxd says why it refuses the latter.
	for _, o := range append(conf.RuntimeOptions(section), conf.RefusedOptions(section)...) {
		v := new(string)
		values[o.Name] = v
		co.Flags().StringVar(v, o.Name, "", "")
		if o.Type == conf.Boolean {
			co.Flag(o.Name).NoOptDefVal = "yes"
		}
		co.Flag(o.Name).Hidden = true // the option's manual is drbd.conf(5)
	}
	co.Flags().BoolVar(&args.SetDefaults, "set-defaults", false, "give every option that is not named its default")
	co.PreRun = func(cmd *cobra.Command, _ []string) {
		for name, v := range values {
			if cmd.Flags().Changed(name) {
				if args.Options == nil {
					args.Options = map[string]string{}
				}
				args.Options[name] = *v
			}
		}
	}
	return co
}

// describeOptions are the options of a request as one would type them; a
// secret is not shown.
func describeOptions(args adm.Args) string {
	var words []string
	for name, value := range args.Options {
		if name == "shared-secret" {
			value = "..."
		}
		words = append(words, fmt.Sprintf("--%s=%s", name, value))
	}
	slices.Sort(words)
	if args.SetDefaults {
		words = append(words, "--set-defaults")
	}
	for _, o := range []struct {
		name string
		n    uint64
	}{{"start", args.StartSector}, {"stop", args.StopSector}, {"size", args.SizeSectors}} {
		if o.n > 0 && o.n != adm.VerifyContinue {
			words = append(words, fmt.Sprintf("--%s=%ds", o.name, o.n))
		}
	}
	return strings.Join(words, " ")
}
