// Command pollux-demo shows what Pollux is for: a virtual machine writes to a
// disk that two nodes hold, the first node is killed, and the machine comes up
// on the second one with every acknowledged record in place. "make demo" runs
// it. The exit status is 0 only if nothing was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/pollux-project/pollux/cmd/internal/demo"
)

// Exit codes.
const (
	exitFailed = 1 // something was lost, or could not be shown
	exitUsage  = 2
)

func main() {
	var cfg demo.Config
	flag.StringVar(&cfg.Bin, "bin", "bin", "`directory` of polluxd and polluxadm")
	flag.StringVar(&cfg.Guest, "guest", "build/guest", "`directory` that scripts/demo/build-guest has filled")
	flag.StringVar(&cfg.WorkDir, "dir", "", "put disks and logs below this `directory` instead of the system's for temporary files; keep its path short")
	flag.BoolVar(&cfg.Keep, "keep", false, "leave disks and logs after a success")
	flag.BoolVar(&cfg.Sabotage, "sabotage", os.Getenv("SABOTAGE") == "1", "lose one acknowledged record on the second node; the demo must notice (also: SABOTAGE=1 in the environment)")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "pollux-demo: unexpected argument %q\n", flag.Arg(0))
		flag.Usage()
		os.Exit(exitUsage)
	}
	cfg.Out = os.Stdout

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := demo.Run(ctx, cfg)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
		return
	case interrupted:
		fmt.Fprintln(os.Stderr, "pollux-demo: interrupted; nothing is left running")
	case !errors.Is(err, demo.ErrFailed): // its reasons were printed
		fmt.Fprintf(os.Stderr, "pollux-demo: %v\n", err)
	}
	os.Exit(exitFailed)
}
