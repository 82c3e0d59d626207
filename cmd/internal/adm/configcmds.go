package adm

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/conf"
)

// configCommands only read the configuration; no daemon is asked.
func (a *app) configCommands() []*cobra.Command {
	perVolume := func(name, short string, value func(r *conf.Resource, v conf.Volume) string) *cobra.Command {
		return a.resourceCommand(name, groupScripts, short, "", func(_ context.Context, t target) error {
			r, vols, err := a.resolve(t)
			if err != nil {
				return err
			}
			for _, v := range vols {
				fmt.Fprintln(a.Out, value(r, v))
			}
			return nil
		})
	}
	cmds := []*cobra.Command{
		a.dumpCommand(),
		{
			Use: "sh-nop", Short: "only check the configuration", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { _, err := a.volumeIDs(); return err },
		},
		{
			Use: "sh-resources", Short: "names of all resources of this host", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				names, err := a.resourceNames()
				for _, n := range names {
					fmt.Fprintln(a.Out, n)
				}
				return err
			},
		},
		{
			Use: "sh-mod-parms", Short: "parameters of the kernel module that isn't there", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprintln(a.Out, "minor_count=32")
				return err
			},
		},
		a.resourceCommand("sh-resource", groupScripts, "the resource's name", "", func(_ context.Context, t target) error {
			_, err := fmt.Fprintln(a.Out, t.Resource)
			return err
		}),
		perVolume("sh-dev", "device of each volume", func(_ *conf.Resource, v conf.Volume) string { return v.Device }),
		perVolume("sh-minor", "minor of each volume", func(_ *conf.Resource, v conf.Volume) string { return strconv.Itoa(v.Minor) }),
		perVolume("sh-ll-dev", "backing device of each volume", func(_ *conf.Resource, v conf.Volume) string { return noneWord(v.Disk) }),
		perVolume("sh-md-dev", "metadata device of each volume", func(_ *conf.Resource, v conf.Volume) string {
			return noneWord(orElse(v.MetaDisk, v.Disk))
		}),
		perVolume("sh-md-idx", "place of each volume's metadata", func(_ *conf.Resource, v conf.Volume) string {
			return metaPlace(v)[1]
		}),
		perVolume("sh-ip", "this host's address", func(r *conf.Resource, _ conf.Volume) string { return r.Local.Addr.Addr().String() }),
		perVolume("sh-udev", "names for a udev rule", func(r *conf.Resource, v conf.Volume) string {
			res := fmt.Sprintf("drbd/by-res/%s/%d", r.Name, v.Number)
			s := fmt.Sprintf("DEVICE=%s\nSYMLINK=%s\nSYMLINK_BY_RES=%s", strings.TrimPrefix(v.Device, "/dev/"), res, res)
			if v.Disk != "" {
				s += "\nSYMLINK_BY_DISK=drbd/by-disk/" + strings.TrimPrefix(strings.TrimPrefix(v.Disk, "/dev/"), "/")
			}
			return s
		}),
	}
	for _, c := range cmds {
		c.GroupID = groupScripts
		c.Hidden = strings.HasPrefix(c.Use, "sh-") // machines know them; people would drown
	}
	return cmds
}

func (a *app) dumpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "dump [RESOURCE | all]...", Short: "print the configuration as it was understood",
		Long:              "In the form of drbdadm 9. With -v, options that a section inherits are printed in it.",
		ValidArgsFunction: a.completeResources,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			if len(args) == 1 && args[0] == "all" {
				args = nil
			}
			dump := c.Dump
			if a.verbose || a.dryRun {
				dump = c.DumpMerged
			}
			return a.asConfigError(dump(a.Out, args...))
		},
	}
}
