// Command pollux-bench measures Pollux beside qemu's network RAID-1 and other
// peers on this machine, and shows which demands on speed and memory are met.
// "make bench" runs it. The exit status is 0 when everything was measured,
// whatever the numbers say.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// A command is what the first argument chooses; run is the default.
type command struct {
	name, what string
	// run does it. The error has been shown by nobody yet; a usageError ends
	// the program with 2, any other with 1.
	run func(ctx context.Context, args []string) error
}

// commands are the subcommands, in the order in which help shows them.
var commands = []command{
	{"run", "measure (the default)", runCommand},
	{"report", "show a result as a page, plots or tables", reportCommand},
	{"compare", "tell what changed between two results from noise", compareCommand},
	{"revisions", "measure two builds of Pollux in turns, and compare them", revisionsCommand},
}

// usageError is a wrong command line.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := dispatch(ctx, os.Args[1:])
	stop()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "pollux-bench: %v\n", err)
	if _, isUsage := err.(usageError); isUsage { //nolint:errorlint // never wrapped
		os.Exit(2)
	}
	os.Exit(1)
}

// help lists the commands.
func help() {
	fmt.Println("Usage: pollux-bench [COMMAND] [FLAGS]\n\nCommands, each has -help:")
	for _, c := range commands {
		fmt.Printf("  %-8s %s\n", c.name, c.what)
	}
}

// dispatch finds the command; arguments that begin with a flag are run's.
func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 && slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]) {
		help()
		return nil
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return runCommand(ctx, args)
	}
	var names []string
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(ctx, args[1:])
		}
		names = append(names, c.name)
	}
	return usageError{fmt.Errorf("no command %q: there are %s; each has -help", args[0], strings.Join(names, ", "))}
}
