package adm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/hypervisor"
	"github.com/pollux-project/pollux/protocol/adm"
)

// Stdio is where the program reads and writes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// An app is one run of polluxadm.
type app struct {
	Stdio
	getenv func(string) string
	now    func() time.Time
	// newHypervisor makes the adapter that runs VMs with its files in runDir.
	newHypervisor func(runDir string) (hypervisor.Hypervisor, error)

	// Global options.
	configFile   string // -c: a drbd.conf instead of the files of pollux.toml
	settingsFile string // --config: pollux.toml
	dryRun       bool   // -d
	stacked      bool   // -S
	verbose      bool   // -v

	root string // where tests have /proc, /sys and /etc; "" is the machine's own

	config configuration // loaded on first use
}

// Main runs polluxadm with args, which lack the program's name, and returns
// its exit status. It gives up waiting when ctx is done.
func Main(ctx context.Context, args []string, stdio Stdio) int {
	a := &app{Stdio: stdio, getenv: os.Getenv, now: time.Now, newHypervisor: newQEMU}
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	if len(args) == 1 && args[0] == "--version" {
		return a.report(a.printVersion())
	}
	root := a.rootCommand()
	root.SetArgs(rewriteLegacy(args))
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return adm.ExitOK
	}
	if ctx.Err() != nil {
		a.complain("interrupted; see with polluxadm status what was done", "")
		return adm.ExitEnvironment
	}
	if u := (*cobraUsage)(nil); errors.As(err, &u) {
		a.complain(u.Error(), fmt.Sprintf("%s --help", cmd.CommandPath()))
		return adm.ExitUsage
	}
	return a.report(err)
}

// A cobraUsage is a command line that could not be understood.
type cobraUsage struct{ error }

// Groups of commands, in the order of the help.
const (
	groupDaily    = "daily"
	groupData     = "data"
	groupSetup    = "setup"
	groupVM       = "vm"
	groupScripts  = "scripts"
	rootLong      = rootIntro + rootTargets
	rootIntro     = "polluxadm controls disks that two nodes hold together.\n\n"
	rootTargets   = "RESOURCE is the name of a resource; RESOURCE/VOLUME or minor-N one volume of it; \"all\" every resource.\nFirst steps, on both nodes: create-md, up. Then on one: primary --force. From then on: status."
	resourceUsage = "{RESOURCE[/VOLUME] | minor-N | all}..."
)

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "polluxadm [-c FILE] [-d] COMMAND {RESOURCE | all}...",
		Short:             "control replicated disks and their virtual machines",
		Long:              rootLong,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkGlobal() },
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &cobraUsage{errors.New("a command is missing")}
			}
			msg := fmt.Sprintf("unknown command '%s'", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				msg += "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return &cobraUsage{errors.New(msg)}
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &cobraUsage{err} })
	root.AddGroup(
		&cobra.Group{ID: groupDaily, Title: "See and steer:"},
		&cobra.Group{ID: groupData, Title: "Repair:"},
		&cobra.Group{ID: groupSetup, Title: "Set up:"},
		&cobra.Group{ID: groupVM, Title: "Virtual machines and their cluster:"},
		&cobra.Group{ID: groupScripts, Title: "For scripts:"},
	)
	root.SetHelpCommandGroupID(groupScripts)
	root.SetCompletionCommandGroupID(groupScripts)
	f := root.PersistentFlags()
	f.StringVarP(&a.configFile, "config-file", "c", "", "read the resources from this drbd.conf (- is standard input)")
	f.StringVar(&a.settingsFile, "config", "", "read this pollux.toml (default: $POLLUX_CONFIG or "+defaultSettings+")")
	f.BoolVarP(&a.dryRun, "dry-run", "d", false, "only print what would be done")
	f.BoolVarP(&a.stacked, "stacked", "S", false, "stacked resources: not supported")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say more; dump: with inherited options")
	root.AddCommand(a.controlCommands()...)
	root.AddCommand(a.operateCommands()...)
	root.AddCommand(a.managedCommands()...)
	root.AddCommand(a.statusCommand(), a.eventsCommand(), a.waitConnectCommand(), a.waitSyncCommand(), a.perfCommand())
	root.AddCommand(a.procCommand())
	root.AddCommand(a.queryCommands()...)
	root.AddCommand(a.metadataCommands()...)
	root.AddCommand(a.adoptCommand(), a.releaseCommand())
	root.AddCommand(a.configCommands()...)
	root.AddCommand(a.vmCommand(), a.nodeCommand(), a.clusterCommand(), a.drillCommand(), a.reloadCommand())
	return root
}

func (a *app) checkGlobal() error {
	if a.stacked {
		return usageError("-S: stacked resources are not supported by Pollux; name a resource of this node instead")
	}
	return nil
}

// dial connects to the daemon that the settings name.
func (a *app) dial(ctx context.Context) (*client, error) {
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	return dial(ctx, s.ControlSocket, a.settingsPath())
}

// resourceCommand is a command that takes resources and calls run for each.
func (a *app) resourceCommand(use, group, short, long string, run func(ctx context.Context, t target) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " " + resourceUsage, GroupID: group, Short: short, Long: long,
		ValidArgsFunction: a.completeResources,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &cobraUsage{fmt.Errorf("%s: no resource names specified", use)}
			}
			ts, err := a.targets(args)
			if err != nil {
				return err
			}
			var errs []error
			for _, t := range ts {
				errs = append(errs, run(cmd.Context(), t))
			}
			return a.worst(errs)
		},
	}
}
