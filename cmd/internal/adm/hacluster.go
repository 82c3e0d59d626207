package adm

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-project/pollux/protocol/adm"
)

func (a *app) clusterCommand() *cobra.Command {
	cluster := &cobra.Command{
		Use: "cluster COMMAND", GroupID: groupVM, Short: "the nodes that take machines over from one another",
		Long: "A cluster is made on its first node by init; each further one joins with a token, one at a time. Nodes talk to each\n" +
			"other by mutual TLS 1.3; nothing needs ssh, and no data is erased by joining or leaving.",
		RunE: noSubcommand("cluster"),
	}
	var asJSON bool
	cluster.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	cluster.AddCommand(a.clusterStatusCommand(&asJSON), a.clusterInitCommand(&asJSON), a.clusterTokenCommand(&asJSON),
		a.clusterJoinCommand(&asJSON), a.clusterLeaveCommand(&asJSON), a.clusterEventsCommand(&asJSON))
	return cluster
}

func (a *app) clusterStatusCommand(asJSON *bool) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "one line for each node, and one sentence", Args: cobra.NoArgs,
		Long: "STATE is leader, follower, candidate (knows no leader), solo or error. TERM is the highest of the node's resources,\n" +
			"IN-SYNC how many of its copies hold every acknowledged write, LEASE its proof of life with the arbiter.\n" +
			"The exit status is 0 if the verdict is good, 10 if something is critical.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var c adm.HACluster
			if err := a.ask(cmd.Context(), adm.HARequest{Cmd: adm.HAClusterStatus}, &c, *asJSON); err != nil {
				return err
			}
			if *asJSON {
				if err := a.printJSON(c); err != nil {
					return err
				}
			} else {
				writeCluster(a.Out, c, a.colours(a.Out))
			}
			if c.Level == adm.HALevelCritical {
				return codeError(adm.ExitRefused)
			}
			return nil
		},
	}
}

func (a *app) clusterInitCommand(asJSON *bool) *cobra.Command {
	var args adm.HAArgs
	var options []string
	cmd := &cobra.Command{
		Use: "init NAME --link IP:PORT", Short: "make a cluster, with this node as its first",
		Long: "Makes the cluster's certificate authority and its file, cluster.toml. --link is where this node hears the others: the\n" +
			"first one the management link, further ones the replication links. --arbiter is who decides when nodes lose sight of\n" +
			"each other: etcd (three nodes or more, one of them may be a witness without disks), witness (pollux-witness on a third\n" +
			"host), fence (the fence_* agents of package fence-agents) or manual (a person).",
		Args: oneName("cluster init", "the new cluster"),
		RunE: func(cmd *cobra.Command, names []string) error {
			if len(args.Links) == 0 {
				return usageError("cluster init: --link IP:PORT is missing: where does this node hear the others?")
			}
			args.Cluster = names[0]
			for _, o := range options {
				key, value, ok := strings.Cut(o, "=")
				if !ok {
					return usageError("cluster init: --arbiter-option %s: expected KEY=VALUE", o)
				}
				if args.ArbiterOptions == nil {
					args.ArbiterOptions = map[string]string{}
				}
				args.ArbiterOptions[key] = value
			}
			var c adm.HACluster
			if err := a.ask(cmd.Context(), adm.HARequest{Cmd: adm.HAClusterInit, Args: args}, &c, *asJSON); err != nil {
				return err
			}
			if *asJSON {
				return a.printJSON(c)
			}
			writeCluster(a.Out, c, a.colours(a.Out))
			fmt.Fprintln(a.Out, "\nnext, for each further node: polluxadm cluster token NODE --link IP:PORT, and there: polluxadm cluster join TOKEN")
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&args.Links, "link", nil, "IP:PORT of this node; repeat it for further links")
	f.StringVar(&args.Arbiter, "arbiter", "etcd", "etcd, witness, fence or manual")
	f.StringArrayVar(&options, "arbiter-option", nil, "KEY=VALUE of the arbiter's table in cluster.toml; may be repeated")
	return cmd
}

func (a *app) clusterTokenCommand(asJSON *bool) *cobra.Command {
	var args adm.HAArgs
	cmd := &cobra.Command{
		Use: "token NODE --link IP:PORT", Short: "print what lets a new node join, once", Args: oneName("cluster token", "the new node"),
		Long: "The token holds a secret: whoever has it can join as that node. It works once, and only until it expires.",
		RunE: func(cmd *cobra.Command, names []string) error {
			if len(args.Links) == 0 {
				return usageError("cluster token: --link IP:PORT is missing: where does the new node hear the others?")
			}
			var t adm.HAToken
			if err := a.ask(cmd.Context(), adm.HARequest{Cmd: adm.HAClusterToken, Node: names[0], Args: args}, &t, *asJSON); err != nil {
				return err
			}
			if *asJSON {
				return a.printJSON(t)
			}
			fmt.Fprintln(a.Out, t.Token)
			fmt.Fprintf(a.Err, "on %s, within %s, once: polluxadm cluster join TOKEN\n", t.Node, lifetime(t.Expires.Sub(a.now())))
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&args.Links, "link", nil, "IP:PORT of the new node; repeat it for further links")
	cmd.Flags().StringVar(&args.Kind, "kind", adm.NodeData, "data, or witness: votes, has no disks")
	return cmd
}

// lifetime is a time to come, as people say it, in whole minutes.
func lifetime(d time.Duration) string {
	switch m := int(d.Round(time.Minute).Minutes()); {
	case m <= 1:
		return "a minute"
	case m == 60:
		return "an hour"
	case m >= 120 && m%60 == 0:
		return fmt.Sprintf("%d hours", m/60)
	default:
		return fmt.Sprintf("%d minutes", m)
	}
}

func (a *app) clusterJoinCommand(asJSON *bool) *cobra.Command {
	return &cobra.Command{
		Use: "join TOKEN", Short: "join a cluster with a token of one of its nodes", Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &cobraUsage{errors.New("cluster join: one token is needed: the line that \"polluxadm cluster token\" printed on a member")}
			}
			return nil
		},
		Long: "Refused while a node of the cluster is unhealthy, and if this node belongs to another cluster already. Nothing on this\n" +
			"node's disks is touched.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.order(cmd.Context(), adm.HARequest{Cmd: adm.HAClusterJoin, Args: adm.HAArgs{Token: args[0]}}, *asJSON, "this node has joined; see: polluxadm cluster status")
		},
	}
}

func (a *app) clusterLeaveCommand(asJSON *bool) *cobra.Command {
	return &cobra.Command{
		Use: "leave NODE", Short: "take a node out of the cluster", Args: oneName("cluster leave", "the node that leaves"),
		Long: "Refused while machines run there or another node is unhealthy. Its disks and their data stay as they are.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.order(cmd.Context(), adm.HARequest{Cmd: adm.HAClusterLeave, Node: args[0]}, *asJSON, fmt.Sprintf("node %s: has left", args[0]))
		},
	}
}

func (a *app) clusterEventsCommand(asJSON *bool) *cobra.Command {
	var args adm.HAArgs
	cmd := &cobra.Command{
		Use: "events", Short: "what polluxha on this node saw, decided and did", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.clusterEvents(cmd.Context(), args, *asJSON) },
	}
	cmd.Flags().BoolVarP(&args.Follow, "follow", "f", false, "go on with new ones")
	cmd.Flags().Uint64Var(&args.Since, "since", 0, "only those with a greater number (seq of --json)")
	return cmd
}
