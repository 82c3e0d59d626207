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

// Exit codes. A script that expects the sabotage to be noticed wants 1, not
// just a demo that broke down.
const (
	exitFailed = 1 // played to the end, but something was lost or wrong
	exitUsage  = 2
	exitBroken = 3 // could not be played to the end
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
	case errors.Is(err, demo.ErrFailed): // its reasons were printed
		os.Exit(exitFailed)
	case interrupted:
		fmt.Fprintln(os.Stderr, "pollux-demo: interrupted; nothing is left running")
	default:
		fmt.Fprintf(os.Stderr, "pollux-demo: %v\n", err)
	}
	os.Exit(exitBroken)
}
